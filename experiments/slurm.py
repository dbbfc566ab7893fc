"""What Slurm says: which jobs wait or run, how the others ended, whether it would take a new one.

Every question is one call with a time limit. squeue knows the jobs that are not over on every
cluster; sacct how jobs ended, where there is accounting; scontrol the same for a few minutes.
"""

import getpass
import re
import shutil
import subprocess
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from experiments.resources import Resources

ASK_SECONDS = 60.0
ACCOUNTS_SECONDS = 20.0  # where slurmdbd is down sacct hangs, and there is scontrol
SEEN_SECONDS = 15  # a node that is not free by then is not asked whether it sees the folder
CACHED_SECONDS = 30.0
UNLISTED, UNREADABLE, UNWRITABLE, NO_PYTHON = 41, 42, 43, 44
GOING_ON = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "SUSPENDED")
NEVER = (
    *("JobHeld", "launch failed requeued held", "DependencyNeverSatisfied", "BadConstraints"),
    *("PartitionTimeLimit", "PartitionNodeLimit", "InvalidAccount", "InvalidQOS"),
    *("QOSMaxWallDurationPerJobLimit", "AssocMaxWallDurationPerJobLimit"),
)


class SlurmError(ValueError):
    """Slurm refused or could not be asked: the message has its own words and the remedy."""


@dataclass(frozen=True, kw_only=True)
class JobState:
    """One job (or element of an array) as Slurm sees it; `reason` is why it waits."""

    state: str
    name: str = ""
    reason: str = ""
    exit_code: str = ""

    @property
    def stuck(self) -> bool:
        """Whether it waits for a person: nothing that happens by itself would start it."""
        return self.state in ("PENDING", "REQUEUE_HOLD", "SPECIAL_EXIT") and (
            self.state != "PENDING" or self.reason.startswith(NEVER)
        )


def available() -> bool:
    """Whether this machine has Slurm's commands."""
    return all(shutil.which(name) for name in ("sbatch", "srun", "squeue", "scontrol"))


def ask(*words: str, seconds: float = ASK_SECONDS) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands.

    Raises SlurmError if it is missing or does not answer in time, not if it says no.
    """
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=seconds)
    except OSError:
        raise SlurmError(
            f"launch.executor = 'slurm': no {words[0]} on this machine; run on a login node of the "
            "cluster, or use launch.executor=local"
        ) from None
    except subprocess.TimeoutExpired:
        raise SlurmError(
            f"{words[0]} did not answer within {seconds:.0f} s; is the cluster's controller up?"
        ) from None


def active() -> dict[str, JobState]:
    """This user's jobs that are not over, by id; an element of an array is `<array>_<index>`.

    Raises SlurmError if squeue cannot tell.
    """
    shown = ask("squeue", "-h", "-r", "-u", getpass.getuser(), "-o", "%i|%T|%j|%r")
    if shown.returncode:
        raise SlurmError(f"squeue: {_words(shown)}")
    found = {}
    for job, state, name, reason in _rows(shown, 4):
        found[job] = JobState(state=state, name=name, reason=reason)
    return found


def ended(jobs: Collection[str]) -> dict[str, JobState]:
    """How `jobs` ended, as far as sacct (or, for a few minutes, scontrol) still knows."""
    arrays = sorted({job.partition("_")[0] for job in jobs})
    if not arrays:
        return {}
    rows = _accounts("-j", ",".join(arrays), "-o", "JobID,State,JobName,ExitCode")
    found = {}
    for job, state, name, code in rows:
        found[job] = JobState(state=state, name=name, exit_code=code)
    # sacct is some seconds behind: of a job that has just ended it says that it runs.
    behind = [job for job in jobs if job not in found or found[job].state in GOING_ON]
    for array in sorted({job.partition("_")[0] for job in behind}):
        found |= _remembered(array)
    return {job: found[job] for job in jobs if job in found and found[job].state not in GOING_ON}


def _remembered(array: str) -> dict[str, JobState]:
    """What slurmctld still holds of a job or array: it forgets after MinJobAge."""
    told = ask("scontrol", "show", "job", "-o", array)
    found = {}
    for line in told.stdout.splitlines() if not told.returncode else ():
        values = dict(pair.split("=", 1) for pair in line.split() if "=" in pair)
        job, index = values.get("JobId", ""), values.get("ArrayTaskId")
        if index is not None:
            job = f"{values.get('ArrayJobId', job)}_{index}"
        found[job] = JobState(
            state=values.get("JobState", ""),
            name=values.get("JobName", ""),
            exit_code=values.get("ExitCode", ""),
        )
    return found


def has_accounting() -> bool:
    """Whether sacct answers: without it Slurm soon forgets how a job ended."""
    try:
        return not ask("sacct", "-n", "-X", seconds=ACCOUNTS_SECONDS).returncode
    except SlurmError:
        return False


def _accounts(*words: str) -> list[list[str]]:
    """Rows of sacct, the columns after -o; none where there is no accounting or it is down."""
    try:
        told = ask("sacct", "-n", "-X", "-P", *words, seconds=ACCOUNTS_SECONDS)
    except SlurmError:
        return []
    return _rows(told, words[-1].count(",") + 1)


def ids_by_name(names: Collection[str]) -> dict[str, str]:
    """Array or job ids of this user's jobs called `names`: for a submitter that was killed."""
    if not names:
        return {}
    shown = ask("squeue", "-h", "-u", getpass.getuser(), "-t", "all", "-o", "%F|%j")
    rows = _accounts("-S", "now-7days", "--name", ",".join(names), "-o", "JobID,JobName")
    rows += _rows(shown, 2)
    return {name: job.partition("_")[0] for job, name in rows if name in names}


def cluster() -> str:
    """Name of the cluster that this machine's commands ask."""
    return _config("ClusterName", r"\S+")


def max_array_size() -> int:
    """Elements that one array may have."""
    return max(1, int(_config("MaxArraySize", r"\d+")))


def _config(key: str, value: str) -> str:
    shown = ask("scontrol", "show", "config")
    found = re.search(rf"^{key}\s*=\s*({value})", shown.stdout, re.MULTILINE)
    if shown.returncode or not found:
        raise SlurmError(f"scontrol show config: {_words(shown) or f'no {key} in it'}")
    return found[1]


def would_take(asked: Resources) -> None:
    """Raise SlurmError, with sbatch's own words, if sbatch would refuse a job like this."""
    words = asked.words()
    told = ask("sbatch", "--test-only", *words, "--wrap", "true")
    if told.returncode:
        raise SlurmError(
            f"[launch.slurm]: sbatch refuses {' '.join(words)}: {_words(told)}; `sinfo` and "
            "`scontrol show partition` list what there is"
        )


def see(folder: Path, python: str, asked: Resources) -> str | None:
    """Ask a node whether it sees and can write `folder` and has `python`; None if it does.

    Returns a sentence if no node could be asked now. Raises SlurmError if a node says no.
    """
    token = folder / ".seen-from-a-node"
    token.write_text("")
    script = (
        '[ -d "$1" ] || exit 41; n=0; '
        'while [ ! -f "$1/$2" ]; do n=$((n + 1)); [ $n -lt 10 ] || exit 42; sleep 1; done; '
        'touch "$1/$2.yes" || exit 43; '
        '[ -x "$3" ] || exit 44'
    )
    flags = asked.flags()
    where = [
        f"--{k}={flags[k]}" for k in ("partition", "account", "qos", "constraint") if k in flags
    ]
    small = ["--nodes=1", "--ntasks=1", "--cpus-per-task=1", "--mem=50M", "--time=1", "--quiet"]
    words = ["srun", f"--immediate={SEEN_SECONDS}", *small, *where, "--chdir=/", "--job-name=see"]
    try:
        told = ask(*words, "sh", "-c", script, "sh", str(folder), token.name, python)
    except SlurmError as error:
        return str(error)
    finally:
        token.unlink()
    answer = token.with_name(token.name + ".yes")
    deadline = time.monotonic() + (CACHED_SECONDS if told.returncode == 0 else 0)
    while not (written := answer in set(folder.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.5)  # a network file system may show new files late
    answer.unlink(missing_ok=True)
    remedy = "runs_dir has to be a folder that login and compute nodes share and can write to"
    reasons = {
        UNLISTED: f"no such folder there; {remedy}",
        UNREADABLE: f"another folder of that name is there, not this one; {remedy}",
        UNWRITABLE: f"{told.stderr.strip()}; {remedy}",
        NO_PYTHON: f"{python} is not there; make the environment in a folder that nodes share",
    }
    if told.returncode in reasons:
        raise SlurmError(f"{folder}, asked of a node: {reasons[told.returncode]}")
    if told.returncode:
        return _words(told) or f"srun ended with exit code {told.returncode}"
    if not written:
        raise SlurmError(f"{folder}: what a node writes there is not seen here; {remedy}")
    return None


def cancel(jobs: Collection[str]) -> None:
    """End `jobs`, in one call."""
    told = ask("scancel", *sorted(jobs))
    if told.returncode:
        raise SlurmError(f"scancel: {_words(told)}")


def cancel_named(names: Collection[str]) -> None:
    """End this user's jobs that are called `names`, if there are any."""
    for name in names:
        ask("scancel", "--user", getpass.getuser(), "--name", name)


def _rows(told: subprocess.CompletedProcess[str], columns: int) -> list[list[str]]:
    """The table that a command printed with | between columns; none if it failed."""
    rows = [line.strip().split("|", columns - 1) for line in told.stdout.splitlines()]
    return [row for row in rows if len(row) == columns and not told.returncode]


def _words(told: subprocess.CompletedProcess[str]) -> str:
    """What the command said, in one line, without its own name in front of each."""
    lines = (told.stderr.strip() or told.stdout.strip()).splitlines()
    return "; ".join(re.sub(r"^(\w+: )(error: )?", "", line) for line in lines)
