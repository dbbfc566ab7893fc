"""The plan as a file: the columns of results.parquet before there are results."""

import json
from pathlib import Path

import pandas as pd
import pytest

from experiments import schema

KEYS = [
    *("run_id", "trunk_id", "horizon_index", "branch", "arm", "seed", "holdout"),
    *("preset", "d_model", "n_layers", "n_heads", "d_head", "d_ff", "vocab_size", "seq_len"),
    *("n_total", "n_non_embedding", "n_matmul"),
    *("tokens", "steps", "batch_tokens", "cooldown_tokens", "lr", "lr_multiplier"),
    *("flops_exact", "flops_matmul", "flops_6n", "status"),
]


def test_the_keys_of_the_file(sweep, micro: Path, tmp_path: Path) -> None:
    file = tmp_path / "a plan.json"
    code, out, _ = sweep("plan", micro, "grid.holdout=[{ d_model = 16 }]", "--json", file)
    assert code == 0
    assert f"{file}: 4 runs, 4 still to train" in out
    assert out.splitlines()[-1] == f"next: python -m analysis.design '{file}'"
    written = json.loads(file.read_text())
    assert list(written) == ["schema", "sweep", "config", "runs"]
    assert (written["schema"], written["sweep"]) == ("plan/1", "micro")
    assert written["config"]["grid"]["tokens"] == [6400, 12800]
    assert len(written["runs"]) == 4
    assert all(list(run) == KEYS for run in written["runs"])
    assert set(KEYS) <= set(schema.RESULTS.names)
    first = written["runs"][0]
    assert first["holdout"] is True
    assert first["status"] == "missing"
    expected = {"d_model": 16, "n_heads": 4, "d_ff": 64, "tokens": 6400, "steps": 100, "lr": 0.01}
    assert {key: first[key] for key in expected} == expected
    assert first["flops_6n"] == 6.0 * first["n_total"] * 6400
    assert first["flops_exact"] == 6400 * (6 * (12 * 256 + 257 * 16) + 12 * 16 * 16)
    assert list(tmp_path.glob(".*part")) == []


def test_planned_rows_are_the_rows_of_the_results(sweep, micro: Path, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    assert sweep("run", micro, "grid.tokens=[3200]")[0] == 0
    code, out, _ = sweep("plan", micro, "grid.tokens=[3200, 6400]", "--json", file)
    assert code == 0
    assert "4 runs, 2 still to train" in out
    rows = {run["run_id"]: run for run in json.loads(file.read_text())["runs"]}
    assert sorted(run["status"] for run in rows.values()) == ["done"] * 2 + ["missing"] * 2
    assert sweep("run", micro, "grid.tokens=[3200, 6400]")[0] == 0
    frame = pd.read_parquet(micro.parent / "runs/micro/results.parquet")
    keys = [key for key in KEYS if key != "status"]
    for measured in frame[keys].to_dict("records"):
        planned = rows.pop(measured["run_id"])
        assert {key: planned[key] for key in keys} == measured
    assert rows == {}


def test_a_diverged_run_is_neither_done_nor_missing(sweep, micro: Path, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    words = (micro, "train.lr.value=1e4", "train.grad_clip=off", "grid.tokens=[3200]")
    sweep("run", *words)
    assert "2 runs, 0 still to train" in sweep("plan", *words, "--json", file)[1]
    assert {r["status"] for r in json.loads(file.read_text())["runs"]} == {"diverged"}


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("none/plan.json", "No such file or directory; name a file in a folder"),
        ("micro.toml/plan.json", "Not a directory; name a file in a folder"),
        (".", "is a folder; name a file in it"),
    ],
)
def test_a_place_that_cannot_be_written_is_bad_input(
    sweep, micro: Path, name: str, told: str
) -> None:
    code, _, err = sweep("plan", micro, "--json", micro.parent / name)
    assert code == 2
    assert err.startswith("error: --json ")
    assert told in err
    assert len(err.splitlines()) == 1
