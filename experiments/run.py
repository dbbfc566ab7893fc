"""One trunk with its runs, end to end: train, write results, say how it ended.

`python -m experiments.run TRUNK_DIR` trains what is missing of one trunk of an existing sweep.
"""

import argparse
import hashlib
import json
import signal
import sys
import time
from collections.abc import Generator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from pydantic import ValidationError

from experiments import provenance, store
from experiments.spec import RunSpec, TrunkSpec
from minigpt import data
from minigpt.schedule import Horizon
from minigpt.state import Job
from minigpt.train import Evaluation, Result, train

LOCK_SECONDS = 30.0  # a killed sweep's workers notice within moments; then their trunks are free
PROGRESS_SECONDS = 0.25
STATUS_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where trunks are trained: the sweep's folder, the token shards, the device."""

    sweep: Path
    cache: Path
    device: str
    checkpoint_seconds: float


@dataclass(frozen=True, kw_only=True)
class Event:
    """What a trunk's training says of itself: `kind` is progress, finished or failed."""

    kind: str
    trunk_id: str
    run_id: str | None = None
    step: int | None = None
    tokens_per_second: float | None = None
    train_loss: float | None = None
    result: dict | None = None
    reason: str | None = None


def run_trunk(trunk: TrunkSpec, place: Place) -> Generator[Event]:
    """Train the runs of `trunk` that have no result yet, shortest first, yielding events.

    Closing the generator saves a checkpoint and records `stopped`. A failure is recorded and
    yielded, not raised.
    """
    folder = store.trunk_folder(place.sweep, trunk.trunk_id)
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        with store.locked(folder) as free:
            if free:
                yield from _run_locked(trunk, place, folder)
                return
        if time.monotonic() > deadline:
            reason = f"another process is training in {folder}; stop it, then run again"
            yield Event(kind="failed", trunk_id=trunk.trunk_id, reason=reason)
            return
        time.sleep(0.5)


def until_signalled(events: Generator[Event]) -> Generator[Event]:
    """Pass on `events`; at SIGINT or SIGTERM close them between two steps, then KeyboardInterrupt.

    A signal inside a step would leave a state that no checkpoint may hold.
    """
    heard: list[int] = []
    before = {s: signal.signal(s, lambda n, _: heard.append(n)) for s in (2, signal.SIGTERM)}
    try:
        with closing(events):
            for event in events:
                yield event
                if heard:
                    break
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if heard:
        raise KeyboardInterrupt


def _run_locked(trunk: TrunkSpec, place: Place, folder: Path) -> Generator[Event]:
    closed = False
    try:
        store.write_status(folder, "running")
        corpus = data.prepare(trunk.data, place.cache, leave_out=place.cache.parent)
        found = (corpus.info.data_sha256, corpus.info.val_sha256)
        if found != (trunk.data_sha256, trunk.val_sha256):
            raise data.DataError(
                f"the text of source '{trunk.data.source}' has changed since this sweep was "
                "planned; start a new sweep with name=NEW"
            )
        _cut_partial_line(folder / "evals.jsonl")
        job = Job(
            model=trunk.model,
            data=trunk.data,
            train=trunk.train,
            corpus=corpus,
            folder=folder,
            device=place.device,
            checkpoint_seconds=place.checkpoint_seconds,
        )
        told = time.monotonic()
        with closing(_train_runs(trunk, job)) as events:
            try:
                for event in events:
                    if event.kind == "progress" and time.monotonic() - told > STATUS_SECONDS:
                        told = time.monotonic()
                        now = {"run_id": event.run_id, "step": event.step}
                        store.write_status(folder, "running", **now, train_loss=event.train_loss)
                    yield event
            except GeneratorExit:
                closed = True
                raise
        store.write_status(folder, "done")
    except GeneratorExit:
        store.write_status(folder, "stopped")
        raise
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        # RuntimeError is how torch reports out-of-memory and bad kernels.
        reason = f"{type(error).__name__}: {error}"
        _log(folder, reason)
        try:
            store.write_status(folder, "failed", reason=reason)
        except OSError as second:  # a full disk cannot even hold the reason: the caller hears it
            reason += f" (not recorded: {second})"
        if not closed:
            yield Event(kind="failed", trunk_id=trunk.trunk_id, reason=reason)


def _train_runs(trunk: TrunkSpec, job: Job) -> Generator[Event]:
    origin = _origin(trunk, job.device)
    tokens = len(job.corpus.train)
    available = data.windows(tokens, trunk.model.seq_len) * trunk.model.seq_len
    diverged: dict | None = None  # once the trunk has, every longer horizon has
    for run in trunk.runs:
        path = job.folder / f"{run.run_id}.json"
        if path.exists():
            continue
        started = _now()
        if diverged is None:
            result = yield from _train_run(trunk, run, job)
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
        store.write_atomic(path, json.dumps(result, indent=1))
        _log(job.folder, f"{run.run_id} D={run.tokens} {result['status']} {result.get('val_loss')}")
        yield Event(kind="finished", trunk_id=trunk.trunk_id, run_id=run.run_id, result=result)


def _train_run(trunk: TrunkSpec, run: RunSpec, job: Job) -> Generator[Event, None, dict]:
    """Train one run, passing on its progress; return what it measured."""
    cuda, batch = job.device.startswith("cuda"), trunk.train.batch_tokens
    if cuda:
        torch.cuda.reset_peak_memory_stats(job.device)
    began, first, told, ended = time.monotonic(), None, 0.0, None
    events = train(job, Horizon(start=run.start, stop=run.stop), job.folder / f"{run.run_id}.pt")
    with closing(events):
        for event in events:
            if isinstance(event, Result):
                ended = event
            elif isinstance(event, Evaluation):
                _append(job.folder / "evals.jsonl", _point(event, run))
            elif first is None:
                first = event.step
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
    assert ended is not None
    result = asdict(ended)
    steps = run.stop - result.pop("from_step")
    training = result["seconds"] - (result.pop("eval_seconds") or 0.0)
    return {
        **result,
        "tokens_per_second": steps * batch / training if ended.status == "ok" and steps else None,
        "peak_memory_bytes": torch.cuda.max_memory_allocated(job.device) if cuda else None,
    }


def _origin(trunk: TrunkSpec, device: str) -> dict:
    """Columns that say which code and machine made a result."""
    commit, dirty = provenance.git()
    cuda = device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name(device) if cuda else provenance.processor_name(),
        "torch": torch.__version__,
        "world_size": 1,
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


def main(argv: list[str] | None = None) -> int:
    """Train what is missing of one trunk; exit code 1 if a run failed or diverged."""
    parser = argparse.ArgumentParser(prog="python -m experiments.run", description=main.__doc__)
    parser.add_argument("trunk_dir", type=Path, help="a folder runs/<sweep>/trunks/<trunk_id>")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    args = parser.parse_args(argv)
    spec = args.trunk_dir / "spec.json"
    try:
        trunk = TrunkSpec.model_validate_json(spec.read_text())
    except (OSError, ValidationError) as error:
        told = str(error).splitlines()[0]
        print(f"error: {spec}: {told}; give runs/<sweep>/trunks/<trunk_id>", file=sys.stderr)
        return 2
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print(f"error: --device {args.device}: torch sees no GPU; use cpu", file=sys.stderr)
        return 2
    torch.set_num_threads(args.threads)
    sweep = args.trunk_dir.resolve().parent.parent
    place = Place(
        sweep=sweep, cache=sweep.parent / "data", device=args.device, checkpoint_seconds=60.0
    )
    code = 0
    try:
        for event in until_signalled(run_trunk(trunk, place)):
            if event.kind == "finished" and event.result is not None:
                print(f"{event.run_id} {event.result['status']} {event.result.get('val_loss')}")
                code = max(code, int(event.result["status"] != "ok"))
            elif event.kind == "failed":
                print(f"error: {event.reason}", file=sys.stderr)
                code = 1
    except KeyboardInterrupt:
        return 130
    return code


if __name__ == "__main__":
    raise SystemExit(main())
