"""One trunk with its runs, end to end: train, write results, say how it ended.

`python -m experiments.run TRUNK_DIR` trains what is missing of one trunk of an existing sweep.
"""

import argparse
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from experiments import provenance, store
from experiments.spec import RunSpec, TrunkSpec
from minigpt import data
from minigpt.schedule import Horizon
from minigpt.train import Evaluation, Job, Result, train

LOCK_SECONDS = 30.0  # a killed sweep's workers notice within moments; then their trunks are free
PROGRESS_SECONDS = 0.25
STATUS_SECONDS = 5.0


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


def run_trunk(
    trunk: TrunkSpec, sweep: Path, *, cache: Path, device: str, checkpoint_seconds: float
) -> Generator[Event]:
    """Train the runs of `trunk` that have no result yet, shortest first, yielding events.

    Closing the generator saves a checkpoint and records `stopped`. A failure is recorded and
    yielded, not raised.
    """
    folder = store.trunk_folder(sweep, trunk.trunk_id)
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        with store.locked(folder) as free:
            if free:
                yield from _run_locked(trunk, folder, cache, device, checkpoint_seconds)
                return
        if time.monotonic() > deadline:
            reason = f"another process is training in {folder}; stop it, then run again"
            yield Event(kind="failed", trunk_id=trunk.trunk_id, reason=reason)
            return
        time.sleep(0.5)


def _run_locked(
    trunk: TrunkSpec, folder: Path, cache: Path, device: str, checkpoint_seconds: float
) -> Generator[Event]:
    def status(state: str, **more: object) -> None:
        values = {
            "state": state,
            "pid": os.getpid(),
            "host": platform.node(),
            "time": _now(),
            **more,
        }
        store.write_atomic(folder / "status.json", json.dumps(values))

    try:
        status("running")
        corpus = data.prepare(trunk.data, cache)
        found = (corpus.info.data_sha256, corpus.info.val_sha256)
        if found != (trunk.data_sha256, trunk.val_sha256):
            raise data.DataError(
                f"the text of source '{trunk.data.source}' has changed since this sweep was "
                "planned; "
                "start a new sweep with name=NEW"
            )
        _cut_partial_line(folder / "evals.jsonl")
        told = time.monotonic()
        for event in _train_runs(trunk, folder, corpus, device, checkpoint_seconds):
            if event.kind == "progress" and time.monotonic() - told > STATUS_SECONDS:
                told = time.monotonic()
                status("running", run_id=event.run_id, step=event.step, train_loss=event.train_loss)
            yield event
        status("done")
    except GeneratorExit:
        status("stopped")
        raise
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        # RuntimeError is how torch reports out-of-memory and bad kernels.
        reason = f"{type(error).__name__}: {error}"
        _log(folder, reason)
        try:
            status("failed", reason=reason)
        except (
            OSError
        ) as second:  # a full disk cannot even hold the reason: the caller still hears it
            reason += f" (not recorded: {second})"
        yield Event(kind="failed", trunk_id=trunk.trunk_id, reason=reason)


def _train_runs(
    trunk: TrunkSpec, folder: Path, corpus: data.Corpus, device: str, checkpoint_seconds: float
) -> Generator[Event]:
    job = Job(
        model=trunk.model,
        data=trunk.data,
        train=trunk.train,
        corpus=corpus,
        folder=folder,
        device=device,
        checkpoint_seconds=checkpoint_seconds,
    )
    origin = _origin(trunk, device)
    available = data.windows(corpus.info.train_tokens, trunk.model.seq_len) * trunk.model.seq_len
    diverged: dict | None = None  # once the trunk has, every longer horizon has
    for run in trunk.runs:
        if (folder / f"{run.run_id}.json").exists():
            continue
        started = _now()
        result = diverged or (yield from _train_run(trunk, run, job))
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
        store.write_atomic(folder / f"{run.run_id}.json", json.dumps(result, indent=1))
        _log(folder, f"{run.run_id} D={run.tokens} {result['status']} {result.get('val_loss')}")
        yield Event(kind="finished", trunk_id=trunk.trunk_id, run_id=run.run_id, result=result)


def _train_run(trunk: TrunkSpec, run: RunSpec, job: Job) -> Generator[Event, None, dict]:
    """Train one run, passing on its progress; return what it measured."""
    wall, cpu, told = time.monotonic(), time.process_time(), 0.0
    first, ended = 0, None
    events = train(job, Horizon(start=run.start, stop=run.stop), job.folder / f"{run.run_id}.pt")
    with closing(events):
        for event in events:
            if isinstance(event, Result):
                ended = event
            elif isinstance(event, Evaluation):
                _append(job.folder / "evals.jsonl", _point(event, run))
            elif event.train_loss is None:
                first = event.step
            elif (now := time.monotonic()) - told > PROGRESS_SECONDS:
                told = now
                yield Event(
                    kind="progress",
                    trunk_id=trunk.trunk_id,
                    run_id=run.run_id,
                    step=event.step,
                    train_loss=event.train_loss,
                    tokens_per_second=(event.step - first)
                    * trunk.train.batch_tokens
                    / (now - wall),
                )
    assert ended is not None
    seconds = time.monotonic() - wall
    training_seconds = seconds - (ended.eval_seconds or 0.0)
    cuda = job.device.startswith("cuda")
    return {
        **{key: value for key, value in asdict(ended).items() if key != "eval_seconds"},
        "seconds": seconds,
        "cpu_seconds": time.process_time() - cpu,
        "tokens_per_second": (run.stop - first) * trunk.train.batch_tokens / training_seconds,
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
    try:
        with (folder / "log.txt").open("a") as file:
            file.write(f"{_now()} {line}\n")
    except OSError:
        pass  # the log is a courtesy; what it says is also in status.json or a result


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def main(argv: list[str] | None = None) -> int:
    """Train what is missing of one trunk; exit code 1 if a run failed or diverged."""
    parser = argparse.ArgumentParser(prog="python -m experiments.run", description=main.__doc__)
    parser.add_argument("trunk_dir", type=Path, help="a folder runs/<sweep>/trunks/<trunk_id>")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    args = parser.parse_args(argv)
    spec = args.trunk_dir / "spec.json"
    if not spec.exists():
        print(
            f"error: {args.trunk_dir}: no spec.json in it; give runs/<sweep>/trunks/<trunk_id>",
            file=sys.stderr,
        )
        return 2
    trunk = TrunkSpec.model_validate_json(spec.read_text())
    sweep = args.trunk_dir.resolve().parent.parent
    code = 0
    for event in run_trunk(
        trunk, sweep, cache=sweep.parent / "data", device=args.device, checkpoint_seconds=60.0
    ):
        if event.kind == "finished" and event.result is not None:
            print(
                f"{event.run_id} {event.result['status']} val_loss={event.result.get('val_loss')}"
            )
            code = max(code, int(event.result["status"] != "ok"))
        elif event.kind == "failed":
            print(f"error: {event.reason}", file=sys.stderr)
            code = 1
    return code


if __name__ == "__main__":
    raise SystemExit(main())
