"""The buffer benchmark: what it moves is the truth, whoever moves it, and its verdicts are arithmetic."""

import io

import numpy as np
import pytest
from r1async.bench import components, targets
from r1async.bench.buffer import print_result
from r1async.bench.harness import Timed
from r1async.bench.packing import pack_numpy
from r1async.bench.peers import Pipeline, hand_written, messages_of
from r1async.bench.transfer import Transfer, figures, latencies_ms, run_transfer
from r1async.bench.workload import GROUP_SIZE, ROLLOUTS_PER_BATCH, Workload, check_columns
from rich.console import Console

SMALL = Workload(prompt_tokens=5, mean_tokens=20.0, max_tokens=40)


@pytest.mark.parametrize(
    ("way", "per_message", "durability"),
    [
        ("buffer", 16, "memory"),
        ("buffer", 1, "group"),
        ("buffer", 16, "sync"),
        ("scorer", 1, "memory"),
        ("msgpack", 16, "memory"),
        ("frames", 1, "memory"),
    ],
)
def test_every_way_delivers_whole_verified_batches(way, per_message, durability):
    """Batches that are checked fail the run if a value differs; frames are only counted, nobody unpacks them."""
    transfer = Transfer(way=way, per_message=per_message, durability=durability)
    timed = run_transfer(transfer, SMALL, producers=2, batches=2, warm=3)
    shown = figures(timed, SMALL, batches=2)
    assert shown["completions_per_s"] == pytest.approx(2 * ROLLOUTS_PER_BATCH / timed.seconds)
    assert shown["consumer_cpu_us"] >= 0  # so few completions may all have been received before the clock is read
    sides = {"generators", "learner", *{"buffer": ["buffer"], "scorer": ["buffer", "scorer"]}.get(way, [])}
    assert timed.cpu_s.keys() == timed.memory_mb.keys() == sides


@pytest.mark.parametrize("way", ["buffer", "scorer", "msgpack"])
def test_paced_run_knows_when_the_last_rollout_of_each_batch_was_sent(way):
    timed = run_transfer(Transfer(way=way, per_message=1, rate=2000.0), SMALL, producers=2, batches=3, warm=1)
    found = latencies_ms(timed, warm=1)
    assert set(found) == ({"rollout", "verdict"} if way == "scorer" else {"rollout"})
    assert all(len(values) == 3 and min(values) > 0 for values in found.values())
    if way == "scorer":  # a verdict comes after its rollout
        assert all(since <= whole for since, whole in zip(found["verdict"], found["rollout"], strict=True))


def test_core_and_numpy_pack_the_same_columns():
    components.check_packing(SMALL)


@pytest.mark.parametrize("column", ["token_ids", "behavior_logprobs", "advantages", "run_versions", "cu_seqlens"])
def test_a_value_that_differs_is_found(column):
    columns, rollouts = pack_numpy(components.members_of(SMALL, range(2)))
    check_columns(SMALL, columns, rollouts)
    columns[column][-1] += 1
    with pytest.raises(AssertionError):
        check_columns(SMALL, columns, rollouts)


def test_a_group_with_a_rollout_of_another_is_found():
    members = components.members_of(SMALL, range(2))
    members[0], members[GROUP_SIZE] = members[GROUP_SIZE], members[0]
    columns, rollouts = pack_numpy(members)
    with pytest.raises(AssertionError):
        check_columns(SMALL, columns, rollouts)


def test_hand_written_pipeline_gives_groups_whole_whatever_their_order():
    pipeline, complete = Pipeline(), []
    messages = messages_of(index=1, count=3, per_message=4)
    while len(complete) < 4 * GROUP_SIZE:
        complete += pipeline.take(hand_written(SMALL, next(messages))[0])
    columns, rollouts = pack_numpy(complete)
    check_columns(SMALL, columns, rollouts)
    assert {rollout // GROUP_SIZE % 3 for rollout in rollouts.tolist()} == {1}


def test_lengths_are_those_of_the_workload():
    work = Workload()
    lengths = np.array([work.length(rollout) for rollout in range(1 << 14)])
    assert lengths.mean() == pytest.approx(980, abs=40)  # of 1000, less what is cut
    assert lengths.max() == 4096
    assert 0.001 < (lengths == 4096).mean() < 0.03


def test_versions_are_some_that_a_learner_has_made_when_the_group_is_opened():
    work = Workload()
    group_of_step = {step: step * ROLLOUTS_PER_BATCH for step in (0, 8, 9, 20)}
    assert [work.runs(rollout)[-1][0] for rollout in group_of_step.values()] == [0, 0, 1, 12]
    assert all(sum(count for _, count in work.runs(rollout)) == work.length(rollout) for rollout in range(500))


def test_components_measure_what_they_name():
    parts = {
        "packing": components.packing(SMALL, repeats=2),
        "engine_json": components.engine_json(SMALL, repeats=1),
        "insert_us": components.inserts((64, 256), repeats=2),
        "next_batch_us": components.next_batches((128, 256), repeats=2),
        "last_verdict": components.last_verdicts(SMALL, groups=24, repeats=4),
        "memory": components.memory(SMALL, rollouts=64, chunk_tokens=8),
    }
    assert parts["memory"]["payload_mb"] == pytest.approx(SMALL.payload_bytes(range(64)) / 1e6, rel=0.2)
    assert all(figure > 0 for name in ("packing", "insert_us", "next_batch_us") for figure in parts[name].values())
    names = [target.name for target in targets.component_targets(parts)]
    assert "insert at 256 rollouts held over 64" in names
    assert "next batch at 256 rollouts held over 128" in names


def test_ratio_is_the_median_within_repeats():
    ours = [{"completions_per_s": rate} for rate in (10.0, 30.0, 20.0)]
    theirs = [{"completions_per_s": rate} for rate in (5.0, 10.0, 40.0)]
    assert targets.ratio(ours, theirs, "completions_per_s") == 2.0  # of 2, 3, 0.5


def test_targets_of_transfers_say_what_is_reached():
    run = {"completions_per_s": 12.0, "consumer_cpu_us": 10.0}
    runs = {
        "buffer memory, 16 a message": [run],
        "buffer group, 16 a message": [run | {"completions_per_s": 8.0}],
        "frames, 16 a message": [run | {"completions_per_s": 10.0}],
        "msgpack, 16 a message": [run | {"completions_per_s": 10.0, "consumer_cpu_us": 20.0}],
    }
    shown = {target.name: (round(target.value, 2), target.reached) for target in targets.transfer_targets(runs)}
    assert shown == {
        "rate over pyzmq in 3 frames, no unpacking, 16 a message": (1.2, True),
        "rate over hand-written msgpack + numpy, 16 a message": (1.2, False),
        "consumer CPU over hand-written msgpack + numpy, 16 a message": (0.5, True),
        "rate of group durability over memory, 16 a message": (0.67, False),
    }


def test_latency_counts_from_the_last_rollout_of_the_batch():
    rollouts = np.arange(4)
    timed = Timed(1.0, {}, {"generators": 1.0, "learner": 1.0}, batches=[(10.0, rollouts)])
    timed.sent = [{0: 9.0, 1: 9.5}, {2: 9.75, 3: 8.0}]
    assert latencies_ms(timed, warm=0) == {"rollout": [pytest.approx(250.0)]}


def test_latency_targets_compare_with_what_brings_its_own_reward():
    paced = {
        "buffer, from the last rollout": {"p99": 3.0},
        "scorer, from the last rollout": {"p99": 9.0},
        "scorer, from the last verdict": {"p99": 6.0},
        "msgpack, from the last rollout": {"p99": 4.0},
    }
    shown = {target.name: target.value for target in targets.latency_targets(paced)}
    name = "last verdict to batch, p99 over hand-written"
    assert shown == {name: 0.75, f"{name}, with a scorer": 1.5}


def test_result_is_printed_for_people():
    target = targets.Target(name="rate", value=0.5, sense="at least", limit=1.0)
    result = {
        "transfers": {"buffer memory, 16 a message": {"median": {"completions_per_s": 20_000.0, "mb_per_s": 170.0}}},
        "settings": {"rate": 400.0},
        "paced_ms": {"buffer, from the last verdict": {"p50": 1.0, "p99": 2.0, "count": 9}},
        "components": {"memory": {"held_mb": 1.0}},
        "targets": [
            {name: getattr(target, name) for name in ("name", "value", "sense", "limit", "unit")} | {"reached": False}
        ],
    }
    out = io.StringIO()
    print_result(result, Console(file=out, width=200))
    text = out.getvalue()
    assert "20,000" in text
    assert "at least 1 x" in text
