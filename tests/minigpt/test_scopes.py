"""Bindings: by hand over everything that binds, and against the interpreter's own compiler."""

import dis
import sys
import sysconfig
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from minigpt import scopes, syntax

LIBRARY = Path(sysconfig.get_path("stdlib"))


def bound(text: str) -> list[str]:
    """ "name line:column < line:column" of each use that is bound; columns are bytes."""
    source = syntax.parse(text.encode())

    def place(byte: int) -> str:
        line = max(i for i, start in enumerate(source.lines[:-1]) if start <= byte)
        return f"{line + 1}:{byte - source.lines[line]}"

    found = []
    for use, bound in scopes.bindings(source):
        name = source.text[slice(*use)].decode()
        assert source.text[slice(*bound)].decode() == name
        found.append(f"{name} {place(use[0])} < {place(bound[0])}")
    return found


CASES = {
    "assignment": (
        "x = 1\nx, (y, *z) = x\nx, y, z, w",
        ["x 2:13 < 1:0", "x 3:0 < 2:0", "y 3:3 < 2:4", "z 3:6 < 2:8"],
    ),
    "value first": (
        "x = 1\nx = x + 1\nx += x\nx",
        ["x 2:4 < 1:0", "x 3:0 < 2:0", "x 3:5 < 2:0", "x 4:0 < 3:0"],
    ),
    "targets in turn": ("i = 0\ni, a[i] = 1, 2", ["i 2:5 < 2:0"]),
    "annotated": ("x: int\nx\ny: int = 1\ny", ["y 4:0 < 3:0"]),
    "declared here": ("x = 1\ndef f():\n  x: int\n  return x", []),
    "deleted": ("x = 1\ndel x\ndef f():\n  del x\n  x", ["x 2:4 < 1:0"]),
    "walrus": ("[(y := x) for x in z]\nprint(y, x)", ["y 2:6 < 1:2"]),
    "for": ("x = [1]\nfor x in x: x\nelse: x", ["x 2:9 < 1:0", "x 2:12 < 2:4", "x 3:6 < 2:4"]),
    "with": (
        "with a as a, b(a) as (c, d): c, a",
        ["a 1:15 < 1:10", "c 1:29 < 1:22", "a 1:32 < 1:10"],
    ),
    "except": ("try: 1\nexcept (E) as e: e\nexcept (F, G): e", ["e 2:17 < 2:14", "e 3:15 < 2:14"]),
    "import": (
        "import os.path, re as p, sys\nfrom x import y as z, w\nfrom v import *\n"
        "os, path, re, p, sys, x, y, z, w",
        ["os 4:0 < 1:7", "p 4:14 < 1:22", "sys 4:17 < 1:25", "z 4:28 < 2:19", "w 4:31 < 2:22"],
    ),
    "parameters": (
        "a = 1\ndef f(a, /, b=a, *c, d: a = a, **e) -> a: a, b, c, d, e\nlambda a, *b: (a, b)",
        [
            "a 2:14 < 1:0",
            "a 2:24 < 1:0",
            "a 2:28 < 1:0",
            "a 2:39 < 1:0",
            "a 2:42 < 2:6",
            "b 2:45 < 2:12",
            "c 2:48 < 2:18",
            "d 2:51 < 2:21",
            "e 2:54 < 2:33",
            "a 3:15 < 3:7",
            "b 3:18 < 3:11",
        ],
    ),
    "shadowing": (
        "x = 1\ndef f():\n  x = 2\n  def g(): return x\n  return x\nx",
        ["x 4:18 < 3:2", "x 5:9 < 3:2", "x 6:0 < 1:0"],
    ),
    "local before it is bound": ("x = 1\ndef f():\n  print(x)\n  x = 2\n  x", ["x 5:2 < 4:2"]),
    "global": (
        "x = 1\ndef f():\n  x = 2\n  def g():\n    global x, y\n    x = y = 3\n    x\n  x\nx, y",
        ["x 7:4 < 6:4", "x 8:2 < 3:2", "x 9:0 < 6:4", "y 9:3 < 6:8"],
    ),
    "nonlocal": (
        "x = 1\ndef f():\n  x = 2\n  def g():\n    nonlocal x\n    x += 3\n  x\nx",
        ["x 6:4 < 3:2", "x 7:2 < 6:4", "x 8:0 < 1:0"],
    ),
    "class scope": (
        "x = 1\nclass A:\n  x = x\n  y = x\n  def f(self): return x, A\n  z = [x for _ in y]",
        [
            "x 3:6 < 1:0",
            "x 4:6 < 3:2",
            "x 5:22 < 1:0",
            "A 5:25 < 2:6",
            "x 6:7 < 1:0",
            "y 6:18 < 4:2",
        ],
    ),
    "class before it is bound": ("A = 1\nclass A(A):\n  A", ["A 2:8 < 1:0", "A 3:2 < 1:0"]),
    "a class in a function asks the module": (
        "x = 1\ndef f():\n  x = 2\n  class A:\n    x = x",
        ["x 5:8 < 1:0"],
    ),
    "recursion": ("def f(g=f): return f\nh = lambda: h", ["f 1:19 < 1:4", "h 2:12 < 2:0"]),
    "decorators": ("@f\ndef f(): pass\n@f\nclass f: pass", ["f 3:1 < 2:4"]),
    "comprehension": (
        "x = 1\n[x for x in x if x for y in x]\n{y: x for y in x}\nx",
        [
            "x 2:12 < 1:0",
            "x 2:17 < 2:7",
            "x 2:28 < 2:7",
            "x 3:4 < 1:0",
            "x 3:15 < 1:0",
            "x 4:0 < 1:0",
        ],
    ),
    "async": (
        "async def f(a):\n  async for b in a:\n    async with b as c: await c\n"
        "  [d async for d in a if d]",
        ["a 2:17 < 1:12", "b 3:15 < 2:12", "c 3:29 < 3:20", "a 4:20 < 1:12", "d 4:25 < 4:15"],
    ),
    "match": (
        "match a:\n  case [b, *c] if b: c\n  case {1: d, **e}: d, e\n"
        "  case C(f=g) as h: g, h\n  case _: _",
        [
            "b 2:18 < 2:8",
            "c 2:21 < 2:12",
            "d 3:20 < 3:11",
            "e 3:23 < 3:16",
            "g 4:20 < 4:11",
            "h 4:23 < 4:17",
        ],
    ),
    "lines and tabs": ("if 1:\r\n\tx = (\r\n1)\r\n\tx", ["x 4:1 < 2:1"]),
    "letters": ("é = 1; ü = é + ﬁ", ["é 1:13 < 1:0"]),
    "f-strings": ("x = 1\nf'{x} {(y := 2)}' + x\ny", ["x 2:20 < 1:0"]),
}


@pytest.mark.parametrize(("text", "expected"), CASES.values(), ids=CASES)
def test_bindings(text: str, expected: list[str]) -> None:
    assert bound(text) == expected


MODULES = ("argparse", "dataclasses", "enum", "typing", "asyncio/tasks")
LOADS = {
    "FAST": ("LOAD_FAST",),
    "DEREF": ("LOAD_DEREF", "LOAD_CLASSDEREF"),
    "GLOBAL": ("LOAD_GLOBAL",),
    "NAME": ("LOAD_NAME",),
}


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="comprehensions have no code of their own")
@pytest.mark.parametrize("module", MODULES)
def test_scopes_are_those_of_the_compiler(module: str) -> None:
    """Instructions that load and store names say where in the text they do, and in which code."""
    text = (LIBRARY / f"{module}.py").read_bytes()
    source = syntax.parse(text)
    found = dict(scopes.bindings(source))
    names = {token[1:] for token in source.tokens}  # not what stands in f-strings
    loads, stores = {}, {}
    module_code = compile(text, module, "exec")
    for codes, instruction in _instructions(module_code, ()):
        line, stop, column, end = instruction.positions
        kind, _, how = instruction.opname.partition("_")
        if None in (line, stop, column, end) or not isinstance(instruction.argval, str):
            continue
        span = (source.lines[line - 1] + column, source.lines[stop - 1] + end)
        if text[slice(*span)] == instruction.argval.encode() and span in names:
            (stores if kind == "STORE" else loads)[span] = (codes, how, instruction.argval)
    checked = 0
    for use, bound in found.items():
        if use not in loads or bound not in stores:
            continue
        codes, how, _ = loads[use]
        where, stored, _ = stores[bound]
        checked += 1
        if how == "FAST":
            assert (where, stored) == (codes, "FAST"), (use, bound)
        elif how in ("DEREF", "CLASSDEREF"):
            assert (codes[:2], stored) == (where[:2], "DEREF"), (use, bound)
        elif how == "GLOBAL":
            assert where == codes[:1] or stored == "GLOBAL", (use, bound)
        else:
            assert where in (codes, codes[:1]), (use, bound)
    assert checked > 100
    # And what a function has stored under the name of a load, above it, is found.
    for use, (codes, how, name) in loads.items():
        above = [
            bound
            for bound, (where, _, stored) in stores.items()
            if where == codes and stored == name and bound[1] <= use[0]
        ]
        if how == "FAST" and above:
            assert use in found


@pytest.mark.skipif(sys.version_info < (3, 12), reason="type parameters are of Python 3.12")
def test_type_parameters() -> None:
    text = "T = 1\ndef f[T: T](x: T = T): return T\nclass C[*U](U): x: U; y = T\ntype X[V] = V | X"
    assert bound(text) == [
        "T 2:9 < 2:6", "T 2:15 < 2:6", "T 2:19 < 1:0", "T 2:30 < 2:6",
        "U 3:12 < 3:9", "U 3:19 < 3:9", "T 3:26 < 1:0", "V 4:12 < 4:7", "X 4:16 < 4:5",
    ]  # fmt: skip


def _instructions(
    code: types.CodeType, around: tuple[types.CodeType, ...]
) -> Iterator[tuple[tuple[types.CodeType, ...], dis.Instruction]]:
    """Each with its code and the codes around that."""
    codes = (*around, code)
    for instruction in dis.get_instructions(code):
        if instruction.opname.startswith(("LOAD_", "STORE_")):
            yield codes, instruction
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _instructions(constant, codes)
