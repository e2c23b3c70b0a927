"""What the settings imply, with numbers one can check by hand."""

from __future__ import annotations

import pytest
from r1async.checks import full_speed_needs, implications, missing_files, places, rollouts_in_flight, warnings
from r1async.config import Config, load_config


def load(*overrides: str) -> Config:
    return load_config(None, ["data.task=chain-mod", "cold_start.enabled=true", *overrides])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("staleness.max_staleness=0",), 16),
        (("staleness.max_staleness=2",), 48),
        (("staleness.max_staleness=4", "staleness.pacing=1"), 32),
        # floor(3 x 16 x 1.2) = floor(57.6)
        (("group.oversample=1.2",), 57),
    ],
)
def test_places_are_window_times_groups_a_step(overrides, expected):
    assert places(load(*overrides)) == expected


def test_rollouts_in_flight_are_bounded_by_slots_and_by_places():
    assert rollouts_in_flight(load("generator.slots=100", "generator.count=2")) == 200
    assert rollouts_in_flight(load("generator.slots=1000")) == 48 * 8


def test_full_speed_rule_of_thumb():
    # 3.4 x 128 rollouts in flight / 128 rollouts a step
    assert full_speed_needs(load("generator.slots=128")) == pytest.approx(3.4)
    assert full_speed_needs(load("generator.slots=64")) == pytest.approx(1.7)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (("staleness.max_staleness=0",), "worst-case staleness: 0 optimizer steps: synchronous"),
        (("staleness.max_staleness=4",), "worst-case staleness: 4 optimizer steps: older tokens"),
        (("staleness.over_age=train",), "worst-case staleness: no bound"),
        (("staleness.max_staleness=4", "staleness.pacing=1"), "at most 1 steps after the version it was leased at"),
        (("weights.publish_every=3",), "published every 3 steps, so a freshly leased token is already up to 2"),
        (("steps=5", "sampling.max_tokens=10"), "128 rollouts, at most 1280 completion tokens; 5 steps: 640 rollouts"),
    ],
)
def test_dry_run_says_what_the_settings_imply(overrides, line):
    assert any(line in each for each in implications(load(*overrides)))


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (("loss.correction=none",), "loss.correction=none"),
        (("staleness.over_age=train",), "staleness.over_age=train"),
        (("staleness.max_staleness=0", "group.oversample=2"), "group.oversample=2"),
        (("generator.slots=4",), "generator.slots"),
        (("progress.limit_s=5",), "progress.limit_s=5"),
        (("generator.slots=512",), "staleness.max_staleness=2"),
    ],
)
def test_doubtful_settings_are_warned_of(overrides, key):
    assert any(each.startswith(key) for each in warnings(load(*overrides)))


def test_sound_settings_are_not_warned_of():
    assert warnings(load("generator.slots=64")) == []


def test_reward_without_accuracy_is_warned_of_unless_it_is_measured_with_weight_0():
    (warning,) = warnings(load("generator.slots=64", "reward.weights={format: 1}"))
    assert warning.startswith("reward.weights has no accuracy")
    assert warnings(load("generator.slots=64", "reward.weights={format: 1, accuracy: 0}")) == []


def test_missing_files_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    config = load_config(None, [f"model.path={tmp_path}/empty", f"data.path={tmp_path}/no.jsonl"])
    assert missing_files(config) == [
        f"model.path: {tmp_path}/empty: has no config.json; a Hugging Face model folder has one",
        f"data.path: {tmp_path}/no.jsonl: no such file or folder",
    ]
