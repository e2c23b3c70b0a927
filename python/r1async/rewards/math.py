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

Status = Literal["ok", "guard", "ungradable"]

MAX_ANSWER_CHARS = 1000
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


def extract_answer(text: str) -> str | None:
    r"""The answer a completion settles on: its last ``<answer>…</answer>``, else its last ``\boxed{…}``.

    A box inside the tags is unwrapped. Unclosed tags and boxes do not count. Linear in the text.
    """
    tagged = last_tagged(text)
    if tagged is None:
        return last_boxed(text)
    boxed = last_boxed(tagged)
    return tagged.strip() if boxed is None else boxed


def last_tagged(text: str) -> str | None:
    """Inside of the last complete ``<answer>…</answer>``, the innermost if nested."""
    last_close = text.rfind("</answer>")
    if last_close < 0:
        return None
    start = text.rfind("<answer>", 0, last_close)
    if start < 0:
        return None
    start += len("<answer>")
    return text[start : text.index("</answer>", start)]


def last_boxed(text: str) -> str | None:
    r"""Inside of the complete ``\boxed{…}`` or ``\fbox{…}`` that begins last; braces balance, ``\{`` is a letter."""
    found: tuple[int, int] | None = None
    opens: list[tuple[int, bool]] = []
    for match in _BRACES.finditer(text):
        token = match[0]
        if token == "}":
            start, is_box = opens.pop() if opens else (0, False)
            if is_box and (found is None or start > found[0]):
                found = start, match.start()
        elif token[-1] == "{" and token != "\\{":
            opens.append((match.end(), token != "{"))
    return None if found is None else text[slice(*found)].strip()


_BRACES = re.compile(r"\\(?:boxed|fbox)\s{0,8}\{|\\.|[{}]", re.DOTALL)


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

    return symbolic_grade(answer, gold, ours, theirs)


_MATHEMATICAL = re.compile(r"[\d\\=^_+*/<>|(){}\[\]π√∞]")
"""A reference without any of these is plain text: only the same words are right."""


def normalise(answer: str) -> str:
    r"""An answer without what does not change its meaning: ``$``, ``\text``, ``\left``, spacing, a final full stop."""
    text = answer.strip()
    if len(text) > MAX_ANSWER_CHARS:
        return text
    text = _strip_dollars(text)
    boxed = _WHOLE_BOX.fullmatch(text)
    text = boxed[1] if boxed else text
    text = _ROOT.sub(r"\\sqrt{\1\2}", text)
    text = _SIZES.sub("", _TEXT.sub(r"\1", text))
    for old, new in _REPLACEMENTS:
        text = text.replace(old, new)
    text = " ".join(text.split())
    if text.endswith(".") and not text.endswith(".."):
        text = text[:-1].rstrip()
    text = _strip_dollars(text)
    letter = _LETTER.fullmatch(text)
    return letter[1] if letter else text


_WHOLE_BOX = re.compile(r"\\(?:boxed|fbox)\{([^{}]*)\}")
_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mathbf|operatorname)\s?\{([^{}]*)\}")
_SIZES = re.compile(r"\\(?:left|right|!)(?![a-zA-Z])")
_ROOT = re.compile(r"\\sqrt\s?(?:\(([^(){}]*)\)|(\d))")
"""math-verify reads 4\\sqrt(2) as 4."""
_LETTER = re.compile(r"\(([A-Za-z])\)")
"""A choice: (A) is A."""
_REPLACEMENTS = (
    ("\\dfrac", "\\frac"),
    ("\\tfrac", "\\frac"),
    ("\\,", " "),
    ("\\;", " "),
    ("\\ ", " "),
    ("~", " "),
    ("{,}", ","),
    ("\\%", "%"),
    ("\\$", ""),
    ("−", "-"),
)


def _strip_dollars(text: str) -> str:
    for opening, closing in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        if len(text) >= len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing):
            return text[len(opening) : -len(closing)].strip()
    return text.removeprefix("$").strip() if text.count("$") == 1 else text


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
    return None


_EXPONENT = re.compile(r"(?:\^|\*\*)\s?[{(]?\s?[+-]?(\d+)", re.ASCII)
_POWER = re.compile(r"(?=(?<!\d)(\d+)[)}]?\s?(?:\^|\*\*)\s?[{(]?\s?(\d+))", re.ASCII)
_FACTORIAL = re.compile(r"(\d+)\s?!", re.ASCII)
_FACTORIAL_OF_MORE = re.compile(r"[)}\]!]\s?!")
_NESTING = re.compile(r"\^|\*\*|[({\[]|[)}\]]|\\[a-zA-Z]+|\d+|\S")


def _power_is_large(base: int, exponent: int) -> bool:
    """base ** exponent > MAX_EXPONENT, without computing it."""
    return base > 1 and (exponent > MAX_EXPONENT.bit_length() or base**exponent > MAX_EXPONENT)


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
