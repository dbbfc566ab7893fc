"""Clusters that differ: arrays of four, no accounting. They restart the cluster: run alone."""

import json
import os
import re
import signal
import subprocess

import cluster
import pandas as pd
import pytest
from cluster_user import Suite, kill, output, until

pytestmark = [pytest.mark.slurm, pytest.mark.restarts_slurm]


@pytest.fixture(scope="module", autouse=True)
def small_cluster():
    """MaxArraySize 4 and no slurmdbd, then the usual cluster again."""
    cluster.start(max_array=4, accounting=False)
    yield
    cluster.start()


def test_arrays_are_cut_at_the_size_that_the_cluster_allows(suite: Suite) -> None:
    words = ("grid.seeds=[0, 1, 2, 3, 4, 5]", "grid.tokens=[12_800]")
    assert subprocess.run(["sacct"], capture_output=True).returncode != 0
    code, out, err = suite.run(*words, "--wait")
    assert code == 0, (out, err)
    assert "submitted 6 jobs in 2 arrays" in out
    assert "sacct does not answer" in err
    (record,) = suite.sweep().glob("slurm/*/submission.json")
    arrays = json.loads(record.read_text())["arrays"]
    assert [len(array["jobs"]) for array in arrays] == [3, 3]
    pd.testing.assert_frame_equal(suite.results(), suite.whole(*words), check_exact=True)


def test_killed_and_cancelled_jobs_are_not_waited_for(suite: Suite) -> None:
    words = ("grid.seeds=[0, 1, 2]", "grid.tokens=[5_120_000]", "launch.checkpoint_seconds=1")
    process = suite.start("run", "it.toml", "launch.executor=slurm", *words, "--wait")

    def training() -> list[str]:
        rows = json.loads(suite("status", "runs/it", "--json")[1]) if suite.sweep().exists() else []
        jobs = [row["job"] for row in rows if row["state"] == "running" and row["step"]]
        return jobs if len(jobs) == 3 else []

    killed, cancelled, last = until("three jobs in training", training)  # type: ignore[misc]
    kill(killed)
    subprocess.run(["scancel", cancelled], check=True)
    until("two jobs less", lambda: len(output("squeue", "-h", "-r", "-o", "%i").split()) == 1)
    subprocess.run(["scancel", last], check=True)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, (out, err)
    rows = {row["job"]: row for row in json.loads(suite("status", "runs/it", "--json")[1])}
    assert rows[killed]["state"] == "failed"
    assert rows[cancelled]["state"] == "stopped"
    assert "cancelled" in rows[cancelled]["reason"]


def test_out_of_memory_without_accounting(suite: Suite) -> None:
    words = ("grid.sizes=[{ d_model = 1024, n_layers = 4 }]", "grid.tokens=[12_800]")
    code, out, err = suite.run(*words, "launch.slurm.mem_gb=1.2", "--wait")
    assert code == 1, (out, err)
    assert "out of memory" in err


def test_a_node_fails(suite: Suite) -> None:
    """Its daemon and all that it ran are gone: Slurm gives the job to the other node."""
    words = ("grid.tokens=[1_280_000]", "launch.checkpoint_seconds=1")
    assert suite.run(*words)[0] == 0
    (latest,) = until("a checkpoint", lambda: list(suite.sweep().glob("trunks/*/latest.pt")))  # type: ignore[misc]
    job, node = output("squeue", "-h", "-o", "%i %N").split()
    pid = output("pgrep", "-f", f"slurmd -N {node}$").split()
    steps = output("pgrep", "-f", rf"slurmstepd: \[{job}\.").split()
    for each in (*pid, *steps):
        os.kill(int(each), signal.SIGKILL)
    kill(job)
    output("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    code, out, err = suite.run(*words, "--wait")
    assert code == 0, (out, err, suite.logs())
    assert "1 in jobs already" in out
    starts = re.findall(r"from step (\d+) of", (latest.parent / "log.txt").read_text())
    assert len(starts) == 2
    assert int(starts[1]) > 0
    pd.testing.assert_frame_equal(suite.results(), suite.whole(*words), check_exact=True)
    cluster.start(max_array=4, accounting=False)
