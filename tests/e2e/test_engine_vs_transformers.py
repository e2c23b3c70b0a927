"""The embedded engine against transformers on the same weights: logprobs, greedy decoding, in-flight swaps."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from r1async.generator.torch_engine import TorchEngine
from r1async.models.loading import load_config, load_model, load_tokenizer, read_tensors, state_tensors, stop_token_ids
from r1async.types import PolicyVersion
from transformers import DynamicCache, GenerationConfig, PreTrainedModel

from tests.engine_runs import (
    PLAIN,
    V0,
    Outcome,
    Request,
    chosen,
    collect,
    drive,
    full_logprobs,
    make_engine,
    random_prompt,
)
from tests.tiny_models import generate, save_tiny, tiny_model

V1 = PolicyVersion(1, 1)
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MODELS = {
    "qwen2-tied": lambda: tiny_model("qwen2"),
    "qwen2-untied": lambda: tiny_model("qwen2", tied=False, heads=4, kv_heads=2),
    "llama-tied": lambda: tiny_model("llama", heads=4, kv_heads=4),
    "llama-untied": lambda: tiny_model("llama", tied=False, heads=4, kv_heads=2),
    "llama-biased-rope3": lambda: tiny_model("llama", attention_bias=True, mlp_bias=True, rope=LLAMA3_ROPE),
    "qwen3-tied": lambda: tiny_model("qwen3", heads=4, kv_heads=2),
    "qwen3-untied-wide-heads": lambda: tiny_model("qwen3", tied=False, head_dim=48),
}


def groups(rng: np.random.Generator, n: int, size: int) -> list[Request]:
    prompts = [random_prompt(rng, int(rng.integers(1, 30))) for _ in range(n)]
    return [Request(id=i, rollout=i, prompt_ids=prompts[i // size], sampling=PLAIN) for i in range(n * size)]


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_logprobs_are_those_of_a_full_forward_pass(make):
    model = make()
    requests = groups(np.random.default_rng(0), 5, 4)
    outcomes = drive(make_engine(model, slots=20), requests)
    for request in requests:
        outcome = outcomes[request.id]
        reference = chosen(full_logprobs(model, request.prompt_ids.tolist(), outcome.tokens), outcome.tokens)
        np.testing.assert_allclose(outcome.logprobs, reference.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.7])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 1.0), (0, 0.7), (8, 0.9)])
def test_logprobs_are_of_the_distribution_sampled_from(temperature, top_k, top_p):
    model = tiny_model("qwen2")
    sampling = replace(PLAIN, temperature=temperature, top_k=top_k, top_p=top_p)
    requests = [replace(request, sampling=sampling) for request in groups(np.random.default_rng(1), 4, 4)]
    outcomes = drive(make_engine(model), requests)
    truncated = 0
    for request in requests:
        outcome = outcomes[request.id]
        scaled = full_logprobs(model, request.prompt_ids.tolist(), outcome.tokens) / temperature
        for row, token, logprob in zip(scaled, outcome.tokens, outcome.logprobs, strict=True):
            support = supported(row, top_k, top_p)
            assert token in support
            assert logprob == pytest.approx((row[token] - row[support].logsumexp(0)).item(), abs=1e-5)
            truncated += len(support) < len(row)
    assert (truncated > 0) == (top_k > 0 or top_p < 1)


def supported(logits_V: torch.Tensor, top_k: int, top_p: float) -> list[int]:
    """The tokens that top-k, then top-p leave, said as slowly as it can be."""
    order = sorted(range(len(logits_V)), key=lambda token: -float(logits_V[token]))
    order = order[:top_k] if top_k else order
    probabilities = logits_V[order].double().softmax(0).tolist()
    kept, total = [], 0.0
    for token, probability in zip(order, probabilities, strict=True):
        if total >= top_p < 1:
            break
        kept.append(token)
        total += probability
    return kept


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_greedy_is_that_of_generate(make):
    model, rng = make(), np.random.default_rng(2)
    prompts = [random_prompt(rng, 11) for _ in range(8)]
    greedy = replace(PLAIN, greedy=True)
    requests = [Request(id=i, rollout=i, prompt_ids=prompt, sampling=greedy) for i, prompt in enumerate(prompts)]
    outcomes = drive(make_engine(model), requests)
    settings = GenerationConfig(do_sample=False, max_new_tokens=24, eos_token_id=2, pad_token_id=0)
    expected = generate(model, torch.tensor(np.stack(prompts)).long(), settings)[:, 11:].tolist()
    for i, outcome in outcomes.items():
        assert outcome.tokens == expected[i][: len(outcome.tokens)]
        assert outcome.finish == ("stop" if outcome.tokens[-1] == 2 else "length")
        assert set(expected[i][len(outcome.tokens) :]) <= {0}
        assert set(outcome.logprobs) == {0.0}


def new_weights_on_kept_kv(
    old: PreTrainedModel, new: PreTrainedModel, prompt: list[int], tokens: list[int], n: int
) -> torch.Tensor:
    """Logprobs of ``tokens[n:]`` under new weights that attend to the keys and values old weights left.

    When the weights change after n tokens, the cache holds the prompt and all of those but the last, which is the
    next input.
    """
    cache = DynamicCache()
    seen = [*prompt, *tokens[: n - 1]]
    with torch.no_grad():
        old(torch.tensor([seen]), past_key_values=cache, use_cache=True)
        # One at a time: a token computed by new weights is attended to by the next with its new keys.
        logits = [
            new(torch.tensor([[token]]), past_key_values=cache, use_cache=True).logits[0, -1]
            for token in tokens[n - 1 : -1]
        ]
    return chosen(torch.log_softmax(torch.stack(logits), -1), tokens[n:])


@pytest.mark.parametrize(("architecture", "tied"), [("qwen2", True), ("llama", False)])
def test_weights_swapped_in_flight_take_effect_with_the_next_token_on_kept_kv(architecture, tied):
    old, new = tiny_model(architecture, tied=tied), tiny_model(architecture, tied=tied, seed=1)
    rng = np.random.default_rng(3)
    requests = [Request(id=i, rollout=i, prompt_ids=random_prompt(rng, 5 + i), sampling=PLAIN) for i in range(8)]
    engine = make_engine(old, stop_ids=(), chunk_tokens=7)
    # Half of them are at their tenth token when the weights change, half at their fourth.
    engine.submit(requests[:4])
    outcomes = collect(
        engine, at={6: lambda: engine.submit(requests[4:]), 10: lambda: engine.install(V1, state_tensors(new))}
    )
    for request in requests:
        outcome, n = outcomes[request.id], 10 if request.id < 4 else 4
        assert outcome.versions == [V0] * n + [V1] * (24 - n)
        check_swap(old, new, request.prompt_ids.tolist(), outcome, n)


def check_swap(old: PreTrainedModel, new: PreTrainedModel, prompt: list[int], outcome: Outcome, n: int) -> None:
    logprobs = torch.tensor(outcome.logprobs)
    before = chosen(full_logprobs(old, prompt, outcome.tokens), outcome.tokens)
    torch.testing.assert_close(logprobs[:n], before[:n], rtol=0, atol=1e-5)
    kept = new_weights_on_kept_kv(old, new, prompt, outcome.tokens, n)
    torch.testing.assert_close(logprobs[n:], kept, rtol=0, atol=1e-5)
    # The other hypotheses are far away, so the agreement means something.
    recomputed = chosen(full_logprobs(new, prompt, outcome.tokens), outcome.tokens)
    assert (logprobs[n:] - before[n:]).abs().mean() > 0.1
    assert (logprobs[n:] - recomputed[n:]).abs().mean() > 1e-3


@pytest.mark.parametrize(
    ("architecture", "tied"), [("qwen2", True), ("qwen2", False), ("llama", True), ("llama", False)]
)
def test_a_directory_is_served_as_transformers_reads_it(tmp_path, architecture, tied):
    save_tiny(tmp_path, architecture, tied=tied)
    model, tokenizer = load_model(tmp_path).eval(), load_tokenizer(tmp_path)
    engine = TorchEngine(
        load_config(tmp_path), seed=0, slots=4, max_len=64, stop_ids=stop_token_ids(tmp_path, tokenizer)
    )
    engine.install(V0, read_tensors(tmp_path))
    prompt = np.array(tokenizer.encode("<bos>5-4-0-1*8-5="), np.int32)
    outcome = drive(engine, [Request(id=1, rollout=1, prompt_ids=prompt, sampling=PLAIN)])[1]
    reference = chosen(full_logprobs(model, prompt.tolist(), outcome.tokens), outcome.tokens)
    np.testing.assert_allclose(outcome.logprobs, reference.numpy(), rtol=0, atol=1e-5)
