"""Token shards as files: nanoGPT's raw uint16 .bin, and that of llm.c and modded-nanogpt.

The latter has a header of 256 int32 before the uint16 tokens: MAGIC, VERSION, the number of tokens,
zeros (llm.c, dev/data/data_common.py). Both are little-endian.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from minigpt.paths import DataError, unreadable

MAGIC, VERSION = 20240520, 1
HEADER_INTS = 256
HEADER_BYTES = 4 * HEADER_INTS
VOCABULARY_LIMIT = 65_536  # of uint16


def write_bin(path: Path, tokens: Sequence[int] | np.ndarray, header: bool) -> None:
    """Write token ids to a file, raw or with the header.

    Raises DataError for ids outside 0 to 65,535, for no tokens, for more than the header can count,
    and for a raw file that would read as one with a header.
    """
    ids = np.asarray(tokens)
    if ids.ndim != 1 or not ids.size or ids.dtype.kind not in "iu":
        raise DataError(
            f"{path}: tokens of shape {ids.shape} and type {ids.dtype}; give one row of integers"
        )
    bad = np.flatnonzero((ids < 0) | (ids >= VOCABULARY_LIMIT))
    if bad.size:
        raise DataError(
            f"{path}: id {ids[bad[0]]} at position {bad[0]:,} is not among 0 to "
            f"{VOCABULARY_LIMIT - 1:,}, which are all that uint16 has; use a smaller vocabulary"
        )
    if header and ids.size >= 2**31:
        raise DataError(
            f"{path}: {ids.size:,} tokens are more than the header can count ({2**31 - 1:,}); "
            "write several shards"
        )
    raw = ids.astype("<u2")
    if not header and raw[:2].tobytes() == np.array(MAGIC, "<i4").tobytes():
        raise DataError(
            f"{path}: its first ids {raw[0]}, {raw[1]} are those of a header; use header=True"
        )
    with path.open("wb") as file:
        if header:
            numbers = np.zeros(HEADER_INTS, "<i4")
            numbers[:3] = MAGIC, VERSION, ids.size
            numbers.tofile(file)
        raw.tofile(file)


def open_bin(path: Path, key: str) -> np.ndarray:
    """The tokens of a file of `key`, raw or with a header: uint16, memory-mapped, unread.

    Raises DataError for a file that cannot be read, holds no whole tokens, or not those of which
    its header speaks.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = np.frombuffer(file.read(12).ljust(12, b"\0"), "<i4")
    except OSError as error:
        raise unreadable(path, key, error) from error
    if size % 2:
        raise DataError(
            f"{key}: {path} has {size:,} bytes, no whole number of uint16 tokens; make it again"
        )
    offset = HEADER_BYTES if start[0] == MAGIC else 0
    count = (size - offset) // 2
    if count < 0:
        raise DataError(f"{key}: {path} ends inside its header: it is damaged; make it again")
    if offset and start[1] != VERSION:
        raise DataError(
            f"{key}: {path} has a header of version {start[1]}; this reads version {VERSION} "
            "(uint16 tokens): make it again in that version"
        )
    if offset and start[2] != count:
        raise DataError(
            f"{key}: {path} holds {count:,} tokens, its header says {start[2]:,}: it is "
            "damaged; make it again"
        )
    if not count:
        raise DataError(f"{key}: {path} holds no tokens; leave it out")
    return mapped(path, offset)


def mapped(path: Path, offset: int = 0) -> np.ndarray:
    """The uint16 numbers from byte `offset` of a file on, memory-mapped."""
    # Copy-on-write, of which nothing ever makes use: torch warns of what is read-only.
    return np.memmap(path, dtype="<u2", mode="c", offset=offset)
