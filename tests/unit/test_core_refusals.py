"""What the rollout buffer refuses: hostile frames, strangers, impossible reports, settings that cannot work."""

from typing import Any

import numpy as np
import pytest
from core_peers import Generator, Learner, Run, accounts, crew, evaluate, settings, work
from r1async import _core
from r1async.wire import MAGIC, pack

HOSTILE = [
    (b"", "malformed", "not a message of this protocol"),
    (b"\x80\x04\x95pickle", "malformed", "not a message of this protocol"),
    (MAGIC + b"\xff\xff\xff\xff" + b"x" * 64, "malformed", "header of 4294967295 bytes in a frame of 72"),
    (MAGIC + b"\x08\0\0\0" + b"\x81\xa1t\xdd\xff\xff\xff\xff", "malformed", "a longer list or map"),
    (b"\0" * ((1 << 20) + 1), "too_big", "buffer.max_message_bytes"),
    (pack({"t": "shutdown"}), "unknown_type", 'unknown message type "shutdown"'),
    (pack({"t": "heartbeat"}), "malformed", "heartbeat: stats must be given"),
    (pack({"t": "heartbeat", "stats": {"a": "b"}}), "malformed", "stats.a must be a number"),
]
ROLLOUTS_HOSTILE = [
    (pack({"t": "chunks", "items": []}), "malformed", "column tokens must be i4"),
    (pack({"t": "ready", "free": -1}), "malformed", "free must be an integer >= 0, got -1"),
    (pack({"t": "verdicts", "items": []}), "role", "not a message of a generator"),
    (
        pack(
            {"t": "chunks", "items": [], "verdicts": [[1, 1.0, {}, "ok"]]},
            {"tokens": np.zeros(0, np.int32), "logprobs": np.zeros(0, np.float32)},
        ),
        "role",
        "a generator does not grade",
    ),
    (pack({"t": "committed", "epoch": 1, "step": 1}), "role", "not a message of a generator"),
    (pack({"t": "announce", "items": [[1, 2]]}), "malformed", "items[0] must be [lease, rollout, offset]"),
]
BATCHES_HOSTILE = [
    (pack({"t": "ready", "free": 1}), "role", "not a message of a learner"),
    (pack({"t": "next_batch", "epoch": 1, "step": 9, "part": 0, "rank": 0, "world": 1}), "invalid", "step 9"),
    (pack({"t": "next_batch", "epoch": 7, "step": 0, "part": 0, "rank": 0, "world": 1}), "epoch", "epoch 7"),
    (pack({"t": "stepped", "epoch": 1, "step": 5, "metrics": {}}), "version", "5"),
    (pack({"t": "published", "epoch": 1, "version": 50, "hash": "x"}), "version", "50"),
    (pack({"t": "committed", "epoch": 1, "step": 5}), "version", "5"),
]


@pytest.mark.parametrize(
    ("peer", "frame", "code", "text"),
    [("generator-bad", *it) for it in HOSTILE + ROLLOUTS_HOSTILE]
    + [("learner-1-0", *it) for it in HOSTILE + BATCHES_HOSTILE],
)
def test_hostile_message_is_an_error_reply_and_disturbs_nobody(peer, frame, code, text):
    run = Run(steps=2)
    generator, scorer, learner = crew(run)
    if peer == "generator-bad":
        run.hello(peer)
    before = (accounts(run), len(generator.held))
    run.send_bytes(peer, frame)
    error = run.error(peer)
    assert error["code"] == code
    assert text in error["message"]
    assert accounts(run) == before[0]
    assert run.buffer.stats()["errors"] == {code: 1}
    learner.ask()
    work(generator, scorer)
    assert run.take(learner.name, "batch").header["total_rollouts"] == 8


@pytest.mark.parametrize("socket", ["rollouts", "batches"])
def test_stranger_is_told_to_say_hello(socket):
    run = Run()
    run.send_bytes("stranger", pack({"t": "heartbeat", "stats": {}}), socket)
    error = run.error("stranger")
    assert (error["code"], error["about"]) == ("hello", "heartbeat")


@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        ({"protocol": 2}, "protocol", "speaks protocol 1, the client 2"),
        ({"protocol": 2, "role": 5}, "protocol", "speaks protocol 1"),
        ({"run": "other"}, "run", 'this is run "test", the client wants "other"'),
        ({"role": "admin"}, "malformed", "role must be generator, scorer, evaluator or learner"),
        (
            {"role": "learner", "rank": 0, "world": 1, "epoch": 1, "step": 0},
            "role",
            "does not connect to the socket rollouts",
        ),
        ({"name": 5}, "malformed", "name must be a string"),
    ],
)
def test_hello_that_does_not_fit_is_refused(changes, code, text):
    run = Run()
    header = {"t": "hello", "protocol": 1, "role": "generator", "name": "g", "run": "test"}
    run.send("generator-0", header | changes)
    error = run.error("generator-0")
    assert (error["code"], error["about"]) == (code, "hello")
    assert text in error["message"]


def bad_chunk(run, generator, **changes):
    lease = generator.held[0]["lease"]
    item = {"offset": 0, "count": 2, "finish": None, "runs": [[1, 0, 2]]} | changes.pop("item", {})
    columns = {"tokens": np.array([1, 2], np.int32), "logprobs": np.array([-1, -2], np.float32)} | changes
    items = [[lease, item["offset"], item["count"], item["finish"], item["runs"]]]
    run.send(generator.name, {"t": "chunks", "items": items}, columns)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"logprobs": np.array([-1, np.nan], np.float32)}, "behavior logprob NaN at position 1"),
        ({"logprobs": np.array([-np.inf, 0], np.float32)}, "behavior logprob -inf at position 0"),
        ({"item": {"runs": [[1, 0, 3]]}}, "version runs of 3"),
        ({"item": {"runs": [[1, 0, 2], [1, 0, 0]]}}, "a version run of 0 tokens"),
        ({"item": {"runs": [[1, 0, 2**40]]}}, "version runs of"),
        ({"item": {"runs": [[1, 9, 2]]}}, "tokens of version 9@1"),
        ({"item": {"runs": [[3, 0, 2]]}}, "tokens of version 0@3"),
        ({"tokens": np.array([1, -2], np.int32)}, "token -2 at position 1"),
    ],
)
def test_chunk_that_cannot_be_is_refused_and_changes_nothing(changes, text):
    run = Run(steps=8)
    Learner(run)
    generator = Generator(run, slots=4)
    generator.ready()
    bad_chunk(run, generator, **changes)
    error = run.error("generator-0")
    assert (error["code"], error["about"]) == ("invalid", "chunks")
    assert text in error["message"]
    assert run.buffer.audit()["tokens"]["in"] == 0
    generator.finish()  # the same leases go on as if nothing had been said
    assert len(run.take_all("generator-0", "acks")[-1].header["items"]) == 4


def test_one_bad_item_does_not_spoil_the_others():
    run = Run(steps=8)
    Learner(run)
    generator = Generator(run, slots=4)
    generator.ready()
    items = [[it["lease"], 0, 1, None, [[1, 0, 1]]] for it in generator.held]
    columns = {"tokens": np.arange(4, dtype=np.int32), "logprobs": np.array([0, np.nan, np.nan, -1], np.float32)}
    run.send("generator-0", {"t": "chunks", "items": items}, columns)
    assert run.error("generator-0")["message"].endswith("and 1 more items")
    held = [[generator.held[at]["lease"], 1] for at in (0, 3)]
    assert run.take("generator-0", "acks").header["items"] == held


def test_incarnation_begins_the_numbers_of_all_leases():
    run = Run(incarnation=2**20 - 1)
    Learner(run)
    generator = Generator(run, slots=4)
    generator.ready()
    assert {it["lease"] >> 40 for it in generator.held} == {2**20 - 1}
    with pytest.raises(ValueError, match=r"incarnation must be below 2\^20, got 1048576"):
        Run(incarnation=2**20)


def test_weights_with_another_hash_get_no_leases():
    run = Run(steps=8)
    learner = Learner(run)
    learner.tell("published", version=0, hash="right")
    generator = Generator(run, slots=4)
    generator.ready()  # says hash-0
    error = run.error("generator-0")
    assert error["code"] == "version"
    assert "weights of version 0@1 have hash right, installed are hash-0" in error["message"]
    assert not generator.held


@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        ({"pin": [1, 9]}, "version", "version 9@1, which no learner has made"),
        ({"samples": 0}, "malformed", "samples must be 1..65536"),
        ({"metas": [b"{}"]}, "malformed", "column prompt_lens"),
        ({"id": "before"}, "invalid", "runs already"),
        (
            {"sampling": {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "max_tokens": 5, "greedy": False}},
            "invalid",
            "temperature",
        ),
    ],
)
def test_evaluation_that_cannot_run_is_refused(changes, code, text):
    run = Run(steps=1)
    Learner(run)
    run.hello("evaluator-0")
    evaluate(run, "evaluator-0", id="before")
    evaluate(run, "evaluator-0", **changes)
    error = run.error("evaluator-0")
    assert error["code"] == code
    assert text in error["message"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"group_size": 0}, "group_size must be"),
        ({"pacing": 3}, "pacing must be at most max_staleness = 1, got 3"),
        ({"over_age": "keep"}, 'over_age must be one of mask, drop, train, got "keep"'),
        ({"baseline": "median"}, "baseline must be one of std, mean, leave_one_out, none"),
        ({"peer_deadline_s": 0.0}, "peer_deadline_s must be a number of seconds above 0, got 0"),
        ({"run": ""}, "run must be 1 to 256 bytes"),
        ({"max_message_bytes": 10}, "max_message_bytes must be at least 1024, got 10"),
        ({"micro_batch_tokens": 0}, "micro_batch_tokens must be at least 1"),
        ({"waste_budget": 1.5}, "waste_budget must be 0 to 1, got 1.5"),
    ],
)
def test_setting_that_cannot_work_is_named(changes, text):
    with pytest.raises(ValueError, match=text):
        settings(**changes)


def test_wrong_calls_of_our_own_raise():
    buffer = _core.Buffer(settings())
    untyped: Any = buffer
    with pytest.raises(ValueError, match='socket must be "rollouts" or "batches"'):
        untyped.handle("events", b"x", b"", 0.0)
    with pytest.raises(ValueError, match="now must be finite"):
        buffer.tick(float("nan"))
    with pytest.raises(ValueError, match="contiguous"):
        buffer.handle("rollouts", b"x", memoryview(b"abcdef")[::2], 0.0)
