"""The sweep's folder: who writes what, what state a run is in, and `collect`.

runs/<sweep>/sweep.json                      the resolved config and the corpus
runs/<sweep>/tokenizers/<sha256>.json        tokenizers, unless tokens are bytes
runs/<sweep>/trunks/<trunk_id>/spec.json     the trunk and its runs as planned last
                               evals.jsonl   one line per evaluation, appended
                               <run_id>.json one finished run: written last, atomically, never again
                               status.json   running, stopped or failed, for people and `status`
runs/<sweep>/results.parquet, curves.parquet rewritten whole by `collect`, the only writer; where
                              there are more held-out sets, evals.parquet too

A run is finished when its <run_id>.json exists. A file is written beside its place and moved there,
so what is read is whole; a half-written last line of evals.jsonl is not read.
"""

import fcntl
import json
import os
import platform
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from experiments import provenance, schema
from experiments.rows import curve_row, eval_rows, result_row
from experiments.spec import RunSpec, TrunkSpec

SETTLED = frozenset({"ok", "diverged"})  # states that more training does not change


class StoreError(ValueError):
    """A folder that is not what it should be: the message names it and the remedy."""


@dataclass(frozen=True, kw_only=True)
class RunState:
    """One run as the folder tells it: ok, diverged, failed, running, stopped or missing."""

    state: str
    reason: str | None
    result: dict | None


@dataclass(frozen=True, kw_only=True)
class CollectSummary:
    """How many rows `collect` wrote, by status."""

    rows: int
    by_status: dict[str, int]
    path: Path

    def __str__(self) -> str:
        """One line for people."""
        told = ", ".join(f"{n} {status}" for status, n in sorted(self.by_status.items()))
        return f"{self.path}: {self.rows} rows ({told or 'no run has finished yet'})"


def write_atomic(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader sees the old file or the new one."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_parquet(
    path: Path, rows: list[dict], kind: pa.Schema, more: dict[str, str] | None = None
) -> None:
    """Write `rows` to `path` atomically; `more` is said of the file beside its schema."""
    # Every key of a row must be a column: a misspelt one would silently become a column of nulls.
    extra = {key for row in rows for key in row} - set(kind.names)
    assert not extra, f"not in the schema: {sorted(extra)}"
    kind = kind.with_metadata({**(kind.metadata or {}), **(more or {})})
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        pq.write_table(pa.Table.from_pylist(rows, schema=kind), part, compression="zstd")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold `folder` against other processes; yields False if one does. The kernel frees it."""
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError as error:
            raise StoreError(
                f"{folder}: its file system has no locks ({error.strerror}); mount it with flock, "
                "or choose another runs_dir"
            ) from None
        yield True


def trunk_folder(sweep: Path, trunk_id: str) -> Path:
    """Where a trunk of the sweep lives."""
    return sweep / "trunks" / trunk_id


def tokenizer_file(sweep: Path, sha256: str) -> Path:
    """Where the sweep keeps a tokenizer."""
    return sweep / "tokenizers" / f"{sha256}.json"


def trunks(sweep: Path) -> list[TrunkSpec]:
    """Every trunk that the folder has a spec of."""
    found = sorted((sweep / "trunks").glob("*/spec.json"))
    return [TrunkSpec.model_validate_json(path.read_text()) for path in found]


def write_spec(sweep: Path, trunk: TrunkSpec, in_training: bool = False) -> None:
    """Record `trunk` as planned now; finished runs that it no longer asks for stay on record.

    So do unfinished ones where it is `in_training`: they will be finished.
    """
    folder = trunk_folder(sweep, trunk.trunk_id)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "spec.json"
    if path.exists():
        known = {run.run_id for run in trunk.runs}
        before = TrunkSpec.model_validate_json(path.read_text()).runs
        kept = [
            r
            for r in before
            if r.run_id not in known and (in_training or _result(folder, r).exists())
        ]
        runs = tuple(sorted((*trunk.runs, *kept), key=lambda run: run.tokens))
        trunk = trunk.model_copy(update={"runs": runs})
    write_atomic(path, trunk.model_dump_json(indent=1))


def run_state(sweep: Path, trunk: TrunkSpec, run: RunSpec) -> RunState:
    """State of one run; `running` only while a process holds its trunk."""
    folder = trunk_folder(sweep, trunk.trunk_id)
    result = _result(folder, run)
    if result.exists():
        values = json.loads(result.read_text())
        return RunState(state=values["status"], reason=values["reason"], result=values)
    status = read_status(folder)
    if status["state"] == "running":
        try:
            with locked(folder) as free:
                state = "stopped" if free else "running"
        except PermissionError:  # another user's: only its processes can tell
            state = "running"
        return RunState(state=state, reason=None, result=None)
    # A trunk may be done with what was asked for before this run was.
    state = status["state"] if status["state"] in ("failed", "stopped") else "missing"
    return RunState(state=state, reason=status.get("reason"), result=None)


def missing(sweep: Path, trunk: TrunkSpec) -> bool:
    """Whether some run of `trunk` has no result."""
    list(trunk_folder(sweep, trunk.trunk_id).glob("*"))  # makes a network file system look again
    return any(run_state(sweep, trunk, run).result is None for run in trunk.runs)


def write_status(folder: Path, state: str, **more: object) -> None:
    """Say of the trunk in `folder` that it is running, done, stopped or failed."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    values = {"state": state, "pid": os.getpid(), "host": platform.node(), "time": now}
    values |= {"job": provenance.slurm_job(), **more}
    write_atomic(folder / "status.json", json.dumps(values))


def read_status(folder: Path) -> dict:
    """What the trunk's last process said of itself; {"state": "missing"} if none did."""
    path = folder / "status.json"
    return json.loads(path.read_text()) if path.exists() else {"state": "missing"}


def read_evals(folder: Path) -> list[dict]:
    """Whole lines of evals.jsonl, the last of each (run, step): a resumed run repeats some."""
    path = folder / "evals.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().split("\n")[:-1]
    points = {}
    for line in lines:
        values = json.loads(line)
        points[values["run_id"], values["step"]] = values
    return sorted(points.values(), key=lambda p: (p["run_id"] is not None, p["step"]))


def collect(sweep: Path) -> CollectSummary:
    """Write the parquet files from the run folders; return the counts.

    Raises StoreError if `sweep` is no sweep's folder.
    """
    in_plan = planned(sweep)
    rows, curves, evals = [], [], []
    for trunk in trunks(sweep):
        rank = {run.run_id: i for i, run in enumerate(trunk.runs)}
        for run in trunk.runs:
            state = run_state(sweep, trunk, run)
            if state.result is None and state.state != "failed":
                continue
            status, reason = state.state, state.reason
            if run.run_id not in in_plan:
                told = "" if status == "ok" else f" ({status}: {reason})"
                status, reason = "unplanned", f"no longer in the plan of this sweep{told}"
            measured = state.result or {}
            rows.append(result_row(trunk, run, rank[run.run_id], status, reason, measured))
            evals += eval_rows(trunk, run, rank[run.run_id], measured)
        for point in read_evals(trunk_folder(sweep, trunk.trunk_id)):
            curves.append(curve_row(trunk, point, rank.get(point["run_id"])))
    write_parquet(sweep / "curves.parquet", curves, schema.CURVES)
    if evals:
        write_parquet(sweep / "evals.parquet", evals, schema.EVALS)
    write_parquet(sweep / "results.parquet", rows, schema.RESULTS)
    by_status = dict(Counter(row["status"] for row in rows))
    return CollectSummary(rows=len(rows), by_status=by_status, path=sweep / "results.parquet")


def planned(sweep: Path) -> set[str]:
    """Run ids of the sweep's last plan."""
    path = sweep / "sweep.json"
    if not path.exists():
        raise StoreError(
            f"{sweep}: no sweep.json in it; give the folder of a sweep, such as runs/quick"
        )
    return set(json.loads(path.read_text())["runs"])


def _result(folder: Path, run: RunSpec) -> Path:
    return folder / f"{run.run_id}.json"
