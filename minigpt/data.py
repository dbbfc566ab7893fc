"""Text to token shards, and batches as a pure function of (seed, step). No torch.

A corpus is a list of documents. Documents, or blocks of them where there are few, are held out by
the hash of their content, so a document never changes side when others are added. Tokens are bytes
0-255 and 256, `<|endoftext|>`, after every document; shards are memory-mapped uint16 files, cached
by content hash.
"""

import functools
import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minigpt import text
from minigpt.config import DataConfig
from minigpt.text import DataError

END_OF_TEXT = 256
BYTE_VOCABULARY = 257
FORMAT = 1  # raise it when the same text would give other shards or another meta.json

BLOCK_BYTES = 65_536  # of a document, where whole documents are too few to be split
MIN_DOCUMENTS = 20


@dataclass(frozen=True, kw_only=True)
class CorpusInfo:
    """What is known of a prepared corpus: measured with its shards, and of the files behind them.

    `overlap` is the share of held-out windows of three lines that also stand in training; `skipped`
    names the files that are not text; `origin` is the interpreter's version, with the number of
    distributions where they are read, or the user's path.
    """

    format: int
    source: str
    content_sha256: str
    data_sha256: str
    val_sha256: str
    documents: int
    split_unit: str
    train_tokens: int
    val_tokens: int
    overlap: float
    skipped: tuple[str, ...]
    origin: str


@dataclass(frozen=True)
class Corpus:
    """Token shards of one corpus: `train` and `val`, memory-mapped uint16."""

    info: CorpusInfo
    train: np.ndarray
    val: np.ndarray


def prepare(config: DataConfig, cache: Path, leave_out: Path | None = None) -> Corpus:
    """Tokenise the corpus of `config` into `cache`, or open what is already there.

    Files in the folder `leave_out` are not part of it.

    Raises DataError for a corpus that is missing, empty, unreadable or too small for `eval_tokens`.
    """
    paths, named = text.files(config, leave_out)
    # Unchanged files need not be read again: their stats point at the shards made from them.
    stats = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in paths]
    known = (FORMAT, config.source, config.val_fraction, stats, sorted(map(str, named)))
    pointer = cache / "seen" / f"{_sha256(repr(known).encode())}.json"
    seen = json.loads(pointer.read_text()) if pointer.exists() else None
    if seen is None or not (cache / seen["shards"] / "meta.json").exists():
        documents, skipped = text.read(paths, named)
        if config.source == "libraries":
            documents = text.handwritten(documents)
        seen = {"shards": _write_shards(config, cache, documents).name, "skipped": skipped}
        pointer.parent.mkdir(exist_ok=True)
        _replace(pointer, json.dumps(seen))
    folder = cache / seen["shards"]
    values = json.loads((folder / "meta.json").read_text())
    info = CorpusInfo(**values, origin=text.origin(config), skipped=tuple(seen["skipped"]))
    if info.val_tokens < config.eval_tokens + 1:
        raise DataError(
            f"data.eval_tokens = {config.eval_tokens:,} exceeds the "
            f"{max(0, info.val_tokens - 1):,} held-out tokens of "
            f"{info.origin} ({info.train_tokens + info.val_tokens:,} tokens in all, "
            f"val_fraction = {config.val_fraction}); lower data.eval_tokens (and "
            "data.curve_eval_tokens), or raise data.val_fraction"
        )
    # Copy-on-write, of which nothing ever makes use: torch warns of what is read-only.
    shard = functools.partial(np.memmap, dtype="<u2", mode="c")
    return Corpus(info, shard(folder / "train.bin"), shard(folder / "val.bin"))


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


def _write_shards(config: DataConfig, cache: Path, documents: list[bytes]) -> Path:
    """Split, tokenise and measure; the shards' folder appears whole or not at all."""
    where = f"data.source = '{config.source}' ({text.origin(config)})"
    if not documents:
        raise DataError(f"{where}: no text in it; give files that hold plain UTF-8 text")
    content_sha256 = _sha256(b"".join(hashlib.sha256(document).digest() for document in documents))
    key = f"{FORMAT}|{config.source}|{content_sha256}|{config.val_fraction!r}"
    folder = cache / _sha256(key.encode())[:16]
    if (folder / "meta.json").exists():
        return folder
    total = sum(map(len, documents))
    few = len(documents) < MIN_DOCUMENTS or max(map(len, documents)) > total / 10
    units = [piece for document in documents for piece in _blocks(document)] if few else documents
    hashed = [(hashlib.sha256(unit).digest(), unit) for unit in units]
    limit = int(config.val_fraction * 2**64)
    val = sorted((h, unit) for h, unit in hashed if int.from_bytes(h[:8], "big") < limit)
    train = [unit for h, unit in hashed if int.from_bytes(h[:8], "big") >= limit]
    if not train or not val:
        raise DataError(
            f"{where}: {total:,} bytes in {len(units)} pieces leave no "
            f"{'training' if not train else 'held-out'} text at data.val_fraction = "
            f"{config.val_fraction}; "
            "give more text or change data.val_fraction"
        )
    # Held-out text lies in the order of its hashes: any first part of it is a random sample of
    # documents.
    shards = {"train": _tokens(train), "val": _tokens([unit for _, unit in val])}
    measured = {
        "format": FORMAT,
        "source": config.source,
        "content_sha256": content_sha256,
        "data_sha256": _sha256(shards["train"].tobytes()),
        "val_sha256": _sha256(shards["val"].tobytes()),
        "documents": len(documents),
        "split_unit": "block" if few else "document",
        "train_tokens": len(shards["train"]),
        "val_tokens": len(shards["val"]),
        "overlap": _overlap(train, [unit for _, unit in val]),
    }
    cache.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=cache))
    try:
        for name, shard in shards.items():
            shard.tofile(made / f"{name}.bin")
        (made / "meta.json").write_text(json.dumps(measured, indent=1))
        made.chmod(0o755)
        os.replace(made, folder)
    except OSError:
        if not (folder / "meta.json").exists():  # else another process was faster: same shards
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


def _replace(path: Path, content: str) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(content)
    os.replace(part, path)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _blocks(document: bytes) -> list[bytes]:
    """Cut a document into pieces of about BLOCK_BYTES at line ends."""
    lines, pieces, size, first = document.splitlines(keepends=True), [], 0, 0
    for i, line in enumerate(lines):
        size += len(line)
        if size >= BLOCK_BYTES or i == len(lines) - 1:
            pieces.append(b"".join(lines[first : i + 1]))
            size, first = 0, i + 1
    return pieces


def _tokens(units: list[bytes]) -> np.ndarray:
    parts = []
    for unit in units:
        parts += [np.frombuffer(unit, np.uint8).astype("<u2"), np.array([END_OF_TEXT], "<u2")]
    return np.concatenate(parts)


def _overlap(train: list[bytes], val: list[bytes]) -> float:
    """Share of held-out windows of three non-blank lines that also stand in training."""
    wanted = [window for unit in val for window in _line_windows(unit)]
    missing = set(wanted)  # the smaller side, because a set of all of training takes gigabytes
    for unit in train:
        missing.difference_update(_line_windows(unit))
    return sum(window not in missing for window in wanted) / len(wanted) if wanted else 0.0


def _line_windows(unit: bytes) -> list[int]:
    lines = [line.strip() for line in unit.splitlines() if line.strip()]
    return [hash(triple) for triple in zip(lines, lines[1:], lines[2:], strict=False)]
