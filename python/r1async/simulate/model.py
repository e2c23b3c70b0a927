"""From settings to what the Rust simulator takes: the ledger's settings and a model of the machines around it."""

from __future__ import annotations

import json
from dataclasses import replace
from statistics import median
from typing import Any

from r1async._core import simulate
from r1async.buffer.server import core_settings
from r1async.config import Config

Outcome = dict[str, Any]
"""What a simulation came to; docs/simulate.md names the figures."""

UNITS_PER_MEDIAN = 32
"""Held tokens of a median rollout: rounding lengths to a thirty-second of it changes no figure that is shown."""

MAX_STEPS = 1 << 30
"""Steps of a run that only its hours end."""


def simulated(config: Config, seed: int | None = None) -> Outcome:
    """What the run comes to.

    Args:
        config: the settings; `config.simulate` says what the machines are.
        seed: of lengths, rewards, latencies and failures; None takes the run's.

    Raises:
        RuntimeError: the run would come to a stand-still; the text says what it would wait for.
    """
    hours = config.simulate.hours
    ledger = core_settings(replace(config, steps=MAX_STEPS) if hours else config)
    return simulate(ledger, json.dumps(machines(config, config.seed if seed is None else seed)))


def machines(config: Config, seed: int) -> dict[str, Any]:
    """The model of everything around the ledger, as `rust/r1async-sim/src/model.rs` reads it."""
    it = config.simulate
    token_s = 1 / it.tokens_per_s
    return {
        "seed": seed,
        "seconds": it.hours * 3600,
        "warmup_steps": _warmup_steps(config),
        "tokens_per_unit": it.tokens_per_unit or _unit(config),
        "generators": {
            "count": config.training_generators,
            "slots": config.generator.slots,
            "chunk_tokens": config.generator.chunk_tokens,
            "token_s": token_s,
            "token_alone_s": 1 / it.tokens_per_s_alone if it.tokens_per_s_alone else token_s,
            "turnaround_s": it.turnaround_s,
            "start_s": it.start_s,
        },
        "lengths": {
            "completion": _distribution(it.lengths, it.length_median, it.length_sigma),
            "shared": it.length_shared,
            "prompt": it.prompt_tokens,
        },
        "scorers": {
            "count": config.scorer.count,
            "workers": config.scorer.workers,
            "queue": config.scorer.queue,
            "verdict_s": _distribution(it.verdicts_s, it.verdict_s, it.verdict_sigma),
            "travel_s": it.verdict_travel_s,
            "failure_rate": it.verdict_failure_rate,
        },
        "learner": {
            "step_s": it.step_base_s,
            "group_s": it.step_group_s,
            "token_s": it.step_token_s,
            "checkpoint_every": config.learner.checkpoint_every,
            "checkpoint_s": it.checkpoint_s,
        },
        "weights": {"transfer_s": it.transfer_s, "install_s": it.install_s},
        "machine": {"cores": it.cores, "others": it.other_load},
        "failures": {
            "per_hour": it.failures_per_hour,
            "noticed_s": config.buffer.peer_deadline_s,
            "back_s": it.back_s,
        },
        "rewards": {"a": it.pass_a, "b": it.pass_b},
    }


def _distribution(seen: tuple[float, ...], middle: float, sigma: float) -> dict[str, Any]:
    return {"empirical": list(seen)} if seen else {"lognormal": {"median": middle, "sigma": sigma}}


def _unit(config: Config) -> int:
    it = config.simulate
    middle = min(median(it.lengths) if it.lengths else it.length_median, config.sampling.max_tokens)
    return max(1, int(middle / UNITS_PER_MEDIAN))


def _warmup_steps(config: Config) -> int:
    if config.simulate.warmup_steps >= 0:
        return config.simulate.warmup_steps
    tenth = 20 if config.simulate.hours else config.steps // 10
    return max(config.staleness.max_staleness + 1, tenth)


def faster(config: Config, pool: str, factor: float) -> Config:
    """The same run with `factor` times as much of one pool ("generators", "scorers", "learner" or "weights")."""
    it = config.simulate
    match pool:
        case "generators":
            alone = it.tokens_per_s_alone * factor
            it = replace(it, tokens_per_s=it.tokens_per_s * factor, tokens_per_s_alone=alone)
        case "scorers":
            seen = tuple(seconds / factor for seconds in it.verdicts_s)
            it = replace(it, verdict_s=it.verdict_s / factor, verdicts_s=seen)
        case "learner":
            base, group, token = (each / factor for each in (it.step_base_s, it.step_group_s, it.step_token_s))
            checkpoint = it.checkpoint_s / factor
            it = replace(it, step_base_s=base, step_group_s=group, step_token_s=token, checkpoint_s=checkpoint)
        case "weights":
            it = replace(it, transfer_s=it.transfer_s / factor, install_s=it.install_s / factor)
        case _:
            raise ValueError(f"pool must be generators, scorers, learner or weights, got {pool!r}")
    return replace(config, simulate=it)


def split(config: Config, generators: int, learners: int) -> Config:
    """The same run on other numbers of machines: each generator is one; learners share the tokens of a step."""
    it, share = config.simulate, config.learner.ranks / learners
    it = replace(it, step_group_s=it.step_group_s * share, step_token_s=it.step_token_s * share)
    generator = replace(config.generator, count=generators)
    learner = replace(config.learner, ranks=learners)
    return replace(config, simulate=it, generator=generator, learner=learner)
