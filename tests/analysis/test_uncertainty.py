"""Intervals that cover, seed noise, lack of fit, and designs that cannot tell."""

import numpy as np
import pytest
from synthetic import TRUTH, Plan, results_frame

from analysis.laws import CHINCHILLA, TWO_TERM, FlopsPerToken
from analysis.load import Rows
from analysis.solve import fit_law
from analysis.uncertainty import (
    Draws,
    bootstrap,
    diagnose,
    interval,
    lack_of_fit,
    optimum_intervals,
    parameter_intervals,
    seed_noise,
    trunk_weights,
    variance_components,
)


def rows_of(plan):
    f = results_frame(plan)
    f = f[~f["holdout"]]
    trunk = f["trunk_id"].astype("category").cat.codes.to_numpy()
    N, D, C, L = (f[c].to_numpy(float) for c in ("n_total", "tokens", "flops_exact", "val_loss"))
    return Rows(N, D, C, L, trunk)


def test_rows_of_a_trunk_share_their_weight():
    trunk = np.array([0, 0, 1, 2, 2, 2])
    W = trunk_weights(trunk, 500, seed=1)
    assert (W[:, 0] == W[:, 1]).all()
    assert (W[:, 3] == W[:, 5]).all()
    assert not (W[:, 0] == W[:, 2]).any()
    per_trunk = W[:, [0, 2, 3]]
    assert per_trunk.mean(1) == pytest.approx(np.ones(500))
    assert (trunk_weights(trunk, 500, seed=1) == W).all()
    assert (trunk_weights(trunk, 500, seed=2) != W).any()


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    # 2 seeds everywhere; the method covers .83 to .97 (nominal .90), so 40 studies give 29 or more
    # with probability above .99 per target.
    hits = np.zeros(3)
    for seed in range(40):
        rows = rows_of(Plan(cheap=6, repeats=2, holdout=(), seed=seed))
        fit = fit_law(CHINCHILLA, rows.N, rows.D, rows.L)
        draws = bootstrap(fit, rows, resamples=120, seed=seed)
        found = parameter_intervals(draws, diagnose(rows, CHINCHILLA, {}), {}, 0.9)
        for k, name in enumerate(("E", "alpha", "beta")):
            low, high = found[name].low, found[name].high
            hits[k] += (low is None or low <= TRUTH[name]) and (high is None or TRUTH[name] <= high)
    assert (hits >= 29).all(), hits


def test_more_noise_widens_every_interval():
    widths = []
    for factor in (1, 4):
        rows = rows_of(Plan(trunk_noise=5e-4 * factor, row_noise=2e-4 * factor, seed=2))
        fit = fit_law(CHINCHILLA, rows.N, rows.D, rows.L)
        found = parameter_intervals(
            bootstrap(fit, rows, 400), diagnose(rows, CHINCHILLA, {}), {}, 0.9
        )
        widths.append([found[k].width for k in ("E", "alpha", "beta", "a")])
    assert (np.array(widths[1]) > 1.5 * np.array(widths[0])).all()


def test_an_end_with_too_many_resamples_at_a_limit_is_open_and_says_so():
    values = np.linspace(0.0, 1.0, 1001)
    closed = interval(values, 0.9, at_low=0.05)
    assert (closed.low, closed.high, closed.note) == (
        pytest.approx(0.05),
        pytest.approx(0.95),
        None,
    )
    half = interval(values, 0.9, at_low=0.2)
    assert half.low is None
    assert half.high == pytest.approx(0.95)
    assert half.note == "no lower bound: 20% of the resamples are at the lower limit"
    assert half.width == float("inf")
    stuck = interval(values, 0.9, at_high=0.97)
    assert (stuck.low, stuck.high) == (None, None)


def test_a_dead_term_opens_both_ends_of_its_exponent():
    rows = rows_of(Plan(holdout=()))
    fit = fit_law(CHINCHILLA, rows.N, rows.D, rows.L)
    draws = bootstrap(fit, rows, 100)
    draws.refits.at_low[:30, CHINCHILLA.parameters.index("A")] = True
    found = parameter_intervals(
        Draws(CHINCHILLA, draws.refits), diagnose(rows, CHINCHILLA, {}), {}, 0.9
    )
    assert found["A"].low is None
    assert found["A"].high is not None
    assert (found["alpha"].low, found["alpha"].high) == (None, None)
    assert (found["a"].low, found["a"].high) == (None, None)
    assert found["beta"].closed


def test_an_exponent_at_its_limit_opens_its_coefficient():
    rows = rows_of(Plan(holdout=()))
    fit = fit_law(CHINCHILLA, rows.N, rows.D, rows.L)
    draws = bootstrap(fit, rows, 100)
    draws.refits.at_high[:20, CHINCHILLA.parameters.index("beta")] = True
    found = parameter_intervals(draws, diagnose(rows, CHINCHILLA, {}), {}, 0.9)
    assert found["beta"].low is not None
    assert found["beta"].high is None
    assert (found["B"].low, found["B"].high) == (None, None)
    assert found["alpha"].closed


def test_seed_noise_is_the_pooled_spread_between_trunks():
    N = np.repeat([1e5, 1e5, 2e5, 2e5, 4e5], 2)
    D = np.tile([1e6, 2e6], 5)
    trunk = np.repeat(np.arange(5), 2)
    z = np.array([0.0, 0.0, 0.02, 0.04, 0.1, 0.1, 0.1, 0.1, 7.0, 7.0])
    noise = seed_noise(Rows(N, D, 6 * N * D, np.exp(z), trunk))
    assert noise.sigma == pytest.approx(np.sqrt((2 * 0.01**2 + 2 * 0.02**2) / 4))
    assert (noise.df_rows, noise.df_trunks, noise.max_seeds) == (4, 2, 2)


def test_without_repeats_there_is_no_noise_and_no_test():
    rows = rows_of(Plan(repeats=1))
    noise = seed_noise(rows)
    assert noise.df_rows == 0
    assert np.isnan(noise.sigma)
    assert lack_of_fit(fit_law(CHINCHILLA, rows.N, rows.D, rows.L), rows, noise) is None


def test_lack_of_fit_accepts_the_truth_and_rejects_a_bent_law():
    accepted = 0
    for seed in range(20):
        rows = rows_of(Plan(seed=seed))
        test = lack_of_fit(fit_law(CHINCHILLA, rows.N, rows.D, rows.L), rows, seed_noise(rows))
        accepted += not test.rejected
    assert accepted >= 17
    rows = rows_of(Plan(bend=0.02))
    test = lack_of_fit(fit_law(CHINCHILLA, rows.N, rows.D, rows.L), rows, seed_noise(rows))
    assert test.rejected
    assert test.df == (25, 6)
    assert test.p < 0.01


def test_variance_components_find_the_simulated_noise():
    rows = rows_of(Plan(cheap=6, repeats=8, trunk_noise=4e-3, row_noise=1e-3))
    found = variance_components(fit_law(CHINCHILLA, rows.N, rows.D, rows.L), rows)
    assert found["row_sd"] == pytest.approx(1e-3, rel=0.2)
    assert found["trunk_sd"] == pytest.approx(4e-3, rel=0.3)
    assert found["trunks"] == 48


@pytest.mark.parametrize(
    ("plan", "unknown", "text"),
    [
        (Plan(horizons=(20,), ratios=True), {"E", "A", "B", "alpha", "beta", "a"}, "D/N near 20"),
        (Plan(sizes=(5e4, 1e5), cheap=2), {"E", "A", "alpha", "a"}, "2 sizes"),
        (Plan(horizons=(1e6, 2e6)), {"E", "B", "beta", "a"}, "2 horizons"),
        (Plan(sizes=(5e4, 1e5, 2e5), repeats=1), {"E", "A", "alpha", "a"}, "no repeats"),
        (Plan(), set(), ""),
        (Plan(horizons=(10, 20, 40), ratios=True), set(), ""),
    ],
)
def test_designs_that_cannot_tell_are_named(plan, unknown, text):
    design = diagnose(rows_of(plan), CHINCHILLA, {})
    assert set(design.problems) == unknown
    for problem in design.problems.values():
        assert problem.startswith("not identified by this design: ")
        assert text in problem


def test_a_steeper_line_is_as_blind_as_a_constant_ratio():
    N = np.geomspace(1e5, 1e7, 8)
    D = 3e-3 * N**1.7
    rows = Rows(N, D, 6 * N * D, 1 + 1e3 / N + 1e3 / D, np.arange(8))
    design = diagnose(rows, CHINCHILLA, {})
    assert "proportional to N^1.7" in design.problems["alpha"]


def test_a_fixed_parameter_is_a_point_and_helps_the_design():
    rows = rows_of(Plan(sizes=(5e4, 1e5, 2e5), repeats=1, holdout=()))
    assert "alpha" in diagnose(rows, CHINCHILLA, {}).problems
    design = diagnose(rows, CHINCHILLA, {"E": 1.3})
    assert not design.problems
    assert not diagnose(rows, TWO_TERM, {}).problems
    fit = fit_law(CHINCHILLA, rows.N, rows.D, rows.L, fixed={"E": 1.3})
    found = parameter_intervals(bootstrap(fit, rows, 50), design, {"E": 1.3}, 0.9)
    assert (found["E"].low, found["E"].high) == (1.3, 1.3)


def test_optimum_intervals_hold_the_estimate():
    rows = rows_of(Plan(holdout=()))
    fit = fit_law(CHINCHILLA, rows.N, rows.D, rows.L)
    C = np.array([1e12, 1e14])
    best = CHINCHILLA.optimal(fit.theta, C, FlopsPerToken())
    ends = optimum_intervals(bootstrap(fit, rows, 300), C, FlopsPerToken(), 0.9)
    for i, (n, d, loss) in enumerate(ends):
        assert n.low <= best.N[i] <= n.high
        assert d.low <= best.D[i] <= d.high
        assert loss.low <= best.L[i] <= loss.high
    assert ends[1][0].width / best.N[1] > ends[0][0].width / best.N[0]
