"""The same law under many row weights at once: bootstrap resamples, leave-one-out, profiles."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.certificate import limits_reached
from analysis.newton import Problem, newton, objective, scaled_gradient
from analysis.solve import Fit, problem_of

PIECE = 60_000  # rows times problems that stay in the processor's cache


@dataclass(frozen=True)
class Refits:
    """The law refitted under many row weights: values (refits, p) and which ended at a limit."""

    theta: np.ndarray
    at_low: np.ndarray
    at_high: np.ndarray
    gradient: np.ndarray


def refit(fit: Fit, X: Sequence[np.ndarray], L: np.ndarray, weights: np.ndarray) -> Refits:
    """The same law under many row weights (refits, rows), all at once.

    Damped Newton from every distinct optimum of the full data (at most three), keeping the better.
    """
    problem = problem_of(fit.law, X, L, fit.fixed)[0]
    weights = np.asarray(weights, float)
    best = np.empty((len(weights), len(fit.theta)))
    F = np.full(len(weights), np.inf)
    rivals = fit.rivals[:3]
    step = max(PIECE // weights.shape[1], 1)
    for i in range(0, len(weights), step):
        here = slice(i, i + step)
        for start in rivals:
            phi, value = _descend(problem, weights[here], start, fit.delta)
            better = value < F[here]
            best[here][better] = phi[better]
            F[here] = np.minimum(F[here], value)
    gradient = scaled_gradient(problem, weights, best, fit.delta)
    low, high = limits_reached(problem, best)
    return Refits(problem.values(best), low, high, gradient)


def _descend(
    problem: Problem, W: np.ndarray, start: np.ndarray, delta: float
) -> tuple[np.ndarray, np.ndarray]:
    """From one start to each problem's optimum; one that crawls goes round by larger deltas."""
    phi = np.repeat(start[None], len(W), axis=0)
    phi = newton(problem, W, phi, 3 * delta, 8, 1e-3)
    phi = newton(problem, W, phi, delta, 30, 1e-7)
    slow = scaled_gradient(problem, W, phi, delta) > 1e-7
    if slow.any():
        again, w = phi[slow], W[slow]
        for stage in (100.0, 30.0, 10.0, 3.0):
            again = newton(problem, w, again, delta * stage, 12, 1e-3)
        again = newton(problem, w, again, delta, 80, 1e-7)
        better = objective(problem, w, again, delta) < objective(problem, w, phi[slow], delta)
        phi[np.flatnonzero(slow)[better]] = again[better]
    return phi, objective(problem, W, phi, delta)
