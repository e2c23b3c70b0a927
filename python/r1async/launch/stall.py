"""Notices that a run stands still, and says what for (DESIGN 1: no silent stall)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

END_AFTER = 5
"""Stall times without progress after which the run is ended."""


class StallWatch:
    """Progress is any change of the ledger's accounts or of a role's counters.

    Args:
        stall_s: seconds without progress after which the run says what it waits for.
        now: seconds on the caller's clock.
    """

    def __init__(self, stall_s: float, now: float) -> None:
        self._stall_s = stall_s
        self._progress = ""
        self._since = now
        self._said = 0
        self._waits: tuple[str, ...] = ()

    def saw(self, stats: Mapping[str, Any], now: float) -> None:
        """Takes a `stats` event of the buffer."""
        self._waits = waits(stats)
        self.moved(progress_of(stats), now)

    def moved(self, progress: str, now: float) -> None:
        if progress != self._progress:
            self._progress, self._since, self._said = progress, now, 0

    @property
    def deadline(self) -> float:
        """When `check` has something to say if nothing moves."""
        return self._since + self._stall_s * (self._said + 1)

    def check(self, now: float) -> Literal["fine", "say", "end"]:
        if now < self.deadline:
            return "fine"
        self._said = int((now - self._since) / self._stall_s)
        return "end" if self._said >= END_AFTER else "say"

    def describe(self, now: float) -> str:
        what = "; ".join(self._waits) or "no word from the buffer"
        return f"nothing moved for {now - self._since:.0f} s: {what}"


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
