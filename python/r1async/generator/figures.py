"""What a generator says of itself: heartbeats, and the lines of its engine's file."""

from __future__ import annotations

import time

from r1async.generator.canary import Mismatch, Verdict
from r1async.monitor.metrics import MetricsWriter
from r1async.monitor.timeline import Timeline
from r1async.types import PolicyVersion
from r1async.weights.receiver import Receiver


class Figures:
    """What the heartbeat says; written by the loop, read by the connection's thread."""

    def __init__(self, timeline: Timeline, engine: str, record: MetricsWriter) -> None:
        self._timeline, self._engine, self._record = timeline, engine, record
        self._last = (time.monotonic(), 0)
        self.receiver: Receiver | None = None
        self.tokens = 0
        """Sampled since the start."""
        self.observation_tokens = 0
        """Written by environments since the start: tokens of rollouts that nobody sampled."""
        self.rollouts = 0
        """Finished since the start."""
        self.slots_used = 0
        self.installs = 0
        self.pause_s = 0.0
        """Of the newest install: seconds without a token."""
        self.canary: Mismatch | None = None
        self.version = PolicyVersion(0, -1)

    def installed(self, version: PolicyVersion, pause_s: float) -> None:
        self.version, self.pause_s = version, pause_s
        self.installs += 1
        self._record.write("install", {"engine": self._engine, "version": version.number, "pause_s": pause_s})

    def proven(self, verdict: Verdict) -> None:
        """What a canary said, whichever way."""
        if verdict.mismatch is not None:
            self.canary = verdict.mismatch
            figures = {"engine": self._engine, "version": verdict.version.number, "tokens": verdict.mismatch.tokens}
            self._record.write("canary", {**figures, **canary_stats(verdict.mismatch)})

    def stats(self) -> dict[str, float]:
        now, tokens = time.monotonic(), self.tokens
        (before, had), self._last = self._last, (now, tokens)
        return {
            **self._timeline.stats(),
            **(self.receiver.stats() if self.receiver else {}),
            "tokens": tokens,
            "tokens_per_s": (tokens - had) / max(now - before, 1e-3),
            "observation_tokens": self.observation_tokens,
            "rollouts": self.rollouts,
            "slots_used": self.slots_used,
            "installs": self.installs,
            "pause_s": self.pause_s,
            **canary_stats(self.canary),
            "epoch": self.version.epoch,
            "version": self.version.number,
        }


def canary_stats(mismatch: Mismatch | None) -> dict[str, float]:
    if mismatch is None:
        return {}
    figures = {"mismatch_mean": mismatch.mean, "mismatch_max": mismatch.maximum}
    return figures if mismatch.separation is None else {**figures, "separation": mismatch.separation}
