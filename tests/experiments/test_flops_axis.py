"""`flops` as an axis: every size gets its own tokens, so that each budget is one isoFLOP curve."""

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.config import ConfigError, SweepConfig, load, parse
from experiments.corpora import Corpora
from experiments.plan import expand, warnings
from experiments.spec import TrunkSpec
from minigpt.data import CorpusInfo

ROOT = Path(__file__).parents[2]
QUICK = json.loads((ROOT / "tests/data/quick/sweep.json").read_text())
CORPUS = Corpora({None: CorpusInfo(**QUICK["corpus"] | {"skipped": ()})})
Expand = Callable[..., list[TrunkSpec]]
BUDGETS = (3e8, 6e8)
FLOPS = ("grid.tokens=[]", "grid.flops=[6e8, 3e8]")


def per_token(trunk: TrunkSpec) -> int:
    """Training FLOPs of a token of a gpt, by hand: 6 per matrix element, attention over T × T."""
    d, n, T, V = (getattr(trunk.model, k) for k in ("d_model", "n_layers", "seq_len", "vocab_size"))
    return 6 * (12 * n * d * d + V * d) + 12 * n * T * d


def test_horizon_k_of_every_size_is_budget_k(plan: Expand) -> None:
    trunks = plan(*FLOPS)
    assert {t.model.d_model for t in trunks} == {8, 16}
    for trunk in trunks:
        assert len(trunk.runs) == 2
        for run, C in zip(trunk.runs, BUDGETS, strict=True):
            assert run.tokens == 64 * round(C / per_token(trunk) / 64)
            assert run.tokens * per_token(trunk) == pytest.approx(C, rel=0.01)
            assert trunk.flops(run) == run.tokens * per_token(trunk)


def test_cosine_runs_have_the_budgets_too(plan: Expand) -> None:
    trunks = plan(*FLOPS, "schedule.kind=cosine")
    found = sorted((t.model.d_model, t.flops(t.runs[0])) for t in trunks)
    expected = [(d, C) for d in (8, 16) for C in BUDGETS]
    assert [d for d, _ in found] == [d for d, _ in expected]
    assert [C for _, C in found] == pytest.approx([C for _, C in expected], rel=0.01)


def test_a_run_is_the_same_by_tokens_and_by_flops(plan: Expand) -> None:
    by_flops = {t.model.d_model: t for t in plan(*FLOPS)}
    for d_model, trunk in by_flops.items():
        tokens = [run.tokens for run in trunk.runs]
        (same,) = plan(f"grid.sizes=[{{ d_model = {d_model} }}]", f"grid.tokens={tokens}")
        assert same == trunk


def test_more_budgets_keep_the_runs(plan: Expand) -> None:
    before = {run.run_id for t in plan(*FLOPS) for run in t.runs}
    more = plan("grid.tokens=[]", "grid.flops=[3e8, 4e8, 6e8, 9e8]")
    assert before < {run.run_id for t in more for run in t.runs}
    assert all([r.tokens for r in t.runs] == sorted(r.tokens for r in t.runs) for t in more)
    assert {t.trunk_id for t in more} == {t.trunk_id for t in plan(*FLOPS)}


def test_explicit_runs_may_give_flops(plan: Expand) -> None:
    run = "grid.runs=[{ d_model = 16, flops = 9e8 }]"
    (largest,) = (t for t in plan(*FLOPS, run) if t.model.d_model == 16)
    assert [largest.flops(r) for r in largest.runs] == pytest.approx([*BUDGETS, 9e8], rel=0.01)
    beside_tokens = plan(run)
    assert max(r.tokens for t in beside_tokens for r in t.runs) == largest.runs[-1].tokens


def test_a_budget_may_be_held_out(plan: Expand) -> None:
    trunks = plan(*FLOPS, "grid.holdout=[{ flops = 600_000_000 }]")
    assert [[run.holdout for run in t.runs] for t in trunks] == [[False, True]] * 2
    with pytest.raises(ConfigError, match=r"matches no run; it must equal .* flops or seed"):
        plan(*FLOPS, "grid.holdout=[{ flops = 5e8 }]")


def test_a_wide_trunk_is_warned_of(micro: Path, plan: Expand) -> None:
    wide = ["grid.tokens=[]", "grid.flops=[1e8, 1e9]", "grid.sizes=[{ d_model = 8 }]"]
    assert "spans 10.0x in tokens" in "\n".join(warnings(load(micro, wide), plan(*wide)))
    told = "\n".join(warnings(load(micro, list(FLOPS)), plan(*FLOPS)))
    assert "spans" not in told  # 2x on each trunk, 5x between the sizes


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["grid.flops=[1e7, 3e8]"], r"sizes\[0\]: horizon of 541 tokens \(flops = 1e\+07\) at d_m"),
        (["grid.flops=[1e4]"], r"1 tokens .* its 1 whole steps of 64 tokens take .* off its budg"),
        (["grid.flops=[3e8, 3.00001e8]"], "is asked for twice; remove one"),
        (["grid.flops=[3e8, 3.02e8]"], "are both .* steps of 64 tokens; remove one"),
        (["grid.flops=[1e12]"], r"needs [0-9.]+ epochs of the corpus"),
        (["grid.flops=[1e300]"], r"needs [0-9.]+ epochs of the corpus"),
    ],
)
def test_refusals(plan: Expand, overrides: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        plan("grid.tokens=[]", *overrides)


def one(batch: int, C: float, d_model: int) -> SweepConfig:
    """One size at one budget with this batch, in tokens."""
    values = {
        "name": "one",
        "model": {"n_layers": 1, "d_head": 16, "seq_len": 128},
        "data": {"max_epochs": 1e9},
        "train": {"batch": {"rule": "constant", "tokens": batch}},
        "schedule": {"kind": "cosine", "warmup_tokens": 0},
        "grid": {"sizes": [{"d_model": d_model}], "flops": [C]},
    }
    return parse(values, where="test")


@given(
    st.floats(7, 13).map(lambda x: 10**x),
    st.sampled_from([128, 512, 1024, 8192]),
    st.sampled_from([16, 64]),
)
def test_a_budget_is_met_or_the_remedies_meet_it(C: float, batch: int, d_model: int) -> None:
    met = [(batch, C)]
    try:
        expand(one(batch, C, d_model), CORPUS)
    except ConfigError as error:
        found = re.findall(r"lower the batch to ([\d,]+) tokens", str(error))
        met = [(int(each.replace(",", "")), C) for each in found]
        met += [(batch, float(each)) for each in re.findall(r"raise flops to (\S+) or", str(error))]
    assert max(budget for _, budget in met) > C or met == [(batch, C)]
    for b, budget in met:
        (trunk,) = expand(one(b, budget, d_model), CORPUS)
        assert trunk.flops(trunk.runs[0]) == pytest.approx(budget, rel=0.01)


def test_the_shipped_example_is_a_grid_without_objections() -> None:
    config = load(ROOT / "configs/isoflop.toml")
    trunks = expand(config, CORPUS)
    assert warnings(config, trunks) == []
    for trunk, C in itertools.product(trunks, config.grid.flops):
        assert any(trunk.flops(run) == pytest.approx(C, rel=0.01) for run in trunk.runs)


def test_a_sweep_is_extended_in_flops(sweep, micro: Path) -> None:
    budgets = (1.2e8, 2.4e8)
    code, out, err = sweep("run", micro, "grid.tokens=[]", f"grid.flops={[budgets[1]]}")
    assert code == 0, err
    code, out, err = sweep("run", micro, "grid.tokens=[]", f"grid.flops={list(budgets)}")
    assert code == 0, err
    assert "4 runs, 2 finished before" in out
    frame = pd.read_parquet(micro.parent / "runs/micro/results.parquet")
    assert list(frame["status"]) == ["ok"] * 4
    by_budget = frame.groupby("horizon_index")["flops_exact"]
    for k, C in enumerate(budgets):
        assert by_budget.get_group(k).tolist() == pytest.approx([C, C], rel=0.01)
    out = sweep("plan", micro, "grid.tokens=[]", f"grid.flops={list(budgets)}")[1]
    for C, tokens in zip(frame["flops_exact"], frame["tokens"], strict=True):
        assert re.search(rf" {tokens:,} .* {re.escape(f'{C:.3g}')} ", out)
