"""`python -m analysis.design`: plans judged, next runs chosen, the config that comes out."""

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from synthetic import Plan, results_frame, write_sweep

from analysis.design import main
from analysis.gridfile import extended
from analysis.load import load
from analysis.nextruns import advise
from analysis.shapes import Ladder, ladder
from analysis.targets import Target
from experiments import config as configs
from experiments import export
from experiments.corpora import Corpora
from experiments.plan import expand
from minigpt.config import ModelConfig
from minigpt.counts import flops_per_token, parameter_counts
from minigpt.data import CorpusInfo

QUICK = Path(__file__).parents[1] / "data/quick"


def corpus() -> Corpora:
    return Corpora({None: CorpusInfo(**json.loads((QUICK / "sweep.json").read_text())["corpus"])})


def sweep_config(**grid) -> configs.SweepConfig:
    """The quick sweep's config with another grid."""
    table = json.loads((QUICK / "sweep.json").read_text())["config"]
    return configs.parse({**without_nulls(table), "grid": grid}, where="test")


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    return [without_nulls(v) for v in value] if isinstance(value, list) else value


def write_plan(folder: Path, **grid) -> Path:
    """A plan file as `experiments.sweep plan --json` writes it."""
    config = sweep_config(**grid)
    file = folder / "plan.json"
    export.write(config, expand(config, corpus()), file)
    return file


def told(capsys, *argv: object) -> tuple[int, str, str]:
    code = main([str(a) for a in argv])
    out, err = capsys.readouterr()
    return code, out, err


SIZES = [{"d_model": d} for d in (32, 48, 64, 80, 96, 128)]
TOKENS = [750_000, 1_100_000, 1_600_000, 2_400_000]


def width(text: str, label: str) -> float:
    """The last number of the row of that label."""
    return float(next(x for x in text.splitlines() if x.startswith(label)).split()[-1])


def test_a_plan_is_told_what_it_reaches_and_what_more_buys(tmp_path, capsys) -> None:
    file = write_plan(tmp_path, sizes=SIZES, tokens=TOKENS, holdout=[{"d_model": 128}])
    code, out, _ = told(capsys, file)
    assert code == 0
    assert "20 runs to fit on 5 trunks: 5 sizes" in out
    assert "not counted: 4 held out" in out
    for phrase in ("assumed law", "trunk 0.2 %, row 0.1 %", "3 seeds at the 3 cheapest sizes"):
        assert phrase in out
    more = next(x for x in out.splitlines() if "3 seeds at the 3 cheapest" in x).split("%")
    now = next(x for x in out.splitlines() if x.startswith("the plan")).split()
    assert float(more[1].split()[0]) < 0.8 * float(now[2])  # alpha narrows
    _, noisy, _ = told(capsys, file, "--noise", "0.4,0.2")
    assert width(noisy, "alpha") == pytest.approx(2 * width(out, "alpha"), rel=1e-3)


def test_few_trunks_are_told_that_noise_would_come_from_lack_of_fit(tmp_path, capsys) -> None:
    file = write_plan(tmp_path, sizes=SIZES[:4], tokens=TOKENS)
    _, out, _ = told(capsys, file)
    assert "from lack of fit (df = " in out
    assert "3 seeds" in out


def test_a_plan_along_one_ray_is_told_that_alpha_and_beta_are_out_of_reach(
    tmp_path, capsys
) -> None:
    file = write_plan(tmp_path, sizes=SIZES, tokens_per_param=[20])
    code, out, _ = told(capsys, file)
    assert code == 0
    assert "warning" in out
    assert "every run has D/N near 20" in out
    assert "4 or more horizons" in out
    row = next(x for x in out.splitlines() if x.startswith("alpha"))
    assert row.split(maxsplit=1)[1].strip() == "not identified"
    remedy = next(x for x in out.splitlines() if "also at 1/4" in x)
    assert "not identified" not in remedy


def test_a_fits_json_gives_law_and_noise(tmp_path, capsys) -> None:
    file = write_plan(tmp_path, sizes=SIZES, tokens=TOKENS)
    parameters = {"E": 1.2, "A": 250.0, "B": 1800.0, "alpha": 0.6, "beta": 0.6}
    fits = tmp_path / "fits.json"
    fit = {"law": "chinchilla", "parameters": parameters}
    fit["variance"] = {"trunk_sd": 0.005, "row_sd": 0.002, "trunks": 12}
    fits.write_text(json.dumps({"selected": "chinchilla", "fits": [fit]}))
    code, out, _ = told(capsys, file, "--assume", fits)
    assert code == 0
    assert "the selected fit of" in out
    assert "trunk 0.5 %, row 0.2 %" in out
    fits.write_text('{"fits": []}')
    code, _, err = told(capsys, file, "--assume", fits)
    assert code == 2
    assert "analysis.fit SOURCE --json" in err


def test_a_table_without_losses_is_a_plan(tmp_path, capsys) -> None:
    frame = results_frame(Plan(holdout=()))[["trunk_id", "n_total", "tokens", "seed"]]
    frame.to_csv(tmp_path / "grid.csv", index=False)
    code, out, _ = told(capsys, tmp_path / "grid.csv")
    assert code == 0
    assert "60 runs to fit on 12 trunks: 6 sizes" in out
    assert "checkpoints of one run" in out
    frame.loc[3, "tokens"] = 0
    frame.to_csv(tmp_path / "grid.csv", index=False)
    code, _, err = told(capsys, tmp_path / "grid.csv")
    assert (code, "D of row 4 is 0.0" in err) == (2, True)


def test_a_finished_sweep_is_also_judged_as_a_plan(capsys) -> None:
    code, out, _ = told(capsys, QUICK)
    assert code == 0
    assert "48 runs to fit on 12 trunks" in out


def test_the_config_that_comes_out_extends_the_sweep(tmp_path, capsys) -> None:
    out_file = tmp_path / "more.toml"
    budget = 2e13
    code, out, err = told(
        capsys, QUICK, "--flops", budget, "--target-flops", 1e14, "--out", out_file
    )
    assert (code, err) == (0, "")
    assert f"next: python -m experiments.sweep run {out_file}" in out
    config = configs.load(out_file)
    before = configs.parse(
        without_nulls(json.loads((QUICK / "sweep.json").read_text())["config"]), where="test"
    )
    for part in ("name", "runs_dir", "model", "data", "train", "schedule", "launch"):
        assert getattr(config, part) == getattr(before, part)  # a started sweep takes no other
    assert config.grid.sizes == before.grid.sizes
    done = set(json.loads((QUICK / "sweep.json").read_text())["runs"])
    trunks = expand(config, corpus())
    planned = {run.run_id for trunk in trunks for run in trunk.runs}
    assert done < planned
    assert len(planned - done) == len(config.grid.runs) > 0
    study = load(QUICK)
    advice = advise(study, budget, Target("loss", "optimal-loss", (1e14,)), 1e14, None, None)
    cost = sum(trunk.cost(done) for trunk in trunks)
    assert cost == pytest.approx(advice.state.spent, rel=0.01)  # whole steps
    assert cost <= budget * 1.01
    assert not any(run.holdout for t in trunks for run in t.runs if run.run_id not in done)


def test_the_choice_beats_cheapest_first_and_random(capsys) -> None:
    study = load(QUICK)
    for target in (Target("loss", "optimal-loss", (1e14,)), Target("a", "a")):
        advice = advise(study, 1e13, target, 1e14, None, None)
        after = advice.state.sd()
        assert after[1] < advice.before[1]
        for name, rival in advice.rivals.items():
            assert after[1] < rival[1], name
        best = advice.optimum
        assert isinstance(advice.ladder, Ladder)
        width = advice.ladder.nearest(float(best.N[0]))
        assert abs(np.log(advice.ladder.N(width) / best.N[0])) < 0.1


def test_without_out_the_config_is_printed_and_a_is_a_target(capsys) -> None:
    code, out, _ = told(
        capsys, QUICK, "--flops", 2e12, "--target-flops", 1e14, "--target", "a", "--misfit", 0
    )
    assert code == 0
    assert "next runs for a" in out
    assert "no misfit" in out
    text = out[out.index("# quick with") :]
    assert "[[grid.runs]]" in text
    assert configs.parse(tomllib.loads(text), where="printed").grid.runs


def test_a_foreign_table_gets_a_list_and_no_config(tmp_path, capsys) -> None:
    frame = results_frame(Plan(holdout=()))[["trunk_id", "n_total", "tokens", "seed", "val_loss"]]
    file = tmp_path / "runs.csv"
    frame.to_csv(file, index=False)
    code, out, _ = told(capsys, file, "--flops", 1e13, "--target-flops", 1e15)
    assert code == 0
    assert "new size" in out
    assert "append them to the table" in out
    code, _, err = told(
        capsys, file, "--flops", 1e13, "--target-flops", 1e15, "--out", tmp_path / "x"
    )
    assert code == 2
    assert "no config of a sweep" in err
    assert not (tmp_path / "x").exists()


def test_after_a_sweep_along_one_ray_the_next_runs_leave_it(ray, capsys) -> None:
    code, out, _ = told(capsys, ray, "--flops", 2e13, "--target-flops", 1e15)
    assert code == 0
    assert "warning" in out
    assert "not identified by this design" in out
    study = load(ray)
    target = Target("loss", "optimal-loss", (1e15,))
    advice = advise(study, 2e13, target, 1e15, None, None)
    market = advice.state.market
    ratio = [market.D[c] / advice.sizes[p.kind].N for p in advice.state.bought for c in p.cells]
    assert max(ratio) > 1.5 * 20 or min(ratio) < 20 / 1.5


def test_one_horizon_only_is_given_others(tmp_path) -> None:
    frame = results_frame(Plan(holdout=(), horizons=(1e6,)))
    frame.to_csv(tmp_path / "runs.csv", index=False)
    study = load(tmp_path / "runs.csv")
    advice = advise(study, 1e14, Target("loss", "optimal-loss", (1e15,)), 1e15, None, None)
    bought = {advice.state.market.D[c] for p in advice.state.bought for c in p.cells}
    assert len(bought) >= 2
    assert advice.state.sd()[1] < 0.5 * advice.before[1]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--flops", "1e9", "--target-flops", "1e14"], "buys no run: the cheapest"),
        (["--flops", "1e13"], "--target-flops is missing"),
        (["--target-flops", "1e13"], "--flops is missing"),
        (["--flops", "-1", "--target-flops", "1e13"], "--flops is -1"),
        (["--flops", "nan", "--target-flops", "1e13"], "--flops is nan"),
        (["--noise", "0.2"], "give two numbers in %"),
        (["--noise", "0.2,0"], "noise of a row is positive"),
        (["--misfit", "-3"], "between 0 and 100"),
        (["--level", "90"], "level between 0 and 1"),
        (["--out", "x.toml"], "belongs to --flops"),
        (["--flops", "1e13", "--target-flops", "1e14", "--assume", "f.json"], "belongs to a plan"),
        (["--flops", "1e13", "--target-flops", "1e14", "--out", "/no/x"], "that you can write to"),
    ],
)
def test_bad_options_are_one_message(argv: list[str], said: str, capsys) -> None:
    code, out, err = told(capsys, QUICK, *argv)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_bad_files_are_one_message(tmp_path, capsys) -> None:
    plan = write_plan(tmp_path, sizes=SIZES, tokens=TOKENS)
    content = json.loads(plan.read_text())
    cases = {"not JSON": "{", "schema is": '{"schema": "fits/1"}', "not a plan": "\xff"}
    content["runs"] = [{k: v for k, v in r.items() if k != "tokens"} for r in content["runs"]]
    cases["its runs lack tokens"] = json.dumps(content)
    cases["its runs lack"] = json.dumps({**content, "runs": []})
    for i, text in enumerate(cases.values()):
        file = tmp_path / f"bad{i}.json"
        file.write_text(text)
        code, _, err = told(capsys, file)
        assert code == 2, text
        assert "experiments.sweep plan CONFIG --json" in err
        assert err.count("\n") == 1
    code, _, err = told(capsys, plan, "--flops", 1e12, "--target-flops", 1e14)
    assert (code, "a plan has no losses" in err) == (2, True)
    code, _, err = told(capsys, tmp_path / "absent.json")
    assert (code, "no such file" in err) == (2, True)


def test_shapes_are_exact_for_every_width() -> None:
    for preset in ("gpt", "vaswani"):
        for head in ({"d_head": 16}, {"n_heads": 4}):
            made = [model(preset, head, d) for d in (32, 48, 96, 160)]
            found = ladder(pd.DataFrame([row(m) for m in made]))
            assert isinstance(found, Ladder), found
            for d in range(found.step, 400, found.step):
                one = model(preset, head, d)
                assert found.N(d) == parameter_counts(one).total
                assert found.per_token(d) == flops_per_token(one).exact
                assert found.shape(d)["n_heads"] == one.n_heads
                assert found.nearest(found.N(d) * 1.001) == d


def model(preset: str, head: dict[str, int], d: int) -> ModelConfig:
    heads = d // head["d_head"] if "d_head" in head else head["n_heads"]
    return ModelConfig.model_validate(
        {"preset": preset, "d_model": d, "n_heads": heads, "n_layers": 2, "vocab_size": 300}
        | {"seq_len": 64}
    )


def row(m: ModelConfig) -> dict:
    flops = flops_per_token(m).exact
    own = {"d_head": m.d_head, "n_total": parameter_counts(m).total, "tokens": 1e6}
    return {**m.model_dump(), **own, "flops_exact": 1e6 * flops}


def test_a_ladder_that_is_none_is_said_to_be_none() -> None:
    deep = [
        row(model("gpt", {"d_head": 16}, d).model_copy(update={"n_layers": n}))
        for d, n in ((32, 1), (64, 2), (96, 3))
    ]
    assert "three fix" in str(ladder(pd.DataFrame(deep)))
    table = pd.DataFrame([row(model("gpt", {"d_head": 16}, d)) for d in (32, 64, 96, 128)])
    bent = table.assign(n_total=table["n_total"] + [0, 0, 7, 0])
    assert "no quadratic" in str(ladder(bent))
    assert "no d_ff" in str(ladder(table.drop(columns="d_ff")))


def test_the_toml_writer_keeps_every_value() -> None:
    config = without_nulls(json.loads((QUICK / "sweep.json").read_text())["config"])
    config["data"] = {**config["data"], "source": "text", "path": ['a "quoted"\\path', "b"]}
    config["grid"]["runs"] = [{"model": {"d_model": 40}, "flops": 1e12, "holdout": True}]
    run = {"d_model": 32, "tokens": 1000, "seed": 3, "lr_multiplier": 0.5}
    read = tomllib.loads(extended(config, [run], "title\nand more"))
    assert read["data"]["path"] == config["data"]["path"]
    assert read["train"] == config["train"]
    assert read["grid"]["runs"] == [{"d_model": 40, "flops": 1e12, "holdout": True}, run]
    parsed = configs.parse(read, where="test")
    assert parsed.grid.runs[1].lr_multiplier == 0.5


def test_a_sweep_that_is_started_but_has_no_rows_names_the_remedy(tmp_path, capsys) -> None:
    code, _, err = told(capsys, tmp_path)
    assert code == 2
    assert "collect" in err
    folder = write_sweep(tmp_path / "held", frame=results_frame(Plan()).assign(holdout=True))
    code, _, err = told(capsys, folder)
    assert (code, "no run to fit" in err) == (2, True)
