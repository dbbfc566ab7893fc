"""Information of planned runs: against simulated fits, known figures, and properties."""

from dataclasses import replace

import numpy as np
import pytest

from analysis.coverage import SMALLEST, TRUTHS
from analysis.expected import expectations, misfit_error, targets_of
from analysis.flops import FlopsPerToken
from analysis.gls import Trunks
from analysis.information import Basis, Noise, components, typical, working_point
from analysis.laws import CHINCHILLA, GAMMA
from analysis.planned import Planned, repeated
from analysis.rows import Rows
from analysis.simulated import refitted
from analysis.solve import problem_of
from analysis.targets import Target

TRUTH = np.array([1.8172, 482.01, 2085.43, 0.3478, 0.3658])
NOISE = Noise(trunk=0.002, row=0.001, misfit=0.0)


def grid(sizes: int = 6, decades: float = 1.5, ratios=(5.0, 10, 20, 40, 80)) -> Rows:
    """Sizes over decades of N, each one trunk with horizons at the given D/N."""
    N = np.repeat(np.geomspace(SMALLEST, SMALLEST * 10**decades, sizes), len(ratios))
    D = N * np.tile(ratios, sizes)
    return Rows(N, D, 6 * N * D, np.full(len(N), np.nan), np.repeat(np.arange(sizes), len(ratios)))


def plan(rows: Rows) -> Planned:
    return Planned("grid", rows, {}, 0.2, "no shapes")


def test_standard_errors_are_the_spread_of_many_fits() -> None:
    rows, reach = grid(), 10 * 6 * grid().N.max() ** 2 * 80
    rng, refits = np.random.default_rng(1), 800
    z = np.log(CHINCHILLA.loss(TRUTH, rows.N, rows.D))
    z = z + NOISE.trunk * rng.normal(size=(refits, 6))[:, rows.trunk]
    z = z + NOISE.row * rng.normal(size=z.shape)
    problem = problem_of(CHINCHILLA, (rows.N, rows.D), np.exp(z[0]), {})[0]
    start = problem.coordinates(TRUTH)
    phi = refitted(problem, Trunks.of(rows.trunk), NOISE.rho2, z, start)
    theta = problem.values(phi)
    best = CHINCHILLA.optimal(theta, np.array([reach]), FlopsPerToken())
    found = {
        "alpha": theta[:, 3],
        "beta": theta[:, 4],
        "E": np.log(theta[:, 0]),
        "a": CHINCHILLA.allocation_exponent(theta),
        "loss": np.log(best.L[:, 0]),
    }
    expected = expectations(
        CHINCHILLA, TRUTH, rows, NOISE, FlopsPerToken(), targets_of(CHINCHILLA, reach), 0.9
    )
    for e in expected:
        # 800 fits know a spread to 2.5 %; the law's curvature adds a few per cent.
        assert found[e.name].std() == pytest.approx(e.se, rel=0.1), e.name


def test_three_seeds_at_the_cheapest_sizes_narrow_by_a_third() -> None:
    """Simulated studies: alpha's width .070 -> .046 at 3 % more compute, df 3.8 -> 11.4."""
    rows = grid()
    more = repeated(plan(rows), 3, 3)
    assert len(more) == len(rows) * 2
    assert plan(rows).cost(more) / plan(rows).cost(rows) == pytest.approx(1.03, abs=0.03)
    targets = targets_of(CHINCHILLA, 10 * rows.C.max())
    found = np.array(
        [
            [(e.df, e.width) for e in expectations(CHINCHILLA, np.array(law), r, NOISE,
                                                   FlopsPerToken(), targets, 0.9)]
            for law in TRUTHS.values()
            for r in (rows, more)
        ]
    ).reshape(3, 2, len(targets), 2).mean(0)  # fmt: skip
    alpha = [t.name for t in targets].index("alpha")
    assert 3 < found[0, alpha, 0] < 7
    assert found[1, alpha, 0] / found[0, alpha, 0] == pytest.approx(11.4 / 3.8, rel=0.15)
    # Here at the true variances; the notes' widths carry the spread of their estimates.
    for name in ("alpha", "E", "a", "loss"):
        k = [t.name for t in targets].index(name)
        assert 0.5 < found[1, k, 1] / found[0, k, 1] < 0.75, name


def test_one_ray_identifies_nothing() -> None:
    rows = grid(ratios=(20.0,))
    targets = targets_of(CHINCHILLA, 10 * rows.C.max())
    found = expectations(CHINCHILLA, TRUTH, rows, NOISE, FlopsPerToken(), targets, 0.9)
    # One horizon a size: five parameters from six rows, and alpha against beta is noise.
    assert found[0].width > 1


def test_fewer_rows_than_parameters_are_infinitely_wide() -> None:
    rows = grid(sizes=1, ratios=(5.0, 10, 20))
    found = expectations(
        CHINCHILLA, TRUTH, rows, NOISE, FlopsPerToken(), targets_of(CHINCHILLA, 1e20), 0.9
    )
    assert all(e.width == np.inf for e in found)


def test_a_target_has_the_laws_gradient_and_the_misfit_of_its_point() -> None:
    rows = grid()
    basis = Basis.of(GAMMA, np.append(TRUTH, 0.8), rows.N, rows.D)
    point = basis.target(Target("loss", "loss", (rows.N[3], rows.D[3])), FlopsPerToken())
    assert point == pytest.approx(basis.rows(rows.N, rows.D)[3])
    a = basis.target(Target("a", "a"), FlopsPerToken())
    assert np.all(a[basis.p :] == 0)
    assert np.any(a[: basis.p] != 0)
    misfit = basis.rows(rows.N, rows.D)[:, basis.p :]
    assert (misfit**2).sum(1) == pytest.approx(1, abs=0.05)  # unit variance at every run


def test_variance_components_are_recovered() -> None:
    rng, noise = np.random.default_rng(0), Noise(0.004, 0.001, 0.01)
    few, many = grid(), grid(sizes=24, decades=2.5)
    for truth in (replace(noise, misfit=0.02), replace(noise, misfit=1e-4)):
        z = np.log(CHINCHILLA.loss(TRUTH, many.N, many.D))
        basis = Basis.of(CHINCHILLA, TRUTH, many.N, many.D)
        columns = basis.rows(many.N, many.D)[:, basis.p :]
        z = z + columns @ (truth.misfit * rng.normal(size=columns.shape[1]))
        z = z + truth.trunk * rng.normal(size=24)[many.trunk]
        z = z + truth.row * rng.normal(size=len(z))
        rows = replace(many, L=np.exp(z))
        fit = working_point(CHINCHILLA, rows, Noise())
        here = Basis.of(CHINCHILLA, fit.theta, many.N, many.D)
        found = components(here, rows, fit.residuals, Noise())
        assert found.row == pytest.approx(truth.row, rel=0.3)
        assert 0.5 < found.trunk / truth.trunk < 2
        if truth.misfit > 0.01:
            assert 0.3 < found.misfit / truth.misfit < 3
        else:
            assert found.misfit < 0.004
        stated = components(here, rows, fit.residuals, Noise(), misfit=0.03)
        assert stated.misfit == pytest.approx(0.03)
    five = few.take(np.arange(len(few)) < 5)
    basis = Basis.of(CHINCHILLA, TRUTH, few.N, few.D)
    assert components(basis, five, np.zeros(5), noise) == noise  # nothing to learn from


def test_misfit_adds_to_the_error_and_repeats_do_not_remove_it() -> None:
    rows, flops = grid(), FlopsPerToken()
    at = Target("loss", "optimal-loss", (10 * float(rows.C.max()),))
    wrong = replace(NOISE, misfit=0.01)
    exact = misfit_error(CHINCHILLA, TRUTH, rows, NOISE, at, flops)
    expected = expectations(CHINCHILLA, TRUTH, rows, NOISE, flops, [at], 0.9)[0]
    assert exact == pytest.approx(expected.se, rel=1e-6)
    bent = misfit_error(CHINCHILLA, TRUTH, rows, wrong, at, flops)
    assert bent > 2 * exact
    seeds = repeated(plan(rows), 50, 6)
    assert misfit_error(CHINCHILLA, TRUTH, seeds, NOISE, at, flops) < 0.2 * exact
    left = misfit_error(CHINCHILLA, TRUTH, seeds, wrong, at, flops)
    assert left > 0.8 * (bent**2 - exact**2) ** 0.5


def test_the_typical_law_has_the_shares_it_promises() -> None:
    rows = grid()
    theta = typical(rows.N, rows.D)
    n, d = np.exp(np.log(rows.N).mean()), np.exp(np.log(rows.D).mean())
    assert theta[1] * n ** -theta[3] == pytest.approx(theta[2] * d ** -theta[4])
    best = CHINCHILLA.loss(theta, np.array([rows.N.max()]), np.array([rows.D.max()]))
    assert best == pytest.approx(1)


def test_the_working_point_stays_inside_the_law_on_few_cheap_rows() -> None:
    rng = np.random.default_rng(3)
    for _ in range(5):
        rows = grid(sizes=3, decades=0.3, ratios=(5.0, 8.0, 12.0))
        z = np.log(CHINCHILLA.loss(TRUTH, rows.N, rows.D)) + 0.003 * rng.normal(size=9)
        theta = working_point(CHINCHILLA, replace(rows, L=np.exp(z)), Noise()).theta
        assert np.all((theta[3:] > 0.1) & (theta[3:] < 0.8))
