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
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from minigpt import clusters
from minigpt.heads import Score, attention_patterns
from minigpt.model import MiniGPT
from minigpt.probe import Probe

PATTERN_ELEMENTS = 2**22  # of attention at a time: what a cache holds is faster

Ends = tuple[float | np.ndarray, ...]  # a value, and the ends of its interval


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
        offset_C = clusters.best(fixed_offsets(probe, name))
        value_LH, low_LH, high_LH = clusters.share(measured[name], n_C)
        for at in np.ndindex(value_LH.shape):
            ends = (value_LH[at], low_LH[at], high_LH[at])
            found.append(replace(_share(name, ends, probe, offset_C, n_C), layer=at[0], head=at[1]))
    return found


def of_model(
    measured: Mapping[str, np.ndarray], untrained: Mapping[str, np.ndarray], probe: Probe
) -> list[Score]:
    """What a model's best head knows of each relation that has queries, as scores of the model.

    Of relation `bracket`: `structure_bracket`, its share; `over_offset_bracket` and
    `over_untrained_bracket`, by how much that is above the best fixed offset and above the best
    head of an untrained model, asked the same. All are chosen on either half of the documents and
    judged on the other.
    """
    found = []
    for name, n_C in _asked(probe).items():
        own_C, offset_C, other_C = (
            clusters.best(hits_XC.reshape(-1, len(n_C)))
            for hits_XC in (measured[name], fixed_offsets(probe, name), untrained[name])
        )
        over_offset = clusters.difference(own_C, offset_C, n_C)
        over_untrained = clusters.difference(own_C, other_C, n_C)
        found += [
            _share(name, clusters.share(own_C, n_C), probe, offset_C, n_C),
            _score(f"over_offset_{name}", over_offset),
            _score(f"over_untrained_{name}", over_untrained),
        ]
    return found


def _share(name: str, ends: Ends, probe: Probe, offset_C: np.ndarray, n_C: np.ndarray) -> Score:
    """A share of the queries of relation `name`, beside uniform attention and a fixed offset."""
    null, baseline = null_value(probe, name), float(offset_C.sum() / n_C.sum())
    return replace(_score(f"structure_{name}", ends), null_value=null, baseline=baseline)


def _score(metric: str, ends: Ends) -> Score:
    value, low, high = map(float, ends)
    known = not math.isnan(low)
    return Score(
        metric=metric, value=value, low=low if known else None, high=high if known else None
    )


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


def _asked(probe: Probe) -> dict[str, np.ndarray]:
    """n_C, the queries of each document, of the relations that have any."""
    counts = {
        name: np.bincount(probe.document_W[queries.window_Q], minlength=probe.documents)
        for name, queries in probe.queries.items()
    }
    return {name: n_C for name, n_C in counts.items() if n_C.any()}
