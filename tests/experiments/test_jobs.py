"""What is said of a run whose Slurm job is gone, for every way in which Slurm tells of it.

The commands of Slurm are stand-ins here: states that a small real Slurm cannot produce are among
them. What the real one does is tested in tests/slurm.
"""

import getpass
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import jobs, manifest, slurm, store
from experiments.prepare import prepare
from experiments.resources import Resources

Sweep = Callable[..., tuple[int, str, str]]
NAME = "micro.260101-000000-abcd.0"
ORIGIN = {"user": getpass.getuser(), "cluster": "test"}
WORDS = ("grid.tokens=[6400]", "grid.sizes=[{ d_model = 8 }]", "grid.seeds=[0, 1]")


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, int], None]:
    """`command(name, output, code)` puts a stand-in for one of Slurm's commands on the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(slurm.shutil, "which", lambda name: str(folder / name))

    def make(name: str, text: str = "", code: int = 0) -> None:
        config = "echo 'ClusterName = test'; echo 'MaxArraySize = 1001'; exit"
        case = f'[ "$2" = config ] && {{ {config}; }}' if name == "scontrol" else ""
        (folder / name).write_text(f"#!/bin/sh\n{case}\ncat <<'END'\n{text}\nEND\nexit {code}\n")
        (folder / name).chmod(0o755)

    for name in ("squeue", "sacct", "scontrol", "scancel", "sbatch"):
        make(name)
    return make


@pytest.fixture
def dead(micro: Path) -> Callable[..., Path]:
    """A sweep of two trunks in one job, 12_0, which was training the first when it ended."""

    def make(log: str = "", state: str = "running", job: str = "12_0") -> Path:
        config, corpus, planned = prepare(micro, list(WORDS))
        folder = config.folder
        folder.mkdir(parents=True)
        manifest.write(config, corpus, planned)
        for trunk in planned:
            store.write_spec(folder, trunk)
        trunks = store.trunks(folder)
        if state:
            store.write_status(folder / "trunks" / trunks[0].trunk_id, state, job=job)
        place = folder / "slurm" / "260101-000000-abcd"
        (place / "12_0").mkdir(parents=True)
        (place / "12_0" / "12_0_0_log.out").write_text(log)
        entry = {
            "name": NAME,
            "job_id": "12",
            "mem_gb": 4.0,
            "jobs": [[trunk.trunk_id for trunk in trunks], ["another"]],
        }
        jobs.write(folder, place.name, ORIGIN, [entry])
        return folder

    return make


def states(folder: Path) -> list[tuple[str, str | None]]:
    known = jobs.look(folder)
    found = [
        jobs.run_state(folder, trunk, run, known)
        for trunk in store.trunks(folder)
        for run in trunk.runs
    ]
    return [(state.state, state.reason) for state in found]


@pytest.mark.parametrize(
    ("sacct", "log", "state", "reason"),
    [
        ("OUT_OF_MEMORY|x|0:125", "", "failed", "out of memory (4 GB; job 12_0"),
        ("FAILED|x|9:0", "slurmstepd: error: Detected 1 oom-kill event(s)", "failed", "out of mem"),
        ("FAILED|x|9:0", "error: Job 12 exceeded memory limit (9 > 4)", "failed", "out of memory"),
        ("FAILED|x|1:0", "Traceback (most recent call last):\nKeyError: 'x'", "failed", "KeyError"),
        ("FAILED|x|1:0", "", "failed", "FAILED 1:0: its log says nothing (job 12_0, slurm/2601"),
        ("CANCELLED by 0|x|0:0", "", "stopped", "cancelled (job 12_0)"),
        ("TIMEOUT|x|0:0", "", "stopped", "time limit (job 12_0, "),
        ("FAILED|x|1:0", "not requeued because: timed-out too many times.", "stopped", "requeued"),
        ("NODE_FAIL|x|0:0", "", "stopped", "its node failed, and Slurm did not requeue"),
        ("FAILED|x|1:0", "could not find submitted jobs in", "stopped", "submitting process was"),
        ("PREEMPTED|x|0:0", "", "stopped", "preempted and not requeued by Slurm"),
    ],
)
def test_verdicts(
    dead: Callable[..., Path],
    command: Callable[..., None],
    sacct: str,
    log: str,
    state: str,
    reason: str,
) -> None:
    folder = dead(log)
    command("sacct", f"12_0|{sacct}")
    first, second = states(folder)
    assert first[0] == state
    assert reason in (first[1] or "")
    assert second == ("missing", None)  # its turn never came: it is trained next time
    command("sacct", "", 1)
    assert states(folder) == [first, second]  # once judged it stays so


def test_a_job_that_slurm_no_longer_knows(
    dead: Callable[..., Path], command: Callable[..., None]
) -> None:
    folder = dead("srun: error: node7: task 0: Killed\nsomething went wrong")
    command("sacct", "Slurm accounting storage is disabled", 1)
    command("scontrol", "slurm_load_jobs error: Invalid job id specified", 1)
    (state, reason), _ = states(folder)
    assert state == "failed"
    assert "no longer knows how: something went wrong" in (reason or "")


def test_without_accounting_the_controller_remembers(
    dead: Callable[..., Path], command: Callable[..., None]
) -> None:
    folder = dead()
    command("sacct", "", 1)
    line = "JobId=13 ArrayJobId=12 ArrayTaskId=0 JobName=x JobState=TIMEOUT ExitCode=0:0"
    command("scontrol", line)
    assert states(folder)[0][0] == "stopped"


def test_sacct_that_lags_is_not_believed(
    dead: Callable[..., Path], command: Callable[..., None]
) -> None:
    folder = dead()
    command("sacct", "12_0|RUNNING|x|0:0")
    command("scontrol", "JobId=12 ArrayJobId=12 ArrayTaskId=0 JobState=OUT_OF_MEMORY ExitCode=0:9")
    assert "out of memory" in (states(folder)[0][1] or "")


def test_a_job_that_never_began_takes_all_its_trunks_with_it(
    dead: Callable[..., Path], command: Callable[..., None]
) -> None:
    folder = dead("error: a line of [launch.slurm] setup failed: module load x", state="")
    command("sacct", "12_0|FAILED|x|1:0")
    assert [state for state, _ in states(folder)] == ["failed", "failed"]
    assert "setup failed: module load x" in (states(folder)[0][1] or "")


@pytest.mark.parametrize(
    ("squeue", "status", "expected"),
    [
        (f"12_0|PENDING|{NAME}|Priority", "", ["queued", "queued"]),
        (f"12_0|PENDING|{NAME}|BeginTime", "stopped", ["queued", "queued"]),
        (f"12_0|RUNNING|{NAME}|None", "running", ["running", "queued"]),
        (f"12_0|COMPLETING|{NAME}|None", "failed", ["failed", "queued"]),
    ],
)
def test_a_job_that_is_not_over_is_not_judged(
    dead: Callable[..., Path],
    command: Callable[..., None],
    squeue: str,
    status: str,
    expected: list[str],
) -> None:
    folder = dead(state=status)
    command("squeue", squeue)
    assert [state for state, _ in states(folder)] == expected
    assert jobs.look(folder).busy() >= {trunk.trunk_id for trunk in store.trunks(folder)}


def test_what_an_older_job_said_is_not_said_of_a_waiting_one(
    dead: Callable[..., Path], command: Callable[..., None]
) -> None:
    folder = dead(state="failed", job="7")
    command("squeue", f"12_0|PENDING|{NAME}|Priority")
    assert [state for state, _ in states(folder)] == ["queued", "queued"]


def test_a_run_that_was_trained_here_since_is_not_judged(
    dead: Callable[..., Path], command: Callable[..., None]
) -> None:
    folder = dead(state="stopped", job="")
    command("sacct", "12_0|FAILED|x|1:0")
    assert states(folder)[0] == ("stopped", None)


def test_held_jobs_are_not_waited_for(
    dead: Callable[..., Path], command: Callable[..., None]
) -> None:
    folder = dead(state="")
    command("squeue", f"12_0|PENDING|{NAME}|launch failed requeued held")
    assert list(jobs.poll(folder, store.trunks(folder))) == [set()]


def test_a_submitter_killed_before_it_knew_the_job_id(
    dead: Callable[..., Path], command: Callable[..., None]
) -> None:
    folder = dead(state="")
    (record,) = folder.glob("slurm/*/submission.json")
    arrays = json.loads(record.read_text())["arrays"]
    jobs.write(folder, record.parent.name, ORIGIN, [{**arrays[0], "job_id": None}])
    command("squeue", f"12|{arrays[0]['name']}\n12_0|PENDING|{arrays[0]['name']}|Priority")
    known = jobs._submitted(folder, asking=True)
    assert {job.id for job in known.values()} == {"12_0", "12_1"}
    command("squeue", "")
    assert states(folder)[0] == ("missing", None)  # sbatch never took it: it is submitted next time


def test_a_busy_cluster_is_not_waited_for(tmp_path: Path, command: Callable[..., None]) -> None:
    """No node is free to be asked whether it sees the folder: that is a remark, no refusal."""
    command("srun", "", 1)
    srun = tmp_path / "bin" / "srun"
    told = "srun: error: Unable to allocate resources: Requested nodes are busy"
    srun.write_text(f"#!/bin/sh\necho '{told}' >&2\nexit 1\n")
    remark = slurm.see(tmp_path, "/usr/bin/python3", Resources())
    assert remark == "Unable to allocate resources: Requested nodes are busy"


@pytest.mark.parametrize(
    ("code", "told"), [(41, "no such folder"), (42, "another folder"), (44, "python3 is not there")]
)
def test_what_a_node_says_of_the_folder(
    tmp_path: Path, command: Callable[..., None], code: int, told: str
) -> None:
    command("srun", "", code)
    with pytest.raises(slurm.SlurmError, match=told):
        slurm.see(tmp_path, "/usr/bin/python3", Resources())


def test_without_slurm_the_folder_speaks(
    dead: Callable[..., Path], sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = dead()
    monkeypatch.setattr(slurm.shutil, "which", lambda name: None)
    code, out, err = sweep("status", folder)
    assert code == 0, err
    assert "note: no Slurm on this machine" in out
    code, _, err = sweep("cancel", folder)
    assert code == 2
    assert "no Slurm on this machine" in err


def test_a_controller_that_is_down(
    dead: Callable[..., Path], command: Callable[..., None], sweep: Sweep
) -> None:
    folder = dead()
    command("squeue", "", 1)
    for verb in ("status", "logs", "collect"):
        assert sweep(verb, folder)[0] == 0, verb
    assert "states are what the run folders say" in sweep("status", folder)[1]
    assert sweep("cancel", folder)[0] == 2


def test_no_sbatch_is_said_before_anything_is_made_ready(
    sweep: Sweep, micro: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    code, _, err = sweep("run", micro, *WORDS, "launch.executor=slurm")
    assert code == 2
    assert "no sbatch on this machine; run on a login node" in err
    assert not list((micro.parent / "runs" / "micro").glob("slurm/*"))


def test_an_id_of_somebody_elses_job_is_not_ours(
    dead: Callable[..., Path], command: Callable[..., None], sweep: Sweep
) -> None:
    folder = dead()
    command("squeue", "12_0|RUNNING|other-work|None")
    command("sacct", "12_0|TIMEOUT|x|0:0")
    assert states(folder)[0][0] == "stopped"
    command("scancel", "", 1)  # would be an error, were it called
    assert "nothing to cancel" in sweep("cancel", folder)[1]


@pytest.mark.parametrize("key", ["user", "cluster"])
def test_jobs_of_another_user_or_cluster_are_not_judged(
    dead: Callable[..., Path], command: Callable[..., None], sweep: Sweep, micro: Path, key: str
) -> None:
    folder = dead(state="")
    (record,) = folder.glob("slurm/*/submission.json")
    arrays = json.loads(record.read_text())["arrays"]
    jobs.write(folder, record.parent.name, {**ORIGIN, key: "other"}, arrays)
    command("sacct", "12_0|FAILED|x|1:0")
    assert [state for state, _ in states(folder)] == ["missing", "missing"]
    code, _, err = sweep("run", micro, *WORDS, "launch.executor=slurm")
    assert code == 2
    assert "are not to be seen from here" in err
    assert "are not to be seen from here" in sweep("status", folder)[1]


def test_the_kernel_killed_a_worker_and_the_job_went_on(
    dead: Callable[..., Path], command: Callable[..., None]
) -> None:
    folder = dead()
    trunk = store.trunks(folder)[0].trunk_id
    told = {"job": "12_0", "reason": "its worker was killed by SIGKILL", "signal": "SIGKILL"}
    store.write_status(folder / "trunks" / trunk, "failed", **told)
    command("sacct", "12_0|FAILED|x|1:0")
    assert states(folder)[0] == ("failed", told["reason"])
    command("sacct", "12_0|OUT_OF_MEMORY|x|0:125")
    assert "out of memory (4 GB" in (states(folder)[0][1] or "")


def test_accounting_that_hangs_is_done_without(
    dead: Callable[..., Path], command: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = dead()
    monkeypatch.setattr(slurm, "ACCOUNTS_SECONDS", 0.5)
    command("sacct", "")
    sacct = folder.parents[1] / "bin" / "sacct"
    sacct.write_text("#!/bin/sh\nexec sleep 60\n")
    command("scontrol", "JobId=12 ArrayJobId=12 ArrayTaskId=0 JobState=TIMEOUT ExitCode=0:0")
    assert states(folder)[0][0] == "stopped"


def test_a_damaged_record_is_named(dead: Callable[..., Path], sweep: Sweep) -> None:
    folder = dead()
    (record,) = folder.glob("slurm/*/submission.json")
    record.write_text("{")
    code, _, err = sweep("status", folder)
    assert code == 2
    assert f"{record}: damaged" in err
