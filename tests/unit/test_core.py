"""The rollout buffer through its Python binding: whole conversations, hostile peers, restarts."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from core_peers import Generator, Learner, Run, Scorer, completion_of, crew, prompt_of, settings, work
from r1async import _core
from r1async.wire import MAGIC, pack


def accounts(run):
    audit = run.buffer.audit()
    assert audit["balanced"], audit["difference"]
    return {
        name: (it["in"], it["trained"], sum(it["dropped"].values()), it["live"])
        for name, it in audit.items()
        if isinstance(it, dict)
    }


def test_run_trains_its_steps_and_everything_is_accounted_for():
    run = Run(steps=3)
    generator, scorer, learner = crew(run)
    assert learner.welcome.header["steps"] == 3
    for step in range(3):
        learner.ask()
        work(generator, scorer)
        batch = run.take(learner.name, "batch")
        assert (batch.header["step"], batch.header["total_groups"], batch.header["total_rollouts"]) == (step, 2, 8)
        assert (batch.header["epoch"], batch.header["version"], batch.header["state"]) == (1, step, "running")
        learner.train()
        generator.version = (1, step + 1)
        generator.ready()
        accounts(run)
    learner.ask()
    run.take(learner.name, "finished")
    learner.commit(last=True)
    learner.tell("finish")
    books = accounts(run)
    assert books["prompts"] == (6, 6, 0, 0)
    assert books["rollouts"] == (24, 24, 0, 0)
    tokens = sum(len(completion_of(rollout)[0]) for rollout in range(24))
    assert books["tokens"] == (tokens, tokens, 0, 0)
    assert run.buffer.audit()["trained_twice"] == 0
    stats = run.buffer.stats()
    assert (stats["steps"], stats["committed"], stats["learner_finished"], stats["errors"]) == (3, 3, True, {})


def test_batch_holds_what_was_sampled_in_the_order_of_the_groups():
    run = Run(steps=1)
    generator, scorer, learner = crew(run)
    learner.ask()
    work(generator, scorer)
    batch = run.take(learner.name, "batch")
    columns, header = batch.columns, batch.header
    np.testing.assert_array_equal(columns["rollouts"], np.arange(8))
    np.testing.assert_array_equal(columns["groups"], np.repeat([0, 1], 4))
    for at, (begin, end) in enumerate(zip(columns["cu_seqlens"][:-1], columns["cu_seqlens"][1:], strict=True)):
        prompt, (tokens, logprobs) = prompt_of(at // 4), completion_of(at)
        assert columns["prompt_lens"][at] == len(prompt)
        np.testing.assert_array_equal(columns["token_ids"][begin:end], np.concatenate([prompt, tokens]))
        want = np.concatenate([np.zeros(len(prompt), np.float32), logprobs])
        np.testing.assert_array_equal(columns["behavior_logprobs"][begin:end], want)
    np.testing.assert_array_equal(columns["rewards"], np.arange(8) % 2)
    np.testing.assert_allclose(columns["advantages"], np.where(np.arange(8) % 2, 1, -1), rtol=1e-5)
    np.testing.assert_array_equal(columns["part:accuracy"], np.arange(8) % 2)
    np.testing.assert_array_equal(columns["run_lengths"], [len(completion_of(it)[0]) for it in range(8)])
    np.testing.assert_array_equal(columns["cu_runs"], np.arange(9))
    for name in ("run_versions", "over_age", "finish_versions", "truncated"):
        np.testing.assert_array_equal(columns[name], np.zeros(8))
    lengths = {name: column.dtype.str for name, column in columns.items()}
    assert lengths["groups"] == "<i8"
    assert lengths["rewards"] == "<f8"
    assert lengths["truncated"] == "|u1"
    assert header["micro_batches"] == [[0, 8]]
    assert header["parts"] == ["accuracy"]
    assert header["temperature"] == 0.75
    assert header["total_completion_tokens"] == header["total_loss_tokens"] == columns["run_lengths"].sum()


def test_torch_sees_the_columns_inside_the_frame():
    run = Run(steps=1)
    generator, scorer, learner = crew(run)
    learner.ask()
    work(generator, scorer)
    batch = run.take(learner.name, "batch")
    addresses = [(np.frombuffer(frame, np.uint8).ctypes.data, len(frame)) for frame in run.frames]
    for name in ("token_ids", "behavior_logprobs", "cu_seqlens", "advantages"):
        column = batch.columns[name]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            tensor = torch.from_numpy(column)
        assert tensor.data_ptr() == column.ctypes.data
        assert tensor.data_ptr() % 8 == 0
        assert any(begin <= tensor.data_ptr() < begin + size for begin, size in addresses)


def test_leases_never_exceed_the_room_a_generator_has():
    run = Run(steps=8)  # 4 places of 4 rollouts
    Learner(run)
    generator = Generator(run, slots=10)
    generator.ready()
    assert len(generator.held) == 8  # two groups; a third would not fit
    generator.seen = 0
    generator.ready(free=10)  # sent before the 8 arrived: they take the room, 2 credits are left
    assert len(generator.held) == 8
    generator.seen = 8
    generator.ready(free=3)  # a group needs 4
    assert len(generator.held) == 8
    generator.ready(free=4)
    assert len(generator.held) == 12
    for seen in (7, 13):
        generator.seen = seen
        generator.ready(free=0)
        error = run.error("generator-0")["message"]
        assert error == f"ready: leases_seen must be 8 (said before) to 12 (sent on this connection), got {seen}"


def test_groups_go_to_the_generator_with_most_room_and_stay_together():
    run = Run(steps=8)
    generators = [Generator(run, f"generator-{at}", slots=16) for at in range(2)]
    for generator in generators:
        generator.ready()  # nothing before a learner came
        assert not generator.held
    Learner(run)
    for generator in generators:
        generator.receive()
    assert [[it["rollout"] for it in generator.held] for generator in generators] == [
        [0, 1, 2, 3, 8, 9, 10, 11],
        [4, 5, 6, 7, 12, 13, 14, 15],
    ]
    assert generators[0].held[0]["sampling"] == {
        "temperature": 0.75,
        "top_p": 1.0,
        "top_k": 0,
        "max_tokens": 64,
        "greedy": False,
    }


def test_ready_without_leases_is_answered_alive_and_leases_are_pushed_later():
    run = Run(steps=8)
    generator = Generator(run, slots=4)
    generator.ready()
    assert run.take("generator-0", "alive").header["state"] == "waiting"
    Learner(run)
    generator.receive()
    assert len(generator.held) == 4
    run.send("generator-0", {"t": "heartbeat", "stats": {"tokens_per_s": 3.5, "slots": 4}})
    assert run.take("generator-0", "alive").header["state"] == "running"


def test_partial_rollout_goes_to_another_generator_with_its_tokens():
    run = Run(steps=8, peer_deadline_s=20.0)
    Learner(run)
    first = Generator(run, "generator-a", slots=4)
    first.ready()
    tokens = np.array([5, 6], np.int32)
    chunk = [[first.held[1]["lease"], 0, 2, None, [[1, 0, 2]]]]
    run.send("generator-a", {"t": "chunks", "items": chunk}, {"tokens": tokens, "logprobs": -tokens.astype(np.float32)})
    assert run.take("generator-a", "acks").header["items"] == [[first.held[1]["lease"], 2]]
    run.now = 19.0
    second = Generator(run, "generator-b", slots=4)
    second.ready()
    run.send("learner-1-0", {"t": "heartbeat", "stats": {}})
    run.tick(20.5)  # a is silent for 20 s
    second.slots = 8
    second.ready(free=4)
    resumed = [it for it in second.held if len(it["resume"])]
    assert [it["rollout"] for it in resumed] == [1]
    np.testing.assert_array_equal(resumed[0]["resume"], tokens)
    assert run.buffer.stats()["peers_lost"] == 1
    run.send("generator-a", {"t": "chunks", "items": chunk}, {"tokens": tokens, "logprobs": -tokens.astype(np.float32)})
    assert run.error("generator-a")["code"] == "hello"


def test_generator_that_connects_again_goes_on_with_what_it_announces():
    run = Run(steps=8)
    Learner(run)
    generator = Generator(run, slots=4)
    generator.ready()
    leases = [it["lease"] for it in generator.held]
    again = Generator(run, slots=4)  # the same connection says hello again: 2 of the 4 leases never arrived
    run.send("generator-0", {"t": "announce", "items": [[leases[0], 0, 0], [leases[3], 3, 0], [10**9, 2, 0]]})
    acks = run.take("generator-0", "acks").header
    assert acks["items"] == [[leases[0], 0], [leases[3], 0]]
    assert acks["lost"] == [10**9]
    again.ready(free=2)
    assert [it["rollout"] for it in again.held] == [1, 2]
    assert not {it["lease"] for it in again.held} & set(leases)


def test_peer_cannot_touch_what_another_has():
    run = Run(steps=8)
    Learner(run)
    generator, thief = Generator(run, slots=4), Generator(run, "generator-thief", slots=0)
    generator.ready()
    lease, rollout = generator.held[0]["lease"], generator.held[0]["rollout"]
    tokens = np.array([1], np.int32)
    columns = {"tokens": tokens, "logprobs": tokens.astype(np.float32)}
    run.send("generator-thief", {"t": "chunks", "items": [[lease, 0, 1, "stop", [[1, 0, 1]]]]}, columns)
    assert run.take("generator-thief", "acks").header["lost"] == [lease]
    run.send("generator-thief", {"t": "announce", "items": [[lease, rollout, 0]]})
    assert run.take("generator-thief", "acks").header["lost"] == [lease]
    run.send("generator-thief", {"t": "release", "leases": [lease]})
    thief.ready()
    assert run.buffer.audit()["tokens"]["in"] == 0
    generator.finish()
    assert len(run.take("generator-0", "acks").header["items"]) == 4


def test_clean_leave_hands_leases_back():
    run = Run(steps=8)
    Learner(run)
    first = Generator(run, "generator-a", slots=4)
    first.ready()
    run.send("generator-a", {"t": "bye"})
    run.take("generator-a", "gone")
    second = Generator(run, "generator-b", slots=4)
    second.ready()
    assert [it["rollout"] for it in second.held] == [0, 1, 2, 3]
    assert run.buffer.stats()["leases_lost"] == 0


def test_peer_that_cannot_be_sent_to_is_gone():
    run = Run(steps=8)
    Learner(run)
    generator = Generator(run, "generator-a", slots=4)
    generator.ready()
    run.buffer.peer_lost("rollouts", b"generator-a", run.now)
    assert run.buffer.stats()["generators"] == 0
    other = Generator(run, "generator-b", slots=4)
    other.ready()
    assert [it["rollout"] for it in other.held] == [0, 1, 2, 3]


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
    (pack({"t": "committed", "epoch": 1, "step": 1, "last": True}), "role", "not a message of a generator"),
    (pack({"t": "announce", "items": [[1, 2]]}), "malformed", "items[0] must be [lease, rollout, offset]"),
]
BATCHES_HOSTILE = [
    (pack({"t": "ready", "free": 1}), "role", "not a message of a learner"),
    (pack({"t": "next_batch", "epoch": 1, "step": 9, "rank": 0, "world": 1}), "invalid", "step 9"),
    (pack({"t": "next_batch", "epoch": 7, "step": 0, "rank": 0, "world": 1}), "epoch", "epoch 7"),
    (pack({"t": "stepped", "epoch": 1, "step": 5, "metrics": {}}), "version", "5"),
    (pack({"t": "published", "epoch": 1, "version": 50, "hash": "x"}), "version", "50"),
    (pack({"t": "committed", "epoch": 1, "step": 5, "last": False}), "version", "5"),
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


def test_verdict_that_is_not_finite_abstains():
    run = Run(steps=1)
    generator, scorer, learner = crew(run)
    generator.finish()
    scorer.receive()
    items = [[lease, float("nan") if rollout == 0 else 1.0, {}, "ok"] for lease, rollout in scorer.held]
    run.send("scorer-0", {"t": "verdicts", "items": items})
    acks = run.take("scorer-0", "acks").header
    assert len(acks["items"]) == 8
    learner.ask()
    assert run.take(learner.name, "batch").header["total_rollouts"] == 7
    assert run.buffer.stats()["abstentions"] == {"nan": 1}
    run.send("scorer-0", {"t": "verdicts", "items": items[:1]})
    assert run.take("scorer-0", "acks").header["lost"] == [items[0][0]]


def test_learner_waits_with_a_reason_told_once_per_change():
    run = Run(steps=1)
    generator, scorer, learner = crew(run)
    learner.ask()
    assert run.take(learner.name, "waiting").header["reason"] == "groups: 0 of 2 ready for step 0, 2 open"
    generator.finish(4)
    assert run.take_all(learner.name, "waiting") == []
    scorer.score()
    assert run.take(learner.name, "waiting").header["reason"].startswith("groups: 1 of 2 ready")
    run.tick(0.5)
    assert run.take_all(learner.name, "waiting") == []


def test_ranks_get_their_shares_of_one_batch():
    run = Run(steps=1, micro_batch_tokens=24)
    header = {"t": "hello", "protocol": 1, "role": "learner", "name": "learner-1-1", "run": "test"}
    run.send("learner-1-1", header | {"rank": 1, "world": 2, "epoch": 1, "step": 0})
    assert not run.inboxes["learner-1-1"]  # rank 1 is welcomed after rank 0
    first = Learner(run, rank=0, world=2)
    assert run.take("learner-1-1", "welcome").header["epoch"] == 1
    late = Learner(run, rank=1, world=2)
    generator, scorer = Generator(run), Scorer(run)
    scorer.ready()
    generator.ready()
    first.ask()
    work(generator, scorer)
    late.ask()
    one, two = run.take(first.name, "batch"), run.take(late.name, "batch")
    rollouts = np.concatenate([one.columns["rollouts"], two.columns["rollouts"]])
    np.testing.assert_array_equal(np.sort(rollouts), np.arange(8))
    assert one.header["total_rollouts"] == two.header["total_rollouts"] == 8
    assert one.header["total_loss_tokens"] == two.header["total_loss_tokens"]
    assert len(one.header["micro_batches"]) == len(two.header["micro_batches"]) > 1
    sizes = [int(it.columns["cu_seqlens"][-1]) for it in (one, two)]
    assert abs(sizes[0] - sizes[1]) <= 13
    late.ask()
    again = run.take(late.name, "batch")  # a rank that lost its share asks again and gets the same
    np.testing.assert_array_equal(again.columns["token_ids"], two.columns["token_ids"])
    late.tell("stepped", step=0, metrics={})
    assert run.error(late.name)["code"] == "role"


def test_learner_that_comes_back_with_its_epoch_is_refused_and_told_what_was_seen():
    run = Run(steps=2)
    generator, scorer, learner = crew(run)
    learner.ask()
    work(generator, scorer)
    first = run.take(learner.name, "batch")
    header = {"t": "hello", "protocol": 1, "role": "learner", "name": "learner", "run": "test"}
    run.send("learner-new", header | {"rank": 0, "world": 1, "epoch": 1, "step": 0})
    error = run.error("learner-new")
    assert (error["code"], error["seen"]) == ("epoch", 1)
    new = Learner(run, epoch=2)
    assert new.welcome.header["seen"] == 2
    new.ask()
    second = run.take(new.name, "batch")
    np.testing.assert_array_equal(first.columns["rollouts"], second.columns["rollouts"])
    learner.tell("stepped", step=0, metrics={})  # of the life that has ended
    assert run.error(learner.name)["code"] == "epoch"
    new.train()
    accounts(run)


def test_same_learner_connects_again_and_goes_on():
    run = Run(steps=2)
    generator, scorer, learner = crew(run)
    learner.ask()
    work(generator, scorer)
    run.take(learner.name, "batch")
    run.buffer.peer_lost("batches", learner.name.encode(), run.now)
    Learner(run)  # the same identity and epoch
    learner.train()
    assert [ok.header["about"] for ok in run.take_all(learner.name, "ok")] == ["published", "stepped", "published"]
    assert run.buffer.stats()["steps"] == 1
    accounts(run)


def evaluate(run, name, **changes):
    header = {"t": "evaluate", "id": "after", "pin": [1, 0], "samples": 2, "metas": [b"{}", b"{}"]}
    header["sampling"] = {"temperature": 0.6, "top_p": 0.95, "top_k": 0, "max_tokens": 32, "greedy": False}
    columns = {"prompt_tokens": np.array([1, 2, 3], np.int32), "prompt_lens": np.array([2, 1], np.int32)}
    run.send(name, header | changes, columns)


def test_evaluation_rides_along_and_leaves_training_alone():
    run = Run(steps=1)
    generator, scorer, learner = crew(run)
    run.hello("evaluator-0")
    evaluate(run, "evaluator-0")
    assert run.take("evaluator-0", "accepted").header["groups"] == 2
    training = [it["rollout"] for it in generator.held]
    generator.ready(free=0, eval_free=4)
    evaluated = [it for it in generator.held if it["pin"]]
    assert [it["pin"] for it in evaluated] == [[1, 0]] * 4
    assert all(it["rollout"] >= 2**62 and it["sampling"]["top_p"] == 0.95 for it in evaluated)
    assert training == list(range(8))
    generator.held = evaluated + [it for it in generator.held if not it["pin"]]
    generator.finish(4)
    scorer.score()
    items, tokens = [], 0
    for message in run.take_all("evaluator-0", "evaluated"):
        items += message.header["items"]
        tokens += len(message.columns["tokens"])
        assert message.header["of"] == 2
    assert sorted((it[0], it[1]) for it in items) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert all(it[2] in (0.0, 1.0) and it[3] == {"accuracy": it[2]} and it[5] == "stop" for it in items)
    assert tokens == sum(it[6] for it in items)
    books = accounts(run)
    assert books["evaluation_rollouts"] == (4, 4, 0, 0)
    assert books["tokens"] == (0, 0, 0, 0)
    learner.ask()
    work(generator, scorer)
    assert run.take(learner.name, "batch").header["total_rollouts"] == 8


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


def test_evaluations_of_one_evaluator_are_bounded():
    run = Run(steps=1)
    Learner(run)
    run.hello("evaluator-0")
    for at in range(65):
        evaluate(run, "evaluator-0", id=f"evaluation {at}")
    assert run.error("evaluator-0")["message"] == "evaluate: 64 evaluations run; wait for one or cancel it"
    assert len(run.take_all("evaluator-0", "accepted")) == 64


def test_evaluation_belongs_to_the_evaluator_that_asked():
    run = Run(steps=1)
    Learner(run)
    run.hello("evaluator-0")
    run.hello("evaluator-1")
    evaluate(run, "evaluator-0")
    run.send("evaluator-1", {"t": "cancel_evaluation", "id": "after"})
    assert run.error("evaluator-1")["code"] == "invalid"
    run.send("evaluator-0", {"t": "cancel_evaluation", "id": "after"})
    run.take("evaluator-0", "alive")
    evaluate(run, "evaluator-0")
    run.send("evaluator-0", {"t": "bye"})  # nobody waits for the result any more
    assert run.buffer.stats()["evaluation_groups"] == 0
    accounts(run)


def test_commit_is_confirmed_after_the_server_has_written():
    run = Run(steps=2)
    generator, scorer, learner = crew(run)
    learner.ask()
    work(generator, scorer)
    learner.train()
    learner.tell("committed", step=1, last=False)
    assert run.buffer.commits() == [1]
    assert run.take_all(learner.name, "committed_ok") == []
    with pytest.raises(ValueError, match=r"no commit of step 5 waits; waiting are \[1\]"):
        run.buffer.confirm_commit(5, run.now)
    run.buffer.confirm_commit(1, run.now)
    run.pump()
    assert run.take(learner.name, "committed_ok").header["step"] == 1
    assert run.buffer.commits() == []


def test_restored_buffer_asks_again_for_what_was_live():
    run = Run(steps=4)
    generator, scorer, learner = crew(run)
    learner.ask()
    work(generator, scorer)
    learner.train()
    learner.commit()
    state = run.buffer.checkpoint()
    live = run.buffer.audit()["rollouts"]["live"]
    assert live > 0
    again = Run(steps=4)
    again.feeds = False  # until the learner has named its checkpoint, as the server does
    generator, scorer = Generator(again), Scorer(again)
    generator.version = (2, 1)
    scorer.ready()
    generator.ready()
    again.buffer.restore(state)
    again.feeds = True
    new = Learner(again, epoch=2, step=1)
    generator.receive()
    assert generator.held[0]["rollout"] == 8  # group 2: the numbers, and so the noise, are those of before
    np.testing.assert_array_equal(generator.held[0]["prompt"], prompt_of(2))
    new.ask()
    work(generator, scorer)
    assert again.take(new.name, "batch").header["step"] == 1
    accounts(again)
    with pytest.raises(ValueError, match="before anything is admitted"):
        again.buffer.restore(state)
    with pytest.raises(ValueError, match="not a saved ledger"):
        _core.Buffer(settings()).restore(b"junk")


def test_short_last_batch_and_end_of_prompts():
    run = Run(steps=4, prompts=3)
    generator, scorer, learner = crew(run)
    groups = []
    for step in range(2):
        learner.ask()
        work(generator, scorer)
        groups.append(run.take(learner.name, "batch").header["total_groups"])
        learner.train()
        generator.version = (1, step + 1)
        generator.ready()
    assert groups == [2, 1]
    learner.ask()
    run.take(learner.name, "finished")
    assert accounts(run)["prompts"][0] == 3


def test_rejected_prompt_is_counted_and_replaced():
    buffer = _core.Buffer(settings(steps=1))
    first = buffer.wanted_prompts()
    with pytest.raises(ValueError, match=r"prompt 7; want Some\(0\)|prompt 7; want 0"):
        buffer.reject_prompt(7, "too long")
    buffer.reject_prompt(0, "too long")
    assert buffer.wanted_prompts() == [it + 1 for it in first]
    assert buffer.stats()["prompts_rejected"] == {"too long": 1}
    assert buffer.audit()["prompts"]["dropped"] == {"invalid": 1}
    with pytest.raises(ValueError, match="no tokens"):
        buffer.admit(1, np.array([], np.int32), b"", 0.0)


def test_stop_ends_the_learner_at_its_next_question():
    run = Run(steps=4)
    generator, scorer, learner = crew(run)
    learner.ask()
    work(generator, scorer)
    run.take(learner.name, "batch")
    run.buffer.stop(run.now)
    run.pump()
    assert run.events[-1].header["state"] == "stopping"
    assert run.buffer.wanted_prompts() == []
    learner.train()
    learner.ask()
    assert run.take(learner.name, "finished").header["state"] == "stopping"
    held = len(generator.held)
    generator.version = (1, 1)
    generator.ready()
    assert len(generator.held) == held


def test_events_tell_state_steps_and_figures():
    run = Run(steps=1)
    generator, scorer, learner = crew(run)
    run.send("generator-0", {"t": "heartbeat", "stats": {"tokens_per_s": 12.5}})
    learner.ask()
    work(generator, scorer)
    learner.train()
    kinds = [event.type for event in run.events]
    assert kinds[0] == "state"
    step = next(event for event in run.events if event.type == "step")
    assert (step.header["step"], step.header["metrics"]) == (0, {"loss": 0.5})
    assert "stats" not in kinds
    assert run.buffer.next_deadline() is not None
    run.tick(1.0)
    figures = run.events[-1].header
    assert figures["t"] == "stats"
    assert figures["audit"]["balanced"] is True
    assert figures["buffer"]["steps"] == 1
    peers = {peer["name"]: peer for peer in figures["peers"]}
    assert peers["generator-0"]["stats"] == {"tokens_per_s": 12.5}
    assert peers["generator-0"]["waits_for"] == "leases"
    assert peers["scorer-0"]["silent_s"] == 1.0
    run.tick(1.5)
    assert [event.type for event in run.events].count("stats") == 1


def test_run_without_peers_says_whom_it_waits_for():
    run = Run()
    waits = run.buffer.waits(0.0)
    assert waits[:3] == ["no learner is connected", "no generator is connected", "no scorer is connected"]


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


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_frame_may_be_any_buffer(kind):
    run = Run()
    header = {"t": "hello", "protocol": 1, "role": "generator", "name": "g", "run": "test"}
    run.send_bytes("generator-0", kind(pack(header)))
    assert run.take("generator-0", "welcome").header["peer_deadline_s"] == 20.0


def test_group_statistics_of_the_binding():
    statistics = _core.group_statistics(np.array([1.0, 0.0, 0.0, 1.0]))
    assert statistics == {"count": 4, "mean": 0.5, "std": 0.5, "min": 0.0, "max": 1.0, "pass_rate": 0.5}
    assert _core.group_statistics(np.array([])) is None
    np.testing.assert_allclose(
        _core.advantages(np.array([1.0, 0.0, 0.0, 0.0]), "leave_one_out"), [1, -1 / 3, -1 / 3, -1 / 3]
    )
