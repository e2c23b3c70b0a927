"""Accuracy: does the completion's last answer equal the reference answer?

Three steps, cheapest first: equal as written, equal as exact numbers, equal by math-verify over sympy. Only the last
can be slow, hang or eat memory; it runs behind guards and only ever in a worker process that is killed at its
deadline. docs/rewards.md has the rules with examples.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Literal, NamedTuple

from r1async.answers import MAX_ANSWER_CHARS, normalise
from r1async.rewards.guards import guard
from r1async.rewards.reading import (
    MAX_ITEMS,
    Items,
    brackets_around,
    in_order_of_names,
    interval_of,
    items_of,
    joins_more,
    joins_otherwise,
    names_points,
    same_in_base,
    same_ratio,
    same_time,
    says_more,
    says_or,
    says_otherwise,
    sides_of,
    without_doubled,
    without_names,
    without_phrase,
    words_of,
)
from r1async.rewards.units import Quantity, lone_unit, other_letter, quantity_of, units_agree

Status = Literal["ok", "wrong", "guard", "ungradable"]

MIN_DECIMAL_DIGITS = 6
"""A decimal with at least this many significant digits may stand for the number that it rounds."""


class Grade(NamedTuple):
    """`value` is None when the fault is the grader's or the reference answer's."""

    value: float | None
    status: Status


RIGHT, WRONG = Grade(1.0, "ok"), Grade(0.0, "wrong")
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
    ours, theirs = _plain_ratio(answer), _plain_ratio(gold)
    if ours is not None and theirs is not None:
        if ours.numerator * theirs.denominator == theirs.numerator * ours.denominator:
            return RIGHT
        if not (ours.may_round or theirs.may_round):
            return WRONG
    if ("\\$" in answer) != ("\\$" in gold) and not _may_be_dollars(answer, gold):
        return WRONG
    answer, gold = normalise(answer), normalise(gold)
    if not gold:
        return UNGRADABLE
    if _same_as_written(answer, gold):
        return RIGHT
    a, b = parse_number(answer), parse_number(gold)
    if a is not None and b is not None:
        return RIGHT if numbers_equal(a, b) else WRONG
    if (same := same_time(answer, gold)) is not None:
        return RIGHT if same else WRONG
    if _WHOLE.fullmatch(answer) and _WHOLE.fullmatch(gold):
        return WRONG  # of more digits than are converted; not as written
    if not answer or not equivalence.symbolic or not _MATHEMATICAL.search(gold):
        return WRONG
    if guard(gold) is not None:
        return UNGRADABLE
    if guard(answer) is not None:
        return GUARDED
    return _grade_items(without_phrase(answer), gold, equivalence.before_slow)


_WHOLE = re.compile(r"[+-]?\d+", re.ASCII)


def _may_be_dollars(answer: str, gold: str) -> bool:
    """One of the two has a dollar sign: the other names no unit, or dollars."""
    other = gold if "\\$" in answer else answer
    return quantity_of(normalise(other)).unit in ("", "dollar")


class _Ratio(NamedTuple):
    numerator: int
    denominator: int
    may_round: bool
    """A decimal long enough to be a rounding of another number."""


_PLAIN = re.compile(
    r"([+-]?)(?:(\d{1,60}|(?!0+,)\d{1,3}(?:,\d{3}){1,20})(?:\.(\d{1,60})|/(\d{1,60}))?|\\d?frac\{(\d{1,60})\}\{(\d{1,60})\})",
    re.ASCII,
)


def _plain_ratio(text: str) -> _Ratio | None:
    """An integer, decimal or fraction: what most answers are, with one pattern. All else is for `parse_number`."""
    match = _PLAIN.fullmatch(text)
    if match is None:
        return None
    sign, whole, decimals, under, top, bottom = match.groups()
    may_round = False
    if whole is None:
        numerator, denominator = int(top), int(bottom)
    else:
        if "," in whole:
            whole = whole.replace(",", "")
        if decimals is not None:
            numerator, denominator = int(whole + decimals), 10 ** len(decimals)
            may_round = len(whole) + len(decimals) >= MIN_DECIMAL_DIGITS
        else:
            numerator, denominator = int(whole), 1 if under is None else int(under)
    if not denominator:
        return None
    return _Ratio(-numerator if sign == "-" else numerator, denominator, may_round)


def _same_as_written(answer: str, gold: str) -> bool:
    if answer == gold:
        return True
    # Case tells variables apart, but not words, nor the letters of choices.
    if len(gold) == 1 and gold.islower():
        return False
    return answer.casefold() == gold.casefold() and not (_MATHEMATICAL.search(gold) and not _WORDED.fullmatch(gold))


_WORDED = re.compile(r"(?=.*[a-zA-Z]{4})[a-zA-Z0-9 ,.'-]+")
"""Words and numbers, ``July 4``."""


def _grade_items(answer: str, gold: str, before_slow: Callable[[], None]) -> Grade:
    """Sets, tuples and lists member by member; all else goes on to `_grade_one`."""
    answer, gold = map(without_doubled, without_names(answer, gold))
    if gold.startswith(("(", "[")) and "," in gold:
        answer = interval_of(answer) or answer
    theirs = Items("", (gold,)) if parse_number(gold) is not None else items_of(gold)
    ours = Items("", (answer,)) if parse_number(answer) is not None else items_of(answer)
    if len(theirs.members) == 1 and len(ours.members) == 1:
        if joins_more(answer, gold) or (ours.brackets and theirs.members == ("\\emptyset",)):
            return WRONG
        if ours.members[0].startswith("\\{") != theirs.members[0].startswith("\\{"):
            return WRONG  # a set of a set
        return _grade_one(ours.members[0], theirs.members[0], before_slow)
    if "\\infty" in gold and brackets_around(answer) and brackets_around(answer) != brackets_around(gold):
        return WRONG  # (1, \infty] is not (1, \infty): algebra does not mind
    if _SPANS.search(answer) or _SPANS.search(gold):
        return _grade_one(answer, gold, before_slow)
    if ours.brackets != theirs.brackets and {ours.brackets, theirs.brackets} not in _ALIKE:
        return WRONG
    if joins_otherwise(answer, gold):
        return WRONG
    if theirs.brackets == "()" and not ours.brackets:
        in_order = in_order_of_names(ours.members)
        if in_order is None:
            return WRONG
        ours = Items("", in_order)
    names = {sides_of(member)[0] for member in theirs.members}
    if says_or(answer) and not says_or(gold) and len({sides_of(member)[0] for member in ours.members} - {""}) > 1:
        return WRONG  # x = 1 or y = 2 does not give both
    if len(names) > 1 and not names & {sides_of(member)[0] for member in ours.members}:
        return _in_order(ours.members, theirs.members, before_slow)  # 2, 3 for x = 2, y = 3
    if ours.ordered or theirs.ordered:
        return _in_order(ours.members, theirs.members, before_slow)
    return _in_any_order(ours.members, theirs.members, before_slow, as_sets=theirs.brackets == "{}")


_ALIKE = ({"", "{}"}, {"", "()"})
"""Brackets that references and answers leave out."""
_SPANS = re.compile(r"[<>]|\\(?:le|leq|ge|geq|lt|gt|ne|neq|cup|cap|in|setminus|begin|mid|infty)(?![a-zA-Z])")
"""Intervals, unions and matrices are compared whole."""


def _in_order(ours: Sequence[str], theirs: Sequence[str], before_slow: Callable[[], None]) -> Grade:
    if len(ours) != len(theirs):
        return WRONG
    grades = [_member(a, b, before_slow) for a, b in zip(ours, theirs, strict=True)]
    return next((each for each in (UNGRADABLE, GUARDED, WRONG) if each in grades), RIGHT)


def _in_any_order(
    ours: Sequence[str], theirs: Sequence[str], before_slow: Callable[[], None], *, as_sets: bool
) -> Grade:
    """As sets each member of one is in the other; of a list, 2, 2, 3, each counts as often as it stands there."""
    if len(ours) != len(theirs) and not as_sets:
        return WRONG
    if max(len(ours), len(theirs)) > MAX_ITEMS:
        return _in_order(ours, theirs, before_slow)
    grades = [[_member(a, b, before_slow) for b in theirs] for a in ours]
    if any(each == UNGRADABLE for row in grades for each in row):
        return UNGRADABLE
    if as_sets:
        covered = all(RIGHT in row for row in grades) and all(RIGHT in column for column in zip(*grades, strict=True))
        return RIGHT if covered else WRONG
    left = list(range(len(theirs)))
    for row in grades:
        found = next((i for i in left if row[i] == RIGHT), None)
        if found is None:
            return WRONG
        left.remove(found)
    return RIGHT


def _member(answer: str, gold: str, before_slow: Callable[[], None]) -> Grade:
    if not gold:
        return UNGRADABLE
    if answer.startswith("\\{") != gold.startswith("\\{"):
        return WRONG  # a set of one is no element
    return grade(answer, gold, Equivalence(True, before_slow))


def _grade_one(answer: str, gold: str, before_slow: Callable[[], None]) -> Grade:
    """Two answers that are one thing each: what they name, their units and bases, and then algebra."""
    name, values = sides_of(answer)
    wanted, golds = sides_of(gold)
    if not wanted and len(golds) > 1:  # an equation
        comparable = len(values) == len(golds) and not name and not says_more(answer, gold)
        return _algebra(answer, gold, before_slow) if comparable else WRONG
    if not golds or (name and wanted and name != wanted) or len(values) > MAX_ITEMS:
        return WRONG
    if _same_as_written("=".join(values), golds[0]):
        return RIGHT
    grades = [_grade_value(value, golds[-1], before_slow) for value in values]
    return next((each for each in (UNGRADABLE, GUARDED, WRONG) if each in grades), RIGHT)


def _grade_value(answer: str, gold: str, before_slow: Callable[[], None]) -> Grade:
    if says_otherwise(answer, gold):
        return WRONG
    if gold.removeprefix("+") == answer.removeprefix("+") == "\\infty":
        return RIGHT
    if other_letter(answer, gold):
        return WRONG
    if names_points(gold) or gold.lstrip("+-") == "\\infty":
        return WRONG  # not as written: letters are no product there, and one infinity is like any other to algebra
    ratio = same_ratio(answer, gold)
    if ratio is not None:
        return RIGHT if ratio else WRONG
    in_base = same_in_base(answer, gold)
    if in_base is not None:
        return RIGHT if in_base else WRONG
    ours, theirs = quantity_of(answer), quantity_of(gold)
    if (ours.unit and theirs.value.endswith("%")) or (theirs.unit and ours.value.endswith("%")):
        return WRONG
    ours, theirs = _with_raised_unit(ours, theirs), _with_raised_unit(theirs, ours)
    if not units_agree(
        ours.unit or lone_unit(ours.value, theirs.unit), theirs.unit or lone_unit(theirs.value, ours.unit)
    ):
        return WRONG
    if not ours.value or not theirs.value:
        return WRONG
    if says_more(ours.value, theirs.value):
        return WRONG
    if words_of(theirs.value) and says_more(theirs.value, ours.value):
        return WRONG  # the reference has words: algebra would skip them, and what is left may be anything
    a, b = parse_number(ours.value), parse_number(theirs.value)
    if a is not None and b is not None:
        return RIGHT if numbers_equal(a, b) else WRONG
    return _algebra(ours.value, theirs.value, before_slow)


_RAISED_UNIT = re.compile(r"(.*[\d)}])\s([msghl])\s?\^\s?\{?([1-9])\}?")


def _with_raised_unit(quantity: Quantity, other: Quantity) -> Quantity:
    """``3 m^2`` beside a plain number or a unit: no power of a letter."""
    match = None if quantity.unit else _RAISED_UNIT.fullmatch(quantity.value)
    if match is None or not (other.unit or parse_number(other.value) is not None):
        return quantity
    return Quantity(match[1], f"{match[2]}^{match[3]}")


def _algebra(answer: str, gold: str, before_slow: Callable[[], None]) -> Grade:
    ours, theirs = parse_number(answer), parse_number(gold)
    before_slow()
    # Imported here: sympy takes a second of CPU, which a task with plain answers never needs.
    from r1async.rewards.symbolic import TooLongError, symbolic_grade

    try:
        return symbolic_grade(answer, gold, ours, theirs)
    except (Exception, TooLongError):  # noqa: BLE001 - sympy raises anything: RecursionError, MemoryError, its own
        return GUARDED if _gradable(gold, theirs) else UNGRADABLE


def _gradable(gold: str, number: Number | None) -> bool:
    """Whether a reference can at least be compared with itself; if so, it was the answer that algebra choked on."""
    from r1async.rewards.symbolic import TooLongError, symbolic_grade

    try:
        return symbolic_grade(gold, gold, number, number).value is not None
    except (Exception, TooLongError):  # noqa: BLE001 - as in `_algebra`
        return False


_MATHEMATICAL = re.compile(r"[\d\\=^_+*/<>|(){}\[\]√]|(?<![A-Za-z])(?:[A-Za-z]\s?)?-\s?[A-Za-z](?![A-Za-z])")
"""A reference without any of these is plain text: only the same words are right."""


class Number(NamedTuple):
    """A number as written."""

    value: Fraction
    unit: Fraction | None
    """One unit of the last place of a decimal that has enough digits to be a rounding; None if it is meant exactly."""
    percent: bool


def parse_number(text: str) -> Number | None:
    r"""An integer, decimal, fraction (``a/b`` or ``\frac{a}{b}``), power of ten or percentage; None if it is none.

    ``1,234,567`` has thousands separators, and so has ``1 234 567``; ``1,2`` is no number. A percentage counts in
    hundredths; ``0.1\overline{6}`` goes on for ever.
    """
    if len(text) > MAX_ANSWER_CHARS:
        return None
    if _SPACED.fullmatch(text):
        text = text.replace(" ", "")
    percent = text.endswith("%")
    text = text[:-1].rstrip() if percent else text
    if match := _DECIMAL.fullmatch(text):
        number = _decimal(match)
    elif match := _FRACTION.fullmatch(text) or _LATEX_FRACTION.fullmatch(text):
        number = _fraction(match)
    elif match := _PERIODIC.fullmatch(text):
        number = _periodic(match)
    elif match := _MIXED.fullmatch(text):
        number = _mixed(match)
    elif match := _POWER_OF_TEN.fullmatch(text):
        number = Number(Fraction(10) ** int(match[2]) * (-1 if match[1] == "-" else 1), None, False)
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


_SPACED = re.compile(r"[+-]?\d{1,3}(?: \d{3})+(?:\.\d+)?%?", re.ASCII)
_PERIODIC = re.compile(r"([+-]?)\s?(\d*)\.(\d*)(?:\\(?:overline|bar|dot)\s?(?:\{(\d+)\}|(\d))|\((\d+)\))", re.ASCII)


_POWER_OF_TEN = re.compile(r"([+-]?)10\s?\^\s?\{?([+-]?\d{1,4})\}?", re.ASCII)
_MIXED = re.compile(
    r"([+-]?)\s?(\d{1,9})(?:\s?\\frac\s?\{\s?(\d{1,9})\s?\}\s?\{\s?(\d{1,9})\s?\}|\s(\d{1,9})\s?/\s?(\d{1,9}))",
    re.ASCII,
)


def _mixed(match: re.Match[str]) -> Number | None:
    """``2 1/2``; with an improper fraction it is none."""
    sign, whole, *parts = match.groups("")
    above, below = (int(part) for part in parts if part)
    if not 0 < above < below:
        return None
    value = int(whole) + Fraction(above, below)
    return Number(-value if sign == "-" else value, None, False)


def _periodic(match: re.Match[str]) -> Number:
    sign, whole, decimals, *periods = match.groups("")
    period = "".join(periods)
    fixed = Fraction(int(whole + decimals or 0), 10 ** len(decimals))
    value = fixed + Fraction(int(period), 10 ** len(decimals) * (10 ** len(period) - 1))
    return Number(-value if sign == "-" else value, None, False)


def _decimal(match: re.Match[str]) -> Number | None:
    sign, whole, decimals, exponent, power = match.groups()
    digits = (whole or "").replace(",", "") + (decimals or "")
    if not digits or (whole and whole.lstrip("0").startswith(",")):
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
    if decimal.unit is None or exact.denominator == 1:
        return False  # a whole number is known to its last digit: leading digits are no answer
    distance = abs(decimal.value - exact)
    return 2 * distance <= decimal.unit or (distance < decimal.unit and abs(decimal.value) < abs(exact))


def _hundredfold(number: Number) -> Number:
    return Number(number.value * 100, None if number.unit is None else number.unit * 100, False)
