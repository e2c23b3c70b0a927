"""What is minimised: losses as sums over a forward pass, and what they are divided by.

Shapes: n sequences of one pass, T tokens of all of them, L of the longest, P pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel

from r1async.models.forward import packed_logprobs

Sequences = Sequence[tuple[NDArray[np.int32], NDArray[np.uint8]]]
"""Tokens and learned marks, one after another; the two of a pair are neighbours."""


class Objective(Protocol):
    """One kind of training."""

    @property
    def sums(self) -> tuple[str, ...]:
        """Names of what `loss` adds up; the first is the loss itself."""
        ...

    def weight(self, sequences: Sequences) -> int:
        """What a pass counts: the sum of the loss is divided by the sum of these over a step."""
        ...

    def loss(self, model: PreTrainedModel, sequences: Sequences, device: torch.device) -> Tensor:
        """(len(sums),) float32; the gradient goes through the first. Without sequences: zeros, with a gradient of zero,
        after the same collectives."""
        ...


class CompletionLoss:
    """Mean cross-entropy, in nats, over the learned tokens of a step."""

    sums = ("loss",)

    def weight(self, sequences: Sequences) -> int:
        return sum(int(learned.sum()) for _, learned in sequences)

    def loss(self, model: PreTrainedModel, sequences: Sequences, device: torch.device) -> Tensor:
        if not sequences:
            bounds = torch.tensor([0, 2], device=device)
            return 0.0 * packed_logprobs(model, torch.zeros(2, dtype=torch.long, device=device), bounds).logprobs_T[:1]
        tokens_T = torch.from_numpy(np.concatenate([tokens for tokens, _ in sequences])).to(device)
        learned_T = torch.from_numpy(np.concatenate([learned for _, learned in sequences])).to(device).bool()
        lengths = [len(tokens) for tokens, _ in sequences]
        bounds = torch.tensor([0, *np.cumsum(lengths)], device=device)
        # What stands before the first learned token needs no logits.
        first = torch.tensor([int(learned.argmax()) for _, learned in sequences], device=device)
        logprobs_T = packed_logprobs(model, tokens_T, bounds, prompt_lens=first).logprobs_T
        return -(logprobs_T * learned_T).sum().reshape(1)


class BradleyTerry:
    """-log sigmoid(r_chosen - r_rejected), mean over the pairs of a step.

    Source: Bradley and Terry (Biometrika 39, 1952) as the likelihood of a preference; the loss is eq. 1 of InstructGPT
    (arXiv 2203.02155) with one pair a prompt.
    """

    sums = ("loss", "accuracy", "margin", "reward")

    def __init__(self, pad: int) -> None:
        self._pad = pad

    def weight(self, sequences: Sequences) -> int:
        return len(sequences) // 2

    def loss(self, model: PreTrainedModel, sequences: Sequences, device: torch.device) -> Tensor:
        if not sequences:
            tokens_nL = torch.zeros(1, 1, dtype=torch.long, device=device)
            rewards_n = model(input_ids=tokens_nL, attention_mask=torch.ones_like(tokens_nL)).logits[:, 0]
            return 0.0 * rewards_n.float().expand(len(self.sums))
        longest = max(len(tokens) for tokens, _ in sequences)
        tokens_nL = torch.full((len(sequences), longest), self._pad, dtype=torch.long)
        mask_nL = torch.zeros_like(tokens_nL)
        for row, (tokens, _) in enumerate(sequences):
            tokens_nL[row, : len(tokens)] = torch.from_numpy(np.array(tokens, np.int64))
            mask_nL[row, : len(tokens)] = 1
        rewards_n = model(input_ids=tokens_nL.to(device), attention_mask=mask_nL.to(device)).logits[:, 0].float()
        return bradley_terry(rewards_n[0::2], rewards_n[1::2])


def bradley_terry(chosen_P: Tensor, rejected_P: Tensor) -> Tensor:
    """(4,) sums over pairs: the loss in nats, pairs ranked right (a tie counts half), margins, and rewards (the mean of
    a pair's two)."""
    margin_P = chosen_P - rejected_P
    right_P = (margin_P > 0).float() + 0.5 * (margin_P == 0).float()
    reward_P = (chosen_P + rejected_P).detach() / 2
    return torch.stack([-logsigmoid(margin_P).sum(), right_P.sum(), margin_P.detach().sum(), reward_P.sum()])


def means(names: Sequence[str], sums: Sequence[float], weight: float) -> Mapping[str, float]:
    """The sums by name, each divided."""
    return {name: value / weight for name, value in zip(names, sums, strict=True)}
