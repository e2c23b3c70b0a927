"""When `r1async eval` evaluates a finished run's model by itself."""

import json
from dataclasses import replace

import pytest
from r1async.config import ColdStartConfig, Config
from r1async.evaluation.standalone import evaluation_only, finished_model


@pytest.fixture
def config(tmp_path) -> Config:
    made = Config(name="demo", runs_dir=str(tmp_path), cold_start=ColdStartConfig(enabled=True))
    (made.run_dir / "model").mkdir(parents=True)
    (made.run_dir / "model" / "config.json").write_text("{}")
    return made


@pytest.mark.parametrize(("outcome", "finished"), [("done", True), ("interrupted", False), ("failed", False)])
def test_only_a_run_that_ended_well_is_evaluated_by_itself(config, outcome, finished):
    (config.run_dir / "outcome.json").write_text(json.dumps({"outcome": outcome}))
    assert finished_model(config) == (config.run_dir / "model" if finished else None)


def test_run_that_is_going_on_or_to_come_is_joined(config):
    assert finished_model(config) is None  # its launcher removed outcome.json
    assert finished_model(replace(config, name="other")) is None


def test_run_that_went_on_is_evaluated_anew(config):
    folders = []
    for version in (120, 240):
        (config.run_dir / "summary.json").write_text(json.dumps({"policy_version": version}))
        folders.append(evaluation_only(config, config.run_dir / "model").run_dir.name)
    assert folders == ["demo-eval-120", "demo-eval-240"]


def test_run_of_no_steps_lies_beside_the_finished_one_and_keeps_the_evaluation(config):
    (config.run_dir / "summary.json").write_text(json.dumps({"policy_version": 120}))
    alone = evaluation_only(config, config.run_dir / "model")
    assert alone.run_dir == config.run_dir.with_name("demo-eval-120")
    assert (alone.steps, alone.cold_start.enabled, alone.model.path) == (0, False, str(config.run_dir / "model"))
    assert alone.eval == config.eval
