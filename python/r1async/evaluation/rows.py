"""Rows of public data sets as problems: one reader for each shape that rows come in.

A reader takes a row and a table of columns (what it needs: the row's name for it) and gives a `Problem`.
"""

from __future__ import annotations

import base64
import binascii
import json
import pickletools
import random
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from r1async.rewards.choice import LETTERS
from r1async.rewards.code import parse_problem
from r1async.rewards.ifeval import read_instructions

Row = Mapping[str, object]


class RowError(ValueError):
    """A row that is not of the benchmark's format; the message says what is wrong with it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One problem of a benchmark."""

    id: str
    fields: Mapping[str, str]
    """What the prompt's template may name."""
    answer: str = ""
    """The reference, for graders that compare with one."""
    extra: Mapping[str, str] = field(default_factory=dict)
    """For the grader."""
    rating: float | None = None
    """Difficulty on Codeforces' scale, where the data set says it."""

    def fill(self, template: str) -> str:
        """The template with its names in braces filled in; other braces, as of LaTeX, stay."""
        return re.sub(r"\{(\w+)\}", lambda name: self.fields.get(name[1], name[0]), template).strip()


def read_problem(format_: str, columns: Mapping[str, object], row: Row, *, index: int, seed: int) -> Problem:
    """The problem in a row.

    Args:
        columns: the benchmark's own.
        index: the row's number, which is its id where no column has one.
        seed: shuffles options.

    Raises:
        RowError: the row lacks a column, or one has something else in it than its data set has.
    """
    reading = _Reading(columns, row, index, seed)
    try:
        return FORMATS[format_](reading)
    except RowError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise RowError(str(error)) from error


@dataclass(frozen=True, slots=True)
class _Reading:
    columns: Mapping[str, object]
    row: Row
    index: int
    seed: int

    def has(self, need: str) -> bool:
        return need in self.columns

    def value(self, need: str) -> object:
        column = self.columns.get(need)
        if not isinstance(column, str):
            raise RowError(f"the benchmark's columns do not say which one is {need}")
        if self.row.get(column) is None:
            raise RowError(f"no {column!r} ({need}); the row has {', '.join(map(str, self.row))}")
        return self.row[column]

    def text(self, need: str) -> str:
        value = self.value(need)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise RowError(f"{self.columns[need]} must be a text, got {type(value).__name__}")
        return str(value)

    def maybe(self, need: str) -> str:
        column = self.columns.get(need)
        value = self.row.get(column) if isinstance(column, str) else None
        return "" if value is None else str(value)

    @property
    def id(self) -> str:
        return self.maybe("id") or str(self.index)


def _plain(reading: _Reading) -> Problem:
    """A question and its answer; `answer_after` cuts off what stands before the answer (GSM8K's ####)."""
    answer = reading.text("answer")
    mark = reading.columns.get("answer_after")
    if isinstance(mark, str):
        _, found, answer = answer.rpartition(mark)
        if not found:
            raise RowError(f"{reading.columns['answer']} has no {mark!r}")
    if not answer.strip():
        raise RowError(f"{reading.columns['answer']} is empty")
    return Problem(id=reading.id, fields={"question": reading.text("question").strip()}, answer=answer.strip())


def _choices(reading: _Reading) -> Problem:
    """A question, its options and the right one; options that come with the right one first are shuffled."""
    listed = reading.columns.get("options")
    if isinstance(listed, list):  # a column for each option, the right one first
        options = [_option(reading.row, str(column)) for column in listed]
        right = 0
        order = list(range(len(options)))
        # By seed and row alone, so that every version and every sample sees the same order.
        random.Random(f"{reading.seed}:{reading.index}").shuffle(order)
        options, right = [options[i] for i in order], order.index(right)
    else:
        value = reading.value("options")
        if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
            raise RowError(f"{listed} must be a list of texts, got {value!r:.100}")
        options, right = [str(each) for each in value], _index(reading.value("answer"), len(value))
    if not 2 <= len(options) <= len(LETTERS):
        raise RowError(f"2 to {len(LETTERS)} options make a choice, got {len(options)}")
    lines = "\n".join(f"{letter}) {option}" for letter, option in zip(LETTERS, options, strict=False))
    return Problem(
        id=reading.id,
        fields={
            "question": reading.text("question").strip(),
            "options": lines,
            "letters": LETTERS[: len(options)],
            "subject": reading.maybe("subject").replace("_", " "),
        },
        answer=LETTERS[right],
        extra={"options": json.dumps(options, ensure_ascii=False)},
    )


def _option(row: Row, column: str) -> str:
    value = row.get(column)
    if value is None:
        raise RowError(f"no {column!r}; the row has {', '.join(map(str, row))}")
    return str(value).strip()


def _index(value: object, count: int) -> int:
    """Number from 0, or letter, of the right option."""
    if isinstance(value, str) and len(value.strip()) == 1 and value.strip() in LETTERS:
        value = LETTERS.index(value.strip())
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count:
        raise RowError(f"the right option must be one of {count}, by number from 0 or by letter, got {value!r}")
    return value


def _livecodebench(reading: _Reading) -> Problem:
    """LiveCodeBench: public and private tests, the latter compressed; a function's name is in `metadata`."""
    tests = [*_tests(reading.text("public_tests")), *_tests(reading.maybe("private_tests"))]
    metadata = json.loads(reading.maybe("metadata") or "{}")
    fn_name = str(metadata.get("func_name") or "")
    starter = reading.maybe("starter_code")
    task = (
        f"Complete the following function, and return the whole program:\n```python\n{starter.rstrip()}\n```"
        if starter.strip()
        else "Read the input from standard input and write the answer to standard output."
    )
    problem = {"type": "call" if fn_name else "stdin", "fn_name": fn_name, "tests": tests}
    parse_problem(problem)  # a row that cannot be graded is told now
    fields = {"question": reading.text("question").strip(), "task": task}
    return Problem(id=reading.id, fields=fields, extra={"problem": json.dumps(problem), "language": "python"})


def _tests(text: str) -> list[dict[str, str]]:
    if not text.strip():
        return []
    try:
        tests = json.loads(text)
    except ValueError:
        tests = json.loads(_unpacked(text))
    if not isinstance(tests, list) or not all(isinstance(each, dict) for each in tests):
        raise RowError(f"tests must be a list of objects, got {tests!r:.100}")
    return [{"input": each["input"], "output": each["output"]} for each in tests]


def _unpacked(text: str) -> str:
    """The text inside LiveCodeBench's base64, zlib and pickle. Nothing is unpickled: a pickle of a text has one string
    and nothing to call."""
    try:
        pickled = zlib.decompress(base64.b64decode(text, validate=True))
    except (binascii.Error, zlib.error) as error:
        raise RowError(f"tests are neither JSON nor base64 of zlib: {error}") from error
    if pickled[:1] in b"[{":
        return pickled.decode()
    found: list[str] = []
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name in _STRINGS and isinstance(argument, str):
            found.append(argument)
        elif opcode.name not in _HARMLESS:
            raise RowError(f"packed tests hold more than a text (pickle's {opcode.name})")
    if len(found) != 1:
        raise RowError(f"packed tests must hold one text, got {len(found)}")
    return found[0]


_STRINGS = ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE")
_HARMLESS = ("PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT", "STOP")


def _codeforces(reading: _Reading) -> Problem:
    """Codeforces-like: a statement in parts, limits, tests as objects, a rating."""
    tests = reading.row.get(str(reading.columns.get("tests"))) or reading.row.get(str(reading.columns.get("examples")))
    if not isinstance(tests, list) or not tests:
        raise RowError(f"no {reading.columns.get('tests')!r}; the row has {', '.join(map(str, reading.row))}")
    problem = {"type": "stdin", "tests": [[each["input"], each["output"]] for each in tests]}
    parse_problem(problem)
    examples = reading.row.get(str(reading.columns.get("examples"))) or []
    parts = [reading.text("question").strip()]
    for need, title in (("input_format", "Input"), ("output_format", "Output"), ("note", "Note")):
        if said := reading.maybe(need).strip():
            parts.append(f"{title}\n{said}")
    if isinstance(examples, list):
        parts += [f"Example\nInput:\n{each['input']}\nOutput:\n{each['output']}" for each in examples]
    extra = {"problem": json.dumps(problem)}
    if limit := reading.maybe("time_limit"):
        extra["time_limit_s"] = limit
    if limit := reading.maybe("memory_limit"):
        extra["memory_limit_mib"] = limit
    rating = reading.maybe("rating")
    return Problem(
        id=reading.id,
        fields={"question": "\n\n".join(parts), "title": reading.maybe("title")},
        extra=extra,
        rating=float(rating) if rating else None,
    )


def _ifeval(reading: _Reading) -> Problem:
    names, arguments = reading.value("instructions"), reading.value("arguments")
    names, arguments = _listed(names), _listed(arguments)
    read_instructions(names, arguments)
    arguments = [{key: value for key, value in (each or {}).items() if value is not None} for each in arguments]
    extra = {"instructions": json.dumps({"names": names, "arguments": arguments})}
    return Problem(id=reading.id, fields={"question": reading.text("question")}, extra=extra)


def _listed(value: object) -> list[Mapping[str, object]]:
    if not isinstance(value, list | tuple):
        raise RowError(f"must be a list, got {type(value).__name__}")
    return list(value)


FORMATS: dict[str, Callable[[_Reading], Problem]] = {
    "plain": _plain,
    "choices": _choices,
    "livecodebench": _livecodebench,
    "codeforces": _codeforces,
    "ifeval": _ifeval,
}
"""How rows come, by the name that a benchmark's YAML uses."""
