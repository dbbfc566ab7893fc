"""Text to token shards, and batches as a pure function of (seed, step). No torch.

A corpus is a list of documents, or tokens as the user has them. Documents, or blocks of them where
there are few, are held out by the hash of their content, so a document never changes side when
others are added; a tokenizer makes tokens of them, with `<|endoftext|>` after every document.
Shards are memory-mapped uint16 files, cached by content hash; a shard of the user's is not copied.
"""

import functools
import json
from pathlib import Path

import numpy as np

from minigpt import cache as caches
from minigpt import text
from minigpt.config import DataConfig
from minigpt.corpus import FORMAT
from minigpt.corpus import Corpus as Corpus
from minigpt.corpus import CorpusInfo as CorpusInfo
from minigpt.evalsets import with_evals
from minigpt.paths import DataError
from minigpt.shards import mapped
from minigpt.shards import write_bin as write_bin  # data.write_bin, for those who have tokens
from minigpt.textshards import open_text
from minigpt.tokenizer import Tokenizer
from minigpt.tokens import measure, open_sides


def prepare(
    config: DataConfig,
    cache: Path,
    leave_out: Path | None = None,
    stored: Tokenizer | None = None,
) -> Corpus:
    """Make the shards of `config` in `cache`, or open what is already there.

    Files in the folder `leave_out` are not part of it. `stored` is the tokenizer that `config`
    asked for before, to be used as it was: WordPiece would not be trained twice alike.

    Raises DataError for a corpus that is missing, empty, unreadable or too small for `eval_tokens`,
    or for which there is no such tokenizer.
    """
    if config.source == "tokens":
        corpus = _open_tokens(config, cache, leave_out)
    else:
        corpus = open_text(config, cache, leave_out, stored)
    info = corpus.info
    if info.val_tokens < config.eval_tokens + 1:
        given = config.source == "tokens"
        how = "" if given else f", val_fraction = {config.val_fraction}"
        how += f", vocab_size = {info.vocab_size:,}" if info.tokenizer_sha256 else ""
        more = "give more in data.val_path" if given else "raise data.val_fraction"
        raise DataError(
            f"data.eval_tokens = {config.eval_tokens:,} exceeds the "
            f"{max(0, info.val_tokens - 1):,} held-out tokens of "
            f"{info.origin} ({info.train_tokens + info.val_tokens:,} tokens in all{how}); lower "
            f"data.eval_tokens (and data.curve_eval_tokens), or {more}"
        )
    return with_evals(config, corpus, cache, leave_out) if config.evals else corpus


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


def _open_tokens(config: DataConfig, cache: Path, leave_out: Path | None) -> Corpus:
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
        caches.publish(folder, copied, measured)
        seen = {"shards": folder.name}
        caches.keep(cache, known, seen)
    folder = cache / seen["shards"]
    measured = json.loads((folder / "meta.json").read_text())
    size = config.vocab_size
    assert size is not None  # DataConfig asks for it
    info = CorpusInfo(**measured, origin=text.origin(config), skipped=(), vocab_size=size)
    train, val = (
        mapped(folder / f"{side}.bin") if side in copied else next(iter(shards.values()))
        for side, shards in sides.items()
    )
    return Corpus(info, train, val)
