"""What the buffer benchmark moves: rollouts whose every value follows from the seed and their number.

Producers look the values up, consumers look them up again and compare, and neither spends time on random numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

GROUP_SIZE = 16
GROUPS_PER_BATCH = 8
ROLLOUTS_PER_BATCH = GROUP_SIZE * GROUPS_PER_BATCH
VERSIONS_BACK = 8
"""Versions between a group's number in steps and the version that samples it; also the buffer's pacing, which
guarantees that a learner has made that version when the group is opened."""
EPS = 1e-6
"""Added to the standard deviation, as in `group.eps`."""

COLUMNS: Mapping[str, str] = MappingProxyType(
    {
        "token_ids": "i4",
        "behavior_logprobs": "f4",
        "cu_seqlens": "i4",
        "prompt_lens": "i4",
        "advantages": "f4",
        "run_versions": "i4",
        "run_lengths": "i4",
        "cu_runs": "i4",
    }
)
"""What every way of moving rollouts must deliver, beside `rollouts`, which says whose they are."""

Columns = dict[str, NDArray]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Groups of 16 rollouts. Their lengths are lognormal, cut at `max_tokens`."""

    seed: int = 0
    prompt_tokens: int = 128
    mean_tokens: float = 1000.0
    """Of the lognormal before it is cut."""
    sigma: float = 0.7
    """Of the logarithm of lengths."""
    max_tokens: int = 4096

    @cached_property
    def _tables(self) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
        """Pools of tokens and logprobs, and for a rollout (modulo 2^14) its length and its place in the pools."""
        rng = np.random.default_rng(self.seed)
        pool, rows = 1 << 20, 1 << 14
        mu = np.log(self.mean_tokens) - self.sigma**2 / 2
        lengths = np.clip(rng.lognormal(mu, self.sigma, rows).round(), 1, self.max_tokens).astype(np.int64)
        places = rng.integers(0, pool - self.max_tokens, rows)
        tokens = rng.integers(0, 150_000, pool, np.int32)
        return tokens, -rng.exponential(0.5, pool).astype(np.float32), lengths, places

    def length(self, rollout: int) -> int:
        return int(self._tables[2][rollout & 16383])

    def prompt(self, group: int) -> NDArray[np.int32]:
        place = group * 7919 % ((1 << 20) - self.prompt_tokens)
        return self._tables[0][place : place + self.prompt_tokens]

    def completion(self, rollout: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        tokens, logprobs, lengths, places = self._tables
        begin = int(places[rollout & 16383])
        end = begin + int(lengths[rollout & 16383])
        return tokens[begin:end], logprobs[begin:end]

    def reward(self, rollout: int) -> float:
        """0, 0.25, ... or 1; some groups agree on theirs."""
        return rollout * 2654435761 % 2**32 % 5 / 4

    def runs(self, rollout: int) -> list[tuple[int, int]]:
        """(version, tokens) of consecutive tokens: an update arrives in the middle of most completions."""
        length, newest = self.length(rollout), max(0, rollout // ROLLOUTS_PER_BATCH - VERSIONS_BACK)
        if newest == 0 or length == 1:
            return [(newest, length)]
        return [(newest - 1, length // 2), (newest, length - length // 2)]

    def payload_bytes(self, rollouts: Sequence[int]) -> int:
        """Token ids and logprobs of completions, and prompts as often as they are packed."""
        return sum(8 * self.length(rollout) + 4 * self.prompt_tokens for rollout in rollouts)


def check_columns(work: Workload, columns: Mapping[str, NDArray], rollouts: NDArray[np.int64]) -> None:
    """Every value of a batch against what its rollouts must hold.

    Raises:
        AssertionError: naming the column and the rollout that differ.
    """
    numbers = rollouts.tolist()
    members = {number // GROUP_SIZE: number // GROUP_SIZE * GROUP_SIZE + np.arange(GROUP_SIZE) for number in numbers}
    assert sorted(numbers) == sorted(int(each) for group in members.values() for each in group), "whole groups"
    for name, dtype in COLUMNS.items():
        assert columns[name].dtype == np.dtype(dtype), f"column {name} is {columns[name].dtype}, want {dtype}"
    cu_seqlens, cu_runs = columns["cu_seqlens"].tolist(), columns["cu_runs"].tolist()
    assert cu_seqlens[0] == cu_runs[0] == 0
    for place, rollout in enumerate(numbers):
        begin, end = cu_seqlens[place : place + 2]
        prompt, (tokens, logprobs) = work.prompt(rollout // GROUP_SIZE), work.completion(rollout)
        runs = slice(*cu_runs[place : place + 2])
        rewards = np.array([work.reward(int(each)) for each in members[rollout // GROUP_SIZE]])
        advantage = (work.reward(rollout) - rewards.mean()) / (rewards.std() + EPS)
        pairs = {
            "prompt_lens": (columns["prompt_lens"][place], len(prompt)),
            "token_ids": (columns["token_ids"][begin:end], np.concatenate([prompt, tokens])),
            "behavior_logprobs": (
                columns["behavior_logprobs"][begin:end],
                np.concatenate([np.zeros(len(prompt), np.float32), logprobs]),
            ),
            "run_versions": (columns["run_versions"][runs], [version for version, _ in work.runs(rollout)]),
            "run_lengths": (columns["run_lengths"][runs], [count for _, count in work.runs(rollout)]),
        }
        for name, (got, want) in pairs.items():
            assert np.array_equal(got, want), f"column {name} of rollout {rollout} is {got}, want {want}"
        got = float(columns["advantages"][place])
        assert abs(got - advantage) < 1e-5 * max(1.0, abs(advantage)), f"advantage of {rollout}: {got}, {advantage}"
    assert cu_seqlens[-1] == len(columns["token_ids"]) == len(columns["behavior_logprobs"])
    assert cu_runs[-1] == len(columns["run_versions"]) == len(columns["run_lengths"])
