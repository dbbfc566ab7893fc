"""Rows that a law cannot be fitted to: each is named, with its column, value and reason."""

from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from foreign import MAPPED, csv, excluded, grid
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import Plan, results_frame, write_sweep

from analysis.load import Columns, load, reason_counts
from analysis.read import DataError


def frame_with(changes, plan=None):
    """The default rows with cells replaced: {(run_id, column): value}."""
    frame = results_frame(plan or Plan())
    for (run, column), value in changes.items():
        if not isinstance(value, str) and frame[column].dtype.kind == "i":
            frame[column] = frame[column].astype(float)
        frame.loc[frame["run_id"] == run, column] = value
    return frame


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
        "t5s0h1 (row 66)": "exact duplicate: of t5s0h1",
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


def test_every_bad_cell_is_named_with_its_column_and_value(tmp_path):
    frame = grid(
        n={0: np.nan, 1: "12B", 2: True, 3: 0, 4: -7e6},
        d={5: np.inf, 6: "1,000", 7: ""},
        loss={8: np.nan, 9: -2.5, 10: 0, 11: "nan at step 7"},
    )
    study = load(csv(tmp_path, frame), MAPPED)
    assert excluded(study) == {
        "row 1": "n is not a positive finite number: nan",
        "row 2": "n is not a number: '12B'",
        "row 3": "n is not a number: 'True'",
        "row 4": "n is not a positive finite number: '0'",
        "row 5": "n is not a positive finite number: '-7000000.0'",
        "row 6": "d is not a positive finite number: 'inf'",
        "row 7": "d is not a number: '1,000'",
        "row 8": "d is not a positive finite number: nan",
        "row 9": "loss is not a positive finite number: nan",
        "row 10": "loss is not a positive finite number: '-2.5'",
        "row 11": "loss is not a positive finite number: '0'",
        "row 12": "loss is not a number: 'nan at step 7'",
    }
    assert len(study.rows) == 18


def test_exact_duplicates_are_named_and_a_repeat_with_a_seed_is_none(tmp_path):
    frame = pd.concat([grid(), grid().iloc[[3, 3, 7]]], ignore_index=True)
    study = load(csv(tmp_path, frame.assign(note=range(33))), MAPPED)
    remedy = " (a true repeat needs a column named seed)"
    assert excluded(study) == {
        "row 31": f"exact duplicate: of row 4{remedy}",
        "row 32": f"exact duplicate: of row 4{remedy}",
        "row 33": f"exact duplicate: of row 8{remedy}",
    }
    frame["seed"] = [0] * 30 + [1, 2, 1]
    study = load(csv(tmp_path, frame), MAPPED)
    assert not study.excluded
    assert len(np.unique(study.rows.trunk)) == 9


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_integer_columns_do_not_overflow(tmp_path, name):
    frame = grid().assign(n=lambda f: f["n"] * 10**4, d=lambda f: f["d"] * 10**5)
    frame = frame.astype({"n": "int64", "d": "int64"})
    write = frame.to_parquet if name == "t.parquet" else frame.to_csv
    write(tmp_path / name, index=False)
    study = load(tmp_path / name, MAPPED)
    assert pytest.approx(6.0 * study.rows.N * study.rows.D, rel=1e-12) == study.rows.C
    assert study.rows.C.max() > 1e23  # beyond 64 bits
    assert "compute is not in the file: C = 6ND" in study.notes


def test_compute_that_overflowed_in_the_file_is_left_out_or_flagged(tmp_path):
    frame = grid().assign(n=lambda f: f["n"] * 100, d=lambda f: f["d"] * 100)
    true = [6 * int(n) * int(d) for n, d in zip(frame["n"], frame["d"], strict=True)]
    frame["flops"] = [(c + 2**63) % 2**64 - 2**63 for c in true]  # what int64 makes of it
    study = load(csv(tmp_path, frame), Columns(n="n", d="d", loss="loss", flops="flops"))
    negative = {f"row {i + 1}" for i, c in enumerate(frame["flops"]) if c < 0}
    assert len(negative) > 3
    assert set(excluded(study)) == negative
    hint = "(a product of 64-bit integers that overflowed?)"
    assert all(reason.endswith(hint) for reason in excluded(study).values())
    ratio = np.log10([c / t for c, t in zip(frame["flops"], true, strict=True) if c > 0])
    far = np.abs(ratio - np.median(ratio)) >= 2
    assert sum(f["flag"] == "suspect_units" for f in study.flagged) == far.sum()


def test_large_integers_in_text_and_decimals_are_numbers(tmp_path):
    frame = grid().assign(flops=[10**20 + i for i in range(30)])
    frame["loss"] = [Decimal(f"{x:.6f}") for x in frame["loss"]]
    frame.drop(columns="flops").to_parquet(tmp_path / "t.parquet")
    assert len(load(tmp_path / "t.parquet", MAPPED).rows) == 30
    columns = Columns(n="n", d="d", loss="loss", flops="flops")
    assert load(csv(tmp_path, frame), columns).rows.C[0] == 1e20


def test_repeated_data_is_flagged_from_unique_tokens(tmp_path):
    columns = Columns(n="n", d="d", loss="loss", unique="pool")
    study = load(csv(tmp_path, grid().assign(pool=lambda f: f["d"] / 2)), columns)
    assert pytest.approx(study.rows.D / 2) == study.rows.U
    assert pytest.approx(study.rows.U[:5]) == study.rows.take(study.rows.N == 1e6).U
    assert {f["reason"][:11] for f in study.flagged} == {"2.00 epochs"}
    study = load(csv(tmp_path, grid().assign(pool=[1e9] * 29 + [np.nan])), columns)
    assert excluded(study) == {"row 30": "pool is not a positive finite number: nan"}


BAD = st.sampled_from([np.nan, 0.0, -1.0, np.inf, "x", 1e-3])
SPOILT = st.dictionaries(st.tuples(st.integers(0, 29), st.sampled_from(["n", "d", "loss"])), BAD)


@settings(max_examples=40)
@given(
    spoilt=SPOILT,
    repeated=st.lists(st.integers(0, 29), max_size=4),
    order=st.permutations(range(30)),
)
def test_no_row_is_lost_and_the_order_of_rows_does_not_matter(
    tmp_path_factory, spoilt, repeated, order
):
    frame = grid().astype(object)
    for (row, column), value in spoilt.items():
        frame.loc[row, column] = value
    frame = pd.concat([frame, frame.iloc[repeated]], ignore_index=True)
    order = [*order, *range(30, len(frame))][::-1]
    folder = tmp_path_factory.mktemp("order")
    found = []
    for table in (frame, frame.iloc[order]):
        try:
            study = load(csv(folder, table), MAPPED)
        except DataError as error:
            found.append(str(error).split(" (first")[0])
            continue
        assert len(study.rows) + len(study.excluded) == len(frame)
        assert {e["row"] for e in study.excluded}.isdisjoint(study.used["row"])
        assert all(e["reason"] for e in study.excluded)
        rows = study.rows
        found.append(sorted(zip(rows.N, rows.D, rows.L, study.used["trunk"], strict=True)))
    assert found[0] == found[1]


def test_a_hundred_thousand_rows_are_checked_one_by_one(tmp_path):
    frame = pd.concat([grid(100, 50)] * 20, ignore_index=True).assign(seed=np.arange(100_000))
    frame["n"] = 1e6 + np.arange(100_000) % 100
    frame.loc[99_999, "loss"] = -1
    frame.loc[:9, "d"] = np.nan
    study = load(csv(tmp_path, frame), MAPPED)
    assert (len(study.rows), len(study.excluded)) == (99_989, 11)
