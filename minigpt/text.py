"""Documents: the plain-text files of a corpus, listed and read. No torch, no numpy."""

import glob
import os
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


class DataError(ValueError):
    """A corpus that cannot be used: the message names the value, the rule and the remedy."""


def files(config: DataConfig, leave_out: Path | None = None) -> tuple[list[Path], set[Path]]:
    """Files of the corpus in a fixed order, and those that the user named one by one.

    What lies in `leave_out`, where a sweep writes, is no text of the user's.
    Raises DataError for a path at which there is nothing.
    """
    if config.source == "stdlib":
        return _stdlib_files(), set()
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


def _stdlib_files() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for folder, names, entries in os.walk(root):
        names[:] = set(names) - STDLIB_LEFT_OUT
        found += [Path(folder, name) for name in entries if name.endswith(".py")]
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def _is_text(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return b"\0" not in text


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)
