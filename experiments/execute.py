"""What `run` does: train what is missing, here or on Slurm, then collect."""

import signal
import sys
import time
from collections.abc import Generator
from contextlib import closing, suppress
from pathlib import Path

from rich.console import Console

from experiments import costs, jobs, manifest, pack, slurm, store, submit, tables
from experiments.config import ConfigError, SweepConfig
from experiments.corpora import Corpora
from experiments.follow import follow
from experiments.jobs import Jobs, Todo
from experiments.plan import warnings
from experiments.progress import Progress
from experiments.slurm import SlurmError
from experiments.spec import Event, TrunkSpec


def run(
    config: SweepConfig,
    corpora: Corpora,
    trunks: list[TrunkSpec],
    *,
    retry_failed: bool,
    wait: bool,
    at_most: int | None,
    console: Console,
) -> int:
    """Train the trunks of a prepared config and collect; returns the exit code.

    On Slurm the missing trunks are submitted; only with `wait` are they also followed. `at_most` is
    a limit on slots, or on jobs at once, beside that of the config.
    Raises ConfigError or SlurmError before anything is trained or submitted.
    """
    folder, on_slurm = config.folder, config.launch.executor == "slurm"
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with store.locked(folder) as free:
        if not free:
            raise ConfigError(
                f"{folder}: another run of this sweep is going on; wait for it, or use name=NEW"
            )
        for line in warnings(config, trunks):
            print(f"warning: {line}", file=sys.stderr)
        print(tables.corpus_lines(config, corpora))
        known = jobs.look(folder)
        todo = jobs.todo(folder, trunks, known, retry_failed)
        _check_executor(folder, known, todo, on_slurm)
        manifest.write(config, corpora, trunks)
        in_hand = {trunk.trunk_id for trunk in todo.in_hand}
        for trunk in trunks:
            store.write_spec(folder, trunk, in_training=trunk.trunk_id in in_hand)
        told = f"{folder}: {sum(len(trunk.runs) for trunk in trunks)} runs, "
        told += f"{len(todo.settled)} finished before, {len(todo.trunks)} trunks to train"
        print(told + (f", {len(todo.in_hand)} in jobs already" if todo.in_hand else ""))
        if on_slurm and todo.trunks:
            _submit(config, trunks, known, todo, at_most, console)
        interrupted, failed = False, {}
        if not on_slurm and todo.trunks:
            interrupted, failed = _train(config, todo, at_most, console)
    if on_slurm:
        in_hand = [*todo.trunks, *todo.in_hand]
        if in_hand and not wait:
            print(store.collect(folder))
            print(f"next: python -m experiments.sweep status {folder}")
            return 0
        interrupted, failed = _wait(config, in_hand, todo.settled, console)
    if interrupted and on_slurm:
        print(f"the jobs go on; `python -m experiments.sweep cancel {folder}` ends them")
        return 130
    return _finish(folder, trunks, interrupted, failed, (time.monotonic() - began) / 60)


def _check_executor(folder: Path, known: Jobs, todo: Todo, on_slurm: bool) -> None:
    if on_slurm and not slurm.available():
        slurm.ask("sbatch", "--version")  # says what is missing
    if todo.in_hand and not on_slurm:
        raise ConfigError(
            f"{folder}: {len(todo.in_hand)} trunks are in Slurm jobs that wait or run; "
            f"`python -m experiments.sweep cancel {folder}` first, or use launch.executor=slurm"
        )
    if known.note and on_slurm:
        raise SlurmError(known.note)


def _submit(
    config: SweepConfig,
    trunks: list[TrunkSpec],
    known: Jobs,
    todo: Todo,
    at_most: int | None,
    console: Console,
) -> None:
    """Submit what is missing, after every check, and show the arrays."""
    launch = config.launch
    parallel = launch.slurm.array_parallelism
    parallel = min(parallel, at_most or parallel)
    jobs_in_hand = {known.of_trunk[trunk.trunk_id].id for trunk in todo.in_hand}
    arrays = pack.arrays(
        todo.trunks,
        todo.settled,
        launch,
        parallel=max(1, parallel - len(jobs_in_hand)),
        max_array_size=slurm.max_array_size(),
    )
    remark = submit.check(arrays, config.folder)
    if remark:
        told = "no node could be asked whether it sees this folder: "
        print(f"note: {told}{remark}", file=sys.stderr)
    if not slurm.has_accounting():
        told = "sacct does not answer: how a job ended is known only for some minutes"
        print(f"note: {told}", file=sys.stderr)
    rows = costs.array_rows(config, arrays, trunks, todo.settled)
    ids = submit.submit(arrays, config.folder, config.name, launch)
    tables.print_table(
        [{"array": job_id, **row} for job_id, row in zip(ids, rows, strict=True)], console
    )
    jobs_sent = sum(len(array.jobs) for array in arrays)
    print(f"submitted {jobs_sent} jobs in {len(arrays)} arrays")


def _train(
    config: SweepConfig, todo: Todo, at_most: int | None, console: Console
) -> tuple[bool, dict[str, str]]:
    """Train here until done or interrupted; whether it was, and why which trunk failed."""
    from experiments.launch import run_all  # imports torch: plan and status must not

    events = run_all(todo.trunks, config.folder, config.launch, at_most)
    stopping = "stopping: the workers save their checkpoints"
    return _show(events, todo.trunks, todo.settled, console, stopping)


def _wait(
    config: SweepConfig, in_hand: list[TrunkSpec], settled: set[str], console: Console
) -> tuple[bool, dict[str, str]]:
    """Follow the jobs until none is left, or ctrl-C."""
    if not in_hand:
        return False, {}
    events = follow(in_hand, config.folder, jobs.poll(config.folder, in_hand))
    ended = _show(events, in_hand, settled, console, "no longer waiting")
    with suppress(SlurmError):  # nothing depends on it
        known = jobs.look(config.folder)
        for trunk_id in sorted(known.busy()):
            job = known.job(trunk_id)
            if job and job.stuck:
                print(f"held: trunk {trunk_id}: {job.state} {job.reason}: see `scontrol show job`")
    return ended


def _show(
    events: Generator[Event],
    trunks: list[TrunkSpec],
    settled: set[str],
    console: Console,
    stopping: str,
) -> tuple[bool, dict[str, str]]:
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    failed: dict[str, str] = {}
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        with closing(events), Progress(trunks, settled, console) as progress:
            try:
                for event in events:
                    progress.update(event)
                    if event.kind == "failed":
                        failed[event.trunk_id] = event.reason or ""
            except KeyboardInterrupt:
                print(stopping, flush=True)
                raise
    except KeyboardInterrupt:
        return True, failed
    finally:
        signal.signal(signal.SIGTERM, before)
    return False, failed


def _finish(
    folder: Path,
    trunks: list[TrunkSpec],
    interrupted: bool,
    failed: dict[str, str],
    minutes: float,
) -> int:
    """Collect, say what went wrong and what to do next; returns the exit code."""
    summary = store.collect(folder)
    print(f"{summary}; {minutes:.1f} minutes")
    if interrupted:
        print("interrupted: the same command again goes on from the checkpoints")
        return 130
    for row in tables.status_rows(folder, [], Jobs()):
        if row["state"] in ("failed", "diverged"):
            told = f"{row['state']}: d_model = {row['d_model']}, D = {row['tokens']:,}"
            print(f"{told}: {row['reason']}", file=sys.stderr)
    for trunk_id, reason in failed.items():  # on a full disk the folder may not know
        print(f"failed: trunk {trunk_id}: {reason}", file=sys.stderr)
    if "failed" in summary.by_status:
        print("failed runs are trained again with --retry-failed", file=sys.stderr)
    print(f"next: python -m analysis.report {folder}")
    return int(bool(failed) or bool({"failed", "diverged"} & summary.by_status.keys()))
