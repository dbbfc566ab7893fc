"""Intervals of the random-trunk model: profile ends at a Satterthwaite t quantile, CR2 beside it.

`reml-profile-t`: ends where sqrt((RSS(g0) - RSS_min)/sb²) equals the t quantile, rho² held fixed,
degrees of freedom by Satterthwaite (1946) for the variance of each target, which is widened after
Kenward & Roger (1997) for the spread of the estimated variances. `cr2`: the cluster-robust
bias-reduced variance (Bell & McCaffrey 2002; Pustejovsky & Tipton 2018) over trunks, Wald ends.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis.gls import GlsFit, descend
from analysis.targets import Evaluator

STIFF = 1e5  # weight of the constraint, in units of sb² / variance of the target
CLOSE = 0.01  # share of the quantile by which an end may miss


@dataclass(frozen=True)
class Ends:
    """Interval of one target in its own (often log) unit; an infinite end is unbounded."""

    value: float
    se: float
    df: float
    low: float
    high: float


def profile_t(fit: GlsFit, evaluator: Evaluator, level: float) -> list[Ends]:
    """Profile intervals of all targets, their ends found together."""
    value, gradient = evaluator.at(fit.phi)
    gradient = gradient[:, fit.free]
    variance = np.einsum("tp,pq,tq->t", gradient, fit.covariance, gradient)
    se = np.sqrt(np.maximum(variance, 0.0))
    df, inflation = small_sample(fit, gradient)
    se = se * inflation
    t = stats.t.ppf(0.5 + level / 2, df) * inflation
    known = se > 1e-12 * (1 + np.abs(value))
    ends = np.stack([value, value], axis=1)
    if known.any():
        plain = se[known] / inflation[known]
        ends[known] = _profile(fit, evaluator, np.flatnonzero(known), value[known], plain, t[known])
    return [
        Ends(float(value[i]), float(se[i]), float(df[i]), float(ends[i, 0]), float(ends[i, 1]))
        for i in range(len(value))
    ]


def degrees(fit: GlsFit, evaluator: Evaluator) -> np.ndarray:
    """Degrees of freedom of every target's profile interval."""
    return small_sample(fit, evaluator.at(fit.phi)[1][:, fit.free])[0]


def _profile(
    fit: GlsFit, evaluator: Evaluator, index: np.ndarray, value: np.ndarray, se: np.ndarray,
    t: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Both ends (targets, 2), by regula falsi on the root of the rise in RSS."""
    problem, row_var = fit.problem, fit.row_sd**2
    target = np.concatenate([index, index])
    sign = np.concatenate([-np.ones(len(index)), np.ones(len(index))])
    centre, unit, t = np.tile(value, 2), np.tile(se, 2), np.tile(t, 2)
    weight = np.sqrt(STIFF * row_var) / unit
    gradient = evaluator(index, np.repeat(fit.phi[None], len(index), axis=0))[1]
    along = np.zeros((len(index), len(fit.phi)))
    along[:, fit.free] = gradient[:, fit.free] @ fit.covariance
    along = np.tile(along / (se**2)[:, None], (2, 1))
    d = t.copy()  # distance from the estimate in standard errors; the Wald end to begin with
    phi = np.clip(fit.phi + along * (sign * d * unit)[:, None], problem.low, problem.high)
    low_d, low_s = np.zeros(len(d)), np.zeros(len(d))
    high_d, high_s = np.full(len(d), np.inf), np.full(len(d), np.inf)
    open_end = np.zeros(len(d), bool)
    todo = np.arange(len(d))
    end = centre + sign * d * unit
    for _ in range(20):
        goal = centre[todo] + sign[todo] * d[todo] * unit[todo]

        def constraint(i: np.ndarray, at: np.ndarray, goal=goal, todo=todo):
            found, slope = evaluator(target[todo[i]], at)
            return weight[todo[i]] * (found - goal[i]), weight[todo[i], None] * slope

        new, rss, _ = descend(
            problem, fit.trunks, fit.rho2, phi[todo], constraint, steps=40, tolerance=1e-7
        )
        reached = evaluator(target[todo], new)[0]
        s = np.sqrt(np.maximum(rss - fit.rss, 0.0) / row_var)
        # The penalty leaves the constraint slightly unmet: use the value it reached.
        d[todo] = sign[todo] * (reached - centre[todo]) / unit[todo]
        end[todo] = reached
        over = s >= t[todo]
        missed = np.abs(s - t[todo]) > CLOSE * t[todo]
        stuck = (problem.free & ~problem.interior(new) & fit.free).any(1)
        # A limit beyond the quantile only says that this step went too far.
        limit = stuck & ~(over & missed)
        phi[todo] = np.where((stuck & over)[:, None], phi[todo], new)
        open_end[todo[limit]] = True
        high_d[todo] = np.where(over, d[todo], high_d[todo])
        high_s[todo] = np.where(over, s, high_s[todo])
        low_d[todo] = np.where(over, low_d[todo], np.maximum(d[todo], low_d[todo]))
        low_s[todo] = np.where(over, low_s[todo], np.maximum(s, low_s[todo]))
        todo = todo[missed & ~limit]
        if not len(todo):
            break
        bracketed = np.isfinite(high_d[todo])
        with np.errstate(invalid="ignore", divide="ignore"):
            share = (t[todo] - low_s[todo]) / (high_s[todo] - low_s[todo])
            # A first step far beyond the end would otherwise be approached by crawling.
            inside = low_d[todo] + (high_d[todo] - low_d[todo]) * np.clip(share, 0.1, 0.9)
            beyond = low_d[todo] * np.clip(t[todo] / np.maximum(low_s[todo], 1e-9), 1.05, 2.5)
        d[todo] = np.where(bracketed, inside, beyond)
    else:
        open_end[todo] = True
    end[open_end] = sign[open_end] * np.inf
    return end.reshape(2, -1).T


def small_sample(fit: GlsFit, gradient: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Degrees of freedom, and the factor on the standard error, of targets (targets, free).

    df = 2·v²/(h' I^-1 h) (Satterthwaite), with I the REML information of (st², sb²) and h the
    derivative of v = g' Phi g by them. The factor is that of Kenward & Roger (1997): Phi takes the
    variances as known, and is too small by the spread of their estimates.
    """
    n, p = fit.X.shape
    df_max = max(n - p, 1)
    trunks, row_var, rho2, cov = fit.trunks, fit.row_sd**2, fit.rho2, fit.covariance
    m = trunks.count.astype(float)
    if len(m) == n or df_max < 2:  # no trunk with several rows: one variance
        return np.full(len(gradient), float(df_max)), np.ones(len(gradient))
    AX = trunks.solve(fit.X, rho2) / row_var
    AAX = trunks.solve(AX, rho2) / row_var
    d = 1 / ((1 + m * rho2) * row_var)  # Z'V^-1 = diag(d) Z'
    ZAX, ZAAX = trunks.sums(AX[None])[0], trunks.sums(AAX[None])[0]
    # P_i = X'A V_i A X and Q_ij = X'A V_i A V_j A X for V_t = ZZ', V_b = I.
    P = [ZAX.T @ ZAX, AX.T @ AX]
    cross = ZAX.T @ ZAAX
    Q = [[ZAX.T @ ((m * d)[:, None] * ZAX), cross], [cross.T, AX.T @ AAX]]
    mixed = (m * d**2).sum()
    base = [[((m * d) ** 2).sum(), mixed], [mixed, ((m - 1) / row_var**2 + d**2).sum()]]
    information = np.empty((2, 2))
    for i in range(2):
        for j in range(2):  # tr(P V_i P V_j), P = A - A X cov X'A
            information[i, j] = 0.5 * (
                base[i][j] - 2 * np.trace(cov @ Q[i][j]) + np.trace(cov @ P[i] @ cov @ P[j])
            )
    if not (np.diag(information) > 1e-100).all():  # nothing left to estimate a variance from
        return np.full(len(gradient), 1.0), np.ones(len(gradient))
    scale = np.sqrt(np.diag(information))
    inverse = np.linalg.pinv(information / np.outer(scale, scale), hermitian=True)
    inverse = inverse / np.outer(scale, scale)
    loads = gradient @ cov
    v = np.einsum("tp,tp->t", loads, gradient)
    h = np.stack([np.einsum("tp,pq,tq->t", loads, one, loads) for one in P], axis=1)
    spread = np.einsum("ta,ab,tb->t", h, inverse, h)
    excess = sum(inverse[i, j] * (Q[i][j] - P[i] @ cov @ P[j]) for i in range(2) for j in range(2))
    more = 2 * np.einsum("tp,pq,tq->t", loads, excess, loads)
    with np.errstate(divide="ignore", invalid="ignore"):
        df = np.where(spread > 0, 2 * v**2 / spread, df_max)
        factor = np.sqrt(np.where(v > 0, 1 + np.maximum(more, 0.0) / v, 1.0))
    return np.clip(df, 1.0, df_max), factor


def cr2(fit: GlsFit, evaluator: Evaluator, level: float) -> list[Ends]:
    """Wald intervals with the CR2 variance over trunks and Bell-McCaffrey degrees of freedom.

    Working model: the fitted random-trunk covariance; in its whitened coordinates the identity.
    """
    value, gradient = evaluator.at(fit.phi)
    gradient = gradient[:, fit.free]
    trunks, m = fit.trunks, fit.trunks.count
    keep = 1 / np.sqrt(1 + m * fit.rho2)
    X, r = fit.X[trunks.order], fit.residuals[trunks.order]
    segments = [slice(s, s + c) for s, c in zip(trunks.starts, m, strict=True)]
    for j, here in enumerate(segments):
        X[here] -= (1 - keep[j]) * X[here].mean(0)
        r[here] -= (1 - keep[j]) * r[here].mean()
    scale = np.linalg.norm(X, axis=0)
    X, gradient = X / scale, gradient / scale
    M = np.linalg.pinv(X.T @ X, hermitian=True)
    scores, loads = [], []
    for here in segments:
        Xj = X[here]
        values, vectors = np.linalg.eigh(np.eye(len(Xj)) - Xj @ M @ Xj.T)
        root = np.where(values > 1e-10, 1 / np.sqrt(np.maximum(values, 1e-10)), 0.0)
        AX = vectors @ (root[:, None] * (vectors.T @ Xj))  # A_j X_j
        scores.append(AX.T @ r[here])
        loads.append(AX)
    contrast = gradient @ M  # (targets, p)
    variance = ((contrast @ np.array(scores).T) ** 2).sum(1)
    ends = []
    for i in range(len(value)):
        # p_j = (I - H)_j A_j X_j M g, with H = X M X': p_i'p_j without an n x n matrix.
        q = [load @ contrast[i] for load in loads]
        Q = np.array([X[here].T @ v for here, v in zip(segments, q, strict=True)])
        B = np.diag([float(v @ v) for v in q]) - Q @ M @ Q.T
        df = max(float(np.trace(B) ** 2 / max((B**2).sum(), 1e-300)), 1.0)
        se = float(np.sqrt(variance[i]))
        t = float(stats.t.ppf(0.5 + level / 2, df))
        ends.append(Ends(float(value[i]), se, df, value[i] - t * se, value[i] + t * se))
    return ends
