"""Quantities of a law that get an interval, with their gradients: a parameter, a, L, L*, N*, D*.

All but a and the exponents are logarithms, so that intervals suit their scale. Many problems are
evaluated at once: problem i is asked for the value of its own target at its own phi.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.flops import FlopsPerToken
from analysis.newton import Problem

HUGE = 700.0  # exp of more than this is no floating-point number
STEP = 1e-6  # of a central difference in log or exponent units


@dataclass(frozen=True)
class Target:
    """`kind`: parameter, a, loss (at = N, D), or optimal-loss, optimal-n, optimal-d (at = C)."""

    name: str
    kind: str
    at: tuple[float, ...] = ()


class Evaluator:
    """Values and gradients of targets in the solver coordinates of one problem."""

    def __init__(self, problem: Problem, flops: FlopsPerToken, targets: Sequence[Target]):
        self.problem, self.flops, self.targets = problem, flops, tuple(targets)
        self.kinds = np.array([t.kind for t in targets])

    def natural(self, target: Target, value: float) -> float | None:
        """The value in the unit that people read, a logarithm turned back; None for no number."""
        if not np.isfinite(value):
            return None
        if target.kind in ("parameter", "a") and target.name not in self.problem.law.logged:
            return float(value)
        return float(np.exp(value)) if abs(value) < HUGE else None

    def __call__(self, index: np.ndarray, phi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Value (R) and gradient (R, p) of target index[i] at phi[i]."""
        value, gradient = np.empty(len(phi)), np.zeros(phi.shape)
        for kind in dict.fromkeys(self.kinds[index]):
            here = np.flatnonzero(self.kinds[index] == kind)
            chosen = [self.targets[i] for i in index[here]]
            value[here], gradient[here] = self._of_kind(kind, chosen, phi[here])
        return value, gradient

    def _of_kind(
        self, kind: str, targets: Sequence[Target], phi: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        law = self.problem.law
        if kind == "parameter":
            k = np.array([law.index(t.name) for t in targets])
            return self._differences(phi, lambda p: self._values(p, k))
        if kind == "a":
            return self._differences(
                phi, lambda p: np.asarray(law.allocation_exponent(law.values(p)))
            )
        at = np.log(np.array([t.at for t in targets]))
        if kind == "loss":
            return self._loss(phi, at)
        log_c = at[:, 0]
        best = law.optimal(self.problem.values(phi), np.exp(log_c)[:, None], self.flops)
        n, d = np.log(best.N[:, 0]), np.log(best.D[:, 0])
        if kind == "optimal-loss":  # envelope theorem: N* and D* need not move
            return self._loss(phi, np.stack([n, d], axis=-1))

        def excess(p: np.ndarray, u: np.ndarray) -> np.ndarray:
            f, slope = self.flops(u)
            theta = self.problem.values(p)
            gain, cost = law.elasticities(theta, u, log_c - f)
            return np.log(gain) - np.log(slope * cost)

        # N* solves excess = 0, so its derivative is -(d excess / d phi) / (d excess / d log N).
        by_phi = self._differences(phi, lambda p: excess(p, n))[1]
        by_n = (excess(phi, n + STEP) - excess(phi, n - STEP)) / (2 * STEP)
        gradient = -by_phi / by_n[:, None]
        if kind == "optimal-n":
            return n, gradient
        return d, -self.flops(n)[1][:, None] * gradient

    def _loss(self, phi: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        law, i = self.problem.law, np.arange(len(phi))
        features = law.prepare(at - self.problem.centre[: at.shape[1]])
        z, state = law.forward(features, phi)
        return z[i, i], law.jacobian(features, state)[i, i]

    def _values(self, phi: np.ndarray, k: np.ndarray) -> np.ndarray:
        """Parameter k[i] of problem i, its logarithm where the law works on that."""
        law, i = self.problem.law, np.arange(len(k))
        if law.scale_free:
            return law.recentre(phi, -self.problem.centre)[i, k]
        values = self.problem.values(phi)[i, k]
        logged = np.isin(np.array(law.parameters)[k], law.logged)
        return np.where(logged, np.log(np.where(logged, values, 1.0)), values)

    def _differences(self, phi: np.ndarray, function) -> tuple[np.ndarray, np.ndarray]:
        gradient = np.empty(phi.shape)
        for k in range(phi.shape[1]):
            step = np.zeros(phi.shape[1])
            step[k] = STEP
            gradient[:, k] = (function(phi + step) - function(phi - step)) / (2 * STEP)
        return function(phi), gradient
