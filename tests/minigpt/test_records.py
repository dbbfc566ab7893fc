"""Text in records and in compressed files: the same documents in every form, and every refusal."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt import data, records
from minigpt.config import DataConfig
from minigpt.data import Corpus, DataError
from minigpt.tokenizer import BYTES

Writer = Callable[[Path, list[str]], object]


def config(path: Path, **changes: object) -> DataConfig:
    values = {"source": "text", "val_fraction": 0.3, "eval_tokens": 8, "curve_eval_tokens": 8}
    return DataConfig.model_validate(values | {"path": str(path)} | changes)


def lines(texts: list[str | None]) -> bytes:
    return "".join(json.dumps({"id": 1, "text": text}) + "\n" for text in texts).encode()


def zstd(content: bytes) -> bytes:
    return pa.compress(content, codec="zstd", asbytes=True)


def table(texts: list[str | None]) -> pa.Table:
    return pa.table({"id": range(len(texts)), "text": pa.array(texts, pa.string())})


def each(suffix: str, pack: Callable[[bytes], bytes]) -> Writer:
    """One file a text."""
    return lambda folder, texts: [
        (folder / f"{i:03d}{suffix}").write_bytes(pack(text.encode()))
        for i, text in enumerate(texts)
    ]


FORMS: dict[str, Writer] = {
    "txt": each(".txt", bytes),
    "txt.gz": each(".txt.gz", gzip.compress),
    "txt.zst": each(".txt.zst", zstd),
    "jsonl": lambda folder, texts: (folder / "a.jsonl").write_bytes(lines([*texts])),
    "jsonl.gz": lambda folder, texts: (folder / "a.jsonl.gz").write_bytes(
        gzip.compress(lines([*texts[:9]])) + gzip.compress(lines([*texts[9:]]))  # as `cat` joins
    ),
    "jsonl.zst": lambda folder, texts: (folder / "A.JSONL.ZST").write_bytes(zstd(lines([*texts]))),
    "parquet": lambda folder, texts: pq.write_table(
        table([*texts]), folder / "a.parquet", row_group_size=7
    ),
    "two files": lambda folder, texts: (
        (folder / "a.jsonl").write_bytes(lines([*texts[:20]])),
        pq.write_table(table([*texts[20:]]), folder / "b.parquet"),
    ),
}


@pytest.fixture(scope="module")
def texts(words: Callable[[int, int], bytes]) -> list[str]:
    return [words(i, 300).decode() + "ä€𝄞\r\n\t\u2028" for i in range(30)]


@pytest.fixture(scope="module")
def plain(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("plain")
    FORMS["txt"](folder, texts)
    return data.prepare(config(folder), tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("form", FORMS)
def test_equal_text_gives_equal_shards_in_every_form(
    form: str, texts: list[str], plain: Corpus, tmp_path: Path
) -> None:
    (tmp_path / "t").mkdir()
    FORMS[form](tmp_path / "t", texts)
    column = None if form.startswith("txt") else "text"
    corpus = data.prepare(config(tmp_path / "t", column=column), tmp_path / "cache")
    for name in ("content_sha256", "data_sha256", "val_sha256", "documents", "split_unit"):
        assert getattr(corpus.info, name) == getattr(plain.info, name), name
    assert (corpus.train == plain.train).all()
    assert corpus.info.documents == 30
    assert corpus.tokenizer is BYTES


@settings(max_examples=25)
@given(st.lists(st.none() | st.text(max_size=60), min_size=1, max_size=12))
def test_any_strings_come_back(tmp_path_factory, strings: list[str | None]) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / "a.jsonl").write_bytes(lines(strings))
    (folder / "a.jsonl.zst").write_bytes(zstd(lines(strings)))
    pq.write_table(table(strings), folder / "a.parquet")
    expected = [text.encode() for text in strings if text]
    for name in ("a.jsonl", "a.jsonl.zst", "a.parquet"):
        assert records.documents(folder / name, "text") == (expected, strings.count(None))


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_null_and_empty_records_are_no_documents(
    form: str, texts: list[str], plain: Corpus, tmp_path: Path
) -> None:
    (tmp_path / "t").mkdir()
    mixed = [*texts[:3], None, "", *texts[3:], None]
    FORMS[form](tmp_path / "t", mixed)  # type: ignore[arg-type]
    for _ in range(2):  # made, then opened
        info = data.prepare(config(tmp_path / "t", column="text"), tmp_path / "cache").info
        assert (info.documents, info.null_rows) == (30, 2)
        assert info.data_sha256 == plain.info.data_sha256


def test_blank_lines_are_no_records(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n\n   \r\n{"text": "b"}')
    assert records.documents(path, "text") == ([b"a", b"b"], 0)


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_every_string_type_of_parquet_is_text(kind: pa.DataType, tmp_path: Path) -> None:
    column = pa.array(["a", None, "b", "a"]).cast(kind)
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    assert records.documents(tmp_path / "a.parquet", "text") == ([b"a", b"b", b"a"], 1)


def test_text_and_records_lie_side_by_side(texts: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "t"
    folder.mkdir()
    FORMS["txt"](folder, texts[:15])
    (folder / "b.jsonl").write_bytes(lines([*texts[15:]]))
    (folder / "archive.tar.gz").write_bytes(gzip.compress(b"ustar\0\0"))
    corpus = data.prepare(config(folder, column="text"), tmp_path / "cache")
    assert corpus.info.documents == 30
    assert [Path(name).name for name in corpus.info.skipped] == ["archive.tar.gz"]
    both = np.concatenate([corpus.train, corpus.val])
    assert (both == BYTES.end_of_text).sum() == 30


def test_another_column_is_another_text(texts: list[str], tmp_path: Path) -> None:
    both = pa.table({"text": texts, "other": [text.upper() for text in texts]})
    pq.write_table(both, tmp_path / "a.parquet")
    one, two = (
        data.prepare(config(tmp_path / "a.parquet", column=column), tmp_path / "cache").info
        for column in ("text", "other")
    )
    assert one.content_sha256 != two.content_sha256


# Refusals


def refusal(path: Path, column: str | None, cache: Path) -> str:
    with pytest.raises(DataError) as error:
        data.prepare(config(path, column=column), cache)
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("[1, 2]", ["[1, 2] is no JSON object", '{"text": "..."}']),
        ('{"text": "b"', ['\'{"text": "b"\' is not JSON', "correct it"]),
        ("plain words", ["'plain words' is not JSON (Expecting value", "leave the file out"]),
        ("[" * 100_000, ["[[[...", "is not JSON"]),
        ('{"text": 7}', ["text = 7 is not a string", "choose another data.column"]),
        ('{"text": ["a"]}', ["text = ['a'] is not a string"]),
        ('{"body": "b", "id": 3}', ["no column 'text'", "it has 'body', 'id'"]),
        ("{}", ["no column 'text'", "it has none"]),
        ('{"text": "a\\ud800"}', ["lone surrogate at character 1", "correct it"]),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_bad_lines_are_named(suffix: str, line: str, told: list[str], tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    content = f'{{"text": "a"}}\n\n{line}\n'.encode()
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    text = refusal(path, "text", tmp_path / "cache")
    for part in [*told, "line 3"]:
        assert part in text
    assert len(text) < 500


def test_a_line_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    text = refusal(tmp_path / "a.jsonl", "text", tmp_path / "cache")
    assert "line 2" in text
    assert "is not JSON ('utf-8' codec can't decode byte 0xff" in text


@pytest.mark.parametrize(
    ("column", "told"),
    [
        (pa.array(["a", "b"]), None),
        (pa.array([None, 5]), "row 2: text = 5 is not a string"),
        (pa.array([["a"], ["b"]]), "row 1: text = ['a'] is not a string"),
        (pa.array([b"a", b"b"]), "row 1: text = b'a' is not a string"),
        (
            pa.array([b"a", b"\xff"]).view(pa.string()),
            "row 2: text is not UTF-8 (invalid start byte at byte 0); correct it",
        ),
    ],
)
def test_bad_rows_are_named(column: pa.Array, told: str | None, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": column, "id": [1, 2]}), path)
    if told is None:
        text = refusal(path, "texts", tmp_path / "cache")
        told = "no column 'texts'; data.column is the one that holds the text: it has 'text', 'id'"
    else:
        text = refusal(path, "text", tmp_path / "cache")
    assert told in text


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.parquet", b""),
        ("a.parquet", b"PAR1 but no more"),
        ("a.jsonl.gz", half(gzip.compress(lines(["some text", "more text"]), mtime=0))),
        ("a.jsonl.gz", b"not gzip"),
        ("a.jsonl.zst", half(zstd(lines(["some text", "more text"])))),
        ("a.txt.gz", half(gzip.compress(b"some text", mtime=0))),
        ("a.txt.zst", b"not zstd"),
    ],
)
def test_damaged_files_are_named_though_only_their_folder_was(
    name: str, content: bytes, tmp_path: Path
) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / name).write_bytes(content)
    column = None if ".txt" in name else "text"
    text = refusal(tmp_path / "t", column, tmp_path / "cache")
    assert name in text
    assert "damaged, or not what its name says" in text
    assert "make it again, or leave it out" in text


def test_damage_inside_a_parquet_file_is_named(texts: list[str], tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table([*texts]), path)
    content = bytearray(path.read_bytes())
    content[20:-400] = b"\xff" * len(content[20:-400])
    path.write_bytes(content)
    assert "damaged" in refusal(path, "text", tmp_path / "cache")


def test_named_compressed_binary_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"a\0b"))
    assert "not plain UTF-8 text; convert it" in refusal(path, None, tmp_path / "cache")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_records_need_a_column(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    text = refusal(tmp_path / name, None, tmp_path / "cache")
    assert "holds records; name the column that holds the text, such as data.column=text" in text


def test_a_column_needs_records(texts: list[str], tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    FORMS["txt.gz"](tmp_path / "t", texts)
    text = refusal(tmp_path / "t", "text", tmp_path / "cache")
    assert "data.column = 'text' belongs to .jsonl and .parquet files" in text
    assert "has none; remove it" in text


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(["a"]))

    def refuse(path: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    text = refusal(tmp_path / "a.jsonl", "text", tmp_path / "cache")
    assert f"cannot read {tmp_path / 'a.jsonl'}: Permission denied" in text
