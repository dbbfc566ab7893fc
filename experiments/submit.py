"""Job arrays to Slurm, through submitit: all of them or none."""

import secrets
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path

from experiments import jobs, slurm, snapshot
from experiments.job import TrunkJob
from experiments.pack import JobArray
from experiments.resources import LaunchSection
from experiments.slurm import SlurmError
from experiments.verdict import STAMP


def check(arrays: list[JobArray], sweep: Path) -> str | None:
    """Ask Slurm about every kind of job, and a node about the sweep's folder, before any is sent.

    Returns a remark where no node could be asked. Raises SlurmError with Slurm's own words.
    """
    for asked in {array.asked.model_dump_json(): array.asked for array in arrays}.values():
        slurm.would_take(asked)
    seen = sweep / "slurm" / "seen-from-a-node"
    here = str(sweep.resolve())
    if seen.exists() and seen.read_text() == here:
        return None
    remark = slurm.see(sweep.resolve(), sys.executable, arrays[0].asked)
    if remark is None:
        seen.parent.mkdir(exist_ok=True)
        seen.write_text(here)
    return remark


def submit(arrays: list[JobArray], sweep: Path, name: str, launch: LaunchSection) -> list[str]:
    """Submit `arrays` and return their ids; jobs accepted before a refusal are cancelled.

    Raises SlurmError with sbatch's own words.
    """
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    folder = _new_folder(sweep)
    code = snapshot.take(sweep, folder.name)
    record = [
        {
            "name": f"{name}.{folder.name}.{i}",
            "job_id": None,
            "mem_gb": array.asked.mem_gb,
            "jobs": [[trunk.trunk_id for trunk in job] for job in array.jobs],
        }
        for i, array in enumerate(arrays)
    ]
    jobs.write(sweep, folder.name, record)
    ids: list[str] = []
    for entry, array in zip(record, arrays, strict=True):
        executor = submitit.SlurmExecutor(
            folder.resolve() / "%j", max_num_timeout=launch.slurm.max_requeues
        )
        asked = array.asked
        executor.update_parameters(
            job_name=entry["name"],
            time=asked.time_min,  # submitit tells a time limit from a preemption by it
            nodes=asked.nodes,
            ntasks_per_node=asked.tasks_per_node,
            array_parallelism=array.parallel,
            signal_delay_s=launch.slurm.signal_seconds,
            stderr_to_stdout=True,
            wckey="",
            dependency=None if array.after is None else f"afterany:{ids[array.after]}",
            # Since Slurm 22.05 srun does not take over the job's --cpus-per-task.
            srun_args=[f"--cpus-per-task={asked.cpus_per_task}", "--kill-on-bad-exit=1"],
            setup=_setup(launch, code),
            additional_parameters={**asked.flags(), "requeue": True},
        )
        here, spec = str(sweep.resolve()), launch.model_dump_json()
        calls = [
            TrunkJob(sweep=here, trunk_ids=tuple(ids_of), launch=spec) for ids_of in entry["jobs"]
        ]
        try:
            with submitit.helpers.clean_env():
                sent = executor.submit_array(calls)
        except (FailedJobError, FailedSubmissionError) as error:
            if ids:
                slurm.cancel(ids)
            told = str(error).strip().splitlines()
            raise SlurmError(f"[launch.slurm]: sbatch: {told[-1]}; nothing was submitted") from None
        entry["job_id"] = sent[0].job_id.partition("_")[0]
        ids.append(entry["job_id"])
        jobs.write(sweep, folder.name, record)
    return ids


def _new_folder(sweep: Path) -> Path:
    """A folder for this submission: submitit's files never meet those of a reused job id."""
    while True:
        stamp = f"{datetime.now(UTC):{STAMP}}-{secrets.token_hex(2)}"
        folder = sweep / "slurm" / stamp
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder


def _setup(launch: LaunchSection, code: Path) -> list[str]:
    """Bash before the job's python: the user's lines, any of which may fail it, then ours."""
    lines = []
    if launch.slurm.setup:
        failed = 'echo "error: a line of [launch.slurm] setup failed: $BASH_COMMAND"; exit 1'
        lines = [f"trap {shlex.quote(failed)} ERR", *launch.slurm.setup, "trap - ERR"]
    return [
        *lines,
        f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}",
        "export PYTHONSAFEPATH=1",  # else the checkout in the working directory comes first
        f"export OMP_NUM_THREADS={launch.threads_per_slot}",
    ]
