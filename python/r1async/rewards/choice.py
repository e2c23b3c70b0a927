"""Multiple choice: which letter does a completion settle on?

The last `<answer>…</answer>` or box counts, else the last line that says `Answer: X` (the form that MMLU's and GPQA's
zero-shot prompts ask for). Such a line behind the last box goes before it unless the box names a letter: it may hold a
number on the way. What follows the letter may be the text of that option and nothing else; a completion that names two
letters, or none, has not answered.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from r1async.answers import extract_answer, last_tagged

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_SAYS = re.compile(
    r"^[ \t>*_#-]*(?:the\s+|my\s+)?(?:final\s+|correct\s+)?(?:answer|choice|option)(?:\s+is)?"
    r"[*_ \t]*[:：]?[*_ \t]*(.*)$",
    re.IGNORECASE | re.MULTILINE,
)
_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mathbf)\s?\{([^{}]*)\}")
_LETTER = re.compile(r"\(?([A-Z])(?:\)|(?![A-Za-z0-9]))\s*[.:)、-]?\s*(.*)", re.DOTALL)


def chosen_letter(text: str, options: Sequence[str]) -> str:
    """The letter that a completion answers with, "" if it names none or several.

    Args:
        text: the completion.
        options: texts of the options, A first.
    """
    answer = extract_answer(text)
    letter = "" if answer is None else _letter_of(answer, options)
    named = bool(letter) and answer is not None and _LETTER.fullmatch(_plain(answer)) is not None
    if named or last_tagged(text) is not None:
        return letter
    behind = text if answer is None else text[max(text.rfind("\\boxed"), text.rfind("\\fbox"), 0) :]
    said = _SAYS.findall(behind)
    return _letter_of(said[-1], options) if said else letter


def _letter_of(answer: str, options: Sequence[str]) -> str:
    plain = _plain(answer)
    match = _LETTER.fullmatch(plain)
    if match is None:
        # The option's text instead of its letter, where only one option has it.
        same = [letter for letter, option in zip(LETTERS, options, strict=False) if _same(plain, option)]
        return same[0] if len(same) == 1 else ""
    letter, rest = match.groups()
    place = LETTERS.index(letter)
    if place >= len(options):
        return ""
    return letter if not rest.strip(" .") or _same(rest, options[place]) else ""


def _plain(answer: str) -> str:
    text = _TEXT.sub(r"\1", answer).replace("$", "").replace("*", "").strip().strip("`_").strip()
    said = _SAYS.fullmatch(text)
    return (said[1] if said else text).strip()


def _same(given: str, option: str) -> bool:
    return " ".join(given.split()).strip(" .").casefold() == " ".join(option.split()).strip(" .").casefold() != ""
