"""Many weightings of the rows at once: each equals a fit of its own."""

import numpy as np
import pytest

from analysis.laws import CHINCHILLA, GAMMA, KAPLAN_E
from analysis.refit import refit
from analysis.solve import fit_law

TRUTH = {
    CHINCHILLA: np.array([1.8, 478.0, 2143.0, 0.35, 0.37]),
    GAMMA: np.array([1.8, 3e4, 4e5, 0.35, 0.37, 0.6]),
    KAPLAN_E: np.array([1.2, 1e9, 1e8, 0.3, 0.25]),
}


def noisy(seed, law=CHINCHILLA, truth=None):
    N, D = (m.ravel() for m in np.meshgrid(np.geomspace(1e6, 3e7, 6), np.geomspace(5e6, 1e8, 5)))
    z = np.random.default_rng(seed).normal(size=len(N)) * 2e-3
    return (N, D), law.loss(TRUTH[law] if truth is None else truth, N, D) * np.exp(z)


@pytest.mark.parametrize("law", [CHINCHILLA, GAMMA, KAPLAN_E], ids=lambda law: law.name)
def test_refits_equal_single_fits_with_the_same_weights(law):
    X, L = noisy(1, law)
    W = np.random.default_rng(0).exponential(size=(12, 30))
    many = refit(fit_law(law, X, L), X, L, W)
    for i in range(len(W)):
        alone = fit_law(law, X, L, weights=W[i])
        # Exponents may differ along a nearly flat direction; what they predict is the same.
        here, there = (np.log(law.loss(theta, *X)) for theta in (many.theta[i], alone.theta))
        assert here == pytest.approx(there, abs=2e-5)
    assert many.gradient.max() < 1e-6


def test_a_term_that_dies_under_some_weights_poisons_nothing():
    """Its shares fall below the smallest double, and so do its entries of the Hessian."""
    dead = np.array([1.2, 1e5, 1e8, 0.3, 0.25])  # the N term is 1e-4 of the D term
    X, L = noisy(1, KAPLAN_E, dead)
    W = np.random.default_rng(0).exponential(size=(12, 30))
    many = refit(fit_law(KAPLAN_E, X, L), X, L, W)
    assert many.at_low[:, KAPLAN_E.index("A")].all()
    for w in W:
        fit = fit_law(KAPLAN_E, X, L, weights=w)
        assert np.isfinite(fit.objective)
        assert fit.rms < 3e-3
        assert fit.at_limit["A"] == "the A term is dead"


def test_refits_of_the_default_law_find_the_same_values():
    X, L = noisy(2)
    W = np.random.default_rng(0).exponential(size=(12, 30))
    many = refit(fit_law(CHINCHILLA, X, L), X, L, W)
    for i in range(len(W)):
        alone = fit_law(CHINCHILLA, X, L, weights=W[i])
        assert many.theta[i, 3:] == pytest.approx(alone.theta[3:], abs=1e-4)


def test_equal_weights_are_the_fit_and_their_scale_is_nothing():
    X, L = noisy(3)
    fit = fit_law(CHINCHILLA, X, L)
    many = refit(fit, X, L, np.outer([1.0, 1e-3, 1e3], np.ones(30)))
    for theta in many.theta:
        assert theta == pytest.approx(fit.theta, rel=1e-5)
    assert not (many.at_low | many.at_high).any()


def test_weight_zero_leaves_the_row_out():
    X, L = noisy(4)
    keep = np.arange(30) % 7 != 0
    many = refit(fit_law(CHINCHILLA, X, L), X, L, keep[None].astype(float))
    alone = fit_law(CHINCHILLA, tuple(v[keep] for v in X), L[keep])
    assert many.theta[0] == pytest.approx(alone.theta, rel=1e-5)


def test_fixed_parameters_stay_fixed_in_every_refit():
    X, L = noisy(5)
    fit = fit_law(CHINCHILLA, X, L, fixed={"E": 1.75, "alpha": 0.33})
    many = refit(fit, X, L, np.random.default_rng(0).exponential(size=(20, 30)))
    assert many.theta[:, 0] == pytest.approx(np.full(20, 1.75), rel=1e-12)
    assert (many.theta[:, 3] == 0.33).all()
    assert many.theta[:, 4].std() > 0


def test_limits_are_marked_where_a_refit_ends_at_one():
    X, L = noisy(6)
    bend = np.log(X[0] / X[0].mean()) ** 2
    fit = fit_law(CHINCHILLA, X, L)
    plain = refit(fit, X, L, np.ones((1, 30)))
    bent = refit(fit, X, L * np.exp(-0.01 * bend), np.ones((1, 30)))  # no constant can help
    E = CHINCHILLA.index("E")
    assert not plain.at_low[0, E]
    assert bent.at_low[0, E]
