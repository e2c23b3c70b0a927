"""The stall watch: what counts as progress, and when it speaks."""

from __future__ import annotations

from r1async.config import load_config
from r1async.launch.stall import StallWatch, longest_wait_s


def stats(tokens: int, wait: str = "groups: 12 of 16 ready", silent_s: float = 0.0) -> dict:
    peer = {"name": "generator-0", "stats": {"tokens": tokens}, "silent_s": silent_s, "waits_for": "leases"}
    return {"t": "stats", "version": 3, "audit": {"tokens": {"in": tokens}}, "peers": [peer], "waits": [wait]}


def test_speaks_after_each_stall_time_and_ends_after_five():
    watch = StallWatch(10.0, now=0.0)
    watch.saw(stats(7), now=1.0)
    assert [watch.check(now) for now in (10.9, 11.0, 12.0, 21.0, 31.0, 41.0, 50.9, 51.0)] == [
        "fine", "say", "fine", "say", "say", "say", "fine", "end",
    ]  # fmt: skip


def test_new_tokens_are_progress_and_passing_time_is_not():
    watch = StallWatch(10.0, now=0.0)
    watch.saw(stats(7, silent_s=0.5), now=0.0)
    watch.saw(stats(7, silent_s=5.5), now=9.0)
    assert watch.deadline == 10.0
    watch.saw(stats(8), now=9.5)
    assert watch.deadline == 19.5


def test_names_what_each_role_waits_for():
    watch = StallWatch(10.0, now=0.0)
    watch.saw(stats(7), now=0.0)
    assert watch.describe(12.0) == "nothing moved for 12 s: groups: 12 of 16 ready; generator-0 waits for leases"


def test_silence_of_the_buffer_is_a_stall_too():
    watch = StallWatch(10.0, now=0.0)
    assert watch.check(10.0) == "say"
    assert watch.describe(10.0) == "nothing moved for 10 s: no word from the buffer"


def learner(**busy_s: float) -> dict:
    peer = {"name": "learner", "role": "learner", "stats": {f"busy_s:{name}": s for name, s in busy_s.items()}}
    return {"t": "stats", "version": 3, "peers": [peer]}


def test_run_is_not_ended_within_the_longest_wait_of_its_own():
    watch = StallWatch(10.0, now=0.0, longest_wait_s=84.0)
    assert [watch.check(now) for now in (10.0, 50.0, 60.0, 90.0, 93.9)] == ["say", "say", "say", "say", "fine"]
    assert watch.deadline == 94.0
    assert watch.check(94.0) == "end"


def test_learner_at_work_is_named_and_puts_off_the_end_only():
    watch = StallWatch(10.0, now=0.0)
    watch.saw(learner(forward=1.0), now=0.0)
    watch.saw(learner(forward=1.0, backward=39.0), now=40.0)
    assert watch.check(40.0) == "say"
    assert watch.describe(40.0) == "nothing moved for 40 s: learner is busy: backward"
    assert [watch.check(now) for now in (50.0, 89.9, 90.0)] == ["say", "say", "end"]


def test_work_of_a_learner_that_stopped_working_is_not_progress():
    watch = StallWatch(10.0, now=0.0)
    for now in (0.0, 20.0, 40.0):
        watch.saw(learner(forward=1.0), now=now)
    assert watch.check(50.0) == "end"


def test_longest_wait_covers_every_try_of_a_verdict_and_a_whole_rollout():
    few = ("data.task=chain-mod", "model.path=x", "buffer.connect_deadline_s=50", "weights.deadline_s=20")
    assert longest_wait_s(load_config(None, [*few, "group.rollout_deadline_s=700"])) == 700.0
    slow = [*few, "group.rollout_deadline_s=200", "reward.deadline_s=300", "reward.retries=2"]
    assert longest_wait_s(load_config(None, slow)) == 900.0
