"""All pools of one scorer: each rollout goes to every pool that its reward needs, and its verdict is what they say.

Takes: jobs, workers' reports. Gives: verdicts, faults, figures of each pool, alarms. Waits for: nothing; the scorer
waits, for reports in its inbox or for `next_deadline`.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from r1async.config import RewardConfig, ScorerConfig
from r1async.inbox import Inbox
from r1async.reward_pools import OTHERS, domain_of, line_of, lines_of, pools_of, route
from r1async.rewards.compose import join
from r1async.rewards.pool import Fault, Job, Report, Settled, WorkerPool
from r1async.tasks.meta import decode_meta
from r1async.types import Verdict

log = logging.getLogger(__name__)

COSTS = frozenset(
    f"{part}.{what}"
    for part in ("judge", "helpfulness", "harmlessness")
    for what in ("requests", "prompt_tokens", "completion_tokens", "cost")
)
"""Parts that say what a verdict cost."""
RECENT = 1024
"""Verdicts of a pool that its latencies are taken over."""
SLOWEST = 5
"""Rollouts of a pool that are named for the time they took."""
WATCHED = 200
"""Verdicts of a pool that the alarm looks back on."""
FEWEST = 40
"""Verdicts before the alarm says anything."""
OWED = frozenset(
    ("infra_error", "ungradable", "nan", "error", "overflow", "worker_lost", "timeout", "unparsed", "abstained")
)
"""Abstentions that a grader owes."""


@dataclass(slots=True)
class Alarm:
    """Says once when the share of verdicts that a grader owes passes a rate, and again after it has fallen to half."""

    rate: float
    recent: deque[str] = field(default_factory=lambda: deque(maxlen=WATCHED))
    """Status of each verdict that is owed, "" of the others."""
    rung: bool = False

    def saw(self, verdict: Verdict) -> str | None:
        """What is to be said now, if something is."""
        self.recent.append(verdict.status if verdict.total is None and verdict.status in OWED else "")
        owed = Counter(status for status in self.recent if status)
        share = owed.total() / len(self.recent)
        if self.rung:
            self.rung = share > self.rate / 2
            return None
        if len(self.recent) < FEWEST or share <= self.rate:
            return None
        self.rung = True
        named = ", ".join(f"{status} {count}" for status, count in owed.most_common())
        return f"{owed.total()} of the last {len(self.recent)} verdicts are missing: {named}"


@dataclass(slots=True)
class Figures:
    """What is shown of one pool."""

    alarm: Alarm
    verdicts: int = 0
    queued: int = 0
    """Rollouts without this pool's verdict."""
    statuses: Counter[str] = field(default_factory=Counter)
    latencies_s: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    """From the queue to the verdict."""
    slowest: list[tuple[float, int]] = field(default_factory=list)
    """(seconds in a worker, job)."""
    costs: dict[str, float] = field(default_factory=dict)
    """What asking endpoints cost so far."""


@dataclass(slots=True)
class _Job:
    """A rollout that some pools have not graded yet."""

    domain: str
    begun_at: float
    waits_for: set[str]
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    elapsed_s: float = 0.0


class Pools:
    """The worker pools that the lines of `serve` need.

    Args:
        reward: the whole reward.
        scorer: sizes, deadlines, alarm.
        inbox: gets `Report`s, to be given to `handle`.
        serve: lines whose rollouts will come; none: all.
    """

    def __init__(self, reward: RewardConfig, scorer: ScorerConfig, inbox: Inbox, serve: Collection[str] = ()) -> None:
        self._reward, self._all = reward, pools_of(reward, scorer)
        domains = {domain for pool in self._all.values() for domain in pool.weights}
        wanted = {
            name
            for domain in domains
            if not serve or line_of(self._all, domain) in serve
            for name in route(self._all, domain)
        }
        lines = lines_of(self._all)
        self.lines = {name: line for name, line in lines.items() if not serve or name in serve}
        self._pools = {
            name: WorkerPool(reward, pool, inbox) for name, pool in self._all.items() if name in wanted and pool.weights
        }
        self._jobs: dict[int, _Job] = {}
        self.figures = {name: Figures(Alarm(scorer.alarm_rate)) for name in self._pools}
        self._alarms: list[tuple[str, str]] = []
        self._domain = lru_cache(maxsize=256)(self._domain_of)

    def start(self) -> None:
        """Start all workers. From the main thread: they end with the thread that started them."""
        for pool in self._pools.values():
            pool.start()

    def close(self) -> None:
        for pool in self._pools.values():
            pool.close()

    @property
    def ready(self) -> bool:
        """All workers have taken their settings."""
        return all(pool.ready for pool in self._pools.values())

    @property
    def outstanding(self) -> int:
        """Jobs without a verdict."""
        return len(self._jobs)

    @property
    def workers(self) -> int:
        """Worker processes, of all pools."""
        return sum(self._all[name].workers for name in self._pools)

    @property
    def counts(self) -> Counter[str]:
        """Workers killed at a deadline or lost, by name, of all pools."""
        return sum((pool.counts for pool in self._pools.values()), Counter[str]())

    def line(self, meta: bytes) -> str:
        """The line in which rollouts of a prompt wait."""
        return line_of(self._all, self._domain(meta))

    def submit(self, jobs: Iterable[Job]) -> None:
        """Have jobs graded by every pool that their domain's reward needs."""
        now = time.monotonic()
        by_pool: dict[str, list[Job]] = {}
        for job in jobs:
            domain = self._domain(job.meta)
            names = route(self._all, domain)
            self._jobs[job.key] = _Job(domain, now, set(names))
            for name in names:
                own = Job(job.key, job.meta, job.text, job.num_tokens, job.finish, domain)
                by_pool.setdefault(name, []).append(own)
                self.figures[name].queued += 1
        for name, own_jobs in by_pool.items():
            self._pools[name].submit(own_jobs)

    def handle(self, report: Report) -> list[Settled]:
        """What a report settles.

        Raises:
            ConfigError: the reward cannot be set up; the message is the worker's.
            PoolError: workers keep dying before they are ready.
        """
        name = report.worker.pool.name
        return self._settle(name, self._pools[name].handle(report))

    def expire(self, now: float) -> list[Settled]:
        """Kill and replace workers that took too long over one rollout.

        Raises:
            PoolError: a worker was not ready in time.
        """
        return [each for name, pool in self._pools.items() for each in self._settle(name, pool.expire(now))]

    def next_deadline(self) -> float:
        """Monotonic time at which `expire` has something to do; infinite while nobody works."""
        return min(pool.next_deadline() for pool in self._pools.values())

    def take_faults(self) -> list[Fault]:
        """Workers that jobs took down since the last call."""
        return [fault for pool in self._pools.values() for fault in pool.take_faults()]

    def take_alarms(self) -> list[tuple[str, str]]:
        """Pools whose verdicts are missing too often, and the words for it, since the last call."""
        alarms, self._alarms = self._alarms, []
        return alarms

    def _settle(self, name: str, settled: Sequence[Settled]) -> list[Settled]:
        whole = []
        for key, verdict, elapsed_s in settled:
            job = self._jobs[key]
            job.verdicts[name] = free_of_costs(verdict)
            job.waits_for.remove(name)
            job.elapsed_s += elapsed_s
            self._count(name, key, job, verdict, elapsed_s)
            if not job.waits_for:
                del self._jobs[key]
                whole.append(Settled(key, self._joined(job), job.elapsed_s))
        return whole

    def _joined(self, job: _Job) -> Verdict:
        if len(job.verdicts) == 1:
            return next(iter(job.verdicts.values()))
        # In the order of the pools, whoever was first: the same verdicts make the same reward.
        verdicts = {name: job.verdicts[name] for name in self._all if name in job.verdicts}
        weightless = [name for name in verdicts if not any(self._all[name].weights[job.domain].values())]
        return join(verdicts, weightless)

    def _count(self, name: str, key: int, job: _Job, verdict: Verdict, elapsed_s: float) -> None:
        figures = self.figures[name]
        figures.queued -= 1
        figures.verdicts += 1
        figures.statuses[verdict.status] += 1
        for part, value in verdict.parts.items():
            if part in COSTS:
                what = part.partition(".")[2]
                figures.costs[what] = figures.costs.get(what, 0.0) + value
        figures.latencies_s.append(time.monotonic() - job.begun_at)
        figures.slowest = sorted([*figures.slowest, (elapsed_s, key)], reverse=True)[:SLOWEST]
        if said := figures.alarm.saw(verdict):
            self._alarms.append((name, said))

    def _domain_of(self, meta: bytes) -> str:
        if not self._reward.domains:
            return OTHERS
        try:
            return domain_of(self._reward, decode_meta(meta).extra)
        except ValueError:
            return OTHERS  # the worker says what is wrong with it


def free_of_costs(verdict: Verdict) -> Verdict:
    """The same without what it cost: that is the pool's, and no part of the reward."""
    if COSTS.isdisjoint(verdict.parts):
        return verdict
    return replace(verdict, parts={part: value for part, value in verdict.parts.items() if part not in COSTS})


def shown(figures: Mapping[str, Figures], names: Mapping[int, int]) -> dict[str, float]:
    """Figures for a heartbeat, as ``pool:NAME:WHAT``.

    Args:
        names: the rollout of each job that is named as slow.
    """
    flat: dict[str, float] = {}
    for name, pool in figures.items():
        flat[f"pool:{name}:queued"] = float(pool.queued)
        flat[f"pool:{name}:verdicts"] = float(pool.verdicts)
        latencies = list(pool.latencies_s)
        if latencies:
            p50, p99 = np.percentile(latencies, [50, 99])
            flat[f"pool:{name}:p50_s"], flat[f"pool:{name}:p99_s"] = round(float(p50), 4), round(float(p99), 4)
        for status, count in pool.statuses.copy().items():
            flat[f"pool:{name}:status:{status}"] = float(count)
        for what, spent in pool.costs.copy().items():
            flat[f"pool:{name}:{what}"] = float(spent)
        for seconds, job in list(pool.slowest):
            flat[f"pool:{name}:slow:{names.get(job, job)}"] = round(seconds, 4)
    return flat
