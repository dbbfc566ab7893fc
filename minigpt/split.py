"""Documents held out by the hash of their content, and how far held-out text repeats training."""

import hashlib
from dataclasses import dataclass

BLOCK_BYTES = 65_536  # of a document, where whole documents are too few to be split
MIN_DOCUMENTS = 20


@dataclass(frozen=True)
class Split:
    """Pieces of text of each side; `unit` is what a piece is: a document or a block of one.

    Held-out pieces are in the order of their hashes: any first part of them is a random sample.
    """

    train: list[bytes]
    val: list[bytes]
    unit: str


def split(documents: list[bytes], val_fraction: float) -> Split:
    """Hold out pieces of which the hash is below `val_fraction` of all hashes.

    A piece never changes side when others are added.
    """
    total = sum(map(len, documents))
    few = len(documents) < MIN_DOCUMENTS or max(map(len, documents)) > total / 10
    units = [piece for document in documents for piece in _blocks(document)] if few else documents
    hashed = [(hashlib.sha256(unit).digest(), unit) for unit in units]
    limit = int(val_fraction * 2**64)
    val = sorted((h, unit) for h, unit in hashed if int.from_bytes(h[:8], "big") < limit)
    train = [unit for h, unit in hashed if int.from_bytes(h[:8], "big") >= limit]
    return Split(train, [unit for _, unit in val], "block" if few else "document")


def overlap(train: list[bytes], val: list[bytes]) -> float:
    """Share of held-out windows of three non-blank lines that also stand in training."""
    wanted = [window for unit in val for window in _line_windows(unit)]
    missing = set(wanted)  # the smaller side, because a set of all of training takes gigabytes
    for unit in train:
        missing.difference_update(_line_windows(unit))
    return sum(window not in missing for window in wanted) / len(wanted) if wanted else 0.0


def _blocks(document: bytes) -> list[bytes]:
    """Cut a document into pieces of about BLOCK_BYTES at line ends."""
    lines, pieces, size, first = document.splitlines(keepends=True), [], 0, 0
    for i, line in enumerate(lines):
        size += len(line)
        if size >= BLOCK_BYTES or i == len(lines) - 1:
            pieces.append(b"".join(lines[first : i + 1]))
            size, first = 0, i + 1
    return pieces


def _line_windows(unit: bytes) -> list[int]:
    lines = [line.strip() for line in unit.splitlines() if line.strip()]
    return [hash(triple) for triple in zip(lines, lines[1:], lines[2:], strict=False)]
