"""Slow verdicts under a virtual clock: the real buffer, with peers whose work takes as long as the test says."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.core_peers import Generator, Learner, Run, Scorer

STEP_S = 1.0
ROLLOUT_S = 1.0
SLOW_EVERY = 4
"""Each fourth prompt is of the slow source: its share is 1/4."""
SLOW_BOUND = 256
SETTINGS: dict[str, Any] = {
    "group_size": 2,
    "min_group_size": 1,
    "groups_per_step": 4,
    "max_staleness": 2,
    "pacing": 2,
    "rollout_deadline_s": 1e6,
    "lease_s": 1e6,
    "group_deadline_s": 1e7,
    "scoring_deadline_s": 1e6,
    "peer_deadline_s": 1e7,
    "interval_s": 1e6,
}
OWN_WINDOW = {"windows": [("slow", SLOW_BOUND, 1 / SLOW_EVERY)], "slow_pools": [("swe", 1e6, 1)]}


def swe_like(rollout: int) -> float:
    """Lognormal, half of them longer than 50 steps, the longest five times that."""
    draw = random.Random(rollout).gauss(0.0, 0.7)
    return 50 * STEP_S * min(5.0, math.exp(draw))


def instant(rollout: int) -> float:
    return 0.0


@dataclass
class World:
    """A learner that takes a second a step, a generator that can just feed it, and graders."""

    steps: int
    slow_s: Callable[[int], float]
    settings: dict[str, Any]
    batches: list[dict[int, int]] = field(default_factory=list)
    """By step: groups trained, with the staleness of their oldest token that has a loss."""

    def __post_init__(self) -> None:
        own = bool(self.settings.get("windows"))
        self.run = Run(steps=self.steps, **{**SETTINGS, **self.settings})
        self.run.place_of = lambda ordinal: (1, 1) if own and is_slow(ordinal) else (0, 0)
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.numbers = itertools.count()
        self.learner = Learner(self.run)
        self.learner.tell("published", version=0, hash="hash-0")
        self.generator = Generator(self.run, slots=8)
        self.scorer = Scorer(self.run)
        self.room = {"rules": 4096, "swe": 4096} if own else {"rules": 4096}
        self.generator.ready()
        self.grant()
        self.learner.ask()
        self.look()

    def at(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.run.now + seconds, next(self.numbers), act))

    def play(self) -> float:
        """Virtual seconds until the last step."""
        while len(self.batches) < self.steps:
            now, _, act = heapq.heappop(self.events)
            self.run.tick(now)
            act()
            self.look()
        return self.run.now

    def look(self) -> None:
        """Everybody begins what they were given."""
        self.generator.receive()
        held, self.generator.held = self.generator.held, []
        if held:
            self.at(ROLLOUT_S, lambda: self.sampled(held))
        for message in self.run.take_all("scorer-0", "score"):
            self.scorer.seen += len(message.header["items"])
            for lease, rollout, group, *_ in message.header["items"]:
                self.room[message.header["pool"]] -= 1
                seconds = self.slow_s(rollout) if is_slow(group) else 0.0
                pool = message.header["pool"]
                self.at(seconds, lambda lease=lease, rollout=rollout, pool=pool: self.graded(lease, rollout, pool))
        for message in self.run.take_all(self.learner.name, "batch"):
            self.at(STEP_S, lambda message=message: self.trained(message))
        for inbox in self.run.inboxes.values():
            inbox.clear()  # acks and the like, which nobody here reads
        self.run.frames.clear()

    def sampled(self, held: list[dict[str, Any]]) -> None:
        self.generator.held = held
        self.generator.finish()
        self.generator.ready(free=self.generator.slots - self.running())

    def running(self) -> int:
        return self.run.buffer.stats()["rollouts_generating"]

    def graded(self, lease: int, rollout: int, pool: str) -> None:
        self.room[pool] += 1
        self.run.send("scorer-0", {"t": "verdicts", "items": [[lease, float(rollout % 2), {}, "ok"]]})
        self.grant()

    def grant(self) -> None:
        others = [[name, free] for name, free in self.room.items() if name != "rules"]
        header = {"t": "ready", "free": self.room["rules"], "pools": others, "leases_seen": self.scorer.seen}
        self.run.send("scorer-0", header)

    def trained(self, message: Any) -> None:
        step, columns = message.header["step"], message.columns
        stale: dict[int, int] = {}
        for i, group in enumerate(columns["groups"].tolist()):
            runs = slice(columns["cu_runs"][i], columns["cu_runs"][i + 1])
            versions = columns["run_versions"][runs][columns["over_age"][runs] == 0]
            stale[group] = max([stale.get(group, 0), *(step - versions).tolist()])
        self.batches.append(stale)
        self.learner.train()
        self.generator.version = (1, self.learner.step)
        self.generator.ready(free=self.generator.slots - self.running())
        self.learner.ask()


def is_slow(ordinal: int) -> bool:
    return ordinal % SLOW_EVERY == SLOW_EVERY - 1


def test_slow_verdicts_cost_no_throughput_and_their_source_keeps_its_share_and_its_bound():
    steps, warm = 640, 320
    fast = World(steps, instant, OWN_WINDOW).play()
    world = World(steps, swe_like, OWN_WINDOW)
    assert fast / world.play() >= 0.95
    settled = [group for batch in world.batches[warm:] for group in batch]
    share = sum(map(is_slow, settled)) / len(settled)
    assert abs(share - 1 / SLOW_EVERY) <= 0.05 / SLOW_EVERY
    stale = [(is_slow(group), it) for batch in world.batches for group, it in batch.items()]
    assert max(it for slow, it in stale if not slow) <= SETTINGS["max_staleness"]
    assert 50 <= max(it for slow, it in stale if slow) <= SLOW_BOUND
    world.run.buffer.stop(world.run.now)
    assert world.run.buffer.audit()["balanced"]


def test_without_a_window_of_their_own_the_same_verdicts_hold_everybody_up():
    steps = 24
    shared = {"max_staleness": 2, "waste_budget": 1.0}
    assert World(steps, instant, shared).play() / World(steps, swe_like, shared).play() < 0.5
