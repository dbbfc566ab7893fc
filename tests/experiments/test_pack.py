"""Trunks into jobs and arrays: nothing lost, nothing twice, no limit exceeded."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import pack
from experiments.config import load
from experiments.resources import LaunchSection
from experiments.spec import TrunkSpec
from minigpt.config import ModelConfig

Expand = Callable[..., list[TrunkSpec]]
SEEDS = "grid.seeds=[0, 1, 2, 3, 4]"


@pytest.fixture(scope="module")
def one() -> TrunkSpec:
    """A trunk to make others of."""
    model = ModelConfig(d_model=8, n_layers=1, n_heads=1, vocab_size=257, seq_len=16)  # type: ignore[call-arg]
    return TrunkSpec.model_validate(
        {
            "trunk_id": "t",
            "sweep": "s",
            "arm": "main",
            "lr_multiplier": 1.0,
            "lr_rule": "",
            "batch_rule": "",
            "model": model,
            "data": {},
            "data_sha256": "",
            "val_sha256": "",
            "train": {
                "lr": {"hidden": 0.1, "embedding": 0.1, "head": 0.1, "vector": 0.1},
                "schedule": {},
                "batch_tokens": 64,
            },
            "runs": (),
        }
    )


def slurm(**keys: object) -> LaunchSection:
    return LaunchSection.model_validate({"executor": "slurm", "slurm": keys})


@given(
    sizes=st.lists(st.tuples(st.sampled_from([8, 16, 32]), st.integers(1, 4)), min_size=1),
    parallel=st.integers(1, 20),
    max_array_size=st.integers(1, 12),
    runs_per_job=st.integers(1, 6),
    tier=st.sampled_from([None, 10_000, 30_000]),
)
def test_every_trunk_once_within_the_limits(
    one: TrunkSpec,
    sizes: list[tuple[int, int]],
    parallel: int,
    max_array_size: int,
    runs_per_job: int,
    tier: int | None,
) -> None:
    trunks = [
        one.model_copy(
            update={
                "trunk_id": f"t{i}",
                "model": one.model.model_copy(update={"d_model": d, "d_ff": 4 * d}),
                "runs": tuple(
                    {
                        "run_id": f"{i}.{k}",
                        "tokens": 64 * k,
                        "start": 0,
                        "stop": k,
                        "holdout": False,
                    }
                    for k in range(1, n + 1)
                ),
            }
        )
        for i, (d, n) in enumerate(sizes)
    ]
    trunks = [
        TrunkSpec.model_validate_json(trunk.model_dump_json(warnings=False)) for trunk in trunks
    ]
    tiers = [{"n_total": tier, "mem_gb": 64.0}] if tier else []
    launch = slurm(runs_per_job=runs_per_job, tiers=tiers)
    arrays = pack.arrays(trunks, set(), launch, parallel, max_array_size)
    packed = [trunk.trunk_id for array in arrays for job in array.jobs for trunk in job]
    assert sorted(packed) == sorted(trunk.trunk_id for trunk in trunks)
    for array in arrays:
        assert 1 <= len(array.jobs) <= max_array_size
        for job in array.jobs:
            assert all(launch.resources(trunk.n_total) == array.asked for trunk in job)
            held = [len(trunk.runs) for trunk in job]
            assert sum(held[:-1]) < runs_per_job  # one trunk less would not be enough
    # Arrays that do not wait for another run together.
    assert sum(array.parallel for array in arrays if array.after is None) <= parallel
    for i, array in enumerate(arrays):
        if array.after is not None:
            assert array.after < i
            assert arrays[array.after].parallel == array.parallel == 1


def test_similar_costs_share_a_job_and_finished_runs_do_not_count(plan: Expand) -> None:
    trunks = plan(SEEDS)
    launch = slurm(runs_per_job=4)
    (array,) = pack.arrays(trunks, set(), launch, 256, 1001)
    assert [len(job) for job in array.jobs] == [2] * 5
    widths = [[trunk.model.d_model for trunk in job] for job in array.jobs]
    assert widths == [[16, 16], [16, 16], [16, 8], [8, 8], [8, 8]]
    finished = {trunk.runs[0].run_id for trunk in trunks}
    (array,) = pack.arrays(trunks, finished, launch, 256, 1001)
    assert [len(job) for job in array.jobs] == [4, 4, 2]


def test_what_a_short_array_cannot_use_goes_to_the_others(plan: Expand) -> None:
    trunks = plan(SEEDS, "grid.sizes=[{ d_model = 8 }, { d_model = 32, seeds = [0] }]")
    launch = slurm(tiers=[{"n_total": trunks[0].n_total, "gpus_per_node": 2}])
    arrays = pack.arrays(trunks, set(), launch, 4, 1001)
    assert [(len(array.jobs), array.parallel) for array in arrays] == [(1, 1), (5, 3)]
    assert [array.asked.gpus_per_node for array in arrays] == [2, 0]


def test_chunks_end_at_about_one_time(plan: Expand) -> None:
    trunks = plan(SEEDS)
    arrays = pack.arrays(trunks, set(), slurm(), 256, 4)
    costs = [sum(trunk.cost() for (trunk,) in array.jobs) for array in arrays]
    assert [len(array.jobs) for array in arrays] == [4, 3, 3]
    assert max(costs) < 1.6 * min(costs)


@pytest.mark.parametrize(
    ("seconds", "workers", "expected"),
    [([3.0, 2.0, 1.0], 1, 6.0), ([3.0, 2.0, 1.0], 2, 3.0), ([1.0], 8, 1.0), ([], 2, 0.0)],
)
def test_makespan(seconds: list[float], workers: int, expected: float) -> None:
    assert pack.makespan(seconds, workers) == expected


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["launch.slurm.partiton='x'"], "'partiton' in [launch.slurm]; did you mean 'partition'?"),
        (["launch.slurm.time=60"], "unknown key 'time' in [launch.slurm]; did you mean 'time_min'"),
        (["launch.slurm.sbatch={ time = 60 }"], "flag 'time' is what the key time_min is for"),
        (["launch.slurm.sbatch={ output = 'x' }"], "flag 'output' is set by the suite"),
        (["launch.slurm.sbatch={ mail_type = 'END' }"], "write it as sbatch does, 'mail-type'"),
        (["launch.slurm.sbatch={ parsable = true }"], "flag 'parsable' is set by the suite"),
        (["launch.slurm.sbatch={ gres = 'gpu:2' }"], "gpus_per_node (a number, or 'a100:2')"),
        (["launch.slurm.gpus_per_node='a100'"], "launch.slurm.gpus_per_node = 'a100'"),
        (["launch.slurm.time_min=2"], "time_min = 2 leaves 0 s before the warning 120 s ahead"),
        (["launch.slurm.time_min=3", "launch.checkpoint_seconds=90"], "raise time_min"),
        (["launch.slurm.nodes=2"], "nodes = 2 does not divide ranks = 1"),
        (["launch.ranks=4", "launch.slurm.gpus_per_node=2"], "use gpus_per_node = 4"),
        (["launch.ranks=2", "launch.slurm.runs_per_job=4"], "has its job alone"),
        (["launch.device='cuda'"], "device = 'cuda' and gpus_per_node = 0"),
        (["launch.slurm.tiers=[{ n_total = 1e6, nodes = 3 }]"], "tier from n_total = 1000000"),
        (["launch.slurm.tiers=[{ nodes = 3 }]"], "missing key 'launch.slurm.tiers[0].n_total'"),
        (["launch.executor='inline'", "launch.ranks=2"], "executor = 'inline' is one process"),
        (["launch.strategy='dp'"], "launch.strategy = 'dp'"),
    ],
)
def test_mistakes_in_the_launch_section_are_named(
    micro: Path, overrides: list[str], told: str
) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the text is what is tested
        load(micro, ["launch.executor='slurm'", *overrides])
    assert told in str(error.value)


def test_ranks_that_do_not_divide_a_batch_are_refused(plan: Expand) -> None:
    with pytest.raises(ValueError, match="3 ranks do not divide") as error:
        plan("launch.executor=local", "launch.ranks=3")
    assert "launch.ranks = 3: batch_tokens = 64 is 4 sequences of seq_len = 16" in str(error.value)


def test_flags_are_those_of_sbatch() -> None:
    launch = LaunchSection.model_validate(
        {
            "executor": "slurm",
            "ranks": 4,
            "slurm": {
                "partition": "low",
                "nodes": 2,
                "gpus_per_node": 2,
                "mem_gb": 0.5,
                "sbatch": {"exclusive": True, "requeue-x": False, "nice": 10},
            },
        }
    )
    asked = launch.resources(0)
    assert asked.flags() == {
        "partition": "low",
        "nodes": "2",
        "ntasks-per-node": "2",
        "cpus-per-task": "1",
        "gpus-per-node": "2",
        "mem": "512M",
        "time": "60",
        "exclusive": True,
        "nice": "10",
    }
    assert asked.devices == 4
    typed = asked.model_copy(update={"gpus_per_node": "a100:4"})
    assert (typed.gpus, typed.devices) == (4, 8)
    assert "--gpus-per-node=a100:4" in typed.words()
