"""The plan: ids, costs, warnings, refusals; pure and without torch."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.config import ConfigError, load
from experiments.plan import warnings
from experiments.spec import TrunkSpec

Expand = Callable[..., list[TrunkSpec]]


@pytest.fixture
def objections(micro: Path, plan: Expand) -> Callable[..., str]:
    def call(*overrides: str) -> str:
        return "\n".join(warnings(load(micro, list(overrides)), plan(*overrides)))

    return call


def test_horizons_share_a_trunk(plan: Expand) -> None:
    trunks = plan("grid.seeds=[0, 1]")
    assert len(trunks) == 4
    assert all([run.tokens for run in trunk.runs] == [6400, 12800] for trunk in trunks)
    assert [trunk.cost() for trunk in trunks] == sorted((t.cost() for t in trunks), reverse=True)
    run = trunks[0].runs[1]
    assert (run.start, run.stop) == (160, 200)
    # Trunk to step 160 and two cooldowns, of 20 and 40 steps.
    per_step = trunks[0].flops(run) / 200
    assert trunks[0].cost() == pytest.approx((160 + 20 + 40) * per_step)
    # The first run's branch point, step 80, is on disk: the second goes on from there.
    assert trunks[0].cost(done={trunks[0].runs[0].run_id}) == pytest.approx(120 * per_step)
    assert trunks[0].cost(done={trunks[0].runs[1].run_id}) == pytest.approx(100 * per_step)
    assert trunks[0].cost(done={r.run_id for r in trunks[0].runs}) == 0


def test_cosine_horizons_are_runs_of_their_own(plan: Expand) -> None:
    trunks = plan("schedule.kind=cosine")
    assert len(trunks) == 4
    assert all(len(trunk.runs) == 1 and trunk.runs[0].start == 0 for trunk in trunks)
    assert len({trunk.trunk_id for trunk in trunks}) == 4


def test_ids_depend_on_what_losses_depend_on_and_on_nothing_else(plan: Expand) -> None:
    def ids(*overrides: str) -> set[str]:
        return {trunk.trunk_id for trunk in plan(*overrides)}

    base = ids()
    same = (
        "grid.tokens=[6400, 12800, 25600]",
        "name=other",
        "launch.slots=2",
        "grid.holdout=[{ d_model = 16, dropout = 0 }]",
        "model.dropout=0.0",
        "train.lr={ rule = 'inverse-width', value = 2e-2, base_width = 8.0 }",
    )
    for override in same:
        assert ids(override) == base, override
    different = (
        "grid.seeds=[1]",
        "train.lr.value=0.01",
        "train.beta2=0.99",
        "schedule.warmup_tokens=64",
        "model.n_layers=2",
        "model.dropout=0.1",
        "data.eval_tokens=512",
        "data.val_fraction=0.4",
        "train.dtype=bfloat16",
        "grid.lr_multipliers=[0.5]",
    )
    for override in different:
        assert not ids(override) & base, override


def test_arms_and_holdout(plan: Expand) -> None:
    trunks = plan(
        "grid.lr_multipliers=[1, 0.5]",
        "grid.batch_tokens=[64, 128]",
        "grid.holdout=[{ d_model = 16, tokens = 12800 }]",
    )
    assert {t.arm for t in trunks} == {"main", "lr*0.5", "batch=128", "lr*0.5 batch=128"}
    held = {(t.model.d_model, run.tokens) for t in trunks for run in t.runs if run.holdout}
    assert held == {(16, 12800)}


def test_tokens_per_param_and_explicit_runs(plan: Expand) -> None:
    trunks = plan(
        "grid.tokens=[]",
        "grid.tokens_per_param=[2, 4]",
        "grid.sizes=[{ d_model = 8 }]",
        "grid.runs=[{ d_model = 16, tokens = 6400, seed = 5, lr = 0.01 }]",
    )
    grid, explicit = sorted(trunks, key=lambda t: t.train.seed)
    assert [run.tokens for run in grid.runs] == [
        64 * round(2 * k * grid.n_total / 64) for k in (1, 2)
    ]
    assert explicit.train.seed == 5
    assert explicit.train.lr.hidden == 0.005  # 0.01 · 8/16


def test_a_second_recipe_for_a_model_and_seed_is_an_arm(plan: Expand) -> None:
    trunks = plan(
        "grid.sizes=[{ d_model = 8 }]",
        "grid.runs=["
        "{ d_model = 8, tokens = 6400, lr = 0.01 }, "
        "{ d_model = 8, tokens = 6400, batch_tokens = 128 }, "
        "{ d_model = 16, tokens = 6400, lr = 0.01 }, "
        "{ d_model = 16, tokens = 6400, lr_multiplier = 2 }]",
    )
    arms = {(trunk.model.d_model, trunk.arm) for trunk in trunks}
    assert arms == {(8, "main"), (8, "lr=0.01"), (8, "batch=128"), (16, "main"), (16, "lr*2")}


def test_an_explicit_rate_replaces_a_rule_without_a_value(plan: Expand) -> None:
    runs = "grid.runs=[{ d_model = 8, tokens = 6400, lr = 0.5 }]"
    (trunk,) = plan("train.lr={ rule = 'step-law' }", "grid.sizes=[]", runs)
    assert trunk.train.lr.hidden == 0.5
    assert trunk.lr_rule == "constant(value=0.5)"


def test_a_cosine_run_has_the_rate_of_its_own_horizon(plan: Expand) -> None:
    def rates(*overrides: str) -> dict[int, float]:
        trunks = plan("schedule.kind=cosine", "train.lr={ rule = 'step-law' }", *overrides)
        return {t.runs[0].tokens: t.train.lr.hidden for t in trunks if t.model.d_model == 8}

    short = rates()
    assert len(set(short.values())) == 2
    longer = rates("grid.tokens=[6400, 12800, 25600]")
    assert {tokens: longer[tokens] for tokens in short} == short


def test_explicit_runs_extend_the_trunk_of_the_grid(plan: Expand) -> None:
    trunks = plan("grid.runs=[{ d_model = 16, tokens = 25600 }]")
    largest = next(t for t in trunks if t.model.d_model == 16)
    assert [run.tokens for run in largest.runs] == [6400, 12800, 25600]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["grid.sizes=[{ d_model = 10 }]"], "d_head = 4 does not divide d_model = 10"),
        (
            ["grid.sizes=[{ d_model = 8, n_heads = 3 }]"],
            r"n_heads = 3 does not divide d_model = 8; choose",
        ),
        (["model.vocab_size=100"], "vocab_size = 100 is smaller than the byte vocabulary"),
        (
            ["grid.tokens=[6400, 6410]"],
            r"6,410 tokens .* and that of 6,400 tokens are both 100 steps",
        ),
        (["grid.tokens=[100, 12800]"], "is not longer than schedule.warmup_tokens = 128"),
        (["grid.tokens=[150, 12800]"], "its cooldown starts at 64 tokens, inside"),
        (["grid.tokens=[6400, 3e6]"], r"needs [0-9.]+ epochs .*data\.max_epochs = 1"),
        (
            ["train.batch={ rule = 'constant', tokens = 70 }"],
            "train.batch = 70 tokens is not a multiple of seq_len = 16; use 64",
        ),
        (["grid.runs=[{ d_model = 16, tokens = 12800 }]"], "12,800 tokens .* is asked for twice"),
        (["grid.sizes=[{ d_model = 8 }, { d_model = 8 }]"], "is asked for twice; remove one"),
        (["grid.holdout=[{ d_model = 129 }]"], "matches no run"),
        (["grid.sizes=[{ d_model = 8, n_heads = 2, d_head = 4 }]"], "give one of them"),
        (["data.curve_eval_tokens=8"], "curve_eval_tokens = 8 is shorter than one sequence"),
        (["grid.sizes=[{ n_layers = 1 }]"], "missing key 'd_model'"),
    ],
)
def test_refusals(plan: Expand, overrides: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        plan(*overrides)


def test_repetition_can_be_asked_for(plan: Expand) -> None:
    assert plan("grid.tokens=[6400, 1e5]", "data.max_epochs=2")


def test_warnings(objections: Callable[..., str]) -> None:
    assert "fewer than 500 steps" in objections()
    assert "16.0x" in objections("grid.tokens=[3200, 51200]")
    assert "warmup_tokens = 640 is 10.0%" in objections("schedule.warmup_tokens=640")
    law = objections("train.lr={ rule = 'step-law' }", "grid.tokens=[32000, 51200]")
    assert "another horizon later means new trunks" in law
    assert objections("grid.tokens=[32000, 51200]") == ""


@given(st.lists(st.integers(20, 400), min_size=1, max_size=6, unique=True))
def test_branching_never_costs_more_than_separate_runs(steps: list[int]) -> None:
    from minigpt import schedule
    from minigpt.config import ScheduleConfig

    at = [schedule.horizon(ScheduleConfig(), 64 * s, 64) for s in steps]
    shared = max(h.start for h in at) + sum(h.stop - h.start for h in at)
    assert max(steps) <= shared <= sum(steps)


def test_plan_imports_nothing_slow(micro: Path) -> None:
    file = str(micro.parent / "plan.json")
    code = (
        "import sys; from experiments.sweep import main; "
        f"assert main(['plan', {str(micro)!r}, '--json', {file!r}]) == 0; "
        "assert not {'torch', 'scipy', 'pandas', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
