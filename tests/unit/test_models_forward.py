"""Packed log-probabilities: every rollout as if it were alone, in either layout, with gradient."""

import math

import pytest
import torch
from r1async.models.forward import packed_logprobs, token_logprobs
from torch.nn import functional

from tests.tiny_models import tiny_model

LENS = [5, 17, 3, 30, 2]


def rollouts() -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = [torch.randint(3, 34, (length,), generator=generator) for length in LENS]
    return tokens, torch.cat(tokens).int(), torch.tensor([0, *LENS]).cumsum(0).int()


def one_by_one(model, tokens, temperature):
    """(T,), zero at each rollout's first token."""
    parts = []
    for ids in tokens:
        logprobs = torch.log_softmax(model(ids.unsqueeze(0)).logits[0, :-1] / temperature, dim=-1)
        parts += [torch.zeros(1), logprobs.gather(1, ids[1:].unsqueeze(1)).squeeze(1)]
    return torch.cat(parts)


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "llama"])
def test_logprobs_of_a_batch_are_those_of_its_rollouts_one_by_one(architecture, tied, layout):
    model = tiny_model(architecture, tied=tied, heads=4, kv_heads=2)
    tokens, packed, bounds = rollouts()
    scored = packed_logprobs(model, packed, bounds, temperature=0.7, layout=layout)
    torch.testing.assert_close(scored.logprobs_T, one_by_one(model, tokens, 0.7), rtol=0, atol=1e-5)
    assert scored.entropy_T is None


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_gradients_are_those_of_the_rollouts_one_by_one(layout):
    model = tiny_model("qwen2")
    tokens, packed, bounds = rollouts()
    packed_logprobs(model, packed, bounds, layout=layout).logprobs_T.sum().backward()
    got = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    one_by_one(model, tokens, 1.0).sum().backward()
    assert got.keys() == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, rtol=1e-4, atol=1e-3)


def test_prompt_tokens_are_not_scored_and_the_head_does_not_see_them():
    model = tiny_model("llama")
    tokens, packed, bounds = rollouts()
    prompts = torch.tensor([2, 10, 1, 29, 0])
    rows = []
    handle = model.lm_head.register_forward_hook(lambda _, inputs, out: rows.append(tuple(out.shape)))
    scored = packed_logprobs(model, packed, bounds, prompt_lens=prompts).logprobs_T
    handle.remove()
    # 3 + 7 + 2 + 1 completion tokens, and of the rollout without a prompt all but its first.
    assert rows == [(14, 34)]
    position = torch.cat([torch.arange(length) for length in LENS])
    is_scored = position >= prompts.clamp(min=1).repeat_interleave(torch.tensor(LENS))
    assert torch.equal(scored != 0, is_scored)
    torch.testing.assert_close(scored[is_scored], one_by_one(model, tokens, 1.0)[is_scored], rtol=0, atol=1e-5)


def test_a_rollout_does_not_see_its_neighbours():
    model = tiny_model("qwen2")
    _, packed, bounds = rollouts()
    before = packed_logprobs(model, packed, bounds).logprobs_T
    changed = packed.clone()
    changed[5:22] = (changed[5:22] - 3 + 1) % 31 + 3  # the second rollout, every token another
    after = packed_logprobs(model, changed, bounds).logprobs_T
    outside = torch.ones(len(packed), dtype=torch.bool)
    outside[5:22] = False
    torch.testing.assert_close(after[outside], before[outside], rtol=0, atol=1e-6)
    assert (after[6:22] - before[6:22]).abs().min() > 0


def test_entropy_is_of_each_tokens_distribution_and_has_no_gradient():
    model = tiny_model("qwen2")
    tokens, packed, bounds = rollouts()
    scored = packed_logprobs(model, packed, bounds, temperature=2.0, entropy=True)
    assert scored.entropy_T is not None
    assert not scored.entropy_T.requires_grad
    logits = model(tokens[1].unsqueeze(0)).logits[0, :-1] / 2.0
    expected = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(scored.entropy_T[6:22], expected, rtol=0, atol=1e-5)
    assert scored.entropy_T[[0, 5, 22, 25, 55]].tolist() == [0.0] * 5


def test_logprobs_by_hand():
    # Temperature 2 halves ln 9 to ln 3: probabilities 1/4 and 3/4.
    logprobs, _ = token_logprobs(torch.tensor([[0.0, math.log(9)]]), torch.tensor([1]), 2.0)
    assert logprobs.item() == pytest.approx(math.log(0.75), abs=1e-6)


def test_bfloat16_logits_are_normalised_in_float32():
    logits = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    logprobs, _ = token_logprobs(logits, torch.arange(4), 1.0)
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs, functional.log_softmax(logits.double(), -1)[range(4), range(4)].float())


def test_the_head_is_as_it_was_after_an_error():
    model = tiny_model("qwen2")
    with pytest.raises(IndexError):
        packed_logprobs(model, torch.tensor([3, 99]), torch.tensor([0, 2]))
    assert model(torch.tensor([[3, 4]])).logits.shape == (1, 2, 34)


@pytest.mark.parametrize(
    ("bounds", "prompts", "temperature", "says"),
    [
        ([0, 2, 3], None, 1.0, "rise from 0 to 4"),
        ([1, 4], None, 1.0, "rise from 0 to 4"),
        ([0, 2, 2, 4], None, 1.0, "rise from 0 to 4"),
        ([0, 4], [1, 1], 1.0, r"prompt_lens must have shape \(1,\), got \(2,\)"),
        ([0, 4], None, 0.0, "temperature must be positive, got 0.0"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(bounds, prompts, temperature, says):
    prompt_lens = None if prompts is None else torch.tensor(prompts)
    with pytest.raises(ValueError, match=says):
        packed_logprobs(
            tiny_model(), torch.arange(4), torch.tensor(bounds), prompt_lens=prompt_lens, temperature=temperature
        )


def test_something_that_is_no_causal_lm_is_refused():
    with pytest.raises(ValueError, match=r"causal LM of transformers.*Linear"):
        packed_logprobs(torch.nn.Linear(2, 2), torch.arange(4), torch.tensor([0, 4]))
