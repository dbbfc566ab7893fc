"""Which binding a name of Python source means: the last one before it in the scope it belongs to.

Scopes are those of the language reference (§4.2.2) and PEP 695. Two uses of a name differ in when
they run. One in the scope of its binding, or in a comprehension or class body there, sees what was
bound before it in the order of evaluation: the x of `x = x + 1` is an earlier x. One in a function
or lambda runs later, and sees what stands before it in the text: a function sees its own name.

Limits: branches and loops are read once, from top to bottom. `import *`, `del`, exec, the end of a
handler and what stands in f-strings bind and unbind nothing; `__x` is not mangled; strings are no
annotations.
"""

import ast
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from token import NAME
from typing import NamedTuple

from minigpt.syntax import INTERPOLATED, Definition, Source

Span = tuple[int, int]  # of bytes


def bindings(source: Source) -> list[tuple[Span, Span]]:
    """Every use of a name with the place that bound it, in the order of the text."""
    walk = _Walk(source)
    walk.visit(source.tree, walk.module)
    for event in walk.bound:
        home = walk.home(event.scope, event.name)
        if home is not None:
            home.local.add(event.name)  # which a function may have declared global
            home.events[event.name].append(event)
    found = []
    for use in walk.uses:
        at = walk.meaning(use)
        if at is not None and at.span[1] <= use.span[0]:
            found.append((use.span, at.span))
    return sorted(found)


@dataclass(eq=False)
class _Scope:
    kind: str  # module, class, function (lambda too), comprehension, types (PEP 695)
    parent: "_Scope | None"
    local: set[str] = field(default_factory=set)
    declared: dict[str, str] = field(default_factory=dict)  # global or nonlocal
    events: dict[str, list["_Event"]] = field(default_factory=lambda: defaultdict(list))


class _Event(NamedTuple):
    """A use or a binding, number `tick` in the order of evaluation."""

    tick: int
    span: Span
    scope: _Scope
    name: str


class _Walk:
    """Visits a tree in the order of evaluation."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.module = _Scope("module", None)
        self.bound: list[_Event] = []
        self.uses: list[_Event] = []

    def home(self, scope: _Scope, name: str) -> _Scope | None:
        """The scope that `name` belongs to in `scope`; None for a builtin."""
        inside: _Scope | None = scope
        own = True  # a class is seen from its own body, and by annotations in it
        while inside is not None:
            declared = inside.declared.get(name)
            if declared == "global":
                return self.module
            if declared is None and name in inside.local and (own or inside.kind != "class"):
                return inside
            own = own and inside.kind == "types"
            inside = inside.parent
        return None

    def meaning(self, use: _Event) -> _Event | None:
        """The binding that a use means, wherever it stands."""
        home = self.home(use.scope, use.name)
        if home is None:
            return None
        events, inside = home.events[use.name], use.scope
        while inside is not home and inside is not None and inside.kind != "function":
            inside = inside.parent
        if inside is not home:  # it runs later, or belongs to a module that it declared
            above = (event for event in events if event.span < use.span)
            return max(above, key=lambda event: event.span, default=None)
        before = bisect_left(events, use.tick, key=lambda event: event.tick)
        if before == 0 and home.kind == "class":  # not yet: a class body then asks the module
            return self.meaning(use._replace(scope=self.module))
        return events[before - 1] if before else None

    def visit(self, node: ast.AST, scope: _Scope) -> None:
        match node:
            case ast.Name():
                self._name(node, scope)
            case ast.Assign(targets=targets, value=value):
                self._each([value, *targets], scope)
            case ast.AugAssign(target=target, value=value):
                if isinstance(target, ast.Name):
                    self._use(target, scope)
                self._each([value, target], scope)
            case ast.AnnAssign(target=target, annotation=annotation, value=value):
                if value is not None or not isinstance(target, ast.Name):
                    self._each([value, target], scope)
                elif node.simple:  # it declares, and binds nothing
                    scope.local.add(target.id)
                self.visit(annotation, scope)
            case ast.NamedExpr(target=target, value=value):
                self.visit(value, scope)
                while scope.kind == "comprehension" and scope.parent is not None:
                    scope = scope.parent
                self.visit(target, scope)
            case ast.For() | ast.AsyncFor():
                self._each([node.iter, node.target, *node.body, *node.orelse], scope)
            case ast.Global(names=names) | ast.Nonlocal(names=names):
                declared = "global" if isinstance(node, ast.Global) else "nonlocal"
                scope.declared |= dict.fromkeys(names, declared)
            case ast.Import() | ast.ImportFrom():
                self._import(node, scope)
            case ast.ExceptHandler(type=kind, name=name, body=body):
                self._each([kind], scope)
                if kind is not None and name is not None:
                    self._bind(name, self._named(self.source.end(kind), b"as"), scope)
                self._each(body, scope)
            case ast.MatchAs(name=name) | ast.MatchStar(name=name) | ast.MatchMapping(rest=name):
                self._each(ast.iter_child_nodes(node), scope)
                if name is not None:
                    self._bind(name, self._last_name(node), scope)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                self._definition(node, scope)
            case ast.Lambda(args=arguments, body=body):
                inner = _Scope("function", scope)
                self._parameters(arguments, inner, scope, scope)
                self.visit(body, inner)
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp():
                self._comprehension(node.generators, [node.elt], scope)
            case ast.DictComp():
                self._comprehension(node.generators, [node.key, node.value], scope)
            case _ if isinstance(node, INTERPOLATED):
                pass
            case _ if hasattr(node, "type_params"):  # type X[T] = ...
                self.visit(node.name, scope)  # type: ignore[attr-defined]
                self.visit(node.value, self._types(node, scope))  # type: ignore[attr-defined]
            case _:
                self._each(ast.iter_child_nodes(node), scope)

    def _each(self, nodes: Iterable[ast.AST | None], scope: _Scope) -> None:
        for node in nodes:
            if node is not None:
                self.visit(node, scope)

    def _name(self, node: ast.Name, scope: _Scope) -> None:
        if isinstance(node.ctx, ast.Store):
            self._bind(node.id, self._span(node), scope)
            return
        if isinstance(node.ctx, ast.Del):
            scope.local.add(node.id)
        self._use(node, scope)

    def _use(self, node: ast.Name, scope: _Scope) -> None:
        self.uses.append(_Event(self._tick(), self._span(node), scope, node.id))

    def _bind(self, name: str, span: Span, scope: _Scope) -> None:
        scope.local.add(name)
        self.bound.append(_Event(self._tick(), span, scope, name))

    def _tick(self) -> int:
        return len(self.uses) + len(self.bound)

    def _import(self, node: ast.Import | ast.ImportFrom, scope: _Scope) -> None:
        for alias in node.names:
            if alias.asname is not None:
                self._bind(alias.asname, self._last_name(alias), scope)
            elif alias.name != "*":
                first = alias.name.partition(".")[0]
                self._bind(first, self._named(self.source.begin(alias)), scope)

    def _definition(self, node: Definition, scope: _Scope) -> None:
        self._each(node.decorator_list, scope)
        keyword = b"class" if isinstance(node, ast.ClassDef) else b"def"
        span = self._named(self.source.begin(node), keyword)
        around = self._types(node, scope)
        if isinstance(node, ast.ClassDef):
            self._each([*node.bases, *node.keywords], around)
            self._each(node.body, _Scope("class", around))
            self._bind(node.name, span, scope)
            return
        inner = _Scope("function", around)
        self._parameters(node.args, inner, scope, around)
        self._each([node.returns], around)
        self._bind(node.name, span, scope)
        self._each(node.body, inner)

    def _parameters(
        self, arguments: ast.arguments, inner: _Scope, defaults: _Scope, annotations: _Scope
    ) -> None:
        """Bind parameters in `inner`; what stands beside them is read in the scopes around it."""
        self._each([*arguments.defaults, *arguments.kw_defaults], defaults)
        parameters = [*arguments.posonlyargs, *arguments.args, arguments.vararg]
        for parameter in [*parameters, *arguments.kwonlyargs, arguments.kwarg]:
            if parameter is not None:
                self._each([parameter.annotation], annotations)
                self._bind(parameter.arg, self._named(self.source.begin(parameter)), inner)

    def _comprehension(
        self, generators: list[ast.comprehension], results: list[ast.expr], scope: _Scope
    ) -> None:
        inner = _Scope("comprehension", scope)
        for number, generator in enumerate(generators):
            self.visit(generator.iter, inner if number else scope)
            self._each([generator.target, *generator.ifs], inner)
        self._each(results, inner)

    def _types(self, node: ast.AST, scope: _Scope) -> _Scope:
        """The scope of a node's type parameters, empty before Python 3.12."""
        inner = _Scope("types", scope)
        for parameter in getattr(node, "type_params", ()):
            self._bind(parameter.name, self._named(self.source.begin(parameter)), inner)
            self._each(ast.iter_child_nodes(parameter), inner)
        return inner

    def _span(self, node: ast.AST) -> Span:
        return self.source.begin(node), self.source.end(node)

    def _named(self, start: int, keyword: bytes | None = None) -> Span:
        """The first name from byte `start` on, or the one after the first `keyword`."""
        tokens, i = self.source.tokens, self.source.first(start)
        while keyword is not None and self.source.word(tokens[i]) != keyword:
            i += 1
        i += keyword is not None
        while tokens[i].kind != NAME:
            i += 1
        return tokens[i][1:]

    def _last_name(self, node: ast.AST) -> Span:
        """The last name of a node."""
        i = self.source.first(self.source.end(node)) - 1
        while self.source.tokens[i].kind != NAME:
            i -= 1
        return self.source.tokens[i][1:]
