"""Documents: the plain-text files of a corpus, listed and read. No torch, no numpy."""

import glob
import importlib.metadata
import os
import platform
import string
import sysconfig
from pathlib import Path

from minigpt.config import DataConfig

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


class DataError(ValueError):
    """A corpus that cannot be used: the message names the value, the rule and the remedy."""


def files(config: DataConfig, leave_out: Path | None = None) -> tuple[list[Path], set[Path]]:
    """Files of the corpus in a fixed order, and those that the user named one by one.

    What lies in `leave_out`, where a sweep writes, is no text of the user's.
    Raises DataError for a path at which there is nothing.
    """
    if config.source != "text":
        return _stdlib() if config.source == "stdlib" else _libraries(), set()
    found, named = [], set()
    for pattern in (config.path,) if isinstance(config.path, str) else config.path or ():
        try:
            path = Path(pattern).expanduser()
        except RuntimeError as error:
            raise DataError(f"data.path = {pattern!r}: {error}; write the whole path") from None
        if path.is_dir():
            found += sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p, path))
        elif path.is_file():
            found.append(path)
            named.add(path)
        else:
            matches = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)))
            if not matches:
                raise DataError(
                    f"data.path = {pattern!r}: no such file or folder, and no file matches it as "
                    "a glob; paths are relative to the current folder"
                )
            found += [p for p in matches if p.is_file()]
    if leave_out is not None:
        own = leave_out.resolve()
        found = [path for path in found if not path.resolve().is_relative_to(own)]
    return list(dict.fromkeys(found)), named


def read(paths: list[Path], named: set[Path]) -> tuple[list[bytes], tuple[str, ...]]:
    """Documents of the files that are not empty, and the names of files that are not UTF-8 text.

    Raises DataError for a file that cannot be read, or that was named and is not text.
    """
    documents, skipped = [], []
    for path in paths:
        try:
            text = path.read_bytes()
        except OSError as error:
            raise DataError(
                f"data.path: cannot read {path}: {error.strerror}; make it readable or leave it out"
            ) from error
        if _is_text(text):
            documents.append(text)
        elif path in named:
            raise DataError(
                f"data.path = {str(path)!r}: not plain UTF-8 text; convert it, or leave it out"
            )
        else:
            skipped.append(str(path))
    return [text for text in documents if text], tuple(skipped)


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
    python = f"Python {platform.python_version()}"
    if config.source == "stdlib":
        return python
    installed = sum(1 for _ in importlib.metadata.distributions(path=_roots("purelib", "platlib")))
    return f"{python} with {installed} distributions"


def _roots(*keys: str) -> list[str]:
    """Folders of the running interpreter's libraries; some of them may be one."""
    return list(dict.fromkeys(sysconfig.get_path(key) for key in keys))


def _stdlib() -> list[Path]:
    return _modules(sysconfig.get_path("stdlib"))


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


def _is_text(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return b"\0" not in text


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)
