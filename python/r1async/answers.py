"""What a completion answers, and an answer without what does not change its meaning.

Shared by the roles that read completions: the grader compares such answers with a reference, the evaluator counts
them as votes. docs/rewards.md has the rules.
"""

from __future__ import annotations

import re

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
