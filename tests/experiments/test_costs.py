"""What `plan` says of time, device-hours, price and jobs, from rates that are known."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import costs, estimate, pack
from experiments.config import load
from experiments.estimate import Rate
from experiments.spec import TrunkSpec

Expand = Callable[..., list[TrunkSpec]]
Sweep = Callable[..., tuple[int, str, str]]
SLURM = ("launch.executor=slurm", "launch.device=cpu")


def know(micro: Path, trunks: list[TrunkSpec], rate: Rate, *overrides: str) -> None:
    """Put `rate` into the cache of the micro-benchmark for every shape."""
    config = load(micro, list(overrides))
    rows = [
        (estimate.place(config.launch, t.n_total), estimate.shape(t, config.launch), rate)
        for t in trunks
    ]
    estimate.remember(config, rows)


def test_time_of_a_trunk_is_its_steps_and_its_evaluations(plan: Expand) -> None:
    trunk = plan()[0]
    # 220 steps of 64 tokens: the trunk to 160, branches of 20 and 40 steps. Curves: every 1024
    # tokens a point of 256; two final evaluations of 1024.
    rate = Rate(train=1000.0, evaluation=4000.0)
    trained, held_out = 220 * 64, (220 * 64 // 1024) * 256 + 2 * 1024
    expected = trained / 1000 + held_out / 4000
    assert estimate.seconds(trunk, set(), rate) == pytest.approx(expected)
    finished = {run.run_id for run in trunk.runs}
    assert estimate.seconds(trunk, finished, rate) == 0.0


def test_finished_runs_are_better_than_the_benchmark(
    sweep: Sweep, micro: Path, plan: Expand
) -> None:
    words = ("grid.sizes=[{ d_model = 8 }]",)
    trunks = plan(*words)
    know(micro, trunks, Rate(train=1.0, evaluation=1.0), *words)
    config = load(micro, list(words))
    assert [rate.train for rate in estimate.rates(config, trunks).values()] == [1.0]
    assert sweep("run", micro, *words)[0] == 0
    (rate,) = estimate.rates(config, trunks).values()
    results = [
        json.loads(path.read_text())
        for path in (micro.parent / "runs" / "micro" / "trunks").glob("*/[0-9a-f]*.json")
    ]
    speeds = [result["tokens_per_second"] for result in results]
    assert min(speeds) <= rate.train <= 1.5 * max(speeds)  # without the curve's evaluations
    assert rate.evaluation > rate.train
    # Of several ranks nothing is known yet: one process says nothing about two.
    two = load(micro, [*words, "launch.executor=local", "launch.ranks=2"])
    assert estimate.shape(trunks[0], two.launch) not in estimate.rates(two, trunks)


def test_plan_on_this_machine(sweep: Sweep, micro: Path, plan: Expand) -> None:
    words = ("launch.executor=local", "launch.slots=2", "launch.price_per_device_hour=3600")
    code, out, _ = sweep("plan", micro, *words)
    assert code == 0
    assert "time: not known yet for 2 shapes; `plan --measure` times them once" in out
    trunks = plan()
    rate = Rate(train=64.0, evaluation=1e12)  # a step takes a second
    know(micro, trunks, rate, *words)
    out = sweep("plan", micro, *words)[1]
    # Two trunks of 220 seconds, side by side; a price of one per core-second.
    assert "about 7.3 core-minutes" in out
    assert "3:40 min in 2 slots, the longest trunk 3:40 min" in out
    assert "440.00 at 3600 per device-hour" in out


def test_plan_on_slurm(sweep: Sweep, micro: Path, plan: Expand) -> None:
    words = (
        *SLURM,
        "grid.seeds=[0, 1, 2]",
        "launch.slurm.runs_per_job=4",
        "launch.slurm.cpus_per_task=2",
        "launch.slurm.array_parallelism=1",
        "launch.slurm.time_min=5",
        "launch.price_per_device_hour=36",
    )
    trunks = plan(*words)
    know(micro, trunks, Rate(train=64.0, evaluation=1e12), *words)
    code, out, err = sweep("plan", micro, *words)
    assert code == 0, err
    # Three jobs of two trunks side by side on two cores: 220 s and the start, 10 s.
    assert "--cpus-per-task=2 --time=5 --array=0-2%1" in out
    hours = 3 * 230 * 2 / 3600
    assert f"about {hours:.3g} device-hours; 11:30 min from start to end" in out
    assert f"{hours * 36:.2f} at 36 per device-hour" in out
    assert "the longest job takes about 2 time limits of 5 minutes" in out


def test_chains_of_arrays_add_up(micro: Path, plan: Expand) -> None:
    words = (*SLURM, "grid.seeds=[0, 1, 2, 3]")
    trunks = plan(*words)
    know(micro, trunks, Rate(train=64.0, evaluation=1e12), *words)
    config = load(micro, list(words))
    arrays = pack.arrays(trunks, set(), config.launch, parallel=1, max_array_size=4)
    assert [array.after for array in arrays] == [None, 0]
    lines = costs.array_lines(config, arrays, trunks, set())
    assert any("30:40 min from start to end" in line for line in lines)  # 8 jobs of 230 s


def test_measure_times_each_shape_once(sweep: Sweep, micro: Path) -> None:
    words = ("launch.executor=local", "grid.seeds=[0, 1]")
    code, out, err = sweep("plan", micro, "--measure", *words)
    assert code == 0, err
    assert "measured 2 shapes" in out
    assert "core-minutes" in out
    table = json.loads((micro.parent / "runs" / "speed.json").read_text())
    ((shapes),) = table.values()
    assert len(shapes) == 2
    assert all(rate["evaluation"] > rate["train"] > 0 for rate in shapes.values())
    assert "measured 0 shapes" in sweep("plan", micro, "--measure", *words)[1]
