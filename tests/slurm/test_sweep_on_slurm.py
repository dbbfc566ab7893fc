"""A sweep on a real Slurm: submitted, followed, extended, cancelled, read from other processes."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from cluster_user import ROOT, Suite, output, until

pytestmark = pytest.mark.slurm
SEEDS = "grid.seeds=[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]"
SHORT = "grid.tokens=[12_800]"
LONG = "grid.tokens=[5_120_000]"  # minutes


def overlap(jobs: list[str]) -> int:
    """The most of `jobs` that ran at one time, by sacct."""
    columns = "JobID,Start,End"
    lines = output("sacct", "-n", "-X", "-P", "-j", ",".join(jobs), "-o", columns).splitlines()
    moments = []
    for line in lines:
        _, start, end = line.split("|")
        moments += [(start, 1), (end, -1)]
    most = now = 0
    for _, change in sorted(moments):  # at one second an end comes before a start
        now += change
        most = max(most, now)
    return most


def test_twelve_runs_three_at_once_one_of_them_fails(suite: Suite) -> None:
    # A damaged checkpoint is what makes one run fail: the other eleven have to finish.
    code, out, err = suite("plan", "it.toml", SEEDS, SHORT, "--json", "plan.json")
    assert code == 0, err
    runs = json.loads((suite.folder / "plan.json").read_text())["runs"]
    bad = suite.sweep() / "trunks" / runs[4]["trunk_id"]
    bad.mkdir(parents=True)
    (bad / "latest.pt").write_bytes(b"no checkpoint")
    code, out, err = suite.run(SEEDS, SHORT, "launch.slurm.array_parallelism=3", "--wait")
    assert code == 1, (out, err)
    assert "submitted 12 jobs in 1 arrays" in out
    assert "damaged" in err
    assert "--retry-failed" in err
    jobs = suite.jobs()
    assert len(jobs) == 12
    assert overlap(jobs) <= 3
    frame = suite.results()
    assert list(frame["status"].value_counts().sort_index()) == [1, 11]
    # Again: a failed run is not trained again by itself, and nothing is submitted.
    code, out, err = suite.run(SEEDS, SHORT)
    assert code == 1, (out, err)
    assert len(suite.jobs()) == 12
    (bad / "latest.pt").unlink()
    code, out, err = suite.run(SEEDS, SHORT, "--retry-failed", "--wait", "--max-parallel", "2")
    assert code == 0, (out, err)
    assert "submitted 1 jobs" in out
    assert len(suite.jobs()) == 13
    pd.testing.assert_frame_equal(suite.results(), suite.whole(SEEDS, SHORT), check_exact=True)


def test_the_submitter_is_killed_and_the_folder_moves(suite: Suite) -> None:
    seeds = "grid.seeds=[0, 1, 2]"
    words = ("it.toml", "launch.executor=slurm", seeds, "grid.tokens=[512_000, 768_000]")
    process = suite.start("run", *words, "--wait")
    until("a run in training", suite.training)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    code, out, err = suite("status", "runs/it", "--json")
    assert code == 0, err
    rows = json.loads(out)
    assert {row["state"] for row in rows} <= {"running", "queued", "ok"}
    assert all(row["job"] for row in rows)
    code, out, err = suite("run", *words, "--wait")  # nothing is submitted again
    assert code == 0, (out, err)
    assert "0 trunks to train" in out
    assert len(suite.jobs()) == 3
    moved = suite.folder / "elsewhere" / "it"
    moved.parent.mkdir()
    shutil.move(suite.sweep(), moved)
    code, out, err = suite("status", moved, "--json")
    assert code == 0, err
    rows = json.loads(out)
    assert [row["state"] for row in rows] == ["ok"] * 6
    assert all((moved / row["log"]).exists() for row in rows)
    code, out, err = suite("collect", moved)
    assert code == 0, err
    assert "6 ok" in out
    assert "Job completed successfully" in suite("logs", moved)[1]


def test_cancel_one_then_all_then_go_on(suite: Suite) -> None:
    sizes = "grid.sizes=[{ d_model = 8, seeds = [0, 1, 2] }]"
    code, out, err = suite.run(sizes, LONG)
    assert code == 0, (out, err)
    assert out.splitlines()[-1] == "next: python -m experiments.sweep status runs/it"

    def state() -> dict[str, str]:
        rows = json.loads(suite("status", "runs/it", "--json")[1])
        return {row["run_id"]: row["state"] for row in rows}

    until("all in training", lambda: len(suite.training()) == 3)
    assert set(state().values()) == {"running"}
    first, *others = state()
    code, out, err = suite("cancel", "runs/it", first)
    assert code == 0, (out, err)
    assert "cancelled 1 jobs" in out
    assert state()[first] == "stopped"
    assert {state()[each] for each in others} == {"running"}
    told = suite("status", "runs/it", first)[1]
    assert "cancelled" in told
    assert suite("cancel", "runs/it", "nonesuch")[0] == 2
    # `logs -f` of a run ends when the run does.
    follower = suite.start("logs", "runs/it", others[0], "-f")
    code, out, err = suite("cancel", "runs/it")
    assert code == 0, (out, err)
    assert "cancelled 2 jobs" in out
    told, err = follower.communicate(timeout=60)
    assert "from step 0" in told, (told, err)
    assert set(state().values()) == {"stopped"}
    assert list(suite.sweep().glob("trunks/*/latest.pt"))
    assert "nothing to cancel" in suite("cancel", "runs/it")[1]
    # The same config again takes up all three, from their checkpoints.
    code, out, err = suite.run(sizes, LONG)
    assert "3 trunks to train" in out
    until("all in training again", lambda: len(suite.training()) == 3)
    assert suite.logs().count("from step 0 of") == 3
    assert suite.logs().count("D=5120000 from step") == 6
    suite("cancel", "runs/it")


def test_the_code_that_was_submitted_is_the_code_that_runs(suite: Suite) -> None:
    code = suite.folder / "code"
    subprocess.run(["git", "clone", "-q", ROOT, code], check=True)
    mine = Suite(suite.folder, code)
    model = code / "minigpt" / "model.py"
    model.write_text(model.read_text() + "\n# a change of mine\n")
    done, out, err = mine.run(SHORT, "launch.slurm.sbatch={ begin = 'now+6' }")
    assert done == 0, (out, err)
    submission = next(suite.sweep().glob("slurm/*/submission.json")).parent
    assert "+# a change of mine" in (submission / "changes.diff").read_text()
    model.write_text("raise SystemExit('the checkout went on')\n")
    done, out, err = suite.run(SHORT, "--wait")
    assert done == 0, (out, err)
    frame = pd.read_parquet(suite.sweep() / "results.parquet")
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=code, capture_output=True, text=True, check=True
    )
    assert list(frame["git_commit"]) == [head.stdout.strip()]
    assert list(frame["git_dirty"]) == [True]


def test_packs_and_tiers_make_arrays_of_equal_resources(suite: Suite) -> None:
    words = (
        "grid.sizes=[{ d_model = 8, seeds = [0, 1, 2, 3] }, { d_model = 16, seeds = [0, 1] }]",
        SHORT,
        "launch.slurm.runs_per_job=2",
        "launch.slurm.tiers=[{ n_total = 8_000, gpus_per_node = 1, cpus_per_task = 2 }]",
        "launch.price_per_device_hour=3",
    )
    code, out, err = suite("plan", "it.toml", "launch.executor=slurm", "--measure", *words)
    assert code == 0, (out, err)
    assert "measured 2 shapes" in out
    assert "--gpus-per-node=1" in out
    assert "--array=0-1%2" in out
    assert "at 3 per device-hour" in out
    assert "times less than each run alone" in out
    code, out, err = suite.run(*words, "--wait")
    assert code == 0, (out, err)
    assert "submitted 3 jobs in 2 arrays" in out
    lines = output("sacct", "-n", "-X", "-P", "-j", ",".join(suite.jobs()), "-o", "AllocTRES")
    assert sorted("gres/gpu=1" in line for line in lines.splitlines()) == [False, False, True]
    pd.testing.assert_frame_equal(suite.results(), suite.whole(*words), check_exact=True)


def test_a_setup_line_that_fails_fails_the_run_with_that_reason(suite: Suite) -> None:
    words = (SHORT, "launch.slurm.setup=['echo hello', 'module load nonesuch']")
    code, out, err = suite.run(*words, "--wait")
    assert code == 1, (out, err)
    assert "setup failed: module load nonesuch" in err
    frame = pd.read_parquet(Path(suite.sweep(), "results.parquet"))
    assert list(frame["status"]) == ["failed"]
