"""`r1async simulate`: every combination of listed values under a virtual clock; table, files and plot.

Takes: settings, values to sweep over, perhaps a recorded run. Gives: what each run would come to, which pool holds it
back, and the best split of machines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from r1async.config import Config, ConfigError, load_config
from r1async.launch.sweep import split_arguments
from r1async.simulate import fit
from r1async.simulate.model import Outcome, faster, simulated, split
from r1async.simulate.observe import observe

MORE = 1.25
"""How much more of a pool is tried."""

POOLS = ("generators", "scorers", "learner")
"""Who can be the bottleneck."""


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """The pool that is idle least."""

    pool: str
    idle: float
    """Share of its time."""
    growth: dict[str, float]
    """By what is changed ("generators": a quarter more of them): steps a second against now, minus 1."""


@dataclass(frozen=True, slots=True)
class Point:
    """One combination of swept values and what it came to."""

    values: tuple[tuple[str, str], ...]
    config: Config
    outcome: Outcome
    bottleneck: Bottleneck


@dataclass(frozen=True, slots=True)
class Split:
    """Machines for generators and for the learner."""

    generators: int
    learners: int
    outcome: Outcome


def configs_of(config_path: Path | None, arguments: Sequence[str], run_dir: Path | None) -> list[tuple[tuple, Config]]:
    """The swept values of each combination, the last key turning fastest, and its checked settings.

    Raises:
        ConfigError: a combination that cannot work, or nothing to take settings from.
    """
    fitted: list[str] = []
    if run_dir is not None:
        config_path = config_path or run_dir / "config.yaml"
        fitted = fit.overrides(observe(run_dir))
    if config_path is None:
        raise ConfigError("simulate: give a CONFIG, or --from RUN for the settings of a recorded run")
    swept, fixed = split_arguments(arguments)
    points = []
    for combination in product(*swept.values()):
        values = tuple(zip(swept, combination, strict=True))
        overrides = [*fitted, *fixed, *(f"{key}={value}" for key, value in values)]
        points.append((values, load_config(config_path, overrides)))
    return points


def point_of(values: tuple[tuple[str, str], ...], config: Config, *, quick: bool) -> Point:
    """Simulates one combination and, unless `quick`, what more of each pool would bring."""
    outcome = simulated(config)
    idle = {pool: outcome["pools"][pool]["idle"] for pool in POOLS}
    pool = min(POOLS, key=lambda each: idle[each])
    growth = {} if quick else _growth(config, outcome)
    return Point(values, config, outcome, Bottleneck(pool, idle[pool], growth))


def _growth(config: Config, outcome: Outcome) -> dict[str, float]:
    others = {pool: faster(config, pool, MORE) for pool in (*POOLS, "weights")}
    staleness = config.staleness
    more = replace(staleness, max_staleness=staleness.max_staleness + 1, pacing=config.pacing + 1)
    others["max_staleness + 1"] = replace(config, staleness=more)
    speed = outcome["steps_per_s"]
    return {name: simulated(other)["steps_per_s"] / speed - 1 if speed else 0.0 for name, other in others.items()}


def splits_of(config: Config, machines: int) -> list[Split]:
    """Every split of `machines` between generators (one each) and the learner, at least one of both."""
    return [
        Split(generators, machines - generators, simulated(split(config, generators, machines - generators)))
        for generators in range(1, machines)
    ]


def best(splits: Sequence[Split]) -> Split:
    """The fastest; among equals the one with fewer generators, whose tokens are younger."""
    return max(splits, key=lambda each: each.outcome["steps_per_s"])
