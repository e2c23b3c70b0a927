"""The stall watch: what counts as progress, when it speaks, and which wait it blames."""

from __future__ import annotations

from r1async.config import load_config
from r1async.launch.stall import StallWatch, end_s, longest_wait_s


def stats(tokens: int, *waits: dict, silent_s: float = 0.0) -> dict:
    peer = {"name": "generator-0", "stats": {"tokens": tokens}, "silent_s": silent_s, "waits_for": "leases"}
    found = waits or ({"name": "groups", "text": "groups: 12 of 16 ready", "groups": [4, 5]},)
    return {"t": "stats", "version": 3, "audit": {"tokens": {"in": tokens}}, "peers": [peer], "waits": list(found)}


def test_speaks_after_each_limit_and_ends_at_the_end():
    watch = StallWatch(10.0, now=0.0, end_s=50.0)
    watch.saw(stats(7), now=1.0)
    assert [watch.check(now) for now in (10.9, 11.0, 12.0, 21.0, 31.0, 41.0, 50.9, 51.0)] == [
        "fine", "say", "fine", "say", "say", "say", "fine", "end",
    ]  # fmt: skip


def test_new_tokens_are_progress_and_passing_time_is_not():
    watch = StallWatch(10.0, now=0.0, end_s=50.0)
    assert watch.saw(stats(7, silent_s=0.5), now=0.0)
    assert not watch.saw(stats(7, silent_s=5.5), now=9.0)
    assert watch.deadline == 10.0
    assert watch.saw(stats(8), now=9.5)
    assert watch.deadline == 19.5


def test_role_that_starts_again_is_progress_only_once_it_works():
    watch = StallWatch(10.0, now=0.0, end_s=50.0)
    watch.saw(stats(7), now=0.0)
    again = stats(7)
    again["peers"][0]["stats"]["tokens"] = 0
    assert not watch.saw(again, now=5.0)
    again["peers"][0]["stats"]["tokens"] = 1
    assert watch.saw(again, now=6.0)


def test_heartbeats_waits_and_lost_leases_are_no_progress():
    watch = StallWatch(10.0, now=0.0, end_s=50.0)
    first, later = stats(7), stats(7, {"name": "hold", "text": "hold: step 3"})
    first["buffer"], later["buffer"] = {"leases_lost": 0}, {"leases_lost": 9}
    later["peers"][0]["stats"]["busy_s"] = 5.0
    watch.saw(first, now=0.0)
    assert not watch.saw(later, now=5.0)


def test_blames_the_wait_that_explains_the_others():
    scoring = {
        "name": "scoring", "text": "scorer-3 is busy with 1 rollouts of groups 42 (rollouts 337), no verdict for 312 s",
        "role": "scorer-3", "groups": [42], "rollouts": [337], "seconds": 312.0,
    }  # fmt: skip
    groups = {"name": "groups", "text": "groups: 12 of 16 ready for step 7, 4 open", "groups": [42]}
    watch = StallWatch(10.0, now=0.0, end_s=50.0)
    watch.saw(stats(7, groups, scoring), now=0.0)
    found = watch.diagnose(12.0)
    assert (found.name, found.role, found.groups, found.rollouts, found.seconds) == (
        "scoring", "scorer-3", (42,), (337,), 312.0,
    )  # fmt: skip
    assert found.text == (
        "nothing moved for 12 s: scorer-3 is busy with 1 rollouts of groups 42 (rollouts 337), no verdict for 312 s; "
        "groups: 12 of 16 ready for step 7, 4 open; generator-0 waits for leases"
    )


def test_silence_of_the_buffer_is_a_stall_too():
    watch = StallWatch(10.0, now=0.0, end_s=50.0)
    assert watch.check(10.0) == "say"
    assert watch.diagnose(10.0).text == "nothing moved for 10 s: no word from the buffer"


def test_filters_are_timed_by_their_own_wait():
    watch = StallWatch(10.0, now=0.0, end_s=50.0)
    assert watch.filtered_s() == 0.0
    watch.saw(stats(7, {"name": "filters", "text": "filters: none of 16 groups", "seconds": 31.5}), now=0.0)
    assert watch.filtered_s() == 31.5


def learner(**busy_s: float) -> dict:
    peer = {"name": "learner", "role": "learner", "stats": {f"busy_s:{name}": s for name, s in busy_s.items()}}
    return {"t": "stats", "version": 3, "peers": [peer]}


def test_learner_at_work_is_named_and_puts_off_the_end_only():
    watch = StallWatch(10.0, now=0.0, end_s=50.0)
    watch.saw(learner(forward=1.0), now=0.0)
    watch.saw(learner(forward=1.0, backward=39.0), now=40.0)
    assert watch.check(40.0) == "say"
    assert watch.learner_works
    assert watch.diagnose(40.0).text == "nothing moved for 40 s: learner is busy: backward"
    assert [watch.check(now) for now in (50.0, 89.9, 90.0)] == ["say", "say", "end"]


def test_work_of_a_learner_that_stopped_working_is_not_progress():
    watch = StallWatch(10.0, now=0.0, end_s=50.0)
    for now in (0.0, 20.0, 40.0):
        watch.saw(learner(forward=1.0), now=now)
    assert watch.check(50.0) == "end"


def test_run_is_not_ended_within_the_longest_wait_of_its_own():
    few = ("data.task=chain-mod", "model.path=x", "buffer.connect_deadline_s=50", "weights.deadline_s=20")
    assert longest_wait_s(load_config(None, [*few, "group.rollout_deadline_s=700"])) == 700.0
    slow = [*few, "group.rollout_deadline_s=200", "reward.deadline_s=300", "reward.retries=2"]
    assert longest_wait_s(load_config(None, slow)) == 900.0
    assert end_s(load_config(None, [*slow, "progress.limit_s=30"])) == 930.0
    assert end_s(load_config(None, [*slow, "progress.limit_s=300"])) == 1500.0
    assert end_s(load_config(None, [*slow, "progress.limit_s=30", "progress.end_s=40"])) == 40.0


def test_a_wait_for_late_members_can_be_blamed():
    watch = StallWatch(10.0, now=0.0, end_s=50.0)
    watch.saw(stats(7, {"name": "late", "text": "late: step 2, the last, waits for 1 rollouts of groups 1"}), now=0.0)
    assert watch.diagnose(12.0).name == "late"
