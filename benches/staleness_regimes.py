"""The rules for over-age tokens over 180 regimes, on the buffer's own core: `python benches/staleness_regimes.py`.

Regimes: 32 groups of 8 a step; slots for one or three steps' rollouts; a learner step of 0.5, 1 or 2 times what the
slots need for a step; lognormal lengths with sigma 0.6, 1.0 or 1.4, cut at 8 medians or not; bounds 0, 1, 2, 4, 8.
Every rule meets the same rollouts. Speed is against `train`, which only admits by age and trains whatever comes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
from r1async.config import (
    Config,
    GeneratorConfig,
    GroupConfig,
    LearnerConfig,
    SamplingConfig,
    ScorerConfig,
    SimulateConfig,
    StalenessConfig,
)
from r1async.simulate.model import Outcome, simulated

RULES: Mapping[str, Mapping[str, object]] = {
    "train": {"over_age": "train", "waste_budget": 1.0},
    "drop, paced": {"over_age": "drop", "waste_budget": 1.0},
    "wait": {"over_age": "mask", "waste_budget": 0.0, "close_early": False},
    "mask": {"over_age": "mask", "waste_budget": 1.0, "close_early": False},
    "mask, close, late members": {"over_age": "mask", "waste_budget": 1.0},
    "same, budget 5 %": {"over_age": "mask", "waste_budget": 0.05},
    "same, budget 5 %, streamed": {"over_age": "mask", "waste_budget": 0.05, "part_groups": 1},
}
"""`staleness.*` settings by name, and `learner.part_groups`; the speed of all is measured against the first."""

GROUPS, GROUP_SIZE = 32, 8
MEDIAN_TOKENS = 1000.0
PASS_RATES = (1000.0, 1000.0)
"""Every prompt passes half of the time. Where many prompts always pass or always fail, as with 1 and 1, the scored
members of many groups agree, and such a group does not close early."""
TOKENS_PER_S = 100.0
"""A median rollout takes 10 s; no unit matters but this one."""


@dataclass(frozen=True)
class Regime:
    slots: int
    """Rollouts in flight, in steps' worth."""
    step: float
    """Seconds of a learner step / seconds that the slots need for its rollouts."""
    sigma: float
    cap: int
    """Medians at which a rollout is cut; 0: it is not."""
    bound: int


def regimes() -> list[Regime]:
    """All 180."""
    return [Regime(*each) for each in product((1, 3), (0.5, 1.0, 2.0), (0.6, 1.0, 1.4), (8, 0), (0, 1, 2, 4, 8))]


def mean_tokens(regime: Regime) -> float:
    """Of the capped lognormal."""
    if not regime.cap:
        return MEDIAN_TOKENS * float(np.exp(regime.sigma**2 / 2))
    z = np.array([statistics.NormalDist().inv_cdf((i + 0.5) / 20000) for i in range(20000)])
    return float(np.minimum(MEDIAN_TOKENS * np.exp(regime.sigma * z), regime.cap * MEDIAN_TOKENS).mean())


def config_of(regime: Regime, rule: Mapping[str, object], steps: int, pass_rates: tuple[float, float]) -> Config:
    """A run of the regime under the rule; deadlines never strike."""
    long_s, rollouts = 1e6, GROUPS * GROUP_SIZE
    slots_need_s = rollouts * mean_tokens(regime) / TOKENS_PER_S / (regime.slots * rollouts)
    staleness = StalenessConfig(max_staleness=regime.bound, hold_deadline_s=long_s)
    part_groups = 1 if rule.get("part_groups") else 0
    rule = {name: value for name, value in rule.items() if name != "part_groups"}
    return Config(
        steps=steps,
        sampling=SamplingConfig(max_tokens=int(MEDIAN_TOKENS) * (regime.cap or 5000)),
        group=GroupConfig(group_size=GROUP_SIZE, rollout_deadline_s=long_s, group_deadline_s=10 * long_s),
        staleness=replace(staleness, **rule),
        learner=LearnerConfig(groups_per_step=GROUPS, part_groups=part_groups, checkpoint_every=1),
        generator=GeneratorConfig(slots=regime.slots * rollouts, chunk_tokens=1),
        scorer=ScorerConfig(workers=rollouts, queue=100_000),
        simulate=SimulateConfig(
            tokens_per_s=TOKENS_PER_S, length_median=MEDIAN_TOKENS, length_sigma=regime.sigma, length_shared=0.0,
            verdict_s=0.0, transfer_s=0.0, install_s=0.0, pass_a=pass_rates[0], pass_b=pass_rates[1],
            step_base_s=0.0, step_group_s=regime.step * slots_need_s / GROUPS, step_token_s=0.0,
        ),
    )  # fmt: skip


@dataclass(frozen=True)
class Result:
    """What one rule came to in one regime; means over seeds, the worst where it says so."""

    regime: Regime
    rule: str
    speed: float
    """Steps a second against `train`."""
    trained: float
    """Tokens with a loss a second against `train`, whose over-age ones count."""
    over: float
    """Share of trained tokens over the bound, worst seed."""
    max_age: int
    waste: float
    length_ratio: float
    staleness: float

    @property
    def met(self) -> tuple[bool, bool, bool, bool]:
        """No token over the bound; waste of 5.3 % at most; no length bias; 0.95 of the speed."""
        return self.over == 0, self.waste <= 0.053, 0.97 <= self.length_ratio <= 1.03, self.speed >= 0.95


def results_of(
    regime: Regime, rules: Sequence[str], steps: int, seeds: int, pass_rates: tuple[float, float]
) -> list[Result]:
    """Every rule on the same rollouts."""
    by_rule: dict[str, list[Outcome]] = {}
    for name in dict.fromkeys([next(iter(RULES)), *rules]):
        config = config_of(regime, RULES[name], steps, pass_rates)
        by_rule[name] = [simulated(config, seed) for seed in range(seeds)]
    plain = by_rule[next(iter(RULES))]
    return [_result(regime, name, by_rule[name], plain) for name in rules]


def _result(regime: Regime, rule: str, outcomes: Sequence[Outcome], plain: Sequence[Outcome]) -> Result:
    def mean(name: str) -> float:
        return statistics.fmean(each[name] for each in outcomes)

    def against(name: str) -> float:
        return mean(name) / statistics.fmean(each[name] for each in plain)

    return Result(
        regime,
        rule,
        against("steps_per_s"),
        against("trained_tokens_per_s"),
        max(each["over_age_share"] for each in outcomes),
        max(each["staleness"]["max"] for each in outcomes),
        mean("waste_share"),
        mean("length_ratio"),
        statistics.fmean(each["staleness"]["mean"] for each in outcomes),
    )


def table(results: Sequence[Result]) -> Iterator[str]:
    """One line for each rule, over the regimes whose bound is above 0; then bound 0."""
    yield (
        "| rule | tokens over, worst | max age | waste med / worst | len min..max | thr med / worst | tok med / worst "
        "| ok i ii iii iv | all |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for rule in dict.fromkeys(each.rule for each in results):
        of_rule = [each for each in results if each.rule == rule and each.regime.bound > 0]
        if of_rule:
            yield _line(rule, of_rule)
    for rule in dict.fromkeys(each.rule for each in results):
        of_rule = [each for each in results if each.rule == rule and each.regime.bound == 0]
        if of_rule:
            yield _line(f"bound 0: {rule}", of_rule)


def _line(rule: str, of_rule: Sequence[Result]) -> str:
    speeds, trained = [each.speed for each in of_rule], [each.trained for each in of_rule]
    waste, lengths = [each.waste for each in of_rule], [each.length_ratio for each in of_rule]
    met = [sum(each.met[i] for each in of_rule) for i in range(4)]
    cells = [
        rule,
        f"{max(each.over for each in of_rule):.0%}",
        str(max(each.max_age for each in of_rule)),
        f"{100 * statistics.median(waste):.1f} / {100 * max(waste):.1f}",
        f"{min(lengths):.2f}..{max(lengths):.2f}",
        f"{statistics.median(speeds):.2f} / {min(speeds):.2f}",
        f"{statistics.median(trained):.2f} / {min(trained):.2f}",
        " ".join(map(str, met)),
        f"{sum(all(each.met) for each in of_rule)} of {len(of_rule)}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rules", nargs="*", default=list(RULES), choices=list(RULES), metavar="RULE")
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument(
        "--pass-rates", nargs=2, type=float, default=PASS_RATES, metavar=("A", "B"), help="Beta(A, B) over prompts"
    )
    parser.add_argument("--every", type=int, default=1, help="take each n-th regime only")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file of every regime's figures")
    options = parser.parse_args()
    chosen, results, began = regimes()[:: options.every], [], time.monotonic()
    what = options.rules, options.steps, options.seeds, tuple(options.pass_rates)
    with ProcessPoolExecutor(options.jobs) as pool:
        work = [pool.submit(results_of, each, *what) for each in chosen]
        for number, each in enumerate(work, 1):
            results += each.result()
            print(f"\r{number} of {len(chosen)} regimes, {time.monotonic() - began:.0f} s", end="", file=sys.stderr)
    print(file=sys.stderr)
    if options.out:
        rows = [asdict(each) | {"met": each.met} for each in results]
        options.out.write_text(json.dumps(rows, indent=1) + "\n")
    print("\n".join(table(results)))


if __name__ == "__main__":
    main()
