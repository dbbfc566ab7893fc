"""Slots: a worker process each, that imports torch once and trains one pack after another.

A pack is one trunk, or some of one shape to be trained side by side.

The parent needs no torch. Signals that end a sweep or a job are for it: it hears them and closes
every worker's pipe, upon which the worker saves and ends. So does a worker whose parent is gone.
"""

import multiprocessing
import signal
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from experiments import store
from experiments.event import Event
from experiments.pack import Pack
from experiments.place import Place
from experiments.resources import LaunchSection
from experiments.spec import TrunkSpec

STOP_SECONDS = 300.0  # a worker saves its checkpoint after the step or evaluation it is in
PARENTS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)  # Slurm sends them to the whole job


def places(sweep: Path, cache: Path, launch: LaunchSection, gpus: int, cores: int) -> list[Place]:
    """One place per slot of a machine or job: every GPU once, or the CPU without any."""
    kinds = [f"cuda:{i}" for i in range(gpus)] or ["cpu"]
    count = launch.slot_count(gpus, cores)
    return [
        Place(
            sweep=sweep,
            cache=cache,
            device=kinds[i % len(kinds)],
            checkpoint_seconds=launch.checkpoint_seconds,
            members=launch.members_on(gpus),
            workers=-(-count // len(kinds)),
        )
        for i in range(count)
    ]


def run_slots(
    packs: list[Pack],
    places: list[Place],
    threads: int,
    stop_seconds: float = STOP_SECONDS,
) -> Generator[Event]:
    """Train `packs` in their order, one at a time in each of `places`; yields the events of all.

    Closing the generator stops every worker after it has saved a checkpoint; one that has not done
    so within `stop_seconds` is killed, and its last checkpoint has to do.
    """
    waiting = list(packs)
    workers: dict[Connection, tuple[SpawnProcess, Place]] = {}
    busy: dict[Connection, Pack] = {}

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
        for place in places[: len(packs)]:
            hire(place)
        while busy:
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                try:
                    event = connection.recv()
                except (EOFError, OSError):
                    # Killed from outside, by the kernel for want of memory or by a person.
                    process, place = workers.pop(connection)
                    pack = busy.pop(connection)
                    process.join()
                    for trunk in pack:
                        if store.missing(place.sweep, trunk):
                            yield _dead(place.sweep, trunk, process.exitcode or 0)
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
        deadline = time.monotonic() + stop_seconds
        for process, _ in workers.values():
            process.join(max(0.0, deadline - time.monotonic()))
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
    """A worker's life: take a pack, report its events, then None; until there is no pack."""
    from experiments.trunk import run_trunks
    from minigpt.process import settle

    settle(threads)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone
        while (pack := connection.recv()) is not None:
            with closing(run_trunks(pack, place)) as events:
                for event in events:
                    connection.send(event)
            connection.send(None)


def _dead(sweep: Path, trunk: TrunkSpec, code: int) -> Event:
    """Take down, and tell, that the worker of `trunk` is gone."""
    reason, name = _death(code), signal.Signals(-code).name if code < 0 else None
    with suppress(OSError):
        folder = store.trunk_folder(sweep, trunk.trunk_id)
        store.write_status(folder, "failed", reason=reason, signal=name)
    return Event(kind="failed", trunk_id=trunk.trunk_id, reason=reason)


def _death(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (often: out of memory)" if name == "SIGKILL" else ""
        return f"its worker was killed by {name}{hint}; run again with --retry-failed"
    return f"its worker ended with exit code {code}; run again with --retry-failed"
