"""The worker that asks endpoints: one rollout's failure is its own, and results can always be written."""

from __future__ import annotations

import os
import threading

from r1async.config import RewardConfig
from r1async.reward_pools import pools_of
from r1async.rewards import asking
from r1async.rewards.asking import AskingWorker
from r1async.rewards.worker import read_frame, result_of, write_frame
from r1async.tasks.meta import Question, encode_meta
from r1async.types import Completion, Verdict

from tests.unit.test_reward_pools import MIXED, SCORER


class Plays:
    """A part that fails where the completion says so."""

    def __init__(self, reward: RewardConfig) -> None: ...

    async def __aenter__(self) -> Plays:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def grade(self, question: Question, completion: Completion) -> Verdict:
        if completion.text == "fail":
            raise UnicodeEncodeError("utf-8", "\ud83d", 0, 1, "surrogates not allowed")
        return Verdict(total=1.0, detail="cut \ud83d" if completion.text == "half" else "")


def test_failure_of_one_rollout_leaves_the_others_their_verdicts(monkeypatch):
    monkeypatch.setattr(asking, "PARTS", {"judge": Plays})
    meta = encode_meta(Question(text="?", answer="5"))
    (jobs_out, jobs_in), (results_out, results_in) = os.pipe(), os.pipe()
    texts = ("good", "fail", "half", "good")
    results = {}
    with os.fdopen(results_out, "rb") as given, os.fdopen(results_in, "wb") as outgoing:
        worker = AskingWorker(outgoing, MIXED, pools_of(MIXED, SCORER)["judge"])
        with os.fdopen(jobs_out, "rb") as incoming:
            thread = threading.Thread(target=worker.serve, args=(incoming,))
            thread.start()
            with os.fdopen(jobs_in, "wb") as jobs:
                for key, text in enumerate(texts):
                    write_frame(jobs, [(key, meta, text, 1, "stop", "general")])
                for _ in texts:
                    ((key, total, _, status, _, detail),) = read_frame(given)  # pyright: ignore[reportGeneralTypeIssues]
                    results[key] = (total, status, detail)
            thread.join()
    assert results == {0: (1.0, "ok", ""), 1: (None, "error", ""), 2: (1.0, "ok", "cut ?"), 3: (1.0, "ok", "")}


def test_result_holds_nothing_that_the_pipe_cannot_carry():
    verdict = Verdict(total=1.0, parts={"a\ud83d": 1.0}, status="s\udc00", detail="dé\ud83d")
    assert result_of(7, verdict, 0.5) == (7, 1.0, {"a?": 1.0}, "s?", 0.5, "dé?")
