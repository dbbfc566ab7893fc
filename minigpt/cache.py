"""The cache of a corpus: folders of shards by content, found again without reading any source.

<cache>/seen/<hash>.json      what was made of files with these sizes and times
<cache>/<hash>/               meta.json, and the shards as raw uint16 files
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np


def stats(paths: list[Path]) -> list[tuple[str, int, int]]:
    """Name, size and time of change of files: as long as they stay, so does the content."""
    return [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in paths]


def seen(cache: Path, known: tuple) -> dict | None:
    """What was kept of sources `known` by their stats, if its shards are still there."""
    pointer = _pointer(cache, known)
    found = json.loads(pointer.read_text()) if pointer.exists() else None
    there = found is not None and (cache / found["shards"] / "meta.json").exists()
    return found if there else None


def keep(cache: Path, known: tuple, found: dict) -> None:
    """Keep `found` for sources `known`; found["shards"] is the name of their folder."""
    pointer = _pointer(cache, known)
    pointer.parent.mkdir(exist_ok=True)
    part = pointer.with_name(f".{pointer.name}.{os.getpid()}")
    part.write_text(json.dumps(found))
    os.replace(part, pointer)


def folder(cache: Path, key: str) -> Path:
    """The folder of the shards of content `key`."""
    return cache / sha256(key.encode())[:16]


def publish(
    folder: Path,
    shards: Mapping[str, Iterable[np.ndarray]],
    measured: dict,
    beside: Mapping[str, str] | None = None,
) -> None:
    """Write the parts of each shard (uint16), meta.json and the texts of files `beside` them.

    The folder appears whole or not at all; one that is there holds the same already.
    """
    if (folder / "meta.json").exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for name, parts in shards.items():
            with (made / f"{name}.bin").open("wb") as file:
                for part in parts:
                    part.tofile(file)
        for name, content in (beside or {}).items():
            (made / name).write_text(content)
        (made / "meta.json").write_text(json.dumps(measured, indent=1))
        made.chmod(0o755)
        os.replace(made, folder)
    except OSError:
        if not (folder / "meta.json").exists():  # else another process was faster: same shards
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)


def sha256(data: bytes) -> str:
    """The hash of `data` in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def _pointer(cache: Path, known: tuple) -> Path:
    return cache / "seen" / f"{sha256(repr(known).encode())}.json"
