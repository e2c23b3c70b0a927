"""`r1async doctor`: passes the embedded engine, and names what is wrong with each broken one."""

from __future__ import annotations

import threading

import pytest
import torch
from r1async.doctor.examine import Examination, Finding, Patient, noisy
from r1async.doctor.template import chat_template
from r1async.generator.engine import KVPolicy
from r1async.generator.torch_engine import TorchEngine
from r1async.models.loading import state_tensors

from tests import broken_engines
from tests.tiny_models import tiny_model, tiny_tokenizer


def examine(kind: type[TorchEngine] = TorchEngine, *, kv_policy: KVPolicy = "keep") -> dict[str, Finding]:
    model = tiny_model()
    engine = kind(model.config, seed=0, slots=16, max_len=96, stop_ids=(), chunk_tokens=1, kv_policy=kv_policy)
    examination = Examination(
        Patient(engine, threading.Event(), 10.0),
        (tiny_model(), tiny_model()),
        state_tensors(model),
        dtype="float32",
        temperature=1.0,
        max_len=96,
        vocabulary=model.config.vocab_size,
    )
    return {finding.check: finding for finding in examination.run()}


@pytest.mark.parametrize("kv_policy", ["keep", "recompute", "abort"])
def test_the_embedded_engine_is_well(kv_policy):
    found = examine(kv_policy=kv_policy)
    assert list(found) == ["weights", "reload", "prefix_cache", "in_flight", "temperature"]
    assert all(finding.ok for finding in found.values()), found


@pytest.mark.parametrize(
    ("kind", "check", "says"),
    [
        (broken_engines.HeadNotReloaded, "reload", "head, tied to the embedding, still has its old weights"),
        (broken_engines.StalePrefix, "prefix_cache", "the prefix cache still holds the old weights' KV"),
        (broken_engines.SwappedTensors, "weights", "it computes another model"),
        (broken_engines.FlippedBit, "reload", "not reloaded, or not as it was sent"),
        (broken_engines.RawLogprobs, "temperature", "processed logprobs"),
        (broken_engines.WrongLabels, "in_flight", "labels are wrong"),
        (broken_engines.DropsKV, "in_flight", "the policy is not what happened"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_broken_engine_is_named(kind, check, says):
    finding = examine(kind)[check]
    assert not finding.ok
    assert says in finding.text


def test_noise_changes_every_tensor_also_a_constant_one():
    tensors = {"a": torch.ones(8), "b": torch.zeros(3), "c": torch.randn(4, 4), "d": torch.full((1,), 2.0)}
    changed = noisy(tensors, seed=0)
    assert all((changed[name] != tensor).all() for name, tensor in tensors.items())
    assert all(torch.equal(noisy(tensors, seed=0)[name], changed[name]) for name in tensors)


TURNS = (
    "{% for m in messages %}<bos>{{ m.role }}: {{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<bos>assistant: {% endif %}"
)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (TURNS, "opens the assistant's turn, and ends it with a stop token"),
        ("", "has no chat template"),
        (TURNS.replace("{% if add_generation_prompt %}<bos>assistant: {% endif %}", ""), "does not open the assistant"),
        (TURNS.replace("<eos>", "<think>"), "ends an answer with '<think>', at which sampling does not stop"),
        (TURNS.replace("{{ m.content }}", "{{ m.content }}{{ m.content }}"), "2 times in the prompt"),
        (TURNS.replace("{{ m.content }}", "{% if m.role == 'user' %}{{ m.content }}{% endif %}"), "drops what"),
        ("<bos>" + TURNS, "two beginning-of-sequence tokens"),
    ],
)
def test_a_chat_template_that_does_not_fit_is_named(template, says):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template or None
    finding = chat_template(tokenizer, {2})
    assert says in finding.text
    assert finding.ok == (template == TURNS)
