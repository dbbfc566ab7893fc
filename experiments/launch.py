"""Where trunks are trained: in this process, or in local slots, one worker process each.

A worker imports torch once and trains one trunk after another. It ignores ctrl-C: the parent hears
it and tells every worker to save and stop. A worker whose parent is gone stops by itself, because
its pipe breaks.
"""

import multiprocessing
import os
import signal
from collections.abc import Generator
from contextlib import closing
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

import torch

from experiments.config import ConfigError, LaunchSection
from experiments.run import Event, run_trunk
from experiments.spec import TrunkSpec

STOP_SECONDS = 60.0  # a worker saves its checkpoint within a step or an evaluation


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
        auto = max(1, len(os.sched_getaffinity(0)) // launch.threads_per_slot)
    slots = auto if launch.slots == "auto" else launch.slots
    return [kinds[i % len(kinds)] for i in range(slots)]


def run_all(
    trunks: list[TrunkSpec], sweep: Path, cache: Path, launch: LaunchSection
) -> Generator[Event]:
    """Train `trunks` in their order on the executor of `launch`, yielding the events of all.

    Closing the generator stops every worker after it has saved a checkpoint.
    """
    slots = devices(launch)
    if launch.executor == "inline":
        torch.set_num_threads(launch.threads_per_slot)
        for trunk in trunks:
            yield from run_trunk(
                trunk,
                sweep,
                cache=cache,
                device=slots[0],
                checkpoint_seconds=launch.checkpoint_seconds,
            )
        return
    yield from _run_local(trunks, sweep, cache, launch, slots)


def _run_local(
    trunks: list[TrunkSpec], sweep: Path, cache: Path, launch: LaunchSection, slots: list[str]
) -> Generator[Event]:
    waiting = list(trunks)
    workers: dict[Connection, tuple[SpawnProcess, str]] = {}
    busy: dict[Connection, TrunkSpec] = {}

    def give(connection: Connection) -> None:
        if waiting:
            busy[connection] = waiting.pop(0)
            connection.send(busy[connection])
        else:
            connection.send(None)

    try:
        for device in slots[: len(trunks)]:
            connection, process = _start(sweep, cache, launch, device)
            workers[connection] = (process, device)
            give(connection)
        while busy:
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                try:
                    event = connection.recv()
                except EOFError:
                    # Killed from outside, by the kernel for want of memory or by a person: the rest
                    # goes on.
                    process, device = workers.pop(connection)
                    trunk = busy.pop(connection)
                    process.join()
                    yield Event(
                        kind="failed", trunk_id=trunk.trunk_id, reason=_death(process.exitcode)
                    )
                    if waiting:
                        connection, process = _start(sweep, cache, launch, device)
                        workers[connection] = (process, device)
                        give(connection)
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


def _start(
    sweep: Path, cache: Path, launch: LaunchSection, device: str
) -> tuple[Connection, SpawnProcess]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_work, args=(theirs, sweep, cache, launch, device), daemon=True
    )
    process.start()
    theirs.close()
    return ours, process


def _work(
    connection: Connection, sweep: Path, cache: Path, launch: LaunchSection, device: str
) -> None:
    """A worker's life: take a trunk, report its events, then None; until there is no trunk."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(launch.threads_per_slot)
    try:
        while (trunk := connection.recv()) is not None:
            events = run_trunk(
                trunk,
                sweep,
                cache=cache,
                device=device,
                checkpoint_seconds=launch.checkpoint_seconds,
            )
            with closing(events):
                for event in events:
                    connection.send(event)
            connection.send(None)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = " (often: out of memory)" if name == "SIGKILL" else ""
        return f"its worker was killed by {name}{hint}; run again with --retry-failed"
    return f"its worker ended with exit code {code}; run again with --retry-failed"
