"""Noise between seeds, and the test of a law's residuals against it."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
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
    table = pd.DataFrame(
        {"N": rows.N, "horizon": rows.horizon, "trunk": rows.trunk, "z": np.log(rows.L)}
    )
    seeds = table.groupby(["N", "horizon"])["trunk"].transform("nunique")
    repeated = table[seeds > 1]
    cells = repeated.groupby(["N", "horizon"])["z"]
    df_rows = len(repeated) - cells.ngroups
    df_trunks = int((repeated.groupby("N")["trunk"].nunique() - 1).sum())
    ss = float(((repeated["z"] - cells.transform("mean")) ** 2).sum())
    sigma = float(np.sqrt(ss / df_rows)) if df_rows else float("nan")
    return SeedNoise(sigma, df_rows, df_trunks, int(seeds.max()))


def lack_of_fit(residuals: np.ndarray, free: int, rows: Rows, noise: SeedNoise) -> LackOfFit | None:
    """Compare the cell means' distance from a law with `free` parameters with the seed noise.

    F = (sum n·(mean residual of a cell)² / (cells - free parameters)) / sigma². The noise has
    df_trunks, not df_rows. None without repeats or without cells to spare.
    """
    cells = pd.Series(residuals).groupby([rows.size, rows.horizon])
    df = cells.ngroups - free
    if not noise.df_trunks or df < 1 or not noise.sigma > 0:
        return None
    F = float((cells.size() * cells.mean() ** 2).sum() / df / noise.sigma**2)
    p = float(stats.f.sf(F, df, noise.df_trunks))
    rms = float(np.sqrt(np.mean(residuals**2)))
    return LackOfFit(F, (df, noise.df_trunks), p, rms, noise.sigma)
