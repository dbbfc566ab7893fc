"""[[grid.runs]], as a design of further runs has them: they join trunks and extend sweeps."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from experiments import manifest
from experiments.config import ConfigError, load
from experiments.corpora import Corpora
from experiments.plan import expand
from experiments.spec import TrunkSpec
from minigpt.data import CorpusInfo

ROOT = Path(__file__).parents[2]
Expand = Callable[..., list[TrunkSpec]]
FURTHER = """
[[grid.runs]]
d_model = 96
tokens = 3_500_000

[[grid.runs]]
d_model = 112
tokens = 1_100_000
seed = 1

[[grid.runs]]
d_model = 112
tokens = 2_400_000
seed = 1

[[grid.runs]]
d_model = 32
n_layers = 1
flops = 2.5e11
seed = 3
lr_multiplier = 1.0

[[grid.runs]]
d_model = 208
tokens = 1_600_000
holdout = true
"""


def spans(trunks: list[TrunkSpec]) -> dict[tuple[int, int, str], list[int]]:
    return {(t.model.d_model, t.train.seed, t.arm): [r.tokens for r in t.runs] for t in trunks}


def test_the_quick_sweep_is_extended_by_appended_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = (ROOT / "tests/data/quick/sweep.json").read_text()
    before = json.loads(stored)
    corpus = Corpora({None: CorpusInfo(**before["corpus"] | {"skipped": ()})})
    quick = load(ROOT / "configs/quick.toml")
    known = {run.run_id for trunk in expand(quick, corpus) for run in trunk.runs}
    assert known == set(before["runs"])  # ids of a finished sweep never move

    monkeypatch.chdir(tmp_path)
    Path("runs/quick").mkdir(parents=True)
    Path("runs/quick/sweep.json").write_text(stored)
    Path("more.toml").write_text((ROOT / "configs/quick.toml").read_text() + FURTHER)
    config = load(Path("more.toml"))
    manifest.check(config, corpus)
    trunks = expand(config, corpus)
    added = {run.run_id for trunk in trunks for run in trunk.runs} - known
    assert len(added) == 5
    found = spans(trunks)
    assert found[96, 0, "main"][-1] == 3_500_032
    assert found[112, 1, "main"] == [1_099_776, 2_400_256]
    assert len(found[32, 3, "main"]) == 1
    held = {t.model.d_model for t in trunks for run in t.runs if run.holdout}
    assert held == {176, 208}


def test_rows_of_one_size_and_seed_share_a_trunk(plan: Expand) -> None:
    runs = ", ".join(
        f"{{ d_model = 24, tokens = {tokens}, seed = {seed} }}"
        for tokens in (12800, 3200, 6400)
        for seed in (0, 7)
    )
    trunks = plan("grid.sizes=[]", f"grid.runs=[{runs}]")
    assert spans(trunks) == {(24, seed, "main"): [3200, 6400, 12800] for seed in (0, 7)}


@pytest.mark.parametrize(
    "recipe",
    [
        "lr_multiplier = 1.0",
        "lr = 0.02",
        "batch_tokens = 64",
        "lr = 0.02, lr_multiplier = 1, batch_tokens = 64, seed = 0, holdout = false",
    ],
)
def test_the_rules_written_out_in_numbers_join_the_trunk(plan: Expand, recipe: str) -> None:
    (trunk,) = plan(
        "grid.sizes=[{ d_model = 16 }]", f"grid.runs=[{{ d_model = 16, tokens = 25600, {recipe} }}]"
    )
    assert trunk.arm == "main"
    assert [run.tokens for run in trunk.runs] == [6400, 12800, 25600]


def test_the_model_keys_of_a_planned_row_join_its_trunk(
    sweep, micro: Path, plan: Expand, tmp_path: Path
) -> None:
    file = tmp_path / "plan.json"
    sweep("plan", micro, "--json", file)
    row = max(json.loads(file.read_text())["runs"], key=lambda run: run["d_model"])
    keys = ("preset", "d_model", "n_layers", "n_heads", "d_ff", "vocab_size", "seq_len", "seed")
    keys += ("lr_multiplier", "batch_tokens")
    told = ", ".join(f"{key} = {json.dumps(row[key])}" for key in keys)
    trunks = plan(f"grid.runs=[{{ {told}, tokens = 25600 }}]")
    (trunk,) = (t for t in trunks if t.trunk_id == row["trunk_id"])
    assert [run.tokens for run in trunk.runs] == [6400, 12800, 25600]
    with pytest.raises(ConfigError, match=r"runs\[0\]: d_head and n_heads say the same thing"):
        plan(f"grid.runs=[{{ {told}, d_head = 4, tokens = 25600 }}]")


def test_the_rule_after_another_recipe_is_an_arm(plan: Expand) -> None:
    trunks = plan(
        "grid.sizes=[]",
        "grid.runs=[{ d_model = 16, tokens = 6400, lr = 0.01 }, { d_model = 16, tokens = 6400 }]",
    )
    assert {(t.arm, t.train.lr.hidden) for t in trunks} == {("main", 0.005), ("rule", 0.01)}


@pytest.mark.parametrize(
    ("run", "told"),
    [
        ("{ d_model = 16, tokens = 12_800 }", r"runs\[0\]: 12,800 tokens .* asked for twice"),
        ("{ d_model = 16, flops = 2.9552640e8 }", r"6,400 tokens \(flops = .* asked for twice"),
        ("{ d_model = 18, tokens = 12_800 }", r"runs\[0\]: d_head = 4 does not divide d_model"),
        ("{ d_model = 16, tokens = 12_810 }", r"runs\[0\]: horizon of 12,810 tokens .* are both"),
        ("{ d_model = 16, tokens = 99, seed = 1 }", r"runs\[0\]: horizon .* is not longer than"),
        ("{ d_model = 16, tokens = 25600, lr = 0.01, lr_multiplier = 2 }", "write both in one way"),
    ],
)
def test_mistakes_name_the_run(plan: Expand, run: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        plan(f"grid.runs=[{run}]")


def test_a_file_of_further_runs_trains_the_addition_only(sweep, micro: Path) -> None:
    code, _, err = sweep("run", micro, "grid.tokens=[6400]")
    assert code == 0, err
    folder = micro.parent / "runs" / "micro"
    before = {p: p.read_bytes() for p in folder.glob("trunks/*/[0-9a-f]*.json")}
    more = micro.with_name("more.toml")
    further = (
        "[[grid.runs]]\nd_model = 16\ntokens = 4800\n"
        "[[grid.runs]]\nd_model = 16\ntokens = 9600\nholdout = true\n"
        "[[grid.runs]]\nd_model = 8\ntokens = 6400\nseed = 1\n"
    )
    more.write_text(micro.read_text().replace("[6400, 12800]", "[6400]") + further)
    code, out, err = sweep("run", more)
    assert code == 0, err
    assert "5 runs, 2 finished before, 2 trunks to train" in out
    assert {path: path.read_bytes() for path in before} == before
    frame = pd.read_parquet(folder / "results.parquet")
    frame = frame.sort_values(["d_model", "seed", "tokens"])
    assert list(frame["status"]) == ["ok"] * 5
    assert list(frame["arm"]) == ["main"] * 5
    assert frame.loc[frame["d_model"] == 16, "tokens"].tolist() == [4800, 6400, 9600]
    assert frame.loc[frame["d_model"] == 16, "horizon_index"].tolist() == [0, 1, 2]
    assert frame.loc[frame["holdout"], "tokens"].tolist() == [9600]
    assert frame.groupby(["d_model", "seed"])["trunk_id"].nunique().tolist() == [1, 1, 1]
