"""Reward functions that tests name as ``tests.reward_functions:NAME``: run by a real reward worker."""

from __future__ import annotations

from r1async.tasks.meta import Question
from r1async.types import Completion


def digit_share(question: Question, completion: Completion) -> float:
    """Varies from completion to completion even where the model is random, so that advantages are not all zero."""
    del question
    return sum(c.isdigit() for c in completion.text) / max(1, len(completion.text))
