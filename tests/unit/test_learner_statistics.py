"""A step's metrics against numbers counted by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from r1async.learner.batch import micro_batch
from r1async.learner.distributed import Ranks
from r1async.learner.loss import LossTerms
from r1async.learner.statistics import BatchSums, Metrics, TokenSums, token_metrics
from r1async.types import OBSERVED, Batch

from tests.learner_batches import make_batch

CPU = torch.device("cpu")


def metrics_of(batch: Batch) -> Metrics:
    return sums_of(batch).metrics()


def sums_of(*parts: Batch) -> BatchSums:
    sums = BatchSums()
    for part in parts:
        sums.add(part, Ranks())
    return sums


def test_rewards_groups_and_lengths():
    batch = replace(
        make_batch(groups=2, group_size=2, lengths=[2, 4, 6, 8]),
        rewards=np.array([1.2, 0.2, 0.5, 0.5]),
        truncated=np.array([0, 0, 0, 1], np.uint8),
        parts={"accuracy": np.array([1, 0, np.nan, 0], np.float32)},
    )
    metrics = metrics_of(batch)
    assert metrics["reward/mean"] == pytest.approx(0.6)
    assert metrics["reward/std"] == pytest.approx(math.sqrt((0.36 + 0.16 + 0.01 + 0.01) / 4))
    assert metrics["group/std"] == pytest.approx((0.5 + 0.0) / 2)
    assert metrics["group/zero_variance"] == 0.5
    assert metrics["reward/accuracy"] == pytest.approx(1 / 3)  # the rollout without that part is left out
    assert (metrics["length/mean"], metrics["length/max"], metrics["truncated"]) == (5, 8, 0.25)


def test_observations_are_counted_apart():
    """Completions of 2 and 4 tokens; a tool wrote the last of the first, and two in the middle of the second."""
    batch = make_batch(groups=1, group_size=2, lengths=[2, 4])
    first, second = (slice(batch.cu_seqlens[i] + batch.prompt_lens[i], batch.cu_seqlens[i + 1]) for i in (0, 1))
    logprobs = batch.behavior_logprobs.copy()
    logprobs[first] = [-1.0, OBSERVED]
    logprobs[second] = [-1.0, OBSERVED, OBSERVED, -1.0]
    metrics = metrics_of(replace(batch, behavior_logprobs=logprobs))
    assert (metrics["tokens"], metrics["loss_tokens"], metrics["observation_tokens"]) == (6, 6, 3)


def test_parts_of_a_batch_add_up():
    first = replace(
        make_batch(groups=1, group_size=2, lengths=[2, 4]),
        rewards=np.array([1.0, 0.0]),
        parts={"accuracy": np.array([1, 0], np.float32)},
    )
    second = replace(
        make_batch(groups=1, group_size=2, lengths=[6, 8]),
        rewards=np.array([0.5, 0.5]),
        groups=np.array([7, 7]),
        parts={"accuracy": np.array([np.nan, 1], np.float32), "format": np.array([0, 1], np.float32)},
    )
    metrics = sums_of(first, second).metrics()
    assert (metrics["parts"], metrics["groups"], metrics["rollouts"], metrics["tokens"]) == (2, 2, 4, 20)
    assert (metrics["reward/mean"], metrics["length/mean"], metrics["group/std"]) == (0.5, 5, 0.25)
    assert metrics["reward/accuracy"] == pytest.approx(2 / 3)
    assert metrics["reward/format"] == 0.5
    assert metrics["group/zero_variance"] == 0.5


def test_equal_rewards_that_floats_cannot_hold_have_no_variance():
    batch = replace(make_batch(groups=1, group_size=3, lengths=[2, 2, 2]), rewards=np.array([0.1, 0.1, 0.1]))
    assert metrics_of(batch)["group/zero_variance"] == 1.0


def test_staleness_is_of_loss_tokens_and_ages_are_of_rollouts():
    batch = replace(
        make_batch(step=9, groups=1, group_size=2, lengths=[4, 6]),
        run_versions=np.array([5, 8, 9, 7], np.int32),
        run_lengths=np.array([1, 3, 2, 4], np.int32),
        cu_runs=np.array([0, 2, 4], np.int32),
        over_age=np.array([1, 0, 0, 0], np.uint8),
        finish_versions=np.array([8, 9], np.int32),
        total_loss_tokens=9,
    )
    metrics = metrics_of(batch)
    assert sums_of(batch).histogram[:4].tolist() == [2, 3, 4, 0]
    assert metrics["staleness/mean"] == pytest.approx(11 / 9)
    assert (metrics["staleness/p95"], metrics["staleness/max"]) == (2, 2)
    assert metrics["age/generation"] == pytest.approx(((8 - 5) + (9 - 7)) / 2)
    assert metrics["age/queue"] == pytest.approx((1 + 0) / 2)
    assert metrics["over_age"] == pytest.approx(0.1)


def test_importance_figures_and_mismatch():
    batch = replace(
        make_batch(step=2, groups=1, group_size=2, prompt_len=1, lengths=[2, 2]),
        run_versions=np.array([0, 2], np.int32),
        run_lengths=np.array([2, 2], np.int32),
        cu_runs=np.array([0, 1, 2], np.int32),
        over_age=np.zeros(2, np.uint8),
        behavior_logprobs=np.array([0, -1, -1, 0, -1, -1], np.float32),
    )
    logprobs_N = torch.tensor([-1 + math.log(3), -1.0, -1.25, -1.0])
    sums = TokenSums(CPU)
    zero = torch.zeros(())
    terms = LossTerms(policy=torch.tensor(0.5), kl=torch.tensor(2.0), clipped_low=zero, clipped_high=torch.tensor(1))
    sums.add(micro_batch(batch, 0, 2, CPU), logprobs_N, torch.tensor([1.0, 2.0, 3.0, 4.0]), terms)
    metrics = token_metrics(sums.sums.tolist(), sums.maxima.tolist(), 4, kl_coef=0.1)
    ratios = [3.0, 1.0, math.exp(-0.25), 1.0]
    assert metrics["loss"] == pytest.approx(0.7)
    assert metrics["entropy"] == pytest.approx(2.5)
    assert metrics["clip_fraction/high"] == metrics["clip_fraction"] == 0.25
    assert metrics["is/mean"] == pytest.approx(sum(ratios) / 4)
    assert metrics["is/max"] == pytest.approx(3.0)
    assert metrics["is/ess"] == pytest.approx(sum(ratios) ** 2 / (4 * sum(r * r for r in ratios)))
    k1 = -(math.log(3) - 0.25) / 4
    assert metrics["kl/behavior_k1"] == pytest.approx(k1)
    assert metrics["kl/behavior"] == pytest.approx(sum(ratios) / 4 - 1 + k1)
    # only the second rollout was sampled by these very weights
    assert metrics["mismatch/mean"] == pytest.approx(0.125)
    assert metrics["mismatch/max"] == pytest.approx(0.25)
    assert metrics["mismatch/kl"] == pytest.approx((math.exp(-0.25) - 1 + 0.25) / 2)
    assert metrics["mismatch/tokens"] == 2


def test_mismatch_leaves_out_rollouts_that_began_under_older_weights():
    """Versions 1 1 2 2 | 2 2 | 2 of step 2: the first one's last tokens were sampled on keys of the old weights."""
    batch = replace(
        make_batch(step=2, groups=1, group_size=3, prompt_len=1, lengths=[4, 2, 1]),
        run_versions=np.array([1, 2, 2, 2], np.int32),
        run_lengths=np.array([2, 2, 2, 1], np.int32),
        cu_runs=np.array([0, 2, 3, 4], np.int32),
        over_age=np.zeros(4, np.uint8),
        behavior_logprobs=np.array([0, -1, -1, -1, -1, 0, -1, -1, 0, -1], np.float32),
    )
    logprobs_N = torch.tensor([-2.0, -2.0, -2.0, -2.0, -1.25, -1.0, -1.5])
    sums, zero = TokenSums(CPU), torch.zeros(())
    terms = LossTerms(policy=zero, kl=zero, clipped_low=zero, clipped_high=zero)
    for (start, stop), tokens in (((0, 1), slice(0, 4)), ((1, 3), slice(4, 7)), ((3, 3), slice(7, 7))):
        part = micro_batch(batch, start, stop, CPU)
        sums.add(part, logprobs_N[tokens], torch.zeros(part.loss_mask_N.shape), terms)
    metrics = token_metrics(sums.sums.tolist(), sums.maxima.tolist(), 7, kl_coef=0.0)
    assert metrics["mismatch/tokens"] == 3
    assert metrics["mismatch/mean"] == pytest.approx((0.25 + 0.0 + 0.5) / 3)
    assert metrics["mismatch/max"] == pytest.approx(0.5)


def test_a_batch_without_loss_tokens_has_finite_metrics():
    batch = replace(make_batch(step=4, groups=1, group_size=2), over_age=np.ones(4, np.uint8), total_loss_tokens=0)
    sums = TokenSums(CPU)
    metrics = metrics_of(batch) | token_metrics(sums.sums.tolist(), sums.maxima.tolist(), 0, 0.0)
    assert all(math.isfinite(value) for value in metrics.values())
