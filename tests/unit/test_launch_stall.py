"""The stall watch: what counts as progress, and when it speaks."""

from __future__ import annotations

from r1async.launch.stall import StallWatch


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
