"""Forms compared: criteria, hold-out against the baselines, refits without a part."""

import numpy as np
import pytest

from analysis.compare import criteria, holdout, sensitivity
from analysis.laws import CHINCHILLA, TWO_TERM
from analysis.load import Rows, load
from analysis.solve import fit_law


def make(N, D, L, trunk=None):
    N, D, L = (np.asarray(v, float) for v in (N, D, L))
    return Rows(N, D, 6 * N * D, L, np.arange(len(N)) if trunk is None else trunk)


def test_aic_and_bic_of_known_residuals(good):
    rows = load(good).train
    found = criteria(CHINCHILLA, rows, {})
    fit = fit_law(CHINCHILLA, rows.N, rows.D, rows.L, delta=1e4)
    n, s2 = 60, np.mean(fit.residuals**2)
    log_likelihood = -n / 2 * (np.log(2 * np.pi * s2) + 1)
    assert found.k == 6
    assert found.aic == pytest.approx(12 - 2 * log_likelihood, rel=1e-9)
    assert found.bic == pytest.approx(6 * np.log(n) - 2 * log_likelihood, rel=1e-9)
    assert criteria(CHINCHILLA, rows, {"E": 1.3}).k == 5


def test_the_form_that_made_the_data_has_the_lower_aic(good):
    rows = load(good).train
    assert criteria(CHINCHILLA, rows, {}).aic + 50 < criteria(TWO_TERM, rows, {}).aic


def test_the_baselines_by_hand():
    N = np.repeat([1e5, 2e5, 4e5], 2)
    D = np.tile([1e6, 2e6], 3)
    L = np.array([3.0, 2.8, 2.7, 2.5, 2.5, 2.2])
    train, test = make(N, D, L), make([8e5, 8e5], [1e6, 2e6], [2.4, 2.0])
    held = holdout({}, train, test)
    assert held.predictions["largest"] == pytest.approx([2.5, 2.2])
    x = np.log([1e5, 2e5, 4e5])
    for i, z in enumerate((np.log([3.0, 2.7, 2.5]), np.log([2.8, 2.5, 2.2]))):
        slope, level = np.polyfit(x, z, 1)
        expected = np.exp(level + slope * np.log(8e5))
        assert held.predictions["log-linear"][i] == pytest.approx(expected)
    assert held.error("largest") == pytest.approx((0.1 / 2.4 + 0.2 / 2.0) / 2)
    assert held.notes == ()


def test_a_horizon_without_rows_uses_the_nearest_and_says_so():
    train = make(np.repeat([1e5, 2e5], 2), np.tile([1e6, 2e6], 2), [3.0, 2.8, 2.7, 2.5])
    held = holdout({}, train, make([4e5], [3e6], [2.2]))
    assert held.predictions["largest"] == pytest.approx([2.5])
    assert "no fitted row at D = 3e+06" in held.notes[0]


def test_seeds_of_one_size_are_averaged_in_log():
    N, D = np.repeat([1e5, 2e5], 2), np.full(4, 1e6)
    held = holdout({}, make(N, D, [3.0, 3.0, 2.6, 2.4]), make([4e5], [1e6], [2.2]))
    assert held.predictions["largest"] == pytest.approx([np.sqrt(2.6 * 2.4)])


def test_the_true_law_beats_both_baselines_on_held_out_rows(good):
    study = load(good)
    train, test = study.train, study.test
    fit = fit_law(CHINCHILLA, train.N, train.D, train.L)
    held = holdout({"chinchilla": fit}, train, test)
    assert held.error("chinchilla") < 0.003
    assert held.error("chinchilla") < held.error("log-linear") / 3
    assert held.error("chinchilla") < held.error("largest") / 3


def test_no_held_out_rows_no_holdout(ray):
    study = load(ray)
    assert holdout({}, study.train, study.test) is None


def test_sensitivity_leaves_out_each_size_and_horizon(good):
    study = load(good)
    train, test = study.train, study.test
    fit = fit_law(CHINCHILLA, train.N, train.D, train.L)
    table = sensitivity(CHINCHILLA, train, test, {}, fit)
    assert [r.without for r in table] == ["all rows"] + ["N"] * 6 + ["D"] * 5
    assert [r.n_rows for r in table] == [60, 45, 45, 45, 55, 55, 55, 48, 48, 48, 48, 48]
    assert table[0].parameters == fit.parameters
    keep = train.N != 400e3
    direct = fit_law(CHINCHILLA, train.N[keep], train.D[keep], train.L[keep])
    assert table[6].parameters["alpha"] == pytest.approx(direct.parameters["alpha"], rel=1e-9)
    assert table[6].holdout_error > table[0].holdout_error  # the nearest size is gone
