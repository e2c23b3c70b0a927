"""What a generator asks of an inference engine: token ids in, token ids out, weights swapped in flight.

Two kinds of engine fit. One computes inside `step` (the embedded torch engine): its `wakeup_fd` is None and the
generator calls `step` again for as long as it is `busy`. One computes elsewhere (vLLM, SGLang): `step` only collects
what has arrived, and `wakeup_fd` is a file descriptor, for the generator's poller, that is readable when there is
something to collect.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from r1async.types import FinishReason, PolicyVersion, Sampling, VersionRun

_NO_TOKENS: NDArray[np.int32] = np.empty(0, np.int32)


class EngineError(RuntimeError):
    """The engine cannot go on; the message names the request or the weights."""


class WeightsError(EngineError, ValueError):
    """A set of weights the engine refuses; the message names the tensor. What it served before, it serves still."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One rollout to sample, from its first token or from where somebody else left it."""

    id: int
    """The caller's key for it, unique among the requests in the engine."""
    rollout: int
    """Rollout number: with the run's seed and the token's position it keys the sampling noise."""
    prompt_ids: NDArray[np.int32]
    """At least one token."""
    sampling: Sampling
    resume_ids: NDArray[np.int32] = field(default_factory=_NO_TOKENS.copy)
    """Completion tokens sampled already; they count towards max_tokens and are not reported again."""
    pin: PolicyVersion | None = None
    """The version to sample under, held by `install_pinned`; None follows the newest installed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Tokens of one request sampled since its last report."""

    id: int
    token_ids: NDArray[np.int32]
    """The stop token included."""
    logprobs: NDArray[np.float32]
    """Nats, under the distribution sampled from: after temperature, top-k and top-p. Zero when greedy."""
    runs: tuple[VersionRun, ...]
    """Policy version of every token; the counts add up to the tokens."""
    finish: FinishReason | None
    """None: not finished, more to come."""


class Engine(Protocol):
    """Not thread-safe: one loop drives it."""

    @property
    def capacity(self) -> int:
        """Unpinned requests it holds at most."""
        ...

    @property
    def pinned_capacity(self) -> int:
        """Pinned requests it holds at most, besides; 0 for an engine that keeps one weight set."""
        ...

    @property
    def free(self) -> int:
        """Unpinned requests `submit` would take now."""
        ...

    @property
    def pinned_free(self) -> int:
        """Pinned requests `submit` would take now."""
        ...

    @property
    def version(self) -> PolicyVersion | None:
        """Of the weights that unpinned requests are sampled under; None before the first `install`."""
        ...

    @property
    def pinned(self) -> PolicyVersion | None:
        """Of the second weight set; None if there is none."""
        ...

    @property
    def busy(self) -> bool:
        """Whether any request is unfinished or has tokens that no `step` has returned."""
        ...

    @property
    def wakeup_fd(self) -> int | None:
        """Readable when `step` has something to return; None if `step` itself computes."""
        ...

    def submit(self, requests: Sequence[Request]) -> None:
        """Takes requests, all or none. Those that share a prompt and come together are prefilled once.

        Raises:
            ValueError: more than are free, an id in use, an unknown pin, token ids outside the vocabulary, a
                rollout longer than the engine's context, or sampling settings out of range.
        """
        ...

    def abort(self, ids: Iterable[int]) -> None:
        """Forgets requests and their unreported tokens. Unknown ids are passed over: they may just have finished."""
        ...

    def step(self) -> list[Progress]:
        """Samples on, or collects; returns each request that finished or has a chunk of tokens to report.

        Raises:
            EngineError: the model's output is not finite.
        """
        ...

    def flush(self) -> list[Progress]:
        """Reports every token not yet reported, without sampling: before a request is handed back."""
        ...

    def install(self, version: PolicyVersion, tensors: Mapping[str, Tensor]) -> None:
        """Serves these weights from the next token on. Unpinned requests go on with the KV they have.

        Args:
            version: tokens sampled from now on carry it.
            tensors: the whole set, by Hugging Face state-dict name, a tied head left out. Not kept.

        Raises:
            WeightsError: a tensor missing, foreign, mis-shaped or not finite; nothing has changed.
        """
        ...

    def install_pinned(self, version: PolicyVersion, tensors: Mapping[str, Tensor] | None) -> None:
        """Makes ``version`` the one that pinned requests are sampled under.

        Args:
            version: of the second weight set from now on.
            tensors: as for `install`; None copies the installed weights, which must be of that version.

        Raises:
            WeightsError: as for `install`.
            ValueError: requests pinned to another version are unfinished.
        """
        ...

    def close(self) -> None:
        """Frees what the engine holds; it cannot be used afterwards."""
        ...
