"""Token shards as files, and `source = "tokens"`: round trips, what is copied, every refusal."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt import data
from minigpt.config import DataConfig
from minigpt.data import DataError, write_bin
from minigpt.shards import open_bin

Write = Callable[..., Path]
IDS = st.integers(0, 65_535)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`write(name, tokens, header)` writes a file in tmp_path."""

    def call(name: str, tokens: object, header: bool = False) -> Path:
        write_bin(tmp_path / name, np.asarray(tokens), header=header)
        return tmp_path / name

    return call


def config(train: object, val: object, **changes: object) -> DataConfig:
    values = {"source": "tokens", "vocab_size": 500, "eval_tokens": 8, "curve_eval_tokens": 8}
    paths = {
        key: [str(p) for p in path] if isinstance(path, list) else str(path)
        for key, path in (("path", train), ("val_path", val))
    }
    return DataConfig.model_validate(values | paths | changes)


def ids(seed: int, size: int = 1_000) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 500, size)


# Files


@settings(max_examples=100)
@given(tokens=st.lists(IDS, min_size=1, max_size=700), header=st.booleans())
def test_any_ids_come_back(tmp_path_factory, tokens: list[int], header: bool) -> None:
    path = tmp_path_factory.mktemp("bin") / "a.bin"
    write_bin(path, tokens, header=header)
    read = open_bin(path, "data.path")
    assert isinstance(read, np.memmap)
    assert read.dtype == np.uint16
    assert read.tolist() == tokens


@settings(max_examples=100)
@given(
    tokens=st.lists(st.integers(-(2**40), 2**40) | IDS, min_size=1, max_size=50),
    kind=st.sampled_from(["list", "int64"]),
)
def test_an_id_that_uint16_lacks_is_never_written(tmp_path_factory, tokens, kind) -> None:
    path = tmp_path_factory.mktemp("bin") / "a.bin"
    bad = [(i, t) for i, t in enumerate(tokens) if not 0 <= t < 65_536]
    given_ids = tokens if kind == "list" else np.array(tokens)
    if not bad:
        write_bin(path, given_ids, header=False)
        return
    with pytest.raises(DataError) as error:
        write_bin(path, given_ids, header=False)
    assert f"id {bad[0][1]} at position {bad[0][0]:,} is not among 0 to 65,535" in str(error.value)
    assert not path.exists()


def test_the_raw_file_is_nothing_but_uint16(write: Write) -> None:
    assert write("a.bin", [1, 258, 65_535]).read_bytes() == b"\x01\x00\x02\x01\xff\xff"


def test_the_header_is_that_of_llm_c(write: Write) -> None:
    """256 int32: magic, version, count; read here as modded-nanogpt and llm.c read it."""
    content = write("a.bin", [5, 6, 7], header=True).read_bytes()
    header = np.frombuffer(content[: 256 * 4], np.int32)
    assert header[:3].tolist() == [20240520, 1, 3]
    assert not header[3:].any()
    assert np.frombuffer(content[256 * 4 :], np.uint16).tolist() == [5, 6, 7]


@pytest.mark.parametrize("tokens", [[], [[1, 2]], [1.0, 2.0], ["a"], [True]])
def test_what_is_no_row_of_integers_is_not_written(write: Write, tokens: list) -> None:
    with pytest.raises(DataError, match="give one row of integers"):
        write("a.bin", tokens)


def test_raw_ids_that_would_read_as_a_header_are_refused(write: Write) -> None:
    lookalike = np.array([20240520, 1], "<i4").view("<u2")
    with pytest.raises(DataError, match="55432, 308 are those of a header; use header=True"):
        write("a.bin", lookalike)
    assert open_bin(write("b.bin", lookalike, header=True), "k").tolist() == lookalike.tolist()


# The source


@pytest.mark.parametrize("header", [False, True])
def test_one_shard_is_read_where_it_lies(write: Write, tmp_path: Path, header: bool) -> None:
    train, val = write("t.bin", ids(0), header), write("v.bin", ids(1, 100), header)
    corpus = data.prepare(config(train, val), tmp_path / "cache")
    for shard, path, expected in ((corpus.train, train, ids(0)), (corpus.val, val, ids(1, 100))):
        assert isinstance(shard, np.memmap)
        assert shard.filename == path
        assert shard.dtype == np.uint16
        assert (shard == expected).all()
    assert not list((tmp_path / "cache").rglob("*.bin"))
    info = corpus.info
    assert (info.train_tokens, info.val_tokens) == (1_000, 100)
    assert (info.source, info.documents, info.overlap) == ("tokens", None, None)
    assert corpus.tokenizer is None


def test_shards_are_one_text_however_they_are_cut(write: Write, tmp_path: Path) -> None:
    whole, val = write("whole.bin", ids(0)), write("v.bin", ids(1, 100))
    for i, part in enumerate(np.split(ids(0), [100, 101, 700])):
        write(f"part_{i}.bin", part, header=i % 2 == 0)
    parts = sorted(tmp_path.glob("part_*.bin"))
    ways = [whole, parts, tmp_path / "part_*.bin"]
    corpora = [data.prepare(config(way, val), tmp_path / "cache") for way in ways]
    for corpus in corpora:
        assert (corpus.train == ids(0)).all()
        for name in ("content_sha256", "data_sha256", "val_sha256", "train_tokens"):
            assert getattr(corpus.info, name) == getattr(corpora[0].info, name)
    turned = data.prepare(config(parts[::-1], val), tmp_path / "cache")
    assert turned.info.data_sha256 != corpora[0].info.data_sha256
    assert turned.info.val_sha256 == corpora[0].info.val_sha256


def test_unchanged_shards_are_checked_once(write: Write, tmp_path: Path, monkeypatch) -> None:
    train, val = write("t.bin", ids(0)), write("v.bin", ids(1, 100))
    first = data.prepare(config(train, val), tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(data, "measure", None)  # so that calling it fails
        assert data.prepare(config(train, val), tmp_path / "cache").info == first.info
    write("t.bin", ids(2))
    assert data.prepare(config(train, val), tmp_path / "cache").info != first.info
    write("t.bin", [*ids(0), 500])
    with pytest.raises(DataError, match="id 500 at position 1,000"):
        data.prepare(config(train, val), tmp_path / "cache")


def test_end_of_text_counts_the_documents(write: Write, tmp_path: Path) -> None:
    train, val = write("t.bin", [5, 6, 0] * 10), write("v.bin", [7, 0] * 8)
    info = data.prepare(config(train, val, end_of_text=0), tmp_path / "cache").info
    assert info.documents == 18
    assert data.prepare(config(train, val), tmp_path / "cache").info.documents is None


@settings(max_examples=30)
@given(tokens=st.lists(st.integers(0, 60), min_size=1, max_size=80), size=st.integers(1, 61))
def test_exactly_the_first_id_outside_the_vocabulary_is_named(
    tmp_path_factory, tokens: list[int], size: int
) -> None:
    folder = tmp_path_factory.mktemp("ids")
    write_bin(folder / "t.bin", tokens, header=True)
    write_bin(folder / "v.bin", [0] * 99, header=False)
    made = config(folder / "t.bin", folder / "v.bin", vocab_size=size)
    bad = [(i, t) for i, t in enumerate(tokens) if t >= size]
    if not bad:
        assert data.prepare(made, folder / "cache").info.train_tokens == len(tokens)
        return
    with pytest.raises(DataError) as error:
        data.prepare(made, folder / "cache")
    place, value = bad[0]
    assert f"t.bin: id {value} at position {place} is not below data.vocab_size" in str(error.value)


# Refusals


def refusal(tmp_path: Path, train: object, val: object, **changes: object) -> str:
    with pytest.raises(DataError) as error:
        data.prepare(config(train, val, **changes), tmp_path / "cache")
    return str(error.value)


@pytest.mark.parametrize("key", ["data.path", "data.val_path"])
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "holds no tokens; leave it out"),
        (b"abc", "has 3 bytes, no whole number of uint16 tokens; make it again"),
        (np.array([20240520, 1, 0], "<i4").tobytes(), "ends inside its header: it is damaged"),
        (np.array([20240520, 1, 9, *[0] * 253], "<i4").tobytes(), "holds 0 tokens, its header"),
        (
            np.array([20240520, 1, 3, *[0] * 253, 1], "<i4").tobytes(),
            "holds 2 tokens, its header says 3: it is damaged; make it again",
        ),
        (np.array([20240520, 7, *[0] * 300], "<i4").tobytes(), "has a header of version 7"),
    ],
)
def test_bad_files_are_named(
    write: Write, tmp_path: Path, key: str, content: bytes, told: str
) -> None:
    good, bad = write("good.bin", ids(0)), tmp_path / "bad.bin"
    bad.write_bytes(content)
    text = refusal(tmp_path, *((bad, good) if key == "data.path" else (good, bad)))
    assert text.startswith(f"{key}: {bad}")
    assert told in text


def test_other_files_than_bin_are_refused(write: Write, tmp_path: Path) -> None:
    good = write("good.bin", ids(0))
    np.save(tmp_path / "a.npy", ids(0))
    text = refusal(tmp_path, tmp_path / "a.npy", good)
    assert "a.npy is not a .bin file; give shards of uint16 tokens" in text


def test_paths_without_files_are_refused(write: Write, tmp_path: Path) -> None:
    good = write("good.bin", ids(0))
    text = refusal(tmp_path, good, tmp_path / "nothing_*.bin")
    assert "data.val_path = " in text
    assert "no such file or folder" in text
    (tmp_path / "empty").mkdir()
    assert "no file there; give .bin files" in refusal(tmp_path, tmp_path / "empty", good)


def test_held_out_shards_may_not_stand_in_training(write: Write, tmp_path: Path) -> None:
    for i in range(3):
        write(f"s{i}.bin", ids(i))
    copy = write("copy.bin", ids(1), header=True)
    text = refusal(tmp_path, tmp_path / "s*.bin", tmp_path / "s2.bin")
    assert f"{tmp_path / 's2.bin'} holds the tokens of {tmp_path / 's2.bin'}" in text
    text = refusal(tmp_path, tmp_path / "s*.bin", copy)
    assert f"{copy} holds the tokens of {tmp_path / 's1.bin'}, which is in data.path" in text


def test_an_end_of_text_that_is_nowhere_is_refused(write: Write, tmp_path: Path) -> None:
    train, val = write("t.bin", [1, 2] * 20), write("v.bin", [1, 2] * 10)
    text = refusal(tmp_path, train, val, end_of_text=3)
    assert "data.end_of_text = 3: no token of the shards has this id" in text


def test_too_few_held_out_tokens_are_refused(write: Write, tmp_path: Path) -> None:
    text = refusal(tmp_path, write("t.bin", ids(0)), write("v.bin", ids(1, 8)))
    assert "data.eval_tokens = 8 exceeds the 7 held-out tokens" in text
    assert "give more in data.val_path" in text
    assert "val_fraction" not in text
