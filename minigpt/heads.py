"""What attention heads do: their patterns, and scores of the patterns with what chance would give.

The sequences are s + s, random tokens s and the same again, where only the earlier copy tells what
comes next (Elhage et al. 2021; Olsson et al. 2022). Nothing stands in front of them.

Shapes: L layers, B sequences, H heads, T tokens of a sequence, P = T/2 tokens of s, D width,
K channels of a head, V vocabulary.
"""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor
from torch.nn import functional as F

from minigpt.clusters import LEVEL
from minigpt.model import Attention, MiniGPT

BATCH_TOKENS = 2_048  # of one forward pass, as in evaluation
ICL_POSITIONS = (50, 500)  # the tokens that Olsson et al. 2022 compare a model's loss at


@dataclass(frozen=True, kw_only=True)
class Score:
    """A number of one head, or of the whole model where `layer` and `head` are None.

    `low` and `high` bound the mean over sequences, by Student's t at LEVEL; None for what is not a
    mean over sequences. `value` is None where it is not defined. `null_value` is what attention
    that looks at nothing in particular has, or a model that learned nothing of the kind; `baseline`
    what looking at one distance has, of structure scores alone (`minigpt.structure`).
    """

    metric: str
    layer: int | None = None
    head: int | None = None
    value: float | None
    low: float | None = None
    high: float | None = None
    null_value: float = 0.0
    baseline: float | None = None


def attentions(model: MiniGPT) -> list[Attention]:
    """The attention of every layer, from the first."""
    return [module for module in model.modules() if isinstance(module, Attention)]


@torch.no_grad()
def attention_patterns(model: MiniGPT, tokens_BT: Tensor) -> Tensor:
    """A_LBHTT: how much of each query's (next to last axis) attention goes to each key (last)."""
    found: list[Tensor] = []

    def look(attention: Attention, inputs: tuple) -> None:
        q_BTHK, k_BTHK, _ = attention.queries_keys_values(*inputs[:2])
        q_BHTK, k_BHTK = q_BTHK.transpose(1, 2), k_BTHK.transpose(1, 2)
        logits_BHTT = q_BHTK @ k_BHTK.mT / math.sqrt(q_BHTK.shape[-1])
        future_TT = torch.ones_like(logits_BHTT[0, 0], dtype=torch.bool).triu(1)
        found.append(logits_BHTT.masked_fill(future_TT, -math.inf).softmax(dim=-1))

    with ExitStack() as hooks:
        for attention in attentions(model):
            hooks.callback(attention.register_forward_pre_hook(look).remove)
        model(tokens_BT)
    return torch.stack(found)


def repeated(alphabet: Sequence[int], length: int, count: int, seed: int) -> Tensor:
    """tokens_BT of `count` sequences s + s, each s `length` tokens of `alphabet` from the seed.

    Without replacement within s as far as the alphabet reaches: no token of s stands in it twice.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    short = len(alphabet) < length
    s_BP = np.stack([rng.choice(alphabet, length, replace=short) for _ in range(count)])
    return torch.from_numpy(np.tile(s_BP, 2).astype(np.int64))


def repeated_scores(model: MiniGPT, tokens_BT: Tensor) -> list[Score]:
    """What the heads look at and what it is worth, over sequences s + s: tokens_BT of `repeated`.

    Of every head: `previous_token`, mean A[q, q-1]; `duplicate_token`, A[q, q-P] over the second
    copy, the token itself; `induction`, A[q, q-P+1] over the second copy, the token that came next.
    Their null values are of uniform attention. Of the model: `repeat_loss_drop`.
    """
    P, nulls = tokens_BT.shape[1] // 2, null_values(tokens_BT.shape[1] // 2)
    looks = {"previous_token": (1, 1), "duplicate_token": (P, P), "induction": (P - 1, P)}
    parts = []
    for part_BT in _batches(tokens_BT):
        A_LBHTT = attention_patterns(model, part_BT)
        parts.append({metric: _from(A_LBHTT, *look) for metric, look in looks.items()})
    scores = []
    for metric, null in nulls.items():
        scores += _of_heads(metric, torch.cat([part[metric] for part in parts], dim=1), null)
    return [*scores, repeat_loss_drop(model, tokens_BT)]


def null_values(P: int) -> dict[str, float]:
    """The scores of uniform attention on s + s of 2P tokens: 1/(q + 1) to each of those up to q."""
    share_T = 1 / np.arange(1, 2 * P + 1)
    second = share_T[P:].mean().item()  # close to ln 2 / P
    return {
        "previous_token": share_T[1:].mean().item(),
        "duplicate_token": second,
        "induction": second,
    }


def prefix_matching_scores(model: MiniGPT, tokens_BT: Tensor) -> list[Score]:
    """`prefix_matching` of every head: induction on any text (Olsson et al. 2022).

    Share of attention that goes to tokens k < q whose previous token is that of q, x[k-1] = x[q],
    mean over the queries q that have such a k. On s + s without equal tokens in s it is
    `induction`. The null value is of uniform attention. Sequences in which no token comes back do
    not count; none where there is no other.
    """
    scores_LBH, nulls_B = [], []
    for part_BT in _batches(tokens_BT):
        same_BTT = part_BT[:, :, None] == part_BT[:, None, :]
        match_BTT = F.pad(same_BTT[:, :, :-1], (1, 0)).tril(-1)
        count_BT = match_BTT.sum(dim=-1)
        queries_B = (count_BT > 0).sum(dim=-1)
        A_LBHTT = attention_patterns(model, part_BT)
        hit_LBH = torch.einsum("lbhqk,bqk->lbh", A_LBHTT, match_BTT.to(A_LBHTT.dtype)).double()
        seen_T = torch.arange(1, part_BT.shape[1] + 1, device=part_BT.device)
        kept = queries_B > 0
        scores_LBH.append((hit_LBH / queries_B[:, None])[:, kept])
        nulls_B.append(((count_BT / seen_T).sum(dim=-1) / queries_B)[kept])
    score_LBH, null_B = torch.cat(scores_LBH, dim=1), torch.cat(nulls_B)
    return _of_heads("prefix_matching", score_LBH, null_B.mean().item()) if len(null_B) else []


def repeat_loss_drop(model: MiniGPT, tokens_BT: Tensor) -> Score:
    """By how much the loss is lower on the second copy of s + s, in nats per token.

    Over the tokens of s but its first, which nothing announces: the same tokens in both copies. A
    model of random tokens from V that finds the repetition comes from ln V down to about 0.
    """
    loss_BT, P = next_token_losses(model, tokens_BT), tokens_BT.shape[1] // 2
    drop_B = loss_BT[:, : P - 1].mean(dim=1) - loss_BT[:, P:].mean(dim=1)
    return _mean("repeat_loss_drop", drop_B)


def in_context_score(model: MiniGPT, tokens_BT: Tensor) -> Score:
    """`icl`: the loss late in a text less the loss early in it, in nats; below 0, context helps.

    At tokens 500 and 50 (Olsson et al. 2022). In shorter texts T over their last tenth and over the
    one from T/20 on: single tokens of few texts would tell more of the tokens than of the context.
    """
    T = tokens_BT.shape[1]
    if ICL_POSITIONS[1] < T:
        first, last, width = *ICL_POSITIONS, 1
    else:
        width = max(1, T // 10)
        first, last = max(1, T // 20), T - width
    loss_BT = next_token_losses(model, tokens_BT)  # place t - 1 is the loss of token t
    early_BT, late_BT = (loss_BT[:, t - 1 : t - 1 + width] for t in (first, last))
    return _mean("icl", late_BT.mean(dim=1) - early_BT.mean(dim=1))


def next_token_losses(model: MiniGPT, tokens_BT: Tensor) -> Tensor:
    """loss_BT of every token but the first, in nats: place t is the loss of token t + 1."""
    with torch.no_grad():
        losses = [
            F.cross_entropy(model(part_BT[:, :-1]).mT, part_BT[:, 1:], reduction="none")
            for part_BT in _batches(tokens_BT)
        ]
    return torch.cat(losses).double()


def _of_heads(metric: str, value_LBH: Tensor, null: float) -> list[Score]:
    return [
        _mean(metric, value_B, null, layer, head)
        for layer, value_BH in enumerate(value_LBH)
        for head, value_B in enumerate(value_BH.T)
    ]


def _mean(
    metric: str,
    value_B: Tensor,
    null: float = 0.0,
    layer: int | None = None,
    head: int | None = None,
) -> Score:
    """The mean over sequences, taken as independent, with its interval."""
    mean, n, low, high = value_B.mean().item(), len(value_B), None, None
    if n > 1:
        half = stdtrit(n - 1, (1 + LEVEL) / 2).item() * value_B.std().item() / math.sqrt(n)
        low, high = mean - half, mean + half
    return Score(
        metric=metric, layer=layer, head=head, value=mean, low=low, high=high, null_value=null
    )


def _from(A_LBHTT: Tensor, back: int, first: int) -> Tensor:
    """Mean A[q, q-back] (_LBH) over the queries from `first` on."""
    share_LBHT = A_LBHTT.diagonal(offset=-back, dim1=-2, dim2=-1)
    return share_LBHT[..., first - back :].double().mean(dim=-1)


def _batches(tokens_BT: Tensor) -> Sequence[Tensor]:
    return tokens_BT.split(max(1, BATCH_TOKENS // tokens_BT.shape[1]))
