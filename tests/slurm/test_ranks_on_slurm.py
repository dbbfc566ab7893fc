"""One model on two nodes of a real Slurm equals one process, also through interruptions."""

import json
import os
import re
import signal

import pandas as pd
import pytest
from cluster_user import Suite, output, until

pytestmark = pytest.mark.slurm
WORDS = ("grid.sizes=[{ d_model = 16 }]", "grid.tokens=[76_800, 102_400]")
TWO_NODES = ("launch.ranks=2", "launch.slurm.nodes=2")


def assert_equal(found: pd.DataFrame, whole: pd.DataFrame) -> None:
    """The same runs, and losses within the tolerance of float32 sums in another order."""
    assert list(found["run_id"]) == list(whole["run_id"])
    assert list(found["status"]) == ["ok"] * len(whole)
    for column in ("val_loss", "val_loss_se", "train_loss"):
        assert list(found[column]) == pytest.approx(list(whole[column]), rel=1e-3), column


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_nodes_equal_one_process(suite: Suite, strategy: str) -> None:
    code, out, err = suite.run(*WORDS, *TWO_NODES, f"launch.strategy={strategy}", "--wait")
    assert code == 0, (out, err, suite.logs())
    frame = pd.read_parquet(suite.sweep() / "results.parquet")
    assert set(frame["world_size"]) == {2}
    assert set(frame["batch_tokens"]) == {256}
    (job,) = suite.jobs()
    nodes = output("sacct", "-n", "-X", "-P", "-j", job, "-o", "NNodes,NTasks,AllocCPUS")
    assert nodes.startswith("2|")
    assert_equal(suite.results(), suite.whole(*WORDS))


@pytest.mark.timeout(600)  # jobs of other tests can keep it waiting for both nodes
def test_two_ranks_are_requeued_together(suite: Suite) -> None:
    words = (WORDS[0], "grid.tokens=[2_048_000]", "launch.checkpoint_seconds=1")
    limits = ("launch.slurm.gpus_per_node=1", "launch.slurm.partition=low")
    assert suite.run(*words, *TWO_NODES, *limits)[0] == 0
    (latest,) = until("a checkpoint", lambda: list(suite.sweep().glob("trunks/*/latest.pt")))  # type: ignore[misc]
    rival = ("-p", "high", "-N2", "--gpus-per-node=2", "--mem=100M", "-o", "/dev/null")
    output("sbatch", *rival, "--wrap", "sleep 1")
    code, out, err = suite.run(*words, *TWO_NODES, *limits, "--wait", seconds=500)
    assert code == 0, (out, err, suite.logs())
    log = (latest.parent / "log.txt").read_text()
    starts = [int(step) for step in re.findall(r"from step (\d+) of", log)]
    assert len(starts) > 1  # rivals of other tests may have preempted it too
    assert starts == sorted(set(starts))
    assert len(suite.jobs()) == 1
    assert suite.results()["status"].eq("ok").all()


def test_a_killed_rank_ends_the_job_with_a_reason(suite: Suite) -> None:
    words = (WORDS[0], "grid.tokens=[2_560_000]", "launch.checkpoint_seconds=1")
    assert suite.run(*words, *TWO_NODES)[0] == 0
    (latest,) = until("a checkpoint", lambda: list(suite.sweep().glob("trunks/*/latest.pt")))  # type: ignore[misc]
    status = json.loads((latest.parent / "status.json").read_text())
    os.kill(status["pid"], signal.SIGKILL)
    code, out, err = suite.run(*words, *TWO_NODES, "--wait")
    assert code == 1, (out, err)
    rows = json.loads(suite("status", "runs/it", "--json")[1])
    assert [row["state"] for row in rows] == ["failed"]
    assert rows[0]["reason"].startswith("rank 1 of 2: ")
    shorter = (WORDS[0], "grid.tokens=[25_600]")
    code, out, err = suite.run(*shorter, *TWO_NODES, "--retry-failed", "--wait")
    assert code == 0, (out, err, suite.logs())
