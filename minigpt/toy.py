"""Random tokens, of which it is known what a model can learn: nothing, or all by heart.

`fresh`: every token is drawn anew, so no model can do better than ln V. `fixed`: a small set of
random tokens, seen again and again, which a model learns by heart; it says nothing about others.
"""

import math
from typing import Literal

import numpy as np

from minigpt.data import Corpus
from minigpt.event import Result

Kind = Literal["fresh", "fixed"]
FIXED_WINDOWS = 8  # sequences that are learned by heart
CLOSE = 0.01  # of ln V: how far from it the losses on fresh tokens may be


def corpus(kind: Kind, *, vocab_size: int, tokens: int, seq_len: int, held_out: int) -> Corpus:
    """Random tokens to train on, as many as `tokens` if fresh, and `held_out` others."""
    rng = np.random.default_rng(0)
    length = tokens if kind == "fresh" else FIXED_WINDOWS * seq_len
    train, val = (rng.integers(0, vocab_size, n + 1).astype("<u2") for n in (length, held_out))
    facts = None  # nothing reads them here
    return Corpus(facts, train, val)  # type: ignore[arg-type]


def verdict(kind: Kind, result: Result, vocab_size: int) -> tuple[bool, str]:
    """Whether the losses (nats per token) are as they must be, and the rule that says so."""
    uniform, train, val = math.log(vocab_size), result.train_loss, result.val_loss
    if train is None or val is None:
        return False, f"{result.status}: {result.reason}"
    if kind == "fresh":
        good = max(abs(train - uniform), abs(val - uniform)) <= CLOSE * uniform
        return good, f"on fresh tokens both are within {CLOSE:.0%} of ln V"
    return train < uniform <= val, "on a fixed set training is below ln V, held out is not"
