"""Is what a program wrote or returned what was expected? Pure functions of text and values.

Strict where leniency could be used: whole lines, whole tokens, numbers in plain ASCII. A tolerance holds only where the
expected value itself is written as a decimal fraction, and only relative to it.
"""

from __future__ import annotations

import json
import re
from decimal import Context, Decimal, InvalidOperation, Overflow
from typing import NamedTuple

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_MAX_DIGITS = 4000
"""Longer numbers are compared as text: conversion takes quadratic time."""
_CONTEXT = Context(prec=60, Emax=10**9, Emin=-(10**9), traps=[InvalidOperation, Overflow])


def same_text(got: str, expected: str, tolerance: float) -> bool:
    """Line by line, token by token.

    Args:
        got: what was written.
        expected: what should have been.
        tolerance: relative; for tokens whose expected form has a point or an exponent.

    White space at the ends of lines, its amount between tokens, and empty lines at the end do not matter; line breaks
    and empty lines between others do.
    """
    ours, theirs = _lines(got), _lines(expected)
    if ours == theirs:
        return True
    if len(ours) != len(theirs):
        return False
    return all(a == b or _same_line(a.split(), b.split(), tolerance) for a, b in zip(ours, theirs, strict=True))


def _lines(text: str) -> list[str]:
    # Not splitlines: it also breaks at form feeds and at Unicode's separators.
    return text.replace("\r\n", "\n").rstrip().split("\n")


def _same_line(got: list[str], expected: list[str], tolerance: float) -> bool:
    return len(got) == len(expected) and all(
        a == b or _same_token(a, b, tolerance) for a, b in zip(got, expected, strict=True)
    )


def _same_token(got: str, expected: str, tolerance: float) -> bool:
    if max(len(got), len(expected)) > _MAX_DIGITS or not (_NUMBER.fullmatch(got) and _NUMBER.fullmatch(expected)):
        return False
    fraction = any(mark in expected for mark in ".eE")
    try:
        ours, theirs = Decimal(got), Decimal(expected)
    except InvalidOperation:  # an exponent of twenty digits
        return False
    return _close(ours, theirs, tolerance if fraction else 0.0)


def _close(got: Decimal, expected: Decimal, tolerance: float) -> bool:
    if got == expected:
        return True
    if not tolerance or not expected or not got.is_finite() or not expected.is_finite():
        return False
    try:
        difference = _CONTEXT.abs(_CONTEXT.subtract(got, expected))
        return difference <= _CONTEXT.multiply(Decimal(tolerance), abs(expected))
    except (InvalidOperation, Overflow):
        return False


class BigNumber(NamedTuple):
    """A whole number of more digits than are worth converting."""

    digits: str


class _NoJsonError(ValueError):
    pass


def _no_constant(name: str) -> object:
    raise _NoJsonError(name)


def _whole(digits: str) -> int | BigNumber:
    return int(digits) if len(digits) <= _MAX_DIGITS else BigNumber(digits)


def read_value(text: str | bytes) -> object:
    """A JSON text's value, from somebody who would like to hurt us.

    Raises:
        ValueError: no JSON, NaN or infinity, nested too deeply, or followed by something.
    """
    try:
        return json.loads(text, parse_int=_whole, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def same_value(got: object, expected: object, tolerance: float) -> bool:
    """Structural equality of JSON values.

    A number equals a number, but true is not 1; sequences are ordered; nothing equals null but null. The tolerance
    holds where the expected number is a float.
    """
    try:
        return _same(got, expected, tolerance)
    except RecursionError:
        return False


def _same(got: object, expected: object, tolerance: float) -> bool:
    match expected:
        case bool() | str() | None:
            return type(got) is type(expected) and got == expected
        case BigNumber():
            return isinstance(got, BigNumber) and got == expected
        case int() | float():
            if isinstance(got, bool) or not isinstance(got, int | float):
                return False
            return got == expected or (
                isinstance(expected, float) and _close(Decimal(got), Decimal(expected), tolerance)
            )
        case list() | tuple():
            return (
                isinstance(got, list)
                and len(got) == len(expected)
                and all(_same(a, b, tolerance) for a, b in zip(got, expected, strict=True))
            )
        case dict():
            return (
                isinstance(got, dict)
                and got.keys() == expected.keys()
                and all(_same(got[key], expected[key], tolerance) for key in expected)
            )
    return False
