"""Whether lines of text are lines of Python, by the standard library's `tokenize`. No torch.

A line is judged by itself, without its leading blanks; blank lines are left out. A bracket, a
triple-quoted string and a statement that go on after its end are judged as far as they go, and
brackets that nothing opened may close what was opened before. A line from inside a docstring is
judged as code, so that an apostrophe in it is a string without an end: human source code has a
share below 1 too. What counts as an error is a matter of the interpreter's version.
"""

import io
import math
import tokenize
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Share:
    """The share of `lines` that are accepted, with its standard error (None for a single text)."""

    value: float
    se: float | None
    lines: int


def accepted(line: bytes) -> bool:
    """Whether `tokenize` finds no error in the line."""
    try:
        text = line.decode().strip() + "\n"
        found = tokenize.generate_tokens(io.StringIO(text).readline)
        return not any(_wrong(token) for token in found)
    except tokenize.TokenError as error:
        return "EOF in multi-line" in str(error.args[0])  # it may end in a later line
    except (UnicodeDecodeError, SyntaxError):
        return False


def _wrong(token: tokenize.TokenInfo) -> bool:
    unknown = token.type == tokenize.OP and token.exact_type == tokenize.OP  # from 3.12 on
    return unknown or token.type == tokenize.ERRORTOKEN


def whole(text: bytes) -> list[bytes]:
    """The lines of a text that end in it, but for blank ones."""
    return [line for line in text.split(b"\n")[:-1] if line.strip()]


def share(texts: Sequence[Sequence[bytes]]) -> Share | None:
    """The share of accepted lines in texts that are independent of one another.

    The standard error is that of a ratio of sums over texts (Cochran 1977, eq. 6.4): lines of one
    text are alike. None where there is no line.
    """
    n_R = np.array([len(lines) for lines in texts])
    good_R = np.array([sum(map(accepted, lines)) for lines in texts])
    if not n_R.sum():
        return None
    value, R = float(good_R.sum() / n_R.sum()), len(texts)
    spread = float(((good_R - value * n_R) ** 2).sum())
    se = math.sqrt(spread * R / (R - 1)) / float(n_R.sum()) if R > 1 else None
    return Share(value, se, int(n_R.sum()))


def unigram(
    texts: Sequence[Sequence[bytes]], tokens: np.ndarray, pieces: Sequence[bytes], seed: int
) -> list[list[bytes]]:
    """Lines of the same lengths, without leading blanks, in bytes: tokens at random places.

    Of a shard of `tokens`, that is by their frequency; those that stand for no byte or hold the end
    of a line are passed over.
    """
    rng = np.random.default_rng(seed)

    def line(length: int) -> bytes:
        found = b""
        while len(found) < length:
            drawn = (pieces[i] for i in rng.choice(tokens, length))
            found += b"".join(piece for piece in drawn if b"\n" not in piece)
        return found[:length]

    return [[line(len(each.strip())) for each in lines] for lines in texts]
