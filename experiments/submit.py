"""Job arrays to Slurm, through submitit: all of them or none."""

import getpass
import os
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

SITE = ("SBATCH_", "SLURM_CONF", "SLURM_CLUSTERS")  # what a site or user sets for sbatch


def check(arrays: list[JobArray], sweep: Path) -> str | None:
    """Ask Slurm about every kind of job, and a node about the sweep's folder, before any is sent.

    Returns a remark where no node could be asked. Raises SlurmError with Slurm's own words.
    """
    here = sweep.absolute()
    if "%" in str(here):
        raise SlurmError(f"{here}: Slurm replaces % in the names of logs; use another runs_dir")
    for asked in {array.asked.model_dump_json(): array.asked for array in arrays}.values():
        slurm.would_take(asked)
    seen = sweep / "slurm" / "seen-from-a-node"
    asked = arrays[0].asked
    what = f"{here} {sys.executable} {asked.partition} {asked.constraint}"
    if seen.exists() and seen.read_text() == what:
        return None
    remark = slurm.see(here, sys.executable, asked)
    if remark is None:
        seen.parent.mkdir(exist_ok=True)
        seen.write_text(what)
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
    origin = {"user": getpass.getuser(), "cluster": slurm.cluster()}
    jobs.write(sweep, folder.name, origin, record)
    ids: list[str] = []
    for entry, array in zip(record, arrays, strict=True):
        executor = submitit.SlurmExecutor(
            folder.absolute() / "%j", max_num_timeout=launch.slurm.max_requeues
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
        here, spec = str(sweep.absolute()), launch.model_dump_json()
        calls = [
            TrunkJob(sweep=here, trunk_ids=tuple(ids_of), launch=spec) for ids_of in entry["jobs"]
        ]
        try:
            site = {name: value for name, value in os.environ.items() if name.startswith(SITE)}
            with submitit.helpers.clean_env():  # of the job that this may run in
                os.environ.update(site)
                sent = executor.submit_array(calls)
        except (FailedJobError, FailedSubmissionError) as error:
            # An answer that was lost on its way is an error here, and an array in the queue.
            slurm.cancel_named([each["name"] for each in record])
            told = (str(error).strip().splitlines() or ["no answer"])[-1]
            raise SlurmError(f"[launch.slurm]: sbatch: {told}; nothing was submitted") from None
        entry["job_id"] = sent[0].job_id.partition("_")[0]
        ids.append(entry["job_id"])
        jobs.write(sweep, folder.name, origin, record)
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
    for line in launch.slurm.setup:
        told = shlex.quote(f"error: a line of [launch.slurm] setup failed: {line}")
        lines += [line, f"[ $? = 0 ] || {{ echo {told}; exit 1; }}"]
    return [
        *lines,
        f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}",
        "export SLURM_EXPORT_ENV=ALL",  # to srun, also where sbatch was told to export nothing
        "export PYTHONSAFEPATH=1",  # else the checkout in the working directory comes first
        f"export OMP_NUM_THREADS={launch.threads_per_slot}",
    ]
