"""Trunk bootstrap: weights shared by a trunk, percentile ends, and ends that are open."""

import dataclasses

import numpy as np
import pytest
from synthetic import TRUTH, Plan, rows_of

from analysis.bootstrap import LEAST, Draws, bootstrap, trunk_weights
from analysis.flops import FlopsPerToken
from analysis.interval import Interval, percentile
from analysis.laws import CHINCHILLA, GAMMA, KAPLAN_E
from analysis.refit import refit
from analysis.solve import fit_law
from analysis.targets import Target
from analysis.uncertainty import parameter_targets

FLOPS = FlopsPerToken()


def drawn(plan, law=CHINCHILLA, resamples=100, seed=0):
    rows = rows_of(plan)
    fit = fit_law(law, rows.variables(law.variables), rows.L)
    return rows, fit, bootstrap(fit, rows, resamples, seed)


def by_name(draws, level=0.9):
    targets = parameter_targets(draws.law)
    intervals = draws.intervals(targets, FLOPS, level)
    return {t.name: i for t, i in zip(targets, intervals, strict=True)}


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


def test_draws_are_refits_under_those_weights():
    rows, fit, draws = drawn(Plan(holdout=()), resamples=20, seed=3)
    W = trunk_weights(rows.trunk, 20, seed=3)
    assert draws.theta == pytest.approx(refit(fit, (rows.N, rows.D), rows.L, W).theta, rel=1e-12)
    alone = fit_law(CHINCHILLA, (rows.N, rows.D), rows.L, weights=W[7])
    assert draws.theta[7, 3:] == pytest.approx(alone.theta[3:], abs=1e-4)


def test_a_large_study_has_fewer_resamples_but_never_too_few(monkeypatch):
    rows, fit, draws = drawn(Plan(holdout=()), resamples=400)
    assert len(draws.theta) == 400
    monkeypatch.setattr("analysis.bootstrap.WORK", 300 * len(rows))
    assert len(bootstrap(fit, rows, 400).theta) == 300
    monkeypatch.setattr("analysis.bootstrap.WORK", 1)
    assert len(bootstrap(fit, rows, 400).theta) == LEAST


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    # 2 seeds everywhere; the method covers .83 to .97 (nominal .90), so 40 studies give 29 or more
    # with probability above .99 per target.
    hits = np.zeros(3)
    for seed in range(40):
        found = by_name(drawn(Plan(cheap=6, repeats=2, holdout=(), seed=seed), seed=seed)[2])
        for k, name in enumerate(("E", "alpha", "beta")):
            low, high = found[name].low, found[name].high
            hits[k] += (low is None or low <= TRUTH[name]) and (high is None or TRUTH[name] <= high)
    assert (hits >= 29).all(), hits


def test_more_noise_widens_every_interval():
    widths = []
    for factor in (1, 4):
        plan = Plan(trunk_noise=5e-4 * factor, row_noise=2e-4 * factor, seed=2)
        found = by_name(drawn(plan, resamples=400)[2])
        widths.append([found[k].width for k in ("E", "alpha", "beta", "a")])
    assert (np.array(widths[1]) > 1.5 * np.array(widths[0])).all()


@pytest.mark.parametrize("law", [CHINCHILLA, GAMMA, KAPLAN_E], ids=lambda law: law.name)
def test_intervals_are_the_quantiles_of_what_the_refits_say(law):
    rows, _, draws = drawn(Plan(holdout=()), law, resamples=60)
    C = 10 * float(rows.C.max())
    targets = [
        *parameter_targets(law),
        Target("L", "loss", (9e5, 7e6)),
        *(Target(k, f"optimal-{k}", (C,)) for k in ("n", "d", "loss")),
    ]
    theta = draws.theta
    best = law.optimal(theta, np.array([C]), FLOPS)
    values = [
        *theta.T,
        law.allocation_exponent(theta),
        law.loss(theta, np.array([9e5]), np.array([7e6]))[:, 0],
        *(v[:, 0] for v in (best.N, best.D, best.L)),
    ]
    for interval, value in zip(draws.intervals(targets, FLOPS, 0.8), values, strict=True):
        expected = np.quantile(value, [0.1, 0.9])
        if interval.closed:
            assert (interval.low, interval.high) == pytest.approx(tuple(expected), rel=1e-12)
        else:
            assert interval.note


def test_a_closed_and_an_open_percentile_interval():
    values = np.linspace(0.0, 1.0, 1001)
    closed = percentile(values, 0.9, at_low=0.05)
    assert (closed.low, closed.high) == pytest.approx((0.05, 0.95))
    assert closed.note is None
    assert closed.closed
    assert closed.width == pytest.approx(0.9)
    half = percentile(values, 0.9, at_low=0.2)
    assert half.low is None
    assert half.high == pytest.approx(0.95)
    assert half.note == "no lower bound: 20% of the resamples are at the lower limit"
    assert half.width == float("inf")
    other = percentile(values, 0.9, at_high=0.3, what=" of alpha")
    assert (other.low, other.high) == (pytest.approx(0.05), None)
    assert other.note == "no upper bound: 30% of the resamples are at the upper limit of alpha"
    stuck = percentile(values, 0.9, at_high=0.97)
    assert (stuck.low, stuck.high) == (None, None)
    both = percentile(values, 0.9, at_low=0.2, at_high=0.3)
    assert both == Interval(None, None, "no bounds: 30% of the resamples are at a limit")


def at_limit(draws, **columns):
    """The same draws, the first `count` marked at_low or at_high = (name, count)."""
    refits = draws.refits
    for side, (name, count) in columns.items():
        marked = getattr(refits, side).copy()
        marked[:count, draws.law.index(name)] = True
        refits = dataclasses.replace(refits, **{side: marked})
    return Draws(draws.law, refits)


def test_a_dead_term_opens_both_ends_of_its_exponent():
    draws = drawn(Plan(holdout=()))[2]
    found = by_name(at_limit(draws, at_low=("A", 30)))
    assert found["A"].low is None
    assert found["A"].high is not None
    assert (found["alpha"].low, found["alpha"].high) == (None, None)
    assert (found["a"].low, found["a"].high) == (None, None)
    assert found["beta"].closed


def test_an_exponent_at_its_limit_opens_its_coefficient():
    draws = drawn(Plan(holdout=()))[2]
    found = by_name(at_limit(draws, at_high=("beta", 20)))
    assert found["beta"].low is not None
    assert found["beta"].high is None
    assert (found["B"].low, found["B"].high) == (None, None)
    assert found["alpha"].closed
    # a = beta/(alpha + beta) is largest where beta is.
    assert found["a"].low is not None
    assert found["a"].high is None


def test_intervals_of_the_optimum_hold_the_estimate_and_widen_with_distance():
    _, fit, draws = drawn(Plan(holdout=()), resamples=300)
    near, far = 1e12, 1e14
    kinds = ("optimal-n", "optimal-d", "optimal-loss")
    targets = [Target(kind, kind, (c,)) for c in (near, far) for kind in kinds]
    ends = draws.intervals(targets, FLOPS, 0.9)
    best = CHINCHILLA.optimal(fit.theta, np.array([near, far]), FLOPS)
    estimates = [v[i] for i in range(2) for v in (best.N, best.D, best.L)]
    for interval, value in zip(ends, estimates, strict=True):
        assert interval.low <= value <= interval.high
    assert ends[3].width / best.N[1] > ends[0].width / best.N[0]


def test_an_exponent_at_a_limit_opens_the_optimum_but_not_its_loss():
    draws = at_limit(drawn(Plan(holdout=()))[2], at_low=("alpha", 20))
    targets = [Target(k, f"optimal-{k}", (1e14,)) for k in ("n", "d", "loss")]
    n, d, loss = draws.intervals(targets, FLOPS, 0.9)
    assert (n.low, n.high, d.low, d.high) == (None,) * 4
    assert "of alpha or beta" in n.note
    assert loss.closed
