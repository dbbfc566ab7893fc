"""Trunks with their runs, end to end: train, write results, say how they ended.

Of several ranks the first writes, and every one says what fails.
"""

import time
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from experiments import capacity, pack, store
from experiments.leg import Hand, Leg, again, halves, stages
from experiments.pack import Place
from experiments.record import Record
from experiments.shards import unchanged
from experiments.spec import Event, TrunkSpec
from minigpt import data
from minigpt.event import Event as Told
from minigpt.event import Progress
from minigpt.group import SINGLE, Group, OtherRankError
from minigpt.loop import REPORT_STEPS, train_all
from minigpt.state import Job

LOCK_SECONDS = 30.0  # a killed sweep's workers notice within moments; then their trunks are free
# Above either a trunk is compiled on a GPU: that takes some ten seconds, and more than halves what
# a step takes (docs/benchmarks.md).
COMPILED_STEPS, COMPILED_FLOP = 10_000, 3e15
# RuntimeError is how torch reports out-of-memory and bad kernels.
FAILURES = (OSError, ValueError, RuntimeError, MemoryError)


def run_trunks(
    trunks: Sequence[TrunkSpec], place: Place, group: Group = SINGLE, heard: Sequence[int] = ()
) -> Generator[Event]:
    """Train the runs of `trunks`, alike in shape, that have no result yet, yielding events.

    See `in_turns`, which this is without its pauses.
    """
    with closing(in_turns(trunks, place, group, heard)) as events:
        for event in events:
            if event is not None:
                yield event


def in_turns(
    trunks: Sequence[TrunkSpec], place: Place, group: Group = SINGLE, heard: Sequence[int] = ()
) -> Generator[Event | None]:
    """Train `trunks`, yielding None as well, after every step: a moment to see to something else.

    Closing the generator saves checkpoints and records `stopped`. Several ranks cannot be closed
    alike: they stop, raising KeyboardInterrupt, once one of them has `heard` a signal; so does a
    single process. A failure is recorded and yielded, not raised; it is that of one trunk alone
    where the others can do without it.
    """
    with ExitStack() as stack:
        hands: list[Hand] = []
        try:
            for trunk in trunks:
                hand = yield from _take(trunk, place, group, stack)
                hands += [] if hand is None else [hand]
            yield from _train(hands, place, heard)
        except (GeneratorExit, KeyboardInterrupt):
            for hand in hands:
                if hand.missing and not hand.failed:
                    hand.record.close("stopped")
            raise


def _take(
    trunk: TrunkSpec, place: Place, group: Group, stack: ExitStack
) -> Generator[Event, None, Hand | None]:
    """Lock the trunk's folder and open its text; None, having told why, if that cannot be."""
    folder = store.trunk_folder(place.sweep, trunk.trunk_id)
    folder.mkdir(parents=True, exist_ok=True)
    record = Record(trunk, folder, group)
    free = stack.enter_context(_patient_lock(folder)) if group.rank == 0 else None
    if not group.broadcast(free):
        reason = f"another process is training in {folder}; stop it, then run again"
        yield Event(kind="failed", trunk_id=trunk.trunk_id, reason=reason)
        return None
    try:
        record.open()
        corpus = _corpus(trunk, place, group)
        record.opened(place.device, corpus)
        done = {run.run_id for run in trunk.runs if (folder / f"{run.run_id}.json").exists()}
        done = group.broadcast(done)
    except FAILURES as error:
        yield _failed(record, error)
        return None
    job = Job(
        model=trunk.model,
        data=trunk.data,
        train=trunk.train,
        corpus=corpus,
        folder=folder,
        device=place.device,
        checkpoint_seconds=place.checkpoint_seconds,
        group=group,
        compiled=place.device.startswith("cuda") and _long(trunk, done),
    )
    return Hand(job, record, [run for run in trunk.runs if run.run_id not in done])


def _train(hands: list[Hand], place: Place, heard: Sequence[int]) -> Generator[Event | None]:
    """Stage after stage; one that fails is tried again in halves, down to the trunk at fault.

    One model for which memory does not suffice is tried again in more passes a step.
    """
    members = pack.beside(hands[0].job.model, place.members) if hands else 1
    if members is None and any(len(hand.missing) for hand in hands):
        job = hands[0].job
        job = replace(job, compiled=False)
        members, told = capacity.members(job, place.lanes, sum(len(h.missing) for h in hands))
        for hand in hands:
            hand.record.log(told)
        yield Event(kind="overview", reason=told)
    waiting = stages(hands, members or 1)
    while waiting:
        legs = waiting.pop(0)
        ready = []
        for leg in legs:
            diverged = leg.hand.diverged
            if leg.hand.failed or leg.run not in leg.hand.missing:
                continue
            if diverged is not None and leg.run.start >= diverged.step:
                yield from leg.skip(diverged)
            else:
                ready.append(leg)
        if not ready:
            continue
        try:
            yield from _stage(ready, heard)
        except FAILURES as error:
            hands_ready = [leg.hand for leg in ready]
            if _uncompiled(hands_ready, error):
                waiting = [again(ready), *waiting]
                continue
            if len(ready) == 1 and not _in_more_passes(ready[0].hand, error):
                ready[0].hand.failed = True  # before it is told: whoever hears it may close this
                yield _failed(ready[0].hand.record, error)
                continue
            waiting = [*halves(ready), *waiting]
            if place.device.startswith("cuda"):
                torch.cuda.empty_cache()
    for hand in hands:
        if not hand.failed:
            hand.record.close("done")


def _stage(legs: list[Leg], heard: Sequence[int]) -> Generator[Event | None]:
    group, device = legs[0].hand.job.group, legs[0].hand.job.device
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    events = train_all([leg.member() for leg in legs])
    try:
        for index, event in events:
            yield from legs[index].hear(event)
            if _may_stop(event, group) and group.any(bool(heard)):
                raise KeyboardInterrupt
            if isinstance(event, Progress):
                yield None
    except (GeneratorExit, KeyboardInterrupt):
        try:
            events.close()  # saves
        except FAILURES as error:
            for hand in {id(leg.hand): leg.hand for leg in legs}.values():
                hand.record.failed(error)
                hand.failed = True
        raise
    finally:
        events.close()


def _in_more_passes(hand: Hand, error: Exception) -> bool:
    """Whether a step that does not fit into memory can be tried in smaller parts; if so it will."""
    job = hand.job
    passes, sequences = 2 * job.passes, job.train.batch_tokens // job.model.seq_len
    fits = isinstance(error, torch.OutOfMemoryError) and passes <= sequences
    if fits and job.group.size == 1:
        hand.job = replace(job, passes=passes)
        hand.record.log(f"out of memory: {passes} passes a step from now on")
        return True
    return False


def _long(trunk: TrunkSpec, done: Collection[str]) -> bool:
    return trunk.steps(done) > COMPILED_STEPS or trunk.cost(done) > COMPILED_FLOP


def _uncompiled(hands: list[Hand], error: Exception) -> bool:
    """Whether it was the compiler that failed, for want of one mostly; if so it is left alone."""
    compiler = type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))
    if not compiler or not hands[0].job.compiled:
        return False
    for hand in hands:
        hand.job = replace(hand.job, compiled=False)
        hand.record.log(f"could not be compiled: {str(error).strip().splitlines()[0]}")
    return True


def _failed(record: Record, error: Exception) -> Event:
    if isinstance(error, OtherRankError):  # that one records its reason itself
        return Event(kind="failed", trunk_id=record.trunk.trunk_id, reason=str(error))
    return Event(kind="failed", trunk_id=record.trunk.trunk_id, reason=record.failed(error))


@contextmanager
def _patient_lock(folder: Path) -> Iterator[bool]:
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        with store.locked(folder) as free:
            if free or time.monotonic() > deadline:
                yield free
                return
        time.sleep(0.5)


def _corpus(trunk: TrunkSpec, place: Place, group: Group) -> data.Corpus:
    """The trunk's token shards; rank 0 makes them if they are not there yet."""
    hashes = (trunk.data_sha256, trunk.val_sha256, *sorted(trunk.evals_sha256.items()))

    def prepare() -> data.Corpus:
        return unchanged(place.sweep, trunk.data, trunk.tokenizer_sha256, hashes)  # type: ignore[arg-type]

    with group.together():
        corpus = prepare() if group.rank == 0 else None
    with group.together():
        return corpus or prepare()


def _may_stop(event: Told, group: Group) -> bool:
    """Whether this is a moment to stop: ranks have to ask one another, so they do not always."""
    return isinstance(event, Progress) and (group.size == 1 or event.step % REPORT_STEPS == 0)
