"""What approaches 1 and 2 share: optima of loss curves, their regression on compute, its bias.

Letters: N parameters, D training tokens, C training FLOPs, L loss in nats per token.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from analysis.curves import HALF, Cells, Noise
from analysis.rows import Rows

LEAST = 3  # optima (approach 1: winning sizes) that an exponent needs
BLOCK = 4_000_000  # noise draws held in memory at once

REASONS = {
    "too-few": "too few sizes reach this compute to find a minimum between them",
    "wrong-curvature": "the parabola through the curve does not open upwards: it has no minimum",
    "edge-minimum": "the least loss is at the smallest or largest size: the optimum lies beyond",
    "off-centre": (
        "fewer than two sizes lie on one side of the parabola's minimum, or the curve is more than "
        "2.5 times as long on one side as on the other: its far end moves the minimum"
    ),
    "unstable-minimum": "in most re-noised copies of the curve the minimum leaves the sizes",
}


@dataclass(frozen=True)
class Curve:
    """Losses of several sizes at one compute C, and their optimum or the `reason` for none.

    points: N, D, L of each size (empty in approach 1); then N*, D*, L*, its weight in the
    regression, `sd` of log N* and `interval` of N* under re-noising, and `lost`, the share of
    re-noised copies without a minimum between the sizes.
    """

    C: float
    points: tuple[tuple[float, float, float], ...]
    reason: str | None
    N: float | None = None
    D: float | None = None
    L: float | None = None
    weight: float | None = None
    sd: float | None = None
    interval: tuple[float, float] | None = None
    lost: float | None = None


@dataclass(frozen=True)
class PowerLaw:
    """log y = intercept + exponent · log C; `interval` of the exponent under re-noising."""

    exponent: float
    intercept: float
    interval: tuple[float, float] | None

    def __call__(self, C: np.ndarray) -> np.ndarray:
        """y at compute C in FLOPs."""
        return np.exp(self.intercept + self.exponent * np.log(C))


@dataclass(frozen=True)
class Approach:
    """What approach 1 or 2 makes of the rows: N* (`params`) and D* (`tokens`) as powers of C.

    kind: "measured" curves of equal compute, or "interpolated" between each size's horizons;
    reason: why there is no exponent.
    """

    method: str
    kind: str
    curves: tuple[Curve, ...]
    notes: tuple[str, ...]
    params: PowerLaw | None = None
    tokens: PowerLaw | None = None
    level: float | None = None
    reason: str | None = None

    @property
    def a(self) -> float | None:
        """Exponent of N* over compute."""
        return self.params.exponent if self.params else None

    @property
    def used(self) -> tuple[Curve, ...]:
        """The curves with an optimum: what the regression sees."""
        return tuple(c for c in self.curves if c.reason is None)


Find = Callable[[np.ndarray], np.ndarray]


def regress(
    draft: Approach,
    find: Find,
    cells: Cells,
    noise: Noise | None,
    width: int,
    floor: np.ndarray | None = None,
    median: bool = False,
) -> Approach:
    """The draft with the optima of its curves, and log N*, log D* regressed on log C.

    find: log losses (n, points) -> log N*, log D*, log L* (3, n, curves), nan without a minimum.
    floor: least sd of log N* (curves) that a weight 1/sd² credits; None for equal weights. median:
    N* is the median of the copies instead of that of the losses as they are. width: numbers that
    `find` holds per copy. As in Porian et al. (2024) lost copies take weight away.
    """
    C = np.array([c.C for c in draft.curves])
    best = find(cells.log_l[None])[:, 0]
    copies = np.full((3, 0, len(C)), np.nan)
    if noise:
        rng = np.random.default_rng(noise.seed)
        block = max(1, BLOCK // (width + len(cells.N)))
        starts = range(0, noise.resamples, block)
        sizes = [min(block, noise.resamples - i) for i in starts]
        copies = np.concatenate([find(cells.renoised(noise, n, rng)) for n in sizes], axis=1)
    done = []
    for b, curve in enumerate(draft.curves):
        if median and noise and curve.reason is None and np.isfinite(copies[0, :, b]).any():
            best[:2, b] = np.nanmedian(copies[:2, :, b], axis=1)
        least = None if floor is None else float(floor[b])
        done.append(_judged(curve, best[:, b], copies[0, :, b], least, noise))
    on = np.array([c.reason is None for c in done], dtype=bool)
    w = np.array([c.weight or 0.0 for c in done])[on]
    draft = replace(draft, curves=tuple(done), level=noise.level if noise else None)
    distinct = int(_distinct(best[:1, on])[0])
    if distinct < LEAST:
        reason = (
            f"{distinct} different optima on {on.sum()} of {len(on)} curves, an exponent needs "
            f"{LEAST}: add sizes around the optimum, or compute budgets"
        )
        return replace(draft, reason=reason)
    laws = []
    enough = _distinct(copies[0][:, on]) >= LEAST
    for k in (0, 1):
        exponent, intercept = power_law(C[on], np.exp(best[k, on]), w)
        slopes, _ = power_law(C[on], np.exp(copies[k][:, on]), w)
        ends = noise.ends(np.where(enough, slopes, np.nan)) if noise else None
        laws.append(PowerLaw(float(exponent), float(intercept), ends))
    notes = draft.notes
    if noise and laws[0].interval is None:
        notes += ("no interval: most re-noised copies have too few optima for an exponent",)
    return replace(draft, params=laws[0], tokens=laws[1], notes=notes)


def power_law(
    C: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Exponent and intercept of log y = intercept + exponent · log C by weighted least squares.

    C, weights (k); y (..., k), where nan is left out. Both results have y's leading shape; nan
    with fewer than two points.
    """
    x, v = np.log(C), np.log(y)
    here = np.isfinite(v)
    w = np.where(here, 1.0 if weights is None else weights, 0.0)
    v = np.where(here, v, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        total = w.sum(-1)
        mean_x, mean_v = (w * x).sum(-1) / total, (w * v).sum(-1) / total
        dx = np.where(here, x - mean_x[..., None], 0.0)
        exponent = (w * dx * (v - mean_v[..., None])).sum(-1) / (w * dx**2).sum(-1)
    return exponent, mean_v - exponent * mean_x


@dataclass(frozen=True)
class SurfaceBias:
    """What an approach gets wrong on a noise-free surface, at the (N, D) of a study.

    a: its exponent minus true_a, the exponent of the surface's own N* at the same budgets with the
    same weights, None where it has none; factor: (C, N* of the approach / N* of the surface) of
    each curve with an optimum.
    """

    a: float | None
    true_a: float | None
    factor: tuple[tuple[float, float], ...]


def surface_bias(
    approach: Callable[[Rows], Approach],
    rows: Rows,
    loss: Callable[[np.ndarray, np.ndarray], np.ndarray],
    optimal: Callable[[np.ndarray], np.ndarray],
) -> SurfaceBias:
    """Run `approach` on the losses of a known surface in place of the measured ones.

    loss(N, D) -> L and optimal(C) -> N* of the surface, in the units and the FLOP convention of
    the rows. Approach 2 is biased without any noise where curves are wide or off centre and
    alpha != beta (arXiv 2603.22339).
    """
    L = np.asarray(loss(rows.N, rows.D), float)
    run = approach(replace(rows, L=L))
    used = run.used
    C = np.array([c.C for c in used])
    truth = np.asarray(optimal(C), float) if len(C) else C
    factor = tuple((c.C, float(c.N / n)) for c, n in zip(used, truth, strict=True) if c.N)
    if run.a is None:
        return SurfaceBias(None, None, factor)
    true_a = float(power_law(C, truth, np.array([c.weight for c in used], float))[0])
    return SurfaceBias(run.a - true_a, true_a, factor)


def _judged(
    curve: Curve, best: np.ndarray, copies: np.ndarray, floor: float | None, noise: Noise | None
) -> Curve:
    """The curve with its optimum, unless it has a reason already or re-noising gives it one."""
    if curve.reason is not None:
        return curve
    N, D, L = (float(v) for v in np.exp(best))
    if noise is None:
        return replace(curve, N=N, D=D, L=L, weight=1.0)
    kept = copies[np.isfinite(copies)]
    lost = 1 - len(kept) / len(copies)
    if lost > HALF:
        return replace(curve, reason="unstable-minimum", lost=lost)
    sd = float(np.std(kept))
    weight = 1.0 if floor is None else ((1 - lost) / max(sd, floor)) ** 2
    ends = noise.ends(np.exp(copies))
    return replace(curve, N=N, D=D, L=L, weight=weight, sd=sd, interval=ends, lost=lost)


def _distinct(values: np.ndarray) -> np.ndarray:
    """Number of different finite values in each row of `values` (n, k)."""
    ordered = np.sort(values, axis=1)  # nan at the end
    new = (np.diff(ordered, axis=1) > 0).sum(1)
    return new + np.isfinite(ordered[:, :1]).sum(1)
