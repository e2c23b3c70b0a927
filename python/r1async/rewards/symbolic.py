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
"""Relative: numbers that agree in 20 of 30 digits are the same."""

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
    numeric = _compare_numbers(answers[0], golds[0], (ours or theirs))
    equal = numeric if numeric is not None else verify(golds, answers, timeout_seconds=None)
    return RIGHT if equal else WRONG


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
    difference = abs(x - y)
    if written is not None and written.unit is not None:
        # A long decimal: the other may round to it. 30 digits tell that as well as the exact number would.
        unit = sympy.Rational(written.unit.numerator, written.unit.denominator)
        if 2 * difference <= unit:
            return True
    return bool(difference <= EQUAL_TO * max(abs(x), abs(y)))


def _evaluate(value: object) -> sympy.Expr | None:
    """The number to 30 digits, or None if it is no finite number."""
    if not isinstance(value, sympy.Expr) or value.free_symbols or not value.is_number:
        return None
    number = sympy.N(value.doit(), DIGITS)
    finite = all(part.is_Float or part.is_Rational for part in number.as_real_imag())
    return number if finite else None
