"""Which column is N, D, L, C, U, and which rows share a training trunk."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.read import DataError, missing_columns

OWN = {"N": "n_total", "D": "tokens", "L": "val_loss", "C": "flops_exact", "U": "unique_tokens"}
FORMULA = {"N": "C/6D", "D": "C/6N", "C": "6ND"}  # of a letter that is not in the file
OPTION = {"N": "--n", "D": "--d", "L": "--loss", "C": "--flops", "U": "--unique"}
# Rows that differ in one of these are not of one training run, whatever else they share.
RECIPE = (
    "seed", "arm", "preset", "optimizer", "schedule", "lr", "peak_lr", "learning_rate",
    "lr_multiplier", "weight_decay", "wd", "bs", "batch_size", "batch_tokens",
)  # fmt: skip
RUN_NAMES = ("trunk", "run", "run_id", "run_name", "name", "exp_name", "experiment")


@dataclass(frozen=True)
class Columns:
    """Columns of N, D, L, C, the trunk and unique tokens U; None: the sweep's own."""

    n: str | None = None
    d: str | None = None
    loss: str | None = None
    flops: str | None = None
    trunk: str | None = None
    unique: str | None = None

    @property
    def mapped(self) -> dict[str, str | None]:
        """The user's column of each letter."""
        return {"N": self.n, "D": self.d, "L": self.loss, "C": self.flops, "U": self.unique}


@dataclass(frozen=True)
class Letters:
    """`arrays`: N, D, L, C, U as float64; `names`: the column of each, "" where not in the file.

    `needed`: letters that every used row must have, those read from the file first.
    """

    names: dict[str, str]
    arrays: dict[str, np.ndarray]
    needed: tuple[str, ...]
    notes: tuple[str, ...]

    def label(self, letter: str) -> str:
        """The column of a letter, or the formula in its place."""
        return self.names[letter] or FORMULA.get(letter, letter)


def letters(file: Path, frame: pd.DataFrame, columns: Columns, is_sweep: bool) -> Letters:
    """Find and read the columns; one of N, D, C may follow from C = 6ND."""
    mapped, notes = columns.mapped, []
    names = {k: mapped[k] or OWN[k] for k in OWN}
    for letter in "CU":
        if not mapped[letter] and OWN[letter] not in frame:
            names[letter] = ""
    absent = [k for k in "ND" if not mapped[k] and OWN[k] not in frame]
    if len(absent) == 1 and mapped["C"]:
        names[absent[0]] = ""
    wanted = [name for name in (*names.values(), columns.trunk or "") if name]
    missing = [name for name in dict.fromkeys(wanted) if name not in frame]
    if missing:
        raise DataError(missing_columns(file, missing, [str(c) for c in frame.columns]))
    _refuse_one_column_twice(file, names)
    if is_sweep and names["C"] and frame[names["C"]].isna().all():
        names["C"] = ""
        notes.append("compute is empty in the file: C = 6ND")
    elif not names["C"]:
        notes.append("compute is not in the file: C = 6ND")
    nothing = np.full(len(frame), np.nan)
    arrays = {k: _column(file, frame[name], name) if name else nothing for k, name in names.items()}
    with np.errstate(all="ignore"):  # impossible values are named row by row later
        if not names["C"]:
            arrays["C"] = 6 * arrays["N"] * arrays["D"]
        for letter, other in (("N", "D"), ("D", "N")):
            if not names[letter]:
                arrays[letter] = arrays["C"] / (6 * arrays[other])
                notes.append(f"{letter} is not in the file: {letter} = C/(6{other})")
    needed = [k for k in "NDLC" if names[k]] + (["U"] if mapped["U"] else [])
    needed += [k for k in FORMULA if not names[k]]
    return Letters(names, arrays, tuple(needed), tuple(notes))


def _refuse_one_column_twice(file: Path, names: dict[str, str]) -> None:
    seen: dict[str, str] = {}
    for letter in "NDLC":
        name = names[letter]
        if name and name in seen:
            raise DataError(
                f"{file}: column {name} is read as {seen[name]} and as {letter}; "
                f"name another one with {OPTION[letter]} COL"
            )
        seen[name] = letter


def _column(file: Path, column: pd.Series, name: str) -> np.ndarray:
    """The column's numbers; refused where it has values and none of them is a number."""
    values = numbers(column)
    filled = np.flatnonzero(column.notna().to_numpy())
    if len(filled) and np.isnan(values).all():
        kind = "true/false" if column.dtype == bool else "no numbers"
        first = int(filled[0])
        raise DataError(
            f"{file}: column {name} holds {kind}, e.g. {cell(column.iloc[first])} in row "
            f"{first + 1}; write plain numbers (12e9, not 12B or 12,000,000,000) or name another "
            "column"
        )
    return values


def numbers(column: pd.Series) -> np.ndarray:
    """The column as float64, before any product (N·D of int64 overflows); nan: not a number."""
    if pd.api.types.is_bool_dtype(column.dtype):
        return np.full(len(column), np.nan)
    if pd.api.types.is_numeric_dtype(column.dtype):
        return column.to_numpy(dtype="float64", na_value=np.nan)
    cells = column.astype(object)
    plain = cells.map(lambda v: np.isscalar(v) or type(v).__name__ == "Decimal")
    plain &= ~cells.map(lambda v: isinstance(v, bool | np.bool_))
    return pd.to_numeric(cells.where(plain), errors="coerce").astype("float64").to_numpy()


def cell(value: object) -> str:
    """A cell as a message shows it: text in quotes, at most 40 characters."""
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 40 else text[:39] + "…"


def row_ids(frame: pd.DataFrame) -> np.ndarray:
    """A name for each row that no other row has: run_id, else its number below the header."""
    number = np.array([f"row {i + 1}" for i in range(len(frame))], dtype=object)
    if "run_id" not in frame:
        return number
    names = frame["run_id"].astype(object)
    named = names.map(lambda v: isinstance(v, str) and v != "").to_numpy(bool)
    again = named & names.where(named).duplicated().to_numpy()
    ids = np.where(named, names.to_numpy(), number)
    ids[again] = [f"{name} ({row})" for name, row in zip(ids[again], number[again], strict=True)]
    return ids


def trunks(frame: pd.DataFrame, letters: Letters, columns: Columns) -> tuple[pd.Series, str]:
    """Label of the rows that share one training trunk, and how it was found."""
    name = columns.trunk or ("trunk_id" if "trunk_id" in frame else None)
    by = [c for c in RECIPE if c in frame and len(set(frame[c].astype(str))) > 1]
    label = pd.Series(np.char.mod("%.9g", letters.arrays["N"]), index=frame.index, dtype=object)
    for column in by:
        label = label + "/" + frame[column].astype(str).astype(object)
    how = ", ".join((f"the same {letters.names['N'] or 'N'}", *by))
    if not name:
        return label, how
    return frame[name].astype(str).where(frame[name].notna(), label), how


def trunk_note(frame: pd.DataFrame, trunk: pd.Series, how: str, columns: Columns) -> str:
    """How the used rows of `frame` were grouped, and what it rests on where no column says."""
    name = columns.trunk or ("trunk_id" if "trunk_id" in frame else None)
    if name:
        empty = int(frame[name].isna().sum())
        text = f"rows are grouped in trunks by {name}"
        return text + (f"; {empty} rows without one by {how}" if empty else "")
    size = trunk.groupby(trunk).transform("size")
    shared, groups = int((size > 1).sum()), trunk.nunique()
    text = f"no trunk column: rows with {how} share a trunk"
    text += f" ({shared} of {len(trunk)} rows share one, {groups} trunks)"
    if shared <= len(trunk) / 2:
        text += "; N differs from row to row, so most rows are a trunk of their own"
    elif "seed" not in frame:
        text += (
            "; no column names the run, and rows of one run taken as independent would make "
            "intervals too narrow"
        )
    likely = [
        c for c in RUN_NAMES if c in frame and 1 < len(set(frame[c].astype(str))) < len(frame)
    ]
    return text + (f"; if {likely[0]} names the run, give --trunk {likely[0]}" if likely else "")
