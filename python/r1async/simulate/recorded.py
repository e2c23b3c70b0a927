"""What a run's journal says about its machines: who had which rollout from when to when, and how long steps took.

Pure: takes events as `JournalEvents` tells them. Times are seconds of the run's own clock.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean, median
from typing import Any

import numpy as np
from numpy.typing import NDArray

Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens of a rollout that came together: when, and how many of each version."""

    at: float
    versions: Sequence[tuple[int, int]]


@dataclass(kw_only=True, slots=True)
class Rollout:
    group: int
    holder: int
    leased: float
    tokens: int = 0
    pieces: list[Piece] = field(default_factory=list)
    finished: float | None = None
    scorer: int = -1
    scoring: float | None = None
    ended: float | None = None
    scored: bool = False


@dataclass(kw_only=True, slots=True)
class Step:
    bound: float
    groups: int = 0
    rollouts: int = 0
    tokens: int = 0
    """Completion and prompt."""
    stepped: float | None = None


class Recorded:
    """A run as its journal tells it. Rollouts that were lent twice are left out: half of their time is not theirs."""

    def __init__(self, events: Iterable[tuple[float, Mapping[str, Any]]], group_size: int) -> None:
        self.rollouts: dict[int, Rollout] = {}
        self.steps: dict[int, Step] = {}
        self.prompt_tokens: dict[int, int] = {}
        """By group."""
        self._group_size = group_size
        for at, event in events:
            self._hear(at, event)

    def _hear(self, at: float, event: Mapping[str, Any]) -> None:
        rollout = self.rollouts.get(event.get("rollout", -1))
        match event["what"]:
            case "admitted":
                self.prompt_tokens[event["group"]] = event["prompt_tokens"]
            case "leased" if rollout is None:
                number = event["rollout"]
                self.rollouts[number] = Rollout(
                    group=number // self._group_size, holder=int(event["holder"]), leased=at
                )
            case "leased" | "lost" | "restarted":
                self.rollouts.pop(event["rollout"], None)
            case "tokens" if rollout is not None:
                runs = [(run["version"]["number"], run["count"]) for run in event["runs"]]
                rollout.pieces.append(Piece(at, runs))
            case "finished" if rollout is not None:
                rollout.finished, rollout.tokens = at, event["tokens"]
            case "scoring" if rollout is not None:
                rollout.scorer, rollout.scoring = int(event["holder"]), at
            case "ended" if rollout is not None:
                rollout.ended, rollout.scored = at, "Score" in event["outcome"]
            case "taken":
                step = self.steps.setdefault(event["step"], Step(bound=at))
                step.rollouts += 1
                step.tokens += event["tokens"] + self.prompt_tokens[event["rollout"] // self._group_size]
            case "bound":
                self.steps.setdefault(event["step"], Step(bound=at)).groups += 1
            case "stepped" if event["step"] in self.steps:
                self.steps[event["step"]].stepped = at
            case "opened":
                # The buffer was away: what was on its way then took longer than it does.
                self.rollouts = {key: each for key, each in self.rollouts.items() if each.ended is not None}
                self.steps = {key: each for key, each in self.steps.items() if each.stepped is not None}

    def training(self) -> list[Span]:
        """From the batch's being bound to the report of its step."""
        return [(step.bound, step.stepped) for step in self.steps.values() if step.stepped is not None]

    def taken(self) -> dict[int, Steps]:
        """Slots taken, by generator."""
        changes: dict[int, Counter[float]] = defaultdict(Counter)
        for rollout in self.rollouts.values():
            if rollout.finished is not None:
                changes[rollout.holder][rollout.leased] += 1
                changes[rollout.holder][rollout.finished] -= 1
        return {holder: Steps(changes[holder]) for holder in sorted(changes)}

    def sampling(self, window: Span) -> list[tuple[float, float, float]]:
        """(tokens, seconds from loan to end, mean slots taken meanwhile) of rollouts within `window`."""
        taken = self.taken()
        return [
            (float(rollout.tokens), rollout.finished - rollout.leased, taken[rollout.holder].mean(*span))
            for rollout in self.rollouts.values()
            if rollout.finished is not None and within(span := (rollout.leased, rollout.finished), window)
        ]

    def grading(self, window: Span) -> list[tuple[float, float]]:
        """(place in its scorer's line, itself counted; seconds from the loan to the verdict)."""
        by_scorer: dict[int, list[Span]] = defaultdict(list)
        for rollout in self.rollouts.values():
            if rollout.scoring is not None and rollout.ended is not None:
                by_scorer[rollout.scorer].append((rollout.scoring, rollout.ended))
        found = []
        for spans in by_scorer.values():
            ends = sorted(end for _, end in spans)
            for before, (begin, end) in enumerate(sorted(spans)):
                gone = int(np.searchsorted(ends, begin, side="right"))
                if within((begin, end), window):
                    found.append((float(before + 1 - gone), end - begin))
        return found

    def failure_rate(self) -> float:
        """Share of the graded rollouts that got no score."""
        graded = [rollout.scored for rollout in self.rollouts.values() if rollout.ended and rollout.scoring]
        return 1 - fmean(graded) if graded else 0.0

    def weights_s(self, window: Span) -> list[float]:
        """Seconds from a step's report until a generator sampled with its weights, where that can be told.

        A generator that had nothing to do is lent rollouts as soon as it has them. One that samples shows it by the
        tokens of the new version that its rollouts have when they next report.
        """
        taken, stepped = self.taken(), {number + 1: step.stepped for number, step in self.steps.items()}
        first: dict[tuple[int, int], float] = {}
        switched: dict[tuple[int, int], list[float]] = defaultdict(list)
        for rollout in self.rollouts.values():
            if not rollout.pieces or rollout.finished is None:
                continue
            version = rollout.pieces[0].versions[0][0]
            key = (rollout.holder, version)
            first[key] = min(first.get(key, rollout.leased), rollout.leased)
            token_s = (rollout.finished - rollout.leased) / rollout.tokens
            for piece in rollout.pieces:
                if len(piece.versions) > 1:
                    newest, tokens = piece.versions[-1]
                    switched[rollout.holder, newest].append(piece.at - tokens * token_s)
        found = []
        for (holder, version), at in first.items():
            begin = stepped.get(version)
            if begin is None or not within((begin, at), window):
                continue
            if seen := switched.get((holder, version)):
                found.append(max(0.0, median(seen) - begin))
            elif taken[holder].at(begin) == 0:
                found.append(at - begin)
        return found


class Steps:
    """A count over time that changes at known moments."""

    def __init__(self, changes: Mapping[float, int]) -> None:
        self.times: NDArray[np.float64] = np.array(sorted(changes))
        self.counts = np.cumsum([changes[at] for at in self.times.tolist()])
        self._sums = np.concatenate([[0.0], np.cumsum(self.counts[:-1] * np.diff(self.times))])

    def at(self, time: float) -> float:
        """Just after `time`."""
        place = int(np.searchsorted(self.times, time, side="right")) - 1
        return float(self.counts[place]) if place >= 0 else 0.0

    def spans(self) -> list[Span]:
        """Where the count is above 0."""
        changes = np.flatnonzero(np.diff((self.counts > 0).astype(int), prepend=0))
        times = self.times[changes].tolist()
        return list(zip(times[::2], times[1::2], strict=False))

    def seconds_by_count(self, spans: Iterable[Span]) -> dict[int, float]:
        """How long the count was what within the spans, where it is above 0."""
        found: dict[int, float] = defaultdict(float)
        for begin, end in spans:
            inside = self.times[(self.times > begin) & (self.times < end)].tolist()
            for left, right in pairwise([begin, *inside, end]):
                found[int(self.at(left))] += right - left
        return dict(found)

    def mean(self, begin: float, end: float) -> float:
        sums = np.interp([begin, end], self.times, self._sums)
        return float(sums[1] - sums[0]) / (end - begin) if end > begin else self.at(begin)


def within(span: Span, window: Span) -> bool:
    return window[0] <= span[0] and span[1] <= window[1]


def counted(spans: Iterable[Span]) -> Steps:
    """How many of the spans a moment lies in."""
    changes: Counter[float] = Counter()
    for begin, end in spans:
        changes[begin] += 1
        changes[end] -= 1
    return Steps(changes)
