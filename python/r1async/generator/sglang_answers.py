"""What an SGLang server answers: event streams, chunks of tokens, errors, version labels. No sockets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from r1async._core import parse_logprobs_json
from r1async.generator.engine import EngineError
from r1async.types import PolicyVersion, VersionRun

DONE = b"[DONE]"
"""The last event of a stream."""


class EventStream:
    """Events out of the bytes of a `text/event-stream`, however they are cut."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The events that are whole now, without their `data:`."""
        self._rest += data
        whole, found, rest = bytes(self._rest).rpartition(b"\n\n")
        if not found:
            return []
        self._rest = bytearray(rest)
        return [event.removeprefix(b"data:").strip() for event in whole.split(b"\n\n")]


@dataclass(frozen=True, slots=True)
class Finish:
    """Why a request ended."""

    kind: Literal["stop", "length", "abort"]
    matched: int | None = None
    """Token that stopped it."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One answer about one request, the newest of a stream or the only one."""

    token_ids: NDArray[np.int32]
    """The last of the request's tokens so far; which they are, `total` says."""
    logprobs: NDArray[np.float32]
    total: int
    """Tokens of the request so far, those of earlier chunks included."""
    label: str
    """Version that the server's front end had when these tokens came to it."""
    cached: int
    """Tokens of the prompt that were in the prefix cache."""
    finish: Finish | None
    spans: tuple[tuple[str, int], ...] | None
    """With `finish`: label and count of consecutive tokens, from the request's first."""

    def after(self, have: int) -> tuple[list[int], list[float]]:
        """Tokens and logprobs past the first ``have``: streams are incremental or not, as the server was started.

        Raises:
            EngineError: tokens in between are missing.
        """
        new = self.total - have
        if new < 0 or new > len(self.token_ids):
            raise EngineError(
                f"SGLang's stream has a hole: {len(self.token_ids)} tokens up to token {self.total}, "
                f"{have} had come before"
            )
        start = len(self.token_ids) - new
        return self.token_ids[start:].tolist(), self.logprobs[start:].tolist()


def read_chunk(body: bytes) -> Chunk:
    """One answer of /generate.

    Raises:
        EngineError: an error the server reports, or an answer that is none.
    """
    try:
        answer = json.loads(body)
    except ValueError as error:
        raise EngineError(f"SGLang's answer is not JSON ({error}): {body[:200]!r}") from error
    if not isinstance(answer, Mapping):
        raise EngineError(f"SGLang's answer is not an object: {body[:200]!r}")
    if "error" in answer:
        raise EngineError(f"SGLang refused a request: {error_message(answer)}")
    try:
        return _chunk(body, answer["meta_info"])
    except (KeyError, TypeError, ValueError) as error:
        raise EngineError(f"SGLang's answer cannot be read ({error!r}): {body[:300]!r}") from error


def _chunk(body: bytes, meta: Mapping[str, Any]) -> Chunk:
    # A request that is ended in the queue before its first token has no such list.
    if meta.get("output_token_logprobs"):
        token_ids, logprobs = parse_logprobs_json(body, "sglang")
    else:
        token_ids, logprobs = np.empty(0, np.int32), np.empty(0, np.float32)
    total = int(meta["completion_tokens"])
    if "output_token_sampling_logprobs" in meta:
        logprobs = _filtered(meta["output_token_sampling_logprobs"], len(token_ids))
    if len(token_ids) > total:
        # Chunks that a slow reader makes the server join, the last of which repeats all there is.
        token_ids, logprobs = token_ids[-total:], logprobs[-total:]
    spans = meta.get("weight_versions")
    return Chunk(
        token_ids=token_ids,
        logprobs=logprobs,
        total=total,
        label=str(meta["weight_version"]),
        cached=int(meta.get("cached_tokens", 0)),
        finish=_finish(meta["finish_reason"]),
        spans=None if spans is None else _spans(spans),
    )


def _filtered(values: Sequence[float], tokens: int) -> NDArray[np.float32]:
    """Logprobs after top-k and top-p."""
    logprobs = np.array(values, np.float32)
    if logprobs.shape != (tokens,) or not np.isfinite(logprobs).all():
        raise ValueError(f"{logprobs.shape} logprobs after top-k and top-p, all finite, for {tokens} tokens")
    return logprobs


def _finish(reason: Mapping[str, Any] | None) -> Finish | None:
    if reason is None:
        return None
    match reason["type"]:
        case "length":
            return Finish("length")
        case "abort" if reason.get("status_code") is None:
            return Finish("abort")
        case "stop" if isinstance(reason.get("matched"), int):
            return Finish("stop", reason["matched"])
    raise EngineError(f"SGLang ended a request with {json.dumps(reason)}")


def _spans(spans: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, int], ...]:
    counted, place = [], 0
    for span in spans:
        if span["start"] != place or span["end"] < place:
            raise EngineError(f"SGLang's version spans are not consecutive: {json.dumps(spans)}")
        place = span["end"]
        if span["end"] > span["start"]:
            counted.append((str(span["version"]), span["end"] - span["start"]))
    return tuple(counted)


def error_message(answer: object) -> str:
    """Out of either shape of error: ``{"error": {"message": ...}}`` and ``{"error": ...}``."""
    error = answer.get("error", answer) if isinstance(answer, Mapping) else answer
    return str(error.get("message", error) if isinstance(error, Mapping) else error)


class Labels:
    """Our versions as the labels that a server knows them by, and back."""

    def __init__(self) -> None:
        self._versions: dict[str, PolicyVersion] = {}

    def add(self, version: PolicyVersion) -> str:
        self._versions[str(version)] = version
        return str(version)

    def version(self, label: str) -> PolicyVersion:
        """Raises:
        EngineError: weights that are not from us.
        """
        version = self._versions.get(label)
        if version is None:
            known = ", ".join(list(self._versions)[-3:]) or "none"
            raise EngineError(
                f"SGLang serves weights labelled {label!r}, which we did not install (our last: {known}); does "
                "somebody else update this server?"
            )
        return version

    def runs(self, spans: Sequence[tuple[str, int]]) -> list[VersionRun]:
        """Raises:
        EngineError: as for `version`.
        """
        return [VersionRun(version=self.version(label), count=count) for label, count in spans]
