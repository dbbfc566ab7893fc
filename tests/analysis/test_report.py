"""The report: one self-contained page that says what matters first, and its files."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from markupsafe import Markup
from page import Page, section
from synthetic import HORIZONS, SIZES, Plan, results_frame, truth_loss, write_sweep

from analysis import plots, rowtables
from analysis.analyse import analyse
from analysis.describe import headline
from analysis.interval import Interval
from analysis.load import Columns, load
from analysis.noise import LackOfFit
from analysis.optima import REASONS
from analysis.report import html, main, write_report
from analysis.result import Default, Forecast
from analysis.words import number, percent

QUICK = Path(__file__).parents[1] / "data" / "quick"
SECTIONS = (
    "headline", "law", "figures", "prediction", "approaches", "forms", "rolling", "holdout",
    "sensitivity", "leverage", "optimal", "next", "curves", "runs", "excluded", "provenance",
)  # fmt: skip
SMALL = Plan(sizes=SIZES[:4], horizons=HORIZONS[:3], cheap=1, holdout=())


@pytest.fixture(scope="module")
def study(analysed):
    return analysed


@pytest.fixture(scope="module")
def good_page(study, good):
    write_report(study, good, good / "report.html")
    return (good / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def blind(ray):
    return analyse(load(ray))


@pytest.fixture
def no_figures(monkeypatch):
    """For tests of what the command says: drawing takes most of its time."""
    monkeypatch.setattr("analysis.report.FIGURES", ())


def grid_csv(folder):
    """An isoFLOP grid: seven sizes at each of four budgets."""
    rng, rows = np.random.default_rng(0), []
    for C in (1e18, 6e18, 4e19, 2e20):
        N = 0.2 * (C / 6) ** 0.5 * np.geomspace(0.2, 5, 7)
        rows += [(n, C / (6 * n), C) for n in N]
    table = pd.DataFrame(rows, columns=["n", "d", "c"])
    noise = np.exp(rng.normal(scale=0.003, size=len(table)))
    table["loss"] = truth_loss(table["n"], table["d"], WEB) * noise
    table.to_csv(folder / "grid.csv", index=False)
    return load(folder / "grid.csv", Columns(n="n", d="d", loss="loss", flops="c"))


def single_csv(folder):
    """240 rows, every one a run of its own at a size of its own."""
    rng = np.random.default_rng(1)
    N = np.exp(rng.uniform(np.log(1e7), np.log(1e10), 240))
    D = N * np.exp(rng.uniform(np.log(3), np.log(300), 240))
    L = truth_loss(N, D, WEB) * np.exp(rng.normal(scale=0.01, size=240))
    pd.DataFrame({"n": N, "d": D, "loss": L}).to_csv(folder / "single.csv", index=False)
    return load(folder / "single.csv", Columns(n="n", d="d", loss="loss"))


WEB = {"E": 1.82, "A": 478.0, "B": 2143.0, "alpha": 0.347, "beta": 0.367}


def well_formed(page):
    parsed = Page(page)
    assert parsed.open == []
    assert len(parsed.ids) == len(set(parsed.ids))
    assert tuple(i for i in parsed.ids if i in SECTIONS) == SECTIONS
    assert not re.search(r"\bnan\b|\binf\b|None", parsed.text)
    return parsed


def test_the_page_needs_nothing_but_itself(good_page):
    page = well_formed(good_page)
    assert "http:" not in good_page
    assert "https:" not in good_page
    assert not [a for a in page.attributes if a[1] in ("src", "srcset", "data", "action")]
    links = [v for _, k, v in page.attributes if k in ("href", "xlink:href")]
    assert {f"#{name}" for name in SECTIONS[1:]} < set(links)
    assert all(v.startswith("#") for v in links)
    assert "<script" not in good_page
    assert "@import" not in good_page
    used = {v[1:] for v in links} | set(re.findall(r"url\(#([^)]+)\)", good_page))
    assert used <= set(page.ids)


def test_the_page_shows_figures_tables_and_provenance(good_page, study):
    page = Page(good_page)
    assert good_page.count("<svg") == len(plots.FIGURES) - 1  # `law` is a file only
    for row in study.study.table["row"]:
        assert row in page.text
    for words in ("0123abc", "d" * 64, "numpy", "Certified optimum"):
        assert words in page.text


def test_the_files_beside_the_page(good, good_page):
    data = json.loads((good / "fits.json").read_text(encoding="utf-8"))
    assert data["selected"] == "chinchilla"
    names = {f.name for f in (good / "figures").iterdir()}
    for figure, _ in plots.FIGURES:
        assert {f"{figure}.png", f"{figure}.svg"} <= names
    assert (good / "figures" / "law.png").read_bytes()[:4] == b"\x89PNG"


def test_the_law_names_its_interval_and_shows_the_other_methods_beside(good_page, study):
    text, result = section(good_page, "law"), study.chosen
    assert "90 % interval (reml-profile-t) df cr2 trunk-bootstrap" in text
    alpha = result.intervals["alpha"]
    others = [result.other_intervals[m]["alpha"] for m in ("cr2", "trunk-bootstrap")]
    row = [f"α {number(result.parameters['alpha'])} {number(alpha.low)} to {number(alpha.high)}"]
    row += [f"{result.df['alpha']:.1f}"]
    row += [f"{number(i.low)} to {number(i.high)}" for i in others]
    assert " ".join(row) in text
    gls = result.estimate.gls
    told = f"{percent(gls.trunk_sd)} of the loss between trunks, {percent(gls.row_sd)} between rows"
    assert told.replace("\u00a0", " ") in text
    assert "Huber and GLS estimates agree within 2 standard errors" in text


def test_estimators_that_disagree_are_named_with_their_distance(study):
    apart = replace(study.chosen, apart={"E": 0.4, "alpha": 3.21})
    results = tuple(apart if r.name == apart.name else r for r in study.results)
    text = section(html(replace(study, results=results), {}), "law")
    assert "Huber and GLS estimates differ, in standard errors: α by 3.2." in text
    assert "agree" not in text


def test_without_a_default_prediction_the_page_says_where_the_laws_own_stands(study):
    text = section(html(replace(study, default=None), {}), "prediction")
    assert "No default prediction was made" in text
    assert "chinchilla law itself" in text


@pytest.mark.parametrize("on", [True, False])
def test_the_default_prediction_is_told_with_both_intervals_and_what_the_prior_did(study, on):
    forecasts = tuple(
        Forecast(
            flops=row.flops, N=2.5e5, D=4e6, L=1.9876, noise=Interval(1.98, 1.99),
            misfit=Interval(1.95, 2.03), plain=1.9911, selected=None if i == 0 else 1.9888,
            extrapolated=row.extrapolated,
        )
        for i, row in enumerate(study.optimal)
    )  # fmt: skip
    default = Default(
        parameters={"E": 1.2, "A": 30.0, "B": 150.0, "alpha": 0.36, "beta": 0.41, "gamma": 0.93},
        prior=on, why="the prior is off: conflict test p = 0.002" if not on else "the prior is on",
        shift={"alpha": -0.84, "beta": 0.2, "log E": 1.1, "log gamma": -0.4} if on else {},
        conflict=0.31 if on else None, forecasts=forecasts, holdout_error=0.0021,
    )  # fmt: skip
    page = html(replace(study, default=default), {})
    text = section(page, "prediction")
    assert "250k 4M 1.988 1.980 to 1.990 1.950 to 2.030 – 1.991" in text
    assert "250k 4M 1.988 1.980 to 1.990 1.950 to 2.030 1.989 1.991" in text
    assert text.count("†") == sum(f.extrapolated for f in forecasts) + 1
    assert "Mean error on the held-out runs: 0.21 %" in text
    assert "γ = 0.9300" in text
    shift = "α −0.84, β +0.20, log E +1.10, log γ −0.40"
    assert (shift in text) == ("Conflict of prior and data: p = 0.31" in text) == on
    assert ("The prior is off: conflict test p = 0.002." in text) != on
    assert "1.950 to 2.030, 90 % interval with misfit" in section(page, "headline")


def test_the_approaches_stand_beside_the_law_with_bias_and_refusals(good_page, study):
    text = section(good_page, "approaches")
    assert f"3 chinchilla {number(study.chosen.a)}" in text
    for beside, label in zip(
        study.approaches, ("1 envelope", "2 parabola", "2 Akima"), strict=True
    ):
        found = beside.approach
        low, high = found.params.interval
        bias = f"{beside.bias.a:+.3f}".replace("-", "−")
        assert (
            f"{label} {number(found.a)} {number(low)} to {number(high)} "
            f"{number(beside.bias.true_a)} {bias} {len(found.used)} of {len(found.curves)}"
        ) in text
        for reason in {c.reason for c in found.curves if c.reason}:
            count = sum(c.reason == reason for c in found.curves)
            assert f"{label} {reason} {count} of {len(found.curves)}" in text
            assert REASONS[reason] in text
    assert "interpolated between each size's horizons" in text


def test_rolling_has_a_row_per_step_with_the_best_form_bold(good_page, study):
    start = good_page.index('<section id="rolling">')
    part = good_page[start : good_page.index("</table>", start)]
    for origin in study.rolling:
        row = re.search(rf"<tr><td>{origin.factor}</td>.*</tr>", part)[0]
        assert f"<td>{origin.n_fitted}</td><td>{origin.n_predicted}</td>" in row
        best = percent(min(origin.errors.values()))
        cells = re.findall(r"<td>(?:<b>)?([^<]+)(?:</b>)?</td>", row)[3:]
        assert cells == [percent(origin.errors[r.name]) for r in study.results]
        assert set(re.findall(r"<b>([^<]+)</b>", row)) == {best}


def test_the_hold_out_has_each_run_with_its_interval_and_errors(good_page, study):
    text, held = section(good_page, "holdout"), study.holdout
    ends = study.holdout_intervals[0]
    predicted = held.predictions["chinchilla"]
    errors = [100 * (held.predictions[k][0] / held.rows.L[0] - 1) for k in held_names(held)]
    signed = " ".join(f"{e:+.2f}".replace("-", "−") for e in errors)
    assert (
        f"{number(held.rows.L[0])} {number(predicted[0])} {number(ends.low)} to "
        f"{number(ends.high)} {signed}"
    ) in text
    mean = " ".join(f"{100 * held.error(k):.2f}" for k in held_names(held))
    assert f"mean |error|, % {mean}" in text


def held_names(held):
    return ["chinchilla", *(k for k in ("largest", "log-linear") if k in held.predictions)]


def test_sensitivity_is_grouped_and_complete(good_page, study):
    text = section(good_page, "sensitivity")
    at = [text.index(f"{name} without") for name in ("without one size", "without one horizon")]
    at += [text.index("objective and weights Huber"), text.index("convention of N and C n_total")]
    assert at == sorted(at)
    for refit in study.sensitivity:
        row = f"{refit.n_rows} {number(refit.parameters['E'])}"
        tail = f"{number(refit.a)} {number(refit.loss_10x)} {percent(refit.holdout_error)}"
        assert row in text
        assert tail.replace("\u00a0", " ") in text


def test_the_rows_of_highest_leverage_stand_first(good_page, study):
    text = section(good_page, "leverage")
    shift = np.abs(study.leverage.shift)
    ids = study.study.used["row"][~study.study.holdout].to_numpy()
    order = [str(ids[i]) for i in np.argsort(-shift)]
    top = text[: text.index("60 of 60 fitted rows")]
    assert [w for w in top.split() if w in set(order)] == order[:8]
    assert all(row in text for row in order)
    i = int(np.argmax(shift))
    told = f"{study.leverage.hat[i]:.3f} {study.leverage.shift[i]:+.2f}".replace("-", "−")
    assert told in top


def test_an_unidentified_design_gets_no_constants_and_says_what_to_run(blind):
    page = html(blind, {})
    text = well_formed(page).text
    assert "not identified by this design: every run has D/N near 20" in text
    assert "train each size at 4 or more horizons" in text
    assert "Break the tie between N and D" in text
    law = page[page.index('id="law"') : page.index('id="figures"')]
    assert law.count("<td>–</td>") == 6
    assert "No runs were held out" in text
    assert "No refits are shown: not identified by this design" in text
    assert "No leverage is shown" in text
    assert "3 chinchilla – not identified" in section(page, "approaches")
    assert "2 parabola: 0 different optima" in section(page, "approaches")
    for name in ("alpha", "beta", "a"):  # no refit, form or note states them either
        value = blind.chosen.a if name == "a" else blind.chosen.parameters[name]
        assert number(value) not in text


def test_an_unidentified_law_has_captions_that_say_so(blind):
    figures = {name: Markup("<svg></svg>") for name, draw in plots.FIGURES if draw(blind)}
    text = well_formed(html(blind, figures)).text
    assert text.count("no line of it is drawn") == 3


def test_a_rejected_law_is_said_before_anything_else(study):
    test = LackOfFit(F=5.2, df=(25, 6), p=0.0003, rms=0.012, sigma=0.0015)
    rejected = replace(study.chosen, lack_of_fit=test)
    results = tuple(rejected if r.name == rejected.name else r for r in study.results)
    text = Page(html(replace(study, results=results), {})).text
    assert text.index("is rejected at this noise") < text.index("trust")


def test_strict_fails_where_trust_is_low(ray, blind, tmp_path, capsys, monkeypatch, no_figures):
    monkeypatch.setattr("analysis.report.analyse_arguments", lambda _: blind)
    out = tmp_path / "r.html"
    assert main([str(ray), "--out", str(out), "--strict"]) == 1
    captured = capsys.readouterr()
    assert f"report: {out}" in captured.out
    assert "trust is low" in captured.err
    assert out.exists()


def test_bad_input_exits_2_and_writes_nothing(tmp_path, capsys):
    assert main([str(tmp_path / "missing")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_table_gets_a_report_without_the_parts_it_cannot_have(tmp_path, no_figures):
    frame = results_frame(SMALL)
    table = pd.DataFrame({"n": frame["n_total"], "d": frame["tokens"], "loss": frame["val_loss"]})
    table["name"] = "<b>" + frame["trunk_id"]
    table.to_csv(tmp_path / "t.csv", index=False)
    arguments = ["--n", "n", "--d", "d", "--loss", "loss", "--trunk", "name"]
    assert main([str(tmp_path / "t.csv"), *arguments]) == 0
    text = (tmp_path / "t-report" / "report.html").read_text(encoding="utf-8")
    assert "The source has no training curves." in text
    assert "6ND" in text
    well_formed(text)


def test_text_of_the_data_is_escaped_and_rows_left_out_stand_in_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(rowtables, "MAX_RUNS", 12)
    frame = results_frame(SMALL)
    frame.loc[3, "status"], frame.loc[3, "reason"] = "failed", "<script>alert(1)</script>"
    frame.loc[0, "steps"] = 100
    frame.loc[7, "arm"] = "lr*2"
    page = html(analyse(load(write_sweep(tmp_path / "s", frame=frame))), {})
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)" in page
    text = Page(page).text
    assert "too few steps: 100 < 500" in text
    assert "another recipe (arm lr*2)" in text
    assert "too_few_steps" in text
    assert f"12 of {len(frame)} rows" in text


@pytest.mark.slow
@pytest.mark.parametrize("source", ["bent", "quick", "grid", "single"])
def test_whole_reports_of_other_studies(source, request, tmp_path):
    if source == "bent":
        found = load(request.getfixturevalue("bent"))
    else:
        found = {"quick": lambda _: load(QUICK), "grid": grid_csv, "single": single_csv}[source](
            tmp_path
        )
    analysis = analyse(found)
    write_report(analysis, tmp_path, tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    text = well_formed(page).text
    if source == "bent":
        first = headline(analysis)[0]
        assert first.startswith(f"The {analysis.selected} law is rejected at this noise")
        assert re.search(r"lack of fit F\(\d+, 6\) = [\d.]+, p < 0.001", first)
        assert text.index("is rejected at this noise") < text.index("trust")
    if source == "grid":
        assert "losses at equal compute, measured," in text
        assert "without C = 6.0e18" in text
        assert len(analysis.approaches[1].approach.used) == 4
    if source == "single":
        assert "90 % interval (trunk-bootstrap)" in text.replace("\u00a0", " ")
        assert "without one size" not in text
    lacks = [name for name, draw in plots.FIGURES if draw(analysis) is None]
    assert page.count("<svg") == len(plots.FIGURES) - 1 - len(lacks)
    foreign = {"held_out", "training_curves"} if source in ("grid", "single") else set()
    assert foreign <= set(lacks) <= foreign | {"isoflop"}
