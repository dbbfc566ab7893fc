"""Slots: packs in training at once, by worker processes that import torch once.

A pack is one trunk, or some of one shape to be trained side by side. On a CPU every slot is a
process; the slots of a GPU are lanes of one process, since processes would have it in turns only.

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
from experiments.pack import Pack, Place, packs
from experiments.resources import LaunchSection
from experiments.spec import Event, TrunkSpec

STOP_SECONDS = 300.0  # a worker saves its checkpoint after the step or evaluation it is in
PARENTS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)  # Slurm sends them to the whole job


def places(
    sweep: Path,
    launch: LaunchSection,
    gpus: int,
    cores: int,
    at_most: int | None = None,
) -> list[Place]:
    """The places of a machine's or a job's slots: every GPU once, or without any the CPU often.

    `at_most` limits the slots.
    """
    count = launch.slot_count(gpus, cores)
    count = min(count, at_most or count)
    kinds = [f"cuda:{i}" for i in range(min(gpus, count))] or ["cpu"] * count
    return [
        Place(
            sweep=sweep,
            device=device,
            checkpoint_seconds=launch.checkpoint_seconds,
            members=launch.members_on(gpus),
            lanes=len(range(i, count, len(kinds))),
        )
        for i, device in enumerate(kinds)
    ]


def work(trunks: list[TrunkSpec], places: list[Place]) -> list[Pack]:
    """Packs of `trunks`, one at least for every slot of `places` where there are enough."""
    return packs(trunks, places[0].members, sum(place.lanes for place in places))


def run_slots(
    work: list[Pack],
    places: list[Place],
    threads: int,
    stop_seconds: float = STOP_SECONDS,
) -> Generator[Event]:
    """Train the packs `work` in their order, one at a time in each lane of `places`.

    Yields the events of all. Closing the generator stops every worker after it has saved a
    checkpoint; one that has not within `stop_seconds` is killed, and its last one has to do.
    """
    waiting = list(work)
    workers: dict[Connection, tuple[SpawnProcess, Place]] = {}
    busy: dict[Connection, list[Pack]] = {}

    def hire(place: Place) -> None:
        connection, process = _start(place, threads)
        workers[connection] = (process, place)
        busy[connection] = []
        for _ in range(place.lanes):
            give(connection)

    def give(connection: Connection) -> None:
        with suppress(OSError):  # a worker that has died tells so when it is next listened to
            if waiting:
                busy[connection].append(waiting.pop(0))
                connection.send(busy[connection][-1])
            else:
                connection.send(None)

    try:
        for place in places:
            if waiting:
                hire(place)
        while busy:
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                try:
                    told = connection.recv()
                except (EOFError, OSError):
                    # Killed from outside, by the kernel for want of memory or by a person.
                    process, place = workers.pop(connection)
                    begun = busy.pop(connection)
                    process.join()
                    for trunk in (trunk for pack in begun for trunk in pack):
                        if store.missing(place.sweep, trunk):
                            yield _dead(place.sweep, trunk, process.exitcode or 0)
                    if waiting:
                        hire(place)
                    continue
                if isinstance(told, Event):
                    yield told
                    continue
                busy[connection].remove(told)
                give(connection)
                if not busy[connection]:
                    del busy[connection]
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
    """A worker's life: take packs, report their events, then each pack; until there is none."""
    from experiments.lanes import run_lanes
    from minigpt.process import settle

    settle(threads)
    told = run_lanes(iter(connection.recv, None), place)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError), closing(told):
        for each in told:  # until the parent is gone
            connection.send(each)


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
