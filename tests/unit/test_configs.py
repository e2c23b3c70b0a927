"""The configs that come with the project load, and work as they are or with the paths that they ask for."""

from __future__ import annotations

from pathlib import Path

import pytest
from r1async.checks import implications
from r1async.cli import main
from r1async.config import load_config
from r1async.config_finetune import reward_model_config, sft_config
from r1async.config_sample import sample_problems
from r1async.recipes.graph import load_recipe
from r1async.recipes.plan import check, plan
from r1async.settings import read_tree

FINETUNE = {"sft.yaml": sft_config, "reward_model.yaml": reward_model_config}
FOLDER = Path(__file__).parents[2] / "configs"
RECIPE = FOLDER / "r1_demo.yaml"
CONFIGS = sorted(path for path in FOLDER.glob("*.yaml") if path.name not in FINETUNE and path != RECIPE)
OWN_PATHS = ("model.path=DIR", "data.path=FILE.jsonl")
"""What a user adds to a config for their own model and data."""


def test_the_demo_needs_nothing():
    config = load_config(Path(__file__).parents[2] / "configs" / "demo.yaml")
    assert config.cold_start.enabled
    assert config.cold_start.target_accuracy == 0.85
    assert config.data.task == "chain-mod"
    assert config.steps == 120
    assert (config.learner.groups_per_step, config.group.group_size) == (16, 8)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_config_loads(path):
    own = OWN_PATHS if "task: chain-mod" not in path.read_text() else ()
    assert implications(load_config(path, own))


@pytest.mark.parametrize("name", FINETUNE)
def test_fine_tuning_config_loads(name):
    assert FINETUNE[name](FOLDER / name).data.template == "none"


def test_the_sampling_config_can_be_sampled():
    assert sample_problems(load_config(FOLDER / "sample.yaml")) == []


def test_the_jobs_of_the_recipe_load(tmp_path):
    jobs = plan(load_recipe(RECIPE))
    assert check(jobs, tmp_path) == []
    assert jobs["report"].stage.needs


R1 = {path.name: path for path in (FOLDER / "r1" / "r1.yaml", FOLDER / "r1" / "students.yaml")}


def stand_ins(recipe: Path, folder: Path) -> list[str]:
    """An empty file for each input, as overrides of the command line."""
    inputs = read_tree(recipe)["inputs"]
    assert isinstance(inputs, dict)
    for name in inputs:
        (folder / name).write_text(f"stands for {name}")
    return [f"inputs.{name}={folder / name}" for name in inputs]


@pytest.mark.parametrize("name", R1)
def test_the_recipe_for_real_models_plans_with_paths_of_ones_own(tmp_path, capsys, name):
    words = stand_ins(R1[name], tmp_path)
    assert main(["recipe", str(R1[name]), f"folder={tmp_path / 'out'}", *words, "--dry-run"]) == 0
    planned = capsys.readouterr().out.splitlines()
    assert len(planned) == 2 + len(load_recipe(R1[name], words).stages)
    assert all(line.endswith("runs") for line in planned[1:-1])


def test_the_recipe_for_real_models_asks_for_its_inputs(tmp_path, capsys):
    assert main(["recipe", str(R1["r1.yaml"]), "--dry-run"]) == 2
    assert "inputs.model: models/base does not exist; give it, or inputs.model=PATH" in capsys.readouterr().err


def test_published_settings_are_those_that_are_printed(tmp_path):
    """DeepSeek-R1, Nature 645 (2025), Methods, and arXiv 2501.12948v2, B.4."""
    jobs = plan(load_recipe(R1["r1.yaml"], stand_ins(R1["r1.yaml"], tmp_path)))

    def value(stage: str, key: str) -> object:
        found: object = jobs[stage].settings
        for name in key.split("."):
            assert isinstance(found, dict)
            found = found[name]
        return found

    stages = ("zero", "zero-long", "reasoning", "scenarios-rules", "scenarios")
    for stage in stages:
        for key, published in (
            ("learner.lr", 3e-6), ("learner.groups_per_step", 32), ("group.group_size", 16), ("loss.kind", "r1"),
            ("staleness.max_staleness", 8192 // 512 - 1),
        ):  # fmt: skip
            assert value(stage, key) == published, (stage, key)
    assert [value(each, "sampling.temperature") for each in stages] == [1.0, 1.0, 1.0, 0.7, 0.7]
    assert [value(each, "sampling.max_tokens") for each in stages] == [32768, 65536, 32768, 32768, 32768]
    assert [value(each, "steps") for each in stages if each != "reasoning"] == [8200, 10400 - 8200, 1300, 1700 - 1300]
    for stage in ("cold", "sft"):
        assert [value(stage, f"train.{key}") for key in ("lr", "batch_size", "min_lr_ratio")] == [5e-5, 128, 0.1]
    for stage in ("helpful-model", "harmless-model"):
        assert [value(stage, f"train.{key}") for key in ("lr", "batch_size", "epochs")] == [6e-6, 256, 1]
    rates = {
        name: job.settings["train"]
        for name, job in plan(load_recipe(R1["students.yaml"], stand_ins(R1["students.yaml"], tmp_path))).items()
        if "train" in job.settings
    }
    assert {name: train["lr"] for name, train in rates.items() if isinstance(train, dict)} == {
        "distill-qwen-1_5b": 1e-4, "distill-qwen-7b": 8e-5, "distill-qwen-14b": 7e-5, "distill-qwen-32b": 6e-5,
        "distill-llama-8b": 5e-5, "distill-llama-70b": 2e-5,
    }  # fmt: skip
