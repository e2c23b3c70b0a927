"""Models, tokenizers and weights from directories and back: what is read, what is written, what is refused."""

import json

import pytest
import torch
from r1async.models.export import export_model
from r1async.models.loading import (
    HEAD,
    ModelError,
    check_context,
    load_config,
    load_model,
    load_state,
    load_tokenizer,
    read_tensors,
    state_tensors,
    stop_token_ids,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, MambaConfig, PreTrainedConfig, PreTrainedModel, Qwen2Config

from tests.tiny_models import save_tiny, tiny_model, tiny_tokenizer

IDS = torch.tensor([[1, 12, 20, 9]])


def same(a: PreTrainedModel, b: PreTrainedModel) -> bool:
    with torch.no_grad():
        return torch.equal(a(IDS).logits, b(IDS).logits)


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_weights_read_from_files_are_those_of_the_model(tmp_path, architecture, tied):
    save_tiny(tmp_path, architecture, tied=tied)
    model = load_model(tmp_path)
    own, read = state_tensors(model), read_tensors(tmp_path)
    assert own.keys() == read.keys()
    assert (HEAD in own) == (not tied)
    assert all(torch.equal(own[name], read[name]) for name in own)
    assert same(model, tiny_model(architecture, tied=tied))


def test_a_tied_head_in_the_file_is_left_out(tmp_path):
    save_tiny(tmp_path, tied=True)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[HEAD] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    assert HEAD not in read_tensors(tmp_path)


def test_weights_in_several_files_are_put_together(tmp_path):
    tiny_model().save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    expected = state_tensors(tiny_model())
    read = read_tensors(tmp_path)
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[name], expected[name]) for name in expected)
    next(tmp_path.glob("model-00001*")).unlink()
    with pytest.raises(ModelError, match=r"model-00001.*is missing"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_is_the_one_asked_for(tmp_path, dtype):
    save_tiny(tmp_path)
    assert {tensor.dtype for tensor in state_tensors(load_model(tmp_path, dtype=dtype)).values()} == {dtype}


@pytest.mark.parametrize("tied", [True, False])
def test_load_state_takes_all_or_nothing(tied):
    model, other = tiny_model(tied=tied), tiny_model(tied=tied, seed=1)
    tensors = state_tensors(other)
    broken = {**tensors, "model.norm.weight": torch.ones(3)}
    with pytest.raises(ModelError, match=r"'model.norm.weight' must have shape \(64,\), got \(3,\)"):
        load_state(model, broken)
    assert same(model, tiny_model(tied=tied))
    load_state(model, tensors)
    assert same(model, other)


def test_a_broken_tokenizer_is_named(tmp_path):
    save_tiny(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="no usable tokenizer"):
        load_tokenizer(tmp_path)


def test_a_missing_directory_is_named(tmp_path):
    for load in (load_config, load_model, load_tokenizer, read_tensors):
        with pytest.raises(ModelError, match=r"nowhere.*config\.json"):
            load(tmp_path / "nowhere")


def test_a_directory_without_tokenizer_is_named(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="has no tokenizer"):
        load_tokenizer(tmp_path)


def test_weights_of_another_model_are_refused(tmp_path):
    save_tiny(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 96}))
    with pytest.raises(
        ModelError, match=r"another shape of tensor 'model\.layers\.0\.mlp.*checkpoint of another model"
    ):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3, "layer_types": None}))
    with pytest.raises(ModelError, match=r"has no tensor 'model\.layers\.2\."):
        load_model(tmp_path)


def test_stop_tokens_come_from_the_generation_config_then_the_config_then_the_tokenizer(tmp_path):
    save_tiny(tmp_path)
    tokenizer = tiny_tokenizer()
    assert stop_token_ids(tmp_path, tokenizer) == (2,)
    generation = tmp_path / "generation_config.json"
    generation.write_text(json.dumps({"eos_token_id": [6, 4]}))
    assert stop_token_ids(tmp_path, tokenizer) == (4, 6)
    generation.unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "eos_token_id": 5}))
    assert stop_token_ids(tmp_path, tokenizer) == (5,)
    (tmp_path / "config.json").write_text(json.dumps({**config, "eos_token_id": None}))
    assert stop_token_ids(tmp_path, tokenizer) == (2,)
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        stop_token_ids(tmp_path, tokenizer)


def test_extra_stops_are_one_token_each(tmp_path):
    save_tiny(tmp_path)
    assert stop_token_ids(tmp_path, tiny_tokenizer(), ["</answer>", ";"]) == (2, 6, 23)
    with pytest.raises(ModelError, match=r"sampling\.stop '12' must be one token of the vocabulary, got 2"):
        stop_token_ids(tmp_path, tiny_tokenizer(), ["12"])


@pytest.mark.parametrize("tied", [True, False])
def test_an_export_is_an_ordinary_directory(tmp_path, tied):
    model = tiny_model("llama", tied=tied)
    target = export_model(model, tiny_tokenizer(), tmp_path / "deep" / "model")
    assert same(load_model(target), model)
    assert load_tokenizer(target).encode("<think>5</think>") == [3, 12, 4]
    assert [path.name for path in target.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("tied", [True, False])
def test_an_export_takes_gathered_weights_and_a_dtype(tmp_path, tied):
    model, other = tiny_model(tied=tied), tiny_model(tied=tied, seed=1)
    target = export_model(model, tiny_tokenizer(), tmp_path / "m", tensors=state_tensors(other), dtype=torch.bfloat16)
    with safe_open(target / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    expected = state_tensors(other)
    read = read_tensors(target)
    assert all(torch.equal(read[name], expected[name].bfloat16()) for name in expected)


def test_an_export_replaces_another_whole(tmp_path):
    target = export_model(tiny_model(), tiny_tokenizer(), tmp_path / "m")
    (target / "left-over").write_text("of the old one")
    other = tiny_model(seed=1)
    export_model(other, tiny_tokenizer(), target)
    assert same(load_model(target), other)
    assert not (target / "left-over").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_an_export_that_fails_leaves_the_old_one_and_no_rubbish(tmp_path, monkeypatch):
    model = tiny_model()
    target = export_model(model, tiny_tokenizer(), tmp_path / "m")
    tokenizer = tiny_tokenizer()

    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(tokenizer, "save_pretrained", full)
    with pytest.raises(OSError, match="disk full"):
        export_model(tiny_model(seed=1), tokenizer, target)
    assert same(load_model(target), model)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128}


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (Qwen2Config(max_position_embeddings=128), 128),
        (Qwen2Config(max_position_embeddings=128, rope_parameters=YARN), 512),  # stretched, said before
        (Qwen2Config(max_position_embeddings=512, rope_parameters=YARN), 512),  # and after
        (GPT2Config(n_positions=64), 64),  # under another name
    ],
)
def test_prompt_and_completion_have_to_fit_the_models_positions(config: PreTrainedConfig, limit: int):
    check_context(config, 16, limit - 16)
    says = f"max_prompt_tokens=16 .*max_tokens={limit - 15} is {limit + 1} tokens.* max_position_embeddings={limit};"
    with pytest.raises(ModelError, match=says):
        check_context(config, 16, limit - 15)


def test_a_model_without_a_limit_takes_any_length():
    check_context(MambaConfig(), 10**6, 10**6)
