"""Which Slurm jobs train which trunks, and what state that puts their runs in.

runs/<sweep>/slurm/<stamp>/submission.json   the arrays of one submission and the trunks of each job
                          /<job>/            the job's submitit files and its log
                          /changes.diff      what the submitted code has over its commit

The run folders are the truth, and Slurm is asked about the rest. Every path is relative, so that a
sweep's folder may be moved.
"""

import getpass
import json
import math
import time
from collections.abc import Collection, Generator
from dataclasses import dataclass, field
from pathlib import Path

from experiments import slurm, store, verdict
from experiments.slurm import JobState, SlurmError
from experiments.spec import RunSpec, TrunkSpec
from experiments.verdict import SubmittedJob

LOOK_SECONDS = 1.0  # between two looks into the folders; Slurm is asked less often
MAX_ASK_SECONDS = 30.0
ASK_AGAIN_SECONDS = 900.0  # a controller that restarts is back by then


@dataclass
class Jobs:
    """The jobs of a sweep as they are now; `note` says why Slurm could not be asked, if so."""

    of_trunk: dict[str, SubmittedJob] = field(default_factory=dict)
    active: dict[str, JobState] = field(default_factory=dict)
    note: str | None = None

    def job(self, trunk_id: str) -> JobState | None:
        """State of the job that is to train or trains the trunk; None if there is none."""
        job = self.of_trunk.get(trunk_id)
        state = self.active.get(job.id) if job and job.id else None
        # Ids are used again after a cluster's database was: the name is this submission's alone.
        return state if state and job and state.name == job.name else None

    def busy(self) -> set[str]:
        """Trunks whose job waits or runs."""
        return {trunk_id for trunk_id in self.of_trunk if self.job(trunk_id)}


def write(sweep: Path, stamp: str, origin: dict[str, str], arrays: list[dict]) -> None:
    """Record a submission.

    `origin` is its user and cluster; `arrays` have a name, job_id (None until sbatch answers),
    mem_gb and jobs: lists of trunk ids.
    """
    path = sweep / "slurm" / stamp / "submission.json"
    store.write_atomic(path, json.dumps({"stamp": stamp, **origin, "arrays": arrays}, indent=1))


def recorded(sweep: Path, why: str) -> Jobs:
    """The sweep's jobs without asking Slurm, because of `why`."""
    of_trunk = _submitted(sweep, asking=False)
    note = f"{why}: states are what the run folders say" if of_trunk else None
    return Jobs(of_trunk=of_trunk, note=note)


def look(sweep: Path) -> Jobs:
    """The sweep's jobs as Slurm sees them now; trunks whose job died get the reason written down.

    Raises SlurmError if Slurm is here and does not answer.
    """
    if not slurm.available():
        return recorded(sweep, "no Slurm on this machine")
    of_trunk = _submitted(sweep, asking=True)
    if not of_trunk:
        return Jobs()
    here = {"user": getpass.getuser(), "cluster": slurm.cluster()}
    for job in of_trunk.values():
        if (job.user, job.cluster) != (here["user"], here["cluster"]):
            why = f"jobs of {job.user} on the cluster {job.cluster} are not to be seen from here"
            return recorded(sweep, why)
    jobs = Jobs(of_trunk=of_trunk, active=slurm.active())
    gone = [
        (job, trunk)
        for trunk in store.trunks(sweep)
        if (job := of_trunk.get(trunk.trunk_id)) and job.id and not jobs.job(trunk.trunk_id)
        if store.missing(sweep, trunk) and not verdict.judged(sweep, job, trunk.trunk_id)
    ]
    if gone:
        over = slurm.ended({job.id for job, _ in gone if job.id})
        for job, trunk in gone:
            verdict.judge(sweep, job, trunk.trunk_id, over.get(job.id or ""))
    return jobs


def run_state(sweep: Path, trunk: TrunkSpec, run: RunSpec, jobs: Jobs) -> store.RunState:
    """State of one run: what the folder says, or `queued`, or `running` on another machine."""
    known = store.run_state(sweep, trunk, run)
    job = jobs.job(trunk.trunk_id)
    if known.result is not None or known.state == "running" or job is None:
        return known
    status = store.read_status(store.trunk_folder(sweep, trunk.trunk_id))
    its_own = status.get("job") == jobs.of_trunk[trunk.trunk_id].id
    if job.state != "PENDING" and its_own and status["state"] in ("running", "failed"):
        return store.RunState(state=status["state"], reason=status.get("reason"), result=None)
    reason = job.reason if job.state == "PENDING" else "its turn in the job has not come"
    return store.RunState(state="queued", reason=reason, result=None)


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
        # A node that cannot end a job keeps it in the queue for days after its last result.
        busy = {t.trunk_id for t in trunks if t.trunk_id in busy and store.missing(sweep, t)}
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
        # What failed in a job that still goes on with others is not in its hand any more.
        at_it = trunk.trunk_id in busy and {"queued", "running"} & set(states.values())
        (in_hand if at_it else open_trunks).append(trunk)
    return Todo(trunks=open_trunks, settled=settled, in_hand=in_hand)


def _submitted(sweep: Path, asking: bool) -> dict[str, SubmittedJob]:
    """The last job of every trunk that was ever submitted.

    With `asking`, Slurm is asked for the ids that a killed submitter could not write down.
    """
    records = [_record(path) for path in sorted(sweep.glob("slurm/*/submission.json"))]
    arrays = [(record, array) for record in records for array in record["arrays"]]
    unanswered = {array["name"] for _, array in arrays if array["job_id"] is None}
    named = slurm.ids_by_name(unanswered) if unanswered and asking else {}
    found = {}
    for record, array in arrays:
        array_id = array["job_id"] or named.get(array["name"])
        for index, trunk_ids in enumerate(array["jobs"]):
            job_id = f"{array_id}_{index}" if len(array["jobs"]) > 1 else array_id
            job = SubmittedJob(
                id=job_id if array_id else None,
                name=array["name"],
                trunk_ids=tuple(trunk_ids),
                submission=record["stamp"],
                user=record["user"],
                cluster=record["cluster"],
                mem_gb=array["mem_gb"],
            )
            found |= dict.fromkeys(trunk_ids, job)
    return found


def _record(path: Path) -> dict:
    try:
        record = json.loads(path.read_text())
        if not record.keys() >= {"stamp", "user", "cluster", "arrays"}:
            raise ValueError("not the record of a submission")
        return record
    except (ValueError, AttributeError) as error:
        raise store.StoreError(
            f"{path}: damaged ({error}); put it back from a copy, or delete {path.parent} once its "
            "jobs have ended"
        ) from None


def mark_cancelled(sweep: Path, jobs: Jobs, trunk_ids: Collection[str]) -> None:
    """Write down that the jobs of these trunks were cancelled.

    Of a waiting element of an array nothing else would tell: Slurm forgets it at once.
    """
    for trunk in store.trunks(sweep):
        job = jobs.of_trunk.get(trunk.trunk_id)
        if not job or trunk.trunk_id not in trunk_ids or not store.missing(sweep, trunk):
            continue
        if not verdict.judged(sweep, job, trunk.trunk_id):
            reason = f"cancelled (job {job.id})"
            verdict.write(sweep, job, trunk.trunk_id, "stopped", reason)
