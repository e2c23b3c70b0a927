"""What a step says about itself: sums over tokens made on the device, rows of rollouts on the host.

docs/metrics-learner.md explains every name. Shapes: N completion tokens of a micro-batch, n rollouts.
"""

from __future__ import annotations

from enum import IntEnum, auto

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from r1async.learner.batch import MicroBatch, completion_lengths, sampled_tokens, token_staleness
from r1async.learner.correction import bounded
from r1async.learner.distributed import Ranks
from r1async.learner.loss import LossTerms, Totals
from r1async.types import Batch

Metrics = dict[str, float]

HISTOGRAM_BINS = 256
"""Staleness of this much and more shares the last bin."""


class _Sum(IntEnum):
    POLICY = 0
    KL_REF = auto()
    CLIPPED_LOW = auto()
    CLIPPED_HIGH = auto()
    ENTROPY = auto()
    WEIGHT = auto()
    WEIGHT_SQUARED = auto()
    LOG_RATIO = auto()
    MISMATCH = auto()
    MISMATCH_KL = auto()
    MISMATCH_TOKENS = auto()


class _Max(IntEnum):
    WEIGHT = 0
    MISMATCH = auto()


class TokenSums:
    """Sums and maxima over the step's tokens, added up micro-batch by micro-batch without leaving the device."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(len(_Sum), dtype=torch.float64, device=device)
        self.maxima = torch.zeros(len(_Max), dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, part: MicroBatch, logprobs_N: Tensor, entropy_N: Tensor, terms: LossTerms) -> None:
        mask_N, same_N = part.loss_mask_N, _sampled_by_these_weights(part)
        # Zero where masked, so every sum below is over loss tokens; the weight is 1 there and is masked again.
        log_ratio_N = bounded(logprobs_N - part.behavior_logprobs_N, mask_N)
        weight_N = log_ratio_N.exp() * mask_N
        signed_N = bounded(logprobs_N - part.behavior_logprobs_N, same_N)
        difference_N = (logprobs_N - part.behavior_logprobs_N).abs().masked_fill(~same_N, 0.0)
        self.sums += torch.stack(
            [
                terms.policy,
                terms.kl,
                terms.clipped_low,
                terms.clipped_high,
                (entropy_N * mask_N).sum(),
                weight_N.sum(),
                weight_N.square().sum(),
                log_ratio_N.sum(),
                difference_N.sum(),
                (signed_N.double().expm1() - signed_N).sum(),
                same_N.sum(),
            ]
        ).double()
        if part.rollouts:
            largest = torch.stack([weight_N.max(), difference_N.max()]).double()
            self.maxima = torch.maximum(self.maxima, largest)

    def divide_losses(self, divisor: int) -> None:
        """The losses are sums until the totals of the whole batch are known."""
        self.sums[[_Sum.POLICY, _Sum.KL_REF]] /= divisor


def _sampled_by_these_weights(part: MicroBatch) -> Tensor:
    """True on the tokens of rollouts whose every token is of this step's version, ``(N,)``.

    Where a rollout began under an older version, its newest tokens attended to keys and values that the old weights
    had left in the engine's cache: they differ from a forward pass of the new weights by lag, not by numerics.
    """
    rollout_N = torch.arange(part.rollouts, device=part.lengths_n.device).repeat_interleave(
        part.lengths_n, output_size=len(part.staleness_N)
    )
    stale_n = torch.zeros_like(part.lengths_n).index_add_(0, rollout_N, (part.staleness_N != 0).long())
    return (stale_n == 0)[rollout_N]


def token_metrics(sums: list[float], maxima: list[float], loss_tokens: int, kl_coef: float) -> Metrics:
    """Means from the sums over all ranks. All importance figures are of exp(current - behavior), whatever the loss."""
    tokens = max(1, loss_tokens)
    weight, squared = sums[_Sum.WEIGHT], sums[_Sum.WEIGHT_SQUARED]
    kl_k1 = -sums[_Sum.LOG_RATIO] / tokens
    return {
        "loss": sums[_Sum.POLICY] + kl_coef * sums[_Sum.KL_REF],
        "loss/policy": sums[_Sum.POLICY],
        "kl/ref": sums[_Sum.KL_REF],
        "entropy": sums[_Sum.ENTROPY] / tokens,
        "clip_fraction": (sums[_Sum.CLIPPED_LOW] + sums[_Sum.CLIPPED_HIGH]) / tokens,
        "clip_fraction/low": sums[_Sum.CLIPPED_LOW] / tokens,
        "clip_fraction/high": sums[_Sum.CLIPPED_HIGH] / tokens,
        "is/mean": weight / tokens,
        "is/max": maxima[_Max.WEIGHT],
        "is/ess": weight * weight / (tokens * squared) if squared > 0 else 1.0,
        "kl/behavior": weight / tokens - 1 + kl_k1,
        "kl/behavior_k1": kl_k1,
        "mismatch/mean": sums[_Sum.MISMATCH] / max(1.0, sums[_Sum.MISMATCH_TOKENS]),
        "mismatch/max": maxima[_Max.MISMATCH],
        "mismatch/kl": sums[_Sum.MISMATCH_KL] / max(1.0, sums[_Sum.MISMATCH_TOKENS]),
        "mismatch/tokens": sums[_Sum.MISMATCH_TOKENS],
    }


_COLUMNS = ("group", "reward", "length", "truncated", "age in generation", "age in queue", "observed")


class BatchSums:
    """Rewards, lengths and ages of a step's rollouts, of all ranks, as the parts of its batch come in."""

    def __init__(self) -> None:
        self.histogram = np.zeros(HISTOGRAM_BINS, np.int64)
        """Loss tokens by staleness, ``(HISTOGRAM_BINS,)``."""
        self.parts = 0
        self.totals = Totals(rollouts=0, loss_tokens=0)
        self._groups = 0
        self._tokens = 0
        self._rows: list[NDArray[np.float64]] = []
        self._scores: dict[str, list[NDArray[np.float64]]] = {}
        """By name of a reward part, those there are."""

    def add(self, batch: Batch, ranks: Ranks) -> None:
        """Collective."""
        rows = ranks.rows(_rows(batch))
        self._rows.append(rows[:, : len(_COLUMNS)])
        for name, column in zip(sorted(batch.parts), rows[:, len(_COLUMNS) :].T, strict=True):
            self._scores.setdefault(name, []).append(column[~np.isnan(column)])
        self.histogram += ranks.sum(torch.from_numpy(_histogram(batch)).to(ranks.device)).cpu().numpy()
        self.totals = Totals(
            rollouts=self.totals.rollouts + batch.total_rollouts,
            loss_tokens=self.totals.loss_tokens + batch.total_loss_tokens,
        )
        self._groups += batch.total_groups
        self._tokens += batch.total_completion_tokens
        self.parts += 1

    def metrics(self) -> Metrics:
        """Of all that was added."""
        group, reward, length, truncated, in_generation, in_queue, observed = np.concatenate(self._rows).T
        loss_tokens = self.totals.loss_tokens
        metrics: Metrics = {
            "rollouts": self.totals.rollouts,
            "groups": self._groups,
            "parts": self.parts,
            "tokens": self._tokens,
            "loss_tokens": loss_tokens,
            "observation_tokens": int(observed.sum()),
            "over_age": 1 - loss_tokens / max(1, self._tokens),
            "reward/mean": _mean(reward),
            "reward/std": float(reward.std()) if len(reward) else 0.0,
            "length/mean": _mean(length),
            "length/max": float(length.max(initial=0.0)),
            "truncated": _mean(truncated),
            "age/generation": _mean(in_generation),
            "age/queue": _mean(in_queue),
        }
        for name, columns in sorted(self._scores.items()):
            known = np.concatenate(columns)
            if len(known):
                metrics[f"reward/{name}"] = float(known.mean())
        return metrics | _group_metrics(group, reward) | _staleness_metrics(self.histogram)


def _rows(batch: Batch) -> NDArray[np.float64]:
    """One row per rollout, `_COLUMNS` and reward parts; in float64, which holds every count below 2^53."""
    versions = np.where(batch.run_lengths > 0, batch.run_versions, np.iinfo(np.int32).max)
    has_runs = np.diff(batch.cu_runs) > 0
    finish = batch.finish_versions.astype(np.int64)
    lowest = finish.copy()
    if has_runs.any():
        lowest[has_runs] = np.minimum.reduceat(versions, batch.cu_runs[:-1][has_runs])
    lengths = completion_lengths(batch)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    observed = np.bincount(owner[~sampled_tokens(batch)], minlength=len(lengths))
    columns = (batch.groups, batch.rewards, lengths, batch.truncated, finish - lowest, batch.step - finish, observed)
    parts = [batch.parts[name] for name in sorted(batch.parts)]
    return np.stack([np.asarray(column, np.float64) for column in (*columns, *parts)], axis=1)


def _histogram(batch: Batch) -> NDArray[np.int64]:
    """This rank's loss tokens by staleness, ``(HISTOGRAM_BINS,)``."""
    staleness, in_loss = token_staleness(batch)
    return np.bincount(np.clip(staleness[in_loss], 0, HISTOGRAM_BINS - 1), minlength=HISTOGRAM_BINS)


def _group_metrics(group: NDArray[np.float64], reward: NDArray[np.float64]) -> Metrics:
    _, inverse, counts = np.unique(group, return_inverse=True, return_counts=True)
    if not len(counts):
        return {"group/std": 0.0, "group/zero_variance": 0.0}
    mean = np.bincount(inverse, reward) / counts
    std = np.sqrt(np.bincount(inverse, (reward - mean[inverse]) ** 2) / counts)
    equal = np.ones(len(counts), bool)
    first = np.zeros(len(counts))
    first[inverse[::-1]] = reward[::-1]
    np.logical_and.at(equal, inverse, reward == first[inverse])
    return {"group/std": float(std.mean()), "group/zero_variance": float(equal.mean())}


def _staleness_metrics(histogram: NDArray[np.int64]) -> Metrics:
    present = np.flatnonzero(histogram)
    total = int(histogram.sum())
    if not total:
        return {"staleness/mean": 0.0, "staleness/p95": 0.0, "staleness/max": 0.0}
    at_most = np.cumsum(histogram)
    return {
        "staleness/mean": float(histogram @ np.arange(len(histogram)) / total),
        "staleness/p95": float(np.searchsorted(at_most, 0.95 * total)),
        "staleness/max": float(present[-1]),
    }


def _mean(values: NDArray) -> float:
    return float(values.mean()) if len(values) else 0.0
