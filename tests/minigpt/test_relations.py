"""Relations of source text and prose: by hand, against invariants, against any text."""

import ast
import sysconfig
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt import relations
from minigpt.relations import Pair
from minigpt.syntax import RefusedError

LIBRARY = Path(sysconfig.get_path("stdlib"))
MODULES = ("dataclasses.py", "enum.py", "heapq.py", "tokenize.py")


def found(relation: str, text: str | bytes) -> list[tuple[int, str]]:
    """(query, "query's byte -> key @ its start"), so that positions and what they hold are seen."""
    raw = text if isinstance(text, bytes) else text.encode()
    return [
        (query, f"{raw[query : query + 1].decode(errors='replace')} -> "
         f"{raw[start:stop].decode()} @ {start}")
        for query, start, stop in relations.of_source(raw)[relation]
    ]  # fmt: skip


def test_brackets() -> None:
    assert found("bracket", "f(a[0], {})") == [
        (5, "] -> [ @ 3"),
        (9, "} -> { @ 8"),
        (10, ") -> ( @ 1"),
    ]
    assert found("bracket", "x = (')', # )\n f'{(1)}', b'[')") == [(29, ") -> ( @ 4")]


def test_previous_uses_are_of_the_same_bytes() -> None:
    # Attributes, keyword arguments and parameters are uses; strings, comments, keywords are not.
    assert found("previous_use", "ab = c.ab  # ab 'ab'\nf(ab=None, aba=None)\n'ab'\nf") == [
        (8, "b -> ab @ 0"),
        (24, "b -> ab @ 7"),
        (47, "f -> f @ 21"),
    ]
    # Greek letters have two bytes, and the query is the last of them.
    assert relations.of_source("αβ = 1; y = αβ".encode())["previous_use"] == [Pair(17, 0, 4)]


def test_soft_keywords_are_names_where_they_are_not_keywords() -> None:
    text = "match = case = 1\nmatch match:\n    case case: case\n    case 2: match.case\n"
    assert found("previous_use", text) == [
        (27, "h -> match @ 0"),
        (42, "e -> case @ 8"),
        (48, "e -> case @ 39"),
        (66, "h -> match @ 23"),
        (71, "e -> case @ 45"),
    ]


def test_bindings_count_where_the_name_was_mentioned_since() -> None:
    assert found("binding", "x = 1; y = x; z = x; x = 2; x") == [(18, "x -> x @ 0")]


def test_statements() -> None:
    assert found("statement", "if a: b = 1; c\nelse:\n    d(\n  e)\n") == [
        (3, "a -> if @ 0"),
        (4, ": -> if @ 0"),
        (8, "= -> b @ 6"),
        (10, "1 -> b @ 6"),
        (11, "; -> b @ 6"),
        (19, ": -> else @ 15"),
        (26, "( -> d @ 25"),
        (30, "e -> d @ 25"),
        (31, ") -> d @ 25"),
    ]
    # A decorator is a clause of its own.
    assert found("statement", "@a\nasync def f(): pass") == [
        (1, "a -> @ @ 0"),
        (9, "d -> async @ 3"),
        (13, "f -> async @ 3"),
        (14, "( -> async @ 3"),
        (15, ") -> async @ 3"),
        (16, ": -> async @ 3"),
    ]


def test_definitions() -> None:
    text = "class A(B):  # c\n  x = 1\n  @d\n  def f(self,\n    y): z\n  while x:\n    x\ny\n"
    assert found("definition", text) == [
        (19, "x -> class A(B):  # c @ 0"),
        (27, "@ -> class A(B):  # c @ 0"),
        (52, "z -> def f(self, @ 32"),
        (56, "w -> class A(B):  # c @ 0"),
        (69, "x -> class A(B):  # c @ 0"),
    ]
    assert found("definition", "def f(): return 1\n") == []  # the line of the query itself
    assert found("definition", "def f():\r\n\tx\r\n") == [(11, "x -> def f(): @ 0")]


def test_parents_that_begin_neither_statement_nor_definition() -> None:
    assert found("parent", "f(a, b=c * d)\n") == [
        (7, "c -> b @ 5"),  # the keyword argument; of `a` and `b=` the parent begins the statement
        (11, "d -> c @ 7"),  # c * d
    ]
    # (a + b) * c begins at its bracket, a + b after it.
    assert found("parent", "x = (a + b) * c\n") == [
        (5, "a -> ( @ 4"),
        (9, "b -> a @ 5"),
        (14, "c -> ( @ 4"),
    ]
    # Statements in an `if`; in a `def` the answer is that of definition, but on its own line.
    assert found("parent", "if a:\n  b\n  if c: d\n") == [
        (8, "b -> if @ 0"),
        (12, "i -> if @ 0"),
        (18, "d -> if @ 12"),
    ]
    assert found("parent", "@f(a)\ndef g(): pass\n") == [(3, "a -> f @ 1"), (15, "p -> def @ 6")]
    assert found("parent", "y = f'{a + b}' + c") == [(17, "c -> f'{a + b}' @ 4")]


def test_bytes_are_counted_and_not_characters() -> None:
    for ends in "\n", "\r\n", "\r":
        text = f"\ufeff# äöü{ends}f('€', (x))  # é{ends}ß = x{ends}"
        first = 3 + len("# äöü".encode()) + len(ends)
        found = relations.of_source(text.encode())
        pair = Pair(first + 11, first + 9, first + 10)
        assert found["bracket"] == [pair, Pair(first + 12, first + 1, first + 2)]
        line = first + len("f('€', (x))  # é".encode()) + len(ends)
        assert found["statement"][-2:] == [
            Pair(line + 3, line, line + 2),
            Pair(line + 5, line, line + 2),
        ]


@pytest.mark.parametrize(
    "text",
    [
        "def f(:",
        "print 1",
        "x = (",
        "a\n  b",
        "'",
        "x = $",
        "Two words.",
        b"x\0",
        b"\xff",
        "(" * 999,
    ],
    ids=str,
)
def test_other_texts_are_refused(text: str | bytes) -> None:
    with pytest.raises(RefusedError):
        relations.of_source(text if isinstance(text, bytes) else text.encode())


def test_a_deep_tree_is_refused_or_read() -> None:
    for depth in 50, 5_000:
        try:
            found = relations.of_source(b"x" + b" + x" * depth)
        except RefusedError:
            assert depth == 5_000
        else:
            assert len(found["previous_use"]) == depth


def test_a_valid_escape_that_python_warns_of_is_no_error() -> None:
    assert found("bracket", "f('\\d')") == [(6, ") -> ( @ 1")]


@pytest.mark.parametrize("name", MODULES)
def test_pairs_of_the_standard_library(name: str) -> None:
    text = (LIBRARY / name).read_bytes()
    pairs = relations.of_source(text)
    assert set(pairs) == set(relations.SOURCE)
    for relation in pairs.values():
        assert relation == sorted(relation)
        assert all(0 <= start < stop <= query < len(text) for query, start, stop in relation)
        assert len({pair.query for pair in relation}) == len(relation)
    _nested(text, pairs["bracket"])
    for query, start, stop in pairs["previous_use"] + pairs["binding"]:
        assert text[query + 1 - (stop - start) : query + 1] == text[start:stop]
    assert not set(pairs["binding"]) & set(pairs["previous_use"])
    for query, start, stop in pairs["definition"]:
        assert text[start:stop].startswith((b"def ", b"class ", b"async def "))
        assert b"\n" not in text[start:stop]
        assert b"\n" in text[stop:query]
    _enclosed(text, pairs["parent"])
    _first_in_line_or_after(text, pairs["statement"])


def _nested(text: bytes, pairs: list[Pair]) -> None:
    match = dict(zip(b")]}", b"([{", strict=True))
    inside = []
    for query, start, _ in pairs:
        assert match[text[query]] == text[start]
        while inside and inside[-1] > start:
            inside.pop()  # opened and closed in between
        assert query not in inside
        inside.append(start)
    for a in pairs:  # of two pairs one lies in the other, or they are apart
        for b in pairs[:200]:
            assert not a.start < b.start < a.query < b.query


def _enclosed(text: bytes, pairs: list[Pair]) -> None:
    """Some node begins at the key and ends after the query's first byte; a node begins there."""
    lines = [0]
    for line in text.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    ends: dict[int, int] = {}
    for node in ast.walk(ast.parse(text)):
        if hasattr(node, "lineno"):
            begin = lines[node.lineno - 1] + node.col_offset
            end = lines[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
            ends[begin] = max(end, ends.get(begin, 0))
    for query, start, _ in pairs:
        assert text[start : start + 1] == b"@" or ends[start] > query
        assert text[query : query + 1] == b"@" or query in ends


def _first_in_line_or_after(text: bytes, pairs: list[Pair]) -> None:
    for start in {pair.start for pair in pairs}:
        before = text[text.rfind(b"\n", 0, start) + 1 : start].rstrip()
        assert not before or before.endswith((b";", b":"))


FRAGMENTS = [
    *"()[]{},:=;.*@01#\\éß",
    *[
        "x",
        "y",
        "f",
        "+=",
        ":=",
        "**",
        "\n",
        "\n    ",
        "\n\t",
        "\r\n",
        "if",
        "else:",
        "for",
        "in",
        "def",
    ],
    *[
        "class",
        "lambda",
        "return",
        "import",
        "as",
        "match",
        "case",
        "global",
        "del",
        "'a'",
        "f'{x}'",
    ],
]


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=30))
def test_any_text_is_read_or_refused(fragments: list[str]) -> None:
    text = " ".join(fragments).encode()
    try:
        pairs = relations.of_source(text)
    except RefusedError:
        return
    for relation in pairs.values():
        assert all(0 <= start < stop <= query < len(text) for query, start, stop in relation)


EXPRESSIONS = st.recursive(
    st.sampled_from(["x", "yy", "1", "'('", "z.x", "é"]),
    lambda inner: st.one_of(
        st.builds("({}, {})".format, inner, inner),
        st.builds("[{} for yy in {}]".format, inner, inner),
        st.builds("f({}, k={})".format, inner, inner),
        st.builds("{}[{}]".format, st.just("x"), inner),
        st.builds("{{{}: {}}}".format, inner, inner),
        st.builds("(lambda x: {})".format, inner),
        st.builds("({} + {})".format, inner, inner),
    ),
    max_leaves=12,
)
STATEMENTS = st.recursive(
    st.one_of(
        st.builds("x = {}".format, EXPRESSIONS),
        st.builds("yy += {}".format, EXPRESSIONS),
        st.builds("return {}  # (".format, EXPRESSIONS),
        st.just("global é"),
    ).map(lambda line: [line]),
    lambda body: st.builds(
        lambda head, inner: [head, *("    " + line for line in inner)],
        st.sampled_from(["def f(x, yy=x):", "class C:", "if x:", "for x in yy:", "while x:"]),
        st.lists(body, min_size=1, max_size=3).map(
            lambda parts: [line for part in parts for line in part]
        ),
    ),
    max_leaves=6,
)


@settings(max_examples=50)
@given(STATEMENTS)
def test_the_kind_of_line_end_and_of_indent_changes_no_relation(lines: list[str]) -> None:
    """Every byte of one text is known by its line and its place in it, and so are the pairs."""
    reference = None
    for end, indent in ("\n", "    "), ("\r\n", "    "), ("\r", "\t"), ("\n", " "):
        text = end.join(line.replace("    ", indent) for line in lines).encode()
        # What stands before a byte, without white space, does not depend on either.
        dark = [len(b"".join(text[:i].split())) for i in range(len(text) + 1)]
        pairs = {
            name: [(dark[query], dark[start], dark[stop]) for query, start, stop in relation]
            for name, relation in relations.of_source(text).items()
        }
        reference = reference or pairs
        assert pairs == reference


def test_prose() -> None:
    text = (
        b"Intro one\n\n# First head\nA b\nc\n\nD e f\n\n"
        b"Under\n=====\n\nG\n```\n# no\nx y\n```\n  ## Third\nH\n\n---\n\ni j\n"
    )
    pairs = relations.of_prose(text)
    shown = {
        name: [
            (text[query : text.find(b" ", query)].split()[0], text[start:stop])
            for query, start, stop in relation
        ]
        for name, relation in pairs.items()
    }
    assert shown["paragraph"] == [
        (b"one", b"Intro"),
        (b"b", b"A"),
        (b"c", b"A"),
        (b"e", b"D"),
        (b"f", b"D"),
        (b"j", b"i"),
    ]
    assert shown["heading"] == [
        (b"A", b"# First"),
        (b"b", b"# First"),
        (b"c", b"# First"),
        (b"D", b"# First"),
        (b"e", b"# First"),
        (b"f", b"# First"),
        (b"G", b"Under"),
        (b"H", b"## Third"),
        (b"i", b"## Third"),
        (b"j", b"## Third"),
    ]
    assert pairs["paragraph"][:2] == [Pair(6, 0, 5), Pair(26, 24, 25)]
    assert pairs["heading"][0] == Pair(24, 11, 18)


@given(st.text(alphabet="ab #=-~`\n\r\té", max_size=60))
def test_prose_is_any_text(text: str) -> None:
    raw = text.encode()
    for name, relation in relations.of_prose(raw).items():
        for query, start, stop in relation:
            assert 0 <= start < stop < query < len(raw)
            assert not raw[start:stop].isspace()
            assert raw[query : query + 1].strip()
            if name == "paragraph":  # no blank line in between
                lines = raw[start:query].replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
                assert all(line.strip() for line in lines[:-1])
