"""Loss curves of the sizes over compute, and their re-noised copies; shared by approaches 1 and 2.

Letters: N parameters, D training tokens, C training FLOPs, L loss in nats per token.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.interpolate import PchipInterpolator

from analysis.rows import Rows, groups

SAME_POINT = 0.01  # evaluations of one size closer in log C than this are one point
HALF = 0.5  # with more copies lost than this there is no optimum (Porian et al. 2024)


@dataclass(frozen=True)
class Noise:
    """Noise of log L: `sigma` of a row (a number, or a function of L), `trunk` the part that all
    rows of a trunk share; and how many re-noised copies to draw for which interval."""

    sigma: float | Callable[[np.ndarray], np.ndarray]
    trunk: float = 0.0
    resamples: int = 1000
    seed: int = 0
    level: float = 0.9

    def __post_init__(self) -> None:
        for name, value in (("sigma", self.sigma), ("trunk", self.trunk)):
            if not callable(value) and not 0 <= value < np.inf:
                raise ValueError(f"noise {name} = {value}: a sd of log loss is a number >= 0")
        if not (0 < self.level < 1 and self.resamples >= 100):
            raise ValueError(
                f"noise level = {self.level}, resamples = {self.resamples}: the level lies between "
                "0 and 1, and an interval takes 100 resamples or more"
            )

    def of(self, L: np.ndarray) -> np.ndarray:
        """Standard deviation of log L of single rows with loss L."""
        sigma = np.asarray(self.sigma(L) if callable(self.sigma) else self.sigma, float)
        if not (np.isfinite(sigma).all() and (sigma >= 0).all()):
            raise ValueError("noise sigma(L) is negative or not finite: it is the sd of log loss")
        return np.broadcast_to(sigma, np.shape(L))

    def ends(self, draws: np.ndarray) -> tuple[float, float] | None:
        """Percentile interval of the draws that are not nan; None where most of them are."""
        kept = draws[np.isfinite(draws)]
        if len(kept) < HALF * len(draws):
            return None
        low, high = np.quantile(kept, [(1 - self.level) / 2, (1 + self.level) / 2])
        return float(low), float(high)


@dataclass(frozen=True)
class Cells:
    """Points: means over the rows (seeds) of one size at one compute, arrays of one length.

    log_l: mean log loss; count: rows in it; trunks: (points, trunks), the trunks' shares in it.
    """

    N: np.ndarray
    D: np.ndarray
    C: np.ndarray
    log_l: np.ndarray
    count: np.ndarray
    trunks: sparse.csr_array

    @classmethod
    def of(cls, rows: Rows, key: np.ndarray) -> "Cells":
        """One point per value of `key` (rows), in ascending order of the key."""
        cell = np.unique(key, return_inverse=True)[1]
        count = np.bincount(cell)
        N, D, C, log_l = (
            np.bincount(cell, v) / count for v in (rows.N, rows.D, rows.C, np.log(rows.L))
        )
        trunk = np.unique(rows.trunk, return_inverse=True)[1]
        share = sparse.csr_array((1 / count[cell], (cell, trunk)))
        return cls(N, D, C, log_l, count, share)

    def renoised(self, noise: Noise, n: int, rng: np.random.Generator) -> np.ndarray:
        """n copies (n, points) of `log_l` with fresh noise."""
        sd = noise.of(np.exp(self.log_l)) / np.sqrt(self.count)
        copies = self.log_l + sd * rng.normal(size=(n, len(sd)))
        if noise.trunk == 0:
            return copies
        shared = rng.normal(scale=noise.trunk, size=(self.trunks.shape[1], n))
        return copies + (self.trunks @ shared).T


@dataclass(frozen=True)
class SizeCurves:
    """Loss of each size over compute, monotone cubic in log-log between its points, not beyond."""

    cells: Cells
    paths: tuple[np.ndarray, ...]  # of each size in ascending order: its points by rising C

    @classmethod
    def of(cls, rows: Rows) -> "SizeCurves":
        """Curves through the final losses of a ladder, or the evaluations of training curves."""
        check(rows)
        size, log_c = rows.size, np.log(rows.C)
        group = np.zeros(len(rows), int)
        for s in range(int(size.max()) + 1):
            group[size == s] = groups(log_c[size == s], SAME_POINT)
        key = size * len(rows) + group
        of_point = np.unique(key) // len(rows)
        paths = tuple(np.flatnonzero(of_point == s) for s in range(int(size.max()) + 1))
        return cls(Cells.of(rows, key), paths)

    @property
    def reach(self) -> np.ndarray:
        """Least and largest compute of each size, shape (sizes, 2)."""
        return np.array([self.cells.C[[path[0], path[-1]]] for path in self.paths])

    @property
    def single(self) -> tuple[str, ...]:
        """A note on the sizes that one point leaves without a curve."""
        N = ", ".join(f"{self.cells.N[p[0]]:.4g}" for p in self.paths if len(p) == 1)
        return (f"one horizon makes no curve over compute, not used: N = {N}",) if N else ()

    def at(self, C: np.ndarray, log_y: np.ndarray) -> np.ndarray:
        """Values (n, budgets, sizes) at compute C of `log_y` (n, points); nan where not reached.

        Slopes after Fritsch & Carlson (1980): no overshoot between the points.
        """
        out = np.full((len(log_y), len(C), len(self.paths)), np.nan)
        for s, path in enumerate(self.paths):
            if len(path) > 1:
                x, at = np.log(self.cells.C[path]), np.log(C)
                # The ends of a range computed in another way are still its ends.
                at = np.where(np.isclose(at, x[0], rtol=0, atol=1e-9), x[0], at)
                at = np.where(np.isclose(at, x[-1], rtol=0, atol=1e-9), x[-1], at)
                curve = PchipInterpolator(x, log_y[:, path], axis=1, extrapolate=False)
                out[:, :, s] = curve(at)
        return out


def check(rows: Rows) -> None:
    """Refuse rows that have no logarithm."""
    for name in "NDCL":
        values = np.asarray(getattr(rows, name), float)
        bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if len(bad):
            raise ValueError(
                f"row {bad[0] + 1}: {name} = {values[bad[0]]}: N, D, C and L must be positive and "
                "finite; correct the row or leave it out"
            )
    if not len(rows):
        raise ValueError("no rows: approaches 1 and 2 need the final losses of several sizes")
