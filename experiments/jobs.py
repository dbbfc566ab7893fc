"""Which Slurm jobs train which trunks: written down when submitted, judged when they are gone.

runs/<sweep>/slurm/<stamp>/submission.json   the arrays of one submission and the trunks of each job
                          /<job>/            the job's submitit files and its log
                          /changes.diff      what the submitted code has over its commit

The run folders are the truth. A job that dies cannot say so there: whoever looks next does, with
what Slurm and the job's log tell. Every path is relative, so that a sweep's folder may be moved.
"""

import json
import math
import re
import time
from collections.abc import Collection, Generator, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from experiments import slurm, store
from experiments.slurm import JobState, SlurmError
from experiments.spec import RunSpec, TrunkSpec

LOG_LINES = 200
LOOK_SECONDS = 1.0  # between two looks into the folders; Slurm is asked less often
MAX_ASK_SECONDS = 30.0
ASK_AGAIN_SECONDS = 900.0  # a controller that restarts is back by then
OUT_OF_MEMORY = re.compile(r"oom[-_ ]?kill|out of memory|exceeded \w* ?memory limit", re.IGNORECASE)
NOISE = re.compile(r"^(submitit |slurmstepd: |srun: |\s*File |\s*\^|\s*$|Traceback )")


@dataclass(frozen=True, kw_only=True)
class SubmittedJob:
    """One job and the trunks it trains, in this order; `id` is None if sbatch never answered."""

    id: str | None
    name: str
    trunk_ids: tuple[str, ...]
    submission: str
    mem_gb: float | None

    def log(self) -> Path:
        """The job's log, relative to the sweep's folder."""
        return Path("slurm", self.submission, str(self.id), f"{self.id}_0_log.out")


@dataclass
class Jobs:
    """The jobs of a sweep as they are now; `note` says why Slurm could not be asked, if so."""

    of_trunk: dict[str, SubmittedJob] = field(default_factory=dict)
    active: dict[str, JobState] = field(default_factory=dict)
    note: str | None = None

    def job(self, trunk_id: str) -> JobState | None:
        """State of the job that is to train or trains the trunk; None if there is none."""
        job = self.of_trunk.get(trunk_id)
        return self.active.get(job.id) if job and job.id else None

    def busy(self) -> set[str]:
        """Trunks whose job waits or runs."""
        return {trunk_id for trunk_id in self.of_trunk if self.job(trunk_id)}


def write(sweep: Path, stamp: str, arrays: list[dict]) -> None:
    """Record a submission: `arrays` with name, job_id (None until sbatch answers), mem_gb, jobs."""
    path = sweep / "slurm" / stamp / "submission.json"
    store.write_atomic(path, json.dumps({"stamp": stamp, "arrays": arrays}, indent=1))


def look(sweep: Path) -> Jobs:
    """The sweep's jobs as Slurm sees them now; trunks whose job died get the reason written down.

    Raises SlurmError if Slurm is here and does not answer.
    """
    of_trunk = _submitted(sweep)
    if not of_trunk:
        return Jobs()
    if not slurm.available():
        note = "no Slurm on this machine: states are what the run folders say"
        return Jobs(of_trunk=of_trunk, note=note)
    jobs = Jobs(of_trunk=of_trunk, active=slurm.active())
    gone = [
        (job, trunk)
        for trunk in store.trunks(sweep)
        if (job := of_trunk.get(trunk.trunk_id)) and not jobs.job(trunk.trunk_id)
        if _unsettled(sweep, trunk)
    ]
    if gone:
        over = slurm.ended({job.id for job, _ in gone if job.id})
        for job, trunk in gone:
            _judge(sweep, job, trunk.trunk_id, over.get(job.id or ""))
    return jobs


def run_state(sweep: Path, trunk: TrunkSpec, run: RunSpec, jobs: Jobs) -> store.RunState:
    """State of one run: what the folder says, or `queued`, or `running` on another machine."""
    known = store.run_state(sweep, trunk, run)
    job = jobs.job(trunk.trunk_id)
    if known.result is not None or known.state == "running" or job is None:
        return known
    status = store.read_status(store.trunk_folder(sweep, trunk.trunk_id))
    its_own = status.get("job") == (jobs.of_trunk[trunk.trunk_id].id)
    if job.state != "PENDING" and its_own and status["state"] in ("running", "failed"):
        return store.RunState(state=status["state"], reason=status.get("reason"), result=None)
    return store.RunState(state="queued", reason=job.reason or job.state, result=None)


def poll(sweep: Path, trunks: list[TrunkSpec]) -> Generator[set[str]]:
    """Ids of the `trunks` that jobs have in hand, again and again until there is none.

    A job that waits for a person is not waited for. Slurm is asked ever less often; while it does
    not answer, what it said last holds. Raises SlurmError after ASK_AGAIN_SECONDS without answer.
    """
    wanted = {trunk.trunk_id for trunk in trunks}
    began = answered = time.monotonic()
    busy, asked = wanted, -math.inf
    while busy:
        now = time.monotonic()
        if now - asked > min(MAX_ASK_SECONDS, 1 + (now - began) / 20):
            asked = now
            try:
                jobs = look(sweep)
                answered = now
            except SlurmError:
                if now - answered > ASK_AGAIN_SECONDS:
                    raise
            else:
                busy = {t for t in wanted if (job := jobs.job(t)) and not job.stuck}
        yield busy
        if busy:
            time.sleep(LOOK_SECONDS)


@dataclass(frozen=True, kw_only=True)
class Todo:
    """What is left of a plan: trunks to train, ids of runs that are settled, trunks in jobs."""

    trunks: list[TrunkSpec]
    settled: set[str]
    in_hand: list[TrunkSpec]


def todo(sweep: Path, trunks: list[TrunkSpec], jobs: Jobs, retry_failed: bool) -> Todo:
    """What of `trunks` still has to be trained; failed runs only where `retry_failed`."""
    settled: set[str] = set()
    open_trunks, in_hand = [], []
    skipped = store.SETTLED if retry_failed else {*store.SETTLED, "failed"}
    busy = jobs.busy()
    for trunk in trunks:
        states = {run.run_id: run_state(sweep, trunk, run, jobs).state for run in trunk.runs}
        settled |= {run_id for run_id, state in states.items() if state in store.SETTLED}
        if all(state in skipped for state in states.values()):
            continue
        (in_hand if trunk.trunk_id in busy else open_trunks).append(trunk)
    return Todo(trunks=open_trunks, settled=settled, in_hand=in_hand)


def _submitted(sweep: Path) -> dict[str, SubmittedJob]:
    """The last job of every trunk that was ever submitted."""
    records = [json.loads(p.read_text()) for p in sorted(sweep.glob("slurm/*/submission.json"))]
    arrays = [(record["stamp"], array) for record in records for array in record["arrays"]]
    unanswered = {array["name"] for _, array in arrays if array["job_id"] is None}
    named = slurm.ids_by_name(unanswered) if unanswered and slurm.available() else {}
    found = {}
    for stamp, array in arrays:
        array_id = array["job_id"] or named.get(array["name"])
        for index, trunk_ids in enumerate(array["jobs"]):
            job_id = f"{array_id}_{index}" if len(array["jobs"]) > 1 else array_id
            job = SubmittedJob(
                id=job_id if array_id else None,
                name=array["name"],
                trunk_ids=tuple(trunk_ids),
                submission=stamp,
                mem_gb=array["mem_gb"],
            )
            found |= dict.fromkeys(trunk_ids, job)
    return found


def _unsettled(sweep: Path, trunk: TrunkSpec) -> bool:
    folder = store.trunk_folder(sweep, trunk.trunk_id)
    list(folder.iterdir())  # makes a network file system look again
    return any(store.run_state(sweep, trunk, run).result is None for run in trunk.runs)


def _judge(sweep: Path, job: SubmittedJob, trunk_id: str, over: JobState | None) -> None:
    """Write down how a trunk ended that its job did not finish, unless it says so itself."""
    folder = store.trunk_folder(sweep, trunk_id)
    status = store.read_status(folder)
    began = status.get("job") == job.id
    if status.get("judged") == job.id or (status["state"] == "failed" and began):
        return
    if began and status["state"] == "done":  # with what it was asked for then
        return
    if not began and any(_worked(sweep, job, other) for other in job.trunk_ids):
        return  # its turn in the job never came: it is simply not trained yet
    state, reason = _verdict(sweep, job, over)
    if began and status["state"] == "stopped":
        state = "stopped"  # its checkpoint is whole
    _write_verdict(sweep, job, trunk_id, state, reason)


def mark_cancelled(sweep: Path, known: Jobs, trunk_ids: Collection[str]) -> None:
    """Write down that the jobs of these trunks were cancelled.

    Of a waiting element of an array nothing else would tell: Slurm forgets it at once.
    """
    for trunk in store.trunks(sweep):
        job = known.of_trunk.get(trunk.trunk_id)
        if job and trunk.trunk_id in trunk_ids and _unsettled(sweep, trunk):
            _write_verdict(sweep, job, trunk.trunk_id, "stopped", f"cancelled (job {job.id})")


def _write_verdict(sweep: Path, job: SubmittedJob, trunk_id: str, state: str, reason: str) -> None:
    folder = store.trunk_folder(sweep, trunk_id)
    # A folder that cannot be written here (another user's, a read-only mount) is judged next time.
    with suppress(OSError), store.locked(folder) as free:
        if free:
            store.write_status(folder, state, reason=reason, judged=job.id, job=job.id)


def _worked(sweep: Path, job: SubmittedJob, trunk_id: str) -> bool:
    status = store.read_status(store.trunk_folder(sweep, trunk_id))
    return status.get("job") == job.id and "judged" not in status


def _verdict(sweep: Path, job: SubmittedJob, over: JobState | None) -> tuple[str, str]:
    """State and reason of a run whose job is gone: `stopped` where running it again goes on."""
    log = _last_lines(sweep / job.log()) if job.id else []
    where = f"job {job.id}, {job.log()}"
    state = over.state.split()[0] if over and over.state else ""
    if job.id is None:
        return "stopped", "it was never submitted: the submitting process was killed"
    if not state and not (sweep / job.log()).exists():
        # What Slurm does with a waiting element of an array that is cancelled: it forgets it.
        return "stopped", f"job {job.id} left the queue before it started: cancelled?"
    if state == "OUT_OF_MEMORY" or (state != "COMPLETED" and OUT_OF_MEMORY.search("\n".join(log))):
        asked = "the default" if job.mem_gb is None else f"{job.mem_gb:g} GB"
        return "failed", f"out of memory ({asked}; {where}); raise launch.slurm.mem_gb"
    if state == "CANCELLED":
        return "stopped", f"cancelled (job {job.id})"
    if state in ("TIMEOUT", "DEADLINE"):
        return "stopped", f"time limit ({where}); raise launch.slurm.time_min"
    if state == "PREEMPTED":
        return "stopped", f"preempted and not requeued by Slurm (job {job.id})"
    if state in ("NODE_FAIL", "BOOT_FAIL"):
        return "failed", f"its node failed ({where})"
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
