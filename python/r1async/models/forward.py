"""Log-probabilities of packed rollouts under a Hugging Face causal LM, with gradient.

Shapes: n rollouts of one micro-batch, T tokens of all of them, L tokens of the longest, C tokens scored.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

Layout = Literal["auto", "padded", "packed"]


@dataclass(frozen=True, slots=True)
class PackedLogprobs:
    """What a micro-batch's tokens are worth under the model; zero where a token was not scored."""

    logprobs_T: Tensor
    """(T,) float32, nats, of each token given its predecessors. Carries the gradient."""
    entropy_T: Tensor | None
    """(T,) float32, nats, of the distribution each token was scored under. No gradient: it is a metric."""


def packed_logprobs(
    model: nn.Module,
    token_ids_T: Tensor,
    cu_seqlens: Tensor,
    *,
    prompt_lens: Tensor | None = None,
    temperature: float = 1.0,
    entropy: bool = False,
    layout: Layout = "auto",
) -> PackedLogprobs:
    """Scores each token of each rollout given its predecessors in that rollout and nothing else.

    One forward pass through ``model`` itself, never through its parts: FSDP and DDP hang their hooks there, and
    every rank must make the same number of passes. The language-model head sees the scored positions only, and
    what a model does to its logits afterwards (soft-capping, scaling) stays in effect.

    Args:
        model: a causal LM of transformers, or DDP around one.
        token_ids_T: tokens of the rollouts one after another, any integer dtype.
        cu_seqlens: (n + 1,), rollout i has tokens ``cu_seqlens[i]:cu_seqlens[i + 1]``.
        prompt_lens: (n,), leading tokens of each rollout that are not scored. None scores all but the first.
        temperature: the logits are divided by it, as the engine did.
        entropy: also return the entropy at each scored token.
        layout: packed puts all rollouts in one row and needs variable-length attention to be cheap. padded puts
            each in its own row, padding after it: with causal attention no mask is needed, and a pack's dense mask
            would cost the square of its length. auto takes packed where the model uses FlashAttention.

    Raises:
        ValueError: shapes that do not fit together, or a temperature that is not positive.
    """
    lens = _checked_lens(token_ids_T, cu_seqlens, prompt_lens, temperature)
    causal_lm = _causal_lm(model)
    if layout == "auto":
        layout = "packed" if has_varlen_attention(causal_lm) else "padded"
    device = token_ids_T.device
    lens = lens.to(device)
    starts = cu_seqlens[:-1].to(device)
    row_T = torch.repeat_interleave(torch.arange(len(lens), device=device), lens, output_size=len(token_ids_T))
    column_T = torch.arange(len(token_ids_T), device=device) - starts[row_T]
    first_scored = torch.ones_like(lens) if prompt_lens is None else prompt_lens.to(device).clamp(min=1)
    scored_C = (column_T >= first_scored[row_T]).nonzero().squeeze(1)

    if layout == "packed":
        inputs = _packed_inputs(causal_lm, token_ids_T, column_T, cu_seqlens.to(device), lens)
        where_C = (torch.zeros_like(scored_C), scored_C - 1)
    else:
        padded_nL = token_ids_T.new_zeros((len(lens), int(lens.max()) if len(lens) else 0), dtype=torch.long)
        padded_nL[row_T, column_T] = token_ids_T.long()
        inputs = {"input_ids": padded_nL}
        where_C = (row_T[scored_C], column_T[scored_C] - 1)
    with _head_sees_only(causal_lm, where_C):
        # use_cache=False is not an optimisation: with a cache, transformers 5 ignores packed position_ids.
        logits_CV = model(**inputs, use_cache=False).logits
    return _scatter(logits_CV, token_ids_T, scored_C, temperature, entropy)


def token_logprobs(logits_CV: Tensor, token_ids_C: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probability of each token in float32, and the log-softmax it was taken from."""
    logprobs_CV = torch.log_softmax(logits_CV.float() / temperature, dim=-1)
    return logprobs_CV.gather(-1, token_ids_C.long().unsqueeze(-1)).squeeze(-1), logprobs_CV


def _scatter(
    logits_CV: Tensor, token_ids_T: Tensor, scored_C: Tensor, temperature: float, entropy: bool
) -> PackedLogprobs:
    logprobs_C, logprobs_CV = token_logprobs(logits_CV, token_ids_T[scored_C], temperature)
    zeros_T = torch.zeros(len(token_ids_T), dtype=torch.float32, device=token_ids_T.device)
    entropy_T = None
    if entropy:
        with torch.no_grad():
            # A token of probability zero adds nothing: 0 * -inf would be NaN.
            entropy_C = -(logprobs_CV.exp() * logprobs_CV.clamp(min=torch.finfo(torch.float32).min)).sum(-1)
            entropy_T = zeros_T.index_put((scored_C,), entropy_C)
    return PackedLogprobs(zeros_T.index_put((scored_C,), logprobs_C), entropy_T)


def _checked_lens(token_ids_T: Tensor, cu_seqlens: Tensor, prompt_lens: Tensor | None, temperature: float) -> Tensor:
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if token_ids_T.dim() != 1 or cu_seqlens.dim() != 1 or len(cu_seqlens) < 1:
        raise ValueError(
            f"want token_ids (T,) and cu_seqlens (n + 1,), got {tuple(token_ids_T.shape)} and {tuple(cu_seqlens.shape)}"
        )
    lens = cu_seqlens[1:].long() - cu_seqlens[:-1].long()
    if int(cu_seqlens[0]) != 0 or int(cu_seqlens[-1]) != len(token_ids_T) or bool((lens <= 0).any()):
        raise ValueError(
            f"cu_seqlens must rise from 0 to {len(token_ids_T)} (the number of tokens), got {cu_seqlens.tolist()}"
        )
    if prompt_lens is not None and prompt_lens.shape != lens.shape:
        raise ValueError(f"prompt_lens must have shape {tuple(lens.shape)}, got {tuple(prompt_lens.shape)}")
    return lens


def _causal_lm(model: nn.Module) -> PreTrainedModel:
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    if not isinstance(inner, PreTrainedModel) or inner.get_output_embeddings() is None:
        raise ValueError(f"want a causal LM of transformers, or DDP around one, got {type(inner).__name__}")
    return inner


def has_varlen_attention(model: PreTrainedModel) -> bool:
    return str(model.config._attn_implementation).startswith("flash_attention")


def _packed_inputs(
    model: PreTrainedModel, token_ids_T: Tensor, position_T: Tensor, cu_seqlens: Tensor, lens: Tensor
) -> dict[str, Tensor | int]:
    """One row of all rollouts. Positions that start again at 0 keep them apart; an attention_mask would not."""
    inputs: dict[str, Tensor | int] = {
        "input_ids": token_ids_T.long().unsqueeze(0),
        "position_ids": position_T.unsqueeze(0),
    }
    if has_varlen_attention(model):
        bounds, longest = cu_seqlens.to(torch.int32), int(lens.max())
        inputs |= {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}
    return inputs


@contextmanager
def _head_sees_only(model: PreTrainedModel, where_C: tuple[Tensor, Tensor]) -> Iterator[None]:
    """While this is open the language-model head maps hidden states at ``where_C`` to (C, V), not all to (n, L, V)."""

    def gather(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden_nLH, *rest = inputs
        return (hidden_nLH[where_C], *rest)

    head = model.get_output_embeddings()
    assert head is not None  # `_causal_lm` saw to it
    handle = head.register_forward_pre_hook(gather)
    try:
        yield
    finally:
        handle.remove()
