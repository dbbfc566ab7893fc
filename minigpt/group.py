"""Several processes that train one model: the ranks of a torch process group.

Whatever communicates must be called by all ranks, in the same order. One process is `Group()`: its
methods give back what they are given and nothing is sent. What only `fsdp` needs is imported where
it is used: it takes half a second, which one process need not spend.
"""

import gc
import os
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from minigpt.config import Strategy
from minigpt.model import MiniGPT

# Of one collective: rank 0 may tokenise a corpus or write a large file meanwhile.
TIMEOUT = timedelta(minutes=30)
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # torchrun sets them


class OtherRankError(RuntimeError):
    """Raised on the ranks that did not fail: the one that did knows why."""


@dataclass(frozen=True)
class Group:
    """This process among those that train one model; `size` is the world size.

    `ddp`: every rank holds the whole model. `fsdp`: parameters, gradients and the optimizer's state
    are sharded, and gathered block by block.
    """

    rank: int = 0
    size: int = 1
    strategy: Strategy = "ddp"

    def rows(self, batch_size: int) -> slice:
        """This rank's sequences of a batch that the ranks divide."""
        share = batch_size // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def wrap(self, model: MiniGPT, device: str) -> nn.Module:
        """Move `model` to `device`; the module whose backward pass averages over the ranks.

        With `fsdp` it is `model` itself, its parameters sharded in place.
        """
        if self.size == 1:
            return model.to(device)
        gc.collect()  # a wrapped model holds itself: one of an earlier horizon may still be there
        if self.strategy == "ddp":
            wrapped = DistributedDataParallel(model.to(device), gradient_as_bucket_view=True)
            wrapped.broadcast_buffers = False  # they are constants; no argument does in every torch
            return wrapped
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        # The logits may be a view, which would be wrong only if somebody wrote into it.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
        mesh = init_device_mesh(device.partition(":")[0], (self.size,))
        for module in (*model.blocks, model):  # each moves as it is sharded: never all on `device`
            fully_shard(module, mesh=mesh)
        return model

    @contextmanager
    def accumulating(self, wrapped: nn.Module, last: bool) -> Generator[None]:
        """Around the passes of a step: gradients are averaged over the ranks after the last."""
        if self.size > 1 and self.strategy == "fsdp":
            wrapped.set_requires_gradient_sync(last)  # type: ignore[operator]
        if isinstance(wrapped, DistributedDataParallel) and not last:
            with wrapped.no_sync():
                yield
        else:
            yield

    def sum(self, value: Tensor) -> Tensor:
        """Sum of `value` over the ranks, the same bits on all; the host does not wait for it."""
        if self.size == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total

    def mean(self, value: Tensor) -> Tensor:
        """Mean of `value` over the ranks, like `sum`."""
        return value if self.size == 1 else self.sum(value / self.size)

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on some rank."""
        if self.size == 1:
            return flag
        # NCCL knows the tensors of a GPU only, and join() has made this rank's the current one.
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        return bool(self.sum(torch.tensor(int(flag), device=device)).item())

    def agree(self, value: int, name: str) -> None:
        """Raise RuntimeError on every rank unless all have the same `value`."""
        if self.any(value != (first := self.broadcast(value))):
            raise RuntimeError(
                f"the ranks differ in their {name}: {value} on rank {self.rank}, {first} on rank 0"
            )

    def broadcast(self, value: Any) -> Any:
        """The `value` of rank 0 (an object that pickles), on every rank."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    @contextmanager
    def together(self) -> Generator[None]:
        """Do what only some ranks do, without communication: if it fails on one, it fails on all.

        The others raise OtherRankError, where they would else wait for the failed one.
        """
        failed = True
        try:
            yield
            failed = False
        finally:
            anywhere = self.any(failed)
        if anywhere:
            raise OtherRankError(f"another rank failed (this is rank {self.rank} of {self.size})")

    def gather(self, values: Any) -> Any:
        """Nested dicts with every sharded tensor whole: on rank 0, on the CPU; elsewhere None."""
        if self.size == 1 or self.strategy == "ddp":
            return values
        from torch.distributed.tensor import DTensor

        if isinstance(values, dict):
            return {key: self.gather(value) for key, value in values.items()}
        if not isinstance(values, DTensor):
            return values
        whole = values.full_tensor()  # on every rank's device, one at a time
        return whole.cpu() if self.rank == 0 else None

    def scatter(self, values: Any, like: Any, device: str) -> Any:
        """Rank 0's nested dicts on every rank, tensors on `device`; other ranks pass None.

        A tensor is sharded like the one in its place in `like`, if that has its shape. A tensor of
        `like` in the place of a dict stands for all that the dict holds.
        """
        if self.size == 1:
            return values
        outline = self.broadcast(_outline(values) if self.rank == 0 else None)
        return self._scatter(values if self.rank == 0 else outline, like, device)

    def _scatter(self, values: Any, like: Any, device: str) -> Any:
        if isinstance(values, dict):
            return {
                key: self._scatter(value, like.get(key) if isinstance(like, dict) else like, device)
                for key, value in values.items()
            }
        if not isinstance(values, Tensor):
            return values
        whole = values.to(device) if self.rank == 0 else torch.empty_like(values, device=device)
        dist.broadcast(whole, src=0)
        if self.strategy == "ddp" or like is None or like.shape != whole.shape:
            return whole
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


SINGLE = Group()


def _outline(values: Any) -> Any:
    """Nested dicts with tensors that have a shape but no content."""
    if isinstance(values, dict):
        return {key: _outline(value) for key, value in values.items()}
    return values.to("meta") if isinstance(values, Tensor) else values


@contextmanager
def join(device: str, strategy: Strategy) -> Generator[tuple[Group, str]]:
    """The group that torchrun's variables describe, for as long as it lasts; this rank's device.

    A single process without them. Sums go over gloo on a CPU and NCCL on GPUs, where a rank's
    device is `cuda:LOCAL_RANK`. Raises ValueError where some variables are missing.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Group(), device
        return
    if missing := [name for name in LAUNCHER if name not in os.environ]:
        raise ValueError(
            f"WORLD_SIZE = {size} but {', '.join(missing)} not set: a process group needs all of "
            f"{', '.join(LAUNCHER)}; start with torchrun, or unset WORLD_SIZE"
        )
    cuda = device.partition(":")[0] == "cuda"
    if cuda:  # a launcher may show each process its own GPU alone
        only = torch.cuda.device_count() == 1
        device = f"cuda:{0 if only else os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        timeout=TIMEOUT,
        device_id=torch.device(device) if cuda else None,
    )
    yield Group(dist.get_rank(), size, strategy), device
    # Not after an error: it would wait for ranks that wait for this one. The process ends anyway.
    dist.destroy_process_group()
