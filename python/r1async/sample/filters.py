"""Which completions are kept, and why the others are not. Pure: the same completion under the same settings, always."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from r1async.config import RewardConfig
from r1async.config_sample import KeepConfig
from r1async.rewards.format import thought_of
from r1async.sample.overlap import tokens_of

_FENCE = re.compile(r"```|~~~")
_BLANK = re.compile(r"\n\s*\n")
REASONS = (
    "abstained", "truncated", "not_graded", "below", "mixed_language", "long_paragraph", "code_in_thought",
    "contaminated", "duplicate", "enough_of_this_prompt", "beyond_the_ratio",
)  # fmt: skip
"""Why a completion is dropped: the first that holds, in this order. `below` names the part, `contaminated` the set."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Graded:
    """One completion with its verdict."""

    ordinal: int
    """Its prompt's."""
    member: int
    text: str
    tokens: int
    finish: str
    total: float | None
    parts: Mapping[str, float]
    status: str


def why_not(graded: Graded, keep: KeepConfig, reward: RewardConfig) -> str | None:
    """The first reason against a completion that its own text and verdict give; None if there is none."""
    if graded.total is None:
        return "abstained"
    if graded.finish != "stop" and not keep.truncated:
        return "truncated"
    known = {part: least for part, least in keep.parts.items() if part in graded.parts}
    if keep.parts and not known:
        return "not_graded"
    for part, least in known.items():
        if graded.parts[part] < least - 1e-6:
            return f"below:{part}"
    if keep.min_language and graded.parts.get("language", 1.0) < keep.min_language:
        return "mixed_language"
    if keep.max_paragraph_chars and longest_paragraph(graded.text) > keep.max_paragraph_chars:
        return "long_paragraph"
    thought = thought_of(
        graded.text, reward.format, think_prefilled=reward.think_prefilled, special_token=reward.special_token
    )
    if not keep.code_in_thought and _FENCE.search(thought):
        return "code_in_thought"
    return None


def longest_paragraph(text: str) -> int:
    """Characters of the longest stretch without an empty line."""
    return max(len(paragraph.strip()) for paragraph in _BLANK.split(text))


def fingerprint(prompt: str, completion: str) -> bytes:
    """Equal for texts that differ in case, spacing or punctuation alone."""
    both = [" ".join(tokens_of(text)) for text in (prompt, completion)]
    return hashlib.blake2b("\n".join(both).encode(), digest_size=16).digest()
