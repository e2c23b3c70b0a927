"""How large a parsed expression would become if it were worked out, without working it out.

math-verify parses powers and factorials without computing them, so this is the last moment to look. The guards on the
text (`guards`) know how things are written; this one knows what they mean: exponents that are products, quotients,
factorials or powers of powers. Bounds are upper ones and ignore what cancels.
"""

from __future__ import annotations

import math

import sympy
from sympy.functions.combinatorial.factorials import CombinatorialFunction

MAX_BITS = 400_000
"""Of the exact result; 9999^9999 has 133,000."""


def is_too_large(value: object) -> bool:
    """Whether an exact number in an expression would have more than `MAX_BITS` bits."""
    if isinstance(value, sympy.MatrixBase):
        return any(map(is_too_large, value.flat()))
    return isinstance(value, sympy.Basic) and _bits(value) > MAX_BITS


def _bits(value: sympy.Basic) -> float:
    """Of numerator and denominator together; a letter or a constant has one."""
    if isinstance(value, sympy.Rational):
        return float(value.p.bit_length() + value.q.bit_length())
    if not value.args:
        return 1.0
    parts = [_bits(part) for part in value.args]
    if isinstance(value, sympy.Pow):
        exponent = value.args[1]
        times = 1.0 if exponent.free_symbols else max(1.0, _power_of_two(_log2(exponent)))
        return parts[0] * times + parts[1]
    if isinstance(value, CombinatorialFunction) and not value.free_symbols:
        log = max(map(_log2, value.args))
        return max(sum(parts), _power_of_two(log) * max(1.0, log))
    return sum(parts)


def _log2(value: sympy.Basic) -> float:
    """Of an upper bound of the size of a number."""
    if isinstance(value, sympy.Rational):
        return math.log2(abs(value.p)) - math.log2(value.q) if value.p else 0.0
    if isinstance(value, sympy.Float):
        return math.log2(abs(float(value)) or 1.0) if abs(value) < 2**1000 else math.inf
    if isinstance(value, sympy.Pow):
        base, exponent = value.args
        return abs(_log2(base)) * _power_of_two(_log2(exponent))
    parts = [_log2(part) for part in value.args]
    if isinstance(value, sympy.Mul):
        return sum(parts)
    if isinstance(value, sympy.Add):
        return max(parts) + math.log2(len(parts))
    if isinstance(value, CombinatorialFunction):
        log = max(parts)
        return _power_of_two(log) * max(1.0, log)
    # A letter, a constant (none here is above 4), or a function of something.
    return max([2.0, *parts])


def _power_of_two(log: float) -> float:
    return 2.0**log if log < 1000 else math.inf
