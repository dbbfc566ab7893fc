"""Figures of what the heads do: each score over training tokens, one line per size of model."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from analysis import circuits as heads
from analysis import drawing as draw
from analysis.circuits import Circuits, Onset
from analysis.drawing import BAND, LAW, REFUSED
from analysis.words import amount

COLUMNS = 3
OF_HEADS = (
    ("induction", "induction"),
    ("previous_token", "previous token"),
    ("duplicate_token", "duplicate token"),
    ("prefix_matching", "prefix matching in the text"),
    ("copying", "copying (OV eigenvalues)"),
)
OF_MODELS = (
    ("repeat_loss_drop", "repeat-loss drop"),
    ("icl", "in-context learning score"),
)
SHARE = "share of positions"
LEVELS = (("null_value", "null level", ":"), ("baseline", "best fixed offset", "--"))
Panel = Callable[[Axes], None]


def circuits(found: Circuits) -> Figure | None:
    """Scores of the best head, induction heads and their onset, and what they do for the loss."""
    there, panels = set(found.trained["metric"]), []
    for metric, title in OF_HEADS:
        if metric not in there:
            continue
        panels.append(partial(_scores, found, metric, title, "score of the best head"))
        if metric == "induction":
            panels.append(partial(_counts, found))
            if any(o.emerged for o in heads.onsets(found)):
                panels.append(partial(_onsets, heads.onsets(found)))
    panels += [
        partial(_scores, found, metric, title, "nats/token")
        for metric, title in OF_MODELS
        if metric in there
    ]
    return _grid(panels, found)


def structure(found: Circuits) -> Figure | None:
    """Share of positions that the best head of each relation attends to it."""
    there = set(found.trained["metric"])
    panels = [
        partial(_scores, found, metric, title, SHARE)
        for metric, title in heads.RELATIONS.items()
        if metric in there
    ]
    return _grid(panels, found)


FIGURES: tuple[tuple[str, Callable[[Circuits], Figure | None]], ...] = (
    ("circuits", circuits),
    ("structure", structure),
)


def _grid(panels: Sequence[Panel], found: Circuits) -> Figure | None:
    """The panels in rows, and one legend for all of them."""
    if not panels:
        return None
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = draw.canvas(2.9 * columns, 2.5 * rows + 0.4)
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, panel in zip(places, panels, strict=False):
        panel(axes)
    for axes in places[len(panels) :]:
        axes.remove()
    entries: dict[str, Artist] = {}
    for axes in figure.axes:
        entries |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(
        list(entries.values()), list(entries), loc="outside lower center", ncols=6, frameon=False,
        fontsize=8, title="parameters N", title_fontsize=8,
    )  # fmt: skip
    return figure


def _scores(found: Circuits, metric: str, title: str, label: str, axes: Axes) -> None:
    """Mean over the seeds with their range; at 0 the untrained models; levels to compare with."""
    trained = heads.best(found.trained, metric)
    _lines(axes, trained, heads.best(found.untrained, metric))
    for column, name, style in LEVELS:
        level = trained[column].median()
        if np.isfinite(level):
            axes.axhline(level, color=LAW, lw=0.9, ls=style, label=name, zorder=1)
    if metric == "induction":
        told = f"induction head: above {heads.INDUCTION:g}"
        axes.axhline(heads.INDUCTION, color=BAND, lw=0.7, label=told, zorder=1)
    if label == SHARE:
        axes.set_ylim(bottom=0)
    axes.set_title(title, loc="left", fontsize=9)
    axes.set_ylabel(label, fontsize=8)


def _counts(found: Circuits, axes: Axes) -> None:
    counted = [heads.induction_heads(rows) for rows in (found.trained, found.untrained)]
    _lines(axes, *counted)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.set_ylim(0, max(1.0, axes.get_ylim()[1]))
    axes.set_title(f"heads with induction > {heads.INDUCTION:g}", loc="left", fontsize=9)
    axes.set_ylabel("number", fontsize=8)


def _lines(axes: Axes, trained: pd.DataFrame, untrained: pd.DataFrame) -> None:
    sizes = np.sort(trained["n_total"].unique()).astype(float)
    horizons = np.sort(trained["tokens"].unique()).astype(float)
    # A logarithm has no zero: untrained models stand a step left of the first horizon.
    zero = horizons[0] / max((horizons[-1] / horizons[0]) ** 0.25, 1.3)
    named = sizes[np.unique(np.linspace(0, len(sizes) - 1, draw.MAX_LEGEND).round().astype(int))]
    means, starts = heads.over_seeds(trained), heads.over_seeds(untrained)
    for n, colour in zip(sizes, draw.shades(sizes), strict=True):
        line = means[means["n_total"] == n].sort_values("tokens")
        start = starts.loc[starts["n_total"] == n, "mean"].to_numpy()
        x, y = line["tokens"].to_numpy(float), line["mean"].to_numpy(float)
        label = amount(n) if n in named else None
        axes.plot(x, y, "o-", color=colour, ms=3, lw=1.3, label=label, zorder=3)
        if (line["max"] > line["min"]).any():
            axes.fill_between(x, line["min"], line["max"], color=colour, alpha=0.15, lw=0)
        if len(start):
            axes.plot([zero, x[0]], [start[0], y[0]], color=colour, lw=0.7, ls=":", zorder=2)
            axes.plot(zero, start[0], "o", ms=3.5, mfc="white", color=colour, zorder=3)
    axes.set_xscale("log")
    axes.set_xlim(zero / 1.1, horizons[-1] * 1.1)
    shown = _spread(horizons, 4)
    ticks, names = list(shown), [amount(d) for d in shown]
    if len(starts):
        ticks, names = [zero, *ticks], ["0", *names]
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.set_xticks(ticks, names)
    axes.set_xlabel("training tokens D", fontsize=8)
    draw.frame(axes)


def _spread(values: np.ndarray, count: int) -> np.ndarray:
    """The first and the last of rising values and about evenly many between, by logarithm."""
    wanted = np.linspace(np.log(values[0]), np.log(values[-1]), count)
    nearest = np.abs(np.log(values)[:, None] - wanted).argmin(axis=0)
    return values[np.unique(nearest)]


def _onsets(found: Sequence[Onset], axes: Axes) -> None:
    """D at which induction emerges, over N: bars are intervals, arrows their open ends."""
    shown = [o for o in found if o.layers > 1 or o.emerged]
    every = [d for o in shown for d in (o.D.low, o.D.high) if d is not None]
    low, high = min(every) / 1.25, max([*every, *(o.last for o in shown)]) * 1.25
    colours = draw.shades(np.array([o.N for o in found]))
    for onset, colour in zip(found, colours, strict=True):
        if onset not in shown:
            continue
        ends = (onset.D.low or low, onset.D.high or high)
        faint = colour if onset.emerged else REFUSED
        axes.plot([onset.N, onset.N], ends, color=faint, lw=2.5, solid_capstyle="butt")
        for known, end, arrow in ((onset.D.low, low, "v"), (onset.D.high, high, "^")):
            axes.plot(onset.N, known or end, "_" if known else arrow, color=faint, ms=6)
    draw.log_axes(axes, "parameters N", "", log_loss=False)
    axes.set_ylim(low / 1.05, high * 1.05)
    draw.log_scale(axes, "y", draw.AMOUNT)
    for side in (axes.xaxis, axes.yaxis):
        side.set_minor_locator(NullLocator())
    axes.xaxis.label.set_fontsize(8)
    axes.set_title("onset of induction", loc="left", fontsize=9)
    axes.set_ylabel("training tokens D", fontsize=8)
