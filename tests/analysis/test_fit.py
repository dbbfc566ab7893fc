"""The fit command: golden texts, fits.json, bad input, selection, trust, and the laws' options."""

import dataclasses
import difflib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic import TRUTH, Plan, results_frame, truth_loss, write_sweep

from analysis.analyse import analyse
from analysis.fit import main
from analysis.fitsjson import to_json
from analysis.interval import Interval
from analysis.laws import GAMMA, LAWS
from analysis.load import Columns, load
from analysis.trust import judge

GOLDEN = Path(__file__).parents[1] / "golden"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def good_analysis(good):
    return analyse(load(good))


@pytest.fixture(scope="module")
def ray_analysis(ray):
    return analyse(load(ray))


def golden(name, text, folder):
    """Compare with the golden file; the temporary folder is written as runs/NAME."""
    text = text.replace(str(folder), f"runs/{folder.name}")
    expected = (GOLDEN / name).read_text(encoding="utf-8")
    difference = difflib.unified_diff(expected.splitlines(), text.splitlines(), lineterm="")
    assert text == expected, "\n".join(difference)


@pytest.mark.usefixtures("all_resamples")
def test_golden_text_of_a_good_study(good, capsys):
    assert main([str(good)]) == 0
    golden("fit_good.txt", capsys.readouterr().out, good)


@pytest.mark.usefixtures("all_resamples")
def test_golden_text_of_an_unidentified_study(ray, capsys):
    assert main([str(ray)]) == 0
    golden("fit_unidentified.txt", capsys.readouterr().out, ray)


def test_the_truth_lies_in_its_intervals_and_near_the_values(good_analysis):
    result = good_analysis.chosen
    assert good_analysis.selected == "chinchilla"
    assert result.trust == "high"
    truth = {**TRUTH, "a": TRUTH["beta"] / (TRUTH["alpha"] + TRUTH["beta"])}
    missed = []
    for name in ("E", "alpha", "beta", "a"):
        value = {**result.parameters, "a": result.a}[name]
        assert value == pytest.approx(truth[name], rel=0.05)
        if not result.intervals[name].low < truth[name] < result.intervals[name].high:
            missed.append(name)
    assert len(missed) <= 1  # one 90 % interval of four may miss


KEYS = {
    "law", "estimator", "parameters", "a", "level", "interval_method", "intervals",
    "interval_notes", "other_intervals", "df", "variance", "objective", "huber_objective",
    "certificate", "n_rows", "n_trunks", "aic", "bic", "holdout", "status", "trust",
    "trust_reason",
}  # fmt: skip
TOP = {"schema", "source", "units", "excluded", "flagged", "fits", "selected", "optimal"}
OPTIMAL = {
    "flops", "params", "tokens", "loss", "params_interval", "tokens_interval",
    "loss_interval_noise", "loss_interval_misfit",
}  # fmt: skip


def numbers(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [n for v in value for n in numbers(v)]
    return [value] if isinstance(value, float) else []


def test_fits_json_keeps_the_contract(good, good_analysis, tmp_path):
    file = tmp_path / "fits.json"
    assert main([str(good), "--json", str(file)]) == 0

    def refuse(constant):
        raise AssertionError(constant)

    data = json.loads(file.read_text(encoding="utf-8"), parse_constant=refuse)
    assert {
        "schema",
        "source",
        "units",
        "excluded",
        "flagged",
        "fits",
        "selected",
        "optimal",
    } <= set(data)
    assert data["schema"] == "fits/1"
    assert [f["law"] for f in data["fits"]] == [law.name for law in LAWS]
    fit = data["fits"][0]
    assert set(fit) >= KEYS
    assert set(fit["parameters"]) == {"E", "A", "B", "alpha", "beta"}
    assert set(fit["certificate"]) == {"gradient", "decrement", "optima", "condition"}
    assert set(fit["variance"]) == {"trunk_sd", "row_sd", "trunks"}
    assert fit["interval_method"] == "reml-profile-t"
    assert fit["estimator"] == "gls-reml"
    assert set(fit["other_intervals"]) == {"trunk-bootstrap", "cr2"}
    assert fit["holdout"]["n_rows"] == 5
    for row in data["optimal"]:
        assert set(row) >= OPTIMAL
        noise, misfit = row["loss_interval_noise"], row["loss_interval_misfit"]
        assert misfit[1] - misfit[0] > noise[1] - noise[0] > 0
    flops = [row["flops"] for row in data["optimal"]]
    C = load(good).train.C
    assert flops[0] == pytest.approx(C.min(), rel=0.05)
    assert flops[-1] == pytest.approx(10 * C.max(), rel=0.05)
    assert not list(tmp_path.glob("*.part"))
    assert fit["parameters"] == good_analysis.results[0].parameters


def test_open_ends_are_null_with_a_reason_and_nothing_is_nan(ray_analysis):
    data = to_json(ray_analysis)
    assert all(math.isfinite(n) for n in numbers(data))
    fit = data["fits"][0]
    assert fit["intervals"]["alpha"] == [None, None]
    assert "not identified by this design" in fit["interval_notes"]["alpha"]
    assert fit["trust"] == "low"
    for row in data["optimal"]:
        assert row["params"] is None
        assert "not identified by this design" in row["interval_notes"]["params_interval"]


def test_a_fixed_parameter_is_held_everywhere(good, good_analysis, capsys):
    assert main([str(good), "--fix", "E=1.3", "--law", "chinchilla"]) == 0
    text = capsys.readouterr().out
    assert "1.300   fixed" in text
    assert "two-term" in text
    narrow = analyse(load(good), fixed={"E": 1.3}).results[0].intervals["alpha"].width
    assert narrow < good_analysis.results[0].intervals["alpha"].width


def test_the_level_widens_intervals(good_analysis, good):
    wide = analyse(load(good), level=0.99)
    for name, one in good_analysis.chosen.intervals.items():
        assert wide.chosen.intervals[name].low < one.low
        assert wide.chosen.intervals[name].high > one.high


def test_the_law_asked_for_is_the_headline(good):
    analysis = analyse(load(good), law="two-term")
    assert (analysis.selected, analysis.selected_by) == ("two-term", "asked for by --law")


def test_hold_out_decides_only_among_forms_that_the_rows_support(tmp_path):
    # One held-out trunk with bad luck: the wrong form predicts it better, 1.5 % off the truth.
    frame = results_frame(Plan())
    two_term = named(analyse(load(write_sweep(tmp_path / "a", frame=frame))), "two-term")
    N, D = (frame[c].to_numpy(float) for c in ("n_total", "tokens"))
    lucky = two_term.law.loss(two_term.theta, N, D)
    frame["val_loss"] = np.where(frame["holdout"], lucky, frame["val_loss"])
    analysis = analyse(load(write_sweep(tmp_path / "b", frame=frame)))
    errors = [named(analysis, n).holdout_error for n in ("two-term", "chinchilla")]
    assert errors[0] < errors[1]
    assert analysis.selected == "chinchilla"
    assert "no form fits better by more than 10 AIC" in analysis.selected_by


def test_a_form_that_the_rows_reject_is_not_the_headline(tmp_path):
    frame = results_frame(Plan(trunk_noise=2e-4, row_noise=1e-4))
    N, D = (frame[c].to_numpy(float) for c in ("n_total", "tokens"))
    bent = np.array([1.2, 2e4, 1.5e5, 0.36, 0.4, 0.6])
    frame["val_loss"] *= GAMMA.loss(bent, N, D) / truth_loss(N, D)
    analysis = analyse(load(write_sweep(tmp_path / "s", frame=frame)))
    assert analysis.selected == "gamma"
    assert "chinchilla fits worse" in analysis.selected_by


def test_without_held_out_rows_aic_selects(tmp_path):
    analysis = analyse(load(write_sweep(tmp_path / "s", Plan(holdout=()))))
    assert analysis.selected_by.startswith("the default form")
    assert analysis.selected == "chinchilla"
    assert analysis.chosen.trust == "medium"


def few(analysis, **counts):
    design = dataclasses.replace(analysis.chosen.design, **counts)
    return dataclasses.replace(analysis.chosen.estimate, design=design)


def named(analysis, name):
    return next(r for r in analysis.results if r.name == name)


def judged(analysis, **changes):
    r = analysis.chosen
    facts = {
        "fit": r.fit, "estimate": r.estimate, "intervals": r.intervals, "df": r.df,
        "apart": {}, "noise": analysis.noise, "test": r.lack_of_fit,
        "holdout_error": r.holdout_error, "baseline": 0.03, "far": Interval(1.9, 1.91),
    }  # fmt: skip
    return judge(**(facts | changes))


@pytest.mark.parametrize(
    ("change", "trust", "reason"),
    [
        (lambda a: {}, "high", "certified"),
        (lambda a: {"holdout_error": None}, "medium", "no held-out runs"),
        (lambda a: {"holdout_error": 0.012}, "medium", "hold-out error is 1.20 %"),
        (lambda a: {"holdout_error": 0.05}, "low", "worse than a baseline"),
        (
            lambda a: {"noise": dataclasses.replace(a.noise, max_seeds=1, df_trunks=0)},
            "low", "no repeated seeds",
        ),
        (
            lambda a: {"noise": dataclasses.replace(a.noise, max_seeds=2, df_trunks=2)},
            "low", "too few repeated seeds",
        ),
        (lambda a: {"estimate": few(a, sizes=3)}, "low", "sizes: 3 only"),
        (lambda a: {"estimate": few(a, trunks=4)}, "low", "trunks: 4 only"),
        (lambda a: {"df": {**a.chosen.df, "a": 1.5}}, "low", "1.5 degrees of freedom"),
        (lambda a: {"apart": {"beta": 2.4}}, "medium", "Huber and GLS differ"),
        (lambda a: {"far": Interval(1.80, 1.90)}, "medium", "good to ±2.7 % only"),
        (
            lambda a: {"intervals": {**a.chosen.intervals, "E": Interval(None, 1.4)}},
            "medium", "one-sided interval: E",
        ),
        (
            lambda a: {
                "fit": dataclasses.replace(a.chosen.fit, at_limit={"E": "E vanishes"}),
            },
            "low", "E vanishes",
        ),
        (
            lambda a: {"test": dataclasses.replace(a.chosen.lack_of_fit, p=0.01)},
            "medium", "rejected by the lack-of-fit test",
        ),
        (
            lambda a: {
                "test": dataclasses.replace(a.chosen.lack_of_fit, p=0.01),
                "estimate": dataclasses.replace(
                    a.chosen.estimate, residuals=a.chosen.estimate.residuals * 20
                ),
            },
            "low", "rejected by the lack-of-fit test",
        ),
    ],
)  # fmt: skip
def test_the_trust_rule(good_analysis, change, trust, reason):
    found, reasons = judged(good_analysis, **change(good_analysis))
    assert found == trust
    assert reason in "; ".join(reasons)


def run(*arguments):
    """The command as a user runs it; warnings are errors there too."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "analysis.fit", *map(str, arguments)],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )  # fmt: skip


def test_the_command_refuses_bad_input_without_a_traceback(tmp_path):
    done = run(tmp_path / "nothing.parquet")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert "nothing.parquet: no such file or folder" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--fix", "delta=1"], "delta: no such parameter; choose from E, A, B, alpha, beta"),
        (["--fix", "E"], "not NAME=NUMBER"),
        (["--fix", "E=-1"], "every parameter is positive"),
        (["--level", "90"], "lies between 0 and 1"),
        (["--loss", "nope"], "lacks column nope"),
        (["--trunk", "nope"], "lacks column nope"),
        (["--law", "two-term", "--fix", "E=1"], "E: no such parameter"),
    ],
)
def test_bad_options_exit_2_with_one_message(good, capsys, arguments, text):
    assert main([str(good), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert text in captured.err


def test_all_runs_diverged_exits_1(tmp_path, capsys):
    frame = results_frame(Plan())
    frame["status"], frame["val_loss"] = "diverged", float("nan")
    assert main([str(write_sweep(tmp_path / "s", frame=frame))]) == 1
    assert "none of the 65 runs ended with a loss" in capsys.readouterr().err


def test_a_foreign_csv_needs_only_a_column_mapping(tmp_path, good_analysis):
    frame = results_frame(Plan())
    frame = frame[~frame["holdout"]]
    table = pd.DataFrame({"size": frame["n_total"], "data": frame["tokens"]})
    table["final"], table["run"] = frame["val_loss"], frame["trunk_id"]
    table.to_csv(tmp_path / "t.csv", index=False)
    study = load(tmp_path / "t.csv", Columns(n="size", d="data", loss="final", trunk="run"))
    analysis = analyse(study)
    assert analysis.flops.label == "6ND"
    found = analysis.results[0].theta
    assert found == pytest.approx(good_analysis.results[0].theta, rel=1e-6)
