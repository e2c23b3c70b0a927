"""Equivalence by math-verify over sympy: slow, and able to hang; called in worker processes only.

math-verify's own time limits are off: they use signals, and the worker is killed at its deadline anyway. Its numeric
test is replaced where both sides are numbers: it compares a - b with 0 at 15 digits, so 1/2004! would equal 1/2006!.
"""

from __future__ import annotations

import logging

import sympy
from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
from math_verify import utils as math_verify_utils

from r1async.rewards.math import RIGHT, UNGRADABLE, WRONG, Grade, Number

DIGITS = 30
EQUAL_TO = sympy.Float(10, DIGITS) ** -20
"""Relative: numbers that do not agree in 20 of 30 digits are not the same."""
MANY_DIGITS = 200
EQUAL_TO_MANY = sympy.Float(10, MANY_DIGITS) ** -180
"""And those that agree in so many of 200 are."""
DOUBLE, DOUBLE_DIGITS = sympy.Rational(1, 2**52), sympy.Rational(1, 10**15)

# math-verify warns that its time limits are off, once per process and per function: here that is the design.
math_verify_utils.TIMEOUT_WARNING_SHOWN = True
for _module in ("math_verify.parser", "math_verify.grader"):
    logging.getLogger(_module).setLevel(logging.ERROR)

Parsed = sympy.Basic | sympy.MatrixBase | str

_EXTRACTION = (LatexExtractionConfig(), ExprExtractionConfig())


def symbolic_grade(answer: str, gold: str, ours: Number | None, theirs: Number | None) -> Grade:
    """Grade two answers that strings and exact numbers did not decide; both have passed the guards.

    Args:
        ours: the answer as a plain number, where it is one.
        theirs: the reference as a plain number, where it is one.
    """
    golds = _parse(gold)
    if not golds:
        return UNGRADABLE
    answers = _parse(answer)
    if not answers:
        return WRONG
    numeric = _compare_numbers(_exact(answers[0], ours), _exact(golds[0], theirs), ours or theirs)
    equal = numeric if numeric is not None else verify(golds, answers, timeout_seconds=None)
    return RIGHT if equal else WRONG


def _exact(value: Parsed, written: Number | None) -> object:
    """Decimals as the fractions they are: 0.1 + 0.2 is 0.3, and a float has no more than 15 digits of 2^100 + 1."""
    if written is not None:
        return sympy.Rational(written.value.numerator, written.value.denominator)
    if not isinstance(value, sympy.Expr):
        return value
    return value.xreplace({each: sympy.Rational(str(each)) for each in value.atoms(sympy.Float) if each.is_finite})


def _parse(text: str) -> list[Parsed]:
    for wrapped in (f"${text}$", text):
        if found := parse(wrapped, _EXTRACTION, fallback_mode="no_fallback", parsing_timeout=0):
            return found
    return []


def _compare_numbers(a: object, b: object, written: Number | None) -> bool | None:
    """Whether two numbers are equal, relative to their size; None if they are not both finite numbers.

    Args:
        written: the one that is written as a plain number; a long decimal may be a rounding of the other.
    """
    x, y = _evaluate(a), _evaluate(b)
    if x is None or y is None:
        return None
    if x.is_Rational and y.is_Rational:
        exact = x == y
        # A rounding is of a number that is no fraction of whole numbers; those were compared as such before.
        return bool(exact or (_rounds(x, y, written) and not (x.is_Integer or y.is_Integer)))
    x, y = sympy.N(x, DIGITS), sympy.N(y, DIGITS)
    difference = abs(x - y)
    if _rounds(x, y, written):
        return True
    if difference > EQUAL_TO * max(abs(x), abs(y)):
        return False
    # Closer than the digits looked at: look at more, or sqrt(10^50 + 1) would be 10^25.
    x, y = (sympy.N(_worked_out(each), MANY_DIGITS) for each in (a, b))
    return bool(abs(x - y) <= EQUAL_TO_MANY * max(abs(x), abs(y)))


def _rounds(x: sympy.Expr, y: sympy.Expr, written: Number | None) -> bool:
    """Whether a long decimal may be the rounding of the other; 30 digits tell that as well as the exact number."""
    if written is None or written.unit is None:
        return False
    unit = sympy.Rational(written.unit.numerator, written.unit.denominator)
    # A double is printed with as few digits as tell it apart, so that the last of 17 may be off by one.
    double = unit < abs(x) * DOUBLE_DIGITS and abs(x - y) <= abs(y) * DOUBLE
    return bool(double or 2 * abs(x - y) <= unit)


def _worked_out(value: object) -> sympy.Expr:
    assert isinstance(value, sympy.Expr), "both were numbers before"
    return value.doit()


def _evaluate(value: object) -> sympy.Expr | None:
    """The exact number if it is a fraction, else 30 digits of it; None if it is no finite number."""
    if not isinstance(value, sympy.Expr) or value.free_symbols or not value.is_number:
        return None
    value = value.doit()
    if value.is_Rational:
        return value
    number = sympy.N(value, DIGITS)
    finite = all(part.is_Float or part.is_Rational for part in number.as_real_imag())
    return number if finite else None
