"""Doubts about units: N, D, C off by powers of a thousand, losses that are no nats per token.

Nothing is rescaled and nothing refused on suspicion: a note says it and a flag marks it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from analysis.columns import Letters
from analysis.rows import Rows

LossUnit = Literal["nats/token", "bits", "unknown"]

SMALLEST = 1000.0  # no language model has fewer parameters, none learns from fewer tokens
TOO_SMALL = {
    "N": "no language model has fewer than 1,000 parameters",
    "D": "no language model learns from fewer than 1,000 tokens",
}
TOKENS_PER_PARAMETER = (1e-3, 1e6)  # rows of public sweeps lie between 0.01 and 64,000
OFF_6ND = 2.0  # decades; conventions of N and C differ by less than one
GAP = 2.5  # decades; no public sweep jumps by more than 0.9 between neighbouring sizes or horizons
CEILING = 20.0  # a uniform guess among a million tokens loses 13.8 nats or 20 bits
FLOOR = 1.0  # published E of web text is 1.3 to 1.9 nats per token
RISING = 0.5  # rank correlation with N·D above which a "loss" rises with compute
SPREAD = 3.0  # in N·D, below which a trend with compute means nothing (one isoFLOP curve)

MEANING = {3: "thousands", 6: "millions", 9: "billions", 12: "trillions", 15: "peta", 18: "exa"}
PETAFLOP_DAY = 19.94  # log10 of 8.64e19 FLOP
UNIT = {"N": "parameters", "D": "tokens", "U": "tokens", "C": "FLOPs"}
CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
BITS = re.compile(r"(?<![a-z0-9])(?<!\d[_ -])(bp[bct]|bits?)(?![a-z])|bits?_?per|log2")
SCORE = re.compile(r"(?<![a-z])(ppl|perplexity|acc|accuracy)(?![a-z])")


@dataclass(frozen=True)
class Doubts:
    """The unit of the losses, sentences for the reader, and flags of rows and columns."""

    loss_unit: LossUnit
    notes: tuple[str, ...]
    flagged: tuple[dict[str, str], ...]


def doubts(rows: Rows, ids: Sequence[str], letters: Letters, stated: Mapping[str, str]) -> Doubts:
    """What speaks against the units of `rows`, named `ids`; `stated`: units in the metadata."""
    loss = letters.names["L"]
    unit, against = _loss_unit(rows, loss, stated.get(loss, ""))
    columns = _suspect_columns(rows, letters, stated)
    if against:
        columns[f"column {loss}"] = against
    single = _suspect_rows(rows, letters)
    notes = [f"{where} {why}" for where, why in columns.items()]
    if single:
        i, why = min(single.items())
        notes.append(
            f"{len(single)} of {len(rows)} rows look given in another unit than the rest, and are "
            f"used; first {ids[i]}: {why}"
        )
    found = [*columns.items(), *((ids[i], f"{why}: another unit?") for i, why in single.items())]
    flagged = tuple({"row": row, "flag": "suspect_units", "reason": why} for row, why in found)
    return Doubts(unit, tuple(notes), flagged)


def labels(letters: Letters, stated: Mapping[str, str], loss: LossUnit) -> dict[str, str]:
    """Unit and column of each letter, for the reader."""
    named = stated.get(letters.names["L"], "")
    assumed = {"nats/token": "nats/token, not stated", "bits": "bits"}.get(loss, "unit not known")
    found = {
        "N": f"parameters ({letters.label('N')})",
        "D": f"tokens ({letters.label('D')})",
        "C": f"FLOPs ({letters.label('C')})",
        "L": f"{named or assumed} ({letters.names['L']})",
    }
    return found | ({"U": f"tokens ({letters.names['U']})"} if letters.names["U"] else {})


def _suspect_columns(rows: Rows, letters: Letters, stated: Mapping[str, str]) -> dict[str, str]:
    """What of N, D, C, U looks given in another unit as a whole -> why."""
    found: dict[str, str] = {}
    for letter, wanted in UNIT.items():
        name = letters.names[letter]
        unit = stated.get(name, "") if name else ""
        if unit and unit.lower().rstrip("s") != wanted.lower().rstrip("s"):
            found[f"column {name}"] = f"has unit {unit!r}, the law needs {wanted}"
    for letter, what in TOO_SMALL.items():
        value = getattr(rows, letter)
        smallest = float(value[_cluster(value)[0]].min())
        if letters.names[letter] and smallest < SMALLEST:
            text = f"goes down to {smallest:.3g}, and {what}: given in thousands, millions or "
            text += "billions? The law needs plain numbers"
            found.setdefault(f"column {letters.names[letter]}", text)
    per, off = (float(np.median(x)) for x in _decades(rows))
    low, high = np.log10(TOKENS_PER_PARAMETER)
    if not found and not low <= per <= high:
        found[_columns(letters)] = (
            f"give 10^{per:.1f} tokens per parameter in the median row, where runs have "
            f"10^{low:.0f} to 10^{high:.0f}: another unit? The law needs plain numbers"
        )
    if abs(off) >= OFF_6ND:
        found[_columns(letters)] = (
            f"give C/(6ND) = 10^{off:.1f} in the median row, where about 1 is expected: N, D or C "
            f"in another unit{_factor(off)}?"
        )
    return found


def _decades(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """log10 of D/N and of C/(6ND)."""
    N, D, C = np.log10(rows.N), np.log10(rows.D), np.log10(rows.C)
    return D - N, C - N - D - np.log10(6)


def _columns(letters: Letters) -> str:
    return "columns " + ", ".join(letters.names[k] for k in "NDC" if letters.names[k])


def _factor(off: float) -> str:
    """The usual unit that a distance in decades stands for, in brackets."""
    if abs(abs(off) - PETAFLOP_DAY) < 0.5:
        return " (C in petaflop/s-days, 8.64e19 FLOP?)"
    power = 3 * round(abs(off) / 3)
    if not power or abs(abs(off) - power) > 1:
        return ""
    meaning = MEANING.get(power)
    return f" (a factor of 1e{power}{': ' + meaning if meaning else ''})"


def _cluster(value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether each value is in the largest group without a gap of GAP decades, and its decades
    above that group's median."""
    x = np.log10(value)
    order = np.argsort(x, kind="stable")
    group = np.empty(len(x), int)
    group[order] = np.concatenate([[0], np.cumsum(np.diff(x[order]) > GAP)])
    inside = group == np.bincount(group).argmax()
    return inside, x - np.median(x[inside])


def _suspect_rows(rows: Rows, letters: Letters) -> dict[int, str]:
    """Rows that look given in another unit than the rest: position -> why, in their order."""
    found: dict[int, str] = {}
    for letter in "ND":
        name, value = letters.names[letter], getattr(rows, letter)
        inside, far = _cluster(value)
        for i in np.flatnonzero(~inside).tolist() if name else ():
            found.setdefault(i, f"{name} = {value[i]:.3g} is 10^{far[i]:+.1f} of the median row's")
    per, off = _decades(rows)
    low, high = np.log10(TOKENS_PER_PARAMETER)
    if low <= np.median(per) <= high:
        for i in np.flatnonzero((per < low) | (per > high)).tolist():
            found.setdefault(i, f"10^{per[i]:.1f} tokens per parameter")
    off = off - np.median(off)
    for i in np.flatnonzero(np.abs(off) >= OFF_6ND).tolist():
        found.setdefault(i, f"C/(6ND) is 10^{off[i]:+.1f} of the median row's")
    if np.median(rows.L) <= CEILING:
        for i in np.flatnonzero(rows.L > CEILING).tolist():
            text = f"{letters.names['L']} = {rows.L[i]:.4g} is more than a uniform guess loses"
            found.setdefault(i, text)
    return dict(sorted(found.items()))


def _loss_unit(rows: Rows, name: str, stated: str) -> tuple[LossUnit, str | None]:
    """Unit of the losses, and what speaks against nats per token (None: nothing).

    `stated` is the unit in the file's metadata. Without any doubt nats per token are taken, as
    the option asks for them.
    """
    values = _no_loss(rows)
    if values:
        return "unknown", values
    text = CAMEL.sub("_", name).lower()
    bits = "looks like bits: E and the population prior are in nats per token"
    if "bit" in stated.lower():
        return "bits", f"{bits} (its unit is {stated!r})"
    if stated and stated != "nats/token":
        return "unknown", f"has unit {stated!r}: E is in that unit"
    if stated:
        return "nats/token", None
    if BITS.search(text):
        return "bits", bits
    if SCORE.search(text):
        return "unknown", "is by its name no loss in nats per token"
    if rows.L.max() < FLOOR:
        return "unknown", (
            f"stays below {FLOOR:g}, where text at nats per token stays above 1.3: "
            "nats per character or byte, or a source of low entropy"
        )
    return "nats/token", None


def _no_loss(rows: Rows) -> str | None:
    """What the values look like where they cannot be a mean log loss."""
    if np.median(rows.L) > CEILING:
        return (
            f"has a median of {np.median(rows.L):.3g}, and a uniform guess among a million tokens "
            "loses 13.8 nats: perplexities? Their logarithm is the loss"
        )
    compute = np.log(rows.N) + np.log(rows.D)
    if np.ptp(compute) < np.log(SPREAD):
        return None
    correlation = float(pd.Series(compute).rank().corr(pd.Series(rows.L).rank()))
    if correlation <= RISING:
        return None
    what = "accuracies" if rows.L.max() <= 1 else "accuracies or other scores"
    return f"rises with N and D (rank correlation {correlation:.2f}): {what}? A loss falls"
