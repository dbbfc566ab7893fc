"""Text to token shards, and batches as a pure function of (seed, step). No torch.

A corpus is a list of documents, or tokens as the user has them. Documents, or blocks of them where
there are few, are held out by the hash of their content, so a document never changes side when
others are added; their tokens are bytes 0-255 and 256, `<|endoftext|>`, after every document.
Shards are memory-mapped uint16 files, cached by content hash; a shard of the user's is not copied.
"""

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minigpt import cache as caches
from minigpt import text
from minigpt.config import DataConfig
from minigpt.paths import DataError
from minigpt.shards import mapped
from minigpt.shards import write_bin as write_bin  # data.write_bin, for those who have tokens
from minigpt.split import overlap, split
from minigpt.tokenizer import BYTES, Tokenizer
from minigpt.tokens import measure, open_sides

END_OF_TEXT = 256
BYTE_VOCABULARY = 257
FORMAT = 1  # raise it when the same text would give other shards or another meta.json


@dataclass(frozen=True, kw_only=True)
class CorpusInfo:
    """What is known of a prepared corpus: measured with its shards, and of the files behind them.

    `overlap` is the share of held-out windows of three lines that also stand in training; `skipped`
    names the files that are not text, `null_rows` counts records without one; `origin` is the
    interpreter's version, with the number of distributions where they are read, or the user's path.
    Of ready-made tokens `overlap` is not known, nor `documents` without an end-of-text id.
    """

    format: int
    source: str
    content_sha256: str
    data_sha256: str
    val_sha256: str
    documents: int | None
    split_unit: str
    train_tokens: int
    val_tokens: int
    overlap: float | None
    skipped: tuple[str, ...]
    origin: str
    null_rows: int = 0


@dataclass(frozen=True, eq=False)
class Corpus:
    """Token shards of one corpus: `train` and `val`, memory-mapped uint16; equal to itself alone.

    `tokenizer` is what made them of text; None where nobody knows.
    """

    info: CorpusInfo
    train: np.ndarray
    val: np.ndarray
    tokenizer: Tokenizer | None = None


def vocabulary(config: DataConfig) -> int:
    """Number of different tokens of a source, the least that a model of it must know."""
    return BYTE_VOCABULARY if config.vocab_size is None else config.vocab_size


def prepare(config: DataConfig, cache: Path, leave_out: Path | None = None) -> Corpus:
    """Make the shards of `config` in `cache`, or open what is already there.

    Files in the folder `leave_out` are not part of it.

    Raises DataError for a corpus that is missing, empty, unreadable or too small for `eval_tokens`.
    """
    make = _of_tokens if config.source == "tokens" else _of_text
    corpus = make(config, cache, leave_out)
    info = corpus.info
    if info.val_tokens < config.eval_tokens + 1:
        given = config.source == "tokens"
        how = "" if given else f", val_fraction = {config.val_fraction}"
        more = "give more in data.val_path" if given else "raise data.val_fraction"
        raise DataError(
            f"data.eval_tokens = {config.eval_tokens:,} exceeds the "
            f"{max(0, info.val_tokens - 1):,} held-out tokens of "
            f"{info.origin} ({info.train_tokens + info.val_tokens:,} tokens in all{how}); lower "
            f"data.eval_tokens (and data.curve_eval_tokens), or {more}"
        )
    return corpus


def batch(
    corpus: Corpus,
    *,
    seed: int,
    step: int,
    batch_size: int,
    seq_len: int,
    rows: slice = slice(None),
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets (int64, batch_size × seq_len) of a step: a pure function of its arguments.

    The training shard is cut into windows of `seq_len` inputs and their next tokens; an epoch
    visits each once in an order drawn from (seed, epoch). The order does not depend on the model or
    the batch size. Of the batch's sequences only `rows` are read.
    """
    window_B = order(
        len(corpus.train), seed=seed, first=step * batch_size, count=batch_size, seq_len=seq_len
    )
    return _gather(corpus.train, window_B[rows], seq_len)


def order(tokens: int, *, seed: int, first: int, count: int, seq_len: int) -> np.ndarray:
    """The windows of a shard of `tokens` tokens that are visited at places `first` and on."""
    n_windows = windows(tokens, seq_len)
    index_B = np.arange(first, first + count)
    epoch_B, place_B = np.divmod(index_B, n_windows)
    window_B = np.empty_like(index_B)
    for epoch in np.unique(epoch_B):
        here = epoch_B == epoch
        window_B[here] = _order(seed, int(epoch), n_windows)[place_B[here]]
    return window_B


def held_out(
    corpus: Corpus, *, tokens: int, seq_len: int, start: int, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of `batch_size` held-out windows from `start`, within `tokens` tokens."""
    stop = min(start + batch_size, windows(tokens + 1, seq_len))
    return _gather(corpus.val, np.arange(start, stop), seq_len)


def windows(tokens: int, seq_len: int) -> int:
    """Windows of `seq_len` inputs, each with its next tokens, in a shard of `tokens` tokens."""
    return (tokens - 1) // seq_len


def _gather(shard: np.ndarray, window_B: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    chunk_BT = shard[(window_B * seq_len)[:, None] + np.arange(seq_len + 1)].astype(np.int64)
    return chunk_BT[:, :-1], chunk_BT[:, 1:]


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, n_windows: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(n_windows)


def _of_text(config: DataConfig, cache: Path, leave_out: Path | None) -> Corpus:
    """The corpus of text files: unchanged ones are not read again."""
    paths, named = text.files(config, leave_out)
    stats = caches.stats(paths)
    known = (FORMAT, config.source, config.val_fraction, stats, sorted(map(str, named)))
    if text.packed(paths):
        known += (config.column,)
    seen = caches.seen(cache, known)
    if seen is None:
        documents, skipped, null_rows = text.read(paths, named, config.column)
        if config.source == "libraries":
            documents = text.handwritten(documents)
        folder = _write_shards(config, cache, documents)
        seen = {"shards": folder.name, "skipped": skipped, "null_rows": null_rows}
        caches.keep(cache, known, seen)
    folder = cache / seen["shards"]
    info = CorpusInfo(
        **json.loads((folder / "meta.json").read_text()),
        origin=text.origin(config),
        skipped=tuple(seen["skipped"]),
        null_rows=seen.get("null_rows", 0),
    )
    return Corpus(info, mapped(folder / "train.bin"), mapped(folder / "val.bin"), BYTES)


def _of_tokens(config: DataConfig, cache: Path, leave_out: Path | None) -> Corpus:
    """The corpus of ready-made shards: only a side of several is copied, into one."""
    sides = open_sides(config, leave_out)
    stats = [caches.stats(list(shards)) for shards in sides.values()]
    known = (FORMAT, config.source, config.vocab_size, config.end_of_text, stats)
    copied = {side: shards.values() for side, shards in sides.items() if len(shards) > 1}
    seen = caches.seen(cache, known)
    if seen is None:
        measured = {"format": FORMAT, **measure(config, sides)}
        content = (config.vocab_size, config.end_of_text, measured["content_sha256"])
        folder = caches.folder(cache, repr((FORMAT, config.source, *content, sorted(copied))))
        if not (folder / "meta.json").exists():
            caches.publish(folder, copied, measured)
        seen = {"shards": folder.name}
        caches.keep(cache, known, seen)
    folder = cache / seen["shards"]
    measured = json.loads((folder / "meta.json").read_text())
    info = CorpusInfo(**measured, origin=text.origin(config), skipped=())
    train, val = (
        mapped(folder / f"{side}.bin") if side in copied else next(iter(shards.values()))
        for side, shards in sides.items()
    )
    return Corpus(info, train, val)


def _write_shards(config: DataConfig, cache: Path, documents: list[bytes]) -> Path:
    """Split, tokenise and measure; the shards' folder appears whole or not at all."""
    where = f"data.source = '{config.source}' ({text.origin(config)})"
    if not documents:
        raise DataError(f"{where}: no text in it; give files that hold plain UTF-8 text")
    digests = b"".join(hashlib.sha256(document).digest() for document in documents)
    content_sha256 = caches.sha256(digests)
    key = f"{FORMAT}|{config.source}|{content_sha256}|{config.val_fraction!r}"
    folder = caches.folder(cache, key)
    if (folder / "meta.json").exists():
        return folder
    parts = split(documents, config.val_fraction)
    if not parts.train or not parts.val:
        raise DataError(
            f"{where}: {sum(map(len, documents)):,} bytes in "
            f"{len(parts.train) + len(parts.val)} pieces leave no "
            f"{'training' if not parts.train else 'held-out'} text at data.val_fraction = "
            f"{config.val_fraction}; give more text or change data.val_fraction"
        )
    train, val = _tokens(parts.train), _tokens(parts.val)
    measured = {
        "format": FORMAT,
        "source": config.source,
        "content_sha256": content_sha256,
        "data_sha256": caches.sha256(train.tobytes()),
        "val_sha256": caches.sha256(val.tobytes()),
        "documents": len(documents),
        "split_unit": parts.unit,
        "train_tokens": len(train),
        "val_tokens": len(val),
        "overlap": overlap(parts.train, parts.val),
    }
    caches.publish(folder, {"train": [train], "val": [val]}, measured)
    return folder


def _tokens(units: list[bytes]) -> np.ndarray:
    parts = []
    for unit in units:
        parts += [np.frombuffer(unit, np.uint8).astype("<u2"), np.array([END_OF_TEXT], "<u2")]
    return np.concatenate(parts)
