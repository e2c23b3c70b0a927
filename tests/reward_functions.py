"""Reward functions that tests name as ``tests.reward_functions:NAME``: run by a real reward worker."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from r1async.tasks.meta import Question
from r1async.types import Completion


def digit_share(question: Question, completion: Completion) -> float:
    """Varies from completion to completion even where the model is random, so that advantages are not all zero."""
    del question
    return sum(c.isdigit() for c in completion.text) / max(1, len(completion.text))


def flagged(question: Question, completion: Completion) -> float:
    """`digit_share`, until the file that FLAG names exists: then the same for every completion."""
    return 0.5 if Path(os.environ["FLAG"]).exists() else digit_share(question, completion)


def unhurried(question: Question, completion: Completion) -> float:
    """`digit_share` after 0.1 s: a run lasts at least that long for each of its rollouts."""
    time.sleep(0.1)
    return digit_share(question, completion)


def hangs_once(question: Question, completion: Completion) -> float:
    """`digit_share`, but the first call of all never returns."""
    try:
        Path(os.environ["FLAG"]).touch(exist_ok=False)
    except FileExistsError:
        return digit_share(question, completion)
    while True:
        signal.pause()
