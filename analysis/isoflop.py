"""Approach 2 (Hoffmann et al. 2022): the loss-optimal size on curves of equal compute, by parabola
and by Akima interpolation.

Letters: N parameters, D training tokens, C training FLOPs, L loss in nats per token.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.interpolate import Akima1DInterpolator

from analysis.curves import Cells, Noise, SizeCurves, check
from analysis.optima import Approach, Curve, regress
from analysis.rows import Rows

MIN_SIZES = 4  # a parabola through three points fits any of them
BETWEEN = 0.05  # budgets are further apart than this in log C ...
WITHIN = 0.10  # ... and their runs no further (rounding to whole steps; Porian et al. allow 10 %)
BUDGETS = 10  # curves read off a ladder
FINE = 25  # Akima's grid is this many times finer than the sizes (Porian et al. 2024)
FLOOR = 0.33  # of the sizes' spacing: the least sd of log N* that counts (Porian et al. 2024)
LOPSIDED = 2.5  # longer over shorter side of a curve (Open-Athena's symmetric window and margin)
FLAT = 1e-9  # a bend of log L over the whole curve below this is rounding

Method = Literal["parabola", "akima"]


@dataclass(frozen=True)
class IsoCurves:
    """Curves of equal compute: arrays over the curve's sizes by rising N, one array per curve.

    kind: "measured" or "interpolated"; C: (curves); count: rows behind a point; cells: the points
    that the losses come from; losses: log losses (n, cells) -> (n, sizes) of every curve.
    """

    kind: str
    C: np.ndarray
    log_n: tuple[np.ndarray, ...]
    log_d: tuple[np.ndarray, ...]
    count: tuple[np.ndarray, ...]
    cells: Cells
    losses: Callable[[np.ndarray], list[np.ndarray]]
    notes: tuple[str, ...]

    @property
    def log_l(self) -> list[np.ndarray]:
        """The log losses as they are."""
        return [z[0] for z in self.losses(self.cells.log_l[None])]


def isoflop_curves(rows: Rows) -> IsoCurves:
    """The isoFLOP curves in the rows, or between them.

    Measured: runs of equal compute (groups of C no wider than WITHIN, BETWEEN apart), where most
    rows lie in groups of MIN_SIZES sizes. Otherwise each size's final losses are interpolated over
    compute at BUDGETS budgets, from the least to the largest compute that MIN_SIZES sizes reach.
    Seeds are averaged.
    """
    check(rows)
    found = _measured(rows)
    if found is not None:
        return found
    sizes = SizeCurves.of(rows)
    cells, C = sizes.cells, _budgets(sizes)
    log_n, log_d, count = sizes.at(C, np.stack([np.log(cells.N), np.log(cells.D), cells.count]))
    here = [np.flatnonzero(row) for row in np.isfinite(log_n)]

    def losses(log_l: np.ndarray) -> list[np.ndarray]:
        Z = sizes.at(C, log_l)
        return [Z[:, b, i] for b, i in enumerate(here)]

    log_n, log_d, count = (
        tuple(v[b, i] for b, i in enumerate(here)) for v in (log_n, log_d, count)
    )
    return IsoCurves("interpolated", C, log_n, log_d, count, cells, losses, sizes.single)


def isoflop(
    rows: Rows,
    method: Method,
    noise: Noise | None = None,
) -> Approach:
    """Approach 2: the least loss of each isoFLOP curve, regressed on compute.

    parabola: weighted least squares of log L on log N (Hoffmann et al. 2022, section 3.2). akima:
    interpolation of log L over log N, least value on a FINE times finer grid, N* the median of the
    re-noised copies (Porian et al. 2024). Refused curves keep their reason (`optima.REASONS`):
    fewer than MIN_SIZES sizes; a parabola that does not open upwards; a minimum at the edge; for
    the parabola, fewer than two sizes on one side of it or one side LOPSIDED times as long as the
    other; a minimum that most re-noised copies lose. Without noise: equal weights, no intervals.
    ValueError on bad rows or arguments.
    """
    if method not in ("parabola", "akima"):
        raise ValueError(f"method = {method!r}: choose 'parabola' or 'akima'")
    iso = isoflop_curves(rows)
    first = iso.log_l
    weights = [_weights(n, z, noise) for n, z in zip(iso.count, first, strict=True)]
    curves = []
    for b, (x, z) in enumerate(zip(iso.log_n, first, strict=True)):
        points = np.exp(np.stack([x, iso.log_d[b], z], axis=1)).tolist()
        reason = _refusal(x, z, weights[b], method)
        curves.append(Curve(float(iso.C[b]), tuple((n, d, v) for n, d, v in points), reason))

    def find(log_l: np.ndarray) -> np.ndarray:
        out = np.full((3, len(log_l), len(curves)), np.nan)
        for b, Z in enumerate(iso.losses(log_l)):
            if curves[b].reason is None:
                star, least = _minimum(iso.log_n[b], Z, weights[b], method)
                log_d = np.interp(star, iso.log_n[b], iso.log_d[b])
                out[:, :, b] = np.where(np.isnan(star), np.nan, [star, log_d, least])
        return out

    spacing = [np.ptp(x) / (len(x) - 1) if len(x) > 1 else 1.0 for x in iso.log_n]
    return regress(
        Approach(f"approach-2-{method}", iso.kind, tuple(curves), iso.notes),
        find,
        iso.cells,
        noise,
        width=FINE * max(len(x) for x in iso.log_n) + sum(len(x) for x in iso.log_n),
        floor=FLOOR * np.array(spacing),
        median=method == "akima",
    )


def curve_scatter(iso: IsoCurves) -> float:
    """Pooled residual sd of log L of one row about the curves' parabolas, k - 3 df each.

    For studies without repeats: it counts the parabola's misfit as noise. nan without df.
    """
    squares, df = 0.0, 0
    for x, z, w in zip(iso.log_n, iso.log_l, iso.count, strict=True):
        if len(x) >= MIN_SIZES:
            fitted = np.polynomial.polynomial.polyval(x - x.mean(), _parabola(x, z[None], w)[0])
            squares += float((w * (z - fitted) ** 2).sum())
            df += len(x) - 3
    return (squares / df) ** 0.5 if df else float("nan")


def _measured(rows: Rows) -> IsoCurves | None:
    """Groups of equal compute, or None where the rows are no isoFLOP grid."""
    log_c = np.log(rows.C)
    order = np.argsort(log_c)
    budgets = np.split(order, np.flatnonzero(np.diff(log_c[order]) > BETWEEN) + 1)
    key, on_curves, points = np.empty(len(rows), int), 0, [0]
    for i in budgets:
        size = rows.take(i).size
        key[i] = points[-1] + size
        points.append(points[-1] + int(size.max()) + 1)
        if np.ptp(log_c[i]) <= WITHIN and size.max() + 1 >= MIN_SIZES:
            on_curves += len(i)
    if 2 * on_curves <= len(rows):
        return None
    cells = Cells.of(rows, key)

    def split(values: np.ndarray) -> list[np.ndarray]:
        return np.split(values, points[1:-1], axis=-1)

    log_n, log_d = tuple(split(np.log(cells.N))), tuple(split(np.log(cells.D)))
    C = np.array([np.median(rows.C[i]) for i in budgets])
    return IsoCurves("measured", C, log_n, log_d, tuple(split(cells.count)), cells, split, ())


def _budgets(sizes: SizeCurves) -> np.ndarray:
    """About equal steps of log C over the compute that MIN_SIZES sizes reach, or over all of it."""
    low, high = sizes.reach.T
    C = np.geomspace(low.min(), high.max(), 100 * BUDGETS)
    covered = C[((low[:, None] <= C) & (high[:, None] >= C)).sum(0) >= MIN_SIZES]
    C = covered if len(covered) >= BUDGETS else C
    return np.unique(C[np.linspace(0, len(C) - 1, BUDGETS).round().astype(int)])


def _weights(count: np.ndarray, log_l: np.ndarray, noise: Noise | None) -> np.ndarray:
    """Inverse variances of a curve's points, up to a factor."""
    if noise is None:
        return count
    variance = noise.of(np.exp(log_l)) ** 2 + noise.trunk**2
    return count / variance if (variance > 0).all() else count


def _parabola(x: np.ndarray, Z: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Coefficients (n, 3), rising powers of x - mean(x), of weighted parabolas through Z (n, k)."""
    X = np.vander(x - x.mean(), 3, increasing=True)
    root = np.sqrt(w / w.mean())
    return Z @ (np.linalg.pinv(X * root[:, None]) * root).T


def _minimum(
    x: np.ndarray, Z: np.ndarray, w: np.ndarray, method: Method
) -> tuple[np.ndarray, np.ndarray]:
    """log N* and least log L of curves Z (n, k) over x; nan where no minimum lies between.

    The parabola must open upwards for both methods: Akima finds a minimum in any noise.
    """
    c0, c1, c2 = _parabola(x, Z, w).T
    up = c2 > 0
    if method == "parabola":
        step = np.where(up, -c1 / np.where(up, 2 * c2, 1.0), np.inf)
        star = np.where((step >= x[0] - x.mean()) & (step <= x[-1] - x.mean()), step, np.nan)
        return star + x.mean(), c0 + c1 * star + c2 * star**2
    grid = np.linspace(x[0], x[-1], FINE * (len(x) - 1))
    fine = Akima1DInterpolator(x, Z.T)(grid).T
    i = fine.argmin(1)
    inner = up & (i > 0) & (i < len(grid) - 1)
    j, n = np.clip(i, 1, len(grid) - 2), np.arange(len(Z))
    left, mid, right = fine[n, j - 1], fine[n, j], fine[n, j + 1]
    # The vertex through three grid points removes the grid's steps from log N*.
    bend = left - 2 * mid + right
    shift = np.where(bend > 0, 0.5 * (left - right) / np.where(bend > 0, bend, 1.0), 0.0)
    shift = np.clip(shift, -0.5, 0.5)
    star = grid[j] + shift * (grid[1] - grid[0])
    return np.where(inner, star, np.nan), np.where(inner, mid + 0.25 * shift * (right - left), 0)


def _refusal(x: np.ndarray, z: np.ndarray, w: np.ndarray, method: Method) -> str | None:
    """Why the curve z over x has no optimum that can be believed; None where it has one."""
    if len(x) < MIN_SIZES:
        return "too-few"
    if _parabola(x, z[None], w)[0, 2] * np.ptp(x) ** 2 < FLAT:
        return "wrong-curvature"
    star = _minimum(x, z[None], w, method)[0][0]
    if np.isnan(star):
        return "edge-minimum"
    # Akima reads the optimum off the sizes next to it, the parabola off all: only it is skewed.
    if method == "akima":
        return None
    left, right = star - x[0], x[-1] - star
    few = min((x < star).sum(), (x > star).sum()) < 2
    return "off-centre" if few or max(left, right) > LOPSIDED * min(left, right) else None
