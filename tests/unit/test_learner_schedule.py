"""Learning-rate schedules by hand."""

from __future__ import annotations

import pytest
from r1async.learner.schedule import lr_factor


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.25, 0.5, 0.75, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.25, 0.5, 0.75, 1.0, 0.8535534, 0.5, 0.1464466]),
    ],
)
def test_warm_up_then_decay_that_never_reaches_zero(schedule, expected):
    assert [lr_factor(schedule, step, warmup_steps=3, steps=7) for step in range(7)] == pytest.approx(expected)


def test_without_warm_up_the_first_step_has_the_peak():
    assert lr_factor("cosine", 0, warmup_steps=0, steps=10) == 1.0


def test_past_the_end_there_is_nothing():
    assert lr_factor("linear", 99, warmup_steps=0, steps=10) == 0.0
