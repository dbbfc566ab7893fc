"""What the sweep writes is what the analysis needs: stated once on each side, tested here."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis import circuits, circuittables, samples
from analysis.load import REQUIRED, load
from analysis.read import (
    CIRCUIT_COLUMNS,
    CIRCUITS_SCHEMA,
    CURVE_COLUMNS,
    CURVES_SCHEMA,
    RESULTS_SCHEMA,
    SAMPLE_COLUMNS,
    SAMPLES_SCHEMA,
)
from experiments import schema, store

# A row that a sweep could write; every other column may be null.
ROW = {
    "arm": "main",
    "status": "ok",
    "holdout": False,
    "n_total": 50_000,
    "steps": 1000,
    "epochs": 0.1,
    "val_loss": 2.0,
    "val_loss_se": 0.001,
    "seed": 0,
}


@pytest.mark.parametrize(
    ("written", "needed"),
    [
        (schema.RESULTS, REQUIRED),
        (schema.CURVES, CURVE_COLUMNS),
        (schema.SAMPLES, SAMPLE_COLUMNS),
        (schema.CIRCUITS, CIRCUIT_COLUMNS),
    ],
    ids=["results", "curves", "samples", "circuits"],
)
def test_every_needed_column_is_written_in_the_needed_unit(
    written: pa.Schema, needed: Mapping[str, str]
) -> None:
    for name, unit in needed.items():
        field = written.field(name)
        assert field.metadata is not None
        if unit:
            assert field.metadata[b"unit"].decode() == unit, name


def test_the_schemas_have_the_same_names() -> None:
    assert schema.RESULTS_SCHEMA == RESULTS_SCHEMA
    assert schema.CURVES_SCHEMA == CURVES_SCHEMA
    assert schema.SAMPLES_SCHEMA == SAMPLES_SCHEMA
    assert schema.CIRCUITS_SCHEMA == CIRCUITS_SCHEMA


def test_a_file_with_the_writers_schema_is_read(tmp_path: Path) -> None:
    rows = [
        {
            **ROW,
            "run_id": f"r{n}{d}",
            "trunk_id": f"t{n}",
            "n_total": n * 10_000,
            "tokens": d * 500_000,
            "flops_exact": 6e4 * n * d * 500_000,
            "val_loss": 1.5 + 1 / n + 1 / d,
        }
        for n in (2, 4, 8)
        for d in (1, 2, 4)
    ]
    rows[0] |= {"status": "diverged", "reason": "training loss nan", "val_loss": None}
    rows[1] |= {"steps": 400}
    rows[2] |= {"arm": "lr*0.5"}
    path = tmp_path / "results.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=schema.RESULTS), path)
    study = load(path)
    assert len(study.train.N) == 6
    assert {e["row"] for e in study.excluded} == {"r21", "r22", "r24"}
    assert isinstance(study.table, pd.DataFrame)


def test_samples_with_the_writers_schema_are_read(tmp_path: Path) -> None:
    row = {"run_id": "r", "trunk_id": "t", "n_total": 9_000, "seed": 1, "tokens": 10_000}
    rows = [{**row, "prompt": "a", "text": "b"}]
    how = {"how": "greedy"}
    store.write_parquet(tmp_path / "samples.parquet", rows, schema.SAMPLES, how)
    read = samples.read(tmp_path)
    assert read is not None
    found = samples.select(*read, pd.DataFrame([{"run_id": "r", "vocab_size": 257}]))
    assert found.how == "greedy"
    (prompt,) = found.prompts
    cell = prompt.rows[0][1][0]
    assert cell is not None
    assert (prompt.text, prompt.rows[0][0], cell.D, cell.text) == ("a", "N = 9k", "D = 10k", "b")


def test_circuits_with_the_writers_schema_are_read(tmp_path: Path) -> None:
    model = {"n_total": 9_000, "n_layers": 2, "seed": 1, "layer": 1, "head": 0, "null_value": 0.01}
    structure = {"low": 0.5, "high": 0.7, "baseline": 0.2}
    rows = []
    for run, tokens, value in (("a", 10_000, 0.2), ("b", 20_000, 0.6), (None, 0, 0.01)):
        own = {**model, "run_id": run, "trunk_id": run and "t", "tokens": tokens, "value": value}
        rows.append({**own, "metric": "induction"})
        rows.append({**own, "metric": "structure_bracket", **structure})
        whole = {**own, "layer": None, "head": None}
        rows.append({**whole, "metric": "icl"})
        if run:
            rows.append({**whole, "metric": "structure_bracket", **structure})
            rows.append({**whole, "metric": "over_offset_bracket", "low": 0.1})
            rows.append({**whole, "metric": "over_untrained_bracket", "low": 0.1})
        rows.append({**own, "metric": "copying", "value": None})
    store.write_parquet(tmp_path / "circuits.parquet", rows, schema.CIRCUITS)
    read = circuits.read(tmp_path)
    assert read is not None
    runs = pd.DataFrame({"run_id": ["a", "b"], "status": "ok", "arm": "main"})
    found = circuits.select(read, runs)
    (onset,) = circuits.onsets(found)
    assert circuittables.onset(onset) == "10k to 20k"
    assert [r.emerges for r in circuits.relations(found)[2]] == [True]
    assert circuits.best(found.trained, "icl")["value"].tolist() == [0.2, 0.6]
    assert circuits.best(found.trained, "copying").empty
    assert circuits.ablations(found) == []
