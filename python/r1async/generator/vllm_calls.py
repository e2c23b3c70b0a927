"""What the adapter asks of a vLLM, in this process or behind HTTP, and what it is told. Imports no vLLM."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from r1async.generator.staged_weights import Staged


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens ``start`` to ``end`` of one request of vLLM's were sampled by weights with this label."""

    label: str
    start: int
    end: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Delta:
    """What vLLM said of one request since it last did."""

    token_ids: Sequence[int]
    logprobs: Sequence[float]
    finish: str | None = None
    """stop, length, abort or error."""
    spans: Sequence[Span] | None = None
    """Of all tokens of the request, with ``finish``."""
    cached: int = 0
    """Prompt tokens whose KV was taken from the cache."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingSettings:
    """Fields of vLLM's SamplingParams."""

    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    seed: int
    stop_token_ids: tuple[int, ...]
    ignore_eos: bool = True
    """The end-of-sequence token that vLLM knows of ends nothing; ours are among ``stop_token_ids``."""
    detokenize: bool = False
    logprobs: int = 0
    """Of how many tokens besides the one sampled."""


class Vllm(Protocol):
    """vLLM's calls that the adapter needs. All in the adapter's loop; the adapter sets the deadlines."""

    @property
    def orders_outputs(self) -> bool:
        """Whether all tokens sampled before a pause are delivered once `drain` has returned."""
        ...

    async def start(self) -> None: ...

    def generate(
        self, key: str, prompt_ids: list[int], cache_salt: str, sampling: SamplingSettings
    ) -> AsyncIterator[Delta]:
        """Ends after a `Delta` with a finish."""
        ...

    async def abort(self, keys: Sequence[str]) -> None:
        """Ends requests with the finish abort; unknown keys are passed over."""
        ...

    async def pause(self, mode: Literal["keep", "abort"]) -> None: ...

    async def drain(self) -> None: ...

    async def update(self, staged: Staged, label: str) -> None:
        """vLLM's start_weight_update, update_weights and finish_weight_update."""
        ...

    async def join(self, init: Mapping[str, object]) -> None:
        """vLLM's init_weight_transfer_engine: its workers meet the learner."""
        ...

    async def take(self, update: Mapping[str, object] | None, label: str) -> None:
        """As `update`, of weights that the learner sends; None: none of them differ."""
        ...

    async def recompute(self) -> None:
        """Has the KV of all running requests computed again; while paused."""
        ...

    async def resume(self) -> None: ...

    async def workers(self, method: str, *args: str) -> list[dict]:
        """Calls a method of our extension in every worker."""
        ...

    def describe(self) -> str: ...

    async def close(self) -> None: ...

    def kill(self) -> None:
        """Ends what `start` began and did not finish; from any thread."""
        ...
