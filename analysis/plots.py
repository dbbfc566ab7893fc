"""Figures of a study: one function a figure, result in, matplotlib Figure out; no pyplot.

Lines are the law, points are measured; None where a study has nothing to draw.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from analysis import drawing as draw
from analysis import panels
from analysis.compare import BASELINES
from analysis.describe import refit_name, why_not
from analysis.drawing import BAND, HELD_OUT, LAW
from analysis.result import Analysis
from analysis.sensitivity import Refit
from analysis.words import amount

FORMS = (
    (LAW, "o"), (draw.BLUE, "s"), (draw.GREEN, "^"), (HELD_OUT, "D"), (draw.PURPLE, "v"),
    (draw.ORANGE, "P"), (draw.SKY, "X"), ("#777777", "<"), ("#8c564b", ">"),
)  # fmt: skip
SHAPE = 3  # sizes that give a curve of equal compute a shape
REFITS = (
    (("N",), "without one size", draw.BLUE),
    (("D",), "without one horizon", draw.GREEN),
    (("C",), "without one compute budget", draw.SKY),
    (("delta", "weights"), "objective and weights", draw.PURPLE),
    (("convention",), "convention of N and C", draw.ORANGE),
)


def loss_by_size(analysis: Analysis) -> Figure:
    """Loss over N, one line per horizon; held-out sizes lie to the right of the fitted ones."""
    figure, axes = draw.single()
    panels.loss_by_size(axes, analysis)
    return figure


def loss_by_tokens(analysis: Analysis) -> Figure:
    """Loss over D, one line per size."""
    figure, axes = draw.single()
    rows, test = analysis.study.train, analysis.study.test
    D = np.geomspace(min(rows.D) / 1.3, max(rows.D) * 1.3, 100)
    lines, colours = draw.levels(rows.N, rows.size)
    if draw.known(analysis):
        held = [(float(n), HELD_OUT, "--") for n in np.unique(test.N)]
        for n, colour, style in [(n, colour, "-") for n, colour in lines] + held:
            L = draw.law_loss(analysis, np.full_like(D, n), D)
            axes.plot(D, L, color=colour, lw=1.3, ls=style)
    draw.points(axes, rows.D, rows.L, rows.N, rows.size, colours)
    draw.diamonds(axes, test.D, test.L)
    draw.log_axes(axes, "training tokens D", draw.loss_label(analysis))
    draw.legend(axes, "parameters N")
    return figure


def contours(analysis: Analysis) -> Figure:
    """Lines of equal loss in (N, D), the runs, and the compute-optimal frontier with its band."""
    figure, axes = draw.single()
    panels.plane(axes, analysis)
    return figure


def law_picture(analysis: Analysis) -> Figure:
    """The two figures that tell the result: loss over N, and the frontier."""
    figure = draw.canvas(11, 4.3)
    left, right = figure.subplots(1, 2)
    panels.loss_by_size(left, analysis)
    panels.plane(right, analysis)
    left.set_title("loss over model size", loc="left", fontsize=10)
    right.set_title("equal loss, and the compute-optimal frontier", loc="left", fontsize=10)
    return figure


def residuals(analysis: Analysis) -> Figure:
    """Residuals (law minus measured, % of the loss) over N and D, with the seed-noise band."""
    figure = draw.canvas(8, 3.4)
    rows, test, law = analysis.study.train, analysis.study.test, analysis.chosen.law
    colours = draw.shades(rows.N)
    error = 100 * analysis.chosen.estimate.residuals
    both = figure.subplots(1, 2, sharey=True)
    for axes, values, held, label in zip(
        both, (rows.N, rows.D), (test.N, test.D),
        ("parameters N", "training tokens D"), strict=True,
    ):  # fmt: skip
        if analysis.noise.df_rows:
            band = 200 * analysis.noise.sigma
            axes.axhspan(-band, band, color=BAND, alpha=0.16, lw=0, label="± 2 seed σ")
        axes.axhline(0, color=LAW, lw=0.8)
        axes.scatter(values, error, s=22, c=colours, edgecolors="white", linewidths=0.4, zorder=3)
        if len(test):
            off = law.loss(analysis.chosen.theta, *test.variables(law.variables)) / test.L
            draw.diamonds(axes, held, 100 * np.log(off))
        draw.log_axes(axes, label, "law − measured (% of loss)", log_loss=False)
        axes.label_outer()
    if analysis.noise.df_rows or len(test):
        both[-1].legend(frameon=False, fontsize=8)
    return figure


def isoflop(analysis: Analysis) -> Figure | None:
    """Left: the isoFLOP curves, parabolas and minima, refused ones grey. Right: N*(C) by all."""
    found = {b.approach.method: b.approach for b in analysis.approaches}
    parabola = found.get("approach-2-parabola")
    if parabola is None or max((len(c.points) for c in parabola.curves), default=0) < SHAPE:
        return None
    optima = draw.optima(analysis)
    figure = draw.canvas(8, 4.2) if optima else draw.canvas()
    left, *right = figure.subplots(1, 1 + optima, squeeze=False)[0]
    panels.isoflop_curves(left, analysis, parabola)
    sides: list[tuple[Axes, Any, int]] = [(left, "outside lower left", 1)]
    for axes in right:
        panels.growth(axes, analysis)
        sides.append((axes, "outside lower right", 2))
    for axes, side, columns in sides:
        figure.legend(
            *axes.get_legend_handles_labels(), loc=side, ncols=columns, frameon=False, fontsize=8
        )
    return figure


def rolling(analysis: Analysis) -> Figure | None:
    """Mean error on the dearer rows over the distance in compute, one line per form."""
    if not analysis.rolling:
        return None
    figure, axes = draw.single(8, 3.4)
    k = np.array([o.factor for o in analysis.rolling], float)
    for i, name in enumerate(r.name for r in analysis.results):
        colour, marker = FORMS[i % len(FORMS)]
        error = np.array([100 * o.errors.get(name, np.nan) for o in analysis.rolling])
        error[~(error > 0)] = np.nan  # a logarithm has no zero
        own = name == analysis.selected
        axes.plot(
            k, error, color=colour, marker=marker, ms=5.5, mfc=colour if own else "white", mew=1.3,
            lw=2.2 if own else 1.1, label=name, zorder=4 if own else 3,
        )  # fmt: skip
    draw.log_scale(axes, "y", draw.PERCENT)
    axes.set_xscale("log")
    axes.set_xlim(k.min() / 1.25, k.max() * 1.25)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(k, [f"{v:g}" for v in k])
    axes.set_xlabel("k: fitted to the rows with C ≤ C max / k")
    axes.set_ylabel("mean error on the dearer rows")
    draw.frame(axes)
    beside: Any = "outside right upper"  # a place that the stubs do not know
    figure.legend(loc=beside, frameon=False, fontsize=8)
    return figure


def held_out(analysis: Analysis) -> Figure | None:
    """Predicted against measured loss of the held-out rows, by the law and both baselines."""
    held = analysis.holdout
    if held is None:
        return None
    figure, axes = draw.single()
    markers = {"largest": ("s", draw.BLUE), "log-linear": ("^", draw.GREEN)}
    shown = [analysis.selected, *held.baselines]
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
    axes.set_xlabel(draw.loss_label(analysis, "measured loss"))
    axes.set_ylabel(draw.loss_label(analysis, "predicted loss"))
    axes.legend(frameon=False, fontsize=8, title="mean error", title_fontsize=8)
    draw.frame(axes)
    return figure


def sensitivity(analysis: Analysis) -> Figure | None:
    """a (where identified) and the loss at ten times the compute under every refit, by group."""
    refits = analysis.sensitivity
    if not draw.known(analysis) or len(refits) < 2:
        return None
    lines: list[tuple[str, Refit | None, str]] = [("the fit itself", refits[0], LAW)]
    for kinds, title, colour in REFITS:
        part = [(refit_name(r), r, colour) for r in refits[1:] if r.kind in kinds]
        lines += [(title, None, LAW), *part] if part else []
    figure = draw.canvas(8, 0.9 + 0.19 * len(lines))
    far, result, colours = analysis.optimal[-1], analysis.chosen, [colour for _, _, colour in lines]
    sloped = why_not(result, "a") is None
    both = figure.subplots(1, 1 + sloped, sharey=True, squeeze=False)[0]
    panels.refit_marks(
        both[-1], [r and r.loss_10x for _, r, _ in lines], colours,
        "loss at 10 times the largest C", far.L, far.L_interval,
    )  # fmt: skip
    if sloped:
        panels.refit_marks(
            both[0], [r and r.a for _, r, _ in lines], colours, "a: slope of log N* over log C",
            result.a, result.intervals["a"],
        )  # fmt: skip
    both[0].set_yticks(-np.arange(len(lines)), [name for name, _, _ in lines])
    both[0].set_ylim(0.3 - len(lines), 0.7)
    for text, (_, refit, _) in zip(both[0].get_yticklabels(), lines, strict=True):
        text.set_fontweight("bold" if refit is None else "normal")
    return figure


def training_curves(analysis: Analysis) -> Figure | None:
    """Held-out loss along training: thin lines are trunks, thick ends are cooldowns."""
    curves = analysis.study.curves
    if curves is None or not len(curves):
        return None
    table = analysis.study.table
    n_of = dict(zip(table["trunk_id"], table["N"], strict=True))
    sizes = np.unique([n for n in n_of.values() if np.isfinite(n)])
    colours = dict(zip(sizes, draw.shades(sizes), strict=True))
    figure, axes = draw.single()
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
    draw.log_axes(axes, "training tokens", "held-out loss (nats/token)")
    draw.legend(axes, "parameters N")
    return figure


FIGURES: tuple[tuple[str, Callable[[Analysis], Figure | None]], ...] = (
    ("law", law_picture),
    ("loss_by_size", loss_by_size),
    ("loss_by_tokens", loss_by_tokens),
    ("residuals", residuals),
    ("isoflop", isoflop),
    ("rolling", rolling),
    ("held_out", held_out),
    ("sensitivity", sensitivity),
    ("contours", contours),
    ("training_curves", training_curves),
)
