"""What a cluster refuses is refused before anything is submitted, in the cluster's own words."""

import subprocess

import pytest
from cluster_user import Suite, until

pytestmark = pytest.mark.slurm
SHORT = "grid.tokens=[12_800]"


def nothing_submitted(suite: Suite) -> bool:
    """Whether the record of a submission, which is made before sbatch is called, is not there."""
    return not list(suite.sweep().glob("slurm/*/submission.json"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["launch.slurm.partition=lwo"], "invalid partition specified: lwo"),
        (["launch.slurm.gpus_per_node=3"], "Requested node configuration is not available"),
        (["launch.slurm.mem_gb=4000"], "Requested node configuration is not available"),
        (["launch.slurm.constraint=h100"], "Invalid feature specification"),
        (["launch.slurm.sbatch={ nosuchflag = 3 }"], "nosuchflag"),
        (["launch.slurm.time_min=1"], "raise time_min"),
        (["launch.ranks=3", "launch.slurm.nodes=3"], "3 ranks do not divide"),
        (
            ["launch.slurm.tiers=[{ n_total = 1, partition = 'nope' }]"],
            "invalid partition specified: nope",
        ),
    ],
)
def test_refusals(suite: Suite, words: list[str], told: str) -> None:
    code, out, err = suite.run(SHORT, *words)
    assert code == 2, (out, err)
    assert told in err
    assert nothing_submitted(suite)


def test_a_group_of_jobs_is_refused_before_another_is_sent(suite: Suite) -> None:
    sizes = "grid.sizes=[{ d_model = 8 }, { d_model = 64 }]"
    tiers = "launch.slurm.tiers=[{ n_total = 30_000, gpus_per_node = 9 }]"
    code, out, err = suite.run(SHORT, sizes, tiers)
    assert code == 2, (out, err)
    assert "--gpus-per-node=9" in err
    assert nothing_submitted(suite)


def test_a_folder_that_nodes_do_not_see(suite: Suite) -> None:
    """The submitter has a file system of its own mounted at runs/, which the nodes have not."""
    (suite.folder / "runs").mkdir()
    script = f'mount -t tmpfs none {suite.folder}/runs && exec "$@"'
    code, out, err = suite(
        "run",
        "it.toml",
        "launch.executor=slurm",
        SHORT,
        under=("unshare", "--mount", "sh", "-c", script, "sh"),
    )
    assert code == 2, (out, err)
    assert "asked of a node: no such folder there" in err
    assert "share" in err
    assert nothing_submitted(suite)


def test_a_folder_that_nodes_cannot_write(suite: Suite) -> None:
    """The nodes see runs/ read-only; the submitter sees it through a writable mount of its own."""
    runs = suite.folder / "runs"
    runs.mkdir()
    subprocess.run(["mount", "--bind", runs, runs], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", runs], check=True)
    try:
        script = f'mount -o remount,rw,bind {runs} && exec "$@"'
        code, out, err = suite(
            "run",
            "it.toml",
            "launch.executor=slurm",
            SHORT,
            under=("unshare", "--mount", "sh", "-c", script, "sh"),
        )
    finally:
        subprocess.run(["umount", runs], check=True)
    assert code == 2, (out, err)
    assert "Read-only file system" in err
    assert "share and can write to" in err
    assert nothing_submitted(suite)


def test_a_config_changed_under_a_half_finished_sweep(suite: Suite) -> None:
    long = "grid.tokens=[5_120_000]"
    assert suite.run(long)[0] == 0
    code, out, err = suite.run(long, "train.beta2=0.9")
    assert code == 2, (out, err)
    assert "train.beta2 = 0.95 there, 0.9 now" in err
    code, out, err = suite("run", "it.toml", "launch.executor=inline", long)
    assert code == 2, (out, err)
    assert "in Slurm jobs that wait or run" in err
    until("the job in the accounting", suite.jobs)
    assert len(suite.jobs()) == 1
    assert suite("cancel", "runs/it")[0] == 0
