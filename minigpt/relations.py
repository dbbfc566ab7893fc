"""What a position of a text stands in relation to: its bracket, binding, statement, heading.

A relation is pairs of a query, one byte, and its key, a span of bytes before it that holds the
answer. The query is the byte at which a reader from left to right can know what is asked: the last
one of a name, the first one of everything else. In Python source:

- bracket: a closing bracket; its opening one.
- previous_use: an identifier; the last one before it of the same bytes, keywords and what stands
  inside f-strings apart.
- binding: a name; where it was last bound before it (see `minigpt.scopes`), if it was mentioned
  since: elsewhere the answer is that of previous_use.
- statement: a token in a simple statement, or in a clause (`if`, `else`, `def`, ...) of a compound
  one; the first token of it.
- definition: a statement; the line of the innermost `def` or `class` around it.
- parent: a token that begins nodes of the syntax tree; the first token of the node around the
  largest of them that begins before it, if that is not the answer of statement or definition.

In prose (see `minigpt.prose`), paragraph and heading: a word; the first word of its paragraph, the
beginning of the heading above it.
"""

import ast
import keyword
from bisect import bisect_right
from token import NAME, OP
from typing import NamedTuple

from minigpt import prose, scopes, syntax
from minigpt.syntax import Definition, RefusedError, Source, Token

SOURCE = ("bracket", "previous_use", "binding", "statement", "definition", "parent")
PROSE = ("paragraph", "heading")
SOFT = {b"match": "Match", b"case": "match_case", b"type": "TypeAlias"}


class Pair(NamedTuple):
    """Byte `query` of a text, and its answer: bytes `start` to `stop`, all before it."""

    query: int
    start: int
    stop: int


def of_source(text: bytes) -> dict[str, list[Pair]]:
    """The pairs of each relation of Python source, by query; RefusedError for any other text."""
    source = syntax.parse(text)
    try:
        found = {
            "bracket": _brackets(source),
            "previous_use": _previous_uses(source),
            "binding": [Pair(use[1] - 1, *bound) for use, bound in scopes.bindings(source)],
            "statement": _statements(source),
            "definition": _definitions(source),
            "parent": _parents(source),
        }
    except RecursionError as error:  # a tree that Python's own parser could still build
        raise RefusedError(str(error)) from None
    used = set(found["previous_use"])
    found["binding"] = [pair for pair in found["binding"] if pair not in used]
    simpler = {}
    for name in ("statement", "definition"):
        simpler |= {query: (start, stop) for query, start, stop in found[name]}
    found["parent"] = [
        pair for pair in found["parent"] if not _within(pair.start, simpler.get(pair.query, (0, 0)))
    ]
    return {name: sorted(pairs) for name, pairs in found.items()}


def of_prose(text: bytes) -> dict[str, list[Pair]]:
    """The pairs of each relation of prose, by query."""
    found = {name: [] for name in PROSE}
    for word in prose.words(text):
        if word.heading is not None:
            found["heading"].append(Pair(word.start, *word.heading))
        if word.paragraph is not None:
            found["paragraph"].append(Pair(word.start, *word.paragraph))
    return found


def _within(place: int, span: tuple[int, int]) -> bool:
    return span[0] <= place < span[1]


def _brackets(source: Source) -> list[Pair]:
    found, opened = [], []
    for token in source.tokens:
        if token.kind == OP and source.word(token) in b"([{":
            opened.append(token)
        elif token.kind == OP and source.word(token) in b")]}":
            found.append(Pair(token.start, *_span(opened.pop())))
    return found


def _previous_uses(source: Source) -> list[Pair]:
    found, last = [], {}
    keywords = _soft_keywords(source)
    for token in source.tokens:
        word = source.word(token)
        if token.kind != NAME or keyword.iskeyword(word.decode()) or token.start in keywords:
            continue
        if word in last:
            found.append(Pair(token.stop - 1, *_span(last[word])))
        last[word] = token
    return found


def _soft_keywords(source: Source) -> set[int]:
    """Where `match`, `case` and `type` are keywords, which they are not everywhere."""
    nodes = [node for node in ast.walk(source.tree) if isinstance(node, ast.stmt)]
    begins = {source.begin(node): node for node in nodes}
    found = set()
    for start in source.logical:
        word = source.word(source.tokens[source.first(start)])
        if word in SOFT:  # `case` begins no statement where it is a keyword
            name = type(begins[start]).__name__ if start in begins else "match_case"
            found |= {start} if name == SOFT[word] else set()
    return found


def _statements(source: Source) -> list[Pair]:
    own = {_first(source, node) for node in ast.walk(source.tree) if isinstance(node, ast.stmt)}
    begins = sorted({*source.logical, *own})
    tokens = {token.start: token for token in source.tokens}
    found = []
    for token in source.tokens:
        begin = begins[bisect_right(begins, token.start) - 1]
        if begin < token.start:
            found.append(Pair(token.start, *_span(tokens[begin])))
    return found


def _definitions(source: Source) -> list[Pair]:
    found = []
    for node in ast.walk(source.tree):
        if not isinstance(node, Definition):
            continue
        start, stop = _line(source, node)
        inside: list[ast.AST] = [*node.body]
        while inside:
            child = inside.pop()
            if isinstance(child, ast.stmt) and _first(source, child) >= stop:
                found.append(Pair(_first(source, child), start, stop))
            if not isinstance(child, Definition | ast.expr):
                inside += ast.iter_child_nodes(child)
    return found


def _line(source: Source, node: Definition) -> tuple[int, int]:
    """From `def` or `class` to the end of its line."""
    start = source.begin(node)
    stop = source.lines[bisect_right(source.lines, start)]
    return start, start + len(source.text[start:stop].rstrip())


def _parents(source: Source) -> list[Pair]:
    tokens = {token.start: token for token in source.tokens}
    parent: dict[int, int] = {}
    inside: list[tuple[ast.AST, int | None]] = [(source.tree, None)]
    while inside:  # a node before those in it: of all that begin at one token the largest is first
        node, around = inside.pop()
        if isinstance(node, syntax.INTERPOLATED):
            children = []
        elif isinstance(node, Definition):
            outside = _first(source, node)
            inside += [(decorator, outside) for decorator in node.decorator_list]
            children = set(ast.iter_child_nodes(node)) - set(node.decorator_list)
        else:
            children = ast.iter_child_nodes(node)
        if hasattr(node, "lineno"):
            first = _first(source, node) if isinstance(node, ast.stmt) else source.begin(node)
            if around is not None and around < first:
                parent.setdefault(first, around)
            around = source.begin(node)
        inside += [(child, around) for child in children]
    return [Pair(query, *_span(tokens[around])) for query, around in parent.items()]


def _first(source: Source, node: ast.stmt) -> int:
    """First byte of a statement, which may be that of a decorator."""
    if not isinstance(node, Definition) or not node.decorator_list:
        return source.begin(node)
    i = source.first(source.begin(node.decorator_list[0]))
    while source.word(source.tokens[i]) != b"@":
        i -= 1
    return source.tokens[i].start


def _span(token: Token) -> tuple[int, int]:
    return token.start, token.stop
