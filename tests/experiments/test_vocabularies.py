"""Sweeps over tokenizers: several vocabularies, a cleared cache, a tokenizer of one's own."""

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from minigpt import generate, tokenizer
from minigpt.generate import load
from minigpt.vocabulary import train

Sweep = Callable[..., tuple[int, str, str]]
SMALL = ("grid.tokens=[3200]", "data.eval_tokens=512", "data.tokenizer=bpe")
TWO = "grid.sizes=[{ d_model = 8, vocab_size = 300 }, { d_model = 8, vocab_size = 400 }]"
ONE = "grid.sizes=[{ d_model = 8, vocab_size = 100 }]"


def results(micro: Path, name: str = "micro") -> pd.DataFrame:
    frame = pd.read_parquet(micro.parent / "runs" / name / "results.parquet")
    return frame.sort_values("vocab_size", ignore_index=True)


def shards(micro: Path) -> dict[int, Path]:
    """The folders of shards, by vocabulary size."""
    metas = (micro.parent / "runs" / "data").glob("*/meta.json")
    return {json.loads(meta.read_text())["vocab_size"]: meta.parent for meta in metas}


def test_two_vocabularies_are_compared_in_bits_per_byte(
    sweep: Sweep, micro: Path, text: Path
) -> None:
    code, out, err = sweep("run", micro, *SMALL, TWO)
    assert code == 0, err
    assert "training a bpe tokenizer of 300 ids on 0.1 MB" in err
    rows = results(micro)
    assert list(rows["vocab_size"]) == [300, 400]
    assert list(rows["arm"]) == ["main", "vocab=400"]  # other units of loss: another arm
    assert list(rows["status"]) == ["ok", "ok"]
    documents = {path.read_bytes() for path in text.iterdir()}
    for (_, row), size in zip(rows.iterrows(), (300, 400), strict=True):
        folder = shards(micro)[size]
        own = tokenizer.from_file(folder / "tokenizer.json")
        assert row["tokenizer_sha256"] == own.sha256
        assert own.vocab_size == size
        val = np.fromfile(folder / "val.bin", "<u2")
        sides = [np.fromfile(folder / f"{side}.bin", "<u2").tolist() for side in ("train", "val")]
        texts = [own.decode(ids) for ids in sides]
        assert sum(map(len, texts)) == sum(map(len, documents))
        assert all(document in texts[0] or document in texts[1] for document in documents)
        # The training text's bytes per token, end of text included.
        assert row["bytes"] == round(3_200 * len(texts[0]) / len(sides[0]))
        # Bits per byte of the text among the 512 targets.
        targets = own.decode(val[1:513].tolist())
        bits = row["val_loss"] * 512 / math.log(2)
        assert row["val_bpb"] == pytest.approx(bits / len(targets), rel=1e-12)
        assert re.search(rf"tokenizer: bpe, {size} ids \({own.sha256[:12]}\): ", out)  # type: ignore[index]
    assert rows["bytes"].is_monotonic_increasing  # a larger vocabulary has longer tokens
    assert rows["data_sha256"].nunique() == 2
    for weights in (micro.parent / "runs" / "micro" / "trunks").glob("*/[0-9a-f]*.pt"):
        model, own = load(weights)  # which need nothing else to write text
        assert own is not None
        assert own.vocab_size == model.config.vocab_size
        words = ("--checkpoint", str(weights), "--prompt", "ab cd", "--tokens", "4")
        assert generate.main(list(words)) == 0


def test_the_held_out_documents_are_those_of_bytes(sweep: Sweep, micro: Path) -> None:
    assert sweep("plan", micro, *SMALL, TWO)[0] == 0
    assert sweep("plan", micro)[0] == 0
    by_size = shards(micro)
    plain = np.fromfile(by_size.pop(257) / "val.bin", "<u2")
    assert by_size.keys() == {300, 400}
    for folder in by_size.values():
        own = tokenizer.from_file(folder / "tokenizer.json")
        ids = np.fromfile(folder / "val.bin", "<u2").tolist()
        assert own.decode(ids) == bytes(plain[plain < 256].astype(np.uint8))
        ends = np.flatnonzero(plain == 256)
        assert ids.count(own.end_of_text) == len(ends)


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_a_cleared_cache_changes_no_started_sweep(sweep: Sweep, micro: Path, kind: str) -> None:
    """WordPiece would not be trained twice alike: its file in the sweep's folder is used."""
    size = 300 if kind == "bpe" else 100
    size = f"model.vocab_size={size}"
    words = (micro, *SMALL[:2], f"data.tokenizer={kind}", size, "grid.sizes=[{ d_model = 8 }]")
    assert sweep("run", *words)[0] == 0
    first = results(micro).iloc[0]
    folder = micro.parent / "runs" / "micro"
    (kept,) = (folder / "tokenizers").iterdir()
    assert kept.name == f"{first['tokenizer_sha256']}.json"
    assert tokenizer.from_file(kept).sha256 == first["tokenizer_sha256"]

    shutil.rmtree(micro.parent / "runs" / "data")
    code, _, err = sweep("run", *words, "grid.seeds=[0, 1]")
    assert code == 0, err
    assert "training a" not in err
    again = results(micro)
    assert len(again) == 2
    assert set(again["tokenizer_sha256"]) == {first["tokenizer_sha256"]}
    assert set(again["data_sha256"]) == {first["data_sha256"]}
    assert again.set_index("run_id").loc[first["run_id"], "finished"] == first["finished"]

    kept.unlink()
    code, _, err = sweep("run", *words)
    assert code == 2
    assert err.count("\n") == 1
    for part in (str(kept), "cannot be read", "was started with it; put it back, or use name=NEW"):
        assert part in err


def test_wordpiece_has_no_bits_per_byte(sweep: Sweep, micro: Path) -> None:
    code, out, err = sweep("run", micro, *SMALL[:2], "data.tokenizer=wordpiece", ONE)
    assert code == 0, err
    assert "which lose text, so that there are no bits per byte" in out
    row = results(micro).iloc[0]
    assert (row["status"], row["vocab_size"]) == ("ok", 100)
    assert row["tokenizer_sha256"]
    assert pd.isna(row["val_bpb"])
    assert pd.isna(row["bytes"])
    assert 0 < row["val_loss"] < math.log(100)


def test_a_tokenizer_of_a_file(sweep: Sweep, micro: Path, text: Path, tmp_path: Path) -> None:
    """That of another text, or that which an earlier sweep stored."""
    other = train("bpe", 270, [b"the cat sat on the mat, it is said " * 40])
    file = tmp_path / "tokenizer.json"
    file.write_text(other.to_json())
    words = (micro, *SMALL[:2], f"data.tokenizer={file}", "grid.sizes=[{ d_model = 8 }]")
    code, out, err = sweep("run", *words)
    assert code == 0, err
    assert "training a" not in err
    row = results(micro).iloc[0]
    assert (row["tokenizer_sha256"], row["vocab_size"]) == (other.sha256, 270)
    assert math.isfinite(row["val_bpb"])
    assert f"tokenizer: {file}, 270 ids ({other.sha256[:12]})" in out  # type: ignore[index]
    code, _, err = sweep("plan", *words, "model.vocab_size=269")
    assert code == 2
    assert "vocab_size = 269 is smaller than that of data.tokenizer; use 270 or leave it" in err
    # Another one in its place is another sweep.
    file.write_text(train("bpe", 275, [path.read_bytes() for path in text.iterdir()]).to_json())
    code, _, err = sweep("run", *words)
    assert code == 2
    assert f"data.tokenizer = '{file}' is another tokenizer" in err
    assert "name=NEW" in err


def test_a_file_that_changes_text_has_no_bits_per_byte(
    sweep: Sweep, micro: Path, tmp_path: Path
) -> None:
    values = json.loads(train("bpe", 270, [b"the cat sat on the mat, it is said " * 40]).to_json())
    file = tmp_path / "tokenizer.json"
    file.write_text(
        json.dumps(
            values | {"normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "b"}}
        )
    )
    words = (micro, *SMALL[:2], f"data.tokenizer={file}", "grid.sizes=[{ d_model = 8 }]")
    assert sweep("run", *words)[0] == 0
    assert pd.isna(results(micro).iloc[0]["val_bpb"])


def test_a_sweep_of_bytes_is_as_it_was(sweep: Sweep, micro: Path) -> None:
    """But for their number: no tokenizer, no other held-out set."""
    assert sweep("run", micro, "grid.tokens=[3200]", "grid.sizes=[{ d_model = 8 }]")[0] == 0
    row = results(micro).iloc[0]
    train_shard = np.fromfile(shards(micro)[257] / "train.bin", "<u2")
    assert row["bytes"] == round(3_200 * np.mean(train_shard < 256))
    assert pd.isna(row["tokenizer_sha256"])
    folder = micro.parent / "runs" / "micro"
    assert not (folder / "tokenizers").exists()
    assert not (folder / "evals.parquet").exists()
    for path in folder.glob("trunks/*/*.json"):
        assert path.name == "spec.json" or "evals" not in json.loads(path.read_text())


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            [],
            "grid.sizes[0]: missing key 'vocab_size' (here or in [model]): data.tokenizer = 'bpe'",
        ),
        (["model.preset=vaswani"], "grid.sizes[0]: missing key 'vocab_size'"),
        (["model.vocab_size=256"], "grid.sizes[0]: vocab_size = 256 is outside 257, 256 bytes and"),
        (["model.vocab_size=65537"], "vocab_size = 65,537 is outside 257"),
        (["model.vocab_size=60000"], "bytes of training text give a bpe tokenizer of "),
        (["data.vocab_size=300"], "set vocab_size in [model] or in grid.sizes"),
        (
            ["data.tokenizer=bep"],
            "data.tokenizer = 'bep': no such file; give bytes, bpe, wordpiece",
        ),
        (["data.tokenizer="], "data.tokenizer = ''"),
        (["data.tokenizer={micro}"], "micro.toml: not a tokenizer of the `tokenizers` library"),
        (
            ["data.source=tokens", "data.val_path=a.bin", "data.vocab_size=300"],
            "tokenizer = 'bpe' belongs to text, and source = 'tokens' has its tokens already",
        ),
        (["model.vocab_size=300", "data.eval_tokens=9000"], "vocab_size = 300); lower"),
    ],
)
def test_bad_input_costs_no_compute(
    sweep: Sweep, micro: Path, overrides: list[str], told: str
) -> None:
    overrides = [override.replace("{micro}", str(micro)) for override in overrides]
    code, _, err = sweep("run", micro, *SMALL, *overrides)
    lines = [line for line in err.splitlines() if not line.startswith("training a ")]
    assert code == 2
    assert len(lines) == 1
    assert lines[0].startswith(f"error: {micro}: ")
    assert told in lines[0]
    assert not (micro.parent / "runs" / "micro").exists()
