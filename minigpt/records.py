"""Documents of files that are not plain text as they lie there: compressed text, and records.

A `.jsonl` file has one JSON object a line, a `.parquet` file one row a record; the text of each
stands in one column and is a document. `.gz` and `.zst` hold plain text or jsonl. No torch.
"""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from minigpt.paths import DataError, unreadable

COMPRESSION = {".gz": "gzip", ".zst": "zstd"}
BATCH_ROWS = 1_024  # of a parquet file at a time: documents can be long
SHOWN = 60  # characters of a value in a message


def compressed(path: Path) -> bool:
    """Whether the file is compressed, by its name."""
    return path.suffix.lower() in COMPRESSION


def has_records(path: Path) -> bool:
    """Whether the file holds records, by its name: jsonl, compressed or not, or parquet."""
    unpacked = path.with_suffix("") if compressed(path) else path
    return path.suffix.lower() == ".parquet" or unpacked.suffix.lower() == ".jsonl"


def decompressed(path: Path, key: str) -> bytes:
    """The content of a compressed file of `key`.

    Raises DataError for one that cannot be read or is damaged.
    """
    with _stream(path, key) as stream:
        return stream.read()


def documents(path: Path, column: str, key: str = "data.path") -> tuple[list[bytes], int]:
    """Texts of the records of a file of `key` that are not empty, and how many records have null.

    Raises DataError for a damaged file, for a line that is no JSON object, a record without
    `column`, or a value that is not a string, each with the line (jsonl) or row (parquet), from 1.
    """
    rows = _parquet if path.suffix.lower() == ".parquet" else _jsonl
    found, nulls = [], 0
    for place, value in rows(path, column, key):
        if value is None:
            nulls += 1
            continue
        if not isinstance(value, str):
            raise DataError(
                f"{place}: {column} = {_short(value)} is not a string; correct it, or choose "
                "another data.column"
            )
        try:
            found.append(value.encode())
        except UnicodeEncodeError as error:
            raise DataError(
                f"{place}: {column} has a lone surrogate at character {error.start}, which no "
                "UTF-8 text can hold; correct it"
            ) from None
    return [text for text in found if text], nulls


def _jsonl(path: Path, column: str, key: str) -> Iterator[tuple[str, object]]:
    with _stream(path, key) as stream:
        for number, line in enumerate(map(bytes.strip, stream), start=1):
            place = f"{key}: {path}, line {number}"
            if not line:
                continue
            try:
                record = json.loads(line.decode())
            except (ValueError, RecursionError) as error:
                known = isinstance(error, json.JSONDecodeError)
                why = f"{error.msg} at character {error.pos}" if known else error
                raise DataError(
                    f"{place}: {_short(line.decode(errors='replace'))} is not JSON ({why}); "
                    "every line is one JSON object: correct it, or leave the file out"
                ) from None
            if not isinstance(record, dict):
                raise DataError(
                    f"{place}: {_short(record)} is no JSON object; every line is one, such as "
                    f'{{"{column}": "..."}}'
                )
            if column not in record:
                raise DataError(_missing(place, column, list(record)))
            yield place, record[column]


def _parquet(path: Path, column: str, key: str) -> Iterator[tuple[str, object]]:
    with _file(path, key) as raw, _damage(path, key):
        table = pq.ParquetFile(raw)
        if column not in table.schema_arrow.names:
            raise DataError(_missing(f"{key}: {path}", column, table.schema_arrow.names))
        number = 0
        for batch in table.iter_batches(BATCH_ROWS, columns=[column]):
            for scalar in batch.column(0):
                number += 1
                place = f"{key}: {path}, row {number}"
                try:
                    value = scalar.as_py()
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{place}: {column} is not UTF-8 ({error.reason} at byte {error.start}); "
                        "correct it"
                    ) from None
                yield place, value


@contextmanager
def _file(path: Path, key: str) -> Iterator[io.BufferedReader]:
    try:
        raw = path.open("rb")
    except OSError as error:
        raise unreadable(path, key, error) from error
    with raw:
        yield raw


@contextmanager
def _stream(path: Path, key: str) -> Iterator[io.BufferedReader]:
    """The file, decompressed on the way if it is compressed."""
    with _file(path, key) as raw, _damage(path, key):
        if not compressed(path):
            yield raw
            return
        # BufferedReader has lines, and pyarrow's stream is the raw file that it asks for.
        packed = pa.input_stream(raw, compression=COMPRESSION[path.suffix.lower()])
        yield io.BufferedReader(packed)  # type: ignore[arg-type]


@contextmanager
def _damage(path: Path, key: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{key}: {path}: damaged, or not what its name says ({error}); "
            "make it again, or leave it out"
        ) from error


def _missing(place: str, column: str, names: list[str]) -> str:
    there = ", ".join(map(_short, names[:8])) + (", ..." if len(names) > 8 else "")
    return (
        f"{place}: no column {column!r}; data.column is the one that holds the text: "
        f"it has {there or 'none'}"
    )


def _short(value: object) -> str:
    told = repr(value)
    return told if len(told) <= SHOWN else f"{told[:SHOWN]}..."
