"""From text to shards and batches: the split, the order, the cache, and every refusal."""

import argparse
import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt import data
from minigpt.config import DataConfig
from minigpt.data import Corpus, DataError
from minigpt.split import BLOCK_BYTES
from minigpt.text import STDLIB_LEFT_OUT, files
from minigpt.tokenizer import BYTES


def config(path, **changes) -> DataConfig:
    values = {"source": "text", "val_fraction": 0.3, "eval_tokens": 8, "curve_eval_tokens": 8}
    path = [str(p) for p in path] if isinstance(path, list) else str(path)
    return DataConfig.model_validate(values | {"path": path} | changes)


def documents(shard: np.ndarray) -> list[bytes]:
    """The texts between the end-of-text tokens."""
    ends = np.flatnonzero(shard == BYTES.end_of_text)
    assert ends[-1] == len(shard) - 1
    starts = np.concatenate(([0], ends[:-1] + 1))
    return [bytes(shard[a:b].astype(np.uint8)) for a, b in zip(starts, ends, strict=True)]


def write(folder: Path, texts: list[bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for i, text in enumerate(texts):
        (folder / f"{i:03d}.txt").write_bytes(text)
    return folder


@pytest.fixture
def texts(words):
    """Thirty texts, with bytes of every length of UTF-8 among them."""
    return [words(i, 300) + "ä€𝄞\r\n\t".encode() for i in range(30)]


# Tokens


def test_bytes_come_back_with_an_end_after_every_document(tmp_path, texts):
    corpus = data.prepare(config(write(tmp_path / "t", texts)), tmp_path / "cache")
    assert sorted(documents(corpus.train) + documents(corpus.val)) == sorted(texts)
    assert corpus.info.train_tokens + corpus.info.val_tokens == sum(map(len, texts)) + len(texts)
    assert (len(corpus.train), len(corpus.val)) == (
        corpus.info.train_tokens,
        corpus.info.val_tokens,
    )
    assert corpus.train.dtype == np.uint16
    assert isinstance(corpus.train, np.memmap)
    assert (corpus.info.documents, corpus.info.split_unit) == (30, "document")
    assert BYTES.end_of_text == BYTES.vocab_size - 1 == 256


@settings(max_examples=12)
@given(st.lists(st.text(min_size=1, max_size=200), min_size=1, max_size=8), st.integers(0, 10**6))
def test_any_text_comes_back(tmp_path_factory, strings, salt):
    folder = tmp_path_factory.mktemp("any")
    filler = [f"filler {salt} {i}\n".encode() * 20 for i in range(40)]
    strings = [s for s in strings if "\0" not in s]
    texts = filler + [s.encode() for s in strings]
    corpus = data.prepare(config(write(folder / "t", texts)), folder / "cache")
    assert sorted(documents(corpus.train) + documents(corpus.val)) == sorted(texts)


# The split


def test_no_held_out_document_is_in_training(tmp_path, texts):
    texts = texts + texts[:10]  # doubles go to one side together
    corpus = data.prepare(config(write(tmp_path / "t", texts)), tmp_path / "cache")
    train, val = set(documents(corpus.train)), set(documents(corpus.val))
    assert train
    assert val
    assert not train & val


def test_documents_never_change_sides(tmp_path, texts, words):
    first = data.prepare(config(write(tmp_path / "a", texts)), tmp_path / "cache")
    more = [words(1000 + i, 300) for i in range(50)]
    second = data.prepare(config(write(tmp_path / "b", more + texts[::-1])), tmp_path / "cache")
    assert set(documents(first.val)) < set(documents(second.val))
    assert set(documents(first.train)) < set(documents(second.train))


def test_a_larger_fraction_only_adds_to_the_held_out(tmp_path, texts):
    folder = write(tmp_path / "t", texts)
    small, large = (
        data.prepare(config(folder, val_fraction=fraction), tmp_path / "cache")
        for fraction in (0.2, 0.6)
    )
    assert set(documents(small.val)) < set(documents(large.val))


def test_val_fraction_is_the_share_of_documents(tmp_path, words):
    texts = [words(i, 60) for i in range(400)]
    corpus = data.prepare(
        config(write(tmp_path / "t", texts), val_fraction=0.25), tmp_path / "cache"
    )
    assert len(documents(corpus.val)) / 400 == pytest.approx(0.25, abs=4 * 0.0217)  # 4 σ


def test_few_documents_are_split_by_blocks_at_line_ends(tmp_path, words):
    text = words(1, 1_000_000)
    (tmp_path / "book.txt").write_bytes(text)
    corpus = data.prepare(config(tmp_path / "book.txt"), tmp_path / "cache")
    assert (corpus.info.documents, corpus.info.split_unit) == (1, "block")
    pieces = documents(corpus.train) + documents(corpus.val)
    assert len(pieces) == pytest.approx(len(text) / BLOCK_BYTES, abs=1)
    assert all(piece in text and piece.endswith(b"\n") for piece in pieces)
    assert sum(map(len, pieces)) == len(text)
    assert not set(documents(corpus.train)) & set(documents(corpus.val))


def test_overlap_is_the_share_of_repeated_line_triples(tmp_path, words):
    """Documents that share paragraphs, blank lines and indents aside."""
    paragraphs = [words(i, 200).splitlines(keepends=True) for i in range(120)]
    texts = []
    for i in range(60):
        lines = [b"head %d\n" % i, *paragraphs[i], b"\n", *paragraphs[i * 7 % 120 + i % 2 - 1]]
        texts.append(b"".join(b" " * (i % 3) + line for line in lines))
    corpus = data.prepare(config(write(tmp_path / "t", texts)), tmp_path / "cache")

    def triples(text):
        lines = [line.strip() for line in text.split(b"\n")]
        lines = [line for line in lines if line]
        return [tuple(lines[i : i + 3]) for i in range(len(lines) - 2)]

    train = {triple for text in documents(corpus.train) for triple in triples(text)}
    val = [triple for text in documents(corpus.val) for triple in triples(text)]
    assert corpus.info.overlap == pytest.approx(sum(t in train for t in val) / len(val))
    assert 0.1 < corpus.info.overlap < 0.9


# Batches


@pytest.fixture(scope="module")
def numbered(corpus) -> Corpus:
    """A shard whose tokens are their own places, so that windows can be told apart."""
    return Corpus(corpus.info, np.arange(3_001, dtype="<u2"), np.arange(1_001, dtype="<u2"))


def of(corpus: Corpus, step: int, batch_size: int, seq_len: int = 16, seed: int = 0):
    return data.batch(corpus, seed=seed, step=step, batch_size=batch_size, seq_len=seq_len)


@settings(max_examples=60)
@given(
    seq_len=st.integers(1, 100),
    batch_size=st.integers(1, 40),
    seed=st.integers(0, 2**32),
    epoch=st.integers(0, 3),
)
def test_an_epoch_visits_every_window_once(numbered, seq_len, batch_size, seed, epoch):
    n = data.windows(len(numbered.train), seq_len)
    first, last = epoch * n // batch_size, -(-(epoch + 1) * n // batch_size)
    batches = [of(numbered, s, batch_size, seq_len, seed)[0] for s in range(first, last)]
    windows = np.concatenate(batches)[epoch * n - first * batch_size :][:n]
    assert (np.sort(windows[:, 0]) == np.arange(n) * seq_len).all()


@settings(max_examples=30)
@given(
    sizes=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    seq_len=st.integers(4, 64),
    seed=st.integers(0, 1000),
)
def test_order_of_windows_is_the_same_for_every_batch_size(numbered, sizes, seq_len, seed):
    total = 2 * data.windows(len(numbered.train), seq_len)  # past the end of the first epoch
    orders = [
        np.concatenate([of(numbered, s, size, seq_len, seed)[0] for s in range(-(-total // size))])[
            :total
        ]
        for size in sizes
    ]
    assert (orders[0] == orders[1]).all()


@settings(max_examples=60)
@given(step=st.integers(0, 10**6), batch_size=st.integers(1, 20), seed=st.integers(0, 2**32))
def test_targets_are_the_next_tokens(numbered, step, batch_size, seed):
    inputs, targets = of(numbered, step, batch_size, seed=seed)
    assert inputs.shape == targets.shape == (batch_size, 16)
    assert inputs.dtype == targets.dtype == np.int64
    assert (targets == inputs + 1).all()
    assert (np.diff(inputs) == 1).all()


def test_batch_is_pure_in_seed_and_step(numbered):
    expected = {(seed, s): of(numbered, s, 5, seed=seed)[0] for seed in range(6) for s in (0, 70)}
    for (seed, step), inputs in reversed(expected.items()):
        assert (of(numbered, step, 5, seed=seed)[0] == inputs).all()
    different = {inputs.tobytes() for inputs in expected.values()}
    assert len(different) == len(expected)


def test_every_epoch_has_another_order(numbered):
    n = data.windows(len(numbered.train), 16)
    orders = [of(numbered, epoch, n)[0][:, 0] for epoch in range(3)]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(orders[2])
    assert not (orders[0] == orders[1]).all()
    assert not (orders[1] == orders[2]).all()
    assert not (orders[0] == np.sort(orders[0])).all()


def test_batches_are_the_corpus_own_tokens(corpus):
    inputs, targets = of(corpus, 3, 4)
    text = corpus.train.tobytes()
    for row, next_row in zip(inputs, targets, strict=True):
        assert np.append(row, next_row[-1]).astype("<u2").tobytes() in text


@settings(max_examples=60)
@given(tokens=st.integers(1, 1_000), seq_len=st.integers(1, 100), batch_size=st.integers(1, 20))
def test_held_out_windows_are_fixed_and_within_the_first_tokens(
    numbered, tokens, seq_len, batch_size
):
    count, rows = tokens // seq_len, []
    for start in range(0, count, batch_size):
        inputs, targets = data.held_out(
            numbered, tokens=tokens, seq_len=seq_len, start=start, batch_size=batch_size
        )
        assert (targets == inputs + 1).all()
        rows += list(inputs)
    whole = np.concatenate(rows) if rows else np.array([])
    assert (whole == np.arange(count * seq_len)).all()


# The cache


def test_second_prepare_reads_what_the_first_wrote(tmp_path, texts):
    folder, cache = write(tmp_path / "t", texts), tmp_path / "cache"
    first = data.prepare(config(folder), cache)
    times = {p: p.stat().st_mtime_ns for p in cache.rglob("*") if p.is_file()}
    second = data.prepare(config(folder), cache)
    assert {p: p.stat().st_mtime_ns for p in cache.rglob("*") if p.is_file()} == times
    assert second.info == first.info
    assert (second.train == first.train).all()
    assert not [p for p in cache.iterdir() if p.name.startswith(".")]  # nothing half-made


def test_same_text_elsewhere_shares_its_shards(tmp_path, texts):
    one = data.prepare(config(write(tmp_path / "a", texts)), tmp_path / "cache")
    two = data.prepare(config(write(tmp_path / "b", texts)), tmp_path / "cache")
    assert Path(one.train.filename) == Path(two.train.filename)


def test_edited_text_has_another_hash(tmp_path, texts):
    folder, cache = write(tmp_path / "t", texts), tmp_path / "cache"
    before = data.prepare(config(folder), cache)
    for i in range(30):
        (folder / f"{i:03d}.txt").write_bytes(texts[i].replace(b"a", b"b"))  # the same size
    after = data.prepare(config(folder), cache)
    assert after.info.content_sha256 != before.info.content_sha256
    assert after.info.data_sha256 != before.info.data_sha256
    assert after.info.val_sha256 != before.info.val_sha256
    assert b"a" not in b"".join(documents(after.train))


def test_another_fraction_has_other_shards(tmp_path, texts):
    folder = write(tmp_path / "t", texts)
    one, two = (
        data.prepare(config(folder, val_fraction=fraction), tmp_path / "cache")
        for fraction in (0.3, 0.6)
    )
    assert one.info.content_sha256 == two.info.content_sha256
    assert one.info.val_sha256 != two.info.val_sha256


def test_hashes_do_not_depend_on_where_the_cache_lies(tmp_path, texts):
    folder = write(tmp_path / "t", texts)
    one, two = (data.prepare(config(folder), tmp_path / name).info for name in ("c1", "c2"))
    assert one == two


def test_overlap_does_not_depend_on_the_hash_seed(tmp_path, texts):
    """Python's salted hash is used inside: its value must not show."""
    folder = write(tmp_path / "t", texts + texts)
    found = set()
    for seed in ("0", "1"):
        code = (
            "import sys; from pathlib import Path; from minigpt import data; "
            "from minigpt.config import DataConfig; "
            "c = DataConfig.model_validate_json(sys.argv[1]); "
            "print(data.prepare(c, Path(sys.argv[2])).info)"
        )
        found.add(
            subprocess.run(
                [sys.executable, "-c", code, config(folder).model_dump_json(), tmp_path / seed],
                env={"PYTHONHASHSEED": seed},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
    assert len(found) == 1


# Files


def test_binary_files_are_skipped_by_name(tmp_path, texts):
    folder = write(tmp_path / "t", texts)
    (folder / "picture.png").write_bytes(b"\x89PNG\r\n\xff")
    (folder / "zero.txt").write_bytes(b"a\0b")
    corpus = data.prepare(config(folder), tmp_path / "cache")
    assert corpus.info.documents == 30
    assert sorted(Path(p).name for p in corpus.info.skipped) == ["picture.png", "zero.txt"]


def test_skipped_names_belong_to_this_folder_not_to_the_first_of_equal_text(tmp_path, texts):
    clean = data.prepare(config(write(tmp_path / "a", texts)), tmp_path / "cache")
    folder = write(tmp_path / "b", texts)
    (folder / "picture.png").write_bytes(b"\x89PNG\r\n\xff")
    mixed = data.prepare(config(folder), tmp_path / "cache")
    assert clean.info.skipped == ()
    assert [Path(p).name for p in mixed.info.skipped] == ["picture.png"]


def test_hidden_and_empty_files_are_left_out(tmp_path, texts):
    folder = write(tmp_path / "t", texts)
    (folder / ".hidden.txt").write_text("hidden\n")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("hidden\n")
    (folder / "empty.txt").write_bytes(b"")
    corpus = data.prepare(config(folder), tmp_path / "cache")
    assert corpus.info.documents == 30
    assert b"hidden" not in b"".join(documents(corpus.train) + documents(corpus.val))


def test_folders_files_and_globs_give_the_same_corpus_once(tmp_path, texts):
    folder = write(tmp_path / "t", texts)
    ways = [
        folder,
        folder / "*.txt",
        sorted(folder.iterdir()),
        [folder, folder / "*.txt", folder / "003.txt"],
    ]
    infos = [data.prepare(config(way), tmp_path / "cache").info for way in ways]
    assert len({(info.content_sha256, info.documents) for info in infos}) == 1


def test_subfolders_are_read(tmp_path, texts):
    folder = write(tmp_path / "t", texts[:15])
    write(folder / "deeper", texts[15:])
    assert data.prepare(config(folder), tmp_path / "cache").info.documents == 30


# What a sweep writes into the user's folder


@pytest.fixture
def crowded(tmp_path, texts, words, monkeypatch):
    """The current folder: texts, and a folder `out/sweep` with text that is not the user's."""
    write(tmp_path / "here", texts[:15])
    write(tmp_path / "here" / "out", texts[15:])
    write(tmp_path / "here" / "out" / "sweep", [words(500, 300)])
    write(tmp_path / "here" / "out" / "sweep" / "deeper", [words(501, 300)])
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("way", [".", "**/*.txt", "both"])
def test_files_in_the_folder_left_out_are_not_read(crowded, tmp_path, texts, way, relative):
    ways = [".", "out/sweep/000.txt", "*/*/*.txt"] if way == "both" else way
    out = Path("out/sweep") if relative else crowded / "out" / "sweep"
    corpus = data.prepare(config(ways), tmp_path / "cache", leave_out=out)
    assert sorted(documents(corpus.train) + documents(corpus.val)) == sorted(texts)
    everything = data.prepare(config(ways), tmp_path / "cache")
    assert everything.info.documents == 32
    assert everything.info.content_sha256 != corpus.info.content_sha256


def test_the_folder_left_out_is_known_by_what_it_is_not_by_its_name(crowded, tmp_path, texts):
    """Behind a link, and beside folders whose names begin alike."""
    (crowded / "out" / "sweep" / "000.txt").rename(crowded / "out" / "mine.txt")
    (crowded / "linked.txt").symlink_to(crowded / "out" / "sweep" / "deeper" / "000.txt")
    (tmp_path / "link").symlink_to(crowded / "out" / "sweep")
    write(crowded / "out" / "sweep2", [b"also mine\n"])
    corpus = data.prepare(config("."), tmp_path / "cache", leave_out=tmp_path / "link")
    mine = [*texts, (crowded / "out" / "mine.txt").read_bytes(), b"also mine\n"]
    assert sorted(documents(corpus.train) + documents(corpus.val)) == sorted(mine)


def test_what_is_written_into_the_folder_left_out_changes_nothing(crowded, tmp_path):
    """Not even there where it lies not yet: a sweep's first start and its second see one corpus."""
    cache, out = tmp_path / "cache", crowded / "new"
    before = data.prepare(config("."), cache, leave_out=out)
    write(out, [b"a log of the first start\n"])
    kept = {p: p.stat().st_mtime_ns for p in cache.rglob("*") if p.is_file()}
    assert data.prepare(config("."), cache, leave_out=out).info == before.info
    assert {p: p.stat().st_mtime_ns for p in cache.rglob("*") if p.is_file()} == kept
    assert data.prepare(config("."), cache).info.documents == before.info.documents + 1


def test_nothing_but_the_folder_left_out_is_no_text(crowded, tmp_path):
    with pytest.raises(DataError, match="no text in it"):
        data.prepare(config("out/sweep"), tmp_path / "cache", leave_out=crowded / "out" / "sweep")


# Refusals


def refusal(config: DataConfig, cache: Path) -> str:
    with pytest.raises(DataError) as error:
        data.prepare(config, cache)
    return str(error.value)


@pytest.mark.parametrize("name", ["nowhere", "nowhere/*.txt"])
def test_missing_path_is_refused(tmp_path, name):
    text = refusal(config(tmp_path / name), tmp_path / "cache")
    assert repr(str(tmp_path / name)) in text
    assert "no such file or folder, and no file matches it as a glob" in text
    assert "paths are relative to the current folder" in text


@pytest.mark.parametrize("way", ["~nosuchuser/x", ["~nosuchuser/x"]])
def test_home_of_nobody_is_refused(tmp_path, way):
    text = refusal(config(way), tmp_path / "cache")
    assert "data.path = '~nosuchuser/x': " in text
    assert "write the whole path" in text


def test_home_is_found(tmp_path, texts, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "t", texts)
    corpus = data.prepare(config("~/t"), tmp_path / "cache")
    assert corpus.info.documents == 30


def test_empty_folder_is_refused(tmp_path):
    (tmp_path / "t").mkdir()
    text = refusal(config(tmp_path / "t"), tmp_path / "cache")
    assert str(tmp_path / "t") in text
    assert "no text in it; give files that hold plain UTF-8 text" in text


def test_folder_of_empty_or_binary_files_is_refused(tmp_path):
    folder = write(tmp_path / "t", [b"", b"\xff\xfe"])
    assert "no text in it" in refusal(config(folder), tmp_path / "cache")


def test_named_binary_file_is_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    text = refusal(config(tmp_path / "a.txt"), tmp_path / "cache")
    assert str(tmp_path / "a.txt") in text
    assert "not plain UTF-8 text; convert it, or leave it out" in text


def test_named_binary_file_is_refused_though_its_folder_was_read_before(tmp_path, texts):
    folder = write(tmp_path / "t", texts)
    (folder / "picture.png").write_bytes(b"\x89PNG\r\n\xff")
    data.prepare(config(folder), tmp_path / "cache")
    text = refusal(config(sorted(folder.iterdir())), tmp_path / "cache")
    assert "not plain UTF-8 text" in text


def test_unreadable_file_is_refused(tmp_path, texts, monkeypatch):
    folder = write(tmp_path / "t", texts)

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    text = refusal(config(folder), tmp_path / "cache")
    assert f"cannot read {folder / '000.txt'}: Permission denied" in text


@pytest.mark.parametrize(("fraction", "side"), [(0.001, "held-out"), (0.999, "training")])
def test_one_piece_cannot_be_split(tmp_path, fraction, side):
    (tmp_path / "a.txt").write_text("one line\n")
    text = refusal(config(tmp_path / "a.txt", val_fraction=fraction), tmp_path / "cache")
    assert f"9 bytes in 1 pieces leave no {side} text at data.val_fraction = {fraction}" in text
    assert "give more text or change data.val_fraction" in text


def test_eval_tokens_beyond_the_held_out_text_are_refused(tmp_path, texts):
    folder, cache = write(tmp_path / "t", texts), tmp_path / "cache"
    val_tokens = data.prepare(config(folder), cache).info.val_tokens
    text = refusal(config(folder, eval_tokens=val_tokens), cache)
    assert f"data.eval_tokens = {val_tokens:,} exceeds the {val_tokens - 1:,} held-out" in text
    assert "lower data.eval_tokens" in text
    assert "raise data.val_fraction" in text
    # One less is the most that there is: every input needs its next token.
    assert data.prepare(config(folder, eval_tokens=val_tokens - 1), cache).val.size == val_tokens


# The embedded corpus


@pytest.fixture(scope="module")
def stdlib(tmp_path_factory):
    return data.prepare(DataConfig(), tmp_path_factory.mktemp("stdlib"))


def test_stdlib_is_large_enough_and_hardly_repeats_itself(stdlib):
    assert 5e6 < stdlib.info.train_tokens + stdlib.info.val_tokens < 20e6
    assert 0 < stdlib.info.overlap < 0.05
    assert stdlib.info.val_tokens > DataConfig().eval_tokens
    assert stdlib.info.origin == f"Python {'.'.join(map(str, sys.version_info[:3]))}"
    assert (stdlib.info.source, stdlib.info.split_unit) == ("stdlib", "document")


def test_stdlib_holds_modules_and_none_of_the_folders_left_out(stdlib):
    root = Path(sysconfig.get_path("stdlib"))
    held = set(documents(stdlib.train)) | set(documents(stdlib.val))
    for name in ("argparse.py", "json/decoder.py", "asyncio/tasks.py"):
        assert (root / name).read_bytes() in held
    left_out = [
        text
        for path in root.rglob("*.py")
        if "site-packages" not in path.parts  # it holds copies of modules, and the rest is anyone's
        and STDLIB_LEFT_OUT & set(path.relative_to(root).parts[:-1])
        and len(text := path.read_bytes()) > 2_000  # small files stand elsewhere too
    ]
    assert left_out
    assert not held & set(left_out)


def test_stdlib_names_its_content_in_meta_json(stdlib):
    stored = json.loads((Path(stdlib.train.filename).parent / "meta.json").read_text())
    assert stored["content_sha256"] == stdlib.info.content_sha256
    assert stored["overlap"] == stdlib.info.overlap


# The libraries of an interpreter


def module(name: str) -> bytes:
    """Source text as people write it, different for every name."""
    lines = [f"def {name}_{word}(value, other):" for word in ("first", "second", "third")]
    return "".join(f"{line}\n    return value + other\n\n" for line in lines).encode()


@pytest.fixture
def interpreter(tmp_path, monkeypatch):
    """Folders that stand for those of an interpreter, with forty small modules and a package."""
    roots = {key: tmp_path / "python" / key for key in ("stdlib", "purelib", "platlib")}
    monkeypatch.setattr(sysconfig, "get_path", lambda key: str(roots[key]))
    for i in range(40):
        put(roots["stdlib"] / f"module{i:02d}.py", module(f"module{i}"))
    put(roots["purelib"] / "package" / "deeper" / "part.py", module("part"))
    put(roots["platlib"] / "compiled.py", module("compiled"))
    for name in ("package-1.0", "compiled-2.1"):
        put(roots["purelib"] / f"{name}.dist-info" / "METADATA", b"Name: some\n")
    return roots


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def libraries(cache: Path, **changes) -> Corpus:
    values = {"val_fraction": 0.3, "eval_tokens": 8, "curve_eval_tokens": 8}
    return data.prepare(
        DataConfig.model_validate({"source": "libraries", **values, **changes}), cache
    )


def held(corpus: Corpus) -> list[bytes]:
    return sorted(documents(corpus.train) + documents(corpus.val))


def test_libraries_are_the_modules_of_every_root(interpreter, tmp_path):
    corpus = libraries(tmp_path / "cache")
    names = [*(f"module{i}" for i in range(40)), "part", "compiled"]
    assert held(corpus) == sorted(map(module, names))
    assert corpus.info.origin.endswith(" with 2 distributions")
    assert (corpus.info.source, corpus.info.split_unit) == ("libraries", "document")
    train, val = set(documents(corpus.train)), set(documents(corpus.val))
    assert train
    assert val
    assert not train & val
    stdlib = data.prepare(
        DataConfig(val_fraction=0.3, eval_tokens=8, curve_eval_tokens=8), tmp_path / "cache"
    )
    assert set(held(stdlib)) < set(held(corpus))
    assert set(documents(stdlib.val)) <= val  # a document never changes side


@pytest.mark.parametrize(
    "name",
    [
        *("package/test/a.py", "package/tests/a.py", "package/testing/deeper/a.py"),
        *(
            "package/test_files/a.py",
            "package/test_a.py",
            "package/a_test.py",
            "package/conftest.py",
        ),
        *("package/tests.py", "package/encodings/a.py", "site-packages/a.py", "package/notes.txt"),
        *("package/stub.pyi", "package/script"),
    ],
)
@pytest.mark.parametrize("root", ["stdlib", "purelib"])
def test_tests_and_what_is_no_module_are_left_out(interpreter, tmp_path, name, root):
    before = libraries(tmp_path / "cache")
    put(interpreter[root] / name, module("unwanted"))
    after = libraries(tmp_path / "cache")
    assert after.info == before.info
    put(interpreter[root] / "package" / "attest.py", module("wanted"))
    assert libraries(tmp_path / "cache").info.documents == before.info.documents + 1


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        ("\n".join(f"    0x{i:04X}: ({i}, {i * i})," for i in range(200)), False),
        ("\n".join(f"    '\\u{i:04x}': 3," for i in range(900, 1100)), False),
        ("\n".join(f"    'क्का{chr(0x915 + i)}': 3," for i in range(30)), False),
        (f"WORDS = '{'word ' * 200}'", False),  # a line of 1,010 bytes
        (f"WORDS = '{'word ' * 190}'", True),
        ("\n".join(f"    'name_of_colour_{i}': Colour({i}, 255)," for i in range(50)), True),
        ("# Sieh: größere Änderungen überall\nname = 'Übergrößen'\n", True),
        ("\n\n\n", True),
    ],
)
def test_generated_tables_are_left_out(interpreter, tmp_path, content, kept):
    put(interpreter["platlib"] / "some.py", content.encode())
    assert (content.encode() in held(libraries(tmp_path / "cache"))) == kept


def test_equal_files_are_one_document(interpreter, tmp_path):
    before = libraries(tmp_path / "cache")
    for name in ("vendored/part.py", "aaa.py", "zzz.py"):
        put(interpreter["purelib"] / name, module("part"))
    after = libraries(tmp_path / "cache")
    assert after.info.documents == before.info.documents
    assert held(after) == held(before)
    put(interpreter["purelib"] / "zzz.py", module("other"))
    assert libraries(tmp_path / "cache").info.documents == before.info.documents + 1


def test_one_folder_under_two_names_is_read_once(interpreter, tmp_path, monkeypatch):
    before = libraries(tmp_path / "cache")
    shutil.copytree(interpreter["platlib"], interpreter["purelib"], dirs_exist_ok=True)
    both = {**interpreter, "platlib": interpreter["purelib"]}
    monkeypatch.setattr(sysconfig, "get_path", lambda key: str(both[key]))
    after = libraries(tmp_path / "cache")
    assert held(after) == held(before)
    assert after.info.origin == before.info.origin


def test_what_is_not_text_is_skipped_and_links_are_read_where_they_lead(interpreter, tmp_path):
    before = libraries(tmp_path / "cache")
    put(interpreter["purelib"] / "latin.py", "name = 'Größe'".encode("latin-1"))
    elsewhere = put(tmp_path / "checkout" / "project" / "own.py", module("own")).parent
    (interpreter["purelib"] / "project").symlink_to(elsewhere)  # installed in place by a link
    (interpreter["purelib"] / "gone.py").symlink_to(tmp_path / "nowhere.py")
    after = libraries(tmp_path / "cache")
    assert held(after) == held(before)
    assert [Path(name).name for name in after.info.skipped] == ["latin.py"]


def test_libraries_elsewhere_give_the_same_corpus(interpreter, tmp_path, monkeypatch):
    one = libraries(tmp_path / "cache")
    shutil.copytree(tmp_path / "python", tmp_path / "other")
    moved = {key: tmp_path / "other" / key for key in interpreter}
    monkeypatch.setattr(sysconfig, "get_path", lambda key: str(moved[key]))
    assert libraries(tmp_path / "cache2").info == one.info


def test_libraries_here_hold_what_is_installed_and_not_this_repository(tmp_path):
    """An editable install, as `make` does, lies outside site-packages."""
    found, named = files(DataConfig(source="libraries"))
    assert {Path(pydantic.__file__), Path(argparse.__file__)} <= set(found)
    assert {path.suffix for path in found} == {".py"}
    own = Path(data.__file__).resolve().parent.parent
    inside = [
        p for p in found if p.resolve().is_relative_to(own) and "site-packages" not in p.parts
    ]
    assert (inside, named) == ([], set())


@pytest.mark.parametrize("module", ["data", "config", "counts", "schedule"])
def test_what_plans_need_imports_no_torch(module):
    code = f"import sys, minigpt.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
