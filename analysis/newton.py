"""Damped projected Newton for the Huber objective, on many problems at once."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np

from analysis.form import Form
from analysis.law import Law


@dataclass(frozen=True)
class Penalty:
    """0.5·weight·(phi - centre)' precision (phi - centre), added to the objective."""

    precision: np.ndarray
    centre: np.ndarray


F = TypeVar("F", bound=Form, covariant=True)


@dataclass(frozen=True)
class Problem(Generic[F]):
    """One fit in solver coordinates; `low` == `high` where a parameter is fixed.

    features: the law's own preparation of the centred variables; z: log losses; centre: what was
    subtracted from the log variables.
    """

    law: F
    features: Any
    z: np.ndarray
    low: np.ndarray
    high: np.ndarray
    centre: np.ndarray
    penalty: Penalty | None = None

    @property
    def free(self) -> np.ndarray:
        return self.low < self.high

    def interior(self, phi: np.ndarray) -> np.ndarray:
        """Which parameters are neither fixed nor at a limit."""
        return self.free & (phi > self.low + 1e-9) & (phi < self.high - 1e-9)

    def values(self: "Problem[Law]", phi: np.ndarray) -> np.ndarray:
        return self.law.values(self.law.recentre(phi, -self.centre))

    def coordinates(self: "Problem[Law]", theta: np.ndarray) -> np.ndarray:
        return self.law.recentre(self.law.log_coordinates(theta), self.centre)


@dataclass(frozen=True)
class Point:
    """Objective F (R) with what its derivatives need, at phi (R, p)."""

    phi: np.ndarray
    r: np.ndarray  # residuals (R, rows)
    state: Any
    F: np.ndarray


def evaluate(problem: Problem, W: np.ndarray, phi: np.ndarray, delta: float) -> Point:
    """The weighted Huber objective (Huber 1964) of log residuals, plus the penalty."""
    z, state = problem.law.forward(problem.features, phi)
    r = z - problem.z
    size = np.abs(r)
    cut = np.minimum(size, delta)
    F = np.einsum("rn,rn->r", W, cut * (size - 0.5 * cut))
    if problem.penalty:
        away = phi - problem.penalty.centre
        F = F + 0.5 * np.einsum("rp,pq,rq->r", away, problem.penalty.precision, away)
    return Point(phi, r, state, F)


def objective(problem: Problem, W: np.ndarray, phi: np.ndarray, delta: float) -> np.ndarray:
    return evaluate(problem, W, phi, delta).F


def derivatives(
    problem: Problem, W: np.ndarray, point: Point, delta: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gradient, Hessian, curvature scale and gradient scale delta·sum w·|J| of each problem."""
    psi = W * np.clip(point.r, -delta, delta)
    inner = W * (np.abs(point.r) <= delta)
    g, H, scale, size = problem.law.second_order(problem.features, point.state, psi, inner, W)
    if problem.penalty:
        precision = problem.penalty.precision
        g = g + (point.phi - problem.penalty.centre) @ precision
        H = H + precision
        scale = scale + np.diag(precision)
    return g, H, scale, np.maximum(delta * size, 1e-300)


def newton(
    problem: Problem, W: np.ndarray, phi: np.ndarray, delta: float, steps: int, tolerance: float
) -> np.ndarray:
    """Damped projected Newton on many problems at once; stops each at a scaled gradient."""
    result = phi.copy()
    eye = np.eye(phi.shape[1])
    active = np.arange(len(phi))
    damping = np.full(len(phi), 1e-3)
    stalled = np.zeros(len(phi), bool)
    w, point = W, evaluate(problem, W, phi, delta)
    for _ in range(steps):
        g, H, scale, size = derivatives(problem, w, point, delta)
        held = held_back(problem, point.phi, g)
        g = np.where(held, 0.0, g)
        done = (np.abs(g) / size).max(1) < tolerance
        done |= (damping > 1e12) | stalled  # changes of the objective are all rounding
        if done.any():
            result[active[done]] = point.phi[done]
            go = ~done
            active, damping, stalled, w = active[go], damping[go], stalled[go], w[go]
            g, H, scale, held = g[go], H[go], scale[go], held[go]
            point = _take(point, go)
            if not len(active):
                return result
        H = H + (damping[:, None] * scale)[:, :, None] * eye
        if held.any():
            H = np.where(held[:, :, None] | held[:, None, :], 0.0, H) + held[:, :, None] * eye
        step = _solve(H, g)
        lost = ~np.isfinite(step).all(1)  # a Hessian beyond floating point: damp harder
        step[lost] = 0.0
        stalled = (np.einsum("rp,rp->r", g, step) <= 1e-15 * point.F) & (damping < 1e-6) & ~lost
        trial = np.clip(point.phi - step, problem.low, problem.high)
        new = evaluate(problem, w, trial, delta)
        # Near the optimum the decrease drowns in rounding; a step that keeps F is taken there.
        better = (new.F <= point.F * (1 + 4e-16)) & ~lost
        point = new if better.all() else _merge(point, new, better)
        damping = np.where(better, np.maximum(damping * 0.1, 1e-15), damping * 8.0)
    result[active] = point.phi
    return result


def _take(point: Point, mask: np.ndarray) -> Point:
    state = _each(lambda v: v[mask], point.state)
    return Point(point.phi[mask], point.r[mask], state, point.F[mask])


def _merge(old: Point, new: Point, better: np.ndarray) -> Point:
    """The new point where it is better, the old one elsewhere."""

    def choose(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.where(better.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

    state = _each(choose, new.state, old.state)
    return Point(choose(new.phi, old.phi), choose(new.r, old.r), state, choose(new.F, old.F))


def _each(function: Callable[..., np.ndarray], state: Any, *others: Any) -> Any:
    """The function of a state: an array, or a dataclass whose one-dimensional arrays are data."""
    if isinstance(state, np.ndarray):
        return function(state, *others)
    fields = {
        name: function(value, *(getattr(other, name) for other in others))
        for name, value in vars(state).items()
        if value.ndim > 1
    }
    return replace(state, **fields)


def _solve(H: np.ndarray, g: np.ndarray) -> np.ndarray:
    """H^-1 g per problem; a tiny ridge where a matrix is exactly singular."""
    try:
        return np.linalg.solve(H, g[..., None])[..., 0]
    except np.linalg.LinAlgError:
        size = np.abs(H).max((1, 2), keepdims=True) + 1e-300
        return np.linalg.solve(H + 1e-10 * size * np.eye(H.shape[1]), g[..., None])[..., 0]


def held_back(problem: Problem, phi: np.ndarray, g: np.ndarray) -> np.ndarray:
    """Fixed parameters, and those at a limit that the gradient presses against."""
    return (
        ~problem.free
        | ((phi <= problem.low) & (g > 0))
        | ((phi >= problem.high) & (g < 0))
    )  # fmt: skip


def scaled_gradient(problem: Problem, W: np.ndarray, phi: np.ndarray, delta: float) -> np.ndarray:
    """Largest |gradient| over its scale, over the parameters that are not held; in [0, 1]."""
    point = evaluate(problem, W, phi, delta)
    g, _, _, size = derivatives(problem, W, point, delta)
    return np.where(held_back(problem, phi, g), 0.0, np.abs(g) / size).max(1)


def finish(problem: Problem, w: np.ndarray, phi: np.ndarray, delta: float) -> np.ndarray:
    """Newton steps while the gradient falls: here changes of the objective are all rounding."""
    W, best = w[None], phi[None]
    smallest, highest = np.inf, np.inf
    for _ in range(20):
        point = evaluate(problem, W, best, delta)
        g, H, _, size = derivatives(problem, W, point, delta)
        held = held_back(problem, best, g)
        if not np.isfinite(smallest):
            smallest = float(np.where(held, 0.0, np.abs(g) / size).max())
            highest = float(point.F[0]) * (1 + 1e-12)
        if smallest < 1e-14:
            break
        H = np.where(held[:, :, None] | held[:, None, :], 0.0, H)
        H = H + held[:, :, None] * np.eye(len(phi))
        step = _solve(H, np.where(held, 0.0, g))
        # A residual at |r| = delta changes the Hessian across it: then part of the step is right.
        fractions = np.array([1.0, 0.7, 0.5, 0.3, 0.1, 0.03])
        step = np.where(np.isfinite(step), step, 0.0)
        points = np.clip(best - fractions[:, None] * step, problem.low, problem.high)
        many = np.broadcast_to(w, (len(points), len(w)))
        gradient = scaled_gradient(problem, many, points, delta)
        gradient[objective(problem, many, points, delta) > highest] = np.inf
        k = int(np.argmin(gradient))
        if not gradient[k] < smallest:
            break
        best, smallest = points[k : k + 1], float(gradient[k])
    return best[0]
