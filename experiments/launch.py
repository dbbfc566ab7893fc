"""Where trunks are trained: in this process, or in local slots, one worker process each.

A worker imports torch once and trains one trunk after another. It ignores ctrl-C: the parent hears
it and closes every worker's pipe, upon which the worker saves and ends. So does a worker whose
parent is gone.
"""

import multiprocessing
import os
import signal
from collections.abc import Generator
from contextlib import closing, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

import torch

from experiments import store
from experiments.config import ConfigError, LaunchSection
from experiments.run import Event, Place, run_trunk, until_signalled
from experiments.spec import TrunkSpec

STOP_SECONDS = 300.0  # a worker saves its checkpoint after the step or evaluation it is in


def devices(launch: LaunchSection) -> list[str]:
    """One device per slot: every GPU once, or the CPU once per group of cores.

    Raises ConfigError if CUDA is asked for and absent.
    """
    if launch.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "launch.device = 'cuda': torch sees no GPU; use launch.device=cpu, or install a CUDA "
            "build of torch"
        )
    if launch.device != "cpu" and torch.cuda.is_available():
        kinds = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        auto = len(kinds)
    else:
        kinds = ["cpu"]
        auto = max(1, _cores() // launch.threads_per_slot)
    slots = auto if launch.slots == "auto" else launch.slots
    return [kinds[i % len(kinds)] for i in range(slots)]


def run_all(
    trunks: list[TrunkSpec], sweep: Path, cache: Path, launch: LaunchSection
) -> Generator[Event]:
    """Train `trunks` in their order on the executor of `launch`, yielding the events of all.

    Closing the generator stops every worker after it has saved a checkpoint.
    """
    places = [
        Place(sweep=sweep, cache=cache, device=device, checkpoint_seconds=launch.checkpoint_seconds)
        for device in devices(launch)
    ]
    if launch.executor == "inline":
        torch.set_num_threads(launch.threads_per_slot)
        yield from until_signalled(_run_inline(trunks, places[0]))
    else:
        yield from _run_local(trunks, places, launch.threads_per_slot)


def _run_inline(trunks: list[TrunkSpec], place: Place) -> Generator[Event]:
    for trunk in trunks:
        yield from run_trunk(trunk, place)


def _run_local(trunks: list[TrunkSpec], places: list[Place], threads: int) -> Generator[Event]:
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
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: ctrl-C is for the parent
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, before)
    theirs.close()
    return ours, process


def _work(connection: Connection, place: Place, threads: int) -> None:
    """A worker's life: take a trunk, report its events, then None; until there is no trunk."""
    torch.set_num_threads(threads)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone
        while (trunk := connection.recv()) is not None:
            with closing(run_trunk(trunk, place)) as events:
                for event in events:
                    connection.send(event)
            connection.send(None)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = " (often: out of memory)" if name == "SIGKILL" else ""
        return f"its worker was killed by {name}{hint}; run again with --retry-failed"
    return f"its worker ended with exit code {code}; run again with --retry-failed"
