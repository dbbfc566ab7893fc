"""The same runs with other counts of parameters and compute."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic import Plan, results_frame, write_sweep

from analysis.conventions import conventions, with_convention
from analysis.load import Columns, load

QUICK = Path(__file__).parents[1] / "data/quick"


def test_a_sweep_has_every_pair_of_its_columns_its_own_first():
    study = load(QUICK)
    pairs = conventions(study)
    assert pairs[0] == ("n_total", "flops_exact")
    assert len(pairs) == len(set(pairs)) == 10
    assert ("n_non_embedding", "6ND") in pairs
    frame = pd.read_parquet(QUICK / "results.parquet").set_index("run_id")
    frame = frame.loc[study.used["row"][~study.holdout]]
    for n, c in pairs:
        rows = with_convention(study, n, c)
        assert pytest.approx(frame[n].to_numpy(float)) == rows.N
        C = frame[c].to_numpy(float) if c != "6ND" else 6 * rows.N * rows.D
        assert pytest.approx(C) == rows.C
        for same in ("D", "L", "trunk", "U"):
            assert np.array_equal(getattr(rows, same), getattr(study.train, same))


def test_columns_with_gaps_are_not_offered(tmp_path):
    frame = results_frame(Plan()).assign(n_matmul=5e4, flops_6n=lambda f: 6.0 * f["tokens"])
    frame.loc[2, "n_matmul"] = np.nan
    frame.loc[3, "flops_6n"] = 0
    study = load(write_sweep(tmp_path / "s", frame=frame))
    assert conventions(study) == (
        ("n_total", "flops_exact"), ("n_non_embedding", "flops_exact"), ("n_non_embedding", "6ND"),
    )  # fmt: skip


def test_a_mapped_sweep_keeps_its_own_pair(tmp_path):
    study = load(write_sweep(tmp_path / "s"), Columns(n="n_non_embedding"))
    assert conventions(study)[0] == ("n_non_embedding", "flops_exact")
    assert pytest.approx(study.train.N) == with_convention(study, *conventions(study)[0]).N
    assert ("n_total", "flops_exact") in conventions(study)


@pytest.mark.parametrize(
    ("columns", "pairs"),
    [
        (Columns(n="a", d="b", loss="y"), (("a", "6ND"),)),
        (Columns(n="a", d="b", loss="y", flops="c"), (("a", "c"),)),
        (Columns(n="a", loss="y", flops="c"), (("a", "c"),)),
        (Columns(d="b", loss="y", flops="c"), (("C/6D", "c"),)),
    ],
)
def test_a_foreign_table_has_its_own_pair(tmp_path, columns, pairs):
    frame = results_frame(Plan())
    table = pd.DataFrame({"a": frame["n_total"], "b": frame["tokens"], "y": frame["val_loss"]})
    table["c"] = frame["flops_exact"]
    table.to_csv(tmp_path / "t.csv", index=False)
    study = load(tmp_path / "t.csv", columns)
    assert conventions(study) == pairs
    rows = with_convention(study, *pairs[0])
    assert np.array_equal(rows.N, study.train.N)
    assert np.array_equal(rows.C, study.train.C)
