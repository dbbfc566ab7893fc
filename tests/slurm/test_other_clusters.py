"""A cluster of another kind: arrays of four elements at most, no accounting.

It is there after `cluster.py start --max-array 4 --no-accounting`. One test takes node1 away, so
the others stay on node0.
"""

import json
import os
import re
import signal
import subprocess

import cluster
import pandas as pd
import pytest
from cluster_user import Suite, kill, output, until

pytestmark = pytest.mark.small_slurm
NODE0 = "launch.slurm.sbatch={ nodelist = 'node0' }"
NODE1 = NODE0.replace("node0", "node1")


def test_arrays_are_cut_at_the_size_that_the_cluster_allows(suite: Suite) -> None:
    words = ("grid.seeds=[0, 1, 2, 3, 4, 5]", "grid.tokens=[12_800]")
    assert subprocess.run(["sacct"], capture_output=True).returncode != 0
    code, out, err = suite.run(*words, NODE0, "--wait")
    assert code == 0, (out, err)
    assert "submitted 6 jobs in 2 arrays" in out
    assert "sacct does not answer" in err
    (record,) = suite.sweep().glob("slurm/*/submission.json")
    arrays = json.loads(record.read_text())["arrays"]
    assert [len(array["jobs"]) for array in arrays] == [3, 3]
    pd.testing.assert_frame_equal(suite.results(), suite.whole(*words), check_exact=True)


def test_killed_and_cancelled_jobs_are_not_waited_for(suite: Suite) -> None:
    words = ("grid.seeds=[0, 1, 2]", "grid.tokens=[5_120_000]", "launch.checkpoint_seconds=1")
    process = suite.start("run", "it.toml", "launch.executor=slurm", *words, NODE0, "--wait")
    until("three jobs in training", lambda: len(suite.training()) == 3)
    killed, cancelled, last = (status["job"] for status in suite.training())
    kill(killed)
    subprocess.run(["scancel", cancelled], check=True)
    array = killed.partition("_")[0]
    left = ("squeue", "-h", "-r", "-j", array, "-o", "%i")
    until("two jobs less", lambda: output(*left).split() == [last])
    subprocess.run(["scancel", last], check=True)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, (out, err)
    rows = {row["job"]: row for row in json.loads(suite("status", "runs/it", "--json")[1])}
    assert rows[killed]["state"] == "failed"
    assert rows[cancelled]["state"] == "stopped"
    assert "cancelled" in rows[cancelled]["reason"]


def test_out_of_memory_without_accounting(suite: Suite) -> None:
    words = ("grid.sizes=[{ d_model = 1024, n_layers = 4 }]", "grid.tokens=[12_800]")
    code, out, err = suite.run(*words, "launch.slurm.mem_gb=1.2", NODE0, "--wait")
    assert code == 1, (out, err)
    assert "out of memory" in err


def test_a_node_fails(suite: Suite) -> None:
    """Its daemon and all that it ran are gone; when it is back Slurm starts the job again."""
    words = ("grid.tokens=[2_560_000]", "launch.checkpoint_seconds=1")
    assert suite.run(*words, NODE1)[0] == 0
    statuses = until("a run in training", suite.training)
    assert isinstance(statuses, list)
    until("a checkpoint", lambda: list(suite.sweep().glob("trunks/*/latest.pt")))
    job = statuses[0]["job"]
    daemon = output("pgrep", "-f", "slurmd -N node1$").split()
    steps = output("pgrep", "-f", rf"slurmstepd: \[{job}\.").split()
    for pid in (*daemon, *steps):
        os.kill(int(pid), signal.SIGKILL)
    kill(job)
    output("scontrol", "update", "nodename=node1", "state=down", "reason=test")
    waiting = ("squeue", "-h", "-j", job, "-o", "%T")
    until("its return to the queue", lambda: "PENDING" in output(*waiting))
    cluster.start(max_array=4, accounting=False)
    code, out, err = suite.run(*words, NODE1, "--wait")
    assert code == 0, (out, err, suite.logs())
    assert "1 in jobs already" in out
    (log,) = suite.sweep().glob("trunks/*/log.txt")
    first, second = re.findall(r"from step (\d+) of", log.read_text())
    assert first == "0"
    assert int(second) > 0
    pd.testing.assert_frame_equal(suite.results(), suite.whole(*words), check_exact=True)
