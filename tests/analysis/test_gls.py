"""The random-trunk model against dense linear algebra, and what it must not depend on."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares
from synthetic import TRUTH, Plan, rows_of

from analysis.gls import RHO2, fit_gls, reml
from analysis.laws import CHINCHILLA, GAMMA, KAPLAN_E, LAWS
from analysis.rows import Rows
from analysis.solve import fit_law

STUDY = Plan(trunk_noise=2e-3, row_noise=1e-3, holdout=())


def both(law, rows, fixed=None):
    """The Huber fit and the random-trunk fit that starts from it."""
    X = rows.variables(law.variables)
    fit = fit_law(law, X, rows.L, fixed=fixed)
    return fit, fit_gls(law, X, rows.L, rows.trunk, fit.rivals, fixed)


def dense(rows, rho2):
    """I + rho2·ZZ', n x n."""
    same = rows.trunk[:, None] == rows.trunk[None, :]
    return np.eye(len(rows)) + rho2 * same


def whitened(law, rows, rho2, phi):
    """Residuals, and their Jacobian by differences, in the coordinates L^-1, V = L L'."""
    root = np.linalg.inv(np.linalg.cholesky(dense(rows, rho2)))
    X = rows.variables(law.variables)

    def residuals(p):
        return root @ (np.log(law.loss(law.values(p), *X)) - np.log(rows.L))

    steps = 1e-5 * np.eye(len(phi))
    J = [(residuals(phi + e) - residuals(phi - e)) / 2e-5 for e in steps]
    return residuals, np.stack(J, axis=1)


@pytest.mark.parametrize("law", [CHINCHILLA, GAMMA, KAPLAN_E], ids=lambda law: law.name)
@pytest.mark.parametrize("seed", [0, 1])
def test_estimate_and_covariance_equal_whitened_least_squares(law, seed):
    rows = rows_of(dataclasses.replace(STUDY, seed=seed))
    gls = both(law, rows)[1]
    assert gls.free.all()
    # Centred in the test's own way: deviations from the estimate, in raw coordinates.
    phi = law.log_coordinates(gls.theta)
    residuals, J = whitened(law, rows, gls.rho2, phi)
    column = np.linalg.norm(J, axis=0)
    run = least_squares(
        lambda d: residuals(phi + d / column), np.full(len(phi), 1e-3), x_scale="jac",
        xtol=1e-15, ftol=1e-15, gtol=1e-15,
    )  # fmt: skip
    assert gls.rss == pytest.approx(2 * run.cost, rel=1e-8)
    assert gls.rss == pytest.approx((residuals(phi) ** 2).sum(), rel=1e-9)

    df = len(rows) - len(phi)
    assert gls.row_sd == pytest.approx(np.sqrt(gls.rss / df), rel=1e-12)
    assert gls.trunk_sd == pytest.approx(gls.row_sd * np.sqrt(gls.rho2), rel=1e-12)
    # Covariance of exponents: they are the same coordinates centred and raw.
    scaled = J / column
    covariance = gls.rss / df * np.linalg.inv(scaled.T @ scaled) / np.outer(column, column)
    k = [law.index(name) for name in ("alpha", "beta")]
    assert gls.covariance[np.ix_(k, k)] == pytest.approx(covariance[np.ix_(k, k)], rel=1e-3)
    # The end of scipy is the same point to a small part of a standard error.
    apart = run.x / column / np.sqrt(np.diag(covariance))
    assert np.abs(apart).max() < 1e-2


def test_estimate_and_variances_belong_together_where_they_will_not_settle():
    """Few trunks: REML and GLS may chase one another between two answers without end."""
    weak = Plan(
        sizes=(24e3, 60e3, 120e3, 240e3), horizons=(0.5e6, 1e6, 2e6, 4e6), repeats=1,
        trunk_noise=6e-3, row_noise=3e-3, holdout=(),
    )  # fmt: skip
    for seed in range(8):
        rows = rows_of(dataclasses.replace(weak, seed=seed))
        gls = both(CHINCHILLA, rows)[1]
        r = whitened(CHINCHILLA, rows, gls.rho2, CHINCHILLA.log_coordinates(gls.theta))[0]
        residuals = r(CHINCHILLA.log_coordinates(gls.theta))
        assert gls.rss == pytest.approx((residuals**2).sum(), rel=1e-6)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
def test_reml_equals_the_dense_restricted_likelihood(law):
    for seed in range(4):
        rows = rows_of(dataclasses.replace(STUDY, seed=seed))
        gls = both(law, rows)[1]
        X, r = gls.X, gls.residuals
        n, p = X.shape
        X = X / np.linalg.norm(X, axis=0)

        def restricted(rho2, rows=rows, X=X, r=r, n=n, p=p):
            W = np.linalg.inv(dense(rows, rho2))
            H = X.T @ W @ X
            best = np.linalg.solve(H, X.T @ W @ r)
            rss = (r - X @ best) @ W @ (r - X @ best)
            return -0.5 * (
                np.linalg.slogdet(dense(rows, rho2))[1]
                + np.linalg.slogdet(H)[1]
                + (n - p) * np.log(rss)
            )

        values = np.array([restricted(rho2) for rho2 in RHO2])
        found = reml(gls.problem, gls.trunks, gls.phi)
        at = int(np.flatnonzero(found == RHO2)[0])
        assert values[at] >= values.max() - 1e-6
        assert gls.rho2 in RHO2


def test_with_one_row_per_trunk_it_is_ordinary_least_squares():
    rows = rows_of(STUDY)
    alone = dataclasses.replace(rows, trunk=np.arange(len(rows)))
    gls = both(CHINCHILLA, alone)[1]
    squares = fit_law(CHINCHILLA, (rows.N, rows.D), rows.L, delta=1e4)
    assert (gls.rho2, gls.trunk_sd) == (0.0, 0.0)
    assert gls.theta == pytest.approx(squares.theta, rel=1e-5)
    assert gls.rss == pytest.approx((squares.residuals**2).sum(), rel=1e-9)


def test_an_exact_law_is_recovered_and_has_no_noise():
    rows = rows_of(dataclasses.replace(STUDY, trunk_noise=0.0, row_noise=0.0))
    gls = both(CHINCHILLA, rows)[1]
    assert gls.theta == pytest.approx([TRUTH[k] for k in CHINCHILLA.parameters], rel=1e-6)
    assert gls.row_sd < 1e-9


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 100), label=st.integers(-5, 10**6))
def test_row_order_and_trunk_labels_do_not_matter(seed, label):
    rows = rows_of(dataclasses.replace(STUDY, seed=3))
    order = np.random.default_rng(seed).permutation(len(rows))
    mixed = dataclasses.replace(rows.take(order), trunk=rows.trunk[order] * 7 + label)
    one, other = both(CHINCHILLA, rows)[1], both(CHINCHILLA, mixed)[1]
    assert other.rho2 == one.rho2
    assert other.theta == pytest.approx(one.theta, rel=1e-5)
    assert other.covariance == pytest.approx(one.covariance, rel=1e-4)
    assert other.residuals == pytest.approx(one.residuals[order], abs=1e-8)


@settings(max_examples=8, deadline=None)
@given(n_unit=st.floats(1e-9, 1e3), d_unit=st.floats(1e-9, 1e3), factor=st.floats(1e-3, 1e3))
def test_units_change_the_coefficients_and_nothing_else(n_unit, d_unit, factor):
    rows = rows_of(dataclasses.replace(STUDY, seed=5))
    N, D, L = rows.N * n_unit, rows.D * d_unit, rows.L * factor
    one = both(CHINCHILLA, rows)[1]
    other = both(CHINCHILLA, Rows(N, D, 6 * N * D, L, rows.trunk))[1]
    E, A, B, alpha, beta = one.theta
    assert other.rho2 == one.rho2
    assert other.theta[3:] == pytest.approx(one.theta[3:], rel=1e-6)
    assert other.theta[:3] == pytest.approx(
        factor * np.array([E, A * n_unit**alpha, B * d_unit**beta]), rel=1e-5
    )
    assert other.covariance == pytest.approx(one.covariance, rel=1e-4)
    assert other.row_sd == pytest.approx(one.row_sd, rel=1e-8)


def test_both_noises_are_recovered():
    rows = rows_of(Plan(cheap=6, repeats=8, trunk_noise=4e-3, row_noise=1e-3, holdout=()))
    gls = both(CHINCHILLA, rows)[1]
    assert len(gls.trunks.count) == 48
    assert gls.row_sd == pytest.approx(1e-3, rel=0.15)
    assert gls.trunk_sd == pytest.approx(4e-3, rel=0.25)


def test_the_noises_are_right_on_average():
    """Mean variances over 25 studies: sd of the mean is about 3 % (rows) and 10 % (trunks)."""
    found = []
    for seed in range(25):
        rows = rows_of(Plan(cheap=6, repeats=2, trunk_noise=2e-3, row_noise=1e-3, seed=seed))
        gls = both(CHINCHILLA, rows)[1]
        found.append((gls.row_sd**2, gls.trunk_sd**2))
    row_var, trunk_var = np.mean(found, axis=0)
    assert row_var == pytest.approx(1e-6, rel=0.1)
    assert trunk_var == pytest.approx(4e-6, rel=0.3)


def test_without_trunk_noise_little_of_it_is_found():
    found = []
    for seed in range(10):
        rows = rows_of(Plan(cheap=6, repeats=2, trunk_noise=0.0, row_noise=1e-3, seed=seed))
        found.append(both(CHINCHILLA, rows)[1].trunk_sd)
    assert np.median(found) < 3e-4


def test_a_fixed_parameter_stays_and_has_no_variance():
    rows = rows_of(STUDY)
    gls = both(CHINCHILLA, rows, {"E": 1.25})[1]
    assert gls.theta[0] == pytest.approx(1.25, rel=1e-12)
    assert gls.free.tolist() == [False, True, True, True, True]
    assert gls.covariance.shape == (4, 4)


def test_the_best_of_several_starts_is_taken_and_where_they_are_does_not_matter():
    rows = rows_of(STUDY)
    X = (rows.N, rows.D)
    fit, gls = both(CHINCHILLA, rows)
    rng = np.random.default_rng(0)
    starts = fit.rivals[0] + rng.normal(size=(3, 5)) * 0.2
    other = fit_gls(CHINCHILLA, X, rows.L, rows.trunk, starts)
    assert other.rho2 == gls.rho2
    assert other.rss == pytest.approx(gls.rss, rel=1e-8)
    assert other.theta == pytest.approx(gls.theta, rel=1e-4)
