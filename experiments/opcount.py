"""How many operations a step hands to the device: what a small model's speed depends on."""

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class _Counting(TorchDispatchMode):
    """Counts the ATen operations that are dispatched while it is entered, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        # A view returns an alias of its input that nothing was written into: it does no work.
        aliases = [r.alias_info for r in func._schema.returns]
        self.count += not any(alias is not None and not alias.is_write for alias in aliases)
        return func(*args, **(kwargs or {}))


def dispatched(step: Callable[[], object]) -> int:
    """Non-view ATen operations of one call of `step`, backward pass and optimiser included.

    The replay of a CUDA graph is none: its operations were dispatched when it was recorded.
    """
    with _Counting() as counting:
        step()
    return counting.count
