"""The data-constrained law: the published formula, objective and minimum; recovery; optimum."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.datalaw import DataConstrainedLaw
from analysis.flops import FlopsPerToken
from analysis.interval import Interval, percentile
from analysis.laws import CHINCHILLA
from analysis.refit import refit
from analysis.repetition import by_passes, reuse_notes
from analysis.reuse import reuse_note
from analysis.solve import fit_law

LAW = DataConstrainedLaw(name="data-constrained", formula="", source="")
TRUTH = np.array([1.8, 480.0, 2100.0, 0.35, 0.37, 12.0, 5.0])
SIX_ND = FlopsPerToken()
DATA = Path(__file__).parents[2] / "../shared/data/datablations/runs_182_fit_set.csv"
# utils/parametric_fit.ipynb of huggingface/datablations@13701315: cell 30.
BASE = {
    "E": float(np.exp(0.6254804)),
    "A": float(np.exp(6.255414)),
    "B": float(np.exp(7.3049974)),
    "alpha": 0.3526596,
    "beta": 0.3526596,
}
PUBLISHED = np.array([*BASE.values(), 15.387756, 5.309743])


def notebook(theta, N, D, U):
    """The formula as cell 30 of the notebook states it: G, N_opt(C) and C(D) under C = 6ND."""
    E, A, B, alpha, beta, r_d, r_n = theta
    U = np.minimum(D, U)
    G = (alpha * A / (beta * B)) ** (1 / (alpha + beta))
    C = (G * U) ** ((alpha + beta) / alpha) * 6
    U_N = np.minimum(N, G * (C / 6) ** (beta / (alpha + beta)))
    repeats, excess = D / U - 1, N / U_N - 1
    n = U_N + U_N * r_n * (1 - np.exp(-excess / r_n))
    d = U + U * r_d * (1 - np.exp(-repeats / r_d))
    return E + A / n**alpha + B / d**beta


def runs(n, seed=0, epochs=50.0):
    """N, D, U of n random runs, some with repetition and some with more parameters than N_opt."""
    rng = np.random.default_rng(seed)
    N, U = 10 ** rng.uniform(7, 10, n), 10 ** rng.uniform(8, 10.5, n)
    return N, U * np.exp(rng.uniform(-1, np.log(epochs), n)), U


@pytest.fixture(scope="module")
def published():
    if not DATA.exists():
        pytest.skip("shared/data/datablations is not here")
    frame = pd.read_csv(DATA)
    X = [frame[c].to_numpy() * 1e9 for c in ("N_billion", "D_billion", "U_billion")]
    return X, frame["loss"].to_numpy()


@pytest.fixture(scope="module")
def published_fit(published):
    return fit_law(LAW, *published, fixed=BASE)


def huber(r, delta=1e-3):
    size = np.abs(r)
    return float(np.where(size <= delta, r**2 / 2, delta * (size - delta / 2)).sum())


def parameters():
    ranges = ((0.5, 3), (50, 2e3), (200, 1e4), (0.2, 0.6), (0.2, 0.6), (0.5, 200), (0.5, 200))
    return st.tuples(*(st.floats(*r) for r in ranges)).map(np.array)


@given(parameters(), st.integers(0, 10**6))
@settings(max_examples=40)
def test_it_is_the_notebook_formula(theta, seed):
    X = runs(20, seed)
    np.testing.assert_allclose(LAW.loss(theta, *X), notebook(theta, *X), rtol=1e-9)


@given(parameters(), st.integers(0, 10**6))
@settings(max_examples=40)
def test_without_repetition_and_excess_it_is_the_base_law(theta, seed):
    N, D, _ = runs(20, seed)
    _, A, B, alpha, beta = theta[:5]
    N = np.minimum(N, (alpha * A / (beta * B)) ** (1 / alpha) * D ** (beta / alpha))
    base = CHINCHILLA.loss(theta[:5], N, D)
    for U in (D, 3 * D, np.full(20, np.nan)):
        np.testing.assert_allclose(LAW.loss(theta, N, D, U), base, rtol=1e-13)
    np.testing.assert_allclose(LAW.loss(theta, N, D), base, rtol=1e-13)


@given(parameters(), st.integers(0, 10**6))
@settings(max_examples=25)
def test_derivatives_are_those_of_the_loss(theta, seed):
    features = LAW.prepare(np.log(np.stack(runs(30, seed), axis=-1)))
    phi = LAW.log_coordinates(theta)[None]
    rng = np.random.default_rng(seed)
    psi, inner, w = rng.normal(size=(1, 30)), rng.uniform(size=(1, 30)), rng.uniform(size=(1, 30))
    state = LAW.forward(features, phi)[1]
    J = LAW.jacobian(features, state)
    g, H, scale, size = LAW.second_order(features, state, psi, inner, w)
    step = 1e-6
    by_J, by_H = np.empty_like(J), np.empty_like(H)
    for k in range(7):
        up, down = (LAW.forward(features, phi + s * np.eye(7)[k]) for s in (step, -step))
        # At the border of the excess region the second derivative jumps.
        if ((up[1].v > 0) != (down[1].v > 0)).any():
            return
        by_J[..., k] = (up[0] - down[0]) / (2 * step)
        slopes = [np.einsum("rn,rnp->rp", psi, LAW.jacobian(features, s)) for _, s in (up, down)]
        by_H[..., k] = (slopes[0] - slopes[1]) / (2 * step)
    by_H += np.einsum("rn,rnp,rnq->rpq", inner, J, J)
    np.testing.assert_allclose(J, by_J, atol=1e-7)
    np.testing.assert_allclose(H, by_H, atol=1e-5 * np.abs(H).max())
    np.testing.assert_allclose(g, np.einsum("rn,rnp->rp", psi, J), atol=1e-10)
    np.testing.assert_allclose(scale, np.einsum("rn,rnp->rp", w, J**2), rtol=1e-10)
    np.testing.assert_allclose(size, np.einsum("rn,rnp->rp", w, np.abs(J)), rtol=1e-10)


def test_exact_losses_give_the_truth_back():
    X = runs(80)
    fit = fit_law(LAW, X, LAW.loss(TRUTH, *X))
    assert fit.certified, fit.status
    np.testing.assert_allclose(fit.theta, TRUTH, rtol=1e-8)


def test_noisy_losses_give_nearly_the_truth():
    X = runs(240, seed=1)
    noise = np.random.default_rng(2).normal(size=240) * 1e-3
    fit = fit_law(LAW, X, LAW.loss(TRUTH, *X) * np.exp(noise))
    assert fit.certified, fit.status
    assert not fit.at_limit
    np.testing.assert_allclose(fit.theta[[0, 3, 4]], TRUTH[[0, 3, 4]], rtol=0.02)
    np.testing.assert_allclose(fit.theta[5:], TRUTH[5:], rtol=0.15)


@pytest.mark.parametrize("name", LAW.parameters)
def test_any_parameter_can_be_fixed(name):
    X = runs(40)
    value = 1.02 * TRUTH[LAW.index(name)]
    fit = fit_law(LAW, X, LAW.loss(TRUTH, *X), fixed={name: value})
    assert fit.parameters[name] == pytest.approx(value, rel=1e-12)
    assert 0 < fit.rms < 0.01


def test_units_change_only_the_coefficients():
    X = runs(50)
    L = LAW.loss(TRUTH, *X) * np.exp(np.random.default_rng(0).normal(size=50) * 1e-3)
    plain = fit_law(LAW, X, L)
    billions = fit_law(LAW, [v / 1e9 for v in X], L)
    assert billions.objective == pytest.approx(plain.objective, rel=1e-9)
    np.testing.assert_allclose(billions.theta[3:], plain.theta[3:], rtol=1e-5)


def test_refits_under_equal_weights_are_the_fit():
    X = runs(60)
    L = LAW.loss(TRUTH, *X) * np.exp(np.random.default_rng(0).normal(size=60) * 1e-3)
    fit = fit_law(LAW, X, L)
    again = refit(fit, X, L, np.ones((3, 60)))
    np.testing.assert_allclose(again.theta, np.tile(fit.theta, (3, 1)), rtol=1e-3)


def test_unrepeated_data_say_nothing_about_reuse():
    N, D, _ = runs(60)
    fit = fit_law(LAW, (N, D, D), LAW.loss(TRUTH, N, D, D))
    assert not fit.certified
    assert "Flat optimum" in fit.status


def test_optimum_without_a_limit_on_data_is_that_of_the_base_law():
    C = np.geomspace(1e18, 1e25, 5)
    best, base = LAW.optimal(TRUTH, C, SIX_ND), CHINCHILLA.optimal(TRUTH[:5], C, SIX_ND)
    np.testing.assert_allclose([best.N, best.D, best.L], [base.N, base.D, base.L], rtol=1e-9)
    assert LAW.scale_free


@pytest.mark.parametrize("unique", [1e8, 1e10])
def test_optimum_on_limited_data_is_the_lowest_loss_at_that_compute(unique):
    law = replace(LAW, unique=unique)
    ladder = (np.log(1e7), np.log(1e8), np.log(1e10)), (np.log(1e8), np.log(7e8), np.log(6e10))
    for flops in (SIX_ND, FlopsPerToken(*ladder, label="ladder")):
        C = np.geomspace(1e19, 1e23, 4)
        best = law.optimal(np.stack([TRUTH, PUBLISHED]), C, flops)
        for i, theta in enumerate((TRUTH, PUBLISHED)):
            for j, c in enumerate(C):
                u = np.log(best.N[i, j]) + np.linspace(-3, 3, 2001)
                D = c / np.exp(flops(u)[0])
                L = law.loss(theta, np.exp(u), D, np.full_like(D, unique))
                assert best.L[i, j] <= L.min() * (1 + 1e-12)
                assert best.L[i, j] == pytest.approx(L[1000], rel=1e-12)
    assert not law.scale_free


def test_published_objective_and_minimum(published, published_fit):
    X, L = published
    at_published = huber(np.log(LAW.loss(PUBLISHED, *X) / L))
    assert at_published == pytest.approx(0.0158259353, abs=1e-9)
    fit = published_fit
    assert fit.objective <= 0.0158046625 + 1e-9
    assert fit.objective == pytest.approx(huber(np.log(LAW.loss(fit.theta, *X) / L)), rel=1e-12)
    assert fit.certified, fit.status
    assert fit.parameters["R_D"] == pytest.approx(95.365, rel=1e-3)
    assert fit.parameters["R_N"] == pytest.approx(1.7059, rel=1e-3)


def test_published_r2(published):
    X, L = published
    predicted = LAW.loss(PUBLISHED, *X)
    r2 = 1 - ((L - predicted) ** 2).sum() / ((L - L.mean()) ** 2).sum()
    assert r2 == pytest.approx(0.7722046085, abs=1e-8)


def test_free_base_law_fits_the_published_runs_far_better(published, published_fit):
    fit = fit_law(LAW, *published)
    assert fit.certified, fit.status
    assert fit.objective < 0.42 * published_fit.objective
    assert "R_N" in fit.at_limit


def test_profile_over_r_d_is_flat(published, published_fit):
    X, L = published
    at_published = huber(np.log(LAW.loss(PUBLISHED, *X) / L))
    profile = [
        fit_law(LAW, X, L, fixed=BASE | {"R_D": r}).objective for r in (12.0, 30.0, 95.0, 300.0)
    ]
    assert min(profile) >= published_fit.objective * (1 - 1e-9)
    assert max(profile) < 1.002 * at_published
    assert max(profile) < 1.0033 * published_fit.objective


def test_bootstrap_does_not_identify_r_d(published, published_fit):
    X, L = published
    weights = np.random.default_rng(0).exponential(size=(60, len(L)))
    draws = refit(published_fit, X, L, weights)
    k = LAW.index("R_D")
    interval = percentile(draws.theta[:, k], 0.9, 0.0, draws.at_high[:, k].mean())
    assert interval.low is not None
    assert 4 < interval.low < 10
    assert interval.high is None
    note = reuse_note("R_D", interval.low, interval.high)
    assert note.startswith("R_D is not identified: its interval (")
    assert "to open" in note


def test_fewer_passes_ask_for_another_r_d(published):
    fit = fit_law(LAW, *published)
    parts = by_passes(fit, *published)
    assert [p.rows for p in parts] == sorted(p.rows for p in parts)
    narrow = {"R_D": Interval(21.0, 44.0), "R_N": Interval(250.0, None)}
    notes = reuse_notes(fit, parts, narrow)
    assert notes["R_D"].startswith("R_D is not identified: 27.1 on all rows, ")
    assert "spans more than a factor" in notes["R_N"]


def test_a_true_law_of_reuse_is_identified():
    X = runs(160)
    noise = np.random.default_rng(0).normal(size=160) * 1e-3
    L = LAW.loss(TRUTH, *X) * np.exp(noise)
    fit = fit_law(LAW, X, L)
    parts = by_passes(fit, X, L)
    assert len(parts) == 2
    intervals = {"R_D": Interval(11.0, 13.0), "R_N": Interval(4.0, 6.0)}
    assert reuse_notes(fit, parts, intervals) == {}
    assert by_passes(fit, (X[0], X[1], X[1]), L) == ()


@pytest.mark.parametrize(
    ("low", "high", "identified"),
    [(5.0, 20.0, True), (5.0, 51.0, False), (None, 20.0, False), (5.0, None, False)],
)
def test_reuse_note(low, high, identified):
    assert (reuse_note("R_N", low, high) == "") is identified


@pytest.mark.parametrize("fixed", [{"R_D": 0.0}, {"R_N": -1.0}, {"gamma": 1.0}])
def test_impossible_fixed_values_are_refused(fixed):
    X = runs(20)
    with pytest.raises(ValueError, match=r"cannot be fixed|no parameter"):
        fit_law(LAW, X, LAW.loss(TRUTH, *X), fixed=fixed)
