"""Notices that a run stands still, and says what for (DESIGN 1: no silent stall)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from r1async.config import Config

END_AFTER = 5
"""Stall times without progress after which the run is ended, unless a wait within its own deadline may take longer."""


class StallWatch:
    """Progress is any change of the ledger's accounts or of a role's counters.

    A learner at work is no progress, so the run says what it does, but nobody ends a run in a long optimizer step.

    Args:
        stall_s: seconds without progress after which the run says what it waits for.
        now: seconds on the caller's clock.
        longest_wait_s: the run is not ended before one more stall time than this has passed (`longest_wait_s`).
    """

    def __init__(self, stall_s: float, now: float, longest_wait_s: float = 0.0) -> None:
        self._stall_s = stall_s
        self._end_s = max(END_AFTER * stall_s, longest_wait_s + stall_s)
        self._progress = ""
        self._since = now
        self._said = 0
        self._waits: tuple[str, ...] = ()
        self._busy: dict[str, dict[str, float]] = {}
        """By learner rank, the seconds of each of its activities."""
        self._works: tuple[str, ...] = ()
        """What learner ranks did since the last figures, in words."""
        self._worked_at = now

    def saw(self, stats: Mapping[str, Any], now: float) -> None:
        """Takes a `stats` event of the buffer."""
        self._waits = waits(stats)
        busy = busy_seconds(stats)
        self._works = tuple(works(self._busy, busy))
        self._busy = busy
        if self._works:
            self._worked_at = now
        self.moved(progress_of(stats), now)

    def moved(self, progress: str, now: float) -> None:
        if progress != self._progress:
            self._progress, self._since, self._said = progress, now, 0

    @property
    def deadline(self) -> float:
        """When `check` has something to say if nothing moves."""
        return min(self._since + self._stall_s * (self._said + 1), self._end_at)

    @property
    def _end_at(self) -> float:
        return max(self._since, self._worked_at) + self._end_s

    def check(self, now: float) -> Literal["fine", "say", "end"]:
        if now < self.deadline:
            return "fine"
        self._said = int((now - self._since) / self._stall_s)
        return "end" if now >= self._end_at else "say"

    def describe(self, now: float) -> str:
        what = "; ".join((*self._waits, *self._works)) or "no word from the buffer"
        return f"nothing moved for {now - self._since:.0f} s: {what}"


def longest_wait_s(config: Config) -> float:
    """The longest time that a healthy run may spend with nothing moving; each of these waits has its own deadline.

    Not among them: the learner's wait for a batch and the evaluator's for samples, during which others must move.
    """
    return max(
        config.buffer.connect_deadline_s,
        config.group.rollout_deadline_s,
        config.scoring_deadline_s,
        config.staleness.hold_deadline_s,
        config.weights.deadline_s,
    )


def progress_of(stats: Mapping[str, Any]) -> str:
    """The part of a `stats` event that only progress changes."""
    counters = {
        str(peer.get("name")): {
            name: value
            for name, value in sorted(peer.get("stats", {}).items())
            if name in ("tokens", "verdicts", "evaluations")
        }
        for peer in stats.get("peers", [])
    }
    accounts = [stats.get("version"), stats.get("published"), stats.get("audit"), counters]
    return json.dumps(accounts, sort_keys=True, default=str)


def waits(stats: Mapping[str, Any]) -> tuple[str, ...]:
    """What each part of the run waits for, by name."""
    own = [str(each) for each in stats.get("waits", [])]
    peers = [
        f"{peer.get('name')} waits for {peer['waits_for']}" for peer in stats.get("peers", []) if peer.get("waits_for")
    ]
    return (*own, *peers)


def busy_seconds(stats: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Seconds of each activity of each learner rank since it started."""
    return {
        str(peer.get("name")): {
            name.removeprefix("busy_s:"): seconds
            for name, seconds in peer.get("stats", {}).items()
            if name.startswith("busy_s:")
        }
        for peer in stats.get("peers", [])
        if peer.get("role") == "learner"
    }


def works(before: Mapping[str, Mapping[str, float]], after: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """What each learner rank was busy with between two figures, in words."""
    for name, activities in after.items():
        former = before.get(name, {})
        grown = [activity for activity, seconds in activities.items() if seconds > former.get(activity, 0.0)]
        if grown:
            yield f"{name} is busy: {', '.join(sorted(grown))}"
