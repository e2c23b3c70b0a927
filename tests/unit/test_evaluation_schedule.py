"""Which versions are evaluated, in which order, across learner lives."""

from r1async.evaluation.schedule import Schedule, settled_numbers
from r1async.types import PolicyVersion


def due(schedule: Schedule) -> list[str]:
    """Everything that can be evaluated now, as a role would go through it."""
    numbers = []
    while (version := schedule.next()) is not None:
        numbers.append(str(version))
        schedule.settle(version)
    return numbers


def test_nothing_is_due_before_a_version_is_published():
    schedule = Schedule(every=10, steps=30)
    schedule.saw(0, -1)
    assert due(schedule) == []
    assert not schedule.complete
    assert schedule.describe() == "the first version"


def test_first_every_nth_and_last_version_are_evaluated():
    schedule = Schedule(every=10, steps=25)
    schedule.saw(1, 0)
    assert due(schedule) == ["0@1"]
    schedule.saw(1, 9)
    assert due(schedule) == []
    schedule.saw(1, 21)
    assert due(schedule) == ["10@1", "20@1"]
    assert not schedule.complete
    schedule.saw(1, 25)
    assert due(schedule) == ["25@1"]
    assert schedule.complete


def test_only_first_and_last_without_every():
    schedule = Schedule(every=0, steps=25)
    schedule.saw(1, 25)
    assert due(schedule) == ["0@1", "25@1"]
    assert schedule.complete


def test_run_of_no_steps_is_one_evaluation():
    schedule = Schedule(every=10, steps=0)
    schedule.saw(1, 0)
    assert due(schedule) == ["0@1"]
    assert schedule.complete


def test_prompts_that_run_out_make_an_earlier_version_the_last():
    schedule = Schedule(every=10, steps=100)
    schedule.saw(1, 0)
    due(schedule)
    schedule.saw(1, 7, final=7)
    assert due(schedule) == ["7@1"]
    assert schedule.complete


def test_last_version_counts_only_once_it_is_published():
    schedule = Schedule(every=0, steps=100)
    schedule.saw(1, 6, final=7)
    assert due(schedule) == ["0@1"]
    assert not schedule.complete


def test_life_that_goes_on_from_a_checkpoint_brings_later_versions_again():
    schedule = Schedule(every=10, steps=30)
    schedule.saw(1, 25)
    assert due(schedule) == ["0@1", "10@1", "20@1"]
    schedule.saw(2, 15)  # the checkpoint's version
    assert due(schedule) == []
    schedule.saw(2, 22)
    assert due(schedule) == ["20@2"]


def test_words_of_an_ended_life_change_nothing():
    schedule = Schedule(every=10, steps=30)
    schedule.saw(2, 5)
    due(schedule)
    schedule.saw(1, 30)
    assert due(schedule) == []
    schedule.settle(PolicyVersion(1, 10))
    schedule.saw(2, 10)
    assert due(schedule) == ["10@2"]


def test_restarted_evaluator_does_not_repeat_what_is_written():
    schedule = Schedule(every=10, steps=30, settled={0, 10})
    schedule.saw(1, 21)
    assert due(schedule) == ["20@1"]


def test_wait_names_the_version_that_comes_next():
    schedule = Schedule(every=10, steps=25, settled={0})
    schedule.saw(1, 3)
    assert schedule.describe() == "version 10 (newest 3)"
    schedule.saw(1, 22)
    assert due(schedule) == ["10@1", "20@1"]
    assert schedule.describe() == "version 25 (newest 22)"


def test_only_a_version_whose_every_pass_is_written_is_settled():
    records = [
        {"kind": "evaluation", "pass": "sampled", "version": 0, "last": False},
        {"kind": "evaluation", "pass": "greedy", "version": 0, "last": True},
        {"kind": "evaluation", "pass": "sampled", "version": 10, "last": False},
        {"kind": "evaluation_given_up", "version": 20, "last": True},
    ]
    assert settled_numbers(records) == {0, 20}
