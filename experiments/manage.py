"""What `status`, `logs`, `cancel` and `collect` do with a started sweep, from any process."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from experiments import jobs, slurm, store, tables
from experiments.jobs import Jobs
from experiments.spec import TrunkSpec

CANCEL_SECONDS = 60.0  # Slurm kills what does not end by itself within KillWait, usually 30 s
FOLLOW_SECONDS = 0.5


def look(folder: Path) -> Jobs:
    """The jobs, judged where they died; only what is recorded of them if Slurm does not answer."""
    try:
        return jobs.look(folder)
    except slurm.SlurmError as error:
        return jobs.recorded(folder, str(error))


def status(folder: Path, wanted: list[str], as_json: bool, console: Console) -> int:
    """State of every run: what the folder says, and Slurm where it has jobs of this sweep."""
    store.planned(folder)
    known = look(folder)
    rows = tables.status_rows(folder, wanted, known)
    if as_json:
        print(json.dumps(rows, indent=1))
        return 0
    tables.print_table(tables.short_rows(rows), console)
    counted = Counter(row["state"] for row in rows)
    told = ", ".join(f"{n} {state}" for state, n in counted.most_common())
    print(f"{folder}: {len(rows)} runs: {told}")
    if known.note:
        print(f"note: {known.note}")
    if known.busy():
        print(f"next: python -m experiments.sweep logs {folder} RUN -f")
    elif counted["ok"]:
        print(f"next: python -m experiments.sweep collect {folder}")
    return 0


def collect(folder: Path, as_json: bool) -> int:
    """Write the parquet files from the run folders."""
    store.planned(folder)
    look(folder)  # a job that died says so in its run folder only once somebody looks
    summary = store.collect(folder)
    print(json.dumps(asdict(summary), default=str) if as_json else summary)
    return 0


def logs(folder: Path, wanted: list[str], follow: bool) -> int:
    """Print what the trunks and their jobs said; with `follow` until they end."""
    store.planned(folder)
    known = look(folder)
    ids = {row["trunk_id"] for row in tables.status_rows(folder, wanted, known)}
    trunks = [trunk for trunk in store.trunks(folder) if trunk.trunk_id in ids]
    read: dict[Path, int] = {}
    while True:
        going_on = follow and any(_going_on(folder, trunk, known) for trunk in trunks)
        _print_new(folder, trunks, known, read)  # after the look: what was said before it is there
        if not going_on:
            return 0
        for _ in jobs.poll(folder, [t for t in trunks if t.trunk_id in known.busy()]):
            _print_new(folder, trunks, known, read)
        time.sleep(FOLLOW_SECONDS)  # a trunk in training on this machine has no job
        known = look(folder)


def cancel(folder: Path, wanted: list[str]) -> int:
    """End the jobs of the wanted runs (all without any), in one call; checkpoints stay."""
    store.planned(folder)
    known = jobs.look(folder)
    rows = tables.status_rows(folder, wanted, known)
    asked = {row["trunk_id"] for row in rows} & known.busy()
    if known.note:
        raise slurm.SlurmError(f"{folder}: {known.note}")
    if not asked:
        print("nothing to cancel: no job of these runs waits or runs")
        return 0
    ended = {known.of_trunk[trunk_id].id or "" for trunk_id in asked}
    with_them = {
        trunk_id
        for trunk_id in known.busy() - asked
        if known.of_trunk[trunk_id].id in ended and _unfinished(folder, trunk_id)
    }
    slurm.cancel(ended)
    deadline = time.monotonic() + CANCEL_SECONDS
    while ended & slurm.active().keys() and time.monotonic() < deadline:
        time.sleep(1)
    left = ended & slurm.active().keys()
    jobs.mark_cancelled(folder, known, asked | with_them)
    print(f"cancelled {len(ended)} jobs with {len(asked)} trunks")
    if with_them:
        told = ", ".join(sorted(with_them))
        print(f"the same jobs also held the trunks {told}: cancelled with them")
    if left:
        print(f"still ending: {', '.join(sorted(left))}")
    print("what was trained is kept: the command that submitted them goes on from there")
    return 0


def _unfinished(folder: Path, trunk_id: str) -> bool:
    return store.read_status(store.trunk_folder(folder, trunk_id))["state"] != "done"


def _going_on(folder: Path, trunk: TrunkSpec, known: Jobs) -> bool:
    job = known.job(trunk.trunk_id)
    if job and job.stuck:
        return False
    states = (jobs.run_state(folder, trunk, run, known).state for run in trunk.runs)
    return any(state in ("queued", "running") for state in states)


def _print_new(folder: Path, trunks: list[TrunkSpec], known: Jobs, read: dict[Path, int]) -> None:
    """Print the lines that were added to the logs; `read` has how far each was printed."""
    for name, path in _logs_of(folder, trunks, known):
        if not path.exists():
            continue
        with path.open("rb") as file:
            file.seek(read.get(path, 0))
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        read[path] = read.get(path, 0) + len(whole)
        for line in whole.decode(errors="replace").splitlines():
            print(f"{name}  {line}", flush=True)


def _logs_of(folder: Path, trunks: list[TrunkSpec], known: Jobs) -> Iterator[tuple[str, Path]]:
    """Each log once, with what its lines are printed with: job logs, then the trunks' own."""
    seen = set()
    for trunk in trunks:
        job = known.of_trunk.get(trunk.trunk_id)
        if job and job.id and job.id not in seen:
            seen.add(job.id)
            yield f"job {job.id}", folder / job.log()
    for trunk in trunks:
        yield trunk.trunk_id, store.trunk_folder(folder, trunk.trunk_id) / "log.txt"
