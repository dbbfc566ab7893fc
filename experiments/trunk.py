"""One trunk with its runs, end to end: train, write results, say how it ended.

Of several ranks the first writes, and every one says what fails.
"""

import hashlib
import json
import signal
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch

from experiments import provenance, store
from experiments.event import Event
from experiments.place import Place
from experiments.spec import RunSpec, TrunkSpec
from minigpt import data
from minigpt.group import SINGLE, Group, OtherRankError
from minigpt.schedule import Horizon
from minigpt.state import Job
from minigpt.train import REPORT_STEPS, Evaluation, Progress, Result, train

LOCK_SECONDS = 30.0  # a killed sweep's workers notice within moments; then their trunks are free
PROGRESS_SECONDS = 0.25
STATUS_SECONDS = 5.0


def run_trunk(
    trunk: TrunkSpec, place: Place, group: Group = SINGLE, heard: Sequence[int] = ()
) -> Generator[Event]:
    """Train the runs of `trunk` that have no result yet, shortest first, yielding events.

    Closing the generator saves a checkpoint and records `stopped`. Several ranks cannot be closed
    alike: they stop, raising KeyboardInterrupt, once one of them has `heard` a signal; so does a
    single process. A failure is recorded and yielded, not raised.
    """
    folder = store.trunk_folder(place.sweep, trunk.trunk_id)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        free = stack.enter_context(_patient_lock(folder)) if group.rank == 0 else None
        if group.broadcast(free):
            yield from _run_locked(trunk, place, folder, group, heard)
        else:
            reason = f"another process is training in {folder}; stop it, then run again"
            yield Event(kind="failed", trunk_id=trunk.trunk_id, reason=reason)


@contextmanager
def hearing() -> Iterator[list[int]]:
    """SIGINT and SIGTERM go into the list that this yields, to be acted upon between two steps.

    A signal inside a step would leave a state that no checkpoint may hold.
    """
    heard: list[int] = []
    before = {s: signal.signal(s, lambda n, _: heard.append(n)) for s in (2, signal.SIGTERM)}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _patient_lock(folder: Path) -> Iterator[bool]:
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        with store.locked(folder) as free:
            if free or time.monotonic() > deadline:
                yield free
                return
        time.sleep(0.5)


def _run_locked(
    trunk: TrunkSpec, place: Place, folder: Path, group: Group, heard: Sequence[int]
) -> Generator[Event]:
    closed, first, began = False, group.rank == 0, time.monotonic()
    try:
        if first:
            store.write_status(folder, "running")
            _cut_partial_line(folder / "evals.jsonl")
        job = Job(
            model=trunk.model,
            data=trunk.data,
            train=trunk.train,
            corpus=_corpus(trunk, place, group),
            folder=folder,
            device=place.device,
            checkpoint_seconds=place.checkpoint_seconds,
            group=group,
        )
        told = began
        with closing(_train_runs(trunk, job, heard)) as events:
            try:
                for event in events:
                    now = time.monotonic()
                    if first and event.kind == "progress" and now - told > STATUS_SECONDS:
                        told = now
                        with suppress(OSError):  # a courtesy, in the midst of a step of the ranks
                            store.write_status(
                                folder,
                                "running",
                                run_id=event.run_id,
                                step=event.step,
                                train_loss=event.train_loss,
                                seconds=now - began,
                            )
                    yield event
            except GeneratorExit:
                closed = True
                raise
        if first:
            store.write_status(folder, "done")
    except (GeneratorExit, KeyboardInterrupt):
        if first:
            store.write_status(folder, "stopped")
        raise
    except OtherRankError as error:  # which records its reason itself
        yield Event(kind="failed", trunk_id=trunk.trunk_id, reason=str(error))
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        # RuntimeError is how torch reports out-of-memory and bad kernels.
        reason = f"{type(error).__name__}: {error}"
        if group.size > 1:
            reason = f"rank {group.rank} of {group.size}: {reason}"
        _log(folder, reason)
        try:
            # Of several ranks the first to fail knows why; the others only miss it.
            if group.size == 1 or store.read_status(folder)["state"] != "failed":
                store.write_status(folder, "failed", reason=reason)
        except OSError as second:  # a full disk cannot even hold the reason: the caller hears it
            reason += f" (not recorded: {second})"
        if not closed:
            yield Event(kind="failed", trunk_id=trunk.trunk_id, reason=reason)


def _corpus(trunk: TrunkSpec, place: Place, group: Group) -> data.Corpus:
    """The trunk's token shards; rank 0 makes them if they are not there yet."""

    def prepare() -> data.Corpus:
        return data.prepare(trunk.data, place.cache, leave_out=place.cache.parent)

    with group.together():
        corpus = prepare() if group.rank == 0 else None
    with group.together():
        corpus = corpus or prepare()
        if (corpus.info.data_sha256, corpus.info.val_sha256) != (
            trunk.data_sha256,
            trunk.val_sha256,
        ):
            raise data.DataError(
                f"the text of source '{trunk.data.source}' has changed since this sweep was "
                "planned; start a new sweep with name=NEW"
            )
    return corpus


def _train_runs(trunk: TrunkSpec, job: Job, heard: Sequence[int]) -> Generator[Event]:
    origin = _origin(trunk, job)
    tokens = len(job.corpus.train)
    available = data.windows(tokens, trunk.model.seq_len) * trunk.model.seq_len
    diverged: dict | None = None  # once the trunk has, every longer horizon has
    paths = {run.run_id: job.folder / f"{run.run_id}.json" for run in trunk.runs}
    done = job.group.broadcast({run_id for run_id, path in paths.items() if path.exists()})
    for run in trunk.runs:
        if run.run_id in done:
            continue
        started = _now()
        if diverged is None:
            result = yield from _train_run(trunk, run, job, heard)
        else:
            result = dict(diverged)
        if result.pop("on_trunk", False):
            diverged = {"status": result["status"], "reason": result["reason"]}
        result |= {
            "run_id": run.run_id,
            **origin,
            "unique_tokens": min(run.tokens, available),
            "epochs": run.tokens / available,
            "started": started,
            "finished": _now(),
        }
        with job.group.together():
            if job.group.rank == 0:
                store.write_atomic(paths[run.run_id], json.dumps(result, indent=1))
                told = f"{result['status']} {result.get('val_loss')}"
                _log(job.folder, f"{run.run_id} D={run.tokens} {told}")
        yield Event(kind="finished", trunk_id=trunk.trunk_id, run_id=run.run_id, result=result)


def _train_run(
    trunk: TrunkSpec, run: RunSpec, job: Job, heard: Sequence[int]
) -> Generator[Event, None, dict]:
    """Train one run, passing on its progress; return what it measured."""
    cuda, batch, group = job.device.startswith("cuda"), trunk.train.batch_tokens, job.group
    if cuda:
        torch.cuda.reset_peak_memory_stats(job.device)
    began, first, told, ended = time.monotonic(), None, 0.0, None
    events = train(job, Horizon(start=run.start, stop=run.stop), job.folder / f"{run.run_id}.pt")
    with closing(events):
        for event in events:
            if isinstance(event, Result):
                ended = event
            elif isinstance(event, Evaluation):
                with group.together():
                    if group.rank == 0:
                        _append(job.folder / "evals.jsonl", _point(event, run))
            elif first is None:
                first = event.step
                if group.rank == 0:
                    _log(job.folder, f"{run.run_id} D={run.tokens} from step {first} of {run.stop}")
            elif (now := time.monotonic()) - told > PROGRESS_SECONDS:
                told = now
                yield Event(
                    kind="progress",
                    trunk_id=trunk.trunk_id,
                    run_id=run.run_id,
                    step=event.step,
                    train_loss=event.train_loss,
                    tokens_per_second=(event.step - first) * batch / (now - began),
                )
            if _may_stop(event, group) and group.any(bool(heard)):
                raise KeyboardInterrupt
    assert ended is not None
    result = asdict(ended)
    steps = run.stop - result.pop("from_step")
    training = result["seconds"] - (result["eval_seconds"] or 0.0)
    return {
        **result,
        "tokens_per_second": steps * batch / training if ended.status == "ok" and steps else None,
        "peak_memory_bytes": torch.cuda.max_memory_allocated(job.device) if cuda else None,
    }


def _may_stop(event: Progress | Evaluation | Result, group: Group) -> bool:
    """Whether this is a moment to stop: ranks have to ask one another, so they do not always."""
    return isinstance(event, Progress) and (group.size == 1 or event.step % REPORT_STEPS == 0)


def _origin(trunk: TrunkSpec, job: Job) -> dict:
    """Columns that say which code and machine made a result."""
    commit, dirty = provenance.git()
    cuda = job.device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name(job.device) if cuda else provenance.processor_name(),
        "torch": torch.__version__,
        "world_size": job.group.size,
        "spec_hash": hashlib.sha256(trunk.model_dump_json().encode()).hexdigest(),
        "git_commit": commit,
        "git_dirty": dirty,
    }


def _point(event: Evaluation, run: RunSpec) -> dict:
    values = asdict(event)
    values["run_id"] = run.run_id if values.pop("branch") else None
    return values


def _append(path: Path, values: dict) -> None:
    with path.open("a") as file:
        file.write(json.dumps(values) + "\n")


def _cut_partial_line(path: Path) -> None:
    """Drop a killed process's half line, so that the next line starts at a line's start."""
    if path.exists():
        text = path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:
            path.write_bytes(whole)


def _log(folder: Path, line: str) -> None:
    # The log is a courtesy: what it says is also in status.json or a result.
    with suppress(OSError), (folder / "log.txt").open("a") as file:
        file.write(f"{_now()} {line}\n")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
