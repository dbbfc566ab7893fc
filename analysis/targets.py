"""Quantities of a law that get an interval, with their gradients: a parameter, a, L, L*, N*, D*.

All but a and the exponents are logarithms, so that intervals suit their scale. Many problems are
evaluated at once: problem i is asked for the value of its own target at its own phi.
"""

from collections.abc import Callable, Sequence
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

    def at(self, phi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values (targets) and gradients (targets, p) of all targets at one phi."""
        count = len(self.targets)
        return self(np.arange(count), np.repeat(phi[None], count, axis=0))

    def _of_kind(
        self, kind: str, targets: Sequence[Target], phi: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        law = self.problem.law
        if kind == "parameter":
            k = np.array([law.index(t.name) for t in targets])
            return _differences(phi, lambda p: self._values(p, k))
        if kind == "a":
            return _differences(phi, lambda p: np.asarray(law.allocation_exponent(law.values(p))))
        at = np.log(np.array([t.at for t in targets]))
        if kind == "loss":
            return self._loss(phi, at)
        log_c = at[:, 0]
        best = law.optimal(self.problem.values(phi), np.exp(log_c)[:, None], self.flops)
        n, d = np.log(best.N[:, 0]), np.log(best.D[:, 0])
        if kind == "optimal-loss":  # envelope theorem: N* and D* need not move
            return self._loss(phi, np.stack([n, d], axis=-1))

        def imbalance(p: np.ndarray, u: np.ndarray) -> np.ndarray:
            return law.imbalance(self.problem.values(p), u, log_c, self.flops)

        # N* solves imbalance = 0: its derivative is -(by phi) / (by log N).
        by_phi = _differences(phi, lambda p: imbalance(p, n))[1]
        by_n = (imbalance(phi, n + STEP) - imbalance(phi, n - STEP)) / (2 * STEP)
        gradient = -by_phi / by_n[:, None]
        if kind == "optimal-n":
            return n, gradient
        return d, -self.flops(n)[1][:, None] * gradient

    def _loss(self, phi: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        law, i = self.problem.law, np.arange(len(phi))
        z, J = law.linearised(law.prepare(at - self.problem.centre[: at.shape[1]]), phi)
        return z[i, i], J[i, i]

    def _values(self, phi: np.ndarray, k: np.ndarray) -> np.ndarray:
        """Parameter k[i] of problem i (..., R), its logarithm where the law works on that."""
        law, i = self.problem.law, np.arange(len(k))
        if law.scale_free:
            return law.recentre(phi, -self.problem.centre)[..., i, k]
        values = self.problem.values(phi)[..., i, k]
        logged = np.isin(np.array(law.parameters)[k], law.logged)
        return np.where(logged, np.log(np.where(logged, values, 1.0)), values)


def _differences(
    phi: np.ndarray, function: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Value (R) and gradient (R, p) of a function of (..., R, p), called once for all."""
    p = phi.shape[1]
    step = STEP * np.eye(p)[:, None]
    values = function(np.concatenate([phi[None], phi + step, phi - step]))
    return values[0], (values[1 : p + 1] - values[p + 1 :]).T / (2 * STEP)
