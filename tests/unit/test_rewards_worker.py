"""What a worker makes of an error in a part of the reward."""

import io

import pytest
from r1async.config import RewardConfig
from r1async.rewards.compose import JUDGES
from r1async.rewards.worker import Worker, read_frame
from r1async.tasks.meta import Question, encode_meta
from r1async.types import Completion, Verdict


def _breaks_over(word: str):
    def judge(question: Question, completion: Completion) -> Verdict:
        if word in completion.text:
            raise ZeroDivisionError(word)
        return Verdict(total=1.0)

    return judge


def test_an_error_in_a_part_costs_its_rollout_and_no_other(monkeypatch: pytest.MonkeyPatch, caplog):
    """Were the worker to die of it, the others would wait for a new one, and this one would be tried as often."""
    monkeypatch.setitem(JUDGES, "format", lambda settings, before_slow: _breaks_over("bad"))
    out = io.BytesIO()
    worker = Worker(out, RewardConfig(weights={"format": 1.0}))
    meta = encode_meta(Question(text="?", answer=""))
    worker.grade([(i, meta, text, 1, "stop", "") for i, text in enumerate(("good", "bad", "good"))])
    out.seek(0)
    results = []
    while out.tell() < len(out.getvalue()):
        frame = read_frame(out)
        assert isinstance(frame, list)
        results += frame
    assert [(key, total, status) for key, total, _, status, _, _ in results] == [
        (0, 1.0, "ok"),
        (1, None, "error"),
        (2, 1.0, "ok"),
    ]
    assert "ZeroDivisionError" in caplog.text
