"""Accuracy: does the completion's last answer equal the reference answer?

Three steps, cheapest first: equal as written, equal as exact numbers, equal by math-verify over sympy. Only the last
can be slow, hang or eat memory; it runs behind guards and only ever in a worker process that is killed at its
deadline. docs/rewards.md has the rules with examples.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Literal, NamedTuple

from r1async.answers import MAX_ANSWER_CHARS, normalise

Status = Literal["ok", "guard", "ungradable"]

MAX_DEPTH = 32
MAX_TOWER = 2
MAX_EXPONENT = 10_000
MAX_FACTORIAL = 10_000
MIN_DECIMAL_DIGITS = 6
"""A decimal with at least this many significant digits may stand for the number that it rounds."""


class Grade(NamedTuple):
    """`value` is None when the fault is the grader's or the reference answer's."""

    value: float | None
    status: Status


RIGHT, WRONG = Grade(1.0, "ok"), Grade(0.0, "ok")
GUARDED = Grade(0.0, "guard")
UNGRADABLE = Grade(None, "ungradable")


class Equivalence(NamedTuple):
    """How far to go for two answers that are not written alike."""

    symbolic: bool
    """Ask math-verify where strings and exact numbers do not decide."""
    before_slow: Callable[[], None]
    """Called before anything that can take longer than microseconds."""


@lru_cache(maxsize=8192)
def grade(answer: str, gold: str, equivalence: Equivalence) -> Grade:
    """Whether an extracted answer equals the reference; members of a group share both, so results are cached."""
    answer, gold = normalise(answer), normalise(gold)
    if not gold:
        return UNGRADABLE
    if answer.casefold() == gold.casefold():
        return RIGHT
    ours, theirs = parse_number(answer), parse_number(gold)
    if ours is not None and theirs is not None:
        return RIGHT if numbers_equal(ours, theirs) else WRONG
    if not answer or not equivalence.symbolic or not _MATHEMATICAL.search(gold):
        return WRONG
    if guard(gold) is not None:
        return UNGRADABLE
    if guard(answer) is not None:
        return GUARDED
    equivalence.before_slow()
    # Imported here: sympy takes a second of CPU, which a task with plain answers never needs.
    from r1async.rewards.symbolic import symbolic_grade

    try:
        return symbolic_grade(answer, gold, ours, theirs)
    except Exception:  # noqa: BLE001 - sympy raises anything: RecursionError, MemoryError, errors of its own
        return GUARDED if _gradable(gold, theirs) else UNGRADABLE


def _gradable(gold: str, number: Number | None) -> bool:
    """Whether a reference can at least be compared with itself; if so, it was the answer that algebra choked on."""
    from r1async.rewards.symbolic import symbolic_grade

    try:
        return symbolic_grade(gold, gold, number, number).value is not None
    except Exception:  # noqa: BLE001 - as in `grade`
        return False


_MATHEMATICAL = re.compile(r"[\d\\=^_+*/<>|(){}\[\]π√∞]")
"""A reference without any of these is plain text: only the same words are right."""


class Number(NamedTuple):
    """A number as written."""

    value: Fraction
    unit: Fraction | None
    """One unit of the last place of a decimal that has enough digits to be a rounding; None if it is meant exactly."""
    percent: bool


def parse_number(text: str) -> Number | None:
    r"""An integer, decimal, fraction (``a/b`` or ``\frac{a}{b}``), power of ten or percentage; None if it is none.

    ``1,234,567`` has thousands separators; ``1,2`` is no number. A percentage counts in hundredths.
    """
    if len(text) > MAX_ANSWER_CHARS:
        return None
    percent = text.endswith("%")
    text = text[:-1].rstrip() if percent else text
    if match := _DECIMAL.fullmatch(text):
        number = _decimal(match)
    elif match := _FRACTION.fullmatch(text) or _LATEX_FRACTION.fullmatch(text):
        number = _fraction(match)
    else:
        return None
    if number is None or not percent:
        return number
    unit = None if number.unit is None else number.unit / 100
    return Number(number.value / 100, unit, True)


_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
_DECIMAL = re.compile(
    rf"([+-]?)\s?({_DIGITS}?)(?:\.(\d*))?(?:[eE]([+-]?\d{{1,4}})|\s?(?:\\times|\\cdot|\*)\s?10\s?(?:\^|\*\*)\s?\{{?([+-]?\d{{1,4}})\}}?)?",
    re.ASCII,
)
_FRACTION = re.compile(rf"([+-]?)\s?\(?({_DIGITS})\)?\s?/\s?\(?([+-]?)({_DIGITS})\)?", re.ASCII)
_LATEX_FRACTION = re.compile(
    rf"([+-]?)\s?\\frac\s?(?:\{{\s?([+-]?{_DIGITS})\s?\}}|(\d))\s?(?:\{{\s?([+-]?{_DIGITS})\s?\}}|(\d))", re.ASCII
)


def _decimal(match: re.Match[str]) -> Number | None:
    sign, whole, decimals, exponent, power = match.groups()
    digits = (whole or "").replace(",", "") + (decimals or "")
    if not digits:
        return None
    shift = int(exponent or power or 0) - len(decimals or "")
    place = Fraction(10) ** shift
    rounded = bool(decimals) and len(digits.lstrip("0")) >= MIN_DECIMAL_DIGITS
    return Number(int(f"{sign}{digits}") * place, place if rounded else None, False)


def _fraction(match: re.Match[str]) -> Number | None:
    parts = [part.replace(",", "") for part in match.groups("")]
    if match.re is _FRACTION:
        numerator, denominator = int(parts[0] + parts[1]), int(parts[2] + parts[3])
    else:
        numerator, denominator = int(parts[1] or parts[2]), int(parts[3] or parts[4])
        numerator = -numerator if parts[0] == "-" else numerator
    return Number(Fraction(numerator, denominator), None, False) if denominator else None


def numbers_equal(ours: Number, theirs: Number) -> bool:
    """Equal exactly, or one is a decimal that the other rounds to or, cut off, begins with.

    Six significant digits make a decimal a rounding, so 0.333333 is 1/3 and 0.33 is not. Relative by nature:
    1e-9 is not 2e-9. 50% is 0.5; as references often drop the sign, it is 50 too.
    """
    if _close(ours, theirs):
        return True
    if ours.percent == theirs.percent:
        return False
    return _close(_hundredfold(ours), theirs) if ours.percent else _close(ours, _hundredfold(theirs))


def _close(a: Number, b: Number) -> bool:
    return a.value == b.value or _rounds(a, b.value) or _rounds(b, a.value)


def _rounds(decimal: Number, exact: Fraction) -> bool:
    if decimal.unit is None:
        return False
    distance = abs(decimal.value - exact)
    return 2 * distance <= decimal.unit or (distance < decimal.unit and abs(decimal.value) < abs(exact))


def _hundredfold(number: Number) -> Number:
    return Number(number.value * 100, None if number.unit is None else number.unit * 100, False)


def guard(text: str) -> str | None:
    """Why an answer must not reach sympy, or None: what takes sympy minutes or gigabytes is short to write."""
    if len(text) > MAX_ANSWER_CHARS:
        return f"longer than {MAX_ANSWER_CHARS} characters"
    depth, tower = _nesting(text)
    if depth > MAX_DEPTH:
        return f"brackets nested deeper than {MAX_DEPTH}"
    if tower > MAX_TOWER:
        return f"powers stacked higher than {MAX_TOWER}"
    if any(int(digits) > MAX_EXPONENT for digits in _EXPONENT.findall(text)):
        return f"an exponent above {MAX_EXPONENT}"
    if tower > 1 and any(_power_is_large(int(a), int(b)) for a, b in _POWER.findall(text)):
        return f"a stacked exponent above {MAX_EXPONENT}"
    if any(int(digits) > MAX_FACTORIAL for digits in _FACTORIAL.findall(text)):
        return f"a factorial above {MAX_FACTORIAL}"
    if _FACTORIAL_OF_MORE.search(text) and text.count("!") > 1:
        return "a factorial of a factorial"
    if any(_is_large(operand) for operand in _factorial_operands(text)):
        return f"a factorial of a power or of a number above {MAX_FACTORIAL}"
    return None


_EXPONENT = re.compile(r"(?:\^|\*\*)\s?[{(]?\s?[+-]?(\d+)", re.ASCII)
_POWER = re.compile(r"(?=(?<!\d)(\d+)[)}]?\s?(?:\^|\*\*)\s?[{(]?\s?(\d+))", re.ASCII)
_FACTORIAL = re.compile(r"(\d+)\s?!", re.ASCII)
_FACTORIAL_OF_MORE = re.compile(r"[)}\]!]\s?!")
_NESTING = re.compile(r"\^|\*\*|[({\[]|[)}\]]|\\[a-zA-Z]+|\d+|\S")


def _power_is_large(base: int, exponent: int) -> bool:
    """base ** exponent > MAX_EXPONENT, without computing it."""
    return base > 1 and (exponent > MAX_EXPONENT.bit_length() or base**exponent > MAX_EXPONENT)


def _is_large(operand: str) -> bool:
    """Whether the factorial of this, not yet worked out, may be too large; a power with a letter stays symbolic."""
    numeric_power = _IS_POWER.search(operand) and not _LETTERS.search(_COMMAND.sub("", operand))
    return bool(numeric_power) or any(int(digits) > MAX_FACTORIAL for digits in _DIGITS_RUN.findall(operand))


_IS_POWER = re.compile(r"\^|\*\*")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_LETTERS = re.compile(r"[a-zA-Z]")
_DIGITS_RUN = re.compile(r"\d+", re.ASCII)
_OPENING, _CLOSING, _POWERS = ("(", "[", "{"), (")", "]", "}"), ("^", "**")


def _factorial_operands(text: str) -> list[str]:
    """What each ``!`` is taken of, together with the base where that is an exponent: ``10^{9}`` of ``1+10^{9}!``."""
    found: list[str] = []
    stack: list[int] = []
    start, before = 0, ""
    """`start`: where the term that the last token ends has begun; `stack`: the same for each open bracket."""
    for match in _NESTING.finditer(text):
        token = match[0]
        if token == "!":
            found.append(text[start : match.start()])
        elif token in _CLOSING:
            start = stack.pop() if stack else 0
        elif token not in _POWERS:
            # An exponent goes on with its base, an argument with its command: \frac{1}{2}.
            argument = before.startswith("\\") or (token == "{" and before in ("}", "]"))
            goes_on = before in _POWERS or (token in _OPENING and argument)
            start = start if goes_on else match.start()
            if token in _OPENING:
                stack.append(start)
        before = token
    return found


def _nesting(text: str) -> tuple[int, int]:
    """Deepest brackets, and the highest stack of powers: ``2^3^4`` and ``2^{3^4}`` are 2 high."""
    stack: list[int] = []
    depth = tower = height = 0
    """`height`: powers stacked on the token just read; `stack`: on each open bracket."""
    after_power = False
    for token in _NESTING.findall(text):
        if token in ("^", "**"):
            height, after_power = height + 1, True
            tower = max(tower, height)
            continue
        base = stack[-1] if stack else 0
        if token in "({[":
            stack.append(height if after_power else base)
            depth, height = max(depth, len(stack)), stack[-1]
        elif token in ")}]":
            height = stack.pop() if stack else 0
        elif not after_power:
            height = base
        after_power = False
    return depth, tower
