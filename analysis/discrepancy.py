"""A law with a smooth misfit beside it: what the form cannot follow (Kennedy & O'Hagan 2001).

log L = f(theta; N, D) + m(log N, log D) + u_trunk + e, where m is a Gaussian process of covariance
kappa·s²·exp(-d²/2l²), d the distance in (log N, log D), s² the variance of e. On a few of the
rows' own points (pivoted Cholesky: they explain the process at all rows) m is a linear term with a
ridge penalty, and one Newton method finds law and misfit together. Far from the rows m goes to
zero and the law stands alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.form import Form
from analysis.gls import restricted
from analysis.law import Law
from analysis.rows import SAME, groups

LEFT = 1e-3  # share of the process's variance that the points may miss at a row
JITTER = 1e-9
MAD = 1.4826  # median absolute deviation to sd of a normal variable
MOST_TRUNKS = 100  # above, their noise averages out
RATIOS = np.concatenate([[0.0], np.geomspace(0.1, 300.0, 25)])


@dataclass(frozen=True)
class Basis:
    """Features Phi with Phi Phi' = exp(-d²/2l²) at the rows: points (M, variables), root (M, M)."""

    points: np.ndarray
    root: np.ndarray
    length: float

    @classmethod
    def of(cls, x: np.ndarray, length: float) -> "Basis":
        """From log variables x (rows, variables); greedy choice of the least explained point."""
        x = np.unique(x, axis=0)
        left, chosen = np.ones(len(x)), []
        factor = np.zeros((len(x), 0))
        while len(chosen) < len(x):
            i = int(np.argmax(left))
            if left[i] < LEFT:
                break
            column = _kernel(x, x[i : i + 1], length)[:, 0] - factor @ factor[i]
            column /= np.sqrt(left[i])
            factor = np.column_stack([factor, column])
            left = np.maximum(left - column**2, 0.0)
            left[i] = 0.0
            chosen.append(i)
        points = x[chosen]
        lower = np.linalg.cholesky(_kernel(points, points, length) + JITTER * np.eye(len(points)))
        return cls(points, np.linalg.inv(lower).T, length)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Features (rows, M) at log variables x; their squares sum to one near the points."""
        return _kernel(x, self.points, self.length) @ self.root


def _kernel(a: np.ndarray, b: np.ndarray, length: float) -> np.ndarray:
    d = (a[:, None, :] - b[None, :, :]) / length
    return np.exp(-0.5 * np.einsum("abk,abk->ab", d, d))


@dataclass(frozen=True)
class Extended(Form):
    """`base` plus a linear term: phi = (coordinates of the base, one weight per column).

    Its features are a pair: those of the base, and the columns (rows, columns) of the linear term.
    """

    base: Law

    def forward(self, features: Any, phi: np.ndarray) -> tuple[np.ndarray, Any]:
        p = len(self.base.parameters)
        z, state = self.base.forward(features[0], phi[:, :p])
        return z + phi[:, p:] @ features[1].T, state

    def jacobian(self, features: Any, state: Any) -> np.ndarray:
        J = self.base.jacobian(features[0], state)
        linear = np.broadcast_to(features[1], (len(J), *features[1].shape))
        return np.concatenate([J, linear], axis=2)

    def second_order(
        self, features: Any, state: Any, psi: np.ndarray, inner: np.ndarray, w: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        columns = features[1]
        g, H, scale, size = self.base.second_order(features[0], state, psi, inner, w)
        J = self.base.jacobian(features[0], state)
        cross = np.swapaxes(J * inner[..., None], 1, 2) @ columns
        block = np.swapaxes(columns * inner[..., None], 1, 2) @ columns
        return (
            np.concatenate([g, psi @ columns], axis=1),
            np.block([[H, cross], [np.swapaxes(cross, 1, 2), block]]),
            np.concatenate([scale, w @ columns**2], axis=1),
            np.concatenate([size, w @ np.abs(columns)], axis=1),
        )


def trunk_effects(
    J: np.ndarray, r: np.ndarray, w: np.ndarray, smooth: np.ndarray, kappa: float,
    log_n: np.ndarray, trunk: np.ndarray,
) -> tuple[float, np.ndarray]:  # fmt: skip
    """rho² = variance of trunks over that of rows, and indicators of trunks (rows, trunks).

    No columns and 0 where rows are trunks of their own, where fewer than two trunks repeat a size
    (only repeats tell noise from what the form misses along N), or where trunks are many.
    """
    names, codes = np.unique(trunk, return_inverse=True)
    size = groups(log_n, SAME)
    sizes = int(size.max()) + 1
    if len(names) == len(r) or not sizes + 1 < len(names) <= MOST_TRUNKS:
        return 0.0, np.zeros((len(r), 0))
    Z = np.eye(len(names))[codes]
    rho2 = _trunk_ratio(J, r, w, smooth, kappa, Z, np.eye(sizes)[size])
    return rho2, Z if rho2 > 0 else Z[:, :0]


def _trunk_ratio(
    J: np.ndarray, r: np.ndarray, w: np.ndarray, smooth: np.ndarray, kappa: float,
    Z: np.ndarray, S: np.ndarray,
) -> float:  # fmt: skip
    """rho² = variance of trunks over that of rows, from repeats, by REML (Patterson & Thompson).

    J, r: Jacobian and residuals of the law, w: row weights, smooth: columns of the misfit, Z, S:
    indicators of trunks and of sizes. V/s² = diag(1/w) + kappa·smooth smooth' + rho²·ZZ'. A
    free effect of every size leaves only repeats to tell rho²: without it, what the form misses
    along N would count as noise.
    """
    fixed, strength, _ = np.linalg.svd(
        np.column_stack([J / np.maximum(np.linalg.norm(J, axis=0), 1e-300), S]),
        full_matrices=False,
    )
    fixed = fixed[:, strength > 1e-7 * strength[0]]
    n, p = fixed.shape
    if n - p < 2:
        return 0.0
    columns = np.column_stack([fixed, r, Z])
    weighted = columns * w[:, None]
    load = smooth.T @ weighted
    inner = np.eye(smooth.shape[1]) / max(kappa, JITTER) + (smooth.T * w) @ smooth
    G = columns.T @ weighted - load.T @ np.linalg.solve(inner, load)
    values, vectors = np.linalg.eigh(G[p + 1 :, p + 1 :])
    own, cross = G[: p + 1, : p + 1], G[: p + 1, p + 1 :] @ vectors
    scale = RATIOS[:, None] / (1 + RATIOS[:, None] * np.maximum(values, 0.0))
    M = own - np.einsum("gj,aj,bj->gab", scale, cross, cross, optimize=True)
    log_det = np.log1p(RATIOS[:, None] * np.maximum(values, 0.0)).sum(1)
    return float(RATIOS[int(np.argmax(restricted(M, log_det, n - p)))])


def averaged(
    X: Sequence[np.ndarray], L: np.ndarray, w: np.ndarray, r: np.ndarray, most: int
) -> tuple[tuple[np.ndarray, ...], np.ndarray, np.ndarray]:
    """Neighbours in log N and log D as one row: X, L, w of at most `most` rows.

    r: residuals (log L_pred - log L) of a law, averaged in place of the losses; those beyond three
    robust sd count as three.
    """
    x, width = np.log(np.stack(X, axis=-1)), 2 * SAME
    spread = 3 * MAD * float(np.median(np.abs(r)))
    z = np.log(L) + r - np.clip(r, -spread, spread)
    while True:
        cell = np.unique(np.floor(x / width), axis=0, return_inverse=True)[1].ravel()
        if cell.max() < most:
            break
        width *= 2
    total = np.bincount(cell, w)
    N, D, mean = (np.exp(np.bincount(cell, w * v) / total) for v in (x[:, 0], x[:, 1], z))
    return (N, D), mean, total
