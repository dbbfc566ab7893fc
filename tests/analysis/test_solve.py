"""The solver: recovery, invariances, an independent reference, certificates, limits."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares

from analysis.laws import CHINCHILLA, LAWS, TWO_TERM
from analysis.solve import DELTA, fit_law, refit

EPOCH = Path(__file__).parents[2] / "../shared/data/epoch_chinchilla/svg_extracted_data.csv"
TRUTHS = (
    (1.817, 478.0, 2143.0, 0.347, 0.367),
    (2.2, 60.0, 90.0, 0.25, 0.26),
    (1.3, 900.0, 1500.0, 0.6, 0.35),
    (0.4, 20.0, 15.0, 0.2, 0.15),
)


def grid(sizes=6, horizons=5, low=1e6, ratio=5.0):
    """A full grid of N and D over 1.5 decades each."""
    N, D = np.meshgrid(
        np.geomspace(low, 30 * low, sizes), ratio * np.geomspace(low, 30 * low, horizons)
    )
    return N.ravel(), D.ravel()


def huber(r):
    return np.where(np.abs(r) <= DELTA, r * r / 2, DELTA * (np.abs(r) - DELTA / 2)).sum()


@pytest.mark.parametrize("truth", TRUTHS)
def test_an_exact_law_is_recovered(truth):
    N, D = grid()
    fit = fit_law(CHINCHILLA, N, D, CHINCHILLA.loss(np.array(truth), N, D))
    assert fit.theta == pytest.approx(truth, rel=1e-7)
    assert fit.objective < 1e-20
    assert fit.certified
    assert not fit.at_limit


@pytest.mark.parametrize("truth", [(30.0, 90.0, 0.2, 0.3), (900.0, 50.0, 0.5, 0.12)])
def test_an_exact_two_term_law_is_recovered(truth):
    N, D = grid()
    fit = fit_law(TWO_TERM, N, D, TWO_TERM.loss(np.array(truth), N, D))
    assert fit.theta == pytest.approx(truth, rel=1e-7)


@pytest.mark.parametrize("truth", TRUTHS[:3])
@pytest.mark.parametrize("noise", [1e-4, 1e-3])
def test_noisy_laws_are_recovered_in_proportion_to_the_noise(truth, noise):
    N, D = grid(8, 8)
    z = np.random.default_rng(3).normal(size=len(N)) * noise
    fit = fit_law(CHINCHILLA, N, D, CHINCHILLA.loss(np.array(truth), N, D) * np.exp(z))
    assert fit.certified
    # sd of the exponents on this grid is below 25 times the noise for each of these truths
    assert fit.theta[3:] == pytest.approx(truth[3:], abs=100 * noise)
    assert fit.theta[0] == pytest.approx(truth[0], rel=100 * noise)
    assert fit.rms == pytest.approx(noise, rel=0.3)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
def test_no_worse_than_scipy_from_many_random_starts(law):
    rng = np.random.default_rng(5)
    N, D = grid()
    L = CHINCHILLA.loss(np.array(TRUTHS[0]), N, D) * np.exp(rng.normal(size=len(N)) * 3e-3)
    fit = fit_law(law, N, D, L)
    x, y, z = np.log(N / N.mean()), np.log(D / D.mean()), np.log(L)
    k = len(law.terms)

    def residuals(p):
        t = [p[0] + 0 * x] if k == 3 else []
        t += [p[k - 2] - p[k] * x, p[k - 1] - p[k + 1] * y]
        return np.logaddexp.reduce(np.stack(t), axis=0) - z

    best = np.inf
    for _ in range(25):
        start = np.concatenate([rng.uniform(-2, 1, k), rng.uniform(0.05, 1.0, 2)])
        run = least_squares(
            residuals, start, loss="huber", f_scale=DELTA, xtol=1e-15, ftol=1e-15, gtol=1e-15
        )
        best = min(best, huber(run.fun))
    assert fit.objective <= best * (1 + 1e-9)
    assert fit.objective == pytest.approx(huber(fit.residuals), rel=1e-12)
    assert fit.objective == pytest.approx(best, rel=1e-6)


def noisy(seed=0, noise=2e-3):
    N, D = grid()
    z = np.random.default_rng(seed).normal(size=len(N)) * noise
    return N, D, CHINCHILLA.loss(np.array(TRUTHS[0]), N, D) * np.exp(z)


@settings(max_examples=12)
@given(
    factor=st.floats(1e-3, 1e3), n_unit=st.floats(1e-9, 1e3), d_unit=st.floats(1e-9, 1e3),
    seed=st.integers(0, 50),
)  # fmt: skip
def test_units_change_the_coefficients_and_nothing_else(factor, n_unit, d_unit, seed):
    N, D, L = noisy(seed)
    one = fit_law(CHINCHILLA, N, D, L)
    other = fit_law(CHINCHILLA, N * n_unit, D * d_unit, L * factor)
    E, A, B, alpha, beta = one.theta
    expected = factor * np.array([E, A * n_unit**alpha, B * d_unit**beta])
    assert other.theta[3:] == pytest.approx(one.theta[3:], rel=1e-6)
    assert other.theta[:3] == pytest.approx(expected, rel=1e-5)
    assert other.objective == pytest.approx(one.objective, rel=1e-9)


@settings(max_examples=10)
@given(order=st.permutations(range(30)), seed=st.integers(0, 50))
def test_row_order_does_not_matter(order, seed):
    N, D, L = noisy(seed)
    order = np.array(order)
    one, other = fit_law(CHINCHILLA, N, D, L), fit_law(CHINCHILLA, N[order], D[order], L[order])
    assert other.theta == pytest.approx(one.theta, rel=1e-6)


@settings(max_examples=10)
@given(copies=st.lists(st.integers(0, 3), min_size=30, max_size=30), seed=st.integers(0, 50))
def test_a_weight_counts_like_copies_of_the_row(copies, seed):
    N, D, L = noisy(seed)
    count = np.maximum(np.array(copies), 1 - np.arange(30) % 2)  # at least 15 rows stay
    repeat = np.repeat(np.arange(30), count)
    weighted = fit_law(CHINCHILLA, N, D, L, weights=count)
    copied = fit_law(CHINCHILLA, N[repeat], D[repeat], L[repeat])
    assert weighted.objective == pytest.approx(copied.objective, rel=1e-8)


def test_refits_equal_single_fits_with_the_same_weights():
    N, D, L = noisy(1)
    W = np.random.default_rng(0).exponential(size=(12, 30))
    fit = fit_law(CHINCHILLA, N, D, L)
    many = refit(fit, N, D, L, W)
    for i in range(len(W)):
        alone = fit_law(CHINCHILLA, N, D, L, weights=W[i])
        assert many.theta[i, 3:] == pytest.approx(alone.theta[3:], abs=1e-4)
    assert many.gradient.max() < 1e-6


@pytest.mark.parametrize("fixed", [{"E": 1.75}, {"A": 300.0}, {"alpha": 0.3}, {"B": 2e3, "E": 1.8}])
def test_fixed_parameters_stay_and_the_rest_is_optimal(fixed):
    N, D, L = noisy(2)
    fit = fit_law(CHINCHILLA, N, D, L, fixed=fixed)
    for name, value in fixed.items():
        assert fit.parameters[name] == pytest.approx(value, rel=1e-12)
    assert fit.n_free == 5 - len(fixed)
    assert fit.certified
    assert fit.objective > fit_law(CHINCHILLA, N, D, L).objective
    phi = CHINCHILLA.log_coordinates(fit.theta)
    for i, name in enumerate(CHINCHILLA.parameters):
        for step in (1e-4, -1e-4):
            if name not in fixed:
                moved = phi.copy()
                moved[i] += step
                r = np.log(CHINCHILLA.loss(CHINCHILLA.values(moved), N, D)) - np.log(L)
                assert huber(r) >= fit.objective


@pytest.mark.parametrize(
    ("fixed", "text"), [({"gamma": 1.0}, "no parameter"), ({"E": 0.0}, "positive")]
)
def test_a_parameter_that_cannot_be_fixed_is_refused(fixed, text):
    N, D, L = noisy()
    with pytest.raises(ValueError, match=text):
        fit_law(CHINCHILLA, N, D, L, fixed=fixed)


def test_a_constant_that_vanishes_is_said():
    N, D = grid()
    rng = np.random.default_rng(0)
    L = (40 * N**-0.15 + 90 * D**-0.2) * np.exp(rng.normal(size=len(N)) * 1e-3 - 0.0)
    L = L * (1 - 0.004 * np.log(N / N.mean()) ** 2)  # bends down: no constant can help
    fit = fit_law(CHINCHILLA, N, D, L)
    assert "E" in fit.at_limit
    assert "E vanishes" in fit.status


def test_a_dead_term_is_said():
    N, D = grid()
    rng = np.random.default_rng(0)
    L = (1.5 + 40 * N**-0.3) * np.exp(rng.normal(size=len(N)) * 1e-4 + 2e-3 * np.log(D / D.min()))
    fit = fit_law(CHINCHILLA, N, D, L)  # the loss rises with D: its term can only vanish
    assert "B" in fit.at_limit or "beta" in fit.at_limit
    assert "At a limit" in fit.status


@pytest.fixture(scope="module")
def epoch():
    if not EPOCH.exists():
        pytest.skip(f"public data not here: {EPOCH}")
    frame = pd.read_csv(EPOCH)
    frame = frame[frame["loss"] < frame["loss"].nlargest(5).iloc[-1]]
    N, C = frame["Model Size"].to_numpy(float), frame["Training FLOP"].to_numpy(float)
    return N, C / (6 * N), frame["loss"].to_numpy(float)


def test_the_public_chinchilla_points_give_the_known_minimum(epoch):
    fit = fit_law(CHINCHILLA, *epoch)
    assert len(epoch[0]) == 240
    assert fit.objective == pytest.approx(0.00101827401780, rel=1e-9)
    known = [1.81721810, 477.82587, 2143.41736, 0.34731049, 0.36717243]
    assert fit.theta == pytest.approx(known, rel=1e-5)
    assert fit.certificate.gradient < 1e-10
    assert fit.certificate.optima == 1


def test_the_two_term_law_has_two_basins_on_the_public_points(epoch):
    fit = fit_law(TWO_TERM, *epoch)
    assert fit.objective == pytest.approx(0.00231156, rel=1e-5)
    assert fit.theta[2:] == pytest.approx([0.375, 0.061], abs=6e-4)
    assert fit.certificate.optima == 2
    assert "worse optimum" in fit.status
