"""What a prepared corpus is: its shards, what made them, and what is known of them. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from minigpt.tokenizer import BYTES, Tokenizer

FORMAT = 2  # raise it when the same text would give other shards or another meta.json


@dataclass(frozen=True, kw_only=True)
class EvalInfo:
    """What is known of one more held-out set.

    `exact`: the tokens stand for its text exactly, so that there are bits per byte of it. `overlap`
    with the training text, `skipped` and `null_rows` are as in CorpusInfo.
    """

    name: str
    sha256: str
    tokens: int
    exact: bool
    overlap: float | None
    skipped: tuple[str, ...] = ()
    null_rows: int = 0


@dataclass(frozen=True, kw_only=True)
class CorpusInfo:
    """What is known of a prepared corpus: measured with its shards, and of the files behind them.

    `overlap` is the share of held-out windows of three lines that also stand in training; `skipped`
    names the files that are not text, `null_rows` counts records without one; `origin` is the
    interpreter's version, with the number of distributions where they are read, or the user's path.
    `train_bytes` are the bytes of text that the training tokens stand for; None where the tokenizer
    loses text. Of ready-made tokens neither it nor `overlap` is known, nor `documents` without an
    end-of-text id.
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
    vocab_size: int = BYTES.vocab_size
    tokenizer_sha256: str | None = None
    train_bytes: int | None = None
    evals: tuple[EvalInfo, ...] = ()


@dataclass(frozen=True, eq=False)
class Corpus:
    """Token shards of one corpus: `train` and `val`, memory-mapped uint16; equal to itself alone.

    `tokenizer` is what made them of text, None where nobody knows; `exact` whether they stand for
    the text exactly. `evals` are the same corpus with another held-out set each, by name.
    """

    info: CorpusInfo
    train: np.ndarray
    val: np.ndarray
    tokenizer: Tokenizer | None = None
    exact: bool = True
    evals: Mapping[str, "Corpus"] = field(default_factory=dict)

    @property
    def lengths_V(self) -> np.ndarray | None:
        """How many bytes of text each id stands for; None where nobody knows."""
        return self.tokenizer.lengths_V if self.tokenizer and self.exact else None
