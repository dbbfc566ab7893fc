"""What heads are worth to the model: the loss without them.

Shapes: B sequences, T tokens of a sequence, D width.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from torch import Tensor

from minigpt.heads import Score, attentions, repeat_loss_drop
from minigpt.layers import Linear
from minigpt.model import MiniGPT

THRESHOLD = 0.3  # of a score: a head with more of it is counted as a head of that kind

Head = tuple[int, int]  # layer, head


@dataclass(frozen=True, kw_only=True)
class AblationCheck:
    """The repeat-loss drop without heads of a kind; None where there are none.

    `control` are as many heads as `induction`, layer by layer; none where a layer has too few.
    """

    induction: tuple[Head, ...]
    previous_token: tuple[Head, ...]
    control: tuple[Head, ...]
    drop_ablated: Score | None
    drop_previous: Score | None
    drop_control: Score | None


@contextmanager
def mean_ablated(model: MiniGPT, heads: Collection[Head]) -> Iterator[None]:
    """Within, these heads write the same at every place: their mean over the batch's positions.

    The mean is of what they write into the output projection, in each forward pass anew.
    """
    K = model.config.d_head
    with ExitStack() as hooks:
        for layer, attention in enumerate(attentions(model)):
            channels = [head * K + k for at, head in heads if at == layer for k in range(K)]
            hook = attention.out.register_forward_pre_hook(partial(_average, channels))
            hooks.callback(hook.remove)
        yield


def ablation_check(
    model: MiniGPT, tokens_BT: Tensor, scores: Sequence[Score], seed: int = 0
) -> AblationCheck:
    """Whether induction heads carry the repeat-loss drop, and other heads of their layers do not.

    `scores` are those of `repeated_scores` on the same sequences s + s. Control heads are drawn
    from `seed` among the heads of the same layers that are of neither kind.
    """
    induction = _above(scores, "induction")
    previous = tuple(head for head in _above(scores, "previous_token") if head not in induction)
    control = _others(model, induction, previous, seed)

    def drop(name: str, heads: Sequence[Head]) -> Score | None:
        if not heads:
            return None
        with mean_ablated(model, heads):
            return replace(repeat_loss_drop(model, tokens_BT), metric=f"repeat_loss_drop_{name}")

    return AblationCheck(
        induction=induction,
        previous_token=previous,
        control=control,
        drop_ablated=drop("ablated", induction),
        drop_previous=drop("previous", previous),
        drop_control=drop("control", control),
    )


def _average(channels: list[int], out: Linear, inputs: tuple[Tensor]) -> tuple[Tensor]:
    y_BTD = inputs[0].clone()
    y_BTD[..., channels] = y_BTD[..., channels].mean(dim=(0, 1))
    return (y_BTD,)


def _above(scores: Sequence[Score], metric: str) -> tuple[Head, ...]:
    return tuple(
        (score.layer, score.head)
        for score in scores
        if score.metric == metric and score.layer is not None and score.head is not None
        if score.value is not None and score.value > THRESHOLD
    )


def _others(
    model: MiniGPT, induction: Collection[Head], previous: Collection[Head], seed: int
) -> tuple[Head, ...]:
    rng, found = np.random.Generator(np.random.PCG64(seed)), []
    for layer in range(model.config.n_layers):
        heads = [(layer, head) for head in range(model.config.n_heads)]
        wanted = sum(head in induction for head in heads)
        others = [head for head in heads if head not in induction and head not in previous]
        if wanted > len(others):
            return ()
        found += [others[i] for i in rng.choice(len(others), wanted, replace=False)]
    return tuple(sorted(found))
