"""Where trunks are trained on one machine: in this process, in slots, or by several ranks."""

import os
from collections.abc import Generator
from pathlib import Path

import torch

from experiments import pack, slots, torchrun
from experiments.config import ConfigError
from experiments.pack import Pack, Place
from experiments.resources import LaunchSection
from experiments.spec import Event, TrunkSpec
from experiments.trunk import run_trunks
from minigpt.process import hearing, settle


def run_all(
    trunks: list[TrunkSpec],
    sweep: Path,
    launch: LaunchSection,
    at_most: int | None = None,
) -> Generator[Event]:
    """Train `trunks` in their order on this machine, at most so many at once; yields their events.

    Closing the generator stops every worker after it has saved a checkpoint.
    """
    if launch.executor == "inline":
        place = slots.places(sweep, launch, _gpus(launch), cores(), 1)[0]
        yield from _run_inline(pack.packs(trunks, place.members, 1), place, launch)
    elif launch.ranks > 1:
        yield from torchrun.run_ranks(trunks, sweep, launch, _shares(launch)[:at_most])
    else:
        places = slots.places(sweep, launch, _gpus(launch), cores(), at_most)
        work = slots.work(trunks, places)
        yield from slots.run_slots(work, places, launch.threads_per_slot)


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpus(launch: LaunchSection) -> int:
    """GPUs to use. Raises ConfigError if CUDA is asked for and absent."""
    if launch.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "launch.device = 'cuda': torch sees no GPU; use launch.device=cpu, or install a CUDA "
            "build of torch"
        )
    return torch.cuda.device_count() if launch.device != "cpu" else 0


def _shares(launch: LaunchSection) -> list[tuple[int, ...]]:
    """The GPUs of each model that is trained by several ranks at once; none on the CPU.

    Raises ConfigError where a model needs more GPUs than there are.
    """
    gpus, ranks = _gpus(launch), launch.ranks
    if gpus and gpus < ranks:
        raise ConfigError(
            f"launch.ranks = {ranks}: one GPU for each, and this machine has {gpus}; lower it, or "
            "use launch.device=cpu"
        )
    at_once = launch.slot_count(gpus // ranks, cores() // ranks)
    if gpus:
        at_once = min(at_once, gpus // ranks)
    return [tuple(range(i * ranks, (i + 1) * ranks)) if gpus else () for i in range(at_once)]


def _run_inline(work: list[Pack], place: Place, launch: LaunchSection) -> Generator[Event]:
    settle(launch.threads_per_slot)
    with hearing() as heard:
        for trunks in work:
            yield from run_trunks(trunks, place, heard=heard)
