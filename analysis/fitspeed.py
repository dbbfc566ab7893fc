"""How fast is the certified global fit? Ratios against the usual way, in one run.

Reference: scipy's L-BFGS-B with its numeric gradient on the sum of Huber losses of log-sum-exp
residuals, started from every point of the grid of Hoffmann et al. 2022 (4500 starts, sampled here).
All times are process CPU time, medians or means of calls that alternate.
"""

import itertools
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.optimize import least_squares, minimize
from scipy.special import huber, logsumexp

from analysis.laws import CHINCHILLA
from analysis.refit import refit
from analysis.rows import Rows
from analysis.solve import DELTA, fit_law

GRID = (
    np.arange(0, 30, 5.0), np.arange(0, 30, 5.0), np.arange(-1, 1.5, 0.5),
    np.arange(0, 2.5, 0.5), np.arange(0, 2.5, 0.5),
)  # fmt: skip  # log A, log B, log E, alpha, beta
RESAMPLES = 4000
NOTEBOOK_SEED = 42


@dataclass(frozen=True)
class Speed:
    """CPU seconds and objectives; `worse` counts sampled starts that end above our objective."""

    rows: int
    starts: int
    sampled: int
    seconds_per_start: float
    seconds_fit: float
    seconds_least_squares: float
    seconds_refits: float
    refits: int
    objective: float
    best_sampled: float
    worse: int
    standard_errors: dict[str, float]

    @property
    def fit_ratio(self) -> float:
        """Times that one certified fit is faster than the whole grid."""
        return self.seconds_per_start * self.starts / self.seconds_fit

    @property
    def refit_ratio(self) -> float:
        """Times that one refit is faster than the whole grid."""
        return self.seconds_per_start * self.starts * self.refits / self.seconds_refits

    def to_json(self) -> dict[str, Any]:
        """The fields and both ratios."""
        more = {"fit_ratio": self.fit_ratio, "refit_ratio": self.refit_ratio}
        return {"suite": "speed", **asdict(self), **more}


def notebook_weights(n: int) -> np.ndarray:
    """Row counts (4000, n) of the resamples of Besiroglu et al. 2024: numpy's global seed 42."""
    random = np.random.RandomState(NOTEBOOK_SEED)
    draws = [random.choice(np.arange(n), size=n, replace=True) for _ in range(RESAMPLES)]
    return np.stack([np.bincount(d, minlength=n) for d in draws]).astype(float)


def speed(rows: Rows, sampled: int = 120, repeats: int = 15, seed: int = 0) -> Speed:
    """Time grid starts, certified fits and single least-squares starts in turn, then the refits."""
    x, y, z = np.log(rows.N), np.log(rows.D), np.log(rows.L)
    xc, yc = x - x.mean(), y - y.mean()

    def usual(p: np.ndarray) -> float:
        terms = np.stack([p[0] - p[3] * x, p[1] - p[4] * y, np.full_like(x, p[2])])
        return float(huber(DELTA, logsumexp(terms, axis=0) - z).sum())

    def centred(p: np.ndarray) -> np.ndarray:
        return np.logaddexp(np.logaddexp(p[0] - p[3] * xc, p[1] - p[4] * yc), p[2]) - z

    grid = list(itertools.product(*GRID))
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(grid), size=sampled, replace=False)
    X = rows.variables(CHINCHILLA.variables)
    fit = fit_law(CHINCHILLA, X, rows.L)
    per_start, fits, single, found = [], [], [], []
    for i, at in enumerate(chosen):
        start = time.process_time()
        found.append(minimize(usual, np.array(grid[at]), method="L-BFGS-B").fun)
        per_start.append(time.process_time() - start)
        if i % max(sampled // repeats, 1) == 0:
            start = time.process_time()
            fit = fit_law(CHINCHILLA, X, rows.L)
            fits.append(time.process_time() - start)
            begin = np.concatenate([rng.uniform(-2, 1, 3), rng.uniform(0.1, 1.0, 2)])
            start = time.process_time()
            least_squares(
                centred, begin, loss="huber", f_scale=DELTA, ftol=1e-12, xtol=1e-12, gtol=1e-12
            )
            single.append(time.process_time() - start)
    weights = notebook_weights(len(rows))
    start = time.process_time()
    many = refit(fit, X, rows.L, weights)
    seconds = time.process_time() - start
    errors = dict(zip(CHINCHILLA.parameters, map(float, many.theta.std(0)), strict=True))
    return Speed(
        len(rows), len(grid), sampled, float(np.mean(per_start)), float(np.median(fits)),
        float(np.median(single)), seconds, len(weights), fit.objective, float(np.min(found)),
        int((np.array(found) > fit.objective * (1 + 1e-6)).sum()), errors,
    )  # fmt: skip


def lines(result: Speed) -> list[str]:
    """The result as text."""
    s = result
    share = 1 - s.worse / s.sampled
    return [
        f"{s.rows} rows; L-BFGS-B: {1e3 * s.seconds_per_start:.1f} ms a start, {s.starts} starts "
        f"{s.seconds_per_start * s.starts:.0f} s; {share:.1%} of {s.sampled} sampled reach the "
        "optimum (relative 1e-6)",
        f"certified global fit: {1e3 * s.seconds_fit:.1f} ms, {s.fit_ratio:,.0f} x faster; "
        f"objective {s.objective:.14f}, best of the sampled starts {s.best_sampled:.14f}",
        f"one least_squares start: {1e3 * s.seconds_least_squares:.1f} ms; the certified fit takes "
        f"{s.seconds_fit / s.seconds_least_squares:.2f} of it",
        f"{s.refits} converged bootstrap refits: {s.seconds_refits:.2f} s, {s.refit_ratio:,.0f} x "
        "faster each than the grid; standard errors "
        + ", ".join(f"{k} {v:.6g}" for k, v in s.standard_errors.items()),
    ]
