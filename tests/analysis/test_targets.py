"""Gradients of every quantity that gets an interval, and the unit it is told in."""

import numpy as np
import pytest
from synthetic import Plan, rows_of

from analysis.flops import FlopsPerToken
from analysis.laws import CHINCHILLA, GAMMA, LAWS
from analysis.solve import problem_of
from analysis.targets import Evaluator, Target

ROWS = rows_of(Plan(holdout=()))
LADDER = FlopsPerToken.from_rows(ROWS.N, ROWS.D, ROWS.C, "own")
THETA = {
    "chinchilla": np.array([1.3, 35.0, 130.0, 0.36, 0.4]),
    "tied": np.array([1.3, 35.0, 130.0, 0.38]),
    "two-term": np.array([15.0, 30.0, 0.2, 0.3]),
    "gamma": np.array([1.3, 400.0, 3e3, 0.36, 0.4, 0.6]),
    "product": np.array([1.3, 35.0, 130.0, 800.0, 0.36, 0.4]),
    "kaplan": np.array([2e3, 3e6, 0.12, 0.15]),
    "kaplan-e": np.array([1.0, 2e3, 3e6, 0.2, 0.25]),
}
KINDS = ("a", "loss", "optimal-loss", "optimal-n", "optimal-d")
every_law = pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
both_flops = pytest.mark.parametrize("flops", [FlopsPerToken(), LADDER], ids=["6ND", "ladder"])


def targets_of(law):
    far = 10 * float(ROWS.C.max())
    return [
        *(Target(name, "parameter") for name in law.parameters),
        Target("a", "a"),
        Target("L", "loss", (9e5, 7e6)),
        *(Target(kind, kind, (far,)) for kind in KINDS[2:]),
    ]


def plain(law, target, theta, flops):
    """The value in people's units, from the law's own public methods."""
    if target.kind == "parameter":
        return theta[law.index(target.name)]
    if target.kind == "a":
        return float(law.allocation_exponent(theta))
    if target.kind == "loss":
        return law.loss(theta, *(np.array([v]) for v in target.at))[0]
    best = law.optimal(theta, np.array(target.at), flops)
    return {"optimal-loss": best.L, "optimal-n": best.N, "optimal-d": best.D}[target.kind][0]


@every_law
@both_flops
def test_values_and_gradients_equal_the_plain_ones(law, flops):
    problem = problem_of(law, (ROWS.N, ROWS.D), ROWS.L, {})[0]
    targets = targets_of(law)
    evaluator = Evaluator(problem, flops, targets)
    phi = problem.coordinates(THETA[law.name])
    index = np.arange(len(targets))
    value, gradient = evaluator(index, np.repeat(phi[None], len(index), axis=0))
    h = 1e-4
    for i, target in enumerate(targets):

        def scaled(p, target=target):
            found = plain(law, target, problem.values(p), flops)
            straight = target.kind == "a" or target.name in law.exponents
            return found if straight else np.log(found)

        assert value[i] == pytest.approx(scaled(phi), rel=1e-9, abs=1e-9)
        steps = h * np.eye(len(phi))
        expected = np.array([(scaled(phi + e) - scaled(phi - e)) / (2 * h) for e in steps])
        assert gradient[i] == pytest.approx(expected, rel=2e-5, abs=2e-5), target
        natural = evaluator.natural(target, float(value[i]))
        assert natural == pytest.approx(plain(law, target, problem.values(phi), flops), rel=1e-9)


@both_flops
def test_many_points_at_once_give_the_single_answers(flops):
    problem = problem_of(GAMMA, (ROWS.N, ROWS.D), ROWS.L, {})[0]
    targets = targets_of(GAMMA)
    evaluator = Evaluator(problem, flops, targets)
    rng = np.random.default_rng(0)
    phi = problem.coordinates(THETA["gamma"]) + rng.normal(size=(40, 6)) * 0.02
    index = rng.integers(0, len(targets), 40)
    value, gradient = evaluator(index, phi)
    for i in range(40):
        alone, slope = evaluator(index[i : i + 1], phi[i : i + 1])
        assert value[i] == pytest.approx(alone[0], rel=1e-10, abs=1e-12)
        assert gradient[i] == pytest.approx(slope[0], rel=1e-6, abs=1e-8)


def test_a_fixed_exponent_stands_in_the_allocation_like_any_other():
    problem = problem_of(CHINCHILLA, (ROWS.N, ROWS.D), ROWS.L, {"alpha": 0.36})[0]
    evaluator = Evaluator(problem, FlopsPerToken(), [Target("a", "a")])
    phi = problem.coordinates(THETA["chinchilla"])[None]
    value, gradient = evaluator(np.zeros(1, int), phi)
    alpha, beta = 0.36, 0.4
    assert value[0] == pytest.approx(beta / (alpha + beta))
    assert gradient[0] == pytest.approx(
        [0, 0, 0, -beta / (alpha + beta) ** 2, alpha / (alpha + beta) ** 2], abs=1e-8
    )


def test_at_the_optimum_the_slopes_add_up_to_the_compute():
    """log N* and log D* move against each other at fixed compute, by the cost of N."""
    problem = problem_of(CHINCHILLA, (ROWS.N, ROWS.D), ROWS.L, {})[0]
    C = (float(ROWS.C.max()),)
    for flops in (FlopsPerToken(), LADDER):
        targets = [Target("N", "optimal-n", C), Target("D", "optimal-d", C)]
        phi = np.repeat(problem.coordinates(THETA["chinchilla"])[None], 2, axis=0)
        value, gradient = Evaluator(problem, flops, targets)(np.arange(2), phi)
        cost, slope = flops(value[:1])
        assert cost[0] + value[1] == pytest.approx(np.log(C[0]), rel=1e-12)
        assert gradient[1] == pytest.approx(-slope[0] * gradient[0], abs=1e-9)
