"""Fit a law to rows: global start, damped Newton, polish, and a certificate of the optimum.

Objective: sum over rows of w·Huber(log L_pred - log L), Huber(r) = r²/2 for |r| <= delta, else
delta·(|r| - delta/2), delta = 1e-3 (Hoffmann et al. 2022). Coordinates: log coefficients and
exponents over centred log N, log D, which takes the condition number from ~1e7 to ~1e4.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from analysis.laws import SumLaw
from analysis.newton import (
    Problem,
    derivatives,
    finish,
    forward,
    held_back,
    newton,
    objective,
    scaled_gradient,
)

DELTA = 1e-3
EXPONENT_LIMITS = (0.01, 3.0)
E_FLOOR = 6.0  # log E may fall this far below the median log L: there E is 0.25 % of the loss
DEAD = 12.0  # a term this far (in log) below the loss at the centre of the data is dead
SINGULAR = 1e12  # Hessian condition above which some combination of parameters is free
CONVERGED = 1e-8  # scaled gradient below which an optimum counts as certified


@dataclass(frozen=True)
class Certificate:
    """Evidence that the point is the minimum; every entry is recomputed at the reported point.

    gradient: max over free parameters of |sum w·psi·J| / (delta·sum w·sum_k p_k|t_k|), in [0, 1];
    decrement: predicted decrease of the objective by one more Newton step, relative to it;
    optima: distinct local optima that the starts ended in; agree: starts that ended in the best;
    condition: of the Jacobi-scaled Hessian over the free parameters.
    """

    gradient: float
    decrement: float
    optima: int
    agree: int
    starts: int
    condition: float


@dataclass(frozen=True)
class Fit:
    """A fitted law: `theta` are its values, `at_limit` says what is wrong with a parameter."""

    law: SumLaw
    theta: np.ndarray
    fixed: Mapping[str, float]
    delta: float
    objective: float
    residuals: np.ndarray  # log L_pred - log L per row
    certificate: Certificate
    at_limit: Mapping[str, str]
    status: str
    rivals: np.ndarray  # values of every distinct optimum found, best first

    @property
    def parameters(self) -> dict[str, float]:
        return dict(zip(self.law.parameters, map(float, self.theta), strict=True))

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


@dataclass(frozen=True)
class Refits:
    """The law refitted under many row weights: values (refits, p) and which ended at a limit."""

    theta: np.ndarray
    at_low: np.ndarray
    at_high: np.ndarray
    gradient: np.ndarray


def fit_law(
    law: SumLaw,
    N: np.ndarray,
    D: np.ndarray,
    L: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    fixed: Mapping[str, float] | None = None,
    delta: float = DELTA,
) -> Fit:
    """Minimise the Huber objective over all parameters that are not `fixed`.

    N, D, L: positive arrays of one length (parameters, tokens, nats/token). ValueError for an
    unknown or non-positive fixed parameter.
    """
    fixed = dict(fixed or {})
    problem = _problem(law, N, D, L, fixed)
    w = np.ones(len(problem.z)) if weights is None else np.asarray(weights, float)
    starts = _starts(problem, w)
    W = np.broadcast_to(w, (len(starts), len(w)))
    phi = starts
    # From nearly least squares to nearly least absolute values: each stage starts inside the
    # basin that the last one found, where a single cold start at 1e-3 would crawl.
    for stage in (300.0, 30.0, 10.0, 3.0):
        phi = newton(problem, W, phi, delta * stage, 25, 1e-4)
    phi = newton(problem, W, phi, delta, 200, 1e-13)
    if weights is None:
        phi = np.vstack(
            [phi, _polish(problem, phi[np.argmin(objective(problem, W, phi, delta))], delta)]
        )
        W = np.broadcast_to(w, (len(phi), len(w)))
        phi = newton(problem, W, phi, delta, 100, 1e-13)
    F = objective(problem, W, phi, delta)
    order = np.argsort(F, kind="stable")
    optima = _distinct(problem, phi[order], F[order])
    best = finish(problem, w, phi[order[0]], delta)
    return _assemble(problem, w, best, F, optima, fixed, delta)


def refit(fit: Fit, N: np.ndarray, D: np.ndarray, L: np.ndarray, weights: np.ndarray) -> Refits:
    """The same law under many row weights (refits, rows), all at once.

    Damped Newton from every distinct optimum of the full data (at most three), keeping the better.
    """
    problem = _problem(fit.law, N, D, L, fit.fixed)
    weights = np.asarray(weights, float)
    best = np.empty((len(weights), len(fit.theta)))
    F = np.full(len(weights), np.inf)
    rivals = [np.clip(problem.coordinates(v), problem.low, problem.high) for v in fit.rivals[:3]]
    for i in range(0, len(weights), 250):  # pieces that stay in the cache
        here = slice(i, i + 250)
        for start in rivals:
            phi, value = _descend(problem, weights[here], start, fit.delta)
            better = value < F[here]
            best[here][better] = phi[better]
            F[here] = np.minimum(F[here], value)
    gradient = scaled_gradient(problem, weights, best, fit.delta)
    low, high = _limits(problem, best)
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


def _problem(
    law: SumLaw, N: np.ndarray, D: np.ndarray, L: np.ndarray, fixed: Mapping[str, float]
) -> Problem:
    for name, value in fixed.items():
        if name not in law.parameters:
            raise ValueError(
                f"law {law.name} has no parameter {name!r}; it has {', '.join(law.parameters)}"
            )
        if not np.isfinite(value) or value <= 0:
            raise ValueError(
                f"{name}={value} cannot be fixed: every parameter is positive"
                + ("; for a law without E use --law two-term" if name == "E" else "")
            )
    x, y = np.log(np.asarray(N, float)), np.log(np.asarray(D, float))
    z = np.log(np.asarray(L, float))
    # A fixed coefficient is a fixed coordinate only in uncentred variables.
    held = {t.variable for t in law.terms if t.coefficient in fixed}
    centre = (0.0 if "N" in held else float(x.mean()), 0.0 if "D" in held else float(y.mean()))
    middle = float(np.median(z))
    low, high = np.empty(len(law.parameters)), np.empty(len(law.parameters))
    for i, name in enumerate(law.parameters):
        if name in fixed:
            low[i] = high[i] = np.log(fixed[name]) if i < len(law.terms) else fixed[name]
        elif i < len(law.terms):
            variable = law.terms[i].variable
            # Uncentred, log A also carries exponent · mean log N.
            room = {"N": x.mean() - centre[0], "D": y.mean() - centre[1], None: 0.0}[variable]
            low[i] = middle - (DEAD if variable else E_FLOOR)
            high[i] = middle + 5.0 + EXPONENT_LIMITS[1] * room
        else:
            low[i], high[i] = EXPONENT_LIMITS
    return Problem(law, law.design(x - centre[0], y - centre[1]), z, low, high, centre)


def _starts(problem: Problem, w: np.ndarray) -> np.ndarray:
    """Starting points: the linear part solved on a grid of exponents; local minima of that grid.

    Added: the best cell of each quadrant, so that a law with two basins shows both.
    """
    law = problem.law
    K, P = len(law.terms), len(law.parameters)
    axes = []
    for i in range(K, P):
        fixed = problem.low[i] == problem.high[i]
        axes.append(problem.low[i : i + 1] if fixed else np.geomspace(0.02, 2.0, 20))
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    shape = grid.shape[:-1]
    used = w > 0
    fixed = np.where(~problem.free[:K], np.exp(problem.low[:K]), np.nan)
    coefficients, rss = law.linear_part(
        problem.T[used], grid.reshape(-1, P - K), np.exp(problem.z[used]), fixed
    )
    rss = rss.reshape(shape)
    local = np.ones(shape, bool)
    for axis in range(len(shape)):
        for step in (1, -1):
            other = np.roll(rss, step, axis)
            edge = [slice(None)] * len(shape)
            edge[axis] = slice(0, 1) if step == 1 else slice(-1, None)
            other[tuple(edge)] = np.inf
            local &= rss <= other
    flat = rss.ravel()
    chosen = list(np.flatnonzero(local.ravel())[np.argsort(flat[local.ravel()])][:6])
    half = [np.arange(s) >= s / 2 for s in shape]
    for quadrant in np.ndindex(*(2,) * len(shape)):
        inside = np.ones(shape, bool)
        for axis, side in enumerate(quadrant):
            select = half[axis] if side else ~half[axis]
            inside &= np.expand_dims(select, tuple(a for a in range(len(shape)) if a != axis))
        if inside.any():
            chosen.append(int(np.argmin(np.where(inside, rss, np.inf))))
    chosen = list(dict.fromkeys(chosen))
    phi = np.empty((len(chosen), P))
    phi[:, :K] = np.log(np.maximum(coefficients[chosen], 1e-300))
    phi[:, K:] = grid.reshape(-1, P - K)[chosen]
    # A coefficient of zero would start dead and stay dead: start it at 1 % of the loss instead.
    floor = np.median(problem.z) - np.log(100.0)
    phi[:, :K] = np.maximum(phi[:, :K], floor)
    return np.clip(phi, problem.low, problem.high)


def _polish(problem: Problem, phi: np.ndarray, delta: float) -> np.ndarray:
    """scipy's least_squares with the analytic Jacobian over the parameters off their limits."""
    free = problem.free & (phi > problem.low + 1e-9) & (phi < problem.high - 1e-9)
    if not free.any():
        return phi

    def full(part: np.ndarray) -> np.ndarray:
        whole = phi.copy()
        whole[free] = part
        return whole[None]

    def residuals(part: np.ndarray) -> np.ndarray:
        return forward(problem, full(part))[0][0]

    def jacobian(part: np.ndarray) -> np.ndarray:
        return np.einsum("nk,nkp->np", forward(problem, full(part))[1][0], problem.T)[:, free]

    result = least_squares(
        residuals, phi[free], jac=jacobian, loss="huber", f_scale=delta, x_scale="jac",
        bounds=(problem.low[free], problem.high[free]), ftol=1e-15, xtol=1e-15, gtol=1e-15,
        max_nfev=100,
    )  # fmt: skip
    return full(result.x)[0]


def _distinct(problem: Problem, phi: np.ndarray, F: np.ndarray) -> list[np.ndarray]:
    """Optima (best first) that differ in objective and in what they predict; stalled starts out."""
    found: list[tuple[float, np.ndarray, np.ndarray]] = []
    for value, point in zip(F, phi, strict=True):
        r = forward(problem, point[None])[0][0]
        same = (np.abs(r - other).max() < 1e-4 * (1 + np.abs(r).max()) for _, other, _ in found)
        if not any(same):
            found.append((value, r, point))
    return [point for value, _, point in found if value < 10 * F[0] + 1e-12]


def _limits(problem: Problem, phi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which free parameters stand at their low and high limits; a dead term counts as low."""
    K = len(problem.law.terms)
    width = np.where(np.arange(phi.shape[1]) < K, 0.5, 1e-6)  # log coefficients: within exp(.5)
    low = problem.free & (phi <= problem.low + width)
    high = problem.free & (phi >= problem.high - width)
    # A term that is under 1e-4 of the loss in every row says nothing about its exponent.
    for i in range(0, len(phi), 500):
        share = forward(problem, phi[i : i + 500])[1]
        low[i : i + 500, :K] |= problem.free[:K] & (share.max(1) < 1e-4)
    return low, high


def _assemble(
    problem: Problem, w: np.ndarray, phi: np.ndarray, F: np.ndarray, optima: list[np.ndarray],
    fixed: Mapping[str, float], delta: float,
) -> Fit:  # fmt: skip
    law = problem.law
    r, share = forward(problem, phi[None])
    g, H, _, size = derivatives(problem, w[None], r, share, delta)
    free = ~held_back(problem, phi[None], g)[0]
    gradient = float((np.abs(g[0]) / size[0])[free].max()) if free.any() else 0.0
    decrement, condition = 0.0, 1.0
    minimum = float(np.min(F))
    if free.any():
        H0, g0 = H[0][np.ix_(free, free)], g[0][free]
        d = np.sqrt(np.maximum(np.abs(np.diag(H0)), 1e-300))
        values = np.linalg.eigvalsh(H0 / np.outer(d, d))
        condition = float(values[-1] / values[0]) if values[0] > 0 else float("inf")
        step = np.linalg.lstsq(H0, g0, rcond=None)[0]
        floor = len(w) * delta**2 * 1e-12  # an exact law has objective zero
        decrement = float(abs(0.5 * g0 @ step) / max(minimum, floor))
    same = minimum * (1 + 1e-6) + len(w) * delta**2 * 1e-12
    agree = int((same >= F).sum())
    certificate = Certificate(gradient, decrement, len(optima), agree, len(F), condition)
    at_limit = _limit_texts(problem, phi)
    rivals = np.stack([problem.values(o) for o in optima])
    status = _status(certificate, at_limit)
    return Fit(
        law, problem.values(phi), fixed, delta, minimum, r[0], certificate, at_limit, status,
        rivals,
    )  # fmt: skip


def _limit_texts(problem: Problem, phi: np.ndarray) -> dict[str, str]:
    low, high = (v[0] for v in _limits(problem, phi[None]))
    texts = {}
    for i, name in enumerate(problem.law.parameters):
        if i < len(problem.law.terms) and low[i]:
            texts[name] = "E vanishes" if name == "E" else f"the {name} term is dead"
        elif low[i] or high[i]:
            limit = (problem.low if low[i] else problem.high)[i]
            texts[name] = (
                f"{name} is at its {'lower' if low[i] else 'upper'} limit {limit:.3g}"
                if i >= len(problem.law.terms)
                else f"{name} is at its upper limit"
            )
    return texts


def _status(certificate: Certificate, at_limit: Mapping[str, str]) -> str:
    if certificate.condition > SINGULAR:
        text = "Flat optimum: the Hessian is singular, other parameter values fit as well."
    elif certificate.gradient >= CONVERGED:
        text = (
            f"Not converged: scaled gradient {certificate.gradient:.1e} is above {CONVERGED:.0e}."
        )
    else:
        text = (
            f"Certified optimum: {certificate.agree} of {certificate.starts} starts end in it"
            + (
                f", {certificate.optima - 1} worse optima exist."
                if certificate.optima > 2
                else ", one worse optimum exists."
                if certificate.optima == 2
                else ", none found another."
            )
        )
    if at_limit:
        text += f" At a limit: {'; '.join(at_limit.values())}."
    return text
