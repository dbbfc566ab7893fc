"""Reading a study: what is used, what is left out and why, and what is refused."""

import ast
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic import Plan, results_frame, write_parquet, write_sweep

from analysis import load as load_module
from analysis.load import REQUIRED, Columns, load, reason_counts
from analysis.read import RESULTS_SCHEMA, DataError


def excluded(study):
    return {e["row"]: e["reason"] for e in study.excluded}


def frame_with(changes, plan=None):
    """The default rows with cells replaced: {(run_id, column): value}."""
    frame = results_frame(plan or Plan())
    for (run, column), value in changes.items():
        if not isinstance(value, str) and frame[column].dtype.kind == "i":
            frame[column] = frame[column].astype(float)
        frame.loc[frame["run_id"] == run, column] = value
    return frame


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


def test_every_row_left_out_has_its_reason(tmp_path):
    frame = frame_with(
        {
            ("t0s0h0", "status"): "diverged", ("t0s0h0", "reason"): "loss is nan at step 31",
            ("t0s0h1", "status"): "failed", ("t0s0h2", "status"): "unplanned",
            ("t1s0h0", "arm"): "lr*0.5",
            ("t1s0h1", "val_loss"): np.nan, ("t1s0h2", "val_loss"): np.inf,
            ("t1s0h3", "tokens"): 0, ("t1s0h4", "n_total"): -5,
            ("t2s0h0", "steps"): 312, ("t2s0h1", "flops_exact"): np.nan,
        }
    )  # fmt: skip
    frame = pd.concat([frame, frame[frame["run_id"] == "t5s0h1"]], ignore_index=True)
    study = load(write_sweep(tmp_path / "s", frame=frame))
    assert excluded(study) == {
        "t0s0h0": "diverged: loss is nan at step 31",
        "t0s0h1": "failed",
        "t0s0h2": "no longer in the plan",
        "t1s0h0": "another recipe (arm lr*0.5)",
        "t1s0h1": "val_loss is not a positive finite number: nan",
        "t1s0h2": "val_loss is not a positive finite number: inf",
        "t1s0h3": "tokens is not a positive finite number: 0.0",
        "t1s0h4": "n_total is not a positive finite number: -5.0",
        "t2s0h0": "too few steps: 312 < 500",
        "t2s0h1": "flops_exact is not a positive finite number: nan",
        "t5s0h1": "exact duplicate: of t5s0h1",
    }
    assert len(study.rows) + len(study.excluded) == len(frame)
    assert [f["flag"] for f in study.flagged] == ["too_few_steps"]
    assert reason_counts(study.excluded)["val_loss is not a positive finite number"] == 2


def test_repeated_data_and_coarse_evaluations_are_flagged_and_used(tmp_path):
    frame = frame_with({("t3s0h4", "epochs"): 2.5, ("t4s0h0", "val_loss_se"): 0.5})
    study = load(write_sweep(tmp_path / "s", frame=frame))
    assert [(f["row"], f["flag"]) for f in study.flagged] == [
        ("t3s0h4", "repeated_data"), ("t4s0h0", "coarse_evaluation"),
    ]  # fmt: skip
    assert len(study.rows) == len(frame)


def test_integer_columns_do_not_overflow(tmp_path):
    frame = results_frame(Plan())
    file = tmp_path / "big.csv"
    pd.DataFrame(
        {
            "n": frame["n_total"] * 10**6, "d": frame["tokens"] * 10**6, "loss": frame["val_loss"],
        }
    ).to_csv(file, index=False)  # fmt: skip
    study = load(file, Columns(n="n", d="d", loss="loss"))
    assert pytest.approx(6.0 * study.rows.N * study.rows.D, rel=1e-12) == study.rows.C
    assert study.rows.C.min() > 1e22  # beyond int64
    assert "compute is not in the file: C = 6ND" in study.notes


def test_trunks_come_from_size_seed_and_recipe_where_no_column_names_them(tmp_path):
    frame = results_frame(Plan()).drop(columns="trunk_id")
    frame.to_csv(tmp_path / "t.csv", index=False)
    study = load(tmp_path / "t.csv")
    assert len(np.unique(study.train.trunk)) == 12
    assert "no trunk column: rows with the same n_total, seed, arm share a trunk" in study.notes


def test_d_comes_from_compute_where_the_file_has_none(tmp_path):
    frame = results_frame(Plan())
    table = pd.DataFrame({"N": frame["n_total"], "C": frame["flops_exact"], "L": frame["val_loss"]})
    table.to_csv(tmp_path / "t.csv", index=False)
    study = load(tmp_path / "t.csv", Columns(n="N", flops="C", loss="L"))
    assert pytest.approx(study.rows.C / 6 / study.rows.N, rel=1e-12) == study.rows.D
    assert "D is not in the file: D = C/(6N)" in study.notes


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
    folder = write_sweep(tmp_path / "s")
    monkeypatch.undo()
    with pytest.raises(DataError, match="unit 'bits/byte', the law needs 'nats/token'"):
        load(folder)


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


def test_loading_needs_neither_scipy_nor_matplotlib():
    for file in ("load.py", "read.py"):
        tree = ast.parse((Path(load_module.__file__).parent / file).read_text(encoding="utf-8"))
        names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        names |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
        roots = {name.split(".")[0] for name in names}
        assert not roots & {"scipy", "matplotlib", "torch", "experiments", "minigpt"}
