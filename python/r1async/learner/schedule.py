"""Learning rate by step: linear warm-up, then constant, or down to zero at the last step."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["constant", "linear", "cosine"]


def lr_factor(schedule: Schedule, step: int, *, warmup_steps: int, steps: int) -> float:
    """What the peak learning rate is multiplied by in step `step` of `steps`, counted from 0.

    The warm-up reaches 1 in step `warmup_steps`; its first step is not zero, or it would train nothing.
    The decay would reach 0 one step after the last, for the same reason.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    return 1.0 - done if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
