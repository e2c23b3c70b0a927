"""Format: is the completion laid out as the template asks? One linear scan for four tags, no regular expressions.

The usual pattern (``^<think>.*?</think>\\s*<answer>.*?</answer>$`` with DOTALL) accepts two answers, nested thoughts
and blank ones; here each tag occurs exactly once, in order, and both parts say something.
"""

from __future__ import annotations

from typing import Literal

Layout = Literal["r1_zero", "think"]


def in_format(text: str, layout: Layout, *, think_prefilled: bool = False) -> bool:
    """Whether a completion has its layout, white space around the tags aside.

    Args:
        layout: ``r1_zero``: ``<think>…</think><answer>…</answer>`` and nothing else. ``think``: ``<think>…</think>``
            and a non-empty rest.
        think_prefilled: the prompt ended in <think>, so the completion begins inside the thought.
    """
    text = text.strip()
    if text.count("<think>") != (0 if think_prefilled else 1) or text.count("</think>") != 1:
        return False
    if not think_prefilled and not text.startswith("<think>"):
        return False
    head, _, rest = text.partition("</think>")
    thought, rest = head.removeprefix("<think>").strip(), rest.strip()
    if not thought or not rest:
        return False
    return layout == "think" or _is_one_answer(text, rest)


def _is_one_answer(text: str, rest: str) -> bool:
    if text.count("<answer>") != 1 or text.count("</answer>") != 1:
        return False
    if not (rest.startswith("<answer>") and rest.endswith("</answer>")):
        return False
    return bool(rest[len("<answer>") : -len("</answer>")].strip())
