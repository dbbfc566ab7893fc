"""`source = "tokens"`: shards that the user made, listed, checked and measured in one reading."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from minigpt.config import DataConfig
from minigpt.paths import DataError, listed
from minigpt.shards import open_bin
from minigpt.sources import Paths

CHUNK = 2**24  # tokens looked at together

Side = dict[Path, np.ndarray]  # a side's files with their tokens, in order


def open_sides(config: DataConfig, leave_out: Path | None = None) -> dict[str, Side]:
    """The shards of both sides, "train" and "val", memory-mapped.

    Raises DataError for a path at which there is nothing, a file that is no .bin of whole uint16
    tokens, or a damaged one.
    """
    sides = {"train": ("data.path", config.path), "val": ("data.val_path", config.val_path)}
    return {side: open_side(paths or (), key, leave_out) for side, (key, paths) in sides.items()}


def open_side(patterns: Paths, key: str, leave_out: Path | None = None) -> Side:
    """The shards of `key`, memory-mapped; raises DataError as `open_sides`."""
    paths, _ = listed(patterns, key, leave_out)
    for path in paths:
        if path.suffix != ".bin":
            raise DataError(
                f"{key}: {path} is not a .bin file; give shards of uint16 tokens, such as "
                "'folder/*_train_*.bin'"
            )
    if not paths:
        raise DataError(f"{key} = {patterns!r}: no file there; give .bin files")
    return {path: open_bin(path, key) for path in paths}


def checked(config: DataConfig, shards: Side) -> str:
    """The hash of the tokens of shards as of one sequence; raises DataError for a bad id."""
    whole = hashlib.sha256()
    for path, tokens in shards.items():
        for part in _parts(config, path, tokens):
            whole.update(part.data)
    return whole.hexdigest()


def measure(config: DataConfig, sides: dict[str, Side]) -> dict:
    """What is known of a corpus of these shards: hashes and counts, every id checked.

    A side is hashed as one sequence of tokens, however it is cut into shards. Raises DataError for
    an id outside the vocabulary, an end-of-text id that is nowhere, or shards on both sides.
    """
    files: dict[str, Path] = {}  # by the hash of their tokens
    hashes, ends = {}, 0
    for side, shards in sides.items():
        whole, mine = hashlib.sha256(), {}
        for path, tokens in shards.items():
            own = hashlib.sha256()
            for part in _parts(config, path, tokens):
                if config.end_of_text is not None:
                    ends += int(np.count_nonzero(part == config.end_of_text))
                own.update(part.data)
                whole.update(part.data)
            mine[own.hexdigest()] = path
        for same in files.keys() & mine.keys():
            raise DataError(
                f"data.val_path: {mine[same]} holds the tokens of {files[same]}, which is in "
                "data.path; held-out text is what no model trains on: take it out of one of them"
            )
        files |= mine
        hashes[side] = whole.hexdigest()
    if config.end_of_text is not None and not ends:
        raise DataError(
            f"data.end_of_text = {config.end_of_text}: no token of the shards has this id; give "
            "the id that separates documents, or remove it"
        )
    return {
        "source": "tokens",
        "content_sha256": hashlib.sha256("|".join(hashes.values()).encode()).hexdigest(),
        "data_sha256": hashes["train"],
        "val_sha256": hashes["val"],
        "documents": ends or None,
        "split_unit": "shard",
        "train_tokens": sum(map(len, sides["train"].values())),
        "val_tokens": sum(map(len, sides["val"].values())),
        "overlap": None,
    }


def _parts(config: DataConfig, path: Path, tokens: np.ndarray) -> Iterator[np.ndarray]:
    """The tokens of a shard, CHUNK at a time; raises DataError for an id outside the vocabulary."""
    size = config.vocab_size
    assert size is not None  # DataConfig asks for it
    for first in range(0, len(tokens), CHUNK):
        part = tokens[first : first + CHUNK]
        if part.max() >= size:
            at = int(np.argmax(part >= size))
            raise DataError(
                f"{path}: id {part[at]} at position {first + at:,} is not below data.vocab_size = "
                f"{size:,}; give the vocabulary of the tokenizer that made the shards, or make "
                "them again"
            )
        yield part
