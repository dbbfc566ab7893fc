"""Lines of Python: which are accepted, their share with its error, and unigram lines."""

import math
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt import lines
from minigpt.tokenizer import BYTES

SOURCE = Path(lines.__file__)


@pytest.mark.parametrize(
    "line",
    [
        "x = 1",
        "        return not x",
        "def f(a,",  # goes on
        "x = [",
        '"""A docstring that',
        "total = one + \\",
        "    })",  # closes what was opened before
        "# it's a comment",
        "words that are no program at all",
        "naïve = 'é€'",
        "f'{x!r:>{width}}'",
    ],
)
def test_accepted(line):
    assert lines.accepted(line.encode())


@pytest.mark.parametrize(
    "line",
    [
        b"it's a line of a docstring",
        b"a ? b",
        b"x = $1",
        b"x = 'abc",
        b'print("',
        b"`x`",
        b"\xff = 1",
    ],
)
def test_not_accepted(line):
    assert not lines.accepted(line)


def test_lines_of_this_package_are_accepted():
    texts = [lines.whole(path.read_bytes()) for path in SOURCE.parent.glob("*.py")]
    found = lines.share(texts)
    assert found is not None
    assert found.lines == sum(map(len, texts)) > 1_000
    assert found.value > 0.97


@given(st.binary(max_size=60))
def test_any_bytes_are_judged(line):
    assert lines.accepted(line) in (True, False)


def test_whole_lines_are_those_that_end():
    assert lines.whole(b"a\n\n  \n b\nunfinished") == [b"a", b" b"]
    assert lines.whole(b"") == []


def test_share_and_its_error_by_hand():
    good, bad = b"x = 1", b"?"
    found = lines.share([[good, good, bad], [good], [], [bad, good, good, good]])
    assert found is not None
    residuals = [2 - 3 * 6 / 8, 1 - 6 / 8, 0, 3 - 4 * 6 / 8]
    assert found.lines == 8
    assert found.value == pytest.approx(6 / 8)
    assert found.se == pytest.approx(math.sqrt(sum(r * r for r in residuals) * 4 / 3) / 8)
    assert lines.share([[], []]) is None
    alone = lines.share([[good, bad]])
    assert alone == lines.Share(0.5, None, 2)


def test_the_error_is_that_of_texts_not_of_lines():
    """Of 40 texts of four lines, all good or all bad, drawn again and again."""
    rng = random.Random(0)
    found = [
        lines.share([[b"x" if rng.random() < 0.5 else b"?"] * 4 for _ in range(40)])
        for _ in range(100)
    ]
    spread = np.std([share.value for share in found if share])
    claimed = np.mean([share.se for share in found if share and share.se is not None])
    assert claimed == pytest.approx(spread, rel=0.3)  # of lines it would be half


def test_unigram_lines_have_the_lengths_and_the_frequencies():
    tokens = np.array([*b"aaab\n", 256] * 100, "<u2")
    texts = [[b"12345678", b"  1"], [], [b"1" * 4_000]]
    found = lines.unigram(texts, tokens, BYTES.pieces, seed=0)
    assert [[len(line) for line in each] for each in found] == [[8, 1], [], [4_000]]
    long = found[2][0]
    assert set(long) == set(b"ab")
    assert long.count(b"a") / 4_000 == pytest.approx(0.75, abs=0.05)
    assert found == lines.unigram(texts, tokens, BYTES.pieces, seed=0)
    assert found != lines.unigram(texts, tokens, BYTES.pieces, seed=1)
