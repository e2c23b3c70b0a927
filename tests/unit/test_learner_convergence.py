"""When a learner says that it has learned what there is to learn."""

import json

import pytest
from r1async.config import ConfigError, ConvergeConfig
from r1async.learner.convergence import Convergence, trained_steps


def steps(*values: float) -> list[dict[str, float]]:
    return [{"reward/mean": value} for value in values]


@pytest.mark.parametrize(
    ("patience", "values", "expected"),
    [
        # windows of two: 0.2, 0.5, 0.7, 0.71; the last gains 0.01 of the 0.1 wanted
        (1, [0.1, 0.3, 0.4, 0.6, 0.7, 0.7, 0.71, 0.71], [7]),
        # 0.5, 0.4, 0.55: neither exceeds the best, 0.5, by 0.1
        (1, [0.5, 0.5, 0.4, 0.4, 0.55, 0.55], [3, 4, 5]),
        (2, [0.5, 0.5, 0.4, 0.4, 0.55, 0.55], [5]),
        # a gain after a window without one counts from anew: 0.5, 0.4, 0.6, 0.6
        (2, [0.5, 0.5, 0.4, 0.4, 0.6, 0.6, 0.6, 0.6], []),
        (1, [0.5, 0.5, 0.6, 0.6], []),
    ],
)
def test_windows_without_a_gain_end_it(patience, values, expected):
    settings = ConvergeConfig(metric="reward/mean", window=2, gain=0.1, patience=patience)
    following = Convergence(settings)
    assert [step for step, figures in enumerate(steps(*values)) if following.observe(figures)] == expected


def test_a_learner_that_goes_on_from_a_checkpoint_remembers():
    settings = ConvergeConfig(metric="reward/mean", window=2, gain=0.1)
    figures = steps(0.5, 0.5, 0.55, 0.55)
    for done in range(4):
        following = Convergence(settings, figures[:done])
        assert [following.observe(each) for each in figures[done:]][-1] is True


def test_without_a_metric_nothing_converges():
    assert not any(Convergence(ConvergeConfig(window=1)).observe(each) for each in steps(0.5, 0.5, 0.5))


def test_steps_without_the_part_are_in_no_window():
    following = Convergence(ConvergeConfig(metric="reward/language", window=1, gain=0.1))
    told = [following.observe(each) for each in ({"reward/language": 0.5}, {"loss": 1.0}, {"reward/language": 0.5})]
    assert told == [False, False, True]


def test_a_metric_that_no_step_has_is_refused():
    with pytest.raises(ConfigError, match="a step has no 'rewrad/mean'; it has loss, reward/mean"):
        Convergence(ConvergeConfig(metric="rewrad/mean")).observe({"loss": 1.0, "reward/mean": 0.5})


def test_trained_steps_are_those_before_the_checkpoint_and_the_later_life_counts(tmp_path):
    path = tmp_path / "learner.jsonl"
    lines = [("step", 0, 0.1), ("step", 1, 0.2), ("timeline", None, 0.9), ("step", 1, 0.3), ("step", 2, 0.4)]
    path.write_text("\n".join(json.dumps({"kind": kind, "step": step, "x": x}) for kind, step, x in lines) + "\n")
    assert [each["x"] for each in trained_steps(path, 2)] == [0.1, 0.3]
    assert trained_steps(tmp_path / "none.jsonl", 2) == []
