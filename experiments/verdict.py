"""How a run ended whose Slurm job is gone: what its folder, Slurm and the job's log tell together.

A job that dies cannot write down why. Whoever looks next does, once, into the run's own status.
"""

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from experiments import store
from experiments.slurm import JobState

LOG_LINES = 200
STAMP = "%y%m%d-%H%M%S"  # how the name of a submission begins
OUT_OF_MEMORY = re.compile(r"oom[-_ ]?kill|out of memory|exceeded \w* ?memory limit", re.IGNORECASE)
NOISE = re.compile(r"^(submitit |slurmstepd: |srun: |\s*File |\s*\^|\s*$|Traceback )")


@dataclass(frozen=True, kw_only=True)
class SubmittedJob:
    """One job and the trunks it trains, in this order; `id` is None if sbatch never answered."""

    id: str | None
    name: str
    trunk_ids: tuple[str, ...]
    submission: str
    user: str
    cluster: str
    mem_gb: float | None

    def submitted(self) -> str:
        """When, as `store.write_status` writes times."""
        at = datetime.strptime(self.submission[:13], STAMP).replace(tzinfo=UTC)
        return at.isoformat(timespec="seconds")

    def logs(self, sweep: Path) -> list[Path]:
        """The logs of all its ranks."""
        return sorted((sweep / self.log()).parent.glob("*_log.out"))

    def log(self) -> Path:
        """The job's log, relative to the sweep's folder."""
        return Path("slurm", self.submission, str(self.id), f"{self.id}_0_log.out")


def judge(sweep: Path, job: SubmittedJob, trunk_id: str, over: JobState | None) -> None:
    """Write down how a trunk ended that its job did not finish, unless it says so itself."""
    folder = store.trunk_folder(sweep, trunk_id)
    status = store.read_status(folder)
    began = status.get("job") == job.id
    if judged(sweep, job, trunk_id) and not _killed(status):
        return
    if not began and status.get("time", "") > job.submitted():
        return  # another process has trained it since, and speaks for itself
    if not began and any(_worked(sweep, job, other) for other in job.trunk_ids):
        return  # its turn in the job never came: it is simply not trained yet
    state, reason = _verdict(sweep, job, over)
    if _killed(status) and not reason.startswith("out of memory"):
        return  # what watched over the process that was killed has said so
    if began and status["state"] == "stopped":
        state = "stopped"  # its checkpoint is whole
    write(sweep, job, trunk_id, state, reason)


def judged(sweep: Path, job: SubmittedJob, trunk_id: str) -> bool:
    """Whether it is known how the trunk ended in this job."""
    status = store.read_status(store.trunk_folder(sweep, trunk_id))
    if _killed(status):  # the kernel's reason may still be missing
        return status.get("judged") == job.id
    said = status["state"] in ("failed", "done") and status.get("job") == job.id
    return said or status.get("judged") == job.id


def _killed(status: dict) -> bool:
    """Whether the trunk's process was killed, and the job went on with others."""
    return status["state"] == "failed" and status.get("signal") == "SIGKILL"


def write(sweep: Path, job: SubmittedJob, trunk_id: str, state: str, reason: str) -> None:
    """Write the verdict into the run's status, unless a process is training it."""
    folder = store.trunk_folder(sweep, trunk_id)
    # A folder that cannot be written here (another user's, a read-only mount) is judged next time.
    with suppress(OSError), store.locked(folder) as free:
        if free:
            began = store.read_status(folder).get("job") == job.id
            more = {"reason": reason, "job": job.id, "judged": job.id, "began": began}
            store.write_status(folder, state, **more)


def _worked(sweep: Path, job: SubmittedJob, trunk_id: str) -> bool:
    status = store.read_status(store.trunk_folder(sweep, trunk_id))
    return status.get("job") == job.id and status.get("began", True)


def _verdict(sweep: Path, job: SubmittedJob, over: JobState | None) -> tuple[str, str]:
    """State and reason of a run whose job is gone: `stopped` where running it again goes on."""
    log = [line for path in job.logs(sweep) for line in _last_lines(path)]
    where = f"job {job.id}, {job.log()}"
    state = over.state.split()[0] if over and over.state else ""
    if not state and not (sweep / job.log()).exists():
        # What Slurm does with a waiting element of an array that is cancelled: it forgets it.
        return "stopped", f"job {job.id} left the queue before it started: cancelled?"
    if state == "OUT_OF_MEMORY" or (state != "COMPLETED" and OUT_OF_MEMORY.search("\n".join(log))):
        asked = "the default" if job.mem_gb is None else f"{job.mem_gb:g} GB"
        return "failed", f"out of memory ({asked}; {where}); raise launch.slurm.mem_gb"
    if state == "CANCELLED":
        return "stopped", f"cancelled (job {job.id})"
    if state in ("TIMEOUT", "DEADLINE"):
        return "stopped", f"time limit ({where}); raise launch.slurm.time_min, or signal_seconds"
    if state == "PREEMPTED":
        return "stopped", f"preempted and not requeued by Slurm (job {job.id})"
    if state in ("NODE_FAIL", "BOOT_FAIL"):
        return "stopped", f"its node failed, and Slurm did not requeue the job ({where})"
    if any("could not find submitted jobs" in line for line in log):
        return "stopped", f"the submitting process was killed before job {job.id} was complete"
    told = _complaint(log) or "its log says nothing"
    if any("timed-out too many times" in line for line in log):
        return "stopped", f"time limit, requeued max_requeues times ({where})"
    if not state:
        return "failed", f"it ended, and Slurm no longer knows how: {told} ({where})"
    code = f" {over.exit_code}" if over and over.exit_code else ""
    return "failed", f"{state}{code}: {told} ({where})"


def _complaint(lines: Iterable[str]) -> str | None:
    """The last line of a log that is neither a frame of a traceback nor Slurm's own."""
    said = [line.strip() for line in lines if not NOISE.match(line)]
    return said[-1][:300] if said else None


def _last_lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()[-LOG_LINES:]
    except OSError:
        return []
