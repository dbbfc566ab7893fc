"""Forms compared: criteria, hold-out against the baselines, rolling origin in compute."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from synthetic import TRUTH, Plan, rows_of

from analysis.compare import (
    FACTORS,
    Origin,
    best_predictor,
    criteria,
    holdout,
    origins,
    point,
    rolling,
)
from analysis.gls import fit_gls
from analysis.laws import CHINCHILLA, GAMMA, KAPLAN, KAPLAN_E, LAWS, TIED, TWO_TERM
from analysis.load import load
from analysis.rows import Rows
from analysis.solve import fit_law

FREE = {law.name: {} for law in LAWS}


def make(N, D, L, trunk=None):
    N, D, L = (np.asarray(v, float) for v in (N, D, L))
    return Rows(N, D, 6 * N * D, L, np.arange(len(N)) if trunk is None else trunk)


def trunk_fit(law, rows, fixed=None):
    X = rows.variables(law.variables)
    fit = fit_law(law, X, rows.L, fixed=fixed)
    return fit_gls(law, X, rows.L, rows.trunk, fit.rivals, fixed)


@pytest.mark.parametrize("law", [CHINCHILLA, TWO_TERM, GAMMA], ids=lambda law: law.name)
def test_aic_and_bic_are_those_of_the_dense_gaussian_likelihood(law):
    rows = rows_of(Plan(holdout=(), seed=2))
    gls = trunk_fit(law, rows)
    n = len(rows)
    same = rows.trunk[:, None] == rows.trunk[None, :]
    V = gls.rss / n * (np.eye(n) + gls.rho2 * same)
    likelihood = multivariate_normal(np.zeros(n), V).logpdf(gls.residuals)
    found = criteria(gls)
    assert found.k == len(law.parameters) + 2
    assert found.aic == pytest.approx(2 * found.k - 2 * likelihood, rel=1e-9)
    assert found.bic == pytest.approx(np.log(n) * found.k - 2 * likelihood, rel=1e-9)
    # The scale that the likelihood takes is the one that makes it largest.
    for factor in (0.9, 1.1):
        other = multivariate_normal(np.zeros(n), V * factor).logpdf(gls.residuals)
        assert other < likelihood


def test_independent_rows_have_one_variance_and_a_fixed_parameter_is_not_counted():
    rows = rows_of(Plan(holdout=()))
    alone = dataclasses.replace(rows, trunk=np.arange(len(rows)))
    fit = fit_law(CHINCHILLA, (rows.N, rows.D), rows.L, delta=1e4)
    n, s2 = 60, np.mean(fit.residuals**2)
    likelihood = -n / 2 * (np.log(2 * np.pi * s2) + 1)
    found = criteria(trunk_fit(CHINCHILLA, alone))
    assert found.k == 6
    assert found.aic == pytest.approx(12 - 2 * likelihood, rel=1e-9)
    assert found.bic == pytest.approx(6 * np.log(n) - 2 * likelihood, rel=1e-9)
    assert criteria(trunk_fit(CHINCHILLA, alone, {"E": 1.3})).k == 5


def test_the_form_that_made_the_data_has_the_lowest_aic_or_one_that_holds_it():
    """A form with more freedom gains what chance gives it: less than 2 AIC on average."""
    gaps = []
    for seed in range(5):
        rows = rows_of(Plan(holdout=(), seed=seed))
        some = (CHINCHILLA, GAMMA, TWO_TERM, KAPLAN, KAPLAN_E)
        aic = {law.name: criteria(trunk_fit(law, rows)).aic for law in some}
        assert aic["chinchilla"] + 20 < min(aic["two-term"], aic["kaplan"], aic["kaplan-e"])
        gaps.append(aic["gamma"] - aic["chinchilla"])
    assert np.mean(gaps) > 0
    assert min(gaps) > -8


def test_a_tied_truth_does_not_pay_for_a_second_exponent():
    tied = {**TRUTH, "A": 60.0, "alpha": 0.4}
    gaps = []
    for seed in range(6):
        rows = rows_of(Plan(holdout=(), seed=seed, truth=tied))
        one, two = (criteria(trunk_fit(law, rows)) for law in (TIED, CHINCHILLA))
        assert (one.k, two.k) == (6, 7)
        gaps.append(two.bic - one.bic)
    assert np.mean(gaps) > 0


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
    fit = fit_law(CHINCHILLA, (train.N, train.D), train.L)
    held = holdout({"chinchilla": CHINCHILLA.loss(fit.theta, test.N, test.D)}, train, test)
    assert held.error("chinchilla") < 0.003
    assert held.error("chinchilla") < held.error("log-linear") / 3
    assert held.error("chinchilla") < held.error("largest") / 3


def test_no_held_out_rows_no_holdout(ray):
    study = load(ray)
    assert holdout({}, study.train, study.test) is None


# Rolling origin.


@pytest.fixture(scope="module")
def wide():
    """2.7 decades of compute: all four steps leave rows to fit."""
    sizes = tuple(np.geomspace(2e4, 1.2e6, 9))
    return rows_of(Plan(sizes=sizes, horizons=(0.5e6, 1e6, 2e6, 4e6, 8e6), holdout=(), seed=1))


def test_the_split_is_by_compute_alone(wide):
    steps = origins(wide, 6)
    assert [factor for factor, _ in steps] == list(FACTORS)
    for factor, inside in steps:
        assert wide.C[inside].max() <= wide.C.max() / factor < wide.C[~inside].min()


def test_steps_with_too_few_rows_or_sizes_are_left_out(wide):
    assert origins(wide, len(wide)) == []
    two = wide.take(wide.size < 2)
    assert origins(two, 6) == []
    level = dataclasses.replace(wide, C=np.full(len(wide), 1e15))
    assert origins(level, 6) == []


@pytest.mark.parametrize("estimator", ["gls-reml", "huber"])
def test_errors_are_those_of_a_fit_to_the_cheap_rows(wide, estimator):
    table = rolling((CHINCHILLA, TWO_TERM), wide, FREE, estimator, 6)
    steps = origins(wide, 6)
    assert [t.factor for t in table] == [factor for factor, _ in steps]
    for row, (_, inside) in zip(table, steps, strict=True):
        cheap, dear = wide.take(inside), wide.take(~inside)
        assert (row.n_fitted, row.n_predicted) == (len(cheap), len(dear))
        for law in (CHINCHILLA, TWO_TERM):
            if estimator == "huber":
                theta = fit_law(law, (cheap.N, cheap.D), cheap.L).theta
            else:
                theta = trunk_fit(law, cheap).theta
            error = np.mean(np.abs(law.loss(theta, dear.N, dear.D) / dear.L - 1))
            assert row.errors[law.name] == pytest.approx(error, rel=1e-9)


def test_what_is_predicted_has_no_say(wide):
    """Other losses in the predicted rows leave the fits, and so the predictions, as they are."""
    factor, inside = origins(wide, 6)[1]
    spoilt = dataclasses.replace(wide, L=np.where(inside, wide.L, 2 * wide.L))
    theta = point(CHINCHILLA, wide.take(inside), {}, "gls-reml")
    L = CHINCHILLA.loss(theta, wide.N, wide.D)[~inside]
    (row,) = (t for t in rolling((CHINCHILLA,), spoilt, FREE, "gls-reml", 6) if t.factor == factor)
    expected = np.mean(np.abs(L / (2 * wide.L[~inside]) - 1))
    assert row.errors["chinchilla"] == pytest.approx(expected, rel=1e-9)


def test_the_true_form_predicts_best_and_fixed_values_are_kept(wide):
    table = rolling((CHINCHILLA, TWO_TERM), wide, FREE, "gls-reml", 6)
    assert best_predictor(table)[0] == "chinchilla"
    assert table[0].errors["chinchilla"] < 0.005 < table[0].errors["two-term"]
    wrong = {"chinchilla": {"E": 0.5}}
    worse = rolling((CHINCHILLA,), wide, wrong, "gls-reml", 6)
    assert worse[0].errors["chinchilla"] > table[0].errors["chinchilla"]


def test_the_best_predictor_is_the_lowest_mean_over_common_methods():
    table = [
        Origin(3, 20, 5, {"a": 0.01, "b": 0.02, "only here": 0.0}),
        Origin(10, 15, 10, {"a": 0.05, "b": 0.03}),
    ]
    assert best_predictor(table) == ("b", pytest.approx(0.025))
    assert best_predictor([]) is None
