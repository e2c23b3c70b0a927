"""The configs that come with the project load, and work as they are or with the paths that they ask for."""

from __future__ import annotations

from pathlib import Path

import pytest
from r1async.checks import implications
from r1async.config import load_config
from r1async.config_finetune import reward_model_config, sft_config
from r1async.config_sample import sample_problems
from r1async.recipes.graph import load_recipe
from r1async.recipes.plan import check, plan

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
