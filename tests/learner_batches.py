"""Batches made on the spot for the learner's tests, as the buffer would pack them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from r1async.types import Batch
from r1async.wire import Message, pack, unpack

PER_ROLLOUT = ("prompt_lens", "advantages", "rewards", "groups", "rollouts", "finish_versions", "truncated")


def make_batch(
    *,
    step: int = 0,
    groups: int = 2,
    group_size: int = 4,
    prompt_len: int = 5,
    lengths: Sequence[int] | None = None,
    max_staleness: int = 0,
    over_age: int | None = None,
    micro_batches: int = 1,
    seed: int = 0,
    vocabulary: int = 34,
) -> Batch:
    """Random rollouts. Each has two version runs if `max_staleness` > 0; tokens staler than `over_age` are masked."""
    rng = np.random.default_rng([seed, step])
    n = groups * group_size
    completion = np.asarray(lengths if lengths is not None else rng.integers(2, 9, n))
    rewards = rng.integers(0, 2, n) + 0.2 * rng.integers(0, 2, n)
    by_group = rewards.reshape(groups, group_size)
    advantages = (by_group - by_group.mean(1, keepdims=True)) / (by_group.std(1, keepdims=True) + 1e-6)
    cu_seqlens = np.concatenate([[0], np.cumsum(prompt_len + completion)])
    is_prompt = np.concatenate([np.r_[np.ones(prompt_len, bool), np.zeros(c, bool)] for c in completion])
    first = np.array([c // 2 if max_staleness else 0 for c in completion])
    run_lengths = np.stack([first, completion - first], 1).ravel()
    newest = np.clip(step - rng.integers(0, max_staleness + 1, n), 0, None)
    oldest = np.clip(newest - max_staleness, 0, None)
    run_versions = np.stack([oldest, newest], 1).ravel()
    masked = step - run_versions > (max_staleness if over_age is None else over_age)
    edges = np.linspace(0, n, micro_batches + 1).astype(int)
    return Batch(
        step=step,
        epoch=1,
        part=0,
        last=True,
        token_ids=rng.integers(0, vocabulary, cu_seqlens[-1]).astype(np.int32),
        behavior_logprobs=np.where(is_prompt, 0, rng.normal(-3.5, 0.3, cu_seqlens[-1])).astype(np.float32),
        cu_seqlens=cu_seqlens.astype(np.int32),
        prompt_lens=np.full(n, prompt_len, np.int32),
        advantages=advantages.ravel().astype(np.float32),
        rewards=rewards.astype(np.float64),
        groups=np.repeat(np.arange(groups) + 10 * step, group_size).astype(np.int64),
        rollouts=np.arange(n).astype(np.int64),
        finish_versions=newest.astype(np.int32),
        truncated=(completion == completion.max()).astype(np.uint8),
        run_versions=run_versions.astype(np.int32),
        run_lengths=run_lengths.astype(np.int32),
        cu_runs=(2 * np.arange(n + 1)).astype(np.int32),
        over_age=masked.astype(np.uint8),
        parts={"accuracy": np.floor(rewards).astype(np.float32), "format": (rewards % 1).astype(np.float32)},
        micro_batches=tuple((int(a), int(b)) for a, b in pairwise(edges)),
        total_rollouts=n,
        total_groups=groups,
        total_completion_tokens=int(completion.sum()),
        total_loss_tokens=int(run_lengths[~masked].sum()),
        temperature=1.0,
    )


def take(batch: Batch, chosen: Sequence[int], micro_batches: Sequence[tuple[int, int]] | None = None) -> Batch:
    """One rank's share: these rollouts, under the totals of the whole batch."""
    tokens = [slice(batch.cu_seqlens[i], batch.cu_seqlens[i + 1]) for i in chosen]
    runs = [slice(batch.cu_runs[i], batch.cu_runs[i + 1]) for i in chosen]

    def pick(slices: list[slice], *names: str) -> dict[str, Any]:
        whole = {name: getattr(batch, name) for name in names}
        return {name: np.concatenate([column[:0], *(column[s] for s in slices)]) for name, column in whole.items()}

    def offsets(slices: list[slice]) -> np.ndarray:
        return np.concatenate([[0], np.cumsum([s.stop - s.start for s in slices])]).astype(np.int32)

    rows = np.asarray(chosen, np.int64)
    return replace(
        batch,
        **pick(tokens, "token_ids", "behavior_logprobs"),
        **pick(runs, "run_versions", "run_lengths", "over_age"),
        **{name: getattr(batch, name)[rows] for name in PER_ROLLOUT},
        cu_seqlens=offsets(tokens),
        cu_runs=offsets(runs),
        parts={name: column[rows] for name, column in batch.parts.items()},
        micro_batches=tuple(micro_batches or [(0, len(chosen))]),
    )


def parts_of(batch: Batch, *cuts: int) -> list[Batch]:
    """The batch in parts that begin at these rollouts, each with totals of its own."""
    edges = [0, *cuts, len(batch.rollouts)]
    parts = []
    for place, (start, stop) in enumerate(pairwise(edges)):
        part = take(batch, range(start, stop))
        parts.append(
            replace(
                part,
                part=place,
                last=stop == edges[-1],
                total_rollouts=stop - start,
                total_groups=len(np.unique(part.groups)),
                total_completion_tokens=int(part.run_lengths.sum()),
                total_loss_tokens=int(part.run_lengths[part.over_age == 0].sum()),
            )
        )
    return parts


def batch_message(batch: Batch) -> Message:
    """The batch as it arrives: through the bytes of a frame."""
    return unpack(pack(*batch_frame(batch)))


def batch_frame(batch: Batch) -> tuple[dict, dict[str, np.ndarray]]:
    """Header and columns of the `batch` message."""
    header: dict = {"t": "batch", "parts": sorted(batch.parts)}
    columns = {}
    for name in Batch.__slots__:
        value = getattr(batch, name)
        if isinstance(value, np.ndarray):
            columns[name] = value
        elif name != "parts":
            header[name] = value
    columns |= {f"part:{name}": column for name, column in batch.parts.items()}
    return header, columns
