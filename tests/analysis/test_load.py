"""Reading a study: what is used, what is left out and why, and what is refused."""

import ast
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from foreign import MAPPED, csv, grid
from synthetic import Plan, results_frame, write_parquet, write_sweep

from analysis import load as load_module
from analysis.load import REQUIRED, Columns, load
from analysis.read import RESULTS_SCHEMA, DataError


def test_a_sweep_becomes_arrays(good):
    study = load(good)
    assert (len(study.rows), len(study.train), len(study.test)) == (65, 60, 5)
    assert study.train.size.max() + 1 == 6
    assert study.train.horizon.max() + 1 == 5
    assert len(np.unique(study.train.trunk)) == 12
    assert study.units["L"] == "nats/token (val_loss)"
    assert not study.excluded
    assert study.curves is not None
    assert study.config == json.loads((good / "sweep.json").read_text())
    assert study.provenance["git_commit"] == "0123abc"
    i = int(np.flatnonzero(study.used["row"] == "t2s1h3")[0])
    row = study.table[study.table["run_id"] == "t2s1h3"].iloc[0]
    assert study.rows.N[i] == row["n_total"]
    assert study.rows.L[i] == row["val_loss"]
    assert study.rows.C[i] == row["flops_exact"]


def test_a_missing_column_is_named_with_its_neighbours_and_the_remedy(tmp_path):
    frame = results_frame(Plan()).rename(columns={"val_loss": "valid_loss"})
    folder = tmp_path / "s"
    folder.mkdir()
    write_parquet(frame, folder / "results.parquet", RESULTS_SCHEMA)
    with pytest.raises(DataError, match=r"val_loss \(nearest: .*valid_loss.*--loss COL"):
        load(folder)
    study = load(folder, Columns(loss="valid_loss"))
    assert len(study.train) == 60


def test_an_unknown_schema_is_refused_by_name(tmp_path):
    folder = tmp_path / "s"
    folder.mkdir()
    write_parquet(results_frame(Plan()), folder / "results.parquet", "results/9")
    with pytest.raises(DataError, match="'results/9', this version reads 'results/1'"):
        load(folder)


def test_another_unit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(REQUIRED, "val_loss", "bits/byte")
    frame = results_frame(Plan()).assign(other=lambda f: 2 * f["val_loss"])
    folder = write_sweep(tmp_path / "s", frame=frame)
    monkeypatch.undo()
    with pytest.raises(DataError, match="unit 'bits/byte', the law needs 'nats/token'"):
        load(folder)
    assert load(folder, Columns(loss="other")).loss_unit == "nats/token"


def test_columns_of_one_name_are_refused(tmp_path):
    table = pa.table([[1.0], [2.0], [3.0]], names=["n", "n", "loss"])
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(DataError, match="several columns are named n; rename them"):
        load(tmp_path / "t.parquet", Columns(n="n", d="n", loss="loss"))


def test_the_index_of_a_frame_is_a_column_like_others(tmp_path):
    frame = grid().set_index("n")
    frame.to_parquet(tmp_path / "t.parquet")
    assert len(load(tmp_path / "t.parquet", MAPPED).rows) == 30


@pytest.mark.parametrize("name", ["run_id", "status", "seed", "steps", "holdout", "source", "run"])
@pytest.mark.parametrize("cells", [[[1, 2], [3]] * 15, [{"a": 1}] * 30, [True, None] * 15])
def test_columns_that_nobody_asked_for_may_hold_anything(tmp_path, name, cells):
    table = pa.Table.from_pandas(grid()).append_column(name, pa.array(cells))
    pq.write_table(table, tmp_path / "t.parquet")
    study = load(tmp_path / "t.parquet", MAPPED)
    assert len(study.rows) == 30


def test_too_few_rows_are_refused_with_the_count_of_reasons(tmp_path):
    frame = results_frame(Plan(sizes=(5e4, 1e5), horizons=(1e6, 2e6, 4e6), repeats=1, holdout=()))
    frame.loc[0, "status"] = "failed"
    with pytest.raises(DataError, match=r"5 usable rows of 6, .* at least 6; left out: 1 failed"):
        load(write_sweep(tmp_path / "s", frame=frame))


def test_all_runs_diverged_is_no_bad_input_but_no_law(tmp_path):
    frame = results_frame(Plan())
    frame["status"], frame["reason"], frame["val_loss"] = "diverged", "loss is nan", np.nan
    with pytest.raises(DataError, match=r"none of the 65 runs .* \(65 diverged\)") as caught:
        load(write_sweep(tmp_path / "s", frame=frame))
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("missing.csv", None, "no such file"),
        ("empty.csv", b"", "not a readable CSV"),
        ("bad.parquet", b"PAR0 nothing", "not a parquet file"),
        ("binary.csv", b"\xff\xfe\x00\x01\x80", "not a readable CSV|lacks columns"),
        ("header.csv", b"n_total,tokens,val_loss\n", "0 usable rows of 0"),
        ("semicolon.csv", b"n;d;loss\n1;2;3\n", "separated by ';', not by commas"),
        ("shifted.csv", b"n,d,loss\n1,2,3,4\n4,5,6,7\n", "more cells than the header has names"),
        ("ragged.csv", b"n,d,loss\n1,2,3\n4,5,6,7\n", "not a readable CSV"),
    ],
)
def test_files_that_are_no_table_are_refused(tmp_path, name, content, text):
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=text):
        load(file)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"has no results\.parquet; collect it"):
        load(tmp_path)


@pytest.mark.parametrize("column", ["n", "d", "loss"])
@pytest.mark.parametrize(
    ("cells", "text"),
    [
        (["12B"] * 30, "holds no numbers, e.g. '12B' in row 1; write plain numbers"),
        ([True, False] * 15, "holds true/false, e.g. True in row 1"),
        (pd.date_range("2026-01-01", periods=30), "holds no numbers, e.g. 2026-01-01 00:00:00"),
    ],
)
def test_a_column_without_numbers_is_refused(tmp_path, column, cells, text):
    grid().assign(**{column: cells}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match=f"column {column} {text}"):
        load(tmp_path / "t.parquet", MAPPED)


def test_equal_losses_are_refused(tmp_path):
    with pytest.raises(
        DataError, match=r"all 30 losses to fit are 2.5 \(column loss\).*--loss COL"
    ):
        load(csv(tmp_path, grid().assign(loss=2.5)), MAPPED)


def test_five_rows_and_no_rows_are_refused_with_what_is_wrong(tmp_path):
    with pytest.raises(DataError, match="5 usable rows of 5, a law needs at least 6"):
        load(csv(tmp_path, grid(1, 5)), MAPPED)
    text = r"0 usable rows of 30.*30 loss is not a positive .* \(first row 1: -1.0\); correct these"
    with pytest.raises(DataError, match=text):
        load(csv(tmp_path, grid().assign(loss=-1.0)), MAPPED)


@pytest.mark.parametrize(("sizes", "horizons"), [(1, 8), (8, 1), (4, 2)])
def test_one_size_and_two_horizons_are_answers(tmp_path, sizes, horizons):
    study = load(csv(tmp_path, grid(sizes, horizons)), MAPPED)
    assert study.rows.size.max() + 1 == sizes
    assert study.rows.horizon.max() + 1 == horizons
    assert not study.excluded


def test_words_in_the_column_holdout_are_not_taken_for_false_in_silence(tmp_path):
    frame = grid().assign(holdout=["yes"] * 5 + ["test"] * 2 + [""] * 23)
    study = load(csv(tmp_path, frame), MAPPED)
    assert len(study.test) == 5
    assert (
        "column holdout has 2 values that are neither true nor false (first 'test' in row 6): "
        "these rows are fitted"
    ) in study.notes


def test_unique_tokens_of_a_sweep_are_used_where_every_row_has_them(tmp_path):
    frame = results_frame(Plan()).assign(unique_tokens=lambda f: f["tokens"])
    study = load(write_sweep(tmp_path / "s", frame=frame))
    assert pytest.approx(study.rows.D) == study.rows.U
    assert study.test.U is not None
    frame.loc[3, "unique_tokens"] = np.nan
    study = load(write_sweep(tmp_path / "s", frame=frame))
    assert study.rows.U is None
    assert "unique tokens are not known in 1 of 65 rows (first t0s0h3): not used" in study.notes


def test_loading_needs_neither_scipy_nor_matplotlib():
    for file in ["read", "rows", "columns", "units", "checks", "load", "conventions"]:
        tree = ast.parse(
            (Path(load_module.__file__).parent / f"{file}.py").read_text(encoding="utf-8")
        )
        names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        names |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
        roots = {name.split(".")[0] for name in names}
        assert not roots & {"scipy", "matplotlib", "torch", "experiments", "minigpt"}
