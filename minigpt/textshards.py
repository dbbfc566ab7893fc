"""The shards of a corpus of text: read, split, tokenised, kept. No torch.

<cache>/<hash>/ holds train.bin, val.bin, meta.json and, unless tokens are bytes, tokenizer.json. A
tokenizer that is trained is trained once for a text, a kind and a vocabulary size.
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minigpt import cache as caches
from minigpt import text, vocabulary
from minigpt.config import DataConfig
from minigpt.corpus import FORMAT, Corpus, CorpusInfo
from minigpt.paths import DataError
from minigpt.shards import mapped
from minigpt.split import Split, overlap, split
from minigpt.tokenizer import BYTES, Tokenizer, TokenizerError, from_file, from_json

TOKENIZER = "tokenizer.json"


def open_text(
    config: DataConfig, cache: Path, leave_out: Path | None, stored: Tokenizer | None
) -> Corpus:
    """The corpus of text files: unchanged ones are not read again.

    `stored` is used in the place of a tokenizer that would be trained or read from a file.
    """
    paths, named = text.files(config, leave_out)
    tokenizer = stored or given(config)
    stats = caches.stats(paths)
    known = (FORMAT, config.source, config.val_fraction, stats, sorted(map(str, named)))
    if text.packed(paths):
        known += (config.column,)
    asked = known + _told(config, tokenizer)
    seen = caches.seen(cache, asked)
    if seen is None:
        documents, skipped, null_rows = read(config, paths, named)
        folder = _write(config, cache, documents, tokenizer)
        seen = {"shards": folder.name, "skipped": skipped, "null_rows": null_rows}
        caches.keep(cache, asked, seen)
        made = from_json((folder / TOKENIZER).read_text()) if tokenizer is None else tokenizer
        caches.keep(cache, known + _told(config, made), seen)  # for those who know what was made
    folder = cache / seen["shards"]
    info = CorpusInfo(
        **json.loads((folder / "meta.json").read_text()),
        origin=text.origin(config),
        skipped=tuple(seen["skipped"]),
        null_rows=seen.get("null_rows", 0),
    )
    tokenizer = tokenizer or from_json((folder / TOKENIZER).read_text())
    train, val = mapped(folder / "train.bin"), mapped(folder / "val.bin")
    return Corpus(info, train, val, tokenizer, exact=info.train_bytes is not None)


def _told(config: DataConfig, tokenizer: Tokenizer | None) -> tuple:
    """What shards are known by beside their text: nothing for bytes."""
    if tokenizer is BYTES:
        return ()
    return (tokenizer.sha256,) if tokenizer else (config.tokenizer, config.vocab_size)


def given(config: DataConfig) -> Tokenizer | None:
    """The tokenizer that the config names; None for one that is trained on the text.

    Raises DataError for a file that holds none.
    """
    if config.tokenizer == BYTES.kind:
        return BYTES
    if config.trains_tokenizer:
        return None
    path = Path(config.tokenizer).expanduser()
    if not path.is_file():
        raise DataError(
            f"data.tokenizer = {config.tokenizer!r}: no such file; give bytes, bpe, wordpiece, or "
            "the path of a tokenizer.json"
        )
    try:
        return from_file(path)
    except TokenizerError as error:
        raise DataError(f"data.tokenizer = {error}") from None


def read(
    config: DataConfig, paths: list[Path], named: set[Path]
) -> tuple[list[bytes], tuple[str, ...], int]:
    """The documents of a corpus, as `text.read`; of libraries without generated tables."""
    documents, skipped, null_rows = text.read(paths, named, config.column)
    if config.source == "libraries":
        documents = text.handwritten(documents)
    return documents, skipped, null_rows


@dataclass(frozen=True)
class Tokenised:
    """Tokens of pieces of text, each with its end; `exact`: they stand for the text exactly."""

    tokens: np.ndarray
    exact: bool


def tokenised(tokenizer: Tokenizer, units: Sequence[bytes]) -> Tokenised:
    """The tokens of pieces of text, an end of text after every one."""
    end = np.array([tokenizer.end_of_text], "<u2")
    parts: list[np.ndarray] = []
    exact = tokenizer.kind != "wordpiece"
    for unit, tokens in zip(units, tokenizer.encode_all(units), strict=True):
        if tokenizer.kind == "bpe" and exact:  # that of a file may change the text beforehand
            exact = tokenizer.decode(tokens.tolist()) == unit
        parts += [tokens, end]
    return Tokenised(np.concatenate(parts), exact)


def _write(
    config: DataConfig, cache: Path, documents: list[bytes], tokenizer: Tokenizer | None
) -> Path:
    """Split, tokenise and measure; the shards' folder appears whole or not at all."""
    where = f"data.source = '{config.source}' ({text.origin(config)})"
    if not documents:
        raise DataError(f"{where}: no text in it; give files that hold plain UTF-8 text")
    digests = b"".join(hashlib.sha256(document).digest() for document in documents)
    content_sha256 = caches.sha256(digests)
    key = f"{FORMAT}|{config.source}|{content_sha256}|{config.val_fraction!r}"
    made = (key, config.tokenizer, config.vocab_size)
    if tokenizer is None and (before := caches.seen(cache, made)) is not None:
        return cache / before["shards"]
    if tokenizer is not None and (_folder(cache, key, tokenizer) / "meta.json").exists():
        return _folder(cache, key, tokenizer)
    parts, trained = _split(config, documents, where), tokenizer is None
    tokenizer = tokenizer or _train(config, parts.train)
    folder = _folder(cache, key, tokenizer)
    train, val = tokenised(tokenizer, parts.train), tokenised(tokenizer, parts.val)
    exact = train.exact and val.exact
    measured = {
        "format": FORMAT,
        "source": config.source,
        "content_sha256": content_sha256,
        "data_sha256": caches.sha256(train.tokens.tobytes()),
        "val_sha256": caches.sha256(val.tokens.tobytes()),
        "documents": len(documents),
        "split_unit": parts.unit,
        "train_tokens": len(train.tokens),
        "val_tokens": len(val.tokens),
        "overlap": overlap(parts.train, parts.val),
        "vocab_size": tokenizer.vocab_size,
        "tokenizer_sha256": tokenizer.sha256,
        "train_bytes": sum(map(len, parts.train)) if exact else None,
    }
    beside = {} if tokenizer is BYTES else {TOKENIZER: tokenizer.to_json()}
    caches.publish(folder, {"train": [train.tokens], "val": [val.tokens]}, measured, beside)
    if trained:
        caches.keep(cache, made, {"shards": folder.name})
    return folder


def _folder(cache: Path, key: str, tokenizer: Tokenizer) -> Path:
    return caches.folder(cache, key if tokenizer is BYTES else f"{key}|{tokenizer.sha256}")


def _split(config: DataConfig, documents: list[bytes], where: str) -> Split:
    parts = split(documents, config.val_fraction)
    if not parts.train or not parts.val:
        raise DataError(
            f"{where}: {sum(map(len, documents)):,} bytes in "
            f"{len(parts.train) + len(parts.val)} pieces leave no "
            f"{'training' if not parts.train else 'held-out'} text at data.val_fraction = "
            f"{config.val_fraction}; give more text or change data.val_fraction"
        )
    return parts


def _train(config: DataConfig, texts: list[bytes]) -> Tokenizer:
    kind, size = config.tokenizer, config.vocab_size
    assert kind == "bpe" or kind == "wordpiece"
    if size is None:
        raise DataError(
            f"data.tokenizer = '{kind}' has as many ids as the model; give the model's vocab_size"
        )
    told = f"training a {kind} tokenizer of {size:,} ids on {sum(map(len, texts)) / 1e6:,.1f} MB"
    print(told, file=sys.stderr, flush=True)  # of which there is nothing to be seen for minutes
    try:
        return vocabulary.train(kind, size, texts)
    except TokenizerError as error:
        raise DataError(f"data.tokenizer = '{kind}': {error}") from None
