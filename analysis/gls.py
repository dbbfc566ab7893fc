"""Random-trunk model: generalised least squares with REML variance components.

Row i of trunk j: log L_ij = f(theta; N_j, D_ij) + u_j + e_ij, u ~ N(0, st²), e ~ N(0, sb²),
rho² = st²/sb² (Patterson & Thompson 1971 for REML). Rows of a trunk share u_j, so they are not
independent. V = sb²(I + rho² ZZ'), and V^-1 = (I - Z diag(k) Z')/sb² with k_j = rho²/(1 + m_j rho²)
for a trunk of m_j rows, so no n x n matrix is needed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.law import Law
from analysis.newton import Problem, held_back
from analysis.solve import problem_of

RHO2 = np.concatenate([[0.0], np.geomspace(1e-3, 1e3, 37)])
ROUNDS = 3
DEAD = 1e-9  # largest derivative of log L by a parameter that no longer matters


@dataclass(frozen=True)
class Trunks:
    """Which rows share a trunk (`codes`); sums over trunks by sorted segments."""

    codes: np.ndarray
    order: np.ndarray
    starts: np.ndarray
    count: np.ndarray

    @classmethod
    def of(cls, trunk: np.ndarray) -> "Trunks":
        """From a label per row."""
        codes = np.unique(trunk, return_inverse=True)[1]
        order = np.argsort(codes, kind="stable")
        count = np.bincount(codes)
        return cls(codes, order, np.concatenate([[0], np.cumsum(count)[:-1]]), count)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sums over each trunk's rows, (R, rows, k) to (R, trunks, k)."""
        return np.add.reduceat(values[:, self.order], self.starts, axis=1)

    def shrink(self, rho2: float) -> np.ndarray:
        """k_j of V^-1."""
        return rho2 / (1 + self.count * rho2)

    def solve(self, values: np.ndarray, rho2: float) -> np.ndarray:
        """sb² V^-1 times values (rows, k)."""
        return values - (self.shrink(rho2)[:, None] * self.sums(values[None])[0])[self.codes]

    def moments(self, A: np.ndarray, rho2: float) -> np.ndarray:
        """sb² A'V^-1 A of rows A (rows, k)."""
        S = self.sums(A[None])[0]
        return A.T @ A - (S * self.shrink(rho2)[:, None]).T @ S


@dataclass(frozen=True)
class GlsFit:
    """The fitted random-trunk model.

    phi: solver coordinates; X: Jacobian over the free parameters, r: residuals (log L_pred - log
    L); covariance: of the free parameters of phi; trunk_sd, row_sd in log units.
    """

    problem: Problem
    trunks: Trunks
    phi: np.ndarray
    theta: np.ndarray
    free: np.ndarray
    rho2: float
    row_sd: float
    rss: float
    X: np.ndarray
    residuals: np.ndarray
    covariance: np.ndarray
    decrement: float

    @property
    def law(self) -> Law:
        return self.problem.law

    @property
    def trunk_sd(self) -> float:
        return self.row_sd * self.rho2**0.5


def fit_gls(
    law: Law, X: Sequence[np.ndarray], L: np.ndarray, trunk: np.ndarray,
    starts: np.ndarray, fixed: Mapping[str, float] | None = None,
) -> GlsFit:  # fmt: skip
    """Fit the random-trunk model from solver coordinates `starts` (starts, p) on the same X.

    Ordinary least squares, then REML and GLS in turn, three times.
    """
    problem = problem_of(law, X, L, fixed or {})[0]
    trunks = Trunks.of(trunk)
    phi = np.clip(starts[:3], problem.low, problem.high)
    rho2, rss, decrement, at = 0.0, np.inf, np.inf, phi[0]
    several = len(trunks.count) < len(trunk)
    for left in range(ROUNDS if several else 0, -1, -1):
        phi, found, decrements = descend(problem, trunks, rho2, phi)
        best = int(np.argmin(found))
        rss, decrement, at = found[best], decrements[best], phi[best]
        new = reml(problem, trunks, at) if left else rho2  # the last fit keeps its own rho²
        if new == rho2:
            break
        rho2 = new
    free, J, r = _linearised(problem, at)
    df = max(len(r) - int(free.sum()), 1)
    row_var = max(float(rss) / df, 1e-24)
    covariance = row_var * np.linalg.pinv(trunks.moments(J, rho2), hermitian=True)
    return GlsFit(
        problem, trunks, at, problem.values(at), free, rho2, row_var**0.5, float(rss), J, r,
        covariance, float(decrement / row_var),
    )  # fmt: skip


def _linearised(problem: Problem, phi: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Parameters off their limits that the loss depends on, Jacobian over them, residuals."""
    z, J = (v[0] for v in problem.law.linearised(problem.features, phi[None]))
    free = problem.interior(phi) & (np.abs(J).max(0) > DEAD)
    return free, J[:, free], z - problem.z


def reml(problem: Problem, trunks: Trunks, phi: np.ndarray) -> float:
    """The rho² of a fixed grid with the highest restricted likelihood at the linearisation."""
    _, J, r = _linearised(problem, phi)
    n, p = J.shape
    scale = np.linalg.norm(J, axis=0)
    J = J / np.where(scale > 0, scale, 1.0)
    columns = np.column_stack([J, r])
    S = trunks.sums(columns[None])[0]
    # One row per rho²: M(rho²) = C'C - sum_j k_j S_j S_j', trunks of as many rows taken together.
    count, kind = np.unique(trunks.count, return_inverse=True)
    together = np.stack([S[kind == i].T @ S[kind == i] for i in range(len(count))])
    k = RHO2[:, None] / (1 + count * RHO2[:, None])
    M = columns.T @ columns - np.einsum("gc,cab->gab", k, together)
    log_det = (np.bincount(kind) * np.log1p(count * RHO2[:, None])).sum(1)
    return float(RHO2[int(np.argmax(restricted(M, log_det, n - p)))])


def restricted(M: np.ndarray, log_det: np.ndarray, df: int) -> np.ndarray:
    """Restricted log-likelihood, the scale of the noise chosen best, on a grid of covariances V.

    M: moments [X r]'V^-1 [X r] (grid, p+1, p+1), log_det: log |V| (grid), df: rows less p.
    """
    H, b = M[:, :-1, :-1] + 1e-14 * np.eye(M.shape[1] - 1), M[:, :-1, -1]
    rss = M[:, -1, -1] - np.einsum("ga,ga->g", b, np.linalg.solve(H, b[..., None])[..., 0])
    log_det = log_det + np.linalg.slogdet(H)[1]
    return -0.5 * (log_det + df * np.log(np.maximum(rss, 1e-300)))


Constraint = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def descend(
    problem: Problem, trunks: Trunks, rho2: float, phi: np.ndarray,
    constraint: Constraint | None = None, steps: int = 60, tolerance: float = 1e-10,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Levenberg-Marquardt on many problems at once, inside the limits.

    constraint(index, phi) gives one extra residual and its gradient for every problem. Returns phi,
    the generalised residual sum of squares without the constraint, and the last decrement.
    Each problem stops when one more step would lower its sum by less than `tolerance` of it, with
    the damping small: a stop by gain alone ends stiff constrained problems too early.
    """
    result = phi.copy()
    k = trunks.shrink(rho2)
    active = np.arange(len(phi))
    damping = np.full(len(phi), 1e-4)
    rss, last = np.full(len(phi), np.inf), np.full(len(phi), np.inf)

    def system(index: np.ndarray, at: np.ndarray):
        z, J = problem.law.linearised(problem.features, at)
        columns = np.concatenate([J, (z - problem.z)[..., None]], axis=2)
        S = trunks.sums(columns)
        M = np.swapaxes(columns, 1, 2) @ columns - np.swapaxes(S * k[:, None], 1, 2) @ S
        H, g, plain = M[:, :-1, :-1], M[:, :-1, -1], M[:, -1, -1]
        total = plain
        if constraint is not None:
            extra, gradient = constraint(index, at)
            H = H + gradient[:, :, None] * gradient[:, None, :]
            g = g + gradient * extra[:, None]
            total = total + extra**2
        return H, g, plain, total

    at = phi.copy()
    H, g, plain, total = system(active, at)
    for _ in range(steps):
        held = held_back(problem, at, g)
        g = np.where(held, 0.0, g)
        diagonal = np.maximum(np.einsum("rpp->rp", H), 1e-300)
        A = np.where(held[:, :, None] | held[:, None, :], 0.0, H)
        A = A + np.where(held, 1.0, damping[:, None] * diagonal)[:, :, None] * np.eye(at.shape[1])
        step = np.linalg.solve(A, g[..., None])[..., 0]
        decrement = np.einsum("rp,rp->r", g, step)
        done = (decrement <= tolerance * total + 1e-28) & (damping <= 1e-3)
        done |= damping > 1e12
        rss[active], last[active] = plain, decrement
        result[active] = at
        if done.all():
            break
        if done.any():
            go = ~done
            active, at, damping, step = active[go], at[go], damping[go], step[go]
            H, g, plain, total = H[go], g[go], plain[go], total[go]
        trial = np.clip(at - step, problem.low, problem.high)
        H2, g2, plain2, total2 = system(active, trial)
        better = total2 <= total * (1 + 1e-15)
        at = np.where(better[:, None], trial, at)
        H = np.where(better[:, None, None], H2, H)
        g = np.where(better[:, None], g2, g)
        plain, total = np.where(better, plain2, plain), np.where(better, total2, total)
        damping = np.where(better, np.maximum(damping * 0.1, 1e-12), damping * 8.0)
    else:
        result[active], rss[active] = at, plain
    return result, rss, last
