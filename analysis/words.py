"""Numbers and intervals as text."""

import math
from collections.abc import Callable

from analysis.interval import Interval
from analysis.uncertainty import FIXED

NBSP = "\u00a0"  # keeps a number and its unit on one line
GREEK = {"alpha": "α", "beta": "β", "gamma": "γ", "R_D": "R_D*", "R_N": "R_N*"}


def number(x: float | None) -> str:
    """Four significant digits, enough to read and few enough to be the same everywhere."""
    if x is None or not math.isfinite(x):
        return "–"
    return f"{x:#.4g}".rstrip(".")


def amount(x: float | None) -> str:
    """A count in engineering letters: 64.1k, 3M, 1.4B."""
    if x is None or not math.isfinite(x):
        return "–"
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if size <= x < 1e15:
            return f"{x / size:.3g}{letter}"
    return f"{x:.3g}"


def compute(x: float) -> str:
    """FLOPs with two digits: 7.1e10."""
    return f"{x:.1e}".replace("e+", "e")


def counted(n: int, what: str) -> str:
    """A number and its noun: 1 size, 6 sizes."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def percent(x: float | None) -> str:
    """A fraction as per cent with two decimals (one above 10 %)."""
    if x is None or not math.isfinite(x):
        return "–"
    return f"{100 * x:.1f}{NBSP}%" if abs(x) >= 0.1 else f"{100 * x:.2f}{NBSP}%"


def probability(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def span(interval: Interval, show: Callable[[float | None], str] = number) -> str:
    """An interval in words: `1.2 to 1.4`, `at most 1.9`, or why there is none."""
    if interval.low is not None and interval.high is not None:
        if interval.note == FIXED:
            return "fixed"
        return f"{show(interval.low)} to {show(interval.high)}"
    if interval.high is not None:
        return f"at most {show(interval.high)}"
    if interval.low is not None:
        return f"at least {show(interval.low)}"
    return "not identified"
