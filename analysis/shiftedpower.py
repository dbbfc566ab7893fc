"""One function of a log variable, f(x) = s·exp(qx) + S, in coordinates for the solver.

As q passes zero a straight line in x needs infinite s and S. Slope and level at x = 0 stay finite:
f = level + slope·h, h = (exp(qx) - 1)/q, which is x at q = 0. A vector c or theta (..., 3) holds
(slope, q, level) or (s, q, S).
"""

from dataclasses import dataclass

import numpy as np

ZERO = 1e-9  # a power this small counts as zero
NEAR = 0.02  # |qx| below which derivatives of h are taken from their Taylor series
# Of (exp(t) - 1)/t, once and twice differentiated; highest power first.
FIRST = (1 / 840, 1 / 144, 1 / 30, 1 / 8, 1 / 3, 1 / 2)
SECOND = (1 / 960, 1 / 168, 1 / 36, 1 / 10, 1 / 4, 1 / 3)


@dataclass(frozen=True)
class ShiftedPower:
    """The function in its coordinates; `plain`: s, q and S themselves, for a fixed S."""

    plain: bool = False

    def __call__(self, c: np.ndarray, x: np.ndarray) -> np.ndarray:
        """f (R, rows) of coordinates (R, 3) at x (rows)."""
        slope, q, level = (c[:, i, None] for i in range(3))
        return level + slope * (np.exp(q * x) if self.plain else _rise(q, x))

    def slopes(self, c: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Gradient of f (R, rows, 3), and its second derivatives: slope and q, q twice."""
        slope, q = c[:, 0, None], c[:, 1, None]
        if self.plain:
            h = np.exp(q * x)
            by_q, by_qq = x * h, x**2 * h
        else:
            h, by_q, by_qq = _rise_slopes(q, x)
        return np.stack([h, slope * by_q, np.ones_like(h)], axis=-1), by_q, slope * by_qq

    def recentred(self, c: np.ndarray, by: float) -> np.ndarray:
        """Coordinates for x - by, from those for x."""
        slope, q, level = np.moveaxis(c, -1, 0)
        moved = level if self.plain else level + slope * _rise(q, by)
        return np.stack([slope * np.exp(q * by), q, moved], axis=-1)

    def coordinates(self, theta: np.ndarray) -> np.ndarray:
        """From (s, q, S)."""
        s, q, S = np.moveaxis(theta, -1, 0)
        return theta if self.plain else np.stack([s * q, q, S + s], axis=-1)

    def values(self, c: np.ndarray) -> np.ndarray:
        """(s, q, S)."""
        slope, q, level = np.moveaxis(c, -1, 0)
        if self.plain:
            return c
        q = np.where(np.abs(q) < ZERO, ZERO, q)
        s = slope / q
        return np.stack([s, q, level - s], axis=-1)

    def placed(self, c: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Coordinates inside the limits (3), from slope, power and level at x = 0."""
        if self.plain:
            slope, q, level = np.moveaxis(c, -1, 0)
            S = np.clip(level, low[2], high[2])
            with np.errstate(divide="ignore", invalid="ignore"):
                q = np.nan_to_num(slope / (level - S))
            c = np.stack([level - S, q, S], axis=-1)
        return np.clip(c, low, high)


def _rise(q: np.ndarray, x: np.ndarray | float) -> np.ndarray:
    t = np.asarray(q * x)
    return x * _ratio(np.expm1(t), t)


def _ratio(rise: np.ndarray, t: np.ndarray) -> np.ndarray:
    return np.divide(rise, t, out=np.ones_like(t), where=t != 0)


def _rise_slopes(q: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """h and its first two derivatives by q."""
    t = q * x
    near = np.abs(t) < NEAR
    far = np.where(near, 1.0, t)
    e = np.expm1(t)
    h = _ratio(e, t)
    first = (e + 1 - h) / far
    second = (e + 1 - 2 * first) / far
    if near.any():  # the differences cancel there
        first[near], second[near] = np.polyval(FIRST, t[near]), np.polyval(SECOND, t[near])
    return x * h, x**2 * first, x**3 * second
