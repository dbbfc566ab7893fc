"""Files of a study as frames: sweep folder, parquet or CSV, with its schema and units checked."""

import difflib
import json
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

RESULTS_SCHEMA = "results/1"
CURVES_SCHEMA = "curves/1"
CIRCUITS_SCHEMA = "circuits/1"
SAMPLES_SCHEMA = "samples/1"
# What is needed of the files beside the results: column -> unit; "" for labels and scores, and for
# curves, whose losses are in the unit of the results, which the user may have chosen.
CURVE_COLUMNS: Mapping[str, str] = dict.fromkeys(
    ("run_id", "trunk_id", "step", "tokens", "flops_exact", "train_loss", "val_loss"), ""
)
CIRCUIT_COLUMNS: Mapping[str, str] = {
    "run_id": "",
    "trunk_id": "",
    "n_total": "parameters",
    "n_layers": "",
    "seed": "",
    "tokens": "tokens",
    "layer": "",
    "head": "",
    "metric": "",
    "value": "",
    "low": "",
    "high": "",
    "null_value": "",
    "baseline": "",
}
SAMPLE_COLUMNS: Mapping[str, str] = {
    "run_id": "",
    "n_total": "parameters",
    "seed": "",
    "tokens": "tokens",
    "prompt": "",
    "text": "",
}


class DataError(ValueError):
    """Data that cannot carry a law: one message with file, column or row, value, rule, remedy.

    `exit_code` is 2 for bad input, 1 where the runs themselves ended without a result.
    """

    def __init__(self, message: str, exit_code: int = 2):
        super().__init__(message)
        self.exit_code = exit_code


def read_table(path: Path) -> tuple[pd.DataFrame, str | None, dict[str, str], Path]:
    """Frame, schema name (None: a foreign table), unit per column, and the file that was read."""
    if not path.exists():
        raise DataError(
            f"{path}: no such file or folder; name a sweep folder, a parquet or a CSV file"
        )
    file = path / "results.parquet" if path.is_dir() else path
    if not file.exists():
        raise DataError(
            f"{path}: the folder has no results.parquet; collect it with "
            f"`python -m experiments.sweep collect {path}`"
        )
    if file.suffix == ".parquet":
        table = _parquet(file)
        schema = (table.schema.metadata or {}).get(b"schema", b"").decode() or None
        if schema != RESULTS_SCHEMA and (path.is_dir() or schema):
            raise DataError(
                f"{file}: schema is {schema!r}, this version reads {RESULTS_SCHEMA!r}; "
                "collect the sweep again with this version"
            )
        units = {f.name: (f.metadata or {}).get(b"unit", b"").decode() for f in table.schema}
        _refuse_equal_names(file, table.column_names)
        return table.to_pandas(ignore_metadata=True), schema, units, file
    return _csv(file), None, {}, file


def _csv(file: Path) -> pd.DataFrame:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            # One type for a column, whatever its length, and no column taken for an index.
            frame = pd.read_csv(file, low_memory=False, index_col=False)
    except pd.errors.ParserWarning as error:
        raise DataError(
            f"{file}: rows have more cells than the header has names; name every column"
        ) from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError) as error:
        raise DataError(
            f"{file}: not a readable CSV or parquet ({_first_line(error)}); "
            "give a sweep folder, a .parquet or a comma-separated .csv"
        ) from error
    if len(frame.columns) == 1 and (mark := re.search(r"[;\t|]", str(frame.columns[0]))):
        raise DataError(
            f"{file}: columns are separated by {mark.group()!r}, not by commas; save it as a "
            "comma-separated .csv or a .parquet"
        )
    return frame


def _refuse_equal_names(file: Path, names: list[str]) -> None:
    again = [name for name, count in Counter(names).items() if count > 1]
    if again:
        raise DataError(f"{file}: several columns are named {', '.join(again)}; rename them")


def _parquet(file: Path, remedy: str = "collect the sweep again") -> pa.Table:
    try:
        return pq.ParquetFile(file).read()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: not a parquet file ({_first_line(error)}); {remedy}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def missing_columns(file: Path, missing: list[str], present: list[str]) -> str:
    parts = []
    for name in missing:
        near = difflib.get_close_matches(name, present, n=3, cutoff=0.4)
        parts.append(name + (f" (nearest: {', '.join(near)})" if near else ""))
    return (
        f"{file}: lacks {'column' if len(missing) == 1 else 'columns'} {'; '.join(parts)}; it has "
        f"{', '.join(map(str, present[:40]))}; map other names with --n COL --d COL --loss COL "
        "[--flops COL] [--trunk COL] [--unique COL]"
    )


def read_curves(file: Path) -> pd.DataFrame | None:
    """The training curves beside results.parquet; None without the file."""
    table = read_beside(file, CURVES_SCHEMA, CURVE_COLUMNS, "collect the sweep again")
    return None if table is None else table.to_pandas()


def read_beside(
    file: Path, schema: str, columns: Mapping[str, str], remedy: str
) -> pa.Table | None:
    """A parquet file that stands beside the results, its columns and units checked.

    None without the file; `remedy` is what a user does about a file that cannot be read.
    """
    if not file.exists():
        return None
    table = _parquet(file, remedy)
    found = (table.schema.metadata or {}).get(b"schema", b"").decode()
    if found != schema:
        raise DataError(
            f"{file}: schema is {found!r}, this version reads {schema!r}; {remedy} with this "
            "version"
        )
    missing = [c for c in columns if c not in table.column_names]
    if missing:
        raise DataError(f"{file}: lacks columns {', '.join(missing)}; {remedy}")
    for name, unit in columns.items():
        stated = (table.schema.field(name).metadata or {}).get(b"unit", b"").decode()
        if unit and stated and stated != unit:
            raise DataError(
                f"{file}: column {name} has unit {stated!r}, this version reads {unit!r}; {remedy}"
            )
    return table


def read_config(file: Path) -> dict | None:
    if not file.exists():
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file}: not JSON ({_first_line(error)}); run the sweep again") from error
