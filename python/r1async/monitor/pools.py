"""What scorers tell of their pools in heartbeats (`rewards.pools.shown`), put together for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

SLOWEST = 5
"""Rollouts named for the time that their grading took."""
COSTS = ("requests", "prompt_tokens", "completion_tokens", "cost")
"""What asking an endpoint cost, summed over all verdicts."""


@dataclass(slots=True)
class PoolFigures:
    """One pool, all scorers together."""

    queued: int = 0
    verdicts: int = 0
    p50_s: float | None = None
    """The largest of the scorers'."""
    p99_s: float | None = None
    statuses: Counter[str] = field(default_factory=Counter)
    slowest: list[tuple[int, float]] = field(default_factory=list)
    """Rollout and seconds in a worker, longest first."""
    costs: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> PoolFigures:
        """From what `as_record` gave."""
        return cls(
            queued=record["queued"],
            verdicts=record["verdicts"],
            p50_s=record["p50_s"],
            p99_s=record["p99_s"],
            statuses=Counter(record["statuses"]),
            slowest=[(each["rollout"], each["seconds"]) for each in record["slowest"]],
            costs={name: record[name] for name in COSTS if name in record},
        )

    def as_record(self) -> dict[str, Any]:
        """For summary.json."""
        return {
            "queued": self.queued,
            "verdicts": self.verdicts,
            "p50_s": self.p50_s,
            "p99_s": self.p99_s,
            "statuses": dict(self.statuses.most_common()),
            "slowest": [{"rollout": rollout, "seconds": seconds} for rollout, seconds in self.slowest],
            **self.costs,
        }


def pool_figures(peers: Iterable[Mapping[str, Any]]) -> dict[str, PoolFigures]:
    """By pool, from what peers told last."""
    pools: dict[str, PoolFigures] = {}
    for peer in peers:
        for key, value in (peer.get("stats") or {}).items():
            match str(key).split(":", 3):
                case ["pool", name, what, *rest]:
                    _add(pools.setdefault(name, PoolFigures()), what, rest, float(value))
    for pool in pools.values():
        pool.slowest = sorted(pool.slowest, key=lambda each: -each[1])[:SLOWEST]
    return pools


def _add(pool: PoolFigures, what: str, rest: list[str], value: float) -> None:
    match what, rest:
        case "queued", []:
            pool.queued += int(value)
        case "verdicts", []:
            pool.verdicts += int(value)
        case "p50_s", []:
            pool.p50_s = max(value, pool.p50_s or 0.0)
        case "p99_s", []:
            pool.p99_s = max(value, pool.p99_s or 0.0)
        case "status", [status]:
            pool.statuses[status] += int(value)
        case "slow", [rollout]:
            pool.slowest.append((int(rollout), value))
        case _ if what in COSTS:
            pool.costs[what] = pool.costs.get(what, 0.0) + value


def seconds(value: float | None) -> str:
    """A latency in words."""
    if value is None:
        return "–"
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.1f} s"


def statuses(pool: PoolFigures) -> str:
    """``ok 120, wrong 8``."""
    return ", ".join(f"{status} {count:,}" for status, count in pool.statuses.most_common()) or "none"


def cost(pool: PoolFigures) -> str:
    """What was paid, if anything was told."""
    if not pool.costs:
        return ""
    tokens = pool.costs.get("prompt_tokens", 0.0), pool.costs.get("completion_tokens", 0.0)
    words = f"{pool.costs.get('requests', 0.0):,.0f} requests"
    words += f", {tokens[0]:,.0f} + {tokens[1]:,.0f} tokens" if any(tokens) else ""
    return words + (f", cost {pool.costs['cost']:,.2f}" if pool.costs.get("cost") else "")
