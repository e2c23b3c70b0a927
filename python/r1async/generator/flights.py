"""Requests that an engine elsewhere is computing: what has arrived of each, under which weights. No engine, no sockets.

The engine's thread adds tokens as they arrive, the generator's loop collects them. Tokens whose version is not certain
yet are held back until it is: a policy version that turns out wrong later cannot be taken back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from r1async.generator.engine import EngineError, Progress, Request
from r1async.types import FinishReason, PolicyVersion, VersionRun


@dataclass(slots=True)
class Flight:
    """One request in the engine."""

    request: Request
    token_ids: list[int] = field(default_factory=list)
    """Sampled since it came, resumed ones left out; the stop token included."""
    logprobs: list[float] = field(default_factory=list)
    versions: list[PolicyVersion] = field(default_factory=list)
    """Of the leading tokens, as far as it is certain."""
    reported: int = 0
    finish: FinishReason | None = None

    @property
    def context(self) -> list[int]:
        """All tokens there are: prompt, resumed and sampled."""
        return [*self.request.prompt_ids.tolist(), *self.request.resume_ids.tolist(), *self.token_ids]

    @property
    def left(self) -> int:
        """Tokens it may still sample."""
        return self.request.sampling.max_tokens - len(self.request.resume_ids) - len(self.token_ids)


class Flights:
    """Thread-safe. At most ``capacity`` requests.

    Args:
        capacity: requests at a time.
        chunk_tokens: unreported tokens of an unfinished request after which `collect` reports them.
        notify: called, in the engine's thread, when `collect` has something new to return.
    """

    def __init__(self, capacity: int, chunk_tokens: int, notify: Callable[[], None]) -> None:
        self.capacity = capacity
        self._chunk_tokens = chunk_tokens
        self._notify = notify
        self._lock = threading.Lock()
        self._flights: dict[int, Flight] = {}
        self._due: dict[int, None] = {}
        self._told = False
        self._failure: BaseException | None = None

    def __len__(self) -> int:
        return len(self._flights)

    def __contains__(self, request_id: int) -> bool:
        return request_id in self._flights

    def __iter__(self) -> Iterator[int]:
        return iter(list(self._flights))

    @property
    def free(self) -> int:
        return self.capacity - len(self._flights)

    @property
    def busy(self) -> bool:
        """Whether `collect` has, or will have, something to say: a failure too."""
        return self._failure is not None or len(self._flights) > 0

    def get(self, request_id: int) -> Flight | None:
        """None if it was forgotten, or is collected to its end."""
        return self._flights.get(request_id)

    def begin(self, requests: Sequence[Request]) -> None:
        with self._lock:
            for request in requests:
                self._flights[request.id] = Flight(request)

    def extend(
        self,
        request_id: int,
        token_ids: Sequence[int],
        logprobs: Sequence[float],
        version: PolicyVersion | None,
        finish: FinishReason | None = None,
        spans: Sequence[VersionRun] | None = None,
    ) -> None:
        """Tokens arrived. Of a request that was forgotten: nothing.

        Args:
            request_id: of the request.
            token_ids: the new ones.
            logprobs: as many.
            version: all of them were sampled under it; None: not known before ``spans``.
            finish: the request ends with them.
            spans: the engine's own word on the versions of all tokens since the request came, with ``finish``.

        Raises:
            EngineError: spans that do not add up, or say another version than was reported already.
        """
        with self._lock:
            flight = self._flights.get(request_id)
            if flight is None:
                return
            if len(token_ids) != len(logprobs):
                raise EngineError(f"request {request_id}: {len(token_ids)} tokens with {len(logprobs)} logprobs")
            certain = len(flight.versions) == len(flight.token_ids)
            flight.token_ids += token_ids
            flight.logprobs += [0.0] * len(logprobs) if flight.request.sampling.greedy else logprobs
            if version is not None and certain:
                flight.versions += [version] * len(token_ids)
            if spans is not None:
                _settle(flight, spans)
            elif finish is not None and len(flight.versions) < len(flight.token_ids):
                raise EngineError(f"request {request_id} ended, and the versions of its tokens are not known")
            # Only now: what is due already must not be collected as finished if the end is refused.
            flight.finish = finish
            if finish is not None or len(flight.versions) - flight.reported >= self._chunk_tokens:
                self._due[request_id] = None
                self._tell()

    def settle(self, request_id: int, spans: Sequence[VersionRun]) -> None:
        """The engine's own word on the versions of all tokens so far, in the middle of a request.

        Raises:
            EngineError: as for `extend`.
        """
        with self._lock:
            flight = self._flights.get(request_id)
            if flight is not None:
                _settle(flight, spans)

    def fail(self, error: BaseException) -> None:
        """Have `collect` raise it."""
        with self._lock:
            self._failure = self._failure or error
            self._tell()

    def collect(self) -> list[Progress]:
        """Requests that are finished or have a chunk to report; the finished ones are forgotten.

        Raises:
            EngineError: what `fail` was told.
        """
        with self._lock:
            self._told = False
            if self._failure is not None:
                if isinstance(self._failure, EngineError):
                    raise self._failure
                raise EngineError(f"the engine failed: {self._failure!r}") from self._failure
            due, self._due = self._due, {}
            return self._report(due)

    def flush(self) -> list[Progress]:
        """Every token not reported yet whose version is certain."""
        with self._lock:
            self._due.clear()
            return self._report(list(self._flights))

    def forget(self, ids: Iterable[int]) -> list[int]:
        """Drops requests; those that were there and unfinished, which the engine has to be told of."""
        with self._lock:
            dropped = []
            for request_id in ids:
                flight = self._flights.pop(request_id, None)
                self._due.pop(request_id, None)
                if flight is not None and flight.finish is None:
                    dropped.append(request_id)
            # Nothing is left to collect of what was told: the next tokens are told again.
            self._told = self._told and bool(self._due or self._failure)
            return dropped

    def _tell(self) -> None:
        if not self._told:
            self._told = True
            self._notify()

    def _report(self, ids: Iterable[int]) -> list[Progress]:
        reports = []
        for request_id in ids:
            flight = self._flights.get(request_id)
            if flight is None or (flight.finish is None and len(flight.versions) == flight.reported):
                continue
            start, end = flight.reported, len(flight.versions)
            flight.reported = end
            reports.append(
                Progress(
                    id=request_id,
                    token_ids=np.array(flight.token_ids[start:end], np.int32),
                    logprobs=np.array(flight.logprobs[start:end], np.float32),
                    runs=runs_of(flight.versions[start:end]),
                    finish=flight.finish,
                )
            )
            if flight.finish is not None:
                del self._flights[request_id]
        return reports


def runs_of(versions: Sequence[PolicyVersion]) -> tuple[VersionRun, ...]:
    """Version of each token as runs."""
    runs: list[VersionRun] = []
    for version in versions:
        if runs and runs[-1].version == version:
            runs[-1] = VersionRun(version=version, count=runs[-1].count + 1)
        else:
            runs.append(VersionRun(version=version, count=1))
    return tuple(runs)


def _settle(flight: Flight, spans: Sequence[VersionRun]) -> None:
    said = [run.version for run in spans for _ in range(run.count)]
    if len(said) != len(flight.token_ids):
        raise EngineError(
            f"request {flight.request.id}: the engine's version spans cover {len(said)} tokens, it sampled "
            f"{len(flight.token_ids)}"
        )
    for place, (ours, theirs) in enumerate(zip(flight.versions, said, strict=False)):
        if ours != theirs:
            raise EngineError(
                f"request {flight.request.id}: token {place} was taken for version {ours}, the engine says {theirs}"
            )
    flight.versions = said
