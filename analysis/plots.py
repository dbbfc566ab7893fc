"""Figures of a study: one function a figure, result in, matplotlib Figure out; no pyplot.

One colour per size everywhere (dark = small, light = large, readable without colour vision);
held-out rows are orange diamonds. Lines are the law, points are measured.
"""

from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from analysis.compare import BASELINES
from analysis.describe import amount
from analysis.result import Analysis

HELD_OUT = "#d55e00"  # vermillion of Okabe & Ito's colour-blind safe set
LAW = "#222222"
BAND = "#7a7a7a"
MAX_LEGEND = 8


def loss_by_size(analysis: Analysis) -> Figure:
    """Loss over N, one line per horizon; held-out sizes lie to the right of the fitted ones."""
    figure, axes = _single()
    _draw_loss_by_size(axes, analysis)
    return figure


def loss_by_tokens(analysis: Analysis) -> Figure:
    """Loss over D, one line per size."""
    figure, axes = _single()
    rows, test, law, theta = _parts(analysis)
    D = np.geomspace(min(rows.D) / 1.3, max(rows.D) * 1.3, 100)
    lines, colours = _lines(rows.N, rows.size)
    for value, colour in lines if _known(analysis) else ():
        axes.plot(D, law.loss(theta, np.full_like(D, value), D), color=colour, lw=1.3)
    _points(axes, rows.D, rows.L, rows.N, rows.size, colours)
    if len(test):
        for n in np.unique(test.N) if _known(analysis) else ():
            axes.plot(D, law.loss(theta, np.full_like(D, n), D), color=HELD_OUT, lw=1.3, ls="--")
        axes.plot(test.D, test.L, "D", color=HELD_OUT, ms=5, mfc="none", mew=1.4, label="held out")
    _log_axes(axes, "training tokens D", "loss L (nats/token)")
    _legend(axes, "parameters N")
    return figure


def contours(analysis: Analysis) -> Figure:
    """Lines of equal loss in (N, D), the runs, and the compute-optimal frontier with its band."""
    figure, axes = _single()
    _draw_contours(axes, analysis)
    return figure


def law_picture(analysis: Analysis) -> Figure:
    """The two figures that tell the result: loss over N, and the frontier."""
    figure = Figure(figsize=(11, 4.3), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_loss_by_size(left, analysis)
    _draw_contours(right, analysis)
    left.set_title("loss over model size", loc="left", fontsize=10)
    right.set_title("equal loss, and the compute-optimal frontier", loc="left", fontsize=10)
    return figure


def residuals(analysis: Analysis) -> Figure:
    """Residuals (law minus measured, % of the loss) over N and D, with the seed-noise band."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    rows, test, law, theta = _parts(analysis)
    colours = _lines(rows.N, rows.size)[1]
    error = 100 * analysis.chosen.fit.residuals
    panels = figure.subplots(1, 2, sharey=True)
    for axes, values, held, label in zip(
        panels, (rows.N, rows.D), (test.N, test.D),
        ("parameters N", "training tokens D"), strict=True,
    ):  # fmt: skip
        if analysis.noise.df_rows:
            band = 200 * analysis.noise.sigma
            axes.axhspan(-band, band, color=BAND, alpha=0.16, lw=0, label="± 2 seed σ")
        axes.axhline(0, color=LAW, lw=0.8)
        axes.scatter(values, error, s=22, c=colours, edgecolors="white", linewidths=0.4, zorder=3)
        if len(test):
            off = 100 * np.log(law.loss(theta, test.N, test.D) / test.L)
            axes.plot(held, off, "D", ms=5, mfc="none", mew=1.4, color=HELD_OUT, label="held out")
        _log_axes(axes, label, "law − measured (% of loss)", log_loss=False)
        axes.label_outer()
    if analysis.noise.df_rows or len(test):
        panels[-1].legend(frameon=False, fontsize=8)
    return figure


def held_out(analysis: Analysis) -> Figure | None:
    """Predicted against measured loss of the held-out rows, by the law and both baselines."""
    held = analysis.holdout
    if held is None:
        return None
    figure, axes = _single((6.4, 4.2))
    markers = {"largest": ("s", "#0072b2"), "log-linear": ("^", "#009e73")}
    shown = [analysis.selected, *(k for k in BASELINES if k in held.predictions)]
    everything = np.concatenate([held.rows.L, *(held.predictions[k] for k in shown)])
    ends = np.array([everything.min() * 0.99, everything.max() * 1.01])
    axes.plot(ends, ends, color=LAW, lw=0.8, label="prediction = measurement")
    for name in shown:
        marker, colour = markers.get(name, ("D", HELD_OUT))
        label = f"{BASELINES.get(name, name + ' law')}: {100 * held.error(name):.2f} %"
        axes.plot(held.rows.L, held.predictions[name], marker, color=colour, ms=6, mfc="none",
                  mew=1.4, label=label)  # fmt: skip
    for x, end in zip(held.rows.L, analysis.holdout_intervals, strict=True):
        if end.low is not None and end.high is not None:
            axes.plot([x, x], [end.low, end.high], color=HELD_OUT, lw=1.2)
    axes.set_xlabel("measured loss (nats/token)")
    axes.set_ylabel("predicted loss (nats/token)")
    axes.legend(frameon=False, fontsize=8, title="mean error", title_fontsize=8)
    _frame(axes)
    return figure


def training_curves(analysis: Analysis) -> Figure | None:
    """Held-out loss along training: thin lines are trunks, thick ends are cooldowns."""
    curves = analysis.study.curves
    if curves is None or not len(curves):
        return None
    table = analysis.study.table
    n_of = dict(zip(table["trunk_id"], table["N"], strict=True))
    sizes = np.unique([n for n in n_of.values() if np.isfinite(n)])
    colours = dict(zip(sizes, _shades(len(sizes)), strict=True))
    figure, axes = _single()
    labelled = set()
    by_trunk = dict(list(curves.groupby("trunk_id")))
    for trunk in sorted(by_trunk, key=lambda trunk: n_of.get(trunk, np.inf)):
        part, n = by_trunk[trunk], n_of.get(trunk)
        if n not in colours:
            continue
        shared = part[part["run_id"].isna()].sort_values("tokens")
        axes.plot(shared["tokens"], shared["val_loss"], color=colours[n], lw=0.7, alpha=0.75)
        for _, branch in part[part["run_id"].notna()].groupby("run_id"):
            branch = branch.sort_values("tokens")
            label = None if n in labelled else amount(n)
            labelled.add(n)
            axes.plot(branch["tokens"], branch["val_loss"], color=colours[n], lw=1.8, label=label)
    _log_axes(axes, "training tokens", "held-out loss (nats/token)")
    _legend(axes, "parameters N")
    return figure


FIGURES: tuple[tuple[str, Callable[[Analysis], Figure | None]], ...] = (
    ("law", law_picture),
    ("loss_by_size", loss_by_size),
    ("loss_by_tokens", loss_by_tokens),
    ("contours", contours),
    ("residuals", residuals),
    ("held_out", held_out),
    ("training_curves", training_curves),
)


def _draw_loss_by_size(axes: Axes, analysis: Analysis) -> None:
    rows, test, law, theta = _parts(analysis)
    last = max(rows.N.max(), test.N.max() if len(test) else 0.0)
    N = np.geomspace(rows.N.min() / 1.3, last * 1.3, 100)
    lines, colours = _lines(rows.D, rows.horizon)
    for value, colour in lines if _known(analysis) else ():
        axes.plot(N, law.loss(theta, N, np.full_like(N, value)), color=colour, lw=1.3)
    _points(axes, rows.N, rows.L, rows.D, rows.horizon, colours)
    if len(test):
        axes.plot(test.N, test.L, "D", color=HELD_OUT, ms=5, mfc="none", mew=1.4, label="held out")
    _log_axes(axes, "parameters N", "loss L (nats/token)")
    _legend(axes, "tokens D")


def _lines(values: np.ndarray, level: np.ndarray) -> tuple[list[tuple[float, Any]], np.ndarray]:
    """(value, colour) of each line of the law, and the colour of each row.

    One line per level of a ladder; six over the range where the rows are a scatter.
    """
    x = np.log(values)
    place = (x - x.min()) / max(np.ptp(x), 1e-9)
    colours = _map()(0.02 + 0.83 * place)
    levels = int(level.max()) + 1
    if levels > MAX_LEGEND + 4:
        shown = np.linspace(0, 1, 6)
        at = np.exp(x.min() + shown * np.ptp(x))
        return [
            (float(v), _map()(0.02 + 0.83 * s)) for v, s in zip(at, shown, strict=True)
        ], colours
    first = [int(np.flatnonzero(level == k)[0]) for k in range(levels)]
    return [
        (float(np.median(values[level == k])), colours[i]) for k, i in enumerate(first)
    ], colours


def _points(
    axes: Axes, x: np.ndarray, y: np.ndarray, value: np.ndarray, level: np.ndarray,
    colours: np.ndarray,
) -> None:  # fmt: skip
    """Measured points in their level's colour; a legend entry per level of a ladder."""
    axes.scatter(x, y, s=22, c=colours, edgecolors="white", linewidths=0.4, zorder=3)
    if level.max() < MAX_LEGEND:
        for k in range(int(level.max()) + 1):
            colour = colours[int(np.flatnonzero(level == k)[0])]
            label = amount(float(np.median(value[level == k])))
            axes.plot([], [], "o", ms=4.5, color=colour, label=label)


def _draw_contours(axes: Axes, analysis: Analysis) -> None:
    rows, test, law, theta = _parts(analysis)
    best = [a for a in analysis.optimal if a.N is not None and a.D is not None]
    every_n = np.concatenate([rows.N, test.N, [a.N or 0.0 for a in best]])
    every_d = np.concatenate([rows.D, test.D, [a.D or 0.0 for a in best]])
    N = np.geomspace(every_n.min() / 1.5, every_n.max() * 1.5, 120)
    D = np.geomspace(every_d.min() / 1.5, every_d.max() * 1.5, 120)
    _log_axes(axes, "parameters N", "training tokens D", log_loss=False)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(_AMOUNT)
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(N[0], N[-1])
    axes.set_ylim(D[0], D[-1])
    if _known(analysis):
        grid_n, grid_d = (m.ravel() for m in np.meshgrid(N, D))
        L = law.loss(theta, grid_n, grid_d).reshape(120, 120)
        levels = np.geomspace(L.min(), L.max(), 12)
        lines = axes.contour(N, D, L, levels=levels, cmap=_map(), linewidths=0.9)
        axes.clabel(lines, fmt=lambda v: f"{v:.2f}", fontsize=7)
    dot = 3.5 if len(rows) <= 100 else 2.0
    axes.plot(rows.N, rows.D, "o", color=LAW, ms=dot, label="fitted run")
    if len(test):
        axes.plot(
            test.N, test.D, "D", color=HELD_OUT, ms=4.5, mfc="none", mew=1.3, label="held out"
        )
    if best:
        _frontier(axes, analysis)
    axes.legend(frameon=True, framealpha=0.95, edgecolor="none", fontsize=8, loc="upper left")


def _frontier(axes: Axes, analysis: Analysis) -> None:
    """N*(C), D*(C): solid within the measured compute, dashed beyond; band from the resamples."""
    law, result = analysis.chosen.fit.law, analysis.chosen
    shown = [a for a in analysis.optimal if a.N is not None]
    C = np.geomspace(shown[0].flops, shown[-1].flops, 40)
    best = law.optimal(result.fit.theta, C, analysis.flops)
    tail = (1 - analysis.level) / 2
    draws = law.optimal(result.draws.theta[:400], C, analysis.flops)
    low, high = np.quantile(draws.N, [tail, 1 - tail], axis=0)
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


def _known(analysis: Analysis) -> bool:
    """Whether the design identifies the law: if not, its lines would be one guess of many."""
    return "a" not in analysis.chosen.design.problems


def _parts(analysis: Analysis):
    fit = analysis.chosen.fit
    return analysis.study.train, analysis.study.test, fit.law, fit.theta


def _single(size: tuple[float, float] = (6.4, 4.2)) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots()


def _map():
    return mpl.colormaps["viridis"]


def _shades(n: int) -> list:
    """n colours from dark to light that stay apart in grey and for every kind of colour vision."""
    return [_map()(0.02 + 0.83 * k / max(n - 1, 1)) for k in range(n)]


_AMOUNT = FuncFormatter(lambda v, _: amount(v))


def _log_axes(axes: Axes, x: str, y: str, log_loss: bool = True) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(_AMOUNT)
    axes.xaxis.set_minor_formatter(NullFormatter())
    if log_loss:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        ticks = _loss_ticks(low, high)
        axes.set_yticks(ticks, [f"{t:g}" for t in ticks])
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(low, high)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    _frame(axes)


def _loss_ticks(low: float, high: float) -> np.ndarray:
    """Round losses, five to ten of them, on an axis that is shorter than a decade."""
    for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0):
        ticks = np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step
        if len(ticks) <= 9:
            return np.round(ticks, 3)
    return np.array([low, high])


def _frame(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, lw=0.4, alpha=0.35)
    axes.tick_params(labelsize=8)


def _legend(axes: Axes, title: str) -> None:
    entries = len(axes.get_legend_handles_labels()[1])
    if 0 < entries <= MAX_LEGEND + 1:
        axes.legend(title=title, frameon=False, fontsize=8, title_fontsize=8, ncols=2)
