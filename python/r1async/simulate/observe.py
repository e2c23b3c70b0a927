"""What a run's folder says about its machines, for `r1async simulate --from RUN`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from r1async.config import ConfigError
from r1async.monitor.rundata import RunData, load_run

DELAY_RESOLUTION_S = 0.002
"""Steps in which the way of weights is searched."""

STRETCHES, STRETCH_LINES = 16, 6
"""A run's speed of sampling is looked at in so many stretches, none shorter than so many lines of the buffer."""

SKIPPED_STEPS = 3
"""Steps at the start that are slower than the others: caches are cold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Observed:
    """What was measured of one run. An empty list is a thing that was not recorded."""

    lengths: Sequence[float] = ()
    """Completion tokens of rollouts, a sample of them all."""
    prompt_tokens: float | None = None
    """Mean tokens of a prompt."""
    token_s: Sequence[tuple[float, float]] = ()
    """(slots taken, share of all; seconds that a slot needs for a token)."""
    verdicts_s: Sequence[float] = ()
    """Seconds of a worker for one verdict."""
    verdict_travels_s: Sequence[float] = ()
    """Seconds from a finished rollout to its verdict, besides those of the worker."""
    verdict_failure_rate: float = 0.0
    steps: Sequence[tuple[float, float]] = ()
    """(tokens of the batch, prompt and completion; seconds that the learner was busy with it)."""
    checkpoints_s: Sequence[float] = ()
    transfers_s: Sequence[float] = ()
    """Seconds from the end of a step to a generator's having its weights."""
    installs_s: Sequence[float] = ()


def observe(run_dir: Path) -> Observed:
    """From the metrics of a run.

    Raises:
        ConfigError: no such run, or too little in it to tell anything.
    """
    try:
        data = load_run(run_dir)
    except FileNotFoundError as error:
        raise ConfigError(f"--from: {error}") from error
    steps = data.steps[SKIPPED_STEPS:]
    if len(steps) < SKIPPED_STEPS or not data.buffer:
        raise ConfigError(
            f"--from {run_dir}: recorded {len(data.steps)} steps and {len(data.buffer)} lines of the buffer; "
            f"at least {2 * SKIPPED_STEPS} steps are wanted"
        )
    training = [line for line in data.buffer if steps[0]["time"] <= line["time"] <= steps[-1]["time"]]
    prompt_tokens = _prompt_tokens(data)
    scorer = data.config.get("scorer", {})
    workers = scorer.get("count", 1) * scorer.get("workers", 1)
    verdicts_s = _verdicts_s(training, workers)
    return Observed(
        lengths=_lengths(steps),
        prompt_tokens=prompt_tokens,
        token_s=_token_s(data, training),
        verdicts_s=verdicts_s,
        verdict_travels_s=_verdict_travels_s(training, verdicts_s, workers),
        verdict_failure_rate=_failure_rate(training),
        steps=_steps(data.steps, prompt_tokens),
        checkpoints_s=[step["checkpoint_s"] for step in steps if step.get("checkpoint_s")],
        transfers_s=_transfers_s(data),
        installs_s=_installs_s(data),
    )


def _lengths(steps: Sequence[Mapping[str, Any]]) -> list[float]:
    """A step records mean and maximum only: its rollouts are spread evenly between the mean's mirror image of the
    maximum and the maximum, which has the mean right and the longest about right."""
    lengths = []
    for step in steps:
        mean, longest = step["length/mean"], step["length/max"]
        shortest = max(1.0, 2 * mean - longest)
        share = (mean - shortest) / (longest - shortest) if longest > shortest else 1.0
        lengths += [shortest + (longest - shortest) * ((i + 0.5) / 8) ** (1 / share - 1) for i in range(8)]
    return lengths


def _prompt_tokens(data: RunData) -> float | None:
    if not data.audit:
        return None
    prompts = data.audit["prompts"]["trained"]
    return data.audit["prompt_tokens"]["trained"] / prompts if prompts else None


def _steps(lines: Sequence[Mapping[str, Any]], prompt_tokens: float | None) -> list[tuple[float, float]]:
    """A step's line is written when all its work is done, so what lies between two lines was waiting or work."""
    found = []
    for before, step in zip(lines[SKIPPED_STEPS - 1 :], lines[SKIPPED_STEPS:], strict=False):
        seconds = step["time"] - before["time"] - step["wait_s"] - (step.get("checkpoint_s") or 0.0)
        tokens = step["tokens"] + (prompt_tokens or 0.0) * step["rollouts"]
        if step["step"] == before["step"] + 1 and step["epoch"] == before["epoch"]:
            found.append((tokens, max(seconds, step["step_s"])))
    return found


def _generator_stats(line: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    return {peer["name"]: peer["stats"] for peer in line["peers"] if peer["role"] == "generator"}


def _last_generator_stats(data: RunData) -> dict[str, dict[str, float]]:
    """The last that was heard of generators: they leave before the buffer does."""
    heard = (_generator_stats(line) for line in reversed(data.buffer))
    return next((stats for stats in heard if stats), {})


def _token_s(data: RunData, training: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """Slot-seconds a token over stretches of the run, by the slots taken while any was."""
    generator = data.config.get("generator", {})
    slots = generator.get("slots", 1) * generator.get("count", 1)
    size = max(STRETCH_LINES, len(training) // STRETCHES)
    found = []
    for begin in range(0, len(training) - size, size):
        stretch = training[begin : begin + size + 1]
        taken = [line["buffer"]["rollouts_generating"] for line in stretch]
        tokens = stretch[-1]["buffer"]["tokens"] - stretch[0]["buffer"]["tokens"]
        seconds = stretch[-1]["time"] - stretch[0]["time"]
        if tokens > 0 and any(taken):
            share = sum(taken) / sum(number > 0 for number in taken) / slots
            found.append((min(share, 1.0), sum(taken) / len(taken) * seconds / tokens))
    return found


def _verdicts_s(training: Sequence[Mapping[str, Any]], workers: int) -> list[float]:
    """Time in which scorers worked or waited for their workers, by verdicts: right where workers are kept busy."""
    if len(training) < 2:
        return []
    first, last = training[0], training[-1]
    verdicts = _scorers_sum(last, "verdicts") - _scorers_sum(first, "verdicts")
    seconds = sum(_scorers_sum(last, name) - _scorers_sum(first, name) for name in ("busy_s:score", "wait_s:verdicts"))
    return [seconds * workers / (verdicts * max(1, _scorers(last)))] if verdicts > 0 else []


def _verdict_travels_s(training: Sequence[Mapping[str, Any]], verdicts_s: Sequence[float], workers: int) -> list[float]:
    """Little's law: rollouts being scored / verdicts a second, less the worker's time for it and those before it."""
    if not verdicts_s:
        return []
    held = [line["buffer"]["rollouts_unscored"] + line["buffer"]["rollouts_scoring"] for line in training]
    mean_held = sum(held) / len(held)
    verdicts = _scorers_sum(training[-1], "verdicts") - _scorers_sum(training[0], "verdicts")
    seconds = training[-1]["time"] - training[0]["time"]
    return [max(0.0, mean_held * seconds / verdicts - verdicts_s[0] * max(1.0, mean_held / workers))]


def _scorers(line: Mapping[str, Any]) -> int:
    return sum(peer["role"] == "scorer" for peer in line["peers"])


def _scorers_sum(line: Mapping[str, Any], name: str) -> float:
    return sum(peer["stats"].get(name, 0.0) for peer in line["peers"] if peer["role"] == "scorer")


def _failure_rate(training: Sequence[Mapping[str, Any]]) -> float:
    if not training:
        return 0.0
    buffer, verdicts = training[-1]["buffer"], _scorers_sum(training[-1], "verdicts")
    not_scored = ("deadline", "lost", "truncated", "scorer_lost")
    failed = sum(count for status, count in buffer["abstentions"].items() if status not in not_scored)
    return min(1.0, failed / verdicts) if verdicts else 0.0


def _installs_s(data: RunData) -> list[float]:
    stats = _last_generator_stats(data)
    installs = sum(each.get("installs", 0.0) for each in stats.values())
    seconds = sum(each.get("busy_s:install", 0.0) for each in stats.values())
    return [seconds / installs] if installs else []


def _transfers_s(data: RunData) -> list[float]:
    """The delay that fits the time line of one generator best: a version is installed so long after its step ended.

    Bins of the time line say only whether weights were installed in them; over many steps that is enough.
    """
    bins = next((bins for name, bins in data.bins.items() if name.startswith("generator")), [])
    if not bins or len(data.steps) < 2 or data.config.get("weights", {}).get("publish_every", 1) != 1:
        return []
    ended = np.array([step["time"] - (step.get("checkpoint_s") or 0.0) for step in data.steps])
    starts = np.array([bin_["start"] for bin_ in bins])
    installed = np.array([bin_["busy"].get("install", 0.0) > 0 for bin_ in bins])
    installed &= starts + bins[0]["span_s"] > ended[0]  # before the first step, the start checkpoint's
    delays = np.arange(0.0, 2 * float(np.diff(ended).mean()), DELAY_RESOLUTION_S)
    wrong = np.array([_mismatches(starts, installed, ended + delay) for delay in delays])
    return [float(delays[wrong == wrong.min()].mean())]


def _mismatches(starts: NDArray[np.float64], installed: NDArray[np.bool_], times: NDArray[np.float64]) -> int:
    """Bins that hold an install and should not, or the other way round."""
    expected = np.zeros(len(starts), bool)
    expected[np.searchsorted(starts, times, side="right") - 1] = True
    return int((expected != installed).sum())
