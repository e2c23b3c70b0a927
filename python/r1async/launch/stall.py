"""Notices that a run stands still, and says what blocks it (docs/progress.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from r1async.config import Config

END_AFTER = 5
"""Limits without progress after which the run is ended, unless a wait within its own deadline may take longer."""

CAUSES = (
    "role", "learner", "weights", "fenced", "scoring", "generating", "train", "filters", "hold", "late",
    "end_of_data", "prompts", "scorer", "generator", "evaluation", "places", "groups",
)  # fmt: skip
"""Waits of the buffer, those that explain others first: a learner that waits for groups does so because a scorer is
busy, never the other way round."""

PEER_COUNTERS = ("tokens", "verdicts", "evaluations", "installs", "weights_bytes")
"""What a role counts when it gets on; a heartbeat without one of them says only that its process lives."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """What blocks a run."""

    name: str
    """As in docs/progress.md."""
    text: str
    role: str = ""
    """Whom it is about; empty if it is about nobody alone."""
    groups: Sequence[int] = ()
    """The first groups that it is about."""
    rollouts: Sequence[int] = ()
    seconds: float | None = None
    """For how long, if the wait has a beginning of its own."""

    def record(self) -> dict[str, Any]:
        return asdict(self)


class StallWatch:
    """Progress is any growth of a counter that only work makes grow (`progress_of`).

    A learner at work is no progress, so the run says what it does, but nobody ends a run in a long optimizer step.

    Args:
        limit_s: seconds without progress after which the run says what blocks it.
        now: seconds on the caller's clock.
        end_s: seconds without progress after which the run ends.
    """

    def __init__(self, limit_s: float, now: float, end_s: float) -> None:
        self._limit_s = limit_s
        self._end_s = end_s
        self._counters: dict[str, float] = {}
        self._since = now
        self._said = 0
        self._stats: Mapping[str, Any] = {}
        self._busy: dict[str, dict[str, float]] = {}
        """By learner rank, the seconds of each of its activities."""
        self._works: tuple[str, ...] = ()
        """What learner ranks did since the last figures, in words."""
        self._worked_at = now

    def saw(self, stats: Mapping[str, Any], now: float) -> bool:
        """Takes a `stats` event of the buffer; True if something has moved since the last one."""
        self._stats = stats
        busy = busy_seconds(stats)
        self._works = tuple(works(self._busy, busy))
        self._busy = busy
        if self._works:
            self._worked_at = now
        counters = progress_of(stats)
        grew = any(value > self._counters.get(name, 0.0) for name, value in counters.items())
        # Not the highest ever seen: a role that starts again counts from zero, and its first token is progress.
        self._counters |= counters
        if grew:
            self.moved(now)
        return grew

    def moved(self, now: float) -> None:
        self._since, self._said = now, 0

    @property
    def deadline(self) -> float:
        """When `check` has something to say if nothing moves."""
        return min(self._since + self._limit_s * (self._said + 1), self._end_at)

    @property
    def learner_works(self) -> bool:
        return bool(self._works)

    @property
    def _end_at(self) -> float:
        return max(self._since, self._worked_at) + self._end_s

    def check(self, now: float) -> Literal["fine", "say", "end"]:
        if now < self.deadline:
            return "fine"
        self._said = int((now - self._since) / self._limit_s)
        return "end" if now >= self._end_at else "say"

    def still_s(self, now: float) -> float:
        """Seconds since something moved."""
        return now - self._since

    def filtered_s(self) -> float:
        """Seconds for which filters have taken every group, once there were enough of them to say so."""
        return max((wait.get("seconds", 0.0) for wait in waits(self._stats) if wait["name"] == "filters"), default=0.0)

    def diagnose(self, now: float) -> Diagnosis:
        """What blocks: the wait that explains the others, with the text of all of them."""
        found = sorted(waits(self._stats), key=lambda wait: CAUSES.index(wait["name"]))
        peers = self._stats.get("peers", [])
        roles = [f"{peer.get('name')} waits for {peer['waits_for']}" for peer in peers if peer.get("waits_for")]
        texts = [*(str(wait["text"]) for wait in found), *roles, *self._works]
        what = "; ".join(texts) or "no word from the buffer"
        first: Mapping[str, Any] = found[0] if found else {"name": "buffer"}
        return Diagnosis(
            name=first["name"],
            text=f"nothing moved for {self.still_s(now):.0f} s: {what}",
            role=first.get("role", ""),
            groups=tuple(first.get("groups", ())),
            rollouts=tuple(first.get("rollouts", ())),
            seconds=first.get("seconds"),
        )


def end_s(config: Config) -> float:
    """Seconds without progress after which a run ends."""
    limit_s = config.progress.limit_s
    return config.progress.end_s or max(END_AFTER * limit_s, longest_wait_s(config) + limit_s)


def longest_wait_s(config: Config) -> float:
    """The longest time that a healthy run may spend with nothing moving; each of these waits has its own deadline.

    Not among them: the learner's wait for a batch and the evaluator's for samples, during which others must move.
    """
    generator = config.generator
    elsewhere = generator.engine != "torch"  # an engine in another process takes its time to start, and may hang
    return max(
        max(generator.start_deadline_s, generator.stall_deadline_s) if elsewhere else 0.0,
        config.buffer.connect_deadline_s,
        config.group.rollout_deadline_s,
        config.scoring_deadline_s,
        config.staleness.hold_deadline_s,
        config.weights.deadline_s,
    )


def waits(stats: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The buffer's waits in a `stats` event."""
    return list(stats.get("waits", []))


def progress_of(stats: Mapping[str, Any]) -> dict[str, float]:
    """Counters that only work makes grow: versions, commits, tokens and prompts received, and what roles count."""
    audit, buffer = stats.get("audit") or {}, stats.get("buffer") or {}
    counters: dict[str, float] = {
        "version": stats.get("version", 0),
        "published": stats.get("published", 0),
        "committed": buffer.get("committed", 0),
    }
    for account in ("prompts", "tokens", "evaluation_tokens"):
        counters[account] = (audit.get(account) or {}).get("in", 0)
    for peer in stats.get("peers", []):
        for name, value in peer.get("stats", {}).items():
            if name in PEER_COUNTERS:
                counters[f"{peer.get('name')} {name}"] = value
    return counters


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
