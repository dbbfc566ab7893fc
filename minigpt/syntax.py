"""Python source as tokens and a syntax tree, both over byte offsets of the text.

What stands inside an f-string is one token and no tree: where it lies was not told exactly before
Python 3.12, and the same text must give the same tokens with every interpreter.
"""

import ast
import io
import re
import tokenize
import warnings
from bisect import bisect_left
from dataclasses import dataclass
from typing import NamedTuple

LINE = re.compile(rb"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
BOM = "\ufeff"
BLANK = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}
# Of Python 3.12 and 3.14, where such strings are several tokens.
OPENS, CLOSES = (
    {getattr(tokenize, f"{kind}STRING_{end}", None) for kind in "FT"} - {None}
    for end in ("START", "END")
)
INTERPOLATED = tuple(
    getattr(ast, name) for name in ("JoinedStr", "TemplateStr") if hasattr(ast, name)
)
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class RefusedError(ValueError):
    """A text that is no Python source."""


class Token(NamedTuple):
    """A name, number, string or operator, or one bracket: bytes `start` to `stop` of the text."""

    kind: int  # of the module `token`
    start: int
    stop: int


@dataclass(frozen=True)
class Source:
    """A text with its tree, its tokens, and the first byte of each physical and logical line.

    A logical line begins with a token (Python reference, §2.1.1); a physical one need not.
    """

    text: bytes
    tree: ast.Module
    tokens: list[Token]
    lines: list[int]
    logical: list[int]

    def begin(self, node: ast.AST) -> int:
        """First byte of a node that has a place; of a decorated one, of its `def` or `class`."""
        return self.lines[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]

    def end(self, node: ast.AST) -> int:
        """The byte after a node that has a place."""
        return self.lines[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]

    def first(self, start: int) -> int:
        """The number of the first token that begins at byte `start` or after it."""
        return bisect_left(self.tokens, start, key=lambda token: token.start)

    def word(self, token: Token) -> bytes:
        """The text of a token."""
        return self.text[token.start : token.stop]


def parse(text: bytes) -> Source:
    """The tree and tokens of UTF-8 source; raises RefusedError for what is none."""
    try:
        decoded = text.decode()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that a later Python will refuse
            tree = ast.parse(decoded.removeprefix(BOM))
            return _source(text, tree, len(BOM.encode()) if decoded.startswith(BOM) else 0)
    except (SyntaxError, ValueError, tokenize.TokenError, RecursionError, MemoryError) as error:
        raise RefusedError(str(error)) from None


def _source(text: bytes, tree: ast.Module, first: int) -> Source:
    lines, decoded = [], []
    for match in LINE.finditer(text, first):
        lines.append(match.start())
        decoded.append(match[0].decode())
    stream = io.StringIO("".join(line.rstrip("\r\n") + "\n" for line in decoded), newline="\n")
    lines.append(len(text))
    narrow = [line.isascii() for line in decoded]

    def offset(place: tuple[int, int]) -> int:
        line, column = place[0] - 1, place[1]
        wide = line < len(narrow) and not narrow[line]
        return lines[line] + (len(decoded[line][:column].encode()) if wide else column)

    tokens, logical, depth, fresh, start = [], [], 0, True, 0
    for kind, _, begin, end, _ in tokenize.generate_tokens(stream.readline):
        if kind == tokenize.ERRORTOKEN:
            raise RefusedError(f"line {begin[0]}: no token")
        if kind == tokenize.NEWLINE:
            fresh = True
        if kind in BLANK:
            continue
        if depth == 0:
            start = offset(begin)
        depth += (kind in OPENS) - (kind in CLOSES)
        if depth:
            continue
        if fresh:
            logical.append(start)
        fresh = False
        whole = tokenize.STRING if kind in CLOSES else kind
        tokens.append(Token(whole, start, offset(end)))
    return Source(text, tree, tokens, lines, logical)
