"""Which rows a law cannot be fitted to and why, and doubts about single rows."""

import numpy as np
import pandas as pd

from analysis.columns import Letters, cell

MIN_STEPS = 500  # a shorter run has not left its warm-up regime: its loss is not on the law
COARSE = 0.01  # a standard error of the evaluation above 1 % of the loss hides the law
ENDED = {"diverged": "diverged", "failed": "failed", "unplanned": "no longer in the plan"}


def reasons(
    table: pd.DataFrame, frame: pd.DataFrame, letters: Letters, is_sweep: bool
) -> pd.Series:
    """Why each row is not used, None where it is; the first rule that applies names the reason.

    `frame` is the file as it stands; `table` has its row, N, D, L, C, U, trunk and steps as read.
    """
    why = pd.Series([None] * len(table), index=table.index, dtype=object)
    _by_status(why, frame, is_sweep)
    _by_value(why, table, frame, letters)
    if "steps" in table:
        short = (why.isna() & (table["steps"] < MIN_STEPS)).to_numpy()
        why[short] = [f"too few steps: {s:.0f} < {MIN_STEPS}" for s in table["steps"][short]]
    _by_duplicate(why, table, frame, is_sweep)
    return why


def _by_status(why: pd.Series, frame: pd.DataFrame, is_sweep: bool) -> None:
    """Runs that ended without a loss, and other recipes than the main one."""
    if "status" in frame:
        status = frame["status"].astype(str)
        # A foreign table's own words in such columns mean nothing here.
        ended = (status != "ok") if is_sweep else status.isin(list(ENDED))
        notes = frame["reason"][ended] if "reason" in frame else [None] * int(ended.sum())
        why[ended.to_numpy()] = [
            ENDED.get(word, f"status {word}")
            + (f": {note}" if isinstance(note, str) and note else "")
            for word, note in zip(status[ended], notes, strict=True)
        ]
    if is_sweep and "arm" in frame:
        other = (why.isna() & (frame["arm"] != "main")).to_numpy()
        why[other] = [f"another recipe (arm {arm})" for arm in frame["arm"][other]]


def _by_value(why: pd.Series, table: pd.DataFrame, frame: pd.DataFrame, letters: Letters) -> None:
    """A missing, textual, zero, negative or infinite N, D, L, C, with column and value."""
    for letter in letters.needed:
        value = table[letter].to_numpy()
        bad = why.isna().to_numpy() & ~(np.isfinite(value) & (value > 0))
        name = letters.names[letter]
        raw = frame[name][bad] if name else table[letter][bad]
        why[bad] = [
            _value_reason(letters.label(letter), cells, number)
            for cells, number in zip(raw, value[bad], strict=True)
        ]


def _value_reason(name: str, raw: object, value: float) -> str:
    if np.isnan(value) and isinstance(raw, str | bool | np.bool_):
        return f"{name} is not a number: {cell(raw)}"
    text = f"{name} is not a positive finite number: {cell(raw)}"
    if isinstance(raw, int | np.integer) and raw < -(2**53):
        text += " (a product of 64-bit integers that overflowed?)"
    return text


def _by_duplicate(why: pd.Series, table: pd.DataFrame, frame: pd.DataFrame, is_sweep: bool) -> None:
    """Rows that repeat an earlier one; only a seed of its own makes a repeat an observation."""
    left = np.flatnonzero(why.isna())
    key = table.iloc[left][["N", "D", "L", "C", "U", "trunk"]].copy()
    if "seed" in frame:
        key["seed"] = frame["seed"].iloc[left].astype(str)
    group = key.groupby(list(key), sort=False, dropna=False).ngroup().to_numpy()
    _, first = np.unique(group, return_index=True)
    again = np.flatnonzero(first[group] != np.arange(len(left)))
    remedy = "" if is_sweep or "seed" in frame else " (a true repeat needs a column named seed)"
    ids = table["row"].to_numpy()[left]
    why.iloc[left[again]] = [f"exact duplicate: of {ids[first[group[i]]]}{remedy}" for i in again]


def flags(table: pd.DataFrame) -> tuple[dict[str, str], ...]:
    """Doubts about rows, in their order; only too_few_steps also takes the row out of the fit."""
    rows, L = table["row"].to_numpy(), table["L"].to_numpy()
    nothing = np.full(len(table), np.nan)
    steps, epochs, se = (
        table[c].to_numpy() if c in table else nothing for c in ("steps", "epochs", "val_loss_se")
    )
    with np.errstate(all="ignore"):
        if "epochs" not in table:
            epochs = table["D"].to_numpy() / table["U"].to_numpy()
        share = np.where(L > 0, se / L, np.nan)
    found = []
    for i in np.flatnonzero(steps < MIN_STEPS):
        text = f"{steps[i]:.0f} optimiser steps, fewer than {MIN_STEPS}; not used"
        found.append((i, "too_few_steps", text))
    for i in np.flatnonzero(epochs > 1.0 + 1e-9):
        text = f"{epochs[i]:.2f} epochs: repeated tokens are worth less than new ones"
        found.append((i, "repeated_data", text))
    for i in np.flatnonzero(np.isfinite(share) & (share > COARSE)):
        text = f"standard error of the evaluation is {share[i]:.1%} of the loss"
        found.append((i, "coarse_evaluation", text))
    found.sort(key=lambda item: item[0])
    return tuple({"row": rows[i], "flag": flag, "reason": text} for i, flag, text in found)
