"""The packing that the buffer is compared with, as a careful person writes it in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from r1async.bench.workload import EPS, GROUP_SIZE, Columns


class Member(NamedTuple):
    """One completion as it lies in memory."""

    rollout: int
    prompt: NDArray[np.int32]
    tokens: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    versions: Sequence[int]
    counts: Sequence[int]
    reward: float


def pack_numpy(members: Sequence[Member]) -> tuple[Columns, NDArray[np.int64]]:
    """Columns of whole groups (their members next to each other), and whose they are.

    Statistics of all groups at once, one concatenation a column, nothing per token in Python.
    """
    size = len(members)
    rewards = np.array([member.reward for member in members]).reshape(-1, GROUP_SIZE)
    centred = rewards - rewards.mean(1, keepdims=True)
    advantages = (centred / (rewards.std(1, keepdims=True) + EPS)).ravel().astype(np.float32)
    prompt_lens = np.fromiter((len(member.prompt) for member in members), np.int32, size)
    lengths = np.fromiter((len(member.tokens) for member in members), np.int32, size)
    runs = np.fromiter((len(member.versions) for member in members), np.int32, size)
    zeros = np.zeros(int(prompt_lens.max()), np.float32)
    columns = {
        "token_ids": np.concatenate([part for member in members for part in (member.prompt, member.tokens)]),
        "behavior_logprobs": np.concatenate(
            [part for member in members for part in (zeros[: len(member.prompt)], member.logprobs)]
        ),
        "cu_seqlens": _offsets(prompt_lens + lengths),
        "prompt_lens": prompt_lens,
        "advantages": advantages,
        "run_versions": np.array([version for member in members for version in member.versions], np.int32),
        "run_lengths": np.array([count for member in members for count in member.counts], np.int32),
        "cu_runs": _offsets(runs),
    }
    return columns, np.fromiter((member.rollout for member in members), np.int64, size)


def _offsets(sizes: NDArray[np.int32]) -> NDArray[np.int32]:
    offsets = np.zeros(len(sizes) + 1, np.int32)
    np.cumsum(sizes, out=offsets[1:])
    return offsets
