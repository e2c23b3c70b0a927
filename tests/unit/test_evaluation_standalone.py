"""When `r1async eval` evaluates a finished run's model by itself."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from r1async.config import ColdStartConfig, Config, ConfigError
from r1async.evaluation.standalone import evaluation_only, finished_model, offline_config


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


@pytest.fixture
def model(tmp_path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_model_on_the_command_line_is_evaluated_without_a_step_of_training(model, tmp_path):
    overrides = [f"model={model}", "eval.benchmarks=[math500]", f"runs_dir={tmp_path}"]
    made = offline_config(Path("configs/eval.yaml"), overrides)
    assert made is not None
    assert (made.steps, made.model.path, made.cold_start.enabled) == (0, str(model), False)
    assert made.name.startswith("eval-eval-checkpoint-")
    assert made.group.rollout_deadline_s == made.eval.deadline_s  # training's deadline is not the evaluation's
    assert offline_config(Path("configs/eval.yaml"), overrides[1:]) is None


def test_a_training_config_will_do(model, tmp_path):
    made = offline_config(Path("configs/demo.yaml"), [f"model={model}", f"runs_dir={tmp_path}"])
    assert made is not None
    assert (made.steps, made.cold_start.enabled, made.eval.prompts) == (0, False, 400)


def test_other_weights_or_another_question_is_another_folder(model, tmp_path):
    def name(*overrides: str) -> str:
        made = offline_config(Path("configs/eval.yaml"), [f"model={model}", f"runs_dir={tmp_path}", *overrides])
        assert made is not None
        return made.name

    first = name()
    assert name() == first
    assert name("eval.benchmarks=[gsm8k]") != first
    assert name("eval.protocol.samples=2") != first
    (model / "model.safetensors").write_bytes(b"other weights")
    assert name() != first


def test_finished_runs_evaluation_is_another_one_for_other_benchmarks_protocol_or_files(config, tmp_path):
    (config.run_dir / "summary.json").write_text(json.dumps({"policy_version": 120}))
    own, rows = tmp_path / "own.yaml", tmp_path / "rows.jsonl"
    own.write_text("title: x")
    rows.write_text("{}")

    def name(*benchmarks: str, k: int = 0) -> str:
        asked = replace(
            config.eval,
            benchmarks=benchmarks,
            data={"own": str(rows)},
            protocol=replace(config.eval.protocol, samples=k),
        )
        return evaluation_only(replace(config, eval=asked), config.run_dir / "model").name

    first = name(str(own))
    assert first.startswith("demo-eval-120-")
    names = [first, name("gsm8k"), name(str(own), k=2)]
    rows.write_text("{}\n")
    names.append(name(str(own)))
    own.write_text("title: other")
    names.append(name(str(own)))
    assert len(set(names)) == 5
    assert name(str(own)) == names[-1]


def test_a_folder_of_ones_own_takes_one_evaluation_alone(model, tmp_path):
    def out(*overrides: str) -> Config:
        words = [f"model={model}", "eval.benchmarks=[math500]", *overrides]
        made = offline_config(Path("configs/eval.yaml"), words, tmp_path / "mine" / "exam")
        assert made is not None
        return made

    assert out().run_dir == tmp_path / "mine" / "exam"
    assert out() == out()
    with pytest.raises(ConfigError, match="an evaluation of other weights or other questions"):
        out("eval.protocol.samples=2")
    (model / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(ConfigError, match="an evaluation of other weights or other questions"):
        out()


def test_a_folder_with_another_run_in_it_is_no_place_for_an_evaluation(model, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("{}")
    with pytest.raises(ConfigError, match="holds a run that is no evaluation of this kind"):
        offline_config(Path("configs/eval.yaml"), [f"model={model}"], tmp_path / "run")


def test_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"has no config.json; give the folder"):
        offline_config(Path("configs/eval.yaml"), [f"model={tmp_path}"])
