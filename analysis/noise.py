"""Noise between seeds, and the test of a law's residuals against it."""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis.rows import Rows


@dataclass(frozen=True)
class SeedNoise:
    """Pooled spread of log L between runs that differ only in the seed.

    sigma: in log units (0.01 = 1 %), nan without repeats; df_rows counts repeated rows, df_trunks
    repeated trunks: rows of a trunk share its noise, so tests use df_trunks.
    """

    sigma: float
    df_rows: int
    df_trunks: int
    max_seeds: int


@dataclass(frozen=True)
class LackOfFit:
    """F-test of the law's residuals against seed noise (both in log-loss units)."""

    F: float
    df: tuple[int, int]
    p: float
    rms: float
    sigma: float

    @property
    def rejected(self) -> bool:
        return self.p < 0.05

    @property
    def weak(self) -> bool:
        """Too few repeated trunks for the test to notice a misfit of several sigma."""
        return not self.rejected and self.df[1] < 3 and self.rms > self.sigma


def seed_noise(rows: Rows) -> SeedNoise:
    """Pooled variance of log L within cells of equal N and horizon but different trunk.

    N must be equal, not close: a scatter of nearly equal sizes holds no repeats.
    """
    size = np.unique(rows.N, return_inverse=True)[1]
    cell = np.unique(np.stack([size, rows.horizon]), axis=1, return_inverse=True)[1].ravel()
    trunk = np.unique(rows.trunk, return_inverse=True)[1]
    in_cell = np.unique(np.stack([cell, trunk]), axis=1)[0]
    repeated = np.bincount(in_cell)[cell] > 1  # rows of a cell that several trunks share
    count = np.bincount(cell[repeated], minlength=int(cell.max()) + 1)
    z = np.log(rows.L)
    mean = np.bincount(cell[repeated], z[repeated], len(count)) / np.maximum(count, 1)
    ss = float(((z - mean[cell])[repeated] ** 2).sum())
    df_rows = int(np.maximum(count - 1, 0).sum())
    most = int(np.bincount(in_cell).max())
    of_size = np.unique(np.stack([size[repeated], trunk[repeated]]), axis=1)[0]
    df_trunks = int(np.maximum(np.bincount(of_size) - 1, 0).sum()) if len(of_size) else 0
    sigma = float(np.sqrt(ss / df_rows)) if df_rows else float("nan")
    return SeedNoise(sigma, df_rows, df_trunks, most)


def lack_of_fit(residuals: np.ndarray, free: int, rows: Rows, noise: SeedNoise) -> LackOfFit | None:
    """Compare the cell means' distance from a law with `free` parameters with the seed noise.

    F = (sum n·(mean residual of a cell)² / (cells - free parameters)) / sigma². The noise has
    df_trunks, not df_rows. None without repeats or without cells to spare.
    """
    cells = np.unique(np.stack([rows.size, rows.horizon], 1), axis=0, return_inverse=True)[1]
    cells = cells.ravel()
    count = np.bincount(cells)
    df = len(count) - free
    if not noise.df_trunks or df < 1 or not noise.sigma > 0:
        return None
    mean = np.bincount(cells, residuals) / count
    F = float((count * mean**2).sum() / df / noise.sigma**2)
    p = float(stats.f.sf(F, df, noise.df_trunks))
    rms = float(np.sqrt(np.mean(residuals**2)))
    return LackOfFit(F, (df, noise.df_trunks), p, rms, noise.sigma)
