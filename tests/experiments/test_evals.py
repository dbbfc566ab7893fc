"""Several held-out sets: their losses, what is shown of them, what is refused."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiments import schema
from minigpt.data import write_bin

Sweep = Callable[..., tuple[int, str, str]]
SMALL = ("grid.tokens=[3200, 6400]", "grid.sizes=[{ d_model = 8 }]")


@pytest.fixture
def books(text: Path, tmp_path: Path) -> Path:
    """A folder of two texts, of which one also stands in the corpus; and a table of one text."""
    folder = tmp_path / "books"
    folder.mkdir()
    shutil.copy(text / "00.txt", folder / "same.txt")
    (folder / "other.txt").write_text("\n".join(f"what {i} nobody has read" for i in range(200)))
    (folder / "picture.png").write_bytes(b"\x89PNG")
    rows = pa.table({"body": ["numbers 1 2 3\n" * 40, None]})
    pq.write_table(rows, tmp_path / "table.parquet")
    return folder


def frames(micro: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """evals.parquet and results.parquet."""
    folder = micro.parent / "runs" / "micro"
    return pd.read_parquet(folder / "evals.parquet"), pd.read_parquet(folder / "results.parquet")


def test_every_horizon_is_measured_on_every_set(sweep: Sweep, micro: Path, books: Path) -> None:
    words = (
        micro,
        *SMALL,
        f"data.evals.books={books}",
        f"data.evals.numbers={books.parent / 'table.parquet'}",
        f"data.evals.itself={micro.parent / 'itself.txt'}",
        "data.column=body",
    )
    # A set of one piece of the corpus's own held-out text.
    assert sweep("plan", micro)[0] == 0
    (shard,) = (micro.parent / "runs" / "data").glob("*/val.bin")
    ids = np.fromfile(shard, "<u2")
    piece = ids[: np.argmax(ids == 256)]
    (micro.parent / "itself.txt").write_bytes(piece.astype(np.uint8).tobytes())

    code, out, err = sweep("run", *words)
    assert code == 0, err
    size = sum(path.stat().st_size for path in books.glob("*.txt"))
    assert f"held out too: books, {size + 2:,} tokens; " in out
    overlap = float(out.partition("held out too: books, ")[2].split("; ")[1].split("%")[0])
    assert 20 < overlap < 30  # 68 of 68 + 198 windows, if that text is in training
    assert "held out too: itself, " in out
    assert f"; skipped 1 files that are not UTF-8 text ({books / 'picture.png'})\n" in out
    assert "; skipped 1 records whose body is null\n" in out
    evals, results = frames(micro)
    assert pq.read_schema(micro.parent / "runs" / "micro" / "evals.parquet").equals(schema.EVALS)
    assert len(evals) == 2 * 4
    assert list(evals["eval_set"][:4]) == ["val", "books", "numbers", "itself"]
    assert sorted(set(evals["tokens"])) == [3200, 6400]
    of = {name: part.set_index("run_id") for name, part in evals.groupby("eval_set")}
    for _, row in results.iterrows():
        own = of["val"].loc[row["run_id"]]
        assert (own["loss"], own["loss_se"], own["bpb"], own["eval_tokens"]) == (
            row["val_loss"],
            row["val_loss_se"],
            row["val_bpb"],
            row["eval_tokens"],
        )
        assert (own["trunk_id"], own["horizon_index"]) == (row["trunk_id"], row["horizon_index"])
        numbers = of["numbers"].loc[row["run_id"]]
        assert numbers["eval_tokens"] == 40 * 14 // 16 * 16  # whole sequences of all of it
        assert numbers["bpb"] == pytest.approx(numbers["loss"] * 560 / 559 / math.log(2))  # of text
        assert of["books"].loc[row["run_id"], "eval_tokens"] == 1024  # eval_tokens at most
        assert numbers["loss"] > row["val_loss"]  # no such text was in training
    # The set that is the first of the held-out text: the same losses on the same tokens.
    weights = next((micro.parent / "runs" / "micro" / "trunks").glob("*/[0-9a-f]*.pt"))
    from minigpt import data
    from minigpt.config import DataConfig
    from minigpt.evaluate import evaluate
    from minigpt.weights import load

    config = DataConfig(
        source="text",
        path=json.loads((weights.parent / "spec.json").read_text())["data"]["path"],
        val_fraction=0.2,
        eval_tokens=1024,
        curve_eval_tokens=256,
    )
    model, _ = load(weights)
    corpus = data.prepare(config, micro.parent / "elsewhere")
    count = int(of["itself"].loc[weights.stem, "eval_tokens"])
    assert count == len(piece) // 16 * 16 or count == 1024
    loss, se, bpb, _ = evaluate(model, corpus, count, "cpu", "float32")
    mine = of["itself"].loc[weights.stem]
    assert (mine["loss"], mine["loss_se"]) == (pytest.approx(loss), pytest.approx(se))
    assert mine["bpb"] == pytest.approx(bpb)

    before = evals
    assert sweep("run", *words)[0] == 0  # nothing is evaluated twice
    assert frames(micro)[0].equals(before)
    (books / "other.txt").write_text("another text, " * 99)
    code, _, err = sweep("run", *words)
    assert code == 2
    assert "the text of data.evals.books is not the same" in err


def test_sets_are_in_the_corpus_s_own_tokens(sweep: Sweep, micro: Path, books: Path) -> None:
    words = (micro, "grid.tokens=[3200]", "data.eval_tokens=512", f"data.evals.books={books}")
    bpe = ("data.tokenizer=bpe", "grid.sizes=[{ d_model = 8, vocab_size = 300 }]")
    code, _, err = sweep("run", *words, *bpe)
    assert code == 0, err
    evals, _ = frames(micro)
    assert list(evals["eval_set"]) == ["val", "books"]
    assert evals["bpb"].notna().all()
    lossy = ("data.tokenizer=wordpiece", "grid.sizes=[{ d_model = 8, vocab_size = 100 }]")
    assert sweep("run", *words, *lossy, "name=lossy")[0] == 0
    evals = pd.read_parquet(micro.parent / "runs" / "lossy" / "evals.parquet")
    assert evals["loss"].notna().all()
    assert evals["bpb"].isna().all()


def test_sets_of_shards(sweep: Sweep, micro: Path, tmp_path: Path) -> None:
    recipe = micro.read_text().splitlines(keepends=True)
    micro.write_text("".join(line for line in recipe if "val_fraction" not in line))
    rng = np.random.default_rng(0)
    for name, size in (("train", 5_000), ("val", 2_000), ("a_0", 300), ("a_1", 300), ("b", 900)):
        write_bin(tmp_path / f"{name}.bin", rng.integers(0, 300, size), header=name == "b")
    words = [
        *("run", micro, *SMALL[1:], "grid.tokens=[3200]", "data.source=tokens"),
        *(f"data.path={tmp_path}/train.bin", f"data.val_path={tmp_path}/val.bin"),
        *(f"data.evals.a={tmp_path}/a_*.bin", f"data.evals.b={tmp_path}/b.bin"),
    ]
    code, out, err = sweep(*words, "data.vocab_size=300")
    assert code == 0, err
    assert "held out too: a, 600 tokens\nheld out too: b, 900 tokens" in out
    evals, _ = frames(micro)
    assert list(evals["eval_set"]) == ["val", "a", "b"]
    assert list(evals["eval_tokens"]) == [1024, 592, 896]
    assert evals["bpb"].isna().all()
    write_bin(tmp_path / "b.bin", [*range(300), 300], header=False)
    code, _, err = sweep(*words, "data.vocab_size=300", "name=new")
    assert code == 2
    assert "b.bin: id 300 at position 300 is not below data.vocab_size = 300" in err


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["data.evals.books=no"], "data.evals.books = 'no': no such file or folder"),
        (["data.evals.books=[]"], "evals.books names no file; give a file, a folder or a glob"),
        (["data.evals.books=['{books}', '']"], "evals.books holds an empty string"),
        (["data.evals.val={books}"], "evals.val: 'val' is the held-out part of the corpus itself"),
        (["data.evals.books={empty}"], "data.evals.books = '{empty}': no text in it"),
        (["data.evals.books={short}"], "data.evals.books: its 9 tokens are less than one sequence"),
        (["data.evals.books={raw}"], "data.evals.books = '{raw}': not plain UTF-8 text"),
        (["data.evals.books={table}"], "data.evals.books: {table} holds records; name the column"),
        (
            ["data.evals.books={table}", "data.column=text"],
            "data.evals.books: {table}: no column 'text'; data.column is the one",
        ),
        (["data.evals.a b={books}"], "data.evals = 'a b': string should match pattern"),
    ],
)
def test_bad_sets_cost_no_compute(
    sweep: Sweep, micro: Path, books: Path, tmp_path: Path, overrides: list[str], told: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "short.txt").write_text("a few ab")
    (tmp_path / "raw.txt").write_bytes(b"\xff\xfe")
    places = {
        "books": books,
        "empty": tmp_path / "empty",
        "short": tmp_path / "short.txt",
        "raw": tmp_path / "raw.txt",
        "table": tmp_path / "table.parquet",
    }
    code, _, err = sweep("run", micro, *SMALL, *(each.format(**places) for each in overrides))
    assert code == 2
    assert err.count("\n") == 1
    assert told.format(**places) in err
    assert not (micro.parent / "runs" / "micro").exists()
