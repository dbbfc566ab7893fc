"""What the figures share: colours, levels, axes, legends.

One colour per size, horizon or budget (dark = small, light = large, readable without colour
vision); methods and forms have a colour and a marker of their own; held-out rows are orange.
"""

from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from analysis.result import Analysis
from analysis.words import amount, compute

HELD_OUT = "#d55e00"  # vermillion of Okabe & Ito's colour-blind safe set, as are the next
BLUE, GREEN, PURPLE, ORANGE, SKY = "#0072b2", "#009e73", "#aa4499", "#e69f00", "#56b4e9"
LAW = "#222222"
BAND = "#7a7a7a"
REFUSED = "#a3a9b1"
MAX_LEGEND = 8
AMOUNT = FuncFormatter(lambda v, _: amount(v))
FLOPS = FuncFormatter(lambda v, _: compute(v).replace(".0e", "e"))  # 1e12, 2e12, 5e12
PERCENT = FuncFormatter(lambda v, _: f"{v:g} %")


def canvas(width: float = 7.2, height: float = 4.4) -> Figure:
    """An empty figure, inches."""
    return Figure(figsize=(width, height), layout="constrained")


def single(width: float = 7.2, height: float = 4.4) -> tuple[Figure, Axes]:
    """A figure with one panel."""
    figure = canvas(width, height)
    return figure, figure.subplots()


def colour_map() -> Colormap:
    """Dark to light, without viridis' last and palest part."""
    return ListedColormap(mpl.colormaps["viridis"](np.linspace(0.02, 0.85, 256)))


def shades(values: np.ndarray) -> np.ndarray:
    """A colour per value by its logarithm, dark to light; they stay apart in grey too."""
    x = np.log(values)
    return mpl.colormaps["viridis"](0.02 + 0.83 * (x - x.min()) / max(float(np.ptp(x)), 1e-9))


def known(analysis: Analysis) -> bool:
    """Whether the design identifies the law: if not, its lines would be one guess of many.

    A law without one exponent a for all compute may still be known.
    """
    return not set(analysis.chosen.design.problems) - {"a"}


def allocated(analysis: Analysis) -> bool:
    """Whether the headline's law gives an optimal size at any budget."""
    return any(a.N is not None for a in analysis.optimal)


def optima(analysis: Analysis) -> bool:
    """Whether the law or approach 1 or 2 gives one."""
    return allocated(analysis) or any(b.approach.used for b in analysis.approaches)


def law_loss(analysis: Analysis, N: np.ndarray, D: np.ndarray | float) -> np.ndarray:
    """Loss of the headline's law at N and D; where it asks for unique tokens, none is repeated."""
    D = np.broadcast_to(np.asarray(D, float), np.shape(N))
    law = analysis.chosen.law
    at = {"N": np.asarray(N, float), "D": D, "U": D}
    return law.loss(analysis.chosen.theta, *(at[letter] for letter in law.variables))


def loss_label(analysis: Analysis, what: str = "loss L") -> str:
    """The name of a loss axis or column, with the unit as far as it is known."""
    unit = analysis.study.loss_unit
    return f"{what} ({'unit not known' if unit == 'unknown' else unit})"


def levels(values: np.ndarray, level: np.ndarray) -> tuple[list[tuple[float, Any]], np.ndarray]:
    """(value, colour) of each line of the law, and the colour of each row.

    One line per level of a ladder; six over the range where the rows are a scatter.
    """
    colours = shades(values)
    count = int(level.max()) + 1
    if count > MAX_LEGEND + 4:
        at = np.geomspace(values.min(), values.max(), 6)
        return list(zip(at.tolist(), shades(at), strict=True)), colours
    first = [int(np.flatnonzero(level == k)[0]) for k in range(count)]
    return [
        (float(np.median(values[level == k])), colours[i]) for k, i in enumerate(first)
    ], colours


def points(
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


def diamonds(axes: Axes, x: np.ndarray, y: np.ndarray, size: float = 5) -> None:
    """Held-out rows, where there are any."""
    if len(x):
        axes.plot(x, y, "D", color=HELD_OUT, ms=size, mfc="none", mew=1.4, label="held out")


def log_axes(axes: Axes, x: str, y: str, log_loss: bool = True) -> None:
    """Logarithmic x in counts (1M, 2M, 5M), and where asked a logarithmic loss with round ticks."""
    log_scale(axes, "x", AMOUNT)
    if log_loss:
        loss_axis(axes)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    frame(axes)


def log_scale(axes: Axes, which: Literal["x", "y"], show: FuncFormatter) -> None:
    """A logarithmic x or y with round labels."""
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=_subs(*axis.get_view_interval())))
    axis.set_major_formatter(show)
    axis.set_minor_formatter(NullFormatter())


def _subs(low: float, high: float) -> tuple[float, ...]:
    """Labelled multiples of a power of ten: fewer on a longer axis."""
    decades = np.log10(high / low)
    if decades < 0.8:
        return (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
    return (1.0, 2.0, 5.0) if decades < 2.5 else (1.0, 3.0) if decades < 4 else (1.0,)


def loss_axis(axes: Axes) -> None:
    """A logarithmic y with five to ten round losses: it is shorter than a decade."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    ticks = np.array([low, high])
    for step in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0):
        ticks = np.round(np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step, 3)
        if len(ticks) <= 9:
            break
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axes.set_ylim(low, high)


def frame(axes: Axes) -> None:
    """Two spines, a faint grid, small labels."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, lw=0.4, alpha=0.35)
    axes.tick_params(labelsize=8)


def legend(axes: Axes, title: str) -> None:
    """A legend where the entries are few enough to be read."""
    entries = len(axes.get_legend_handles_labels()[1])
    if 0 < entries <= MAX_LEGEND + 1:
        axes.legend(title=title, frameon=False, fontsize=8, title_fontsize=8, ncols=2)
