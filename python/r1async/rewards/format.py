"""Format: is the completion laid out as the template asks? One linear scan for four tags, no regular expressions.

The usual pattern (``^<think>.*?</think>\\s*<answer>.*?</answer>$`` with DOTALL) accepts two answers, nested thoughts
and blank ones; here each tag occurs exactly once, in order, and both parts say something.
"""

from __future__ import annotations

import re
from typing import Literal

Layout = Literal["r1_zero", "think", "special_token"]

SPECIAL_TOKEN = "|special_token|"
_FILLERS = "\u115f\u1160\u2800\u3164\uffa0"
"""Letters and signs of Unicode that cannot be seen."""
_SAYS = re.compile(rf"[^\W_{_FILLERS}]")
"""A letter or digit: a thought of dots or of spaces that cannot be seen is empty."""


def in_format(text: str, layout: Layout, *, think_prefilled: bool = False, special_token: str = SPECIAL_TOKEN) -> bool:
    """Whether a completion has its layout, white space around the tags aside.

    Args:
        layout: ``r1_zero``: ``<think>…</think><answer>…</answer>`` and nothing else. ``think``: ``<think>…</think>``
            and a non-empty rest. ``special_token``: ``|special_token|…|special_token|…``, reasoning and summary
            (DeepSeek-R1, 2.3.1).
        think_prefilled: the prompt ended in the opening tag, so the completion begins inside the thought.
        special_token: the mark of that layout.
    """
    text = text.strip()
    if layout == "special_token":
        return _is_marked(text, think_prefilled, special_token)
    if text.count("<think>") != (0 if think_prefilled else 1) or text.count("</think>") != 1:
        return False
    if not think_prefilled and not text.startswith("<think>"):
        return False
    head, _, rest = text.partition("</think>")
    thought, rest = head.removeprefix("<think>").strip(), rest.strip()
    if not _SAYS.search(thought) or not _is_visible(rest):
        return False
    return layout == "think" or _is_one_answer(text, rest)


def thought_of(text: str, layout: Layout, *, think_prefilled: bool = False, special_token: str = SPECIAL_TOKEN) -> str:
    """The chain of thought of a completion, in format or not: what is before its first end, all of it if there is none.

    So nothing is gained by a tag that is missing or doubled.
    """
    text = text.strip()
    opening, closing = (special_token, special_token) if layout == "special_token" else ("<think>", "</think>")
    if not think_prefilled:
        text = text.removeprefix(opening)
    return text.partition(closing)[0].replace("<think>", " ").strip()


def summary_of(text: str, layout: Layout, *, think_prefilled: bool = False, special_token: str = SPECIAL_TOKEN) -> str:
    """What a completion says after its thought; empty if the thought does not end.

    A completion without any thought is all summary, unless its prompt began one.
    """
    text = text.strip()
    opening, closing = (special_token, special_token) if layout == "special_token" else ("<think>", "</think>")
    if not think_prefilled and not text.startswith(opening):
        # Prose before a thought is no summary of it, and neither is what stands behind a lonely end.
        return text if opening not in text and closing not in text else ""
    _, _, summary = (text if think_prefilled else text.removeprefix(opening)).partition(closing)
    return summary.strip()


def _is_marked(text: str, prefilled: bool, mark: str) -> bool:
    if text.count(mark) != (1 if prefilled else 2) or not (prefilled or text.startswith(mark)):
        return False
    thought, _, summary = text.removeprefix("" if prefilled else mark).partition(mark)
    return bool(_SAYS.search(thought)) and _is_visible(summary)


def _is_visible(text: str) -> bool:
    return any(not letter.isspace() and letter.isprintable() and letter not in _FILLERS for letter in text)


def _is_one_answer(text: str, rest: str) -> bool:
    if text.count("<answer>") != 1 or text.count("</answer>") != 1:
        return False
    if not (rest.startswith("<answer>") and rest.endswith("</answer>")):
        return False
    return _is_visible(rest[len("<answer>") : -len("</answer>")])
