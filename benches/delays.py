"""Verdicts that take their time, for runs that are to show what waiting for them costs.

    r1async run configs/demo.yaml reward.deadline_s=20 scorer.workers=32 \
        'reward.weights={accuracy: 1.0, format: 0.2, "benches.delays:long_tail": 0.0}'

Run it from the root of the repository with ``PYTHONPATH=.``.
"""

from __future__ import annotations

import math
import random
import time
import zlib

from r1async.tasks.meta import Question
from r1async.types import Completion

MEDIAN_S, SIGMA, LONGEST_S = 0.1, 1.6, 4.0


def long_tail(question: Question, completion: Completion) -> float:
    """Nothing, after a lognormal time that follows from the texts; the longest are 40 times the median."""
    rng = random.Random(zlib.crc32(f"{question.text}{completion.text}".encode()))
    time.sleep(min(LONGEST_S, MEDIAN_S * math.exp(SIGMA * rng.gauss(0.0, 1.0))))
    return 0.0
