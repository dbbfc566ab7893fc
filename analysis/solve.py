"""Fit a law to rows: global start, damped Newton, polish, and a certificate of the optimum.

Objective: sum over rows of w·Huber(log L_pred - log L), Huber(r) = r²/2 for |r| <= delta, else
delta·(|r| - delta/2), delta = 1e-3 (Hoffmann et al. 2022). Coordinates: log coefficients and
exponents over centred log variables, which takes the condition number from ~1e7 to ~1e4.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import least_squares

from analysis.certificate import CONVERGED, SINGULAR, Certificate, certify, limit_texts, status
from analysis.law import Law
from analysis.newton import Penalty, Problem, evaluate, finish, newton, objective, scaled_gradient

DELTA = 1e-3
MOST_ROWS = 2000  # that the global start looks at
FAR, FAR_STALLED = 10.0, 2.0  # times the best objective: beyond, optima and stalled starts are out


@dataclass(frozen=True)
class Fit:
    """A fitted law: `theta` are its values, `at_limit` says what is wrong with a parameter."""

    law: Law
    theta: np.ndarray
    fixed: Mapping[str, float]
    delta: float
    objective: float
    residuals: np.ndarray  # log L_pred - log L per row
    certificate: Certificate
    at_limit: Mapping[str, str]
    status: str
    rivals: np.ndarray  # solver coordinates of every distinct optimum found, best first

    @property
    def parameters(self) -> dict[str, float]:
        return self.law.named(self.theta)

    @property
    def n_free(self) -> int:
        return len(self.law.parameters) - len(self.fixed)

    @property
    def rms(self) -> float:
        """Root mean square of the log residuals (0.01 = 1 %)."""
        return float(np.sqrt(np.mean(self.residuals**2)))

    @property
    def certified(self) -> bool:
        return self.certificate.gradient < CONVERGED and self.certificate.condition < SINGULAR


def fit_law(
    law: Law,
    X: Sequence[np.ndarray],
    L: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    fixed: Mapping[str, float] | None = None,
    delta: float = DELTA,
    penalty: Penalty | None = None,
) -> Fit:
    """Minimise the Huber objective over all parameters that are not `fixed`.

    X: positive arrays in the order of `law.variables` (parameters, tokens, ...), L nats/token, all
    of one length. ValueError for an unknown or non-positive fixed parameter.
    """
    fixed = dict(fixed or {})
    problem, x = problem_of(law, X, L, fixed, penalty)
    w = np.ones(len(problem.z)) if weights is None else np.asarray(weights, float)
    phi, members = _basins(problem, x, w, delta)
    W = np.broadcast_to(w, (len(phi), len(w)))
    # Where a part of the rows has led to the optima, what still crawls ends in none.
    phi = newton(problem, W, phi, delta, 200 if len(x) < 2 * MOST_ROWS else 40, 1e-13)
    F = objective(problem, W, phi, delta)
    best = phi[int(np.argmin(F))]
    if weights is None and penalty is None:
        best = _polish(problem, best, delta)
        phi, members = np.vstack([phi, best]), np.append(members, 0)
        F = np.append(F, objective(problem, W[:1], best[None], delta))
    order = np.argsort(F, kind="stable")
    phi, F, members = phi[order], F[order], members[order]
    best = phi[0]
    W = np.broadcast_to(w, (len(phi), len(w)))
    stalled = scaled_gradient(problem, W, phi, delta) >= CONVERGED
    far = np.where(stalled, FAR_STALLED, FAR) * F[0] + 1e-12
    optima = _distinct(problem, phi[far >= F])
    best = finish(problem, w, best, delta)
    point = evaluate(problem, w[None], best[None], delta)
    certificate = certify(problem, w, point, F, members, len(optima), delta)
    at_limit = limit_texts(problem, best)
    return Fit(
        problem.law, problem.values(best), fixed, delta, float(F[0]), point.r[0], certificate,
        at_limit, status(certificate, at_limit), np.stack(optima),
    )  # fmt: skip


def _basins(
    problem: Problem, x: np.ndarray, w: np.ndarray, delta: float
) -> tuple[np.ndarray, np.ndarray]:
    """A point in every basin that the law's starts lead to, and the number of starts in it.

    From nearly least squares to nearly least absolute values: each stage starts inside the basin
    that the last one found, where a single cold start at 1e-3 would crawl. Starts that have met go
    on as one. A part of very many rows shows the basins as well, and their optima nearly.
    """
    law, part = problem.law, slice(None, None, max(len(x) // MOST_ROWS, 1))
    x, z, w = x[part], problem.z[part], w[part]
    stages = [(100.0, 15, 1e-2), (10.0, 15, 1e-2), (3.0, 15, 1e-2)]
    if len(z) < len(problem.z):
        problem = replace(problem, features=law.prepare(x), z=z)
        stages.append((1.0, 200, 1e-10))
    phi = law.starts(x, z, w, problem.low, problem.high)
    members = np.ones(len(phi), int)
    for stage, steps, tolerance in stages:
        W = np.broadcast_to(w, (len(phi), len(w)))
        phi = newton(problem, W, phi, delta * stage, steps, tolerance)
        if len(phi) > 1:
            phi, members = _merged(problem, W, phi, members, delta * stage)
    return phi, members


def problem_of(
    law: Law, X: Sequence[np.ndarray], L: np.ndarray, fixed: Mapping[str, float],
    penalty: Penalty | None = None,
) -> tuple[Problem, np.ndarray]:  # fmt: skip
    """The problem in centred coordinates, and the centred log variables (rows, variables)."""
    law = law.under(fixed)
    coordinates = law.fixed_limits(fixed)
    x = np.log(np.stack([np.asarray(v, float) for v in X], axis=-1))
    z = np.log(np.asarray(L, float))
    # A fixed coefficient is a fixed coordinate only in uncentred variables.
    centre = np.where(law.uncentred(fixed), 0.0, x.mean(0))
    low, high = law.limits(z, np.abs(x.mean(0) - centre))
    for name, value in coordinates.items():
        low[law.index(name)] = high[law.index(name)] = value
    x = x - centre
    return Problem(law, law.prepare(x), z, low, high, centre, penalty), x


def _polish(problem: Problem, phi: np.ndarray, delta: float) -> np.ndarray:
    """scipy's least_squares with the analytic Jacobian over the parameters off their limits."""
    free = problem.interior(phi)
    if not free.any():
        return phi
    law = problem.law

    def full(part: np.ndarray) -> np.ndarray:
        whole = phi.copy()
        whole[free] = part
        return whole[None]

    def residuals(part: np.ndarray) -> np.ndarray:
        return law.forward(problem.features, full(part))[0][0] - problem.z

    def jacobian(part: np.ndarray) -> np.ndarray:
        return law.linearised(problem.features, full(part))[1][0][:, free]

    result = least_squares(
        residuals, phi[free], jac=jacobian, loss="huber", f_scale=delta, x_scale="jac",
        bounds=(problem.low[free], problem.high[free]), ftol=1e-15, xtol=1e-15, gtol=1e-15,
        max_nfev=20,
    )  # fmt: skip
    return full(result.x)[0]


def _merged(
    problem: Problem, W: np.ndarray, phi: np.ndarray, members: np.ndarray, delta: float
) -> tuple[np.ndarray, np.ndarray]:
    """One point for all that predict the same within a tenth of delta, and their number."""
    point = evaluate(problem, W, phi, delta)
    kept: list[int] = []
    count = members.copy()
    for i in np.argsort(point.F, kind="stable"):
        near = [k for k in kept if np.abs(point.r[i] - point.r[k]).max() < 0.1 * delta]
        if near:
            count[near[0]] += count[i]
        else:
            kept.append(int(i))
    return phi[kept], count[kept]


def _distinct(problem: Problem, phi: np.ndarray) -> list[np.ndarray]:
    """The points that differ in what they predict, each the first of its kind."""
    found: list[np.ndarray] = []
    predicted: list[np.ndarray] = []
    for point in phi:
        r = problem.law.forward(problem.features, point[None])[0][0]
        if not any(np.abs(r - other).max() < 1e-4 * (1 + np.abs(r).max()) for other in predicted):
            found.append(point)
            predicted.append(r)
    return found
