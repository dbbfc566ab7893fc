"""Published fits, done again: never a worse objective, and the standard errors of a notebook."""

import numpy as np
import pytest

from analysis import public
from analysis.coverage import DESIGNS, cell, summary
from analysis.fitspeed import Speed, lines, notebook_weights
from analysis.law import EXPONENT_LIMITS
from analysis.laws import CHINCHILLA
from analysis.pipeline import TRUTHS, as_study, trusted
from analysis.pipeline import cell as default_cell
from analysis.refit import refit
from analysis.solve import fit_law

GEMSTONES = [n for n in public.SETS if n.startswith("gemstones_")]


@pytest.fixture(scope="module")
def data():
    folder = public.folder()
    if folder is None:
        pytest.skip("public data not here: ../shared/data")
    return folder


@pytest.mark.parametrize("delta", ["1e-3", "1e-4"])
@pytest.mark.parametrize("name", GEMSTONES)
def test_no_published_gemstones_fit_is_better(data, name, delta):
    study = public.read(name, data)
    published = study.published.get(f"objective@{delta}")
    if published is None:
        pytest.skip(f"{name}: nothing published at delta {delta}")
    rows = study.rows
    fit = fit_law(CHINCHILLA, (rows.N, rows.D), rows.L, delta=float(delta))
    if study.published[f"alpha@{delta}"] > EXPONENT_LIMITS[1]:  # one width only: 4.98
        assert "alpha is at its upper limit" in fit.status
        return
    assert fit.objective <= published + 1e-10  # printed to ten decimals
    assert fit.certificate.gradient < 1e-8


def test_the_notebooks_resamples_give_its_standard_errors(data):
    rows = public.read("epoch", data).rows
    X = rows.variables(CHINCHILLA.variables)
    fit = fit_law(CHINCHILLA, X, rows.L)
    many = refit(fit, X, rows.L, notebook_weights(len(rows)))
    assert many.gradient.max() < 1e-6
    sd = dict(zip(CHINCHILLA.parameters, many.theta.std(0), strict=True))
    for name, known in (("alpha", 0.015396), ("beta", 0.020629), ("E", 0.025677)):
        assert sd[name] == pytest.approx(known, rel=2e-3)


def test_speed_ratios_are_products_of_what_was_measured():
    errors = {"E": 0.02}
    s = Speed(240, 4500, 100, 0.03, 0.01, 0.008, 2.0, 4000, 1e-3, 1e-3, 90, errors)
    assert s.fit_ratio == pytest.approx(0.03 * 4500 / 0.01)
    assert s.refit_ratio == pytest.approx(0.03 * 4500 * 4000 / 2.0)
    assert "10.0% of 100 sampled reach the optimum" in lines(s)[0]
    assert s.to_json()["fit_ratio"] == s.fit_ratio


def test_the_coverage_benchmark_counts(monkeypatch):
    entries, seconds = cell("published", DESIGNS[1], 0.001, 6, seed=0)
    assert [e.target for e in entries] == ["alpha", "beta", "E", "a", "loss at 10x"]
    assert len(seconds) == 6
    assert all(0 <= e.coverage <= 1 and e.width > 0 for e in entries)
    total = summary(entries)
    assert total["min"] <= total["mean"] <= total["max"]


@pytest.mark.parametrize("truth", list(TRUTHS))
def test_the_default_interval_holds_most_truths(truth):
    found = default_cell(truth, DESIGNS[1], 0.001, 5, seed=1)
    assert found.coverage >= 0.6  # 5 studies at 90 % or more: three or fewer is under 1 %
    assert 0.003 < found.half_width < 0.1


def test_a_simulated_study_is_judged_as_a_real_one():
    [(trust, error)] = trusted("chinchilla", DESIGNS[1], 0.001, 1, seed=0)
    assert trust in ("high", "medium", "low")
    assert error < 0.03
    study = as_study(DESIGNS[1].rows())
    assert len(study.test) == 5
    assert np.unique(study.test.N).size == 1
