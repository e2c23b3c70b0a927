"""What only a GPU can show: `make test-gpu`. Without one these are skipped, by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from r1async.models.forward import packed_logprobs
from r1async.models.loading import load_config, load_model, read_tensors, state_tensors
from r1async.types import PolicyVersion
from r1async.weights.manifest import take_snapshot

from tests.engine_runs import chosen, full_logprobs, random_prompt
from tests.tiny_models import save_tiny, tiny_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def packed(model: torch.nn.Module, device: str) -> torch.Tensor:
    rng = np.random.default_rng(0)
    lens = [40, 7, 23, 64]
    ids = torch.from_numpy(np.concatenate([random_prompt(rng, n) for n in lens])).to(device)
    ends = torch.tensor([0, *np.cumsum(lens).tolist()])
    scored = packed_logprobs(model, ids, ends, prompt_lens=torch.tensor([4, 2, 3, 10]))
    scored.logprobs_T.sum().backward()
    return scored.logprobs_T.detach().cpu()


def test_the_learners_forward_and_gradient_are_those_of_the_cpu(tmp_path):
    path = save_tiny(tmp_path)
    here, there = load_model(path), load_model(path, attention="sdpa", device="cuda")
    torch.testing.assert_close(packed(there, "cuda"), packed(here, "cpu"), rtol=0, atol=1e-3)
    for (name, ours), theirs in zip(here.named_parameters(), there.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(theirs.grad.cpu(), ours.grad, rtol=1e-2, atol=1e-3, msg=name)


def test_variable_length_attention_is_that_of_one_by_one(tmp_path):
    """FlashAttention in bfloat16 on one packed row against padded SDPA in float32."""
    pytest.importorskip("flash_attn")
    path = save_tiny(tmp_path)
    flash = load_model(path, dtype=torch.bfloat16, attention="flash_attention_2", device="cuda")
    torch.testing.assert_close(packed(flash, "cuda"), packed(load_model(path), "cpu"), rtol=0, atol=0.2)


def test_weights_leave_the_gpu_bit_for_bit():
    model = tiny_model().to("cuda")  # pyright: ignore[reportArgumentType]  as transformers annotates it
    tensors = state_tensors(model)
    snapshot = take_snapshot(PolicyVersion(1, 0), tensors, dtype="bfloat16")
    for name, tensor in snapshot.tensors().items():
        assert torch.equal(tensor, tensors[name].to(torch.bfloat16).cpu()), name


def test_a_model_on_the_gpu_scores_as_on_the_cpu(tmp_path):
    path = save_tiny(tmp_path)
    assert load_config(path).vocab_size
    assert read_tensors(path)
    prompt, completion = [5, 9, 11], [4, 8, 2]
    here = chosen(full_logprobs(load_model(path).eval(), prompt, completion), completion)
    there = load_model(path, device="cuda").eval()
    with torch.no_grad():
        logits = there(torch.tensor([[*prompt, *completion]], device="cuda")).logits[0, 2:-1].float().cpu()
    torch.testing.assert_close(chosen(torch.log_softmax(logits, -1), completion), here, rtol=0, atol=1e-3)
