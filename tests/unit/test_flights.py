"""The books of requests in an engine elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
from r1async.generator.engine import EngineError, Request
from r1async.generator.flights import Flights
from r1async.types import PolicyVersion, VersionRun

from tests.engine_runs import PLAIN

V1, V2 = PolicyVersion(1, 1), PolicyVersion(1, 2)


def flights(chunk_tokens: int = 2) -> tuple[Flights, list[int]]:
    told: list[int] = []
    made = Flights(2, chunk_tokens, lambda: told.append(1))
    made.begin([Request(id=1, rollout=1, prompt_ids=np.array([5], np.int32), sampling=PLAIN)])
    return made, told


def test_tokens_are_due_by_the_chunk_and_told_once():
    made, told = flights()
    made.extend(1, [7], [-1.0], V1)
    assert (made.collect(), told) == ([], [])
    made.extend(1, [8], [-2.0], V1)
    made.extend(1, [9], [-3.0], V2)
    assert told == [1]
    (progress,) = made.collect()
    assert progress.token_ids.tolist() == [7, 8, 9]
    assert progress.logprobs.tolist() == [-1, -2, -3]
    assert progress.runs == (VersionRun(version=V1, count=2), VersionRun(version=V2, count=1))
    assert progress.finish is None


def test_tokens_of_unknown_version_wait_for_the_engines_word():
    made, _ = flights(chunk_tokens=1)
    made.extend(1, [7], [-1.0], V1)
    made.extend(1, [8], [-1.0], None)
    made.extend(1, [9], [-1.0], V2)  # after a doubtful one nothing is certain
    assert [progress.token_ids.tolist() for progress in made.collect()] == [[7]]
    spans = [VersionRun(version=V1, count=2), VersionRun(version=V2, count=2)]
    made.extend(1, [4], [-1.0], None, "stop", spans)
    (progress,) = made.collect()
    assert progress.token_ids.tolist() == [8, 9, 4]
    assert progress.runs == (VersionRun(version=V1, count=1), VersionRun(version=V2, count=2))
    assert (progress.finish, len(made), made.free) == ("stop", 0, 2)


@pytest.mark.parametrize(
    ("spans", "says"),
    [
        ([VersionRun(version=V1, count=1), VersionRun(version=V2, count=3)], "token 1 was taken for version 1@1"),
        ([VersionRun(version=V1, count=3)], "cover 3 tokens, it sampled 4"),
        (None, "the versions of its tokens are not known"),
    ],
)
def test_an_end_that_is_refused_is_not_reported_as_one(spans, says):
    """Two tokens are due when the end comes: whoever collects before the failure is known must not take it for good."""
    made, _ = flights()
    made.extend(1, [7, 8], [-1.0, -1.0], V1)
    with pytest.raises(EngineError, match=says):
        made.extend(1, [9, 4], [-1.0, -1.0], None, "length", spans)
    assert all(progress.finish is None for progress in made.collect())
    assert 1 in made
    made.fail(EngineError("it contradicts itself"))
    with pytest.raises(EngineError, match="contradicts"):
        made.collect()


def test_what_is_forgotten_takes_no_tokens_and_the_unfinished_are_named():
    made, _ = flights()
    assert made.forget([1, 9]) == [1]
    made.extend(1, [7, 8], [-1.0, -1.0], V1)
    assert made.collect() == made.flush() == []


def test_greedy_tokens_have_logprob_zero_and_flush_takes_all_that_is_certain():
    from dataclasses import replace

    made = Flights(1, 10, lambda: None)
    greedy = replace(PLAIN, greedy=True)
    made.begin([Request(id=3, rollout=3, prompt_ids=np.array([5], np.int32), sampling=greedy)])
    made.extend(3, [7], [-1.0], V1)
    made.extend(3, [8], [-1.0], None)
    (progress,) = made.flush()
    assert (progress.token_ids.tolist(), progress.logprobs.tolist()) == ([7], [0.0])


def test_who_was_told_of_tokens_that_are_gone_is_told_of_the_next():
    made, told = flights(chunk_tokens=1)
    made.extend(1, [7], [-1.0], V1)
    made.forget([1])
    assert not made.busy  # so that nobody collects
    made.begin([Request(id=2, rollout=2, prompt_ids=np.array([5], np.int32), sampling=PLAIN)])
    made.extend(2, [7], [-1.0], V1)
    assert told == [1, 1]
