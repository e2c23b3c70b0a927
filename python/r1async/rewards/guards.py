"""What must not reach computer algebra: short to write, and minutes or gigabytes to work out. Looks at the text alone.

docs/rewards.md lists the guards.
"""

from __future__ import annotations

import math
import re

from r1async.answers import MAX_ANSWER_CHARS

MAX_DEPTH = 32
MAX_TOWER = 2
MAX_EXPONENT = 10_000
MAX_FACTORIAL = 10_000
MAX_TERMS = 400


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
    if _COUNTS.search(text) and _has_large_number(text):
        return f"a sum, product or binomial over more than {MAX_FACTORIAL}"
    if _terms(text) > MAX_TERMS:
        return f"a polynomial of more than {MAX_TERMS} terms"
    return None


_COUNTS = re.compile(r"\\(?:[dt]?binom|choose|sum|prod|int|bigcup)(?![a-zA-Z])")


def _has_large_number(text: str) -> bool:
    if any(int(digits) > MAX_FACTORIAL for digits in _DIGITS_RUN.findall(text)):
        return True
    return any(_power_is_large(int(a), int(b)) for a, b in _POWER.findall(text))


_RAISED = re.compile(r"[({\[]|([)}\]])(?:\s?(?:\^|\*\*)\s?[{(]?\s?(\d+)(?:\s?[})])?)?", re.ASCII)


def _terms(text: str) -> int:
    """Terms that the largest power of a sum would have, multiplied out; brackets within brackets multiply."""
    variables = len(set(_LETTERS.findall(_COMMAND.sub("", text))) - {"e", "i"})
    if not variables or not _IS_POWER.search(text):
        return 1
    inner, largest = [1], 1
    for match in _RAISED.finditer(text):
        if match[1] is None:
            inner.append(1)
            continue
        power = (inner.pop() if len(inner) > 1 else 1) * int(match[2] or 1)
        inner[-1] = max(inner[-1], power)
        largest = max(largest, power)
    return math.comb(min(largest, MAX_TERMS) + variables, variables)


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
