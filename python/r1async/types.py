"""What the roles share. Shapes: n rollouts of one packed batch, T tokens of all of them, R version runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

FinishReason = Literal["stop", "length"]
OBSERVED = 1.0
"""Behavior logprob of a token that nobody sampled (a tool's output). No probability has it: logarithms of those are at
most 0."""


class PolicyVersion(NamedTuple):
    """Optimizer steps applied since the start checkpoint, under the learner life (epoch) that applied them."""

    epoch: int
    number: int

    def __str__(self) -> str:
        return f"{self.number}@{self.epoch}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """One question. `ordinal` is its place in the seeded order of the source, and never changes."""

    ordinal: int
    text: str
    answer: str
    token_ids: NDArray[np.int32]
    extra: Mapping[str, str] = field(default_factory=dict)
    """Other columns of the row that a custom reward may want."""
    source: str = ""
    """Named by a window of its own (`staleness.windows`) if its verdicts are slow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """Settings that make the sampled distribution; they travel with every rollout."""

    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    greedy: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """What a grader sees: text without the prompt and without the end-of-sequence token."""

    text: str
    num_tokens: int
    finish: FinishReason


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """A score, or an abstention with the reason in `status`: unknown is not zero.

    Raises:
        ValueError: a score whose total is not finite; say `Verdict.abstain("nan")`.
    """

    total: float | None
    parts: Mapping[str, float] = field(default_factory=dict)
    status: str = "ok"
    detail: str = field(default="", compare=False)
    """For people: what was read, what went wrong."""

    def __post_init__(self) -> None:
        if self.total is not None and not math.isfinite(self.total):
            raise ValueError(
                f"a score must be finite, got {self.total!r} from parts {dict(self.parts)}; abstain instead"
            )

    @classmethod
    def abstain(cls, status: str) -> Verdict:
        return cls(total=None, status=status)


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionRun:
    """`count` consecutive tokens sampled by one policy version."""

    version: PolicyVersion
    count: int


class Step(NamedTuple):
    """What an environment says to a turn of the policy."""

    observation: str
    """What the policy reads next; no gradient goes through it. Never empty."""
    done: bool
    """The rollout ends after the observation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """One rank's share of a part of the batch of one optimizer step: packed, no padding (DESIGN 3.5).

    A batch that is handed out whole has one part. Totals are the part's.

    Rollout i has tokens ``cu_seqlens[i]:cu_seqlens[i + 1]``, prompt first, then completion.
    """

    step: int
    epoch: int
    part: int
    """Its number in the step's batch, from 0."""
    last: bool
    """Whether the batch is whole with it."""
    token_ids: NDArray[np.int32]
    """(T,)"""
    behavior_logprobs: NDArray[np.float32]
    """(T,), nats; zero on prompt tokens."""
    cu_seqlens: NDArray[np.int32]
    """(n + 1,)"""
    prompt_lens: NDArray[np.int32]
    """(n,)"""
    advantages: NDArray[np.float32]
    """(n,)"""
    rewards: NDArray[np.float64]
    """(n,), totals."""
    groups: NDArray[np.int64]
    """(n,), group number of each rollout."""
    rollouts: NDArray[np.int64]
    """(n,), rollout number; with the run's seed it keys the sampling noise."""
    finish_versions: NDArray[np.int32]
    """(n,), policy version (number) of the last token: age from generation ends here, age in the queue begins."""
    truncated: NDArray[np.uint8]
    """(n,), 1 where the completion was cut at max_tokens."""
    run_versions: NDArray[np.int32]
    """(R,), version number of each run of completion tokens, rollout after rollout."""
    run_lengths: NDArray[np.int32]
    """(R,), tokens of each run; they add up to the completion tokens."""
    cu_runs: NDArray[np.int32]
    """(n + 1,), runs of rollout i are ``cu_runs[i]:cu_runs[i + 1]``."""
    over_age: NDArray[np.uint8]
    """(R,), 1 where the over-age rule takes the run's tokens out of the loss."""
    parts: Mapping[str, NDArray[np.float32]]
    """(n,) each: reward parts by name, NaN where a verdict has no such part."""
    micro_batches: tuple[tuple[int, int], ...]
    """Half-open ranges of rollouts, balanced by tokens; the same number on every rank."""
    total_rollouts: int
    """Over all ranks."""
    total_groups: int
    """Over all ranks."""
    total_completion_tokens: int
    """Over all ranks, over-age ones included."""
    total_loss_tokens: int
    """Over all ranks, over-age ones left out."""
    temperature: float
    """That the rollouts were sampled at; the learner divides its logits by the same."""
