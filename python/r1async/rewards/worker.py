"""A worker process: grades one rollout after another until its pipe ends, or until it is killed at a deadline.

Runs as ``python -m r1async.rewards.worker``. Frames are a u32 length and msgpack. In: settings once, then batches of
``[key, meta, text, num_tokens, finish]``. Out: ``{"ready": true}`` or ``{"failed": message}`` once, then lists
of ``[key, total | nil, {part: value}, status, seconds, detail]``. Before anything that may be slow all finished results
are written, so whoever kills the worker knows that the first rollout without a result is the one it was busy with.
"""

from __future__ import annotations

import logging
import os
import resource
import struct
import sys
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import IO

import msgpack

from r1async.config import CodeConfig, ConfigError, RewardConfig
from r1async.config_swe import SweConfig
from r1async.launch import lifeline
from r1async.rewards.compose import Grader
from r1async.tasks.meta import Question, decode_meta
from r1async.types import Completion, FinishReason, Verdict

log = logging.getLogger(__name__)

FLUSH_S = 0.005
"""Results of fast rollouts are written together, but not held back longer than this."""
_LENGTH = struct.Struct("<I")

WireJob = tuple[int, bytes, str, int, FinishReason]


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
    """Grades batches and reports as it goes."""

    def __init__(self, outgoing: IO[bytes], settings: RewardConfig) -> None:
        self._outgoing = outgoing
        self._results: list[tuple[int, float | None, dict[str, float], str, float, str]] = []
        self._flushed = time.monotonic()
        self._grader = Grader(settings, self.flush)

    def flush(self) -> None:
        self._flushed = time.monotonic()
        if self._results:
            write_frame(self._outgoing, self._results)
            self._results = []

    def grade(self, batch: Sequence[WireJob]) -> None:
        for key, meta, text, num_tokens, finish in batch:
            start = time.monotonic()
            verdict = self._verdict(meta, Completion(text=text, num_tokens=num_tokens, finish=finish))
            now = time.monotonic()
            parts = dict(verdict.parts)
            self._results.append((key, verdict.total, parts, verdict.status, now - start, verdict.detail))
            if now - self._flushed > FLUSH_S:
                self.flush()
        self.flush()

    def _verdict(self, meta: bytes, completion: Completion) -> Verdict:
        try:
            question = _question(meta)
        except ValueError as error:
            log.error("a rollout abstains: %s", error)
            return Verdict.abstain("error")
        return self._grader.grade(question, completion)


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


def _warm_up(settings: RewardConfig) -> None:
    """What would otherwise count against the deadline of the first rollout that needs it."""
    if settings.equivalence == "symbolic" and "accuracy" in settings.weights:
        from r1async.rewards.symbolic import symbolic_grade

        symbolic_grade("\\sqrt{4}", "2", None, None)
    if "language" in settings.weights:
        from r1async.rewards.identify import identify
        from r1async.rewards.language import consistency

        consistency("to be or not to be, that is", "en", identify if settings.identify_sentences else None)


def main() -> None:
    lifeline.die_with_parent(int(sys.argv[1]))
    incoming, outgoing = _private_pipes()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        settings = read_frame(incoming)
        assert isinstance(settings, dict), "the pool sends a map first"
        limit_memory(settings.pop("memory_mb"))
        code, swe = settings.pop("code"), settings.pop("swe")
        reward = RewardConfig(
            **settings,
            code=CodeConfig(**{**code, "read_only": tuple(code["read_only"])}),
            swe=SweConfig(**{**swe, "read_only": tuple(swe["read_only"])}),
        )
        _warm_up(reward)
        worker = Worker(outgoing, reward)
        write_frame(outgoing, {"ready": True})
        while True:
            batch = read_frame(incoming)
            assert isinstance(batch, list), "after the settings the pool sends batches"
            worker.grade(batch)
    except ConfigError as error:
        write_frame(outgoing, {"failed": str(error)})
    except EOFError:
        pass  # the scorer is gone, or has no more for us


if __name__ == "__main__":
    main()
