"""Panels of figures: loss over N, the plane of N and D, isoFLOP curves, N* over C, refits."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from scipy.interpolate import PchipInterpolator

from analysis import drawing as draw
from analysis.describe import APPROACHES
from analysis.drawing import BAND, LAW, REFUSED
from analysis.interval import Interval
from analysis.optima import Approach, Curve
from analysis.result import Analysis
from analysis.words import compute

MARKS = {
    "approach-1": (draw.BLUE, "s"),
    "approach-2-parabola": (draw.GREEN, "^"),
    "approach-2-akima": (draw.PURPLE, "o"),
}
DASHES = {"off-centre": "-", "edge-minimum": "--", "wrong-curvature": "-.", "too-few": ":"}


def loss_by_size(axes: Axes, analysis: Analysis) -> None:
    """Loss over N, one line of the law per horizon."""
    rows, test = analysis.study.train, analysis.study.test
    last = max(rows.N.max(), test.N.max() if len(test) else 0.0)
    N = np.geomspace(rows.N.min() / 1.3, last * 1.3, 100)
    lines, colours = draw.levels(rows.D, rows.horizon)
    for D, colour in lines if draw.known(analysis) else ():
        axes.plot(N, draw.law_loss(analysis, N, D), color=colour, lw=1.3)
    draw.points(axes, rows.N, rows.L, rows.D, rows.horizon, colours)
    draw.diamonds(axes, test.N, test.L)
    draw.log_axes(axes, "parameters N", draw.loss_label(analysis))
    draw.legend(axes, "tokens D")


def plane(axes: Axes, analysis: Analysis) -> None:
    """Lines of equal loss over N and D, the runs, and the compute-optimal frontier."""
    rows, test = analysis.study.train, analysis.study.test
    best = [a for a in analysis.optimal if a.N is not None and a.D is not None]
    every_n = np.concatenate([rows.N, test.N, [a.N or 0.0 for a in best]])
    every_d = np.concatenate([rows.D, test.D, [a.D or 0.0 for a in best]])
    N = np.geomspace(every_n.min() / 1.5, every_n.max() * 1.5, 120)
    D = np.geomspace(every_d.min() / 1.5, every_d.max() * 1.5, 120)
    axes.set_xlim(N[0], N[-1])
    axes.set_ylim(D[0], D[-1])
    draw.log_axes(axes, "parameters N", "training tokens D", log_loss=False)
    draw.log_scale(axes, "y", draw.AMOUNT)
    labels: list[Text] = []
    if draw.known(analysis):
        grid_n, grid_d = (m.ravel() for m in np.meshgrid(N, D))
        L = draw.law_loss(analysis, grid_n, grid_d).reshape(120, 120)
        levels = np.geomspace(L.min(), L.max(), 12)
        lines = axes.contour(N, D, L, levels=levels, cmap=draw.colour_map(), linewidths=0.9)
        labels = axes.clabel(lines, fmt=lambda v: f"{v:.2f}", fontsize=7)
    dot = 3.5 if len(rows) <= 100 else 2.0
    axes.plot(rows.N, rows.D, "o", color=LAW, ms=dot, label="fitted run")
    draw.diamonds(axes, test.N, test.D, 4.5)
    line = _frontier(axes, analysis) if best else np.empty((0, 2))
    to_axes = axes.transData + axes.transAxes.inverted()
    for label in labels:  # none that the edge would cut or the frontier would cross
        at = to_axes.transform(label.get_position())
        near = np.hypot(*(to_axes.transform(line) - at).T) < 0.05 if len(line) else np.zeros(1)
        if min(*at, *(1 - at)) < 0.03 or near.any():
            label.remove()
    axes.legend(frameon=True, framealpha=0.95, edgecolor="none", fontsize=8, loc="upper left")


def _frontier(axes: Axes, analysis: Analysis) -> np.ndarray:
    """N*(C), D*(C), shape (budgets, 2): solid within the measured compute, dashed beyond; band."""
    law, result = analysis.chosen.law, analysis.chosen
    shown = [a for a in analysis.optimal if a.N is not None]
    C = np.geomspace(shown[0].flops, shown[-1].flops, 25)
    best = law.optimal(result.theta, C, analysis.flops)
    low, high = _size_band(analysis, C)
    d_of = [np.exp(np.log(C) - analysis.flops(np.log(n))[0]) for n in (low, high)]
    # On a line of constant C a larger N* has a smaller D*: the band's edges are both ends.
    axes.fill(
        np.concatenate([low, high[::-1]]), np.concatenate([d_of[0], d_of[1][::-1]]),
        color=BAND, alpha=0.25, lw=0, label=f"{100 * analysis.level:g} % band",
    )  # fmt: skip
    inside = analysis.study.train.C.max() * 1.01 >= C
    axes.plot(best.N[inside], best.D[inside], color=LAW, lw=2, label="compute-optimal")
    edge = max(int(inside.sum()) - 1, 0)
    axes.plot(best.N[edge:], best.D[edge:], color=LAW, lw=2, ls=(0, (2, 1.5)))
    return np.stack([best.N, best.D], axis=1)


def _size_band(analysis: Analysis, C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Interval ends of N* at compute C (FLOPs), smooth between the budgets of the allocation table;
    nan beyond them."""
    closed = [a for a in analysis.optimal if a.N_interval.closed]
    if len(closed) < 2:
        return np.full(len(C), np.nan), np.full(len(C), np.nan)
    ends = np.array([(a.N_interval.low, a.N_interval.high) for a in closed], float)
    budgets = np.log([a.flops for a in closed])
    # Budgets are rounded to two digits: the ends of a range of compute may lie just outside.
    at = np.where(np.abs(np.log(C) - budgets[0]) < 0.05, budgets[0], np.log(C))
    low, high = np.exp(PchipInterpolator(budgets, np.log(ends), extrapolate=False)(at)).T
    return low, high


def isoflop_curves(axes: Axes, analysis: Analysis, approach: Approach) -> None:
    """Loss over N at equal compute: points, parabola and minimum; refused curves grey."""
    drawn = [c for c in approach.curves if c.points]
    colours = dict(zip(drawn, draw.shades(np.array([c.C for c in drawn])), strict=True))
    refused: dict[str, int] = {}
    for curve in drawn:
        refused[curve.reason or ""] = refused.get(curve.reason or "", 0) + 1
    for curve, colour in colours.items():
        N, _, L = np.array(curve.points).T
        if curve.reason:
            style, count = DASHES.get(curve.reason, ":"), refused.pop(curve.reason, 0)
            label = f"refused: {curve.reason} ({count})" if count else None
            axes.plot(N, L, marker="o", ms=3, ls=style, lw=1.1, color=REFUSED, label=label)
            continue
        axes.plot(N, L, "o", ms=3.5, color=colour)
        x = np.linspace(np.log(N[0]), np.log(N[-1]), 60)
        axes.plot(np.exp(x), _parabola(curve, x), lw=1.2, color=colour)
    used = [c for c in drawn if c.N is not None]
    for curve in used:
        if curve.interval:
            axes.plot(curve.interval, [curve.L or np.nan] * 2, color=LAW, lw=1.4, zorder=4)
    _, marker = MARKS[approach.method]
    bar = f" with {100 * approach.level:g} % interval" if approach.level else ""
    if used:
        N, L = np.array([(c.N, c.L) for c in used]).T
        axes.plot(
            N, L, marker, ms=6, mfc="white", mec=LAW, mew=1.2, zorder=5, label="minimum" + bar
        )
    draw.log_axes(axes, "parameters N", draw.loss_label(analysis))
    ends = [compute(c.C) for c in (drawn[0], drawn[-1])]
    axes.set_title(f"equal compute, from {ends[0]} (dark) to {ends[1]}", loc="left", fontsize=9)


def _parabola(curve: Curve, x: np.ndarray) -> np.ndarray:
    """Loss at log N = x of the parabola through the curve's minimum, bent as its points are."""
    N, _, L = np.array(curve.points).T
    star, least = np.log(curve.N or np.nan), np.log(curve.L or np.nan)
    square = (np.log(N) - star) ** 2
    bend = float((square * (np.log(L) - least)).sum() / (square**2).sum())
    return np.exp(least + bend * (x - star) ** 2)


def growth(axes: Axes, analysis: Analysis) -> None:
    """N* over C by the law with its band, and by approaches 1 and 2 with their optima."""
    top = float(analysis.study.train.C.max())
    low = min([c.C for b in analysis.approaches for c in b.approach.used] or [top / 10])
    C = np.geomspace(low, top, 25)
    if draw.allocated(analysis):
        best = analysis.chosen.law.optimal(analysis.chosen.theta, C, analysis.flops)
        axes.fill_between(C, *_size_band(analysis, C), color=BAND, alpha=0.22, lw=0)
        axes.plot(C, best.N, color=LAW, lw=2, label=f"3 {analysis.selected}")
    for beside in analysis.approaches:
        found = beside.approach
        label, (colour, marker) = APPROACHES[found.method], MARKS[found.method]
        used = [c for c in found.used if c.N is not None]
        if not used:
            continue
        at = np.array([c.C for c in used])
        for curve in used if found.method != "approach-1" else ():
            if curve.interval:
                axes.plot([curve.C, curve.C], curve.interval, color=colour, lw=1, alpha=0.7)
        optima = np.array([c.N for c in used])
        if found.method == "approach-1":  # a budget each: together they draw the steps
            axes.plot(at, optima, marker, ms=2, color=colour)
            axes.plot([], [], marker, ms=4.5, color=colour, label=label)
        else:
            axes.plot(
                at, optima, marker, ms=5, mfc="none", mew=1.1, color=colour, label=label, zorder=4
            )
        if found.params:
            axes.plot(C, found.params(C), color=colour, lw=1.1, ls="--")
    draw.log_scale(axes, "x", draw.FLOPS)
    draw.log_scale(axes, "y", draw.AMOUNT)
    axes.set_xlabel("compute C (FLOPs)")
    axes.set_ylabel("compute-optimal size N*")
    axes.set_title("the optimum by all approaches", loc="left", fontsize=9)
    draw.frame(axes)


def refit_marks(
    axes: Axes, values: Sequence[float | None], colours: Sequence[str], label: str,
    centre: float | None, interval: Interval,
) -> None:  # fmt: skip
    """One mark per line, top down; a line at the first value and a band as wide as the interval."""
    own = values[0]
    if own is not None:
        axes.axvline(own, color=LAW, lw=0.8)
        if centre and interval.low is not None and interval.high is not None:
            ends = (own + interval.low - centre, own + interval.high - centre)
            axes.axvspan(*ends, color=BAND, alpha=0.16, lw=0)
    for i, (value, colour) in enumerate(zip(values, colours, strict=True)):
        if value is not None and np.isfinite(value):
            axes.plot(value, -i, "o", ms=5, color=colour)
    axes.set_xlabel(label, fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    draw.frame(axes)
    axes.tick_params(axis="y", length=0)
