"""Equivalence by math-verify over sympy: slow, and able to hang; called in worker processes only.

math-verify's own time limits are off: they count seconds of the clock, for each comparison anew. Here `MAX_CPU_S` of
processor time end all of it; what runs in C and does not look is killed with the worker. Its numeric test is replaced
where both sides are numbers: it compares a - b with 0 at 15 digits, so 1/2004! would equal 1/2006!.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import sympy
from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
from math_verify import utils as math_verify_utils

from r1async.rewards.magnitude import is_too_large
from r1async.rewards.math import GUARDED, RIGHT, UNGRADABLE, WRONG, Grade, Number

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

MAX_CPU_S = 2.0
"""What honest pairs take is below 0.5 s."""


class TooLongError(BaseException):
    """Computer algebra took too long. No `Exception`: math-verify and sympy swallow those."""


@contextmanager
def limited_cpu(seconds: float) -> Iterator[None]:
    """Raise TooLongError inside once the process has used so much processor time; in the main thread, where signals
    arrive. Elsewhere there is no limit."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    armed = [True]

    def end(number: int, frame: object) -> None:
        if armed:
            raise TooLongError

    before = signal.signal(signal.SIGVTALRM, end)
    # Again and again: somebody may swallow even this one.
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, 0.2)
    try:
        try:
            yield
        finally:
            armed.clear()
    finally:
        # Reached even if the signal came on the way out.
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
        signal.signal(signal.SIGVTALRM, before)


Parsed = sympy.Basic | sympy.MatrixBase | str

_EXTRACTION = (LatexExtractionConfig(), ExprExtractionConfig())


def symbolic_grade(answer: str, gold: str, ours: Number | None, theirs: Number | None) -> Grade:
    """Grade two answers that strings and exact numbers did not decide; both have passed the guards.

    Args:
        ours: the answer as a plain number, where it is one.
        theirs: the reference as a plain number, where it is one.

    Raises:
        TooLongError: it takes more than `MAX_CPU_S`. Other errors are sympy's.
    """
    with limited_cpu(MAX_CPU_S):
        return _graded(answer, gold, ours, theirs)


def _graded(answer: str, gold: str, ours: Number | None, theirs: Number | None) -> Grade:
    golds = _parse(gold)
    if not golds:
        return UNGRADABLE
    answers = _parse(answer)
    if not answers:
        return WRONG
    if is_too_large(golds[0]):
        return UNGRADABLE
    if is_too_large(answers[0]):
        return GUARDED
    if _letters(answers[0]) | _letters(golds[0]) == {"i"}:
        answers, golds = [_with_imaginary(answers[0])], [_with_imaginary(golds[0])]
    numeric = _compare_numbers(_exact(answers[0], ours), _exact(golds[0], theirs), ours or theirs)
    equal = numeric if numeric is not None else verify(golds, answers, timeout_seconds=None)
    return RIGHT if equal else WRONG


def _letters(value: Parsed) -> set[str]:
    return set() if isinstance(value, str) else {str(each) for each in value.free_symbols}


def _with_imaginary(value: Parsed) -> Parsed:
    """Where i is the only letter, it is the imaginary unit."""
    return value if isinstance(value, str) else value.xreplace(dict.fromkeys(value.free_symbols, sympy.I))


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
