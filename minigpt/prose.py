"""Paragraphs and headings of prose: plain text, Markdown, reStructuredText.

A paragraph is lines between blank ones. A heading is a line that begins with one to six `#` and a
space, or a line alone above a row of one of = - ~ ^ " * + #, three at least. Rows, fenced code and
what stands in it are neither.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from minigpt.syntax import LINE

WORD = re.compile(rb"\S+")
MARKED = re.compile(rb" {0,3}(#{1,6}[ \t]+\S+)")
ROW = re.compile(rb'\s*([=\-~^"*+#])\1{2,}\s*')
FENCE = re.compile(rb"\s*(```|~~~)")

Span = tuple[int, int]


class Word(NamedTuple):
    """A word of a paragraph, the first word of it if it is another, the heading above it.

    Of a heading the first word is meant, with the `#` before it.
    """

    start: int
    paragraph: Span | None
    heading: Span | None


def words(text: bytes) -> Iterator[Word]:
    """The words of all paragraphs, in the order of the text."""
    lines = [(match.start(), match[0]) for match in LINE.finditer(text)]
    heading: Span | None = None
    first: Span | None = None  # of the paragraph that the line goes on with
    fence = b""
    for i, (start, line) in enumerate(lines):
        fenced = FENCE.match(line)
        if fence or fenced or not line.strip() or ROW.fullmatch(line):
            first = None
            if fenced and fenced[1] in (fence, fence or fenced[1]):
                fence = b"" if fence else fenced[1]
            continue
        marked = MARKED.match(line)
        below = lines[i + 1][1] if i + 1 < len(lines) else b""
        if marked or (first is None and ROW.fullmatch(below)):
            match = marked or WORD.search(line)
            assert match is not None, "the line is not blank"
            group = 1 if marked else 0
            heading, first = (start + match.start(group), start + match.end(group)), None
            continue
        for match in WORD.finditer(line):
            span = (start + match.start(), start + match.end())
            yield Word(span[0], first, heading)
            first = first or span
