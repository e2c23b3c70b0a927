"""What a generator asks of an inference engine: token ids in, token ids out, weights swapped in flight.

Two kinds of engine fit. One computes inside `step` (the embedded torch engine), and the generator calls `step` again
for as long as it is `busy`. One computes elsewhere (vLLM, SGLang): `step` only collects what has arrived, and the
engine calls the `notify` it was made with when there is something to collect.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from r1async.config import DirectMedium
from r1async.types import FinishReason, PolicyVersion, Sampling, VersionRun
from r1async.weights.direct import Direct

KVPolicy = Literal["keep", "recompute", "abort"]
"""What becomes of requests in flight when weights change. keep: they go on with the KV of the old weights. recompute:
their KV is computed again under the new ones. abort: the engine's request is ended and put in again with the tokens it
has, which comes to the same for an engine that cannot recompute in place. Tokens sampled stay in each."""

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


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSpec:
    """What an engine outside this process's own code is made with; paths exist."""

    name: str
    """Of the generator, for files and logs."""
    model_path: Path
    """Hugging Face directory: architecture, tokenizer, and the weights it starts with."""
    dtype: str
    """float32 or bfloat16."""
    seed: int
    slots: int
    """Requests at a time."""
    max_len: int
    """Tokens of the longest request, prompt and completion."""
    stop_ids: tuple[int, ...]
    vocabulary: int
    """Token ids are below it."""
    chunk_tokens: int
    kv_policy: KVPolicy
    threads: int
    scratch: Path
    """Folder in memory where weights are handed over; this engine's alone, and removed by its owner."""
    log: Path
    """File for what the engine's own processes print."""
    start_deadline_s: float
    stall_deadline_s: float
    notify: Callable[[], None]
    """Called in any thread when `Engine.step` has something to return."""
    direct: DirectMedium | None = None
    """The engine's own transfer, by which it takes weights too; None: by none."""


def check_sampling(sampling: Sampling) -> None:
    """Refuses settings no distribution follows from.

    Raises:
        ValueError: one out of its range, by name.
    """
    if not sampling.greedy and not (math.isfinite(sampling.temperature) and sampling.temperature > 0):
        raise ValueError(f"temperature must be positive (or greedy set), got {sampling.temperature}")
    if not 0 < sampling.top_p <= 1:
        raise ValueError(f"top_p must lie in (0, 1], got {sampling.top_p}")
    if sampling.top_k < 0:
        raise ValueError(f"top_k must be 0 (off) or positive, got {sampling.top_k}")
    if sampling.max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, got {sampling.max_tokens}")


def check_request(request: Request, *, max_len: int, vocabulary: int) -> None:
    """Refuses what no engine can sample.

    Raises:
        ValueError: by the request's id: an empty prompt, nothing left to sample, too long, a foreign token.
    """
    check_sampling(request.sampling)
    prompt, resumed, limit = len(request.prompt_ids), len(request.resume_ids), request.sampling.max_tokens
    if not prompt:
        raise ValueError(f"request {request.id} has an empty prompt")
    if resumed >= limit:
        raise ValueError(f"request {request.id} resumes with {resumed} of at most {limit} tokens: nothing to sample")
    if prompt + limit > max_len:
        raise ValueError(
            f"request {request.id} may reach {prompt} prompt + {limit} completion tokens, "
            f"the engine's context is {max_len}"
        )
    for ids in (request.prompt_ids, request.resume_ids):
        if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= vocabulary):
            raise ValueError(f"request {request.id} has a token outside the vocabulary of {vocabulary}")


@runtime_checkable
class TakesDirect(Protocol):
    """An engine that can be sent weights by the learner itself."""

    def install_direct(self, direct: Direct) -> float:
        """As `Engine.install`, of weights that the engine takes by its own transfer.

        Raises:
            DirectError: it does not get this version so; nothing has changed.
            EngineError: it failed in the middle; the engine answers nothing more.
        """
        ...


class Engine(Protocol):
    """Not thread-safe: one loop drives it."""

    kv_policy: KVPolicy
    """For the installs that follow."""

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
    def computes(self) -> bool:
        """Whether `step` itself samples. If not, `notify` tells when `step` has something to return."""
        ...

    @property
    def block_tokens(self) -> int:
        """Tokens of a block of KV cache that prompts with an equal beginning may share; 0: nothing is kept."""
        ...

    def describe(self) -> str:
        """What it is, for errors and logs: name, version, address."""
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

    def install(self, version: PolicyVersion, tensors: Mapping[str, Tensor]) -> float:
        """Serves these weights from the next token on. What becomes of unpinned requests is the KV policy's to say.

        Args:
            version: tokens sampled from now on carry it.
            tensors: the whole set, by Hugging Face state-dict name, a tied head left out. Not kept.

        Returns:
            Seconds for which nothing was sampled.

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
