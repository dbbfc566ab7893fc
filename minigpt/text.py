"""Documents: the text files and records of a corpus, listed and read. No torch."""

import importlib.metadata
import os
import platform
import string
import sysconfig
from pathlib import Path

from minigpt import records
from minigpt.config import DataConfig
from minigpt.paths import DataError, listed, unreadable

# Tests and generated tables repeat one another: held-out text would stand in training too.
STDLIB_LEFT_OUT = {
    "test",
    "tests",
    "idle_test",
    "encodings",
    "lib2to3",
    "site-packages",
    "dist-packages",
}
TESTS = {"test", "tests", "testing", "conftest"}  # also test_* and *_test
LONGEST_LINE = 1_000  # bytes; hardly anybody writes longer ones
LETTERS = 0.55  # of the bytes that are not blank; written modules have 0.6 to 0.9, tables 0 to 0.55


def files(config: DataConfig, leave_out: Path | None = None) -> tuple[list[Path], set[Path]]:
    """Files of the corpus in a fixed order, and those that the user named one by one.

    What lies in `leave_out`, where a sweep writes, is no text of the user's.
    Raises DataError for a path at which there is nothing, and for a column without records or
    records without a column.
    """
    if config.source == "stdlib":
        return _modules(sysconfig.get_path("stdlib")), set()
    if config.source == "libraries":
        return _libraries(), set()
    found, named = listed(config.path or (), "data.path", leave_out)
    with_records = _with_records(found, config.column, "data.path")
    if config.column is not None and not with_records and not config.evals:
        raise DataError(
            f"data.column = {config.column!r} belongs to .jsonl and .parquet files, and "
            f"data.path = {config.path!r} has none; remove it"
        )
    return found, named


def eval_files(
    config: DataConfig, name: str, leave_out: Path | None = None
) -> tuple[list[Path], set[Path]]:
    """Files of the eval set `name` as `files` lists those of the corpus, and under its rules."""
    key = f"data.evals.{name}"
    found, named = listed(config.evals[name], key, leave_out)
    _with_records(found, config.column, key)
    return found, named


def packed(paths: list[Path]) -> bool:
    """Whether any file is compressed or has records: then it is not read as it lies there."""
    return any(records.compressed(path) or records.has_records(path) for path in paths)


def read(
    paths: list[Path], named: set[Path], column: str | None = None, key: str = "data.path"
) -> tuple[list[bytes], tuple[str, ...], int]:
    """Documents that are not empty, names of files that are not UTF-8 text, records with null.

    `key` is what the files are from. A document is a text file, or a record of a file that has
    them: the text in its `column`.
    Raises DataError for a file that cannot be read, or that was named and is not text.
    """
    documents, skipped, nulls = [], [], 0
    for path in paths:
        if column is not None and records.has_records(path):
            texts, without = records.documents(path, column, key)
            documents += texts
            nulls += without
            continue
        text = _content(path, key)
        if _is_text(text):
            documents.append(text)
        elif path in named:
            raise DataError(
                f"{key} = {str(path)!r}: not plain UTF-8 text; convert it, or leave it out"
            )
        else:
            skipped.append(str(path))
    return [text for text in documents if text], tuple(skipped), nulls


def handwritten(documents: list[bytes]) -> list[bytes]:
    """The first of documents of equal content, without generated tables.

    A table, such as one of Unicode's or of a parser's states, repeats itself and is no text of
    anybody's. It has a line of more than LONGEST_LINE bytes, or less than LETTERS of its bytes that
    are not blank are ASCII letters (or _), because the rest are digits, quotes, escapes and signs.
    """
    return [document for document in dict.fromkeys(documents) if not _generated(document)]


def origin(config: DataConfig) -> str:
    """Whose text it is: the interpreter and its installed distributions, or the user's path."""
    if config.source == "text":
        return str(config.path)
    if config.source == "tokens":
        return f"{config.path}, held out {config.val_path}"
    python = f"Python {platform.python_version()}"
    if config.source == "stdlib":
        return python
    installed = sum(1 for _ in importlib.metadata.distributions(path=_roots("purelib", "platlib")))
    return f"{python} with {installed} distributions"


def _roots(*keys: str) -> list[str]:
    """Folders of the running interpreter's libraries; some of them may be one."""
    return list(dict.fromkeys(sysconfig.get_path(key) for key in keys))


def _modules(root: str) -> list[Path]:
    """Python files below `root` without the folders left out, in the order of their names."""
    found = []
    for folder, names, entries in os.walk(root):
        names[:] = set(names) - STDLIB_LEFT_OUT
        found += [Path(folder, name) for name in entries if name.endswith(".py")]
    found = [path for path in found if path.is_file()]  # not what a link no longer leads to
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def _libraries() -> list[Path]:
    """The standard library's and every installed library's files, without tests.

    What is installed in place (`pip install -e`) lies elsewhere and is none of them.
    """
    return [
        path
        for root in _roots("stdlib", "purelib", "platlib")
        for path in _modules(root)
        if not any(_of_tests(part) for part in path.relative_to(root).parts)
    ]


def _of_tests(name: str) -> bool:
    stem = name.removesuffix(".py")
    return stem in TESTS or stem.startswith("test_") or stem.endswith("_test")


def _generated(document: bytes) -> bool:
    if max(map(len, document.splitlines()), default=0) > LONGEST_LINE:
        return True
    dark = document.translate(None, string.whitespace.encode())
    other = dark.translate(None, f"{string.ascii_letters}_".encode())
    return len(dark) - len(other) < LETTERS * len(dark)


def _with_records(found: list[Path], column: str | None, key: str) -> list[Path]:
    """Files that hold records; raises DataError where nobody says which column is the text."""
    with_records = [path for path in found if records.has_records(path)]
    if with_records and column is None:
        raise DataError(
            f"{key}: {with_records[0]} holds records; name the column that holds the text, "
            "such as data.column=text, or leave such files out with a glob such as '**/*.txt'"
        )
    return with_records


def _content(path: Path, key: str) -> bytes:
    if records.compressed(path):
        return records.decompressed(path, key)
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, key, error) from error


def _is_text(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return b"\0" not in text
