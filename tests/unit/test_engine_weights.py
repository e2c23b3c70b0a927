"""What the embedded engine reads from a config and a set of weights, and what it refuses."""

import numpy as np
import pytest
import torch
from r1async.generator.engine import WeightsError
from r1async.generator.fused_model import FusedWeights, rope_table, shape_of
from r1async.models.loading import ModelError, state_tensors
from r1async.types import PolicyVersion
from transformers import GPT2Config, LlamaConfig, Qwen2Config
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from tests.engine_runs import PLAIN, V0, Request, drive, make_engine, random_prompt
from tests.tiny_models import tiny_model


def test_another_architecture_is_refused_by_name():
    config = GPT2Config()
    config.architectures = ["GPT2LMHeadModel"]
    with pytest.raises(ModelError, match=r"llama, qwen2, qwen3.*GPT2LMHeadModel"):
        shape_of(config)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (LlamaConfig(hidden_act="gelu"), "hidden_act"),
        (Qwen2Config(use_sliding_window=True, sliding_window=8, max_window_layers=0), "sliding-window"),
    ],
)
def test_an_option_that_would_be_computed_wrongly_is_refused(config, says):
    with pytest.raises(ModelError, match=says):
        shape_of(config)


def test_a_rope_type_that_depends_on_the_length_is_refused():
    config = LlamaConfig(rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0})
    with pytest.raises(ModelError, match="dynamic"):
        rope_table(config, 8)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 500000.0},
        {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ],
)
def test_rope_table_is_that_of_transformers(rope):
    config = LlamaConfig(hidden_size=64, num_attention_heads=2, max_position_embeddings=512, rope_parameters=rope)
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(300).unsqueeze(0))
    table = rope_table(config, 300)[:, 0]
    torch.testing.assert_close(table.real, cos[0, :, :16], rtol=0, atol=1e-6)
    torch.testing.assert_close(table.imag, sin[0, :, :16], rtol=0, atol=1e-6)


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_wanted_names_and_shapes_are_those_of_the_model(architecture, tied):
    model = tiny_model(architecture, tied=tied)
    wanted = FusedWeights(shape_of(model.config)).wanted
    assert wanted == {name: tuple(tensor.shape) for name, tensor in state_tensors(model).items()}


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda tensors: tensors.pop(NORM), rf"no tensor '{NORM}' \(1 of 26 missing\)"),
        (lambda tensors: tensors.update({"model.extra": torch.ones(1)}), "'model.extra' that the model has not"),
        (lambda tensors: tensors.update({NORM: torch.ones(63)}), rf"'{NORM}' must have shape \(64,\), got \(63,\)"),
        (lambda tensors: tensors.update({NORM: torch.full((64,), torch.nan)}), f"'{NORM}' has NaN"),
        (lambda tensors: tensors.update({NORM: torch.full((64,), -torch.inf)}), f"'{NORM}' has NaN or inf"),
        (lambda tensors: tensors.update({NORM: torch.ones(64, dtype=torch.int32)}), f"'{NORM}' must be floating-point"),
    ],
)
def test_a_bad_set_of_weights_is_refused_and_the_last_one_still_served(damage, says):
    model, other = tiny_model(), tiny_model(seed=1)
    engine = make_engine(model)
    request = Request(id=1, rollout=7, prompt_ids=random_prompt(np.random.default_rng(0), 9), sampling=PLAIN)
    before = drive(engine, [request])[1]
    tensors = dict(state_tensors(other))
    damage(tensors)
    with pytest.raises(WeightsError, match=says):
        engine.install(PolicyVersion(1, 1), tensors)
    assert engine.version == V0
    after = drive(engine, [request])[1]
    assert (after.tokens, after.logprobs, after.versions) == (before.tokens, before.logprobs, before.versions)


def test_bfloat16_weights_are_served_as_they_are():
    model = tiny_model()
    rounded = {name: tensor.to(torch.bfloat16) for name, tensor in state_tensors(model).items()}
    weights = FusedWeights(shape_of(model.config))
    weights.load(rounded)
    assert torch.equal(weights.embedding, rounded["model.embed_tokens.weight"].float())
