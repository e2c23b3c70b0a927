"""What a completion answers, and an answer without what does not change its meaning.

Shared by the roles that read completions: the grader compares such answers with a reference, the evaluator counts
them as votes. docs/rewards.md has the rules.
"""

from __future__ import annotations

import re
import unicodedata

import numpy as np
from numpy.typing import NDArray

MAX_ANSWER_CHARS = 1000


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


def response_of(text: str) -> str:
    """What a completion says after its thought; a thought that does not end leaves no response.

    Inside of `<answer>…</answer>` where that is the whole of it (R1-Zero's template).
    """
    _, found, rest = text.rpartition("</think>")
    response = rest if found else "" if text.lstrip().startswith("<think>") else text
    bare = response.strip()
    if bare.startswith("<answer>") and bare.endswith("</answer>"):
        return bare[len("<answer>") : -len("</answer>")].strip()
    return response.strip()


def last_boxed(text: str) -> str | None:
    r"""Inside of the last complete ``\boxed{…}`` or ``\fbox{…}``; braces balance, ``\{`` is a letter.

    A box inside another is part of it: ``\boxed{5 \text{ or } \boxed{6}}`` answers both. A box that holds nothing
    but a box is unwrapped. Without any complete one, the rest of its line counts if the last has no braces. Linear in
    the text.
    """
    first = text.find("box")
    if first < 0:
        return None
    if text.startswith("\\boxed{", first - 1) and text.rfind("box") == first and text[first - 2 : first - 1] != "\\":
        # As a rule: one box, near the end.
        inside = text[first + len("boxed{") : first + SHORT_CHARS]
        end = inside.find("}") if inside.find("{") < 0 and inside.find("\\") < 0 else _first_closing(inside, 0)
        if end >= 0:
            return inside[:end].strip()
    starts = [place for name in _BOXES if (place := text.find(name)) >= 0]
    if not starts:
        return None
    start = min(starts)
    while start and text[start - 1] == "\\":
        start -= 1  # an even number of them escape each other, and the box is one
    found = _box_of_short(text, start) if len(text) - start <= SHORT_CHARS else _box_of_long(text, start)
    if found is None:
        return _without_braces(text)
    inside = text[slice(*found)].strip()
    while (whole := _BOX_START.match(inside)) and _first_closing(inside, whole.end()) == len(inside) - 1:
        inside = inside[whole.end() : -1].strip()
    return inside


def _without_braces(text: str) -> str | None:
    r"""What the last box has if no brace follows it, the rest of its formula or line: ``$\boxed 5$``."""
    bare = _BARE_BOX.match(text, max(text.rfind(name) for name in _BOXES))
    if bare is None:
        return None
    end = _FORMULA_ENDS.search(text, bare.end())
    return text[bare.end() : end.start() if end else len(text)].strip().removesuffix(".").rstrip() or None


SHORT_CHARS = 1500
"""Up to here the plain scan is faster than setting up arrays."""
_BOXES = ("\\boxed", "\\fbox")
_BRACES = re.compile(r"\\(?:boxed|fbox)\s{0,8}\{|\\.|[{}]", re.DOTALL)
_BARE_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])(?!\s{0,8}[{\[(])")
_FORMULA_ENDS = re.compile(r"\$|\\[)\]]|\n")
_BOX_START = re.compile(r"\\(?:boxed|fbox)\s{0,8}\{")


def _first_closing(text: str, start: int) -> int:
    """Where the brace closes that was opened just before `start`; -1 if nowhere."""
    depth = 1
    for match in _BRACES.finditer(text, start):
        token = match[0]
        if token == "}":
            depth -= 1
            if not depth:
                return match.start()
        elif token[-1] == "{" and token != "\\{":
            depth += 1
    return -1


def _box_of_short(text: str, start: int) -> tuple[int, int] | None:
    found: tuple[int, int] | None = None
    opens: list[tuple[int, bool]] = []
    for match in _BRACES.finditer(text, start):
        token = match[0]
        if token == "}":
            begin, is_box = opens.pop() if opens else (0, False)
            # What ends later and begins earlier is around the one found before.
            if is_box and (found is None or begin > found[1] or begin < found[0]):
                found = begin, match.start()
        elif token[-1] == "{" and token != "\\{":
            opens.append((match.end(), token != "{"))
    return found


def _box_of_long(text: str, start: int) -> tuple[int, int] | None:
    """The same with arrays: a policy may fill 32k tokens with braces, and a loop over them takes 20 ms."""
    letters = np.frombuffer(text[start:].encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    braces = np.flatnonzero((letters == ord("{")) | (letters == ord("}")))
    # The place of the last letter up to each that is no backslash: after an odd number of them a letter is escaped.
    places = np.arange(len(letters), dtype=np.int32)
    plain = np.maximum.accumulate(np.where(letters != ord("\\"), places, -1))
    braces = braces[~_escaped(plain, braces)]
    opening = letters[braces] == ord("{")
    # Braces of one level, in their order, close one another.
    level = np.cumsum(np.where(opening, 1, -1)) + ~opening
    order = np.argsort(level, kind="stable")
    pairs = opening[order[:-1]] & ~opening[order[1:]] & (level[order[:-1]] == level[order[1:]])
    begins, ends = braces[order[:-1][pairs]], braces[order[1:][pairs]]
    boxes = _opens_box(letters, plain, begins)
    begins, ends = begins[boxes] + 1, ends[boxes]
    if not len(begins):
        return None
    in_order = np.argsort(begins)
    begins, ends = begins[in_order], ends[in_order]
    around = np.concatenate(([-1], np.maximum.accumulate(ends)[:-1]))
    last = int(np.flatnonzero(begins > around)[-1])
    return start + int(begins[last]), start + int(ends[last])


def _escaped(plain: NDArray[np.int32], at: NDArray[np.intp]) -> NDArray[np.bool_]:
    last_plain = np.where(at > 0, plain[np.maximum(at - 1, 0)], -1)
    return ((at - 1 - last_plain) & 1).astype(bool)


def _opens_box(letters: NDArray[np.uint32], plain: NDArray[np.int32], at: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Which of these opening braces follow a box's name, up to eight white-space characters apart."""
    end = at - 1  # of the name
    for _ in range(8):
        blank = (end >= 0) & np.isin(letters[np.maximum(end, 0)], _BLANKS)
        if not blank.any():
            break
        end = end - blank
    found = np.zeros(len(at), dtype=bool)
    for name in _BOXES:
        begin = end - len(name) + 1
        here = np.maximum(begin, 0)
        fits = (begin >= 0) & ~_escaped(plain, here)
        for offset, letter in enumerate(name):
            fits &= letters[np.minimum(here + offset, len(letters) - 1)] == ord(letter)
        found |= fits
    return found


_BLANKS = np.array([ord(letter) for letter in " \t\n\r\f\v"], dtype=np.uint32)


def normalise(answer: str) -> str:
    r"""An answer without what does not change its meaning: ``$``, ``\text``, ``\left``, spacing, a final full stop."""
    text = answer.strip()
    if len(text) > MAX_ANSWER_CHARS:
        return text
    if not text.isascii():
        text = _to_ascii(text)
    text = _MATH_ENDS.sub(" ", _strip_dollars(text))
    boxed = _WHOLE_BOX.fullmatch(text)
    text = boxed[1] if boxed else text
    text = _ROOT.sub(r"\\sqrt{\1\2}", _BARE_COMMAND.sub(r"\\\1", text))
    text = _SIZES.sub("", _TEXT.sub(r"\1", _TEXT.sub(r"\1", text)))
    text = _OVER.sub(r"\\frac{\1}{\2}", text)
    text = _DEGREE.sub(r"^\\circ", _TIMES_TEN.sub(r"\\times ", text))
    bold = _BOLD.fullmatch(text)
    text = (bold[1] if bold else text).replace("**", "^")
    text = _TWO_DIGITS.sub(r"\\\1{\2}{\3}", text)
    text = _SIGNED_POWER.sub(r"^{\1}", _SPACE_AT_END.sub("", text))
    text = _PUNCTUATION.sub(r"\1", _THIN.sub(r"\1 ", text))
    for old, new in _REPLACEMENTS:
        text = text.replace(old, new)
    text = " ".join(text.split())
    if text.endswith(".") and not text.endswith(".."):
        text = text[:-1].rstrip()
    text = _PERCENT.sub("%", _strip_dollars(text))
    text = _INFINITE.get(text.casefold(), text)
    letter = _LETTER.fullmatch(text)
    return letter[1] if letter else text


def _to_ascii(text: str) -> str:
    """Digits, signs and letters that mean the same in ASCII; the rest stays as it is."""
    text = _CURRENCY.sub(_with_currency, text)
    text = _LOWERED.sub(lambda match: f"_{{{match[0].translate(_FROM_LOWERED)}}}", text)
    text = _RAISED.sub(lambda match: f"^{{{match[0].translate(_FROM_RAISED)}}}", text)
    text = "".join(map(_plain_letter, text))
    return _RADICAL.sub(r"\\sqrt{\1\2}", text)


def _plain_letter(letter: str) -> str:
    if letter.isascii():
        return letter
    if letter in _SIGNS:
        return _SIGNS[letter]
    if letter.isdecimal():
        return str(int(letter))
    if "\uff01" <= letter <= "\uff5e" or "\U0001d400" <= letter <= "\U0001d7ff":  # full width; bold, script, ...
        return unicodedata.normalize("NFKC", letter)
    if unicodedata.decomposition(letter).startswith("<fraction>"):
        return "\\frac{{{}}}{{{}}}".format(*unicodedata.normalize("NFKC", letter).split("\u2044"))
    return letter


_CURRENCY = re.compile(r"([+-]?)\s?([€£¥₹])\s?([^€£¥₹¢]+)|([^€£¥₹¢]+?)\s?([€£¥₹¢])")
"""The whole of an answer: `€5`, `5 €`."""
_CURRENCIES = {"€": "euros", "£": "sterling", "¥": "yen", "₹": "rupees", "¢": "cents"}


def _with_currency(match: re.Match[str]) -> str:
    """The amount, and the currency's name behind it."""
    if match[0] != match.string:
        return match[0]
    sign, before, amount, amount_first, after = match.groups("")
    return f"{sign}{amount}{amount_first} {_CURRENCIES[before or after]}"


_LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_FROM_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
_FROM_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_RADICAL = re.compile(r"√\s?(?:(\d+|[a-zA-Z])|\(([^()]*)\))")
_SIGNS = {
    "\u200b": "",
    "\u2060": "",
    "\ufeff": "",
    "\u3000": " ",
    "\u00a0": " ",
    "\u2009": " ",
    "\u202f": " ",
    "−": "-",
    "–": "-",
    "—": "-",
    "‐": "-",
    "‑": "-",
    "‒": "-",
    "﹣": "-",
    "⁄": "/",
    "∕": "/",
    "÷": "/",
    "×": "\\times ",
    "·": "\\cdot ",
    "⋅": "\\cdot ",
    "π": "\\pi ",
    "∞": "\\infty ",
    "±": "\\pm ",
    "∓": "\\mp ",
    "°": "^\\circ",
    "º": "^\\circ",
    "、": ",",
    "≤": "\\le ",
    "≥": "\\ge ",
    "≠": "\\ne ",
    "≈": "\\approx ",
    "∪": "\\cup ",
    "∩": "\\cap ",
    "∈": "\\in ",
    "∅": "\\emptyset ",
    "θ": "\\theta ",
    "α": "\\alpha ",
    "β": "\\beta ",
    "∨": "\\lor ",
    "∧": "\\land ",
    "ℝ": "\\mathbb{R}",
    "′": "'",
    "％": "%",
}
"""Minus signs, spaces that cannot be seen, and what LaTeX has a command for. Marks that change the direction of
writing or strike a letter out are not here: they are left, and nothing is equal to them but themselves."""
_MATH_ENDS = re.compile(r"(?<!\\)\$(?!\d[^$]*$)|(?<=.)(?<!\\)\$|(?<!\\)\\[()\[\]]")
"""Where formulas within a text begin and end: what stands on both sides is two things, ``$5$ $6$``."""
_PUNCTUATION = re.compile(r"(?<![\\a-zA-Z}\]_^])\{([:./!;*+ -])\}")
"""In braces for its spacing: ``10{:}30``."""
_WHOLE_BOX = re.compile(r"\\(?:boxed|fbox)\{([^{}]*)\}")
_TEXT = re.compile(r"\\(?:(?:text|math)(?:rm|bf|it|sf|tt|normal)?|mbox|emph|boldsymbol|bm|operatorname)\s?\{([^{}]*)\}")
"""How letters look; inside of one another two deep."""
_SIZES = re.compile(
    r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|tiny|small|normalsize|large|Large|LARGE|huge|Huge|!)(?![a-zA-Z])"
)
_BOLD = re.compile(r"\*\*([^*]+)\*\*")
"""Markdown's, around all of the answer."""
_BARE_COMMAND = re.compile(r"(?<![a-zA-Z\\])(pi|sqrt|ln|log|sin|cos|tan|exp)(?![a-zA-Z])")
_TWO_DIGITS = re.compile(r"\\([dtc]?frac|[dt]?binom)(?=\s|\d)\s?([a-zA-Z\d])\s?([a-zA-Z\d])")
"""TeX takes one digit or letter each: \\frac123 is 3/2."""
_SIGNED_POWER = re.compile(r"\^\s?([+-]\d+)")
_SPACE_AT_END = re.compile(r"(?:\s|\\q?quad(?![a-zA-Z]))+$")
_OVER = re.compile(r"\{([^{}]*)\\over(?![a-zA-Z])([^{}]*)\}")
_DEGREE = re.compile(r"\^?\s?\{?\\degree(?![a-zA-Z])\}?")
_TIMES_TEN = re.compile(r"(?<=\d)\s?[xX]\s?(?=10\s?\^)")
"""The letter, between a number and a power of ten."""
_PERCENT = re.compile(r"(?<=[\d}])\s?per\s?cent$", re.IGNORECASE)
_INFINITE = {"infinity": "\\infty", "+infinity": "\\infty", "-infinity": "-\\infty", "+\\infty": "\\infty"}
_THIN = re.compile(r"(?<!\\)((?:\\\\)*)\\[ ,;:>]")
"""A command for space; behind a line break of a matrix there is none."""
_ROOT = re.compile(r"\\sqrt\s?(?:\(([^(){}]*)\)|(\d))")
"""math-verify reads 4\\sqrt(2) as 4."""
_LETTER = re.compile(r"\(([A-Za-z])\)")
"""A choice: (A) is A."""
_REPLACEMENTS = (
    ("\\dfrac", "\\frac"),
    ("\\tfrac", "\\frac"),
    ("\\cfrac", "\\frac"),
    ("\\nicefrac", "\\frac"),
    ("\\sfrac", "\\frac"),
    ("~", " "),
    ("{,}", ","),
    ("{}", ""),
    ("\\%", "%"),
    ("\\$", ""),
    (">=", "\\ge "),
    ("<=", "\\le "),
    ("\\langle", "("),
    ("\\rangle", ")"),
    ("\\varnothing", "\\emptyset"),
    ("\\{\\}", "\\emptyset"),
    ("\\approx", "="),
)


def _strip_dollars(text: str) -> str:
    for opening, closing in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        if len(text) >= len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing):
            return text[len(opening) : -len(closing)].strip()
    return text.removeprefix("$").strip() if text.count("$") == 1 else text
