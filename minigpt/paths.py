"""Paths as a config gives them: the files of folders, globs and lists. Nothing here reads one."""

import glob
from pathlib import Path


class DataError(ValueError):
    """A corpus that cannot be used: the message names the value, the rule and the remedy."""


def listed(
    patterns: str | tuple[str, ...], key: str, leave_out: Path | None = None
) -> tuple[list[Path], set[Path]]:
    """Files at `patterns`, the value of `key`, each once, and those that were named one by one.

    The order is that of the patterns, within one that of the names. What lies in `leave_out`, where
    a sweep writes, is nothing of the user's. Raises DataError for a path at which there is nothing.
    """
    found, named = [], set()
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        try:
            path = Path(pattern).expanduser()
        except RuntimeError as error:
            raise DataError(f"{key} = {pattern!r}: {error}; write the whole path") from None
        if path.is_dir():
            found += sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p, path))
        elif path.is_file():
            found.append(path)
            named.add(path)
        else:
            matches = sorted(map(Path, glob.glob(str(path), recursive=True)))
            if not matches:
                raise DataError(
                    f"{key} = {pattern!r}: no such file or folder, and no file matches it as "
                    "a glob; paths are relative to the current folder"
                )
            found += [p for p in matches if p.is_file()]
    if leave_out is not None:
        own = leave_out.resolve()
        found = [path for path in found if not path.resolve().is_relative_to(own)]
    return list(dict.fromkeys(found)), named


def unreadable(path: Path, key: str, error: OSError) -> DataError:
    """What to say of a file of `key` that cannot be opened or read."""
    return DataError(
        f"{key}: cannot read {path}: {error.strerror}; make it readable or leave it out"
    )


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)
