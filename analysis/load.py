"""Read the rows of a study, check them, and name every row that is left out and why."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from analysis import checks, units
from analysis.columns import OWN, Columns, letters, numbers, row_ids, trunk_note, trunks
from analysis.read import DataError, missing_columns, read_config, read_curves, read_table
from analysis.rows import Rows

MIN_ROWS = 6  # five parameters and one degree of freedom
EQUAL = 1e-6  # losses that all lie closer are one number: no run is reproduced to more digits

# What the analysis needs of results.parquet: column -> unit ("" for labels and flags).
REQUIRED: Mapping[str, str] = {
    "run_id": "",
    "trunk_id": "",
    "arm": "",
    "seed": "",
    "status": "",
    "reason": "",
    "holdout": "",
    "n_total": "parameters",
    "tokens": "tokens",
    "steps": "",
    "epochs": "",
    "flops_exact": "FLOP",
    "val_loss": "nats/token",
    "val_loss_se": "nats/token",
}


@dataclass(frozen=True)
class Study:
    """A checked source: `rows`, and `used` (the same rows as a frame), carry the law.

    `columns` has the column, or formula, of N, D, L, C, U; `units` the same for a reader.
    """

    name: str
    source: str
    is_sweep: bool
    table: pd.DataFrame
    used: pd.DataFrame
    rows: Rows
    holdout: np.ndarray
    excluded: tuple[dict[str, str], ...]
    flagged: tuple[dict[str, str], ...]
    columns: dict[str, str]
    loss_unit: units.LossUnit
    units: dict[str, str]
    notes: tuple[str, ...]
    flops_known: bool
    curves: pd.DataFrame | None = None
    config: dict | None = None
    provenance: dict[str, str] = field(default_factory=dict)

    @property
    def train(self) -> Rows:
        """The rows a law is fitted to."""
        return self.rows.take(~self.holdout)

    @property
    def test(self) -> Rows:
        """The held-out rows: predicted, never fitted."""
        return self.rows.take(self.holdout)


def load(source: Path | str, columns: Columns | None = None) -> Study:
    """Read a sweep folder, a parquet or a CSV; DataError where no law can come of it."""
    path, columns = Path(source), columns or Columns()
    frame, schema, stated, file = read_table(path)
    is_sweep = schema is not None
    if is_sweep:
        _check_sweep(file, frame, stated, columns)
    found = letters(file, frame, columns, is_sweep)
    table = frame.assign(row=row_ids(frame), **found.arrays)
    for name in ("steps", "epochs", "val_loss_se"):
        if name in table:
            table[name] = numbers(frame[name])
    table["trunk"], grouped_by = trunks(frame, found, columns)
    why = checks.reasons(table, frame, found, is_sweep)
    keep = why.isna().to_numpy()
    used = table[keep].reset_index(drop=True)
    excluded = tuple(
        {"row": row, "reason": reason}
        for row, reason in zip(table["row"][~keep], why[~keep], strict=True)
    )
    holdout, holdout_note = _holdout(used)
    _refuse(file, table, excluded, used["L"].to_numpy()[~holdout], found.names["L"])
    U, unique_note = _unique(used)
    codes = pd.factorize(used["trunk"])[0]
    rows = Rows(*(used[k].to_numpy(float) for k in "NDCL"), trunk=codes, U=U)
    doubts = units.doubts(rows, used["row"].tolist(), found, stated)
    grouping = trunk_note(frame[keep], table["trunk"][keep], grouped_by, columns)
    folder = path if path.is_dir() else path.parent
    return Study(
        name=path.resolve().name if path.is_dir() else path.stem,
        source=str(source),
        is_sweep=is_sweep,
        table=table,
        used=used,
        rows=rows,
        holdout=holdout,
        excluded=excluded,
        flagged=checks.flags(table) + doubts.flagged,
        columns={k: found.label(k) for k in found.names},
        loss_unit=doubts.loss_unit,
        units=units.labels(found, stated, doubts.loss_unit),
        notes=(*found.notes, grouping, *holdout_note, *unique_note, *doubts.notes),
        flops_known=bool(found.names["C"]),
        curves=read_curves(folder / "curves.parquet") if is_sweep else None,
        config=read_config(folder / "sweep.json") if is_sweep else None,
        provenance=_provenance(table),
    )


def reason_counts(excluded: tuple[dict[str, str], ...]) -> dict[str, int]:
    """Rows left out per reason (the text before its colon), most frequent first."""
    kinds = Counter(e["reason"].split(":")[0] for e in excluded)
    return dict(kinds.most_common())


def _check_sweep(file: Path, frame: pd.DataFrame, units: dict[str, str], columns: Columns) -> None:
    """Refuse a results.parquet that lacks a required column or states another unit for one."""
    elsewhere = {OWN[letter] for letter, name in columns.mapped.items() if name}
    elsewhere |= {"trunk_id"} if columns.trunk else set()
    missing = [c for c in REQUIRED if c not in frame and c not in elsewhere]
    if missing:
        raise DataError(missing_columns(file, missing, list(frame.columns)))
    for name, unit in REQUIRED.items():
        found = units.get(name, "")
        if unit and found and found != unit and name not in elsewhere:
            raise DataError(
                f"{file}: column {name} has unit {found!r}, the law needs {unit!r}; "
                "convert the column or correct its metadata"
            )


def _holdout(used: pd.DataFrame) -> tuple[np.ndarray, list[str]]:
    """Which rows the column holdout keeps out of every fit, and a note on words it cannot read."""
    if "holdout" not in used:
        return np.zeros(len(used), bool), []
    words = used["holdout"].astype(object).fillna("").astype(str).str.lower()
    yes = words.isin(["true", "1", "1.0", "yes"]).to_numpy(bool)
    odd = words[~yes & ~words.isin(["false", "0", "0.0", "no", ""])]
    if odd.empty:
        return yes, []
    return yes, [
        f"column holdout has {len(odd)} values that are neither true nor false (first "
        f"{odd.iloc[0]!r} in {used['row'].iloc[odd.index[0]]}): these rows are fitted"
    ]


def _refuse(
    file: Path, table: pd.DataFrame, excluded: tuple[dict[str, str], ...], L: np.ndarray, loss: str
) -> None:
    """Refuse rows no law can be fitted to; `L` are the losses to fit."""
    counts = reason_counts(excluded)
    first = {e["reason"].split(":")[0]: e for e in reversed(excluded)}
    listed = "; ".join(
        f"{count} {kind} (first {first[kind]['row']}{first[kind]['reason'][len(kind) :]})"
        for kind, count in counts.items()
    )
    if len(table) and "status" in table and table["status"].isin(["diverged", "failed"]).all():
        ends = "; ".join(f"{e['row']} {e['reason']}" for e in excluded[:12])
        total = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        raise DataError(
            f"{file}: none of the {len(table)} runs ended with a loss ({total}): {ends}; "
            "lower the learning rate or read the logs, then run the sweep again",
            exit_code=1,
        )
    held = len(table) - len(excluded) - len(L)
    if len(L) < MIN_ROWS:
        raise DataError(
            f"{file}: {len(L)} usable rows of {len(table)}, a law needs at least {MIN_ROWS}"
            + (f" ({held} held out)" if held else "")
            + (f"; left out: {listed}" if listed else "")
            + "; correct these rows, or add sizes or horizons and run the grid again"
        )
    if L.max() <= L.min() * (1 + EQUAL):
        raise DataError(
            f"{file}: all {len(L)} losses to fit are {L[0]:.6g} (column {loss}), so there is "
            "nothing to fit; name another column with --loss COL, or add runs that differ"
        )


def _unique(used: pd.DataFrame) -> tuple[np.ndarray | None, list[str]]:
    """Unique tokens, None where they are not known for every row, and a note on the missing."""
    U = used["U"].to_numpy(float)
    known = np.isfinite(U) & (U > 0)
    if known.all():
        return U, []
    if not known.any():
        return None, []
    gaps = np.flatnonzero(~known)
    return None, [
        f"unique tokens are not known in {len(gaps)} of {len(U)} rows (first "
        f"{used['row'].iloc[gaps[0]]}): not used"
    ]


def _provenance(table: pd.DataFrame) -> dict[str, str]:
    """What the rows say about where they come from: distinct values, joined."""
    found = {}
    names = "git_commit git_dirty source data_sha256 val_sha256 tokenizer_sha256 device dtype torch"
    for name in (*names.split(), "preset", "optimizer", "schedule", "parameterisation"):
        if name in table:
            values = list(table[name].dropna().astype(str).unique())
            if values:
                found[name] = ", ".join(values[:6])
    for name, pick in (("started", "min"), ("finished", "max")):
        if name in table and table[name].notna().any():
            found[name] = str(getattr(table[name].dropna().astype(str), pick)())
    for name in ("seconds", "cpu_seconds"):
        if name in table and table[name].notna().any():
            found[name] = f"{np.nansum(numbers(table[name])):.0f}"
    return found
