"""Sampling that gives the same token for the same (run seed, rollout, position), whatever else is in the batch.

One uniform number a token, from a counter-based hash, inverted through the cumulative distribution in float64:
no generator state to carry, and a rollout that moves to another engine goes on with the same noise.
Shapes: B rows, V tokens of the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from r1async.types import Sampling

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_BLOCK_ELEMENTS = 2**22
"""Rows are sampled in blocks of about this many logits, which bounds the float64 copy of a large vocabulary."""


@dataclass(frozen=True, slots=True)
class RowSettings:
    """Per row, what shapes the distribution that its next token is drawn from."""

    temperature: NDArray[np.float32]
    top_p: NDArray[np.float64]
    top_k: NDArray[np.int64]
    """0 is off."""
    greedy: NDArray[np.bool_]

    @classmethod
    def empty(cls, rows: int) -> RowSettings:
        """Rows that sample plainly at temperature 1."""
        return cls(
            np.ones(rows, np.float32), np.ones(rows, np.float64), np.zeros(rows, np.int64), np.zeros(rows, np.bool_)
        )

    def set(self, row: int, sampling: Sampling) -> None:
        self.temperature[row] = 1.0 if sampling.greedy else sampling.temperature
        self.top_p[row] = 1.0 if sampling.greedy else sampling.top_p
        self.top_k[row] = 0 if sampling.greedy else sampling.top_k
        self.greedy[row] = sampling.greedy

    def clear(self, rows: NDArray[np.int64]) -> None:
        """Makes rows sample plainly again, so that an empty one costs no filtering."""
        self.temperature[rows], self.top_p[rows], self.top_k[rows], self.greedy[rows] = 1.0, 1.0, 0, False

    @property
    def plain(self) -> bool:
        """Whether every row samples from the model's own distribution."""
        odd = (self.temperature != 1) | (self.top_p < 1) | (self.top_k > 0) | self.greedy
        return not odd.any()

    def __getitem__(self, rows: slice) -> RowSettings:
        return RowSettings(self.temperature[rows], self.top_p[rows], self.top_k[rows], self.greedy[rows])


def rollout_keys(seed: int, rollouts: NDArray[np.int64]) -> NDArray[np.uint64]:
    """(B,), where each rollout's stream of noise begins. Neighbouring seeds and rollouts give unrelated streams."""
    start = _mix(np.array([seed & (2**64 - 1)], np.uint64) + _GOLDEN)
    # Seed and rollout must not play the same part, or rollout 1 of seed 2 would sample as rollout 2 of seed 1.
    return _mix(start + _mix(rollouts.astype(np.uint64)) * _GOLDEN)


def uniforms(keys: NDArray[np.uint64], positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """(B,) in [0, 1), by rollout key and index of the completion token. 52 bits, so that u * total < total always."""
    counters = (positions.astype(np.uint64) + np.uint64(1)) * _GOLDEN
    return (_mix(keys + counters) >> np.uint64(12)).astype(np.float64) * 2.0**-52


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finalizer (Steele, Lea, Flood 2014; Vigna's constants)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def sample(logits_BV: Tensor, settings: RowSettings | None, uniform_B: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
    """Draws one token a row.

    Args:
        logits_BV: float32; overwritten.
        settings: of each row; None where every row samples plainly at temperature 1.
        uniform_B: one number in [0, 1) a row; the token is the first whose cumulative probability exceeds it.

    Returns:
        (B,) int64 tokens, and (B,) float32 logprobs under the distribution drawn from. A greedy row's distribution is
        a point, so its logprob is 0; a row whose logits are not finite has NaN.
    """
    rows, vocabulary = logits_BV.shape
    block = max(1, _BLOCK_ELEMENTS // vocabulary)
    if rows <= block:
        return _sample_block(logits_BV, settings, uniform_B)
    parts = [
        _sample_block(logits_BV[i : i + block], settings and settings[i : i + block], uniform_B[i : i + block])
        for i in range(0, rows, block)
    ]
    return torch.cat([tokens for tokens, _ in parts]), torch.cat([logprobs for _, logprobs in parts])


def _sample_block(
    logits_BV: Tensor, settings: RowSettings | None, uniform_B: NDArray[np.float64]
) -> tuple[Tensor, Tensor]:
    if settings is not None:
        _shape(logits_BV, settings)
    logprobs_BV = torch.log_softmax(logits_BV, dim=-1)
    cumulative_BV = logprobs_BV.exp().cumsum(-1, dtype=torch.float64)
    target_B1 = torch.from_numpy(uniform_B).unsqueeze(1) * cumulative_BV[:, -1:]
    # NaN compares as larger than everything, so a row of NaN would point past the end.
    tokens_B1 = torch.searchsorted(cumulative_BV, target_B1, right=True).clamp_(max=logits_BV.shape[1] - 1)
    logprobs_B = logprobs_BV.gather(-1, tokens_B1).squeeze(1)
    tokens_B = tokens_B1.squeeze(1)
    if settings is not None and settings.greedy.any():
        greedy_B = torch.from_numpy(settings.greedy)
        tokens_B = torch.where(greedy_B, logits_BV.argmax(-1), tokens_B)
        # Times zero, not zero: NaN has to stay NaN.
        logprobs_B = torch.where(greedy_B, logprobs_BV.amax(-1) * 0.0, logprobs_B)
    return tokens_B, logprobs_B


def _shape(logits_BV: Tensor, settings: RowSettings) -> None:
    """Applies temperature, top-k and top-p, in place."""
    if (settings.temperature != 1).any():
        logits_BV.div_(torch.from_numpy(settings.temperature).unsqueeze(1))
    filtered = np.flatnonzero((settings.top_p < 1) | (settings.top_k > 0))
    if len(filtered):
        rows = torch.from_numpy(filtered)
        top_k, top_p = torch.from_numpy(settings.top_k[filtered]), torch.from_numpy(settings.top_p[filtered])
        logits_BV[rows] = keep_top(logits_BV[rows], top_k, top_p)


def keep_top(logits_BV: Tensor, top_k_B: Tensor, top_p_B: Tensor) -> Tensor:
    """The logits with -inf where top-k, then top-p, leave a token out; a row keeps at least one.

    top-k keeps ties with the k-th. top-p keeps the fewest likeliest tokens whose probabilities add up to at least p,
    ties in order of their ids.
    """
    vocabulary = logits_BV.shape[1]
    sorted_BV, order_BV = logits_BV.sort(dim=-1, descending=True, stable=True)
    k_B = torch.where(top_k_B > 0, top_k_B.clamp(max=vocabulary), vocabulary)
    kth_B1 = sorted_BV.gather(-1, (k_B - 1).unsqueeze(1))
    sorted_BV = sorted_BV.masked_fill(sorted_BV < kth_B1, -torch.inf)
    probabilities_BV = sorted_BV.softmax(-1)
    before_BV = probabilities_BV.cumsum(-1, dtype=torch.float64) - probabilities_BV
    # p = 1 keeps everything, also a tail that rounding puts past 1.
    beyond_BV = (before_BV >= top_p_B.unsqueeze(1)) & (top_p_B < 1).unsqueeze(1)
    beyond_BV[:, 0] = False
    sorted_BV = sorted_BV.masked_fill(beyond_BV, -torch.inf)
    return torch.empty_like(logits_BV).scatter_(-1, order_BV, sorted_BV)
