"""The γ law and a smooth misfit fitted to one study, with or without a prior on the law.

Minimised over the law's coordinates and those of misfit and trunks (analysis.discrepancy):
  sum w·Huber_δ(log L_pred - log L) + |m|²/2κ + |u|²/2ρ² + s²·τ/2·(q - q0)' Σ^-1 (q - q0),
q = (α, β, log E - log min L, log γ); w = (C/max C)^power scaled to mean 1; δ in robust sd of the
residuals; s² the variance of a row in the fit without prior; τ > 1 since rows of a study share its
misfit and count for less than one each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.discrepancy import MAD, Basis, Extended, averaged, trunk_effects
from analysis.laws import GAMMA
from analysis.newton import Penalty, Problem, newton, objective
from analysis.solve import problem_of

Q = ("alpha", "beta", "E", "gamma")
PLACES = [GAMMA.index(name) for name in Q]
P = len(GAMMA.parameters)
LEAST_ROWS = 8
LEAST_DELTA = 1e-3
LEAST_VARIANCE = 1e-7  # (0.03 %)²: losses are not printed finer
MOST_ROWS = 2000  # above, neighbours are averaged before the misfit is fitted


@dataclass(frozen=True)
class Rule:
    """Constants of the fit and of its interval, learned from public studies.

    tau, power: above; kappa: variance of the misfit over that of a row; length: its correlation
    length in log N and log D; huber: δ in robust sd; factor: on the interval's sd at 90 %; drift:
    sd of log L per factor e of compute beyond the rows; least: sd of a row below which the best of
    the public fits do not come.
    """

    tau: float = 3.0
    power: float = 0.3
    kappa: float = 1.0
    length: float = 1.5
    huber: float = 1.5
    factor: float = 1.4
    drift: float = 0.003
    least: float = 0.002


@dataclass(frozen=True)
class Prior:
    """Mean and covariance of q = (α, β, log E - log min L, log γ) over studies."""

    mean: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, mean: Sequence[float], covariance: np.ndarray) -> "Prior":
        return cls(tuple(map(float, mean)), tuple(map(tuple, covariance.tolist())))


@dataclass(frozen=True)
class Ready:
    """A study prepared: all of the fit that does not depend on the prior.

    law: the γ law alone, problem: with misfit and trunks and their ridge; w: row weights; delta:
    of Huber; variance: of a row; rho2: of trunks, in units of it; rows: mean per trunk; phi: the
    minimum without prior; log_least: of the losses; log_top: of the compute.
    """

    rule: Rule
    law: Problem
    problem: Problem
    basis: Basis
    w: np.ndarray
    delta: float
    variance: float
    rho2: float
    rows: float
    phi: np.ndarray
    log_least: float
    log_top: float

    def with_prior(self, prior: Prior) -> Problem:
        """The problem with s²·τ·Σ^-1 on q."""
        assert self.problem.penalty is not None
        precision, centre = self.problem.penalty.precision.copy(), np.zeros(len(self.phi))
        weight = self.variance * self.rule.tau * np.linalg.inv(np.array(prior.covariance))
        precision[np.ix_(PLACES, PLACES)] += weight
        centre[PLACES] = prior.mean
        centre[GAMMA.index("E")] += self.log_least
        return replace(self.problem, penalty=Penalty(precision, centre))


def prepare(
    X: Sequence[np.ndarray], C: np.ndarray, L: np.ndarray, trunk: np.ndarray, rule: Rule,
    fixed: Mapping[str, float],
) -> Ready:  # fmt: skip
    """The minimum without prior of X = (N, D), compute C, losses L and trunk labels.

    ValueError for fewer than 8 rows.
    """
    if len(L) < LEAST_ROWS:
        raise ValueError(
            f"{len(L)} rows: the γ law has {P} parameters and needs {LEAST_ROWS} rows; add runs"
        )
    log_least, log_top = float(np.log(L).min()), float(np.log(C).max())
    per_trunk = len(L) / len(np.unique(trunk))
    w = (C / C.max()) ** rule.power
    law, x = problem_of(GAMMA, X, L, fixed)
    first = _starts(law, x, w / w.mean())
    if len(L) > MOST_ROWS:
        r = GAMMA.forward(law.features, first[:1])[0][0] - law.z
        theta = law.values(first)
        X, L, w = averaged(X, L, w, r, MOST_ROWS)
        law, x = problem_of(GAMMA, X, L, fixed)
        first, trunk = law.coordinates(theta), np.arange(len(L))
    w = w / w.mean()
    basis = Basis.of(x if rule.kappa else x[:0], rule.length)
    columns = basis(x)
    ridge = np.full(columns.shape[1], 1 / max(rule.kappa, 1e-12))
    z, J = GAMMA.linearised(law.features, first[:1])
    rho2, Z = trunk_effects(J[0], z[0] - law.z, w, columns, rule.kappa, np.log(X[0]), trunk)
    columns = np.column_stack([columns, Z])
    ridge = np.append(ridge, np.full(Z.shape[1], 1 / max(rho2, 1e-12)))
    zero = np.zeros(len(ridge))
    problem = Problem(
        Extended(GAMMA),
        (law.features, columns), law.z, np.append(law.low, zero - np.inf),
        np.append(law.high, zero + np.inf), law.centre,
        Penalty(np.diag(np.append(np.zeros(P), ridge)), np.zeros(P + len(ridge))),
    )  # fmt: skip
    starts = np.column_stack([first, np.zeros((len(first), len(zero)))])
    phi, delta, variance = _settle(problem, w, starts, ridge, rule)
    return Ready(
        rule, law, problem, basis, w, delta, variance, rho2, per_trunk, phi, log_least, log_top
    )


def _starts(law: Problem, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Two points near the least-squares minima of the law alone, best first."""
    part = slice(None, None, max(len(x) // MOST_ROWS, 1))
    x, z, w = x[part], law.z[part], w[part]
    problem = replace(law, features=GAMMA.prepare(x), z=z)
    phi = GAMMA.starts(x, z, w, law.low, law.high)
    for delta in (100 * LEAST_DELTA, 10 * LEAST_DELTA):
        W = np.broadcast_to(w, (len(phi), len(w)))
        phi = newton(problem, W, phi, delta, 15, 1e-2)
        phi = phi[np.argsort(objective(problem, W, phi, delta), kind="stable")[:2]]
    return phi


def _settle(
    problem: Problem, w: np.ndarray, phi: np.ndarray, ridge: np.ndarray, rule: Rule
) -> tuple[np.ndarray, float, float]:
    """The minimum with δ and s² that agree with its residuals."""
    delta, r = 3 * LEAST_DELTA, problem.z
    for _ in range(10):
        W = np.broadcast_to(w, (len(phi), len(w)))
        phi = newton(problem, W, phi, delta, 400, 1e-9)
        phi = phi[[int(np.argmin(objective(problem, W, phi, delta)))]]
        r = problem.law.forward(problem.features, phi)[0][0] - problem.z
        new = max(rule.huber * MAD * float(np.median(np.abs(r))), LEAST_DELTA)
        if abs(new / delta - 1) < 0.01:
            break
        delta = new
    h = np.minimum(1.0, delta / np.maximum(np.abs(r), 1e-300))
    rss = float((w * h * r**2).sum() + (ridge * phi[0, P:] ** 2).sum())
    return phi[0], delta, max(rss / max(len(r) - P, 1), LEAST_VARIANCE)


def minimum(ready: Ready, prior: Prior) -> tuple[np.ndarray, float]:
    """The minimum with the prior, and the squared distance between prior and data.

    That is 2/(s²τ) times the rise of the objective above the minimum without prior: where the law
    is linear it equals (q - q0)'(V + Σ)^-1 (q - q0), q and V estimate and covariance without prior.
    """
    problem, w = ready.with_prior(prior), ready.w
    assert problem.penalty is not None
    guess = np.where(problem.free, ready.phi, problem.low)
    guess[PLACES] = np.where(
        problem.free[PLACES], problem.penalty.centre[PLACES], problem.low[PLACES]
    )
    low, high = problem.low.copy(), problem.high.copy()
    low[PLACES] = high[PLACES] = guess[PLACES]
    held = replace(problem, low=low, high=high)
    guess = newton(held, w[None], guess[None], 10 * ready.delta, 15, 1e-4)[0]
    W = np.broadcast_to(w, (2, len(w)))
    phi = newton(problem, W, np.stack([ready.phi, guess]), ready.delta, 400, 1e-9)
    F = objective(problem, W, phi, ready.delta)
    free = float(objective(ready.problem, w[None], ready.phi[None], ready.delta)[0])
    distance = 2 * max(float(F.min()) - free, 0.0) / (ready.variance * ready.rule.tau)
    return phi[int(np.argmin(F))], distance


def inverse(A: np.ndarray) -> np.ndarray:
    """A^-1 of information A; what A says nothing about gets a huge variance, not none."""
    scale = 1 / np.sqrt(np.maximum(np.diag(A), 1e-12))
    values, vectors = np.linalg.eigh(A * np.outer(scale, scale))
    vectors = vectors * scale[:, None]
    return (vectors / np.maximum(values, 1e-10)) @ vectors.T


@dataclass(frozen=True)
class Surface:
    """Law and misfit at a minimum; covariance: of all coordinates, in units of a row's variance.

    free: coordinates that are neither fixed nor at a limit.
    """

    ready: Ready
    phi: np.ndarray
    covariance: np.ndarray
    free: np.ndarray

    @classmethod
    def at(cls, ready: Ready, phi: np.ndarray, prior: Prior | None = None) -> "Surface":
        problem = ready.problem if prior is None else ready.with_prior(prior)
        assert problem.penalty is not None
        z, J = (v[0] for v in problem.law.linearised(problem.features, phi[None]))
        h = np.minimum(1.0, ready.delta / np.maximum(np.abs(z - problem.z), 1e-300))
        A = (J.T * (ready.w * h)) @ J + problem.penalty.precision
        free = problem.interior(phi)
        inside = np.ix_(free, free)
        covariance = np.zeros_like(A)
        covariance[inside] = inverse(A[inside])
        return cls(ready, phi, covariance, free)

    @property
    def theta(self) -> np.ndarray:
        """Values of the law."""
        return self.ready.law.values(self.phi[:P])

    @property
    def shared(self) -> float:
        """Variance that a row's misfit and noise add to what it says of the law.

        s²·τ; or s² times the rows per trunk, if that is more and no repeats tell trunks from
        misfit; or as in the best of the public studies, if the rows agree better than that.
        """
        ready, rule = self.ready, self.ready.rule
        count = rule.tau if ready.rho2 else max(rule.tau, ready.rows)
        return max(ready.variance * count, rule.tau * rule.least**2 / (1 + ready.rho2))

    def log_loss(
        self, N: np.ndarray, D: np.ndarray, log_c: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """log L at N, D of log compute log_c, and the variance of a run about it."""
        ready, rule = self.ready, self.ready.rule
        x = np.log(np.stack([N, D], axis=-1)) - ready.law.centre
        features = ready.basis(x)
        k = P + features.shape[1]
        z, J = (v[0] for v in GAMMA.linearised(GAMMA.prepare(x), self.phi[None, :P]))
        G = np.concatenate([J, features], axis=1)
        unknown = np.einsum("np,pq,nq->n", G, self.covariance[:k, :k], G)
        unknown += rule.kappa * np.maximum(1 - (features**2).sum(1), 0.0)
        run = ready.variance * (1 + ready.rho2) / ready.w.max()
        beyond = rule.drift * np.maximum(log_c - ready.log_top, 0.0)
        return z + features @ self.phi[P:k], self.shared * unknown + run + beyond**2
