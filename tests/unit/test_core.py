"""The rollout buffer through its Python binding: whole conversations, hostile peers, restarts."""

import warnings

import numpy as np
import pytest
import torch
from core_peers import (
    Generator,
    Learner,
    Run,
    accounts,
    completion_of,
    crew,
    evaluate,
    prompt_of,
    settings,
    work,
)
from r1async import _core
from r1async.wire import pack


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
    learner.commit()
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
    waits = [wait["text"] for wait in run.buffer.waits(0.0)]
    assert waits[:3] == ["no learner is connected", "no generator is connected", "no scorer is connected"]


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
