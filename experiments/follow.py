"""Events of trunks that other processes train, read from their folders."""

from collections.abc import Collection, Generator, Iterable
from datetime import datetime
from pathlib import Path

from experiments import store
from experiments.spec import Event, TrunkSpec


def follow(
    trunks: list[TrunkSpec], sweep: Path, polls: Iterable[Collection[str]]
) -> Generator[Event]:
    """Look into the folders once for each of `polls`, which gives the trunks still in hand.

    A trunk that is no longer in hand and not finished is yielded as failed, with what it says.
    """
    told = {
        run.run_id
        for trunk in trunks
        for run in trunk.runs
        if store.run_state(sweep, trunk, run).result is not None
    }
    over: set[str] = set()
    before: dict[str, tuple[datetime, int]] = {}
    for busy in polls:
        training = 0
        for trunk in trunks:
            if trunk.trunk_id in over:
                continue
            for run in trunk.runs:
                if run.run_id not in told:
                    result = store.run_state(sweep, trunk, run).result
                    if result is not None:
                        told.add(run.run_id)
                        yield Event(
                            kind="finished",
                            trunk_id=trunk.trunk_id,
                            run_id=run.run_id,
                            result=result,
                        )
            status = store.read_status(store.trunk_folder(sweep, trunk.trunk_id))
            if trunk.trunk_id in busy:
                training += status["state"] == "running"
                yield from _progress(trunk, status, before)
                continue
            over.add(trunk.trunk_id)
            if not all(run.run_id in told for run in trunk.runs):
                reason = status.get("reason") or "not trained yet: the same command trains it"
                yield Event(kind="failed", trunk_id=trunk.trunk_id, reason=reason)
        waiting = f"{training} trunks in training, {len(busy) - training} waiting"
        yield Event(kind="overview", reason=waiting)


def _progress(
    trunk: TrunkSpec, status: dict, before: dict[str, tuple[datetime, int]]
) -> Generator[Event]:
    """An event for a status that is news; `before` has the last one's time and step."""
    run_id, step = status.get("run_id"), status.get("step")
    if status["state"] != "running" or run_id not in {run.run_id for run in trunk.runs}:
        return
    assert isinstance(step, int)
    at = datetime.fromisoformat(status["time"])
    since, done = before.get(run_id, (at, step))
    if (at, step) == before.get(run_id):
        return
    before[run_id] = (at, step)
    seconds = (at - since).total_seconds()
    speed = (step - done) * trunk.train.batch_tokens / seconds if seconds > 0 else None
    yield Event(
        kind="progress",
        trunk_id=trunk.trunk_id,
        run_id=run_id,
        step=step,
        train_loss=status.get("train_loss"),
        tokens_per_second=speed,
    )
