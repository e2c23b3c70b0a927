r"""What an answer says: one thing or several, of which unit, in which base, and whether anything in it is hidden.

math-verify reads what it can find in a text and drops the rest, so that ``5 \text{ or } 6`` is 6, ``5 \text{ km}`` is
``5 \text{ cm}`` and ``\phantom{5}`` is 5: a policy finds that sooner or later. Here the parts of an answer are told
apart first, each goes to algebra alone, and what cannot be told apart is not right.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

MAX_ITEMS = 10
"""Members of a set that are compared with one another; algebra may be needed for each pair."""


class Items(NamedTuple):
    """Members of a set, tuple, interval or list."""

    brackets: str
    """``()``, ``[)``, …; ``{}`` is a set, and nothing a bare list."""
    members: tuple[str, ...]

    @property
    def ordered(self) -> bool:
        return self.brackets not in ("", "{}")


_SEPARATORS = re.compile(
    r"\s*,?\s*(?:;|\\(?:lor|vee|land|wedge|qquad|quad)(?![a-zA-Z])|(?<![a-zA-Z\\])(?:or|and)(?![a-zA-Z]))\s*",
    re.IGNORECASE,
)
_JOINS = re.compile(r";|\\(?:lor|vee|land|wedge)(?![a-zA-Z])|(?<![a-zA-Z\\])(?:or|and)(?![a-zA-Z])", re.IGNORECASE)
_ROW = re.compile(r"\s*\\\\\s*")
_PLUS_MINUS = re.compile(r"\\(?:pm|mp)(?![a-zA-Z])")
_BRACKETS = re.compile(r"\\[{}]|\\.|[()\[\]{},]", re.DOTALL)
_CLOSE = {"(": ")]", "[": ")]", "\\{": ("\\}",), "{": "}"}


def items_of(text: str) -> Items:
    r"""Members of the set, tuple or list that a text writes out; a text that is none is its only member.

    ``or``, ``and``, ``;``, ``\lor`` and a line break separate like a comma; ``a \pm b`` is two members.
    """
    if "\\begin" not in text:
        text = _ROW.sub(",", text)
    text = _SEPARATORS.sub(",", text)
    brackets = brackets_around(text)
    inside = text[len(brackets[0]) : -len(brackets[1])] if brackets else text
    members = [member for part in _at_commas(inside) for member in _signs(part.strip())]
    if len(members) > 1 or (brackets and brackets[0] == "\\{"):
        return Items("".join(brackets).replace("\\", ""), tuple(members))
    return Items("", (text.strip(),) if members == [inside.strip()] else tuple(members))


def joins_more(answer: str, gold: str) -> bool:
    """Whether an answer joins things that the reference does not, wherever in it: ``5 (or 6)``."""
    return len(_JOINS.findall(answer)) > len(_JOINS.findall(gold))


_OR = re.compile(r"\\(?:lor|vee)(?![a-zA-Z])|(?<![a-zA-Z\\])or(?![a-zA-Z])", re.IGNORECASE)
_AND_SIGN, _OR_SIGN = (re.compile(rf"\\(?:{signs})(?![a-zA-Z])") for signs in ("land|wedge", "lor|vee"))


def joins_otherwise(answer: str, gold: str) -> bool:
    """Whether two formulas are joined by different signs, one by ``\\land`` and the other by ``\\lor``."""
    ours, theirs = ((bool(_AND_SIGN.search(text)), bool(_OR_SIGN.search(text))) for text in (answer, gold))
    return ours != theirs and any(ours) and any(theirs)


def in_order_of_names(members: tuple[str, ...]) -> tuple[str, ...] | None:
    """Values that are named one by one, as a tuple without names has them: ``x = 1, y = 2`` of ``y = 2, x = 1``.

    None if they are not the places of one tuple: one letter has two of them, as in ``x = 1, x = 2``.
    """
    names = [sides_of(member)[0] for member in members]
    if not any(names):
        return members
    if len(set(names)) < len(names) or not all(names):
        return None
    if not (set(names) <= set("xyz") or set(names) <= set("abcd")):
        return members  # as the question has them, (n, k)
    return tuple(member for _, member in sorted(zip(names, members, strict=True)))


def says_or(text: str) -> bool:
    """Whether a text leaves a choice."""
    return _OR.search(text) is not None


def brackets_around(text: str) -> tuple[str, str] | tuple[()]:
    """The brackets that open at the first letter and close at the last."""
    opening = next((each for each in ("\\{", "(", "[", "{") if text.startswith(each)), "")
    if not opening:
        return ()
    depth = 0
    for match in _BRACKETS.finditer(text):
        token = match[0]
        if token in ("(", "[", "\\{", "{"):
            depth += 1
        elif token in (")", "]", "\\}", "}"):
            depth -= 1
            if depth == 0:
                return (opening, token) if match.end() == len(text) and token in _CLOSE[opening] else ()
    return ()


def without_doubled(text: str) -> str:
    """``(5)`` of ``(((5)))``: reading nested brackets takes algebra exponential time."""
    while brackets_around(text) == ("(", ")") and brackets_around(text[1:-1].strip()) == ("(", ")"):
        text = text[1:-1].strip()
    return text


def _at_commas(text: str) -> list[str]:
    found, start, depth = [], 0, 0
    for match in _BRACKETS.finditer(text):
        token = match[0]
        if token in ("(", "[", "\\{", "{"):
            depth += 1
        elif token in (")", "]", "\\}", "}"):
            depth -= 1
        elif token == "," and depth == 0:
            found.append(text[start : match.start()])
            start = match.end()
    return [*found, text[start:]]


def _signs(member: str) -> list[str]:
    if len(_PLUS_MINUS.findall(member)) != 1:
        return [member]
    return [_PLUS_MINUS.sub(sign, member).strip().removeprefix("+") for sign in "+-"]


_EQUALS = re.compile(r"(?<![<>!=:\\])==?(?![=<>])")
_NAME = re.compile(
    r"\\?[a-zA-Z](?:[a-zA-Z]*(?<=\\[a-zA-Z])[a-zA-Z]*)?'*(?:_\{?\w+\}?)?"
    r"(?:\((?:[a-zA-Z]|-?\d+)(?:,\s?(?:[a-zA-Z]|-?\d+))*\))?"
)
_ANGLE = re.compile(r"m?\\angle\s?[A-Z]{1,3}")
_GREEK_NAME = re.compile(r"\\[a-zA-Z]+(?:_\{?\w+\}?)?")


def sides_of(text: str) -> tuple[str, tuple[str, ...]]:
    """The name that a text gives a value to, and what it says the value is: ``x = 2 + 3 = 5`` says it twice.

    A text without ``=`` says itself; an equation between two expressions has no name.
    """
    sides = [side.strip() for side in _EQUALS.split(text)]
    if len(sides) == 1:
        return "", (text,)
    names = [side for side in sides if _is_name(side)]
    if len(names) == len(sides):
        return sides[0], (sides[-1],)  # the value is a letter: x = e
    return (names[0] if names else ""), tuple(side for side in sides if side not in names)


def _is_name(text: str) -> bool:
    return bool(_NAME.fullmatch(text) or _GREEK_NAME.fullmatch(text) or _ANGLE.fullmatch(text)) and text not in (
        "\\pi",
        "\\infty",
        "\\emptyset",
    )


_NAMES = re.compile(r"(\(\s?[a-zA-Z](?:_\{?\w+\}?)?(?:\s?,\s?[a-zA-Z](?:_\{?\w+\}?)?)+\s?\))\s?=\s?(?=\()")


def without_names(ours: str, theirs: str) -> tuple[str, str]:
    """Two texts without the tuple of letters that one or both name their tuple by: ``(x, y) = (1, 2)``.

    Tuples that are named otherwise stay, and are not the same.
    """
    a, b = _NAMES.match(ours), _NAMES.match(theirs)
    if a and b and a[1].replace(" ", "") != b[1].replace(" ", ""):
        return ours, theirs
    return (ours[a.end() :] if a else ours), (theirs[b.end() :] if b else theirs)


_BETWEEN = re.compile(r"[\d}]\s+[A-Za-z]{2,}(?:\s+[A-Za-z]{2,})*\s+[\d\\]")
_NUMBERS = re.compile(r"\d+(?:\.\d+)?")
_INDEX = re.compile(r"\d_\s?\{?(\w+)")


def says_otherwise(answer: str, gold: str) -> bool:
    """Whether a reference with words between its numbers, ``3 to 4``, or with ``a.m.`` has others or in another
    order, or a number has an index of letters, ``5_a``, that it has not: algebra would skip the words."""
    worded = _BETWEEN.search(gold) or _DOTTED.search(gold)
    if worded and _NUMBERS.findall(answer) != _NUMBERS.findall(gold):
        return True
    return based(answer) is None and bool(set(_INDEX.findall(answer)) - set(_INDEX.findall(gold)))


FUNCTIONS = frozenset(
    re.findall(
        r"\w+",
        "sin cos tan cot sec csc arcsin arccos arctan asin acos atan sinh cosh tanh log ln lg exp max min gcd lcm "
        "mod det sqrt pi cbrt",
    )
)
_COMMAND = re.compile(r"\\(?:begin|end)\s?\{[a-zA-Z*]+\}(?:\{[clr|]*\})?|\\[a-zA-Z]+")
_WORD = re.compile(r"[A-Za-z]{2,}")
_PHRASE = re.compile(
    r"(?:(?:so|thus|hence|therefore),? )?(?:the )?(?:final |correct |right )*(?:answer|result|value|solution)"
    r"(?: is)?(?: equal to)?\s?[:=]?\s(?=\S)",
    re.IGNORECASE,
)
_NAMED = re.compile(r"\\([a-zA-Z]+)")
_KNOWN = frozenset(
    re.findall(
        r"\w+",
        "frac dfrac tfrac cfrac sqrt pi infty cdot times div pm mp le leq ge geq lt gt ne neq in notin cup cap "
        "setminus emptyset mathbb mathbf mathrm mathcal text begin end left right binom dbinom tbinom choose circ "
        "degree angle overline bar vec hat langle rangle lfloor rfloor lceil rceil lvert rvert vert mid "
        "operatorname prime displaystyle alpha beta gamma delta epsilon varepsilon "
        "zeta eta theta iota kappa lambda mu nu xi rho sigma "
        "tau phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega bmod pmod",
    )
)
"""Commands that algebra reads or that change nothing; it skips the others, as ``\\phantom`` and ``\\Rightarrow``."""
_STRANGE = re.compile(r"[#@`\"~?&]|\.\.|->|=>|(?<=\d)'|(?<=[\d)}])(?<!_\d)(?<!_\d\d)(?<!_\{\d\})(?<!_\{\d\d\})\s(?=\d)")
"""What algebra stops at or skips; a question mark, an ellipsis, two numbers side by side."""
_SYMBOLS = re.compile(r"(?<!\\)(?:\\\\)*\\(?![a-zA-Z{}|\\])|===")
"""Commands of one sign, ``\\_``, of which none means anything in a formula."""
_HANGING = re.compile(r"(?:^|(?<=[,(\[=]))\s*[_^]")
_TRANSPOSED = re.compile(r"\^\s?\{?\s?[T*]")
"""An index without a letter before it, and a transpose: algebra drops both."""
_BEHIND_MATRIX = re.compile(r"\\end\s?\{\w+\}\s?(?:[\w(!^]|\\(?!end|right|\\))")
"""A factor behind a matrix: dropped too."""
_DROPPED = _SYMBOLS, _HANGING, _TRANSPOSED, _BEHIND_MATRIX
_UNFINISHED = re.compile(
    r"(?:[-+*/^_=<>.&:]|\\(?:sqrt|frac|binom|sin|cos|tan|ln|log|exp|cdot|times|div|pm|mp|le|ge|ne))\s*$"
)


def without_phrase(text: str) -> str:
    """``5`` of ``The answer is 5``."""
    return _PHRASE.sub("", text, count=1) if (match := _PHRASE.match(text)) and match.end() < len(text) else text


def says_more(answer: str, gold: str) -> bool:
    """Whether an answer has words, commands or doubts that the reference has not, or stops in the middle.

    Sums, integrals and limits are among those commands: what is not worked out is no answer, and may take hours.
    Letters side by side are no word if the reference has them as variables.
    """
    if not answer.isascii() or not answer.isprintable():
        return True  # whatever normalising has left of it, algebra would skip it
    if set(_NAMED.findall(answer)) - set(_NAMED.findall(gold)) - _KNOWN - FUNCTIONS:
        return True
    if len(_STRANGE.findall(answer)) > len(_STRANGE.findall(gold)) or _UNFINISHED.search(answer):
        return True
    if any(
        len(each.findall(answer)) > len(each.findall(gold))
        for each in (_SYMBOLS, _HANGING, _TRANSPOSED, _BEHIND_MATRIX)
    ):
        return True
    if answer.count("|") % 2 != gold.count("|") % 2 or answer.count("'") != gold.count("'"):
        return True
    commands, named = set(_NAMED.findall(answer)), set(_NAMED.findall(gold))
    if (commands & _GREEK) - named or ("infty" in commands and "infty" not in named) or "::" in answer:
        return True
    if (lettered := _LETTERED.fullmatch(answer)) and lettered[1] not in gold:
        return True
    if _UNION.search(answer) and not _SETLIKE.search(gold):
        return True
    if _RELATION.search(answer) and not _RELATION.search(gold):
        return True  # at most 5 is not 5
    if _dotted(answer) - _dotted(gold):
        return True  # 7:30 a.m. is not 7:30 p.m.
    known = set(_letters(gold))
    return any(word not in FUNCTIONS and not known.issuperset(word) for word in words_of(answer))


def _dotted(text: str) -> set[str]:
    return {"".join(each.split()).lower() for each in _DOTTED.findall(text)}


def words_of(text: str) -> list[str]:
    return _WORD.findall(_COMMAND.sub(" ", text))


def _letters(text: str) -> str:
    """The reference's variables: letters of its words do not count."""
    return _WORD.sub(_variables, _COMMAND.sub(" ", text))


def _variables(match: re.Match[str]) -> str:
    return match[0] if len(match[0]) <= MAX_PRODUCT else ""


MAX_PRODUCT = 3
"""Letters side by side that still are a product of variables, ``xyz``, and no word."""

_GREEK = frozenset(
    re.findall(
        r"\w+",
        "alpha beta gamma delta epsilon varepsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau phi varphi "
        "chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega",
    )
)
"""Letters; pi is a number."""
_LETTERED = re.compile(r"[-+\d.,\s]+([abcdfjknopqrtuvwxyzBDEGHIOPQRSTUXYZ])")
"""A number and one letter that is neither a constant nor an everyday unit: algebra takes ``5d`` for 5."""
_DOTTED = re.compile(r"(?<![a-zA-Z\\])[A-Za-z]\.\s?[A-Za-z](?![a-zA-Z])")
"""Single letters with stops between them, which are no word to `words_of` and nothing to algebra."""
_RELATION = re.compile(r"[<>]|\\(?:le|leq|leqslant|ge|geq|geqslant|lt|gt|ll|gg|ne|neq)(?![a-zA-Z])")

_UNION = re.compile(r"\\(?:mid|cup|cap|setminus)(?![a-zA-Z])")
_SETLIKE = re.compile(r"\\(?:mid|cup|cap|setminus|mathbb|emptyset|infty|\{)|[\[|<>]|^\(.*,.*\)$|\\[lg]e")

_INEQUALITY = re.compile(
    r"(?:((?:[^<>\\,]|\\(?:frac|sqrt|pi|infty))+?)\s?(<|\\leqslant|\\leq?(?![a-z]))\s?)?([a-zA-Z])\s?(<|>|\\[lg]eqslant|\\[lg]eq?(?![a-z]))\s?((?:[^<>\\,]|\\(?:frac|sqrt|pi))+)"
)


def interval_of(text: str) -> str:
    """The interval that an inequality of one letter says, ``(5, \\infty)`` of ``x > 5``; "" if it is none.

    Inequalities joined by ``or`` are a union.
    """
    parts = [_interval(part.strip()) for part in re.split(r"(?<![a-zA-Z\\])or(?![a-zA-Z])|\\lor(?![a-zA-Z])", text)]
    return "\\cup".join(parts) if all(parts) else ""


def _interval(text: str) -> str:
    match = _INEQUALITY.fullmatch(text)
    if match is None:
        return ""
    low, first, _, second, bound = match.groups()
    upward = second.startswith((">", "\\g"))
    if low is not None:
        return "" if upward else f"{'(' if first == '<' else '['}{low},{bound}{')' if second == '<' else ']'}"
    if upward:
        return f"{'(' if second == '>' else '['}{bound},\\infty)"
    return f"(-\\infty,{bound}{')' if second == '<' else ']'}"


_RATIO = re.compile(r"\d+(?:\.\d+)?(?:\s?:\s?\d+(?:\.\d+)?){2,}", re.ASCII)


def same_ratio(ours: str, theirs: str) -> bool | None:
    """Whether two ratios of three or more numbers are the same, ``2:4:6`` and ``1:2:3``; None if neither is one."""
    if not (_RATIO.fullmatch(ours) or _RATIO.fullmatch(theirs)):
        return None
    if not (_RATIO.fullmatch(ours) and _RATIO.fullmatch(theirs)):
        return False
    a, b = ([Fraction(part.strip()) for part in text.split(":")] for text in (ours, theirs))
    if len(a) != len(b) or not any(a) or not any(b):
        return a == b
    whole_a, whole_b = sum(a), sum(b)
    return all(x * whole_b == y * whole_a for x, y in zip(a, b, strict=True))


_CLOCK = re.compile(r"(\d{1,2})(?::(\d\d))?(?::(\d\d))?(?:\s?([ap])\.?\s?m\.?)?", re.ASCII | re.IGNORECASE)


class Clock(NamedTuple):
    """A time of the day."""

    hour: int
    minute: int
    second: int
    half: str
    """`a`, `p`, or "" if it is not said."""

    @property
    def of_day(self) -> tuple[int, int, int] | None:
        """By 24 hours; None if the half of the day is not known."""
        if not self.half:
            return self[:3] if self.hour > 12 else None
        return self.hour % 12 + (12 if self.half == "p" else 0), self.minute, self.second


def clock_of(text: str) -> Clock | None:
    """``7:30``, ``7:30 AM`` and ``7 p.m.``; None for all else."""
    match = _CLOCK.fullmatch(text)
    if match is None or not (match[2] or match[4]):
        return None
    hour, minute, second = (int(part or 0) for part in match.groups()[:3])
    half = (match[4] or "").lower()
    good = minute < 60 and second < 60 and (1 <= hour <= 12 if half else hour <= 24)
    return Clock(hour, minute, second, half) if good else None


def same_time(ours: str, theirs: str) -> bool | None:
    """Whether two texts are the same time of the day; None if the second is none, or neither says more than numbers
    and a colon, which a ratio has too."""
    b = clock_of(theirs)
    if b is None:
        return None
    a = clock_of(ours)
    if a is None:
        return False if b.half else None
    return a == b or (a.of_day is not None and a.of_day == b.of_day)


_POINTS = re.compile(
    r"\\(?:angle|triangle|overline|overrightarrow|overleftrightarrow|widehat|vec)(?![a-z])[\s{]*[A-Z]{2}"
)


def names_points(text: str) -> bool:
    """Whether letters side by side are points, as in an angle ABC, and no product."""
    return _POINTS.search(text) is not None


_BASED = re.compile(r"([0-9A-Za-z]+)_\s?\{?(\d{1,2})\}?")


def based(text: str) -> tuple[str, int] | None:
    """Digits and base of ``1010_2``; None if it is not written like that."""
    match = _BASED.fullmatch(text)
    if match is None or not match[1][0].isdigit() or not 2 <= int(match[2]) <= 36:
        return None
    return match[1].lower(), int(match[2])


def same_in_base(ours: str, theirs: str) -> bool | None:
    """Whether two numbers are equal of which one names its base at least; None if none does."""
    a, b = based(ours), based(theirs)
    if a is None and b is None:
        return None
    if a is not None and b is not None:
        try:
            return int(a[0], a[1]) == int(b[0], b[1])
        except ValueError:  # a digit beyond the base
            return a == b
    # The question names the base as a rule, so that one of the two may leave it out.
    return (a[0] if a else ours.lower()) == (b[0] if b else theirs.lower())
