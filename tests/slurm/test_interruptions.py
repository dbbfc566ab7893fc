"""What ends a job early on a real Slurm: the run goes on at the right step, to the same bits."""

import json
import os
import signal

import pandas as pd
import pytest
from cluster_user import Suite, kill, output, restarts, until

pytestmark = pytest.mark.slurm
# About ten seconds of training on an idle core, in two horizons.
WORDS = (
    "grid.sizes=[{ d_model = 32 }]",
    "grid.tokens=[512_000, 768_000]",
    "train.batch.tokens=512",
    "launch.checkpoint_seconds=2",
)


def job(suite: Suite) -> str:
    """Id of the sweep's only job, once its training has got somewhere."""

    statuses = until("a run in training", suite.training)
    assert isinstance(statuses, list)
    return statuses[0]["job"]


def finish(suite: Suite) -> None:
    """Follow the job to its end: the same losses as without interruption, and it did resume."""
    code, out, err = suite.run(*WORDS, "--wait")
    assert code == 0, (out, err, suite.logs())
    assert "0 trunks to train" in out  # the job went on by itself
    assert len(suite.jobs()) == 1
    assert len(suite.starts()) > 1, suite.starts()
    assert all(step > 0 for step in suite.starts()[1:]), suite.starts()
    pd.testing.assert_frame_equal(suite.results(), suite.whole(*WORDS), check_exact=True)


def test_preemption_by_another_partition(suite: Suite) -> None:
    # GPUs are what the two jobs cannot both have: nothing else here asks for two.
    node = "launch.slurm.sbatch={ nodelist = 'node1' }"
    words = ("launch.slurm.partition=low", "launch.slurm.gpus_per_node=2", node)
    code, out, err = suite.run(*WORDS, *words)
    assert code == 0, (out, err)
    mine = job(suite)
    rival = ("-p", "high", "-w", "node1", "--gpus-per-node=2", "--mem=100M", "-o", "/dev/null")
    other = output("sbatch", "--parsable", *rival, "--wrap", "sleep 3").strip()
    until("the preemption", lambda: restarts(mine) == 1)
    finish(suite)
    assert "this job is preempted" in suite.logs()
    until("its end", lambda: "COMPLETED" in output("sacct", "-nXP", "-j", other, "-o", "State"))


def test_requeue_by_hand_asks_no_checkpoint(suite: Suite) -> None:
    assert suite.run(*WORDS)[0] == 0
    mine = job(suite)
    until("a checkpoint", lambda: list(suite.sweep().glob("trunks/*/latest.pt")))
    output("scontrol", "requeue", mine)
    finish(suite)
    assert restarts(mine) == 1


def test_out_of_memory_is_the_reason_and_the_rest_finishes(suite: Suite) -> None:
    words = (
        "grid.sizes=[{ d_model = 8 }, { d_model = 1024, n_layers = 4 }]",
        "grid.tokens=[12_800]",
        "launch.slurm.mem_gb=1.2",
    )
    code, out, err = suite.run(*words, "--wait")
    assert code == 1, (out, err)
    assert "out of memory (1.2 GB" in err
    frame = pd.read_parquet(suite.sweep() / "results.parquet").sort_values("d_model")
    assert list(frame["status"]) == ["ok", "failed"]
    assert frame["reason"].iloc[1].startswith("out of memory")
    rows = json.loads(suite("status", "runs/it", "--json")[1])
    assert {row["state"] for row in rows} == {"ok", "failed"}


def test_a_killed_worker_fails_its_trunk_only(suite: Suite) -> None:
    words = ("grid.seeds=[0, 1]", "grid.tokens=[512_000]", "launch.slurm.runs_per_job=2")
    assert suite.run(*words)[0] == 0
    statuses = until("a worker", suite.training)
    assert isinstance(statuses, list)
    os.kill(statuses[0]["pid"], signal.SIGKILL)
    code, out, err = suite.run(*words, "--wait")
    assert code == 1, (out, err)
    assert "killed by SIGKILL" in err
    frame = pd.read_parquet(suite.sweep() / "results.parquet")
    assert sorted(frame["status"]) == ["failed", "ok"]
    code, out, err = suite.run(*words, "--wait", "--retry-failed")
    assert code == 0, (out, err)
    pd.testing.assert_frame_equal(suite.results(), suite.whole(*words), check_exact=True)


def test_everything_of_a_job_is_killed(suite: Suite) -> None:
    """SIGKILL to all processes of a job, as when its node loses power: nobody says anything."""
    assert suite.run(*WORDS)[0] == 0
    mine = job(suite)
    until("a checkpoint", lambda: list(suite.sweep().glob("trunks/*/latest.pt")))
    kill(mine)
    until("the job's end", lambda: mine not in output("squeue", "-h", "-o", "%i"))
    code, out, err = suite.run(*WORDS)  # says why, and submits nothing by itself
    assert code == 1, (out, err)
    assert f"job {mine}, slurm/" in err
    assert len(suite.jobs()) == 1
    code, out, err = suite.run(*WORDS, "--retry-failed", "--wait")
    assert code == 0, (out, err)
    assert suite.starts()[1] > 0
    pd.testing.assert_frame_equal(suite.results(), suite.whole(*WORDS), check_exact=True)
