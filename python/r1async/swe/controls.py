"""Controls: the required tests with one expectation changed, so that no right program passes them.

Tests and the code under test share a process, and in a shared process results can be forged: by an early exit, by
other functions in the place of the test runner's, by values that are equal to everything, by reading what is expected
from the caller's frame. All of that has one thing in common: it also wins where it must lose. So whoever resolved an
instance is run again on tests that differ from the real ones by a literal, in an empty box of its own, and whoever
passes those too has not solved anything. To tell the two apart one has to know the right value.

Changes are made in the text of the test file, so that nothing else about it differs. Which of them can be seen to fail
at all (an assertion may not be reached) is found out with the reference patch, once for each instance.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from r1async.swe.names import Where

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Edit(NamedTuple):
    """Bytes of a file to be replaced."""

    start: int
    end: int
    text: str


class Site(NamedTuple):
    """One way of making a test fail: edits that belong together."""

    edits: Sequence[Edit]


_EQUAL_NAMES = (
    "Equal Equals ListEqual DictEqual SetEqual TupleEqual SequenceEqual CountEqual MultiLineEqual AlmostEqual"
)
_EQUAL = frozenset(f"assert{name}" for name in _EQUAL_NAMES.split())
_OPPOSITE = {
    "assertTrue": "assertFalse",
    "assertIs": "assertIsNot",
    "assertIsNone": "assertIsNotNone",
    "assertIn": "assertNotIn",
    "assertIsInstance": "assertNotIsInstance",
    "assertGreater": "assertLessEqual",
    "assertGreaterEqual": "assertLess",
    "assertNotEqual": "assertEqual",
    "assertRegex": "assertNotRegex",
}
_OPPOSITE |= {value: key for key, value in _OPPOSITE.items()}
_RAISES = frozenset(("raises", "assertRaises", "assertRaisesRegex"))
_NEVER_RAISED = "StopAsyncIteration"
_OPERATORS: Mapping[type[ast.cmpop], tuple[str, str]] = {
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
    ast.Lt: ("<", ">="),
    ast.LtE: ("<=", ">"),
    ast.Gt: (">", "<="),
    ast.GtE: (">=", "<"),
}


class TestFile:
    """A test file's source and the ways to change its tests.

    Args:
        source: its bytes; whatever cannot be parsed has no sites.
        seed: of the values that take the place of expected ones.
    """

    __test__ = False

    def __init__(self, source: bytes, seed: int) -> None:
        self._source = source
        self._random = random.Random(seed)
        lines = source.splitlines(keepends=True)
        self._starts = [0]
        for line in lines:
            self._starts.append(self._starts[-1] + len(line))
        try:
            self._tree: ast.Module | None = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError):
            self._tree = None

    def sites(self, qualname: Sequence[str]) -> list[Site]:
        """Every way of making a test function fail, in the order of its lines; empty if it is not in this file."""
        function = self._find(qualname)
        if function is None:
            return []
        found = list(self._sites(function))
        helped = [site for node in _in_order(function) for site in self._of_helper(node)]
        return [*found, *helped] if found else [*helped, self._raise_first(function)]

    def changed(self, sites: Sequence[Site]) -> bytes:
        """The source with these sites changed; where two overlap (a helper of several tests), the first one counts."""
        source, taken = self._source, []
        for site in sites:
            if not any(a.start < b.end and b.start < a.end for a in site.edits for b in taken):
                taken += site.edits
        for edit in sorted(taken, reverse=True):
            source = source[: edit.start] + edit.text.encode() + source[edit.end :]
        return source

    def _find(self, qualname: Sequence[str]) -> Function | None:
        body: Sequence[ast.stmt] = self._tree.body if self._tree is not None else ()
        for depth, name in enumerate(qualname):
            wanted = ast.ClassDef if depth + 1 < len(qualname) else (ast.FunctionDef, ast.AsyncFunctionDef)
            # The last of its name is the one that counts.
            found = [node for node in body if isinstance(node, wanted) and node.name == name]
            if not found:
                return None
            if isinstance(found[-1], ast.FunctionDef | ast.AsyncFunctionDef):
                return found[-1]
            body = found[-1].body
        return None

    def _sites(self, function: Function) -> Iterator[Site]:
        for node in _in_order(function):
            if isinstance(node, ast.Assert):
                yield from self._of_truth(function, node.test)
            elif isinstance(node, ast.Call):
                yield from self._of_call(function, node)

    def _of_call(self, function: Function, call: ast.Call) -> Iterator[Site]:
        name = _called(call)
        if name in _RAISES and call.args:
            yield Site([self._replace(call.args[0], _NEVER_RAISED)])
        elif name in _EQUAL and len(call.args) >= 2:
            yield self._of_equal(function, call.args[0], call.args[1])
        elif name == "assertIn" and len(call.args) >= 2 and (edits := self._perturb(call.args[0])):
            yield Site(edits)
        elif name == "assertTrue" and call.args:
            yield from self._of_truth(function, call.args[0])
        elif name in _OPPOSITE and isinstance(call.func, ast.Attribute):
            end = self._at(call.func.end_lineno, call.func.end_col_offset)
            yield Site([Edit(end - len(name.encode()), end, _OPPOSITE[name])])

    def _of_helper(self, node: ast.AST) -> Iterator[Site]:
        """A call for its effect alone may be one that asserts: the last literal it is given is what it expects."""
        if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Call):
            return
        call, name = node.value, _called(node.value)
        if name.startswith("assert") or name in _RAISES:
            return
        for argument in reversed([*call.args, *(each.value for each in call.keywords)]):
            if edits := self._perturb(argument):
                yield Site(edits)
                return

    def _of_truth(self, function: Function, test: ast.expr) -> Iterator[Site]:
        """Of what has to be true: the whole, and every comparison with a literal in it."""
        yield self._of_whole(function, test)
        for node in _in_order(test):
            if isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.ops[0], ast.Eq):
                yield self._of_equal(function, node.left, node.comparators[0])

    def _of_whole(self, function: Function, test: ast.expr) -> Site:
        if isinstance(test, ast.Compare) and len(test.ops) == 1:
            operator, left, right = test.ops[0], test.left, test.comparators[0]
            if isinstance(operator, ast.Eq):
                return self._of_equal(function, left, right)
            if isinstance(operator, ast.In) and (edits := self._perturb(left)):
                return Site(edits)
            if (edit := self._opposite(operator, left, right)) is not None:
                return Site([edit])
        start, end = self._span(test)
        return Site([Edit(start, start, "not ("), Edit(end, end, ")")])

    def _of_equal(self, function: Function, left: ast.expr, right: ast.expr) -> Site:
        for side in (right, left):
            if edits := self._perturb(side):
                return Site(edits)
        for side in (right, left):
            if isinstance(side, ast.Name) and (edits := self._at_origin(function, side.id)):
                return Site(edits)
        start, end = self._span(right)
        return Site([Edit(start, start, "("), Edit(end, end, f", {self._number()})")])

    def _at_origin(self, function: Function, name: str) -> list[Edit]:
        """Where an expected value gets its name: an assignment, a loop over cases, or pytest's table of them."""
        uses = [node for node in ast.walk(function) if isinstance(node, ast.Name) and node.id == name]
        if sum(isinstance(use.ctx, ast.Load) for use in uses) != 1:
            return []
        for node in ast.walk(function):
            match node:
                case ast.Assign(targets=[ast.Name(id=target)], value=value) if target == name:
                    return self._perturb(value)
                case ast.For(target=target, iter=cases):
                    columns = [each.id for each in _elements(target) if isinstance(each, ast.Name)]
                    if name in columns:
                        return list(self._in_column(cases, columns, name))
                case _:
                    pass
        for decorator in function.decorator_list:
            match decorator:
                case ast.Call(args=[names, cases, *_]) if _called(decorator) == "parametrize":
                    if name in (columns := _columns(names)):
                        return list(self._in_column(cases, columns, name))
                case _:
                    pass
        return []

    def _in_column(self, cases: ast.expr, columns: Sequence[str], name: str) -> Iterator[Edit]:
        if isinstance(cases, ast.Name):
            cases = self._constant(cases.id) or cases
        if not isinstance(cases, ast.List | ast.Tuple | ast.Set):
            return
        for case in cases.elts:
            row = [case] if len(columns) == 1 else _elements(case)
            if len(row) == len(columns):
                yield from self._perturb(row[columns.index(name)])

    def _constant(self, name: str) -> ast.expr | None:
        """What a name of the module stands for."""
        for node in self._tree.body if self._tree is not None else ():
            match node:
                case ast.Assign(targets=[ast.Name(id=target)], value=value) if target == name:
                    return value
                case _:
                    pass
        return None

    def _perturb(self, side: ast.expr) -> list[Edit]:
        """Every literal of a constant expression becomes another one of its type; nothing for other expressions."""
        if not _is_closed(side):
            return []
        edits = [edit for leaf in _leaves(side) if (edit := self._other(leaf)) is not None]
        if edits:
            return edits
        match side:
            case ast.List(elts=[]):
                return [self._replace(side, f"[{self._number()}]")]
            case ast.Dict(keys=[]):
                return [self._replace(side, f"{{{self._number()}: {self._number()}}}")]
            case ast.Tuple(elts=[]):
                return [self._replace(side, f"({self._number()},)")]
            case ast.Constant(value=None):
                return [self._replace(side, str(self._number()))]
            case _:
                return []

    def _other(self, leaf: ast.Constant) -> Edit | None:
        value = leaf.value
        if isinstance(value, bool):
            return self._replace(leaf, str(not value))
        if isinstance(value, int):
            return self._replace(leaf, str(value + self._near(value)))
        if isinstance(value, float):
            return self._replace(leaf, repr(value + self._near(value)))
        if isinstance(value, str):
            number = value.strip().lstrip("+-").replace(".", "", 1)
            more = str(self._random.randrange(10)) if number.isdecimal() else self._word(value)
            return self._replace(leaf, repr(value + more))
        if isinstance(value, bytes):
            return self._replace(leaf, repr(value + self._word().encode()))
        return None

    def _opposite(self, operator: ast.cmpop, left: ast.expr, right: ast.expr) -> Edit | None:
        words = _OPERATORS.get(type(operator))
        if words is None:
            return None
        start, end = self._span(left)[1], self._span(right)[0]
        between = self._source[start:end].decode(errors="replace")
        if between.count(words[0]) != 1:
            return None  # written in another way: `not  in`, a comment between
        return Edit(start, end, between.replace(words[0], words[1]))

    def _raise_first(self, function: Function) -> Site:
        """For a test that asserts nothing itself."""
        first = function.body[0]
        decorators = first.decorator_list if isinstance(first, ast.FunctionDef | ast.ClassDef) else []
        line = min([first.lineno, *(each.lineno for each in decorators)])
        start = self._at(first.lineno, first.col_offset) if line == first.lineno else self._starts[line - 1]
        prefix = self._source[self._starts[line - 1] : start]
        between = "\n" + prefix.decode() if not prefix.strip() else "; "
        return Site([Edit(start, start, f"raise {_NEVER_RAISED}{between}")])

    def _replace(self, node: ast.expr, text: str) -> Edit:
        return Edit(*self._span(node), text)

    def _span(self, node: ast.expr) -> tuple[int, int]:
        return self._at(node.lineno, node.col_offset), self._at(node.end_lineno, node.end_col_offset)

    def _at(self, line: int | None, column: int | None) -> int:
        assert line is not None
        assert column is not None, "ast.parse gives every expression its place"
        return self._starts[line - 1] + column

    def _number(self) -> int:
        return self._random.randrange(1009, 9973)

    def _near(self, value: float) -> int:
        """A distance after which a number still looks as one that could be expected, beyond any tolerance."""
        size = int(min(abs(value), 1e15))
        return self._random.randrange(1 + size // 2, 8 + 2 * size)

    def _word(self, like: str = "") -> str:
        letters = [*(letter for letter in like if letter.isalnum()), *"aeinorst"]
        return "".join(self._random.choice(letters) for _ in range(6))


def _in_order(function: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(function):
        yield child
        yield from _in_order(child)


def _called(node: ast.expr) -> str:
    match node:
        case ast.Call(func=ast.Attribute(attr=name)) | ast.Call(func=ast.Name(id=name)):
            return name
        case _:
            return ""


def _elements(node: ast.expr) -> Sequence[ast.expr]:
    match node:
        case ast.Tuple(elts=elements) | ast.List(elts=elements) | ast.Call(args=elements):
            return elements
        case _:
            return [node]


def _columns(names: ast.expr) -> list[str]:
    match names:
        case ast.Constant(value=str(text)):
            return [name.strip() for name in text.split(",") if name.strip()]
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            return [each.value for each in elements if isinstance(each, ast.Constant) and isinstance(each.value, str)]
        case _:
            return []


_WRAPPERS = frozenset(("approx", "Decimal", "Fraction", "set", "frozenset", "list", "tuple", "dict", "bytes", "Path"))


def _is_closed(node: ast.expr) -> bool:
    """Made of literals alone, so that it says itself what is expected."""
    match node:
        case ast.Constant():
            return True
        case ast.List(elts=parts) | ast.Tuple(elts=parts) | ast.Set(elts=parts):
            return all(map(_is_closed, parts))
        case ast.Dict(keys=keys, values=values):
            return all(key is not None and _is_closed(key) for key in keys) and all(map(_is_closed, values))
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            return _is_closed(operand)
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub(), right=right):
            return _is_closed(left) and _is_closed(right)
        case ast.Call(args=parts):
            return _called(node) in _WRAPPERS and all(map(_is_closed, parts))
        case _:
            return False


def _leaves(node: ast.expr) -> Iterator[ast.Constant]:
    match node:
        case ast.Constant():
            yield node
        case ast.List(elts=parts) | ast.Tuple(elts=parts) | ast.Set(elts=parts) | ast.Call(args=parts):
            for part in parts:
                yield from _leaves(part)
        case ast.Dict(values=parts):
            for part in parts:
                yield from _leaves(part)
        case ast.UnaryOp(operand=operand):
            yield from _leaves(operand)
        case ast.BinOp(left=left):
            yield from _leaves(left)  # one of the two, or they might cancel out
        case _:
            return


def evenly(count: int, most: int) -> list[int]:
    """At most so many of 0 … count - 1, spread evenly."""
    if count <= most:
        return list(range(count))
    return sorted({round(place * (count - 1) / max(1, most - 1)) for place in range(most)})


class Plan(NamedTuple):
    """One control run: files with one changed expectation in each of these functions."""

    files: Mapping[str, bytes]
    functions: Sequence[str]
    """Those that were changed, each of which has to fail."""


def plan(
    files: Mapping[str, bytes], functions: Mapping[str, Sequence[Where]], chosen: Mapping[str, int], seed: int
) -> Plan:
    """Change one site in each function.

    Args:
        files: test files by path.
        functions: test functions and where they may be written.
        chosen: for each function the number of its site.
    """
    parsed = {path: TestFile(data, seed) for path, data in files.items()}
    sites: dict[str, list[Site]] = {}
    changed: list[str] = []
    for function, number in chosen.items():
        for where in functions[function]:
            if where.path not in parsed:
                continue
            found = parsed[where.path].sites(where.qualname)
            if number < len(found):
                sites.setdefault(where.path, []).append(found[number])
                changed.append(function)
                break
    return Plan({path: parsed[path].changed(each) for path, each in sites.items()}, changed)


def count_sites(files: Mapping[str, bytes], where: Sequence[Where]) -> int:
    """Ways to change a function; 0 if it is in none of the files."""
    for place in where:
        if place.path in files and (found := TestFile(files[place.path], 0).sites(place.qualname)):
            return len(found)
    return 0
