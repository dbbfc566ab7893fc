"""Sweeps on text in records and on ready-made tokens, through the command."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from minigpt.data import write_bin

Sweep = Callable[..., tuple[int, str, str]]
SMALL = ("grid.tokens=[3200]", "grid.sizes=[{ d_model = 8 }]")
VOCABULARY = 300


def results(micro: Path) -> pd.DataFrame:
    return pd.read_parquet(micro.parent / "runs" / "micro" / "results.parquet")


@pytest.fixture
def table(text: Path, tmp_path: Path) -> Path:
    """The micro config's text as one parquet file, with two null rows."""
    texts: list[str | None] = [path.read_text() for path in sorted(text.iterdir())]
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({"id": range(42), "body": [None, *texts, None]}), path)
    return path


@pytest.fixture
def tokens(micro: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Writes shards of a text in which each token is one of two after the last; the overrides."""
    recipe = micro.read_text().splitlines(keepends=True)
    micro.write_text("".join(line for line in recipe if "val_fraction" not in line))

    def call(header: bool, vocab_size: int = VOCABULARY, **more: object) -> list[str]:
        rng = np.random.default_rng(0)
        chain = (np.cumsum(rng.integers(1, 3, 12_000)) * 7) % VOCABULARY
        write_bin(tmp_path / "t_train_0.bin", chain[:5_000], header=header)
        write_bin(tmp_path / "t_train_1.bin", chain[5_000:10_000], header=header)
        write_bin(tmp_path / "t_val.bin", chain[10_000:], header=header)
        values = {
            "source": "tokens",
            "path": str(tmp_path / ("t_train_*.bin" if header else "t_train_0.bin")),
            "val_path": str(tmp_path / "t_val.bin"),
            "vocab_size": vocab_size,
        } | more
        return [f"data.{key}={value}" for key, value in values.items()]

    return call


def test_a_parquet_column_trains_as_its_text_does(sweep: Sweep, micro: Path, table: Path) -> None:
    code, out, err = sweep("run", micro, *SMALL, f"data.path={table}", "data.column=body")
    assert code == 0, err
    assert "40 documents" in out
    assert "; skipped 2 records whose body is null" in out
    records = results(micro).iloc[0]
    code, _, err = sweep("run", micro, *SMALL, "name=plain")
    assert code == 0, err
    plain = pd.read_parquet(micro.parent / "runs" / "plain" / "results.parquet").iloc[0]
    for column in ("run_id", "data_sha256", "val_sha256", "val_loss", "train_loss", "val_bpb"):
        assert records[column] == plain[column], column
    assert math.isfinite(records["val_bpb"])


@pytest.mark.parametrize("header", [False, True])
def test_a_sweep_on_shards(
    sweep: Sweep, micro: Path, tokens: Callable[..., list[str]], header: bool
) -> None:
    code, out, err = sweep("run", micro, *SMALL, *tokens(header))
    assert code == 0, err
    count = 10_000 if header else 5_000
    assert f"{count:,} training and 2,000 held-out tokens, of a vocabulary of 300" in out
    assert "bits/byte" not in out
    row = results(micro).iloc[0]
    assert (row["source"], row["vocab_size"], row["status"]) == ("tokens", VOCABULARY, "ok")
    assert row["n_embedding"] == VOCABULARY * 8
    assert 0 < row["val_loss"] < math.log(VOCABULARY)
    field = pq.read_table(micro.parent / "runs" / "micro" / "results.parquet")["val_bpb"]
    assert field.to_pylist() == [None]
    stored = json.loads((micro.parent / "runs" / "micro" / "sweep.json").read_text())["corpus"]
    assert (stored["documents"], stored["overlap"]) == (None, None)
    copied = list((micro.parent / "runs" / "data").rglob("*.bin"))
    assert [path.name for path in copied] == (["train.bin"] if header else [])
    assert sweep("run", micro, *SMALL, *tokens(header))[0] == 0
    assert results(micro).iloc[0].equals(row)  # found in the cache, and finished


def test_a_model_may_know_more_tokens_than_the_shards_but_not_fewer(
    sweep: Sweep, micro: Path, tokens: Callable[..., list[str]]
) -> None:
    given = tokens(False)
    code, _, err = sweep("plan", micro, *SMALL, *given, "model.vocab_size=304")
    assert code == 0, err
    code, _, err = sweep("plan", micro, *SMALL, *given, "model.vocab_size=299")
    assert code == 2
    assert "vocab_size = 299 is smaller than data.vocab_size; use 300 or leave it out" in err


def test_changed_shards_are_another_sweep(
    sweep: Sweep, micro: Path, tokens: Callable[..., list[str]], tmp_path: Path
) -> None:
    given = tokens(False)
    assert sweep("run", micro, *SMALL, *given)[0] == 0
    write_bin(tmp_path / "t_val.bin", np.arange(2_000) % 7, header=False)
    code, _, err = sweep("run", micro, *SMALL, *given)
    assert code == 2
    assert "is not the same" in err
    assert "name=NEW" in err


def test_ids_beyond_the_vocabulary_cost_no_compute(
    sweep: Sweep, micro: Path, tokens: Callable[..., list[str]]
) -> None:
    code, _, err = sweep("run", micro, *SMALL, *tokens(False, vocab_size=200))
    assert code == 2
    assert err.count("\n") == 1
    for part in ("t_train_0.bin: id ", " at position ", "not below data.vocab_size = 200"):
        assert part in err
    assert not (micro.parent / "runs" / "micro").exists()


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["data.column=text"], "no column 'text'; data.column is the one that holds the text"),
        (["data.column=id"], "row 1: id = 0 is not a string"),
        ([], "holds records; name the column that holds the text"),
    ],
)
def test_bad_columns_cost_no_compute(
    sweep: Sweep, micro: Path, table: Path, overrides: list[str], told: str
) -> None:
    code, _, err = sweep("run", micro, *SMALL, f"data.path={table}", *overrides)
    assert code == 2
    assert err.count("\n") == 1
    assert str(micro) in err
    assert str(table) in err
    assert told in err


def test_a_damaged_file_costs_no_compute(sweep: Sweep, micro: Path, table: Path) -> None:
    table.write_bytes(table.read_bytes()[:-10])
    code, _, err = sweep("run", micro, *SMALL, f"data.path={table}", "data.column=body")
    assert code == 2
    assert err.count("\n") == 1
    assert "damaged, or not what its name says" in err
