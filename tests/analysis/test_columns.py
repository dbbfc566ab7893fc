"""Which column is which letter, and which rows are taken for one training run."""

import numpy as np
import pandas as pd
import pytest
from foreign import csv
from synthetic import Plan, results_frame

from analysis.load import Columns, load
from analysis.read import DataError


def foreign(**more):
    """The rows of the synthetic sweep under names of another study."""
    frame = results_frame(Plan())
    return pd.DataFrame(
        {"N": frame["n_total"], "D": frame["tokens"], "L": frame["val_loss"]}
        | {"C": 6.0 * frame["n_total"] * frame["tokens"]}
        | {k: v(frame) if callable(v) else v for k, v in more.items()}
    )


NDL = Columns(n="N", d="D", loss="L")


def trunk_note(study):
    return next(n for n in study.notes if "trunk" in n)


def test_d_comes_from_compute_where_the_file_has_none(tmp_path):
    study = load(csv(tmp_path, foreign()), Columns(n="N", flops="C", loss="L"))
    assert pytest.approx(foreign()["D"], rel=1e-12) == study.rows.D
    assert "D is not in the file: D = C/(6N)" in study.notes
    assert study.columns["D"] == "C/6N"
    assert study.units["D"] == "tokens (C/6N)"


def test_n_comes_from_compute_where_the_file_has_none(tmp_path):
    study = load(csv(tmp_path, foreign()), Columns(d="D", flops="C", loss="L"))
    assert pytest.approx(foreign()["N"], rel=1e-12) == study.rows.N
    assert "N is not in the file: N = C/(6D)" in study.notes
    assert len(np.unique(study.rows.trunk)) == 7  # rounding of the quotient splits no size


def test_neither_n_nor_d_is_a_missing_column(tmp_path):
    with pytest.raises(DataError, match=r"lacks columns n_total.*; tokens"):
        load(csv(tmp_path, foreign()), Columns(flops="C", loss="L"))


@pytest.mark.parametrize("option", ["n", "d", "loss", "flops", "trunk", "unique"])
def test_a_mapped_column_that_is_missing_is_named(tmp_path, option):
    columns = Columns(**{"n": "N", "d": "D", "loss": "L", option: "Lx"})
    with pytest.raises(DataError, match=r"lacks column Lx \(nearest: L\).*--unique COL"):
        load(csv(tmp_path, foreign()), columns)


def test_one_column_for_two_letters_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"column N is read as N and as D; name another .* --d COL"):
        load(csv(tmp_path, foreign()), Columns(n="N", d="N", loss="L"))


def test_the_files_own_columns_named_like_ours_do_no_harm(tmp_path):
    frame = foreign(row="x", trunk=1, U="y", holdout=False)
    frame = frame.rename(columns={"N": "D", "D": "N"})
    study = load(csv(tmp_path, frame), Columns(n="D", d="N", loss="L"))
    assert pytest.approx(foreign()["N"]) == study.rows.N
    assert study.used["row"][0] == "row 1"
    assert study.rows.U is None


def test_rows_keep_their_names_and_no_name_stands_twice(tmp_path):
    frame = foreign(run_id=["a", "a", "b", np.nan] + [f"r{i}" for i in range(61)])
    study = load(csv(tmp_path, frame), NDL)
    assert study.used["row"].tolist()[:5] == ["a", "a (row 2)", "b", "row 4", "r0"]
    assert study.used["row"].is_unique


def test_the_trunk_column_groups_rows(tmp_path):
    frame = foreign(run=lambda f: f["trunk_id"])
    study = load(csv(tmp_path, frame), Columns(n="N", d="D", loss="L", trunk="run"))
    assert len(np.unique(study.rows.trunk)) == 13
    assert trunk_note(study) == "rows are grouped in trunks by run"


def test_rows_without_a_label_are_grouped_by_size_and_said_to_be(tmp_path):
    frame = foreign(trunk_id=lambda f: f["trunk_id"].where(f["n_total"] > 50e3))
    study = load(csv(tmp_path, frame), NDL)
    assert len(np.unique(study.rows.trunk)) == 2 + 3 + 4  # sizes without, then 3 seeds, then 4
    note = "rows are grouped in trunks by trunk_id; 30 rows without one by the same N"
    assert trunk_note(study) == note


def test_trunks_come_from_size_seed_and_recipe_where_no_column_names_them(tmp_path):
    frame = results_frame(Plan()).drop(columns="trunk_id")
    study = load(csv(tmp_path, frame))
    assert len(np.unique(study.train.trunk)) == 12
    assert trunk_note(study) == (
        "no trunk column: rows with the same n_total, seed share a trunk (65 of 65 rows share one, "
        "13 trunks)"
    )
    frame["lr_multiplier"] = np.where(frame["tokens"] > 1e6, 1.0, 2.0)
    study = load(csv(tmp_path, frame))
    assert "n_total, seed, lr_multiplier share a trunk (65 of 65 rows" in trunk_note(study)
    assert len(np.unique(study.train.trunk)) == 24


def test_without_a_seed_column_rows_of_one_size_are_not_taken_as_independent(tmp_path):
    study = load(csv(tmp_path, foreign(name=lambda f: f["trunk_id"])), NDL)
    assert len(np.unique(study.rows.trunk)) == 7
    assert trunk_note(study) == (
        "no trunk column: rows with the same N share a trunk (65 of 65 rows share one, 7 trunks); "
        "no column names the run, and rows of one run taken as independent would make intervals "
        "too narrow; if name names the run, give --trunk name"
    )


def test_isoflop_rows_with_sizes_of_their_own_stay_single(tmp_path):
    frame = foreign(N=lambda f: f["n_total"] + np.arange(len(f)) // 2 * 2 * (f["n_total"] > 3e4))
    study = load(csv(tmp_path, frame), NDL)
    assert len(np.unique(study.rows.trunk)) > 26
    frame["N"] += np.arange(len(frame)) * 7
    study = load(csv(tmp_path, frame), NDL)
    assert len(np.unique(study.rows.trunk)) == 65
    assert "(0 of 65 rows share one, 65 trunks); N differs from row to row" in trunk_note(study)
