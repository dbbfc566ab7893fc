"""Read the rows of a study, check them, and name every row that is left out and why."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.read import DataError, missing_columns, read_config, read_curves, read_table

MIN_STEPS = 500  # a shorter run has not left its warm-up regime: its loss is not on the law
MIN_ROWS = 6  # five parameters and one degree of freedom
SAME = 0.01  # sizes, and horizons, closer than 1 % count as one (rounding to whole steps)

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
class Columns:
    """Which columns of the source hold N, D, L, C and the trunk; None: the sweep's own."""

    n: str | None = None
    d: str | None = None
    loss: str | None = None
    flops: str | None = None
    trunk: str | None = None


@dataclass(frozen=True)
class Rows:
    """Observations as arrays of one length: N parameters, D tokens, C FLOPs, L loss."""

    N: np.ndarray
    D: np.ndarray
    C: np.ndarray
    L: np.ndarray
    trunk: np.ndarray  # int code; rows of one trunk share their noise

    def __len__(self) -> int:
        return len(self.N)

    def take(self, mask: np.ndarray) -> "Rows":
        """The rows where `mask` is true."""
        return Rows(self.N[mask], self.D[mask], self.C[mask], self.L[mask], self.trunk[mask])

    @property
    def size(self) -> np.ndarray:
        """Index of the row's size: values of N within 1 % count as one size."""
        return _levels(self.N)

    @property
    def horizon(self) -> np.ndarray:
        """Index of the row's token budget: values of D within 1 % count as one horizon."""
        return _levels(self.D)


@dataclass(frozen=True)
class Study:
    """A checked source: `rows`, and `used` (the same rows as a frame), carry the law."""

    name: str
    source: str
    is_sweep: bool
    table: pd.DataFrame
    used: pd.DataFrame
    rows: Rows
    holdout: np.ndarray
    excluded: tuple[dict[str, str], ...]
    flagged: tuple[dict[str, str], ...]
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
    frame, schema, units, results = read_table(path)
    is_sweep = schema is not None
    if is_sweep:
        _check_sweep(results, frame, units, columns)
    names, notes, derive_d = _resolve_columns(results, frame, columns, is_sweep)
    table = frame.copy()
    table.insert(0, "row", _row_ids(frame))
    for letter, name in names.items():
        table[letter] = _float64(frame[name]) if name else np.nan
    if derive_d:
        table["D"] = table["C"] / (6 * table["N"])
    flops_known = bool(names["C"])
    if not flops_known:
        table["C"] = 6 * table["N"] * table["D"]
    for name in ("steps", "epochs", "val_loss_se"):
        if name in table:
            table[name] = _float64(frame[name])
    table["trunk"], trunk_note = _trunks(frame, columns, is_sweep)
    notes.append(trunk_note)

    reasons = _reasons(table, frame, names, is_sweep)
    flagged = _flags(table)
    excluded = tuple({"row": table["row"].iloc[i], "reason": r} for i, r in sorted(reasons.items()))
    keep = np.array([i not in reasons for i in range(len(table))], dtype=bool)
    used = table[keep].reset_index(drop=True)
    codes = pd.factorize(used["trunk"])[0]
    rows = Rows(*(used[k].to_numpy(float) for k in "NDCL"), trunk=codes)
    holdout = np.zeros(len(used), bool)
    if "holdout" in used:
        yes = used["holdout"].astype(str).str.lower().isin({"true", "1", "1.0", "yes"})
        holdout = yes.to_numpy(bool)
    _refuse_if_too_few(results, table, reasons, holdout, len(rows))
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
        flagged=flagged,
        units={
            "N": f"parameters ({names['N']})",
            "D": "tokens (C/6N)" if derive_d else f"tokens ({names['D']})",
            "C": f"FLOPs ({names['C'] or '6ND'})",
            "L": f"{units.get(names['L'], '') or 'nats/token'} ({names['L']})",
        },
        notes=tuple(notes),
        flops_known=flops_known,
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
    mapped = {"n_total": columns.n, "tokens": columns.d, "val_loss": columns.loss}
    mapped |= {"flops_exact": columns.flops, "trunk_id": columns.trunk}
    missing = [c for c in REQUIRED if c not in frame and not mapped.get(c)]
    if missing:
        raise DataError(missing_columns(file, missing, list(frame.columns)))
    for name, unit in REQUIRED.items():
        found = units.get(name, "")
        if unit and found and found != unit:
            raise DataError(
                f"{file}: column {name} has unit {found!r}, the law needs {unit!r}; "
                "convert the column or correct its metadata"
            )


def _resolve_columns(
    file: Path, frame: pd.DataFrame, columns: Columns, is_sweep: bool
) -> tuple[dict[str, str], list[str], bool]:
    """Column of each letter ("": not in the file), notes for the reader, whether D is C/6N."""
    names = {
        "N": columns.n or "n_total",
        "D": columns.d or "tokens",
        "L": columns.loss or "val_loss",
        "C": columns.flops or ("flops_exact" if "flops_exact" in frame else ""),
    }
    notes = []
    derive_d = not columns.d and bool(columns.flops) and "tokens" not in frame
    wanted = [n for k, n in names.items() if n and not (derive_d and k == "D")]
    missing = [n for n in wanted if n not in frame]
    if columns.trunk and columns.trunk not in frame:
        missing.append(columns.trunk)
    if missing:
        raise DataError(missing_columns(file, missing, [str(c) for c in frame.columns]))
    if derive_d:
        names["D"] = ""
        notes.append("D is not in the file: D = C/(6N)")
    if not names["C"]:
        notes.append("compute is not in the file: C = 6ND")
    elif is_sweep and frame[names["C"]].isna().all():
        names["C"] = ""
        notes.append("compute is empty in the file: C = 6ND")
    return names, notes, derive_d


def _row_ids(frame: pd.DataFrame) -> list[str]:
    ids = frame["run_id"] if "run_id" in frame else pd.Series([None] * len(frame), dtype=object)
    return [str(v) if isinstance(v, str) and v else f"row {i + 1}" for i, v in enumerate(ids)]


def _float64(column: pd.Series) -> np.ndarray:
    """The column as float64 before any product: N·D of int64 columns overflows."""
    return pd.to_numeric(column, errors="coerce").astype("float64").to_numpy()


def _trunks(frame: pd.DataFrame, columns: Columns, is_sweep: bool) -> tuple[pd.Series, str]:
    """Label of the rows that share one training trunk, and how it was found."""
    name = columns.trunk or ("trunk_id" if "trunk_id" in frame else None)
    if name and not frame[name].isna().any():
        return frame[name].astype(str), f"rows are grouped in trunks by {name}"
    n = columns.n or "n_total"
    by = [c for c in (n, "seed", "arm") if c in frame]
    label = frame[by].astype(str).agg("/".join, axis=1)
    return label, f"no trunk column: rows with the same {', '.join(by)} share a trunk"


def _reasons(
    table: pd.DataFrame, frame: pd.DataFrame, names: dict[str, str], is_sweep: bool
) -> dict[int, str]:
    """Position -> why the row is not used; the first rule that applies names the reason."""
    said = {"diverged": "diverged", "failed": "failed", "unplanned": "no longer in the plan"}
    reasons: dict[int, str] = {}
    seen: dict[tuple, str] = {}
    for i, row in enumerate(table.to_dict("records")):
        status, arm = row.get("status", "ok"), row.get("arm", "main")
        # A foreign table's own words in such columns mean nothing here.
        if status in said or (is_sweep and status != "ok"):
            why = row.get("reason")
            text = said.get(status, f"status {status}")
            reasons[i] = text + (f": {why}" if isinstance(why, str) and why else "")
            continue
        if is_sweep and arm != "main":
            reasons[i] = f"another recipe (arm {arm})"
            continue
        for letter in "NDLC":
            value = row[letter]
            if not np.isfinite(value) or value <= 0:
                column = names[letter] or {"C": "6ND", "D": "C/6N"}[letter]
                raw = frame[column].iloc[i] if column in frame else value
                reasons[i] = f"{column} is not a positive finite number: {raw}"
                break
        if i in reasons:
            continue
        if "steps" in row and row["steps"] < MIN_STEPS:
            reasons[i] = f"too few steps: {row['steps']:.0f} < {MIN_STEPS}"
            continue
        key = (row["N"], row["D"], row["L"], row["trunk"], str(row.get("seed")))
        if key in seen:
            reasons[i] = f"exact duplicate: of {seen[key]}"
        seen.setdefault(key, row["row"])
    return reasons


def _flags(table: pd.DataFrame) -> tuple[dict[str, str], ...]:
    """Doubts about rows; only too_few_steps also takes the row out of the fit."""
    flags = []
    for row in table.to_dict("records"):
        if "steps" in row and row["steps"] < MIN_STEPS:
            text = f"{row['steps']:.0f} optimiser steps, fewer than {MIN_STEPS}; not used"
            flags.append({"row": row["row"], "flag": "too_few_steps", "reason": text})
        if row.get("epochs", 0) > 1.0 + 1e-9:
            text = f"{row['epochs']:.2f} epochs: repeated tokens are worth less than new ones"
            flags.append({"row": row["row"], "flag": "repeated_data", "reason": text})
        se = row.get("val_loss_se")
        if se is not None and np.isfinite(se) and row["L"] > 0 and se > 0.01 * row["L"]:
            text = f"standard error of the evaluation is {se / row['L']:.1%} of the loss"
            flags.append({"row": row["row"], "flag": "coarse_evaluation", "reason": text})
    return tuple(flags)


def _refuse_if_too_few(
    file: Path, table: pd.DataFrame, reasons: dict[int, str], holdout: np.ndarray, n: int
) -> None:
    dropped = reason_counts(tuple({"reason": r} for r in reasons.values()))
    listed = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
    if len(table) and "status" in table and table["status"].isin(["diverged", "failed"]).all():
        ends = "; ".join(
            f"{row} {why}"
            for row, why in list(zip(table["row"], reasons.values(), strict=True))[:12]
        )
        raise DataError(
            f"{file}: none of the {len(table)} runs ended with a loss ({listed}): {ends}; "
            "lower the learning rate or read the logs, then run the sweep again",
            exit_code=1,
        )
    fitted = n - int(holdout.sum())
    if fitted < MIN_ROWS:
        raise DataError(
            f"{file}: {fitted} usable rows of {len(table)}, a law needs at least {MIN_ROWS}"
            + (f" ({int(holdout.sum())} held out)" if holdout.any() else "")
            + (f"; left out: {listed}" if listed else "")
            + "; add sizes or horizons to the grid and run it again"
        )


def _levels(values: np.ndarray) -> np.ndarray:
    """Index of each value's level in ascending order; neighbours closer than SAME are one level."""
    if not len(values):
        return np.zeros(0, int)
    order = np.argsort(values)
    step = np.diff(np.log(values[order])) > SAME
    levels = np.empty(len(values), int)
    levels[order] = np.concatenate([[0], np.cumsum(step)])
    return levels


def _provenance(table: pd.DataFrame) -> dict[str, str]:
    """What the rows say about where they come from: distinct values, joined."""
    found = {}
    names = "git_commit git_dirty source data_sha256 val_sha256 tokenizer_sha256 device dtype torch"
    for name in (*names.split(), "preset", "optimizer", "schedule", "parameterisation"):
        if name in table:
            values = [str(v) for v in table[name].dropna().unique()]
            if values:
                found[name] = ", ".join(values[:6])
    for name, pick in (("started", "min"), ("finished", "max")):
        if name in table and table[name].notna().any():
            found[name] = str(getattr(table[name].dropna(), pick)())
    for name in ("seconds", "cpu_seconds"):
        if name in table and table[name].notna().any():
            found[name] = f"{_float64(table[name])[table[name].notna()].sum():.0f}"
    return found
