"""What every engine must do, against transformers on the same weights: `make test-vllm`, `make test-sglang`, and here
the embedded engine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from r1async.generator.engine import KVPolicy, Request, WeightsError
from r1async.models.loading import state_tensors
from r1async.types import PolicyVersion
from transformers import DynamicCache, GenerationConfig, PreTrainedModel

from tests.engine_runs import EOS, Outcome, chosen, full_logprobs, random_prompt
from tests.engines.conftest import Served
from tests.tiny_models import generate

TOLERANCE = 5e-5
"""Nats, float32 on a CPU; 8e-6 to 4e-5 measured over engines and lengths."""
LONG = 300
"""Prompt tokens: two blocks of 128, and some."""


def prompts(n: int, length: int = 12, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [random_prompt(rng, length) for _ in range(n)]


def check_logprobs(model: PreTrainedModel, request: Request, outcome: Outcome, temperature: float = 1.0) -> None:
    scaled = full_logprobs(model, request.prompt_ids.tolist(), outcome.tokens) / temperature
    expected = chosen(torch.log_softmax(scaled, -1), outcome.tokens)
    np.testing.assert_allclose(outcome.logprobs, expected.numpy(), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_of_the_distribution_sampled_from(served: Served, temperature):
    requests = served.requests(prompts(16), temperature=temperature, max_tokens=40)
    outcomes = served.run(requests)
    for request in requests:
        check_logprobs(served.base, request, outcomes[request.id], temperature)


def test_a_group_is_sampled_independently(served: Served):
    requests = served.requests(prompts(1) * 8, max_tokens=24)
    outcomes = served.run(requests)
    assert len({tuple(outcome.tokens) for outcome in outcomes.values()}) > 1
    for request in requests:
        check_logprobs(served.base, request, outcomes[request.id])


def test_more_prompt_tokens_than_a_step_takes(served: Served):
    """Engines cut prompts to fill a step, and vLLM on a CPU falls if the cut one has a seed."""
    requests = served.requests(prompts(16, LONG, seed=2), max_tokens=8)
    outcomes = served.run(requests)
    for request in requests:
        check_logprobs(served.base, request, outcomes[request.id])


def test_greedy_is_that_of_generate(served: Served):
    requests = served.requests(prompts(6), greedy=True, max_tokens=24)
    outcomes = served.run(requests)
    settings = GenerationConfig(do_sample=False, max_new_tokens=24, eos_token_id=EOS, pad_token_id=0)
    batch = torch.tensor(np.stack([request.prompt_ids for request in requests])).long()
    expected = generate(served.base, batch, settings)[:, batch.shape[1] :].tolist()
    for request, tokens in zip(requests, expected, strict=True):
        outcome = outcomes[request.id]
        assert outcome.tokens == tokens[: len(outcome.tokens)]
        assert outcome.finish == ("stop" if EOS in tokens else "length")
        assert set(outcome.logprobs) == {0.0}


def test_a_stop_token_is_the_last_and_is_there(served: Served):
    outcomes = served.run(served.requests(prompts(16), max_tokens=160)).values()
    stopped = [outcome for outcome in outcomes if outcome.finish == "stop"]
    assert stopped, "no completion ended by itself"
    assert all(outcome.tokens[-1] == EOS and EOS not in outcome.tokens[:-1] for outcome in stopped)
    assert all(len(outcome.tokens) == 160 for outcome in outcomes if outcome.finish == "length")


def test_a_resumed_rollout_goes_on_where_it_was(served: Served):
    first = served.requests(prompts(4), max_tokens=10)
    begun = served.run(first)
    going = [request for request in first if begun[request.id].finish == "length"]
    assert going
    resumed = [
        replace(
            again,
            prompt_ids=request.prompt_ids,
            resume_ids=np.array(begun[request.id].tokens, np.int32),
        )
        for request, again in zip(going, served.requests(prompts(len(going)), max_tokens=30), strict=True)
    ]
    outcomes = served.run(resumed)
    for request, again in zip(going, resumed, strict=True):
        before, after = begun[request.id], outcomes[again.id]
        assert len(after.tokens) <= 20
        assert after.finish == "stop" or len(after.tokens) == 20
        joined = Outcome(tokens=before.tokens + after.tokens, logprobs=before.logprobs + after.logprobs)
        check_logprobs(served.base, request, joined)


def test_an_aborted_request_frees_its_place_and_says_no_more(served: Served):
    engine = served.engine
    gone, stays = served.requests(prompts(2), max_tokens=150)
    engine.submit([gone, stays])
    seen = {gone.id: Outcome(), stays.id: Outcome()}
    while not (seen[gone.id].tokens and seen[stays.id].tokens):
        for progress in served.step():
            seen[progress.id].take(progress)
    before = len(seen[gone.id].tokens)
    engine.abort([gone.id, 10**9])
    assert engine.free == engine.capacity - 1
    while seen[stays.id].finish is None:
        for progress in served.step():
            seen[progress.id].take(progress)
    assert len(seen[gone.id].tokens) == before
    assert not engine.busy
    outcomes = served.run(served.requests(prompts(engine.capacity), max_tokens=4))
    assert len(outcomes) == engine.capacity


def test_flush_reports_what_no_step_has(served: Served):
    request = served.requests(prompts(1), max_tokens=150)[0]
    served.engine.submit([request])
    outcome = Outcome()
    while len(outcome.tokens) < 5:
        for progress in served.step():
            outcome.take(progress)
    for progress in served.engine.flush():
        outcome.take(progress)
    served.engine.abort([request.id])
    check_logprobs(served.base, request, outcome)


def test_what_cannot_be_sampled_is_refused(served: Served):
    engine = served.engine
    one, two = served.requests(prompts(2), max_tokens=100)
    for request, says in (
        (replace(one, prompt_ids=np.empty(0, np.int32)), "empty prompt"),
        (replace(one, prompt_ids=np.array([10**6], np.int32)), "outside the vocabulary"),
        (replace(one, prompt_ids=np.array([-1], np.int32)), "outside the vocabulary"),
        (replace(one, resume_ids=np.ones(100, np.int32)), "nothing to sample"),
        (replace(one, prompt_ids=np.full(4000, 5, np.int32)), "context"),
        (replace(one, sampling=replace(one.sampling, temperature=-1.0)), "temperature"),
        (replace(one, pin=PolicyVersion(9, 9)), "9@9"),
    ):
        with pytest.raises(ValueError, match=says):
            engine.submit([request])
    with pytest.raises(ValueError, match="free"):
        engine.submit(served.requests(prompts(engine.capacity + 1)))
    engine.submit([one])
    with pytest.raises(ValueError, match="in the engine already"):
        engine.submit([two, one])
    assert engine.free == engine.capacity - 1
    engine.abort([one.id])


def cached(model: PreTrainedModel, tokens: list[int]) -> DynamicCache:
    cache = DynamicCache()
    with torch.no_grad():
        model(torch.tensor([tokens]), past_key_values=cache, use_cache=True)
    return cache


def hypotheses(
    before: PreTrainedModel, after: PreTrainedModel, prompt: list[int], tokens: list[int], n: int
) -> dict[str, torch.Tensor]:
    """Logprobs of ``tokens[n:]`` under what may have become of the KV when the weights changed after n tokens."""
    kept = cached(before, [*prompt, *tokens[: n - 1]])
    with torch.no_grad():
        logits = [
            after(torch.tensor([[token]]), past_key_values=kept, use_cache=True).logits[0, -1]
            for token in tokens[n - 1 : -1]
        ]
    return {
        "kept": chosen(torch.log_softmax(torch.stack(logits), -1), tokens[n:]),
        "recomputed": chosen(full_logprobs(after, prompt, tokens), tokens)[n:],
        "old": chosen(full_logprobs(before, prompt, tokens), tokens)[n:],
    }


@pytest.mark.parametrize(("policy", "meant"), [("keep", "kept"), ("recompute", "recomputed"), ("abort", "recomputed")])
def test_weights_change_in_flight(served: Served, other, policy: KVPolicy, meant: str):
    served.policy(policy)
    before = served.engine.version
    assert before is not None
    requests = served.requests(prompts(16, seed=3), max_tokens=120)
    installed: list[PolicyVersion] = []
    outcomes = served.run(
        requests,
        when=lambda seen: all(len(outcome.tokens) >= 10 or outcome.finish for outcome in seen.values()),
        then=lambda: installed.append(served.install(other)),
    )
    errors: dict[str, list[float]] = {"kept": [], "recomputed": [], "old": []}
    for request in requests:
        outcome = outcomes[request.id]
        n = outcome.versions.count(before)
        assert n >= 10 or n == len(outcome.tokens)
        assert outcome.versions == [before] * n + [installed[0]] * (len(outcome.tokens) - n)
        first = Outcome(tokens=outcome.tokens[:n], logprobs=outcome.logprobs[:n])
        check_logprobs(served.base, request, first)
        if n == len(outcome.tokens):
            continue
        told = torch.tensor(outcome.logprobs[n:])
        for name, expected in hypotheses(served.base, other, request.prompt_ids.tolist(), outcome.tokens, n).items():
            errors[name] += (told - expected).abs().tolist()
    assert len(errors[meant]) > 50
    assert max(errors[meant]) < TOLERANCE
    for name, values in errors.items():
        if name != meant:
            assert np.mean(values) > 100 * TOLERANCE, name


def test_a_cached_prefix_never_serves_other_weights(served: Served, other):
    long = prompts(1, LONG, seed=4) * 2
    for request in (asked := served.requests(long, max_tokens=16)):
        check_logprobs(served.base, request, served.run([request])[request.id])
    served.install(other)
    for request in (again := served.requests(long, max_tokens=16)):
        check_logprobs(other, request, served.run([request])[request.id])
    assert len(asked) == len(again) == 2


def test_a_prefix_cached_in_flight_never_serves_other_weights(served: Served, other):
    """Where the policy keeps the KV of running requests, a new request with their prompt must not get it."""
    prompt = prompts(1, LONG, seed=5)
    running = served.requests(prompt, max_tokens=150)
    fresh = served.requests(prompt, max_tokens=16)
    outcomes = {request.id: Outcome() for request in [*running, *fresh]}
    served.engine.submit(running)
    while len(outcomes[running[0].id].tokens) < 5:
        for progress in served.step():
            outcomes[progress.id].take(progress)
    assert outcomes[running[0].id].finish is None
    served.install(other)
    served.engine.submit(fresh)
    while outcomes[fresh[0].id].finish is None:
        for progress in served.step():
            outcomes[progress.id].take(progress)
    check_logprobs(other, fresh[0], outcomes[fresh[0].id])


def test_versions_follow_each_other_quickly(served: Served, other):
    """Five installs in one rollout; every token has the version that was in when it was sampled."""
    request = served.requests(prompts(1, seed=6), max_tokens=150)[0]
    models, n = [served.base, other], 0
    assert served.engine.version is not None
    order = [served.engine.version]
    served.engine.submit([request])
    outcome = Outcome()
    while outcome.finish is None:
        for progress in served.step():
            outcome.take(progress)
        if outcome.finish is None and len(outcome.tokens) >= 6 * (n + 1) and n < 5:
            n += 1
            order.append(served.install(models[n % 2]))
    seen = [version for i, version in enumerate(outcome.versions) if i == 0 or outcome.versions[i - 1] != version]
    assert seen == order[: len(seen)]
    assert len(seen) >= 2
    # On kept KV the last word is the first model's only if it is computed step by step, so look at the first run.
    n = outcome.versions.count(order[0])
    check_logprobs(served.base, request, Outcome(tokens=outcome.tokens[:n], logprobs=outcome.logprobs[:n]))


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda tensors: tensors.pop(NORM), NORM),
        (lambda tensors: tensors.update({"model.extra": torch.ones(1)}), "model.extra"),
        (lambda tensors: tensors.update({NORM: torch.ones(63)}), NORM),
        (lambda tensors: tensors.update({NORM: torch.full((64,), torch.nan)}), NORM),
    ],
    ids=["missing", "foreign", "shape", "nan"],
)
def test_a_bad_set_of_weights_is_refused_and_the_last_one_still_served(served: Served, other, damage, says):
    tensors = dict(state_tensors(other))
    damage(tensors)
    version = served.engine.version
    with pytest.raises(WeightsError, match=says):
        served.install(tensors)
    assert served.engine.version == version
    requests = served.requests(prompts(4), max_tokens=16)
    outcomes = served.run(requests)
    for request in requests:
        check_logprobs(served.base, request, outcomes[request.id])
        assert set(outcomes[request.id].versions) == {version}


def test_an_install_between_requests_changes_all_of_the_model(served: Served, other):
    """A part that is not reloaded (a tied head, most easily) shows in every token."""
    version = served.install(other)
    requests = served.requests(prompts(16, seed=7), max_tokens=32)
    outcomes = served.run(requests)
    for request in requests:
        check_logprobs(other, request, outcomes[request.id])
        assert set(outcomes[request.id].versions) == {version}
