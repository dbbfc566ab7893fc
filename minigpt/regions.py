"""A model compiled part by part: a block serves for all of them, the loss is another.

What several models of one shape have in front, their number, stays open: stacks of any size are
trained by what was compiled for the first.

Shapes: M models.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from minigpt.model import MiniGPT


def compiled(model: MiniGPT) -> MiniGPT:
    """A copy of `model` for `functional_call`, whose blocks and loss are compiled when first used.

    Weights of several models have to be `open_ended`.
    """
    from torch._dynamo import config as settings  # takes seconds, so not before it is needed

    settings.automatic_dynamic_shapes = False  # or another width would count as a width left open
    settings.force_parameter_static_shapes = False
    settings.force_nn_module_property_static_shapes = False
    settings.recompile_limit = max(settings.recompile_limit, 1000)  # shapes that a process may see
    twin = copy.deepcopy(model)
    for block in twin.blocks:
        block.forward = _region(block.forward)
    twin.loss = _region(twin.loss)  # type: ignore[method-assign]
    return twin


def open_ended(own: Mapping[str, Tensor]) -> None:
    """Say of weights (M, ...) that M may change."""
    _open(*own.values())


def _region(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`function` compiled; its first argument has M in front where it has four axes."""
    fast = torch.compile(function)

    def call(x: Tensor, *rest: Any) -> Tensor:
        if x.ndim == 4:
            _open(x, *(each for each in rest if isinstance(each, Tensor)))
        return fast(x, *rest)

    return call


def _open(*values: Tensor) -> None:
    from torch._dynamo import mark_dynamic

    for value in values:
        mark_dynamic(value, 0)
