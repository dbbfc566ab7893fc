"""Damped projected Newton for the Huber objective, on many problems at once."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from analysis.laws import SumLaw


@dataclass(frozen=True)
class Problem:
    """Arrays of one fit in solver coordinates; `low` == `high` where a parameter is fixed."""

    law: SumLaw
    T: np.ndarray
    z: np.ndarray
    low: np.ndarray
    high: np.ndarray
    centre: tuple[float, float]

    @cached_property
    def features(self) -> tuple[np.ndarray, np.ndarray]:
        """t_k (rows·terms, p) and t_k t_l' + t_l t_k' (rows·pairs, p·p; once where k = l)."""
        n, K, P = self.T.shape
        pairs = []
        for k in range(K):
            for m in range(k, K):
                outer = self.T[:, k, :, None] * self.T[:, m, None, :]
                pairs.append(outer if m == k else outer + np.swapaxes(outer, 1, 2))
        return self.T.reshape(n * K, P), np.stack(pairs, axis=1).reshape(-1, P * P)

    @property
    def free(self) -> np.ndarray:
        return self.low < self.high

    def values(self, phi: np.ndarray) -> np.ndarray:
        return self.law.values(self.law.recentre(phi, -self.centre[0], -self.centre[1]))

    def coordinates(self, theta: np.ndarray) -> np.ndarray:
        return self.law.recentre(self.law.log_coordinates(theta), *self.centre)


def forward(problem: Problem, phi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Residuals (problems, rows) and softmax shares (problems, rows, terms)."""
    n, K, P = problem.T.shape
    logs = (phi @ problem.T.reshape(n * K, P).T).reshape(len(phi), n, K)
    top = logs.max(-1, keepdims=True)
    share = np.exp(logs - top)
    total = share.sum(-1, keepdims=True)
    share /= total
    return top[..., 0] + np.log(total[..., 0]) - problem.z, share


def _huber(r: np.ndarray, delta: float) -> np.ndarray:
    size = np.abs(r)
    return np.where(size <= delta, 0.5 * r * r, delta * (size - 0.5 * delta))


def objective(problem: Problem, W: np.ndarray, phi: np.ndarray, delta: float) -> np.ndarray:
    return np.einsum("rn,rn->r", W, _huber(forward(problem, phi)[0], delta))


def derivatives(
    problem: Problem, W: np.ndarray, r: np.ndarray, share: np.ndarray, delta: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gradient, Hessian, curvature scale and gradient scale delta·sum w·|J| of each problem.

    log L is a log-sum-exp of linear functions t_k with shares p_k: J = sum p_k t_k, and its second
    derivative is sum p_k t_k t_k' - J J'. So all four are products of weights on p_k, p_k p_l with
    matrices that depend on the data only: one matrix product each for all problems.
    """
    R, n, K = share.shape
    P = problem.T.shape[2]
    t, pairs = problem.features
    psi = W * np.clip(r, -delta, delta)
    inner = W * (np.abs(r) <= delta)
    first = psi[..., None] * share
    second = np.empty((R, n, K * (K + 1) // 2))
    curvature = inner - psi
    column = 0
    for k in range(K):
        weighted = curvature * share[..., k]
        for m in range(k, K):
            second[..., column] = weighted * share[..., m]
            if m == k:
                second[..., column] += first[..., k]
            column += 1
    g = first.reshape(R, n * K) @ t
    H = (second.reshape(R, -1) @ pairs).reshape(R, P, P)
    weight = (W[..., None] * share).reshape(R, n * K)
    return g, H, weight @ (t * t), delta * (weight @ np.abs(t))


def newton(
    problem: Problem, W: np.ndarray, phi: np.ndarray, delta: float, steps: int, tolerance: float
) -> np.ndarray:
    """Damped projected Newton on many problems at once; stops each at a scaled gradient."""
    phi = phi.copy()
    P = phi.shape[1]
    eye = np.eye(P)
    damping = np.full(len(phi), 1e-3)
    active = np.arange(len(phi))
    r, share = forward(problem, phi)
    F = np.einsum("rn,rn->r", W, _huber(r, delta))
    for _ in range(steps):
        w = W[active]
        g, H, scale, size = derivatives(problem, w, r, share, delta)
        held = held_back(problem, phi[active], g)
        g = np.where(held, 0.0, g)
        done = (np.abs(g) / size).max(1) < tolerance
        done |= damping[active] > 1e12  # no step lowers the objective any more: at rounding level
        if done.all():
            break
        go = ~done
        active, w, g, H, scale, held = (v[go] for v in (active, w, g, H, scale, held))
        r, share = r[go], share[go]
        H = H + damping[active, None, None] * scale[:, :, None] * eye
        H = np.where(held[:, :, None] | held[:, None, :], 0.0, H) + held[:, :, None] * eye
        trial = np.clip(phi[active] - _solve(H, g), problem.low, problem.high)
        r_new, share_new = forward(problem, trial)
        F_new = np.einsum("rn,rn->r", w, _huber(r_new, delta))
        # Near the optimum the decrease drowns in rounding; a step that keeps F is taken there.
        better = F_new <= F[active] * (1 + 4e-16)
        phi[active[better]] = trial[better]
        F[active[better]] = F_new[better]
        r = np.where(better[:, None], r_new, r)
        share = np.where(better[:, None, None], share_new, share)
        damping[active] = np.where(
            better, np.maximum(damping[active] * 0.1, 1e-15), damping[active] * 8.0
        )
    return phi


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
    r, share = forward(problem, phi)
    g, _, _, size = derivatives(problem, W, r, share, delta)
    return np.where(held_back(problem, phi, g), 0.0, np.abs(g) / size).max(1)


def finish(problem: Problem, w: np.ndarray, phi: np.ndarray, delta: float) -> np.ndarray:
    """Newton steps while the gradient falls: here changes of the objective are all rounding."""
    W, best = w[None], phi[None]
    smallest = float(scaled_gradient(problem, W, best, delta)[0])
    highest = objective(problem, W, best, delta)[0] * (1 + 1e-12)
    for _ in range(20):
        r, share = forward(problem, best)
        g, H, _, _ = derivatives(problem, W, r, share, delta)
        held = held_back(problem, best, g)
        H = np.where(held[:, :, None] | held[:, None, :], 0.0, H)
        H = H + held[:, :, None] * np.eye(len(phi))
        step = _solve(H, np.where(held, 0.0, g))
        # A residual at |r| = delta changes the Hessian across it: then part of the step is right.
        fractions = np.array([1.0, 0.7, 0.5, 0.3, 0.1, 0.03])
        points = np.clip(best - fractions[:, None] * step, problem.low, problem.high)
        many = np.broadcast_to(w, (len(points), len(w)))
        gradient = scaled_gradient(problem, many, points, delta)
        gradient[objective(problem, many, points, delta) > highest] = np.inf
        k = int(np.argmin(gradient))
        if not gradient[k] < smallest:
            break
        best, smallest = points[k : k + 1], float(gradient[k])
    return best[0]
