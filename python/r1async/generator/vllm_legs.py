"""Requests of vLLM's that a rollout consists of, and what vLLM says of their versions."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import xxhash

from r1async.generator.engine import EngineError
from r1async.generator.flights import Flight
from r1async.generator.vllm_calls import Span
from r1async.types import PolicyVersion


@dataclass(eq=False, slots=True)
class Leg:
    """One request of vLLM's: a rollout's first, or what it goes on as after an abort."""

    id: int
    key: str
    flight: Flight
    dropped: bool = False
    """The generator wants no more of it."""
    cut: bool = False
    """An install aborts it, to go on under the new weights."""
    uncertain: bool = False
    """Tokens may be on their way that were sampled before a pause: only vLLM's spans tell the versions."""
    tokens: int = 0
    before: list[PolicyVersion] = field(default_factory=list)
    """Version of each token of earlier legs."""


def seed_of(seed: int, rollout: int, position: int) -> int:
    """Of vLLM's noise for a rollout that goes on after ``position`` completion tokens; each place has its own."""
    return xxhash.xxh3_64_intdigest(struct.pack("<qqq", seed, rollout, position)) >> 2


def versions_of(leg: Leg, spans: Sequence[Span] | None) -> list[PolicyVersion]:
    """Version of each token of a request of vLLM's, as vLLM says it.

    Raises:
        EngineError: it does not say it of every token once.
    """
    versions: list[PolicyVersion] = []
    for span in spans or ():
        label = re.fullmatch(r"(\d+)\.(\d+)\.\S+", span.label)
        if label is None or span.start != len(versions) or span.end < span.start:
            break
        versions += [PolicyVersion(int(label[2]), int(label[1]))] * (span.end - span.start)
    else:
        if len(versions) == leg.tokens:
            return versions
    raise EngineError(f"request {leg.id}: vLLM's version spans do not fit its {leg.tokens} tokens: {spans}")
