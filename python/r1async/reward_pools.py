"""Which pool of workers grades what, resolved from the settings of the reward and of the scorers.

A *pool* has worker processes, a queue, a deadline and retries of its own. A reward's parts may be of several pools,
which grade at the same time; its rollout waits in the *line* of the slowest of them. Line 0 is always `rules`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from r1async.config_rewards import BUILT_IN_POOLS, POOL_OF, PoolConfig, RewardModelConfig

if TYPE_CHECKING:
    from r1async.config import Config, RewardConfig, ScorerConfig

FIRST = "rules"
OTHERS = ""
"""Stands for all domains that `reward.domains` does not name."""
TRAVEL_S = 5.0
"""A worker that asks an endpoint gives up at the endpoint's deadline, so long before it is killed."""

ModelPart = Literal["helpfulness", "harmlessness"]
Asking = Literal["one", "many", "batch"]


@dataclass(frozen=True, slots=True)
class Pool:
    """One kind of workers, all settings resolved."""

    name: str
    workers: int
    queue: int
    deadline_s: float
    """Of one try."""
    retries: int
    memory_mb: int
    asking: Asking
    """one: a worker grades one rollout at a time. many: it waits for several answers. batch: it computes several."""
    at_once: int
    """Rollouts that one worker is given at a time; where `asking` is `one`, it has the next ones when all are done."""
    timeout_is: Literal["zero", "abstain"]
    weights: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By domain: the parts that this pool grades, with their weights."""


@dataclass(frozen=True, slots=True)
class Line:
    """Where rollouts wait whose slowest pool is `name`."""

    name: str
    deadline_s: float
    """The longest that a verdict can take, all tries together."""
    retries: int
    queue: int


def weights_of(reward: RewardConfig) -> dict[str, Mapping[str, float]]:
    """The weights of each domain; those of all others under ``""``."""
    return {OTHERS: reward.weights, **{name: domain.weights for name, domain in reward.domains.items()}}


def domain_of(reward: RewardConfig, extra: Mapping[str, str]) -> str:
    """The domain of a row, as `weights_of` names it."""
    name = extra.get(reward.domain_key, OTHERS)
    return name if name in reward.domains else OTHERS


def pools_of(reward: RewardConfig, scorer: ScorerConfig) -> dict[str, Pool]:
    """The pools that some domain's reward needs, fastest first; `rules` is always the first."""
    own = {part: name for name, pool in scorer.pools.items() for part in pool.parts}
    parts: dict[str, dict[str, dict[str, float]]] = {FIRST: {}}
    for domain, weights in weights_of(reward).items():
        for part, weight in weights.items():
            name = own.get(part) or POOL_OF.get(part, FIRST)
            parts.setdefault(name, {}).setdefault(domain, {})[part] = weight
    made = [_pool(name, weights, reward, scorer) for name, weights in parts.items()]
    first, *others = made
    return {pool.name: pool for pool in [first, *sorted(others, key=lambda pool: pool.deadline_s)]}


def route(pools: Mapping[str, Pool], domain: str) -> list[str]:
    """Names of the pools that grade rollouts of `domain`; the last one's line is where they wait."""
    return [pool.name for pool in pools.values() if domain in pool.weights] or [FIRST]


def line_of(pools: Mapping[str, Pool], domain: str) -> str:
    """The slowest pool of a domain."""
    return max(route(pools, domain), key=lambda name: pools[name].deadline_s)


def lines_of(pools: Mapping[str, Pool]) -> dict[str, Line]:
    """The lines that rollouts wait in, `rules` first, whether or not it has any."""
    domains = {domain for pool in pools.values() for domain in pool.weights}
    by_line: dict[str, set[str]] = {FIRST: {FIRST}}
    for domain in sorted(domains):
        by_line.setdefault(line_of(pools, domain), set()).update(route(pools, domain))
    lines = {}
    for name in [name for name in pools if name in by_line]:
        longest = max(pools[each].deadline_s * (pools[each].retries + 1) for each in by_line[name])
        lines[name] = Line(name, longest, pools[name].retries, pools[name].queue)
    return lines


class Router:
    """The line of each prompt of a run."""

    def __init__(self, config: Config) -> None:
        self._reward, self._pools = config.resolved_reward, pools_of(config.resolved_reward, config.scorer)
        self.lines = list(lines_of(self._pools))
        """Names, as the buffer numbers them."""

    def line(self, extra: Mapping[str, str]) -> str:
        """Where rollouts of a row with these further columns wait."""
        return line_of(self._pools, domain_of(self._reward, extra))


def _pool(name: str, weights: Mapping[str, Mapping[str, float]], reward: RewardConfig, scorer: ScorerConfig) -> Pool:
    own = scorer.pools.get(name, PoolConfig())
    asking, at_once = _asking(name, weights, reward)
    shared = asking != "one"
    return Pool(
        name=name,
        workers=own.workers or (1 if shared else scorer.workers),
        queue=own.queue or scorer.queue,
        deadline_s=own.deadline_s or reward.deadline_s + _own_time_s(name, weights, reward),
        retries=reward.retries if own.retries < 0 else own.retries,
        memory_mb=(0 if name == "reward_model" else scorer.worker_memory_mb) if own.memory_mb < 0 else own.memory_mb,
        asking=asking,
        at_once=at_once,
        # An endpoint that is slow says nothing about a completion.
        timeout_is="abstain" if shared else reward.timeout_is,
        weights=weights,
    )


def models_of(weights: Mapping[str, Mapping[str, float]], reward: RewardConfig) -> dict[ModelPart, RewardModelConfig]:
    """The reward models that a pool's parts need, by part."""
    known: dict[ModelPart, RewardModelConfig] = {"helpfulness": reward.helpfulness, "harmlessness": reward.harmlessness}
    return {name: model for name, model in known.items() if any(name in parts for parts in weights.values())}


def _asking(name: str, weights: Mapping[str, Mapping[str, float]], reward: RewardConfig) -> tuple[Asking, int]:
    if name == "judge":
        return "many", reward.judge.endpoint.concurrency
    if name == "reward_model":
        models = models_of(weights, reward).values()
        if all(model.url for model in models):
            return "many", min((model.concurrency for model in models), default=1)
        return "batch", LOCAL_BATCH
    # One of seconds or minutes shall not keep others waiting that another worker could take.
    return "one", PIPE_BATCH if name == FIRST else 1


PIPE_BATCH = 64
"""Rollouts given to a worker at once: enough to make the pipe cheap, few enough not to queue behind a slow one."""
LOCAL_BATCH = 64
"""Rollouts given to a worker with a classifier at a time; it divides them by tokens."""


def _own_time_s(name: str, weights: Mapping[str, Mapping[str, float]], reward: RewardConfig) -> float:
    if name == "code":
        return reward.code.deadline_s + reward.code.compile_s
    if name == "swe":
        return reward.swe.deadline_s
    if name == "judge":
        return reward.judge.endpoint.deadline_s + TRAVEL_S
    if name == "reward_model":
        return max((model.deadline_s for model in models_of(weights, reward).values()), default=0.0) + TRAVEL_S
    return 0.0


def pool_names(scorer: ScorerConfig) -> tuple[str, ...]:
    """Names that `scorer.serve` may have."""
    return tuple(dict.fromkeys((*BUILT_IN_POOLS, *scorer.pools)))
