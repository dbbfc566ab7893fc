"""Where trunks are trained on one machine: in this process, or in slots, a process each.

A worker imports torch once and trains one trunk after another. Signals that end a sweep or a job
are for the parent: it hears them and closes every worker's pipe, upon which the worker saves and
ends. So does a worker whose parent is gone.
"""

import multiprocessing
import os
import signal
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

import torch

from experiments import store, torchrun
from experiments.config import ConfigError
from experiments.event import Event
from experiments.resources import LaunchSection
from experiments.run import hearing
from experiments.spec import TrunkSpec
from experiments.trunk import Place, run_trunk

STOP_SECONDS = 300.0  # a worker saves its checkpoint after the step or evaluation it is in
PARENTS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)  # Slurm sends them to the whole job


def devices(launch: LaunchSection, cores: int) -> list[str]:
    """One device per slot: every GPU once, or the CPU once per group of `cores`.

    Raises ConfigError if CUDA is asked for and absent.
    """
    gpus = _gpus(launch)
    kinds = [f"cuda:{i}" for i in range(gpus)] or ["cpu"]
    auto = gpus or max(1, cores // launch.threads_per_slot)
    slots = auto if launch.slots == "auto" else launch.slots
    return [kinds[i % len(kinds)] for i in range(slots)]


def run_all(
    trunks: list[TrunkSpec],
    sweep: Path,
    cache: Path,
    launch: LaunchSection,
    at_most: int | None = None,
) -> Generator[Event]:
    """Train `trunks` in their order on this machine, at most so many at once; yields their events.

    Closing the generator stops every worker after it has saved a checkpoint.
    """
    if launch.executor == "inline":
        yield from _run_inline(trunks, _places(sweep, cache, launch, cores())[0], launch)
    elif launch.ranks > 1:
        yield from torchrun.run_ranks(trunks, sweep, launch, _shares(launch)[:at_most])
    else:
        yield from run_local(trunks, sweep, cache, launch, cores(), at_most)


def run_local(
    trunks: list[TrunkSpec],
    sweep: Path,
    cache: Path,
    launch: LaunchSection,
    cores: int,
    at_most: int | None = None,
) -> Generator[Event]:
    """Train `trunks` in slots of one process each, on this machine's GPUs or `cores` CPU cores."""
    places = _places(sweep, cache, launch, cores)[:at_most]
    yield from _run_slots(trunks, places, launch.threads_per_slot)


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpus(launch: LaunchSection) -> int:
    if launch.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "launch.device = 'cuda': torch sees no GPU; use launch.device=cpu, or install a CUDA "
            "build of torch"
        )
    return torch.cuda.device_count() if launch.device != "cpu" else 0


def _places(sweep: Path, cache: Path, launch: LaunchSection, cores: int) -> list[Place]:
    return [
        Place(sweep=sweep, cache=cache, device=device, checkpoint_seconds=launch.checkpoint_seconds)
        for device in devices(launch, cores)
    ]


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
    auto = gpus // ranks or max(1, cores() // (ranks * launch.threads_per_slot))
    slots = auto if launch.slots == "auto" else min(launch.slots, gpus // ranks or launch.slots)
    return [tuple(range(i * ranks, (i + 1) * ranks)) if gpus else () for i in range(slots)]


def _run_inline(trunks: list[TrunkSpec], place: Place, launch: LaunchSection) -> Generator[Event]:
    torch.set_num_threads(launch.threads_per_slot)
    with hearing() as heard:
        for trunk in trunks:
            yield from run_trunk(trunk, place, heard=heard)


def _run_slots(trunks: list[TrunkSpec], places: list[Place], threads: int) -> Generator[Event]:
    waiting = list(trunks)
    workers: dict[Connection, tuple[SpawnProcess, Place]] = {}
    busy: dict[Connection, TrunkSpec] = {}

    def hire(place: Place) -> None:
        connection, process = _start(place, threads)
        workers[connection] = (process, place)
        give(connection)

    def give(connection: Connection) -> None:
        with suppress(OSError):  # a worker that has died tells so when it is next listened to
            if waiting:
                busy[connection] = waiting.pop(0)
                connection.send(busy[connection])
            else:
                connection.send(None)

    try:
        for place in places[: len(trunks)]:
            hire(place)
        while busy:
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                try:
                    event = connection.recv()
                except (EOFError, OSError):
                    # Killed from outside, by the kernel for want of memory or by a person.
                    process, place = workers.pop(connection)
                    trunk = busy.pop(connection)
                    process.join()
                    reason = _death(process.exitcode)
                    folder = store.trunk_folder(place.sweep, trunk.trunk_id)
                    with suppress(OSError):
                        store.write_status(folder, "failed", reason=reason)
                    yield Event(kind="failed", trunk_id=trunk.trunk_id, reason=reason)
                    if waiting:
                        hire(place)
                    continue
                if event is None:
                    del busy[connection]
                    give(connection)
                else:
                    yield event
    finally:
        for connection in workers:
            connection.close()
        for process, _ in workers.values():
            process.join(STOP_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()


def _start(place: Place, threads: int) -> tuple[Connection, SpawnProcess]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, place, threads), daemon=True)
    with _parents_signals():
        process.start()
    theirs.close()
    return ours, process


@contextmanager
def _parents_signals() -> Iterator[None]:
    """A process that is started in here never gets the signals that are the parent's to handle.

    Blocked signals stay blocked in a child, and come to the parent once this ends: none is lost.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, PARENTS)
    try:
        resource_tracker.ensure_running()  # it unblocks some of them as it starts
        signal.pthread_sigmask(signal.SIG_BLOCK, PARENTS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(connection: Connection, place: Place, threads: int) -> None:
    """A worker's life: take a trunk, report its events, then None; until there is no trunk."""
    torch.set_num_threads(threads)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone
        while (trunk := connection.recv()) is not None:
            with closing(run_trunk(trunk, place)) as events:
                for event in events:
                    connection.send(event)
            connection.send(None)


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = " (often: out of memory)" if name == "SIGKILL" else ""
        return f"its worker was killed by {name}{hint}; run again with --retry-failed"
    return f"its worker ended with exit code {code}; run again with --retry-failed"
