"""Scoring pools as scorers see them: room by pool, and messages of one pool each."""

import numpy as np
import pytest

from tests.core_peers import Generator, Learner, Run, Scorer

POOLS = {"slow_pools": [("judge", 100.0, 0), ("swe", 100.0, 0)], "group_size": 2, "max_staleness": 3, "pacing": 3}


def finished_groups() -> Run:
    """Eight groups of two, none scored: even prompts are graded in `rules`, odd ones in `judge`."""
    run = Run(**POOLS)
    run.place_of = lambda ordinal: (0, ordinal % 2)
    learner = Learner(run)
    learner.tell("published", version=0, hash="hash-0")
    generator = Generator(run)
    generator.ready(free=16)
    generator.finish()
    return run


def ready(run: Run, scorer: Scorer, free: int, **pools: int) -> list[tuple[str, list[int]]]:
    """Grants room; the pool and the groups of each message that comes."""
    others = [[name, room] for name, room in pools.items()]
    run.send(scorer.name, {"t": "ready", "free": free, "pools": others, "leases_seen": scorer.seen})
    messages = run.take_all(scorer.name, "score")
    scorer.seen += sum(len(message.header["items"]) for message in messages)
    return [(message.header["pool"], [item[2] for item in message.header["items"]]) for message in messages]


def test_a_full_pool_holds_back_its_own_rollouts_alone():
    run = finished_groups()
    scorer = Scorer(run)
    assert ready(run, scorer, 3) == [("rules", [0, 0, 2])]
    assert ready(run, scorer, 2, judge=3) == [("rules", [2, 4]), ("judge", [1, 1, 3])]
    assert ready(run, scorer, 0, judge=1) == [("judge", [3])]
    assert run.buffer.stats()["unscored_by_pool"] == {"rules": 3, "judge": 4, "swe": 0}


def test_scorers_that_serve_one_pool_each_share_the_work():
    run = finished_groups()
    rules, judge = Scorer(run, "scorer-0"), Scorer(run, "scorer-1")
    assert ready(run, judge, 0, judge=99) == [("judge", [1, 1, 3, 3, 5, 5, 7, 7])]
    assert ready(run, rules, 99) == [("rules", [0, 0, 2, 2, 4, 4, 6, 6])]


def test_room_of_a_pool_that_the_run_does_not_have_is_refused():
    run = finished_groups()
    scorer = Scorer(run)
    assert ready(run, scorer, 1, jugde=1) == []
    error = run.error(scorer.name)
    assert error["code"] == "invalid"
    assert error["message"] == 'no pool "jugde"; this run has rules, judge, swe'


def test_evaluated_prompts_go_to_the_pool_that_is_named():
    run = finished_groups()
    scorer, generator = Scorer(run), Generator(run, "generator-1")
    run.hello("evaluator-0")
    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_tokens": 8, "greedy": False}
    header = {"t": "evaluate", "id": "x", "pin": [1, 0], "samples": 1, "sampling": sampling, "metas": [b"{}"] * 2}
    columns = {"prompt_tokens": np.array([1, 2], np.int32), "prompt_lens": np.array([1, 1], np.int32)}
    run.send("evaluator-0", {**header, "pools": ["swe", "nobody"]}, columns)
    assert "no pool" in run.error("evaluator-0")["message"]
    run.send("evaluator-0", {**header, "pools": ["swe"]}, columns)
    assert run.error("evaluator-0")["code"]
    run.send("evaluator-0", {**header, "pools": ["swe", "rules"]}, columns)
    assert run.take("evaluator-0", "accepted").header["groups"] == 2
    generator.ready(free=0, eval_free=2)
    generator.finish()
    assert run.buffer.stats()["unscored_by_pool"]["swe"] == 1
    assert [pool for pool, _ in ready(run, scorer, 0, swe=9)] == ["swe"]


def test_a_pool_that_is_not_there_is_refused_at_the_border():
    run = Run(**POOLS)
    run.feeds = False
    with pytest.raises(ValueError, match="pool 3; want below 3"):
        run.buffer.admit(0, np.array([1], np.int32), b"{}", 0.0, 0, 3)
