"""How often attention finds what a position stands in relation to: the structure of a text.

A head answers a query (`minigpt.probe`) if the key holds the token that it attends to most, of all
up to the query itself: to look at itself, or at the first token for want of anything better, is a
miss. Tokens of equal attention share the answer, so that uniform attention has its null value.

Two controls: the best fixed offset, which is the best of all heads that look at one distance
whatever the text is; and an untrained model. Heads and offsets are chosen on other documents than
those that they are judged on.

Shapes: L layers, B windows, H heads, T tokens of a window, Q queries, C documents, O offsets.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minigpt import clusters
from minigpt.clusters import Interval
from minigpt.heads import Score, attention_patterns
from minigpt.model import MiniGPT
from minigpt.probe import Probe

PATTERN_ELEMENTS = 2**22  # of attention at a time: what a cache holds is faster


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a model's best head knows of a relation, beside what needs no learning.

    `heads` (layer, head) are the two chosen on either half of the documents and judged on the
    other, and so are `offsets` and the untrained model's heads. The two differences are paired.
    """

    metric: str
    queries: int
    documents: int
    heads: tuple[tuple[int, int], tuple[int, int]]
    offsets: tuple[int, int]
    share: Interval
    null_value: float
    baseline: Interval
    untrained: Interval
    over_baseline: Interval
    over_untrained: Interval

    @property
    def emerges(self) -> bool:
        """Whether it is above both beyond its interval."""
        return self.over_baseline.low > 0 and self.over_untrained.low > 0


def measure(model: MiniGPT, probe: Probe) -> dict[str, np.ndarray]:
    """hits_LHC of each relation: of each document's queries the number that each head answers."""
    tokens_WT = torch.from_numpy(probe.tokens_WT).to(model.embedding.weight.device)
    heads = model.config.n_layers * model.config.n_heads
    rows = max(1, PATTERN_ELEMENTS // (heads * tokens_WT.shape[1] ** 2))
    found: dict[str, np.ndarray] = {}
    for start in range(0, len(tokens_WT), rows):
        A_LBHTT = attention_patterns(model, tokens_WT[start : start + rows])
        for name, hits_LHC in hits(A_LBHTT, probe, start).items():
            found[name] = found.get(name, 0) + hits_LHC
    return found


def hits(A_LBHTT: Tensor, probe: Probe, start: int = 0) -> dict[str, np.ndarray]:
    """hits_LHC of the probe's B windows from number `start` on, of which A is the attention."""
    L, B, H, T, _ = A_LBHTT.shape
    key_T = torch.arange(T, device=A_LBHTT.device)
    found = {}
    for name, queries in probe.queries.items():
        here_Q = (queries.window_Q >= start) & (queries.window_Q < start + B)
        columns = queries.window_Q - start, queries.query_Q, queries.first_Q, queries.last_Q
        window_Q, query_Q, first_Q, last_Q = (
            torch.from_numpy(column_Q[here_Q]).to(A_LBHTT.device) for column_Q in columns
        )
        A_QLHT = A_LBHTT[:, window_Q, :, query_Q]  # apart, indices put their axis first
        most_QLHT = A_QLHT.eq(A_QLHT.amax(dim=-1, keepdim=True))
        key_QT = (key_T >= first_Q[:, None]) & (key_T <= last_Q[:, None])
        inside_QLH = (most_QLHT & key_QT[:, None, None]).sum(dim=-1)
        answered_QLH = inside_QLH.double().cpu() / most_QLHT.sum(dim=-1).cpu()
        document_Q = torch.from_numpy(probe.document_W[queries.window_Q[here_Q]])
        hits_CLH = torch.zeros(probe.documents, L, H, dtype=torch.float64)
        hits_CLH.index_add_(0, document_Q, answered_QLH)
        found[name] = hits_CLH.permute(1, 2, 0).numpy()
    return found


def scores(measured: Mapping[str, np.ndarray], probe: Probe) -> list[Score]:
    """Every head's share of each relation that has queries, bounded by how documents vary."""
    found = []
    for name, n_C in _asked(probe).items():
        shares = zip(
            *(ends_LH.flat for ends_LH in clusters.share(measured[name], n_C)), strict=True
        )
        offset_C, _ = clusters.best(fixed_offsets(probe, name), n_C)
        for (layer, head), (value, low, high) in zip(
            np.ndindex(measured[name].shape[:2]), shares, strict=True
        ):
            found.append(
                Score(
                    metric=f"structure_{name}",
                    layer=layer,
                    head=head,
                    value=float(value),
                    low=_known(low),
                    high=_known(high),
                    null_value=null_value(probe, name),
                    baseline=float(offset_C.sum() / n_C.sum()),
                )
            )
    return found


def verdicts(
    measured: Mapping[str, np.ndarray], untrained: Mapping[str, np.ndarray], probe: Probe
) -> list[Verdict]:
    """What a model has learned of each relation that has queries, beside an untrained one."""
    found = []
    for name, n_C in _asked(probe).items():
        heads = measured[name].shape[1]
        own_C, picks = clusters.best(measured[name].reshape(-1, len(n_C)), n_C)
        offset_C, offsets = clusters.best(fixed_offsets(probe, name), n_C)
        other_C, _ = clusters.best(untrained[name].reshape(-1, len(n_C)), n_C)
        own, baseline, other = (
            Interval(*map(float, clusters.share(hits_C, n_C)))
            for hits_C in (own_C, offset_C, other_C)
        )
        found.append(
            Verdict(
                metric=f"structure_{name}",
                queries=int(n_C.sum()),
                documents=int(np.count_nonzero(n_C)),
                heads=(divmod(picks[0], heads), divmod(picks[1], heads)),
                offsets=offsets,
                share=own,
                null_value=null_value(probe, name),
                baseline=baseline,
                untrained=other,
                over_baseline=clusters.difference(own_C, offset_C, n_C),
                over_untrained=clusters.difference(own_C, other_C, n_C),
            )
        )
    return found


def of_model(verdicts: Sequence[Verdict]) -> list[Score]:
    """The verdicts as scores of the whole model: the share, and what it is above each control.

    Of relation `bracket` they are `structure_bracket`, `over_offset_bracket` and
    `over_untrained_bracket`.
    """
    found = []
    for v in verdicts:
        relation = v.metric.removeprefix("structure_")
        value, low, high = v.share
        found.append(
            Score(
                metric=v.metric,
                value=value,
                low=_known(low),
                high=_known(high),
                null_value=v.null_value,
                baseline=v.baseline.value,
            )
        )
        for control, over in (("offset", v.over_baseline), ("untrained", v.over_untrained)):
            found.append(
                Score(
                    metric=f"over_{control}_{relation}",
                    value=over.value,
                    low=_known(over.low),
                    high=_known(over.high),
                )
            )
    return found


def fixed_offsets(probe: Probe, name: str) -> np.ndarray:
    """hits_OC of heads that always look `offset` tokens back, from 0 to the window's length."""
    queries = probe.queries[name]
    document_Q = probe.document_W[queries.window_Q]
    # An offset answers from query - last to query - first.
    edge_OC = np.zeros((probe.tokens_WT.shape[1] + 1, probe.documents))
    np.add.at(edge_OC, (queries.query_Q - queries.last_Q, document_Q), 1)
    np.add.at(edge_OC, (queries.query_Q - queries.first_Q + 1, document_Q), -1)
    return edge_OC.cumsum(axis=0)


def null_value(probe: Probe, name: str) -> float:
    """The share of attention that is the same for all tokens up to the query."""
    queries = probe.queries[name]
    return float(np.mean((queries.last_Q - queries.first_Q + 1) / (queries.query_Q + 1)))


def _known(end: float) -> float | None:
    return None if math.isnan(end) else float(end)


def _asked(probe: Probe) -> dict[str, np.ndarray]:
    """n_C, the queries of each document, of the relations that have any."""
    counts = {
        name: np.bincount(probe.document_W[queries.window_Q], minlength=probe.documents)
        for name, queries in probe.queries.items()
    }
    return {name: n_C for name, n_C in counts.items() if n_C.any()}


def table(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as text, with the intervals of what is compared."""
    level = f"{clusters.LEVEL:.0%}"
    lines = [
        f"{'relation':<13}{'queries':>8}{'uniform':>9}{'offset':>8}{'untrained':>11}{'head':>7} "
        f"{f'({level})':<16}{'over offset':<18}{'over untrained':<18}emerges"
    ]
    for v in verdicts:
        ends = f"({v.share.low:.3f} to {v.share.high:.3f})"
        over = [f"{d.low:+.3f} to {d.high:+.3f}" for d in (v.over_baseline, v.over_untrained)]
        lines.append(
            f"{v.metric.removeprefix('structure_'):<13}{v.queries:>8,}{v.null_value:>9.3f}"
            f"{v.baseline.value:>8.3f}{v.untrained.value:>11.3f}{v.share.value:>7.3f} "
            f"{ends:<16} {over[0]:<18}{over[1]:<18}{'yes' if v.emerges else 'no'}"
        )
    return "\n".join(lines)
