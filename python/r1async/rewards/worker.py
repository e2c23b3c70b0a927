"""A worker process: grades one rollout after another until its pipe ends, or until it is killed at a deadline.

Runs as ``python -m r1async.rewards.worker``. Frames are a u32 length and msgpack. In: settings once, then batches of
``[key, meta, text, num_tokens, finish, domain]``. Out: ``{"ready": true}`` or ``{"failed": message}`` once, then lists
of ``[key, total | nil, {part: value}, status, seconds, detail]``. Before anything that may be slow all finished results
are written, so whoever kills the worker knows that the first rollout without a result is the one it was busy with.

A worker of a pool that asks endpoints has several rollouts at a time and reports each as its answers come; one with a
classifier computes a batch at a time.
"""

from __future__ import annotations

import logging
import os
import resource
import struct
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import is_dataclass
from functools import lru_cache
from typing import IO, Protocol, TypeVar, get_args, get_origin, get_type_hints

import msgpack

from r1async.config import ConfigError, RewardConfig
from r1async.launch import lifeline
from r1async.reward_pools import Pool
from r1async.rewards.compose import Grader
from r1async.tasks.meta import Question, decode_meta
from r1async.types import Completion, FinishReason, Verdict

log = logging.getLogger(__name__)

FLUSH_S = 0.005
"""Results of fast rollouts are written together, but not held back longer than this."""
_LENGTH = struct.Struct("<I")

WireJob = tuple[int, bytes, str, int, FinishReason, str]
Result = tuple[int, float | None, dict[str, float], str, float, str]


def write_frame(stream: IO[bytes], value: object) -> None:
    payload = msgpack.packb(value)
    assert payload is not None, "packb gives bytes"
    stream.write(_LENGTH.pack(len(payload)) + payload)
    stream.flush()


def read_frame(stream: IO[bytes]) -> object:
    """The next frame.

    Raises:
        EOFError: the other side closed its end, or died in the middle of a frame.
    """
    (size,) = _LENGTH.unpack(_read(stream, _LENGTH.size))
    return msgpack.unpackb(_read(stream, size), strict_map_key=False)


def _read(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError(f"pipe ended after {len(data)} of {size} bytes")
    return data


class Worker:
    """Grades batches one rollout after another and reports as it goes."""

    def __init__(
        self, outgoing: IO[bytes], settings: RewardConfig, weights: Mapping[str, Mapping[str, float]] | None = None
    ) -> None:
        self._outgoing = outgoing
        self._results: list[Result] = []
        self._flushed = time.monotonic()
        self._grader = Grader(settings, self.flush, weights)

    def serve(self, incoming: IO[bytes]) -> None:
        """Until the pipe ends: EOFError."""
        while True:
            self.grade(read_batch(incoming))

    def flush(self) -> None:
        self._flushed = time.monotonic()
        if self._results:
            write_frame(self._outgoing, self._results)
            self._results = []

    def grade(self, batch: Sequence[WireJob]) -> None:
        for job in batch:
            start = time.monotonic()
            asked = asked_of(job)
            verdict = asked if isinstance(asked, Verdict) else self._graded(*asked)
            now = time.monotonic()
            self._results.append(result_of(job[0], verdict, now - start))
            if now - self._flushed > FLUSH_S:
                self.flush()
        self.flush()

    def _graded(self, question: Question, completion: Completion, domain: str) -> Verdict:
        try:
            return self._grader.grade(question, completion, domain)
        except Exception:
            # An error of ours, or of a library, that some completion has found: as one in a function of the user's.
            log.exception("grading failed; the rollout abstains")
            return Verdict.abstain("error")


def read_batch(incoming: IO[bytes]) -> Sequence[WireJob]:
    batch = read_frame(incoming)
    assert isinstance(batch, list), "after the settings the pool sends batches"
    return batch


def asked_of(job: WireJob) -> tuple[Question, Completion, str] | Verdict:
    """What is to be graded, and of which domain; a verdict if it cannot be read."""
    _, meta, text, num_tokens, finish, domain = job
    try:
        return _question(meta), Completion(text=text, num_tokens=num_tokens, finish=finish), domain
    except ValueError as error:
        log.error("a rollout abstains: %s", error)
        return Verdict.abstain("error")


def result_of(key: int, verdict: Verdict, elapsed_s: float) -> Result:
    """What is sent. Half a character, which JSON may escape in a judge's reply, cannot be: its place says `?`."""
    parts = {_plain(name): value for name, value in verdict.parts.items()}
    return key, verdict.total, parts, _plain(verdict.status), elapsed_s, _plain(verdict.detail)


def _plain(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


@lru_cache(maxsize=64)
def _question(meta: bytes) -> Question:
    """Members of a group come one after another and share their prompt."""
    return decode_meta(meta)


def limit_memory(megabytes: int) -> None:
    """Make allocations beyond this fail in the process, with a MemoryError where Python makes them. 0: no limit.

    The hard limit stays: programs that a worker starts have limits of their own, and some reserve much address space.
    """
    if megabytes:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (megabytes * 2**20, hard))


def _private_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """Standard input and output for us alone: a grader that prints must not write into our frames."""
    incoming, outgoing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return incoming, outgoing


def _warm_up(settings: RewardConfig, parts: Collection[str]) -> None:
    """What would otherwise count against the deadline of the first rollout that needs it."""
    if "math" in parts or (settings.equivalence == "symbolic" and "accuracy" in parts):
        from r1async.rewards.symbolic import symbolic_grade

        symbolic_grade("\\sqrt{4}", "2", None, None)
    if "language" in parts:
        from r1async.rewards.identify import identify
        from r1async.rewards.language import consistency

        consistency("to be or not to be, that is", "en", identify if settings.identify_sentences else None)


class _Serves(Protocol):
    def serve(self, incoming: IO[bytes]) -> None: ...


def _worker(outgoing: IO[bytes], reward: RewardConfig, pool: Pool) -> _Serves:
    """What serves a pool; only that one's libraries are imported."""
    if pool.asking == "many":
        from r1async.rewards.asking import AskingWorker

        return AskingWorker(outgoing, reward, pool)
    if pool.asking == "batch":
        from r1async.rewards.classifier import ClassifierWorker

        return ClassifierWorker(outgoing, reward, pool)
    _warm_up(reward, {part for parts in pool.weights.values() for part in parts})
    return Worker(outgoing, reward, pool.weights)


def main() -> None:
    lifeline.die_with_parent(int(sys.argv[1]))
    incoming, outgoing = _private_pipes()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        settings = read_frame(incoming)
        assert isinstance(settings, dict), "the pool sends a map first"
        reward, pool = from_plain(RewardConfig, settings["reward"]), from_plain(Pool, settings["pool"])
        limit_memory(pool.memory_mb)
        worker = _worker(outgoing, reward, pool)
        write_frame(outgoing, {"ready": True})
        worker.serve(incoming)
    except ConfigError as error:
        write_frame(outgoing, {"failed": str(error)})
    except EOFError:
        pass  # the scorer is gone, or has no more for us


T = TypeVar("T")


def from_plain(cls: type[T], plain: Mapping[str, object]) -> T:
    """A table of settings from what `dataclasses.asdict` and msgpack made of it."""
    hints = get_type_hints(cls)
    return cls(**{name: _value(hints[name], value) for name, value in plain.items()})


def _value(hint: object, value: object) -> object:
    if isinstance(hint, type) and is_dataclass(hint) and isinstance(value, dict):
        return from_plain(hint, value)
    if get_origin(hint) is tuple and isinstance(value, list):
        return tuple(value)
    inner = get_args(hint)[1:]
    if isinstance(value, dict) and inner and isinstance(inner[0], type) and is_dataclass(inner[0]):
        return {name: from_plain(inner[0], each) for name, each in value.items()}
    return value


if __name__ == "__main__":
    main()
