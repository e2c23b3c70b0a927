"""What a run's folder says about its machines, for `r1async simulate --from RUN`: its journal has what happened when,
its time lines how much of a processor each role had meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import msgpack
import numpy as np

from r1async._core import JournalEvents
from r1async.config import ConfigError, has_journal, journal_dir
from r1async.monitor.rundata import RunData, load_run, role_of
from r1async.simulate.recorded import Recorded, Span, counted, within

SKIPPED_STEPS = 5
"""Steps at the start that are slower than the others: caches are cold."""

ROLES = ("generator", "learner")
"""Who competes for the cores of a machine."""

LOAD_STEP, MOST_LOAD = 0.02, 20.0
"""Precision and limit to which the load of other programs is told."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Observed:
    """What was measured of one run. An empty list is a thing that was not recorded.

    Where roles shared a machine's cores, `sampling`, `steps` and `checkpoints_s` are seconds of a whole core.
    """

    lengths: Sequence[float] = ()
    """Completion tokens of rollouts."""
    prompt_tokens: float | None = None
    """Mean tokens of a prompt."""
    sampling: Sequence[tuple[float, float, float]] = ()
    """(tokens, seconds from loan to end, share of the generator's slots that were taken)."""
    grading: Sequence[tuple[float, float]] = ()
    """(place in the scorer's line, seconds from loan to verdict)."""
    workers: int = 1
    """Of a scorer."""
    verdict_failure_rate: float = 0.0
    steps: Sequence[tuple[float, float]] = ()
    """(tokens of the batch, prompt and completion; seconds that the learner was busy with it)."""
    checkpoints_s: Sequence[float] = ()
    weights_s: Sequence[float] = ()
    """Seconds from the end of a step to a generator's sampling with its weights."""
    installs_s: Sequence[float] = ()
    cores: int = 0
    """That generators and learner shared; 0: each role had processors of its own."""
    other_load: float = 0.0
    """What other programs wanted of them, in cores."""


def observe(run_dir: Path) -> Observed:
    """From the journal and the time lines of a run.

    Raises:
        ConfigError: no such run, or too little in it to tell anything.
    """
    try:
        data = load_run(run_dir)
    except FileNotFoundError as error:
        raise ConfigError(f"--from: {error}") from error
    if not has_journal(run_dir):
        raise ConfigError(f"--from {run_dir}: holds no journal; want a run with journal.durability=group or sync")
    return from_records(Recorded(events_of(run_dir), JournalEvents(journal_dir(run_dir), None).group_size), data)


def events_of(run_dir: Path) -> Iterator[tuple[float, dict[str, Any]]]:
    """What happened, from a run's journal: seconds of its clock, and what."""
    for at, packed in JournalEvents(journal_dir(run_dir), None):
        yield at, msgpack.unpackb(packed, strict_map_key=False)


def from_records(recorded: Recorded, data: RunData) -> Observed:
    """From what was read.

    Raises:
        ConfigError: too few steps to tell anything.
    """
    window = _window(recorded, data)
    config = data.config
    if config.get("learner", {}).get("part_groups", 0):
        raise ConfigError(
            "learner.part_groups: a step's time is read from its batch to its report, and in this run the learner "
            "waited in between; fit on a run with learner.part_groups=0"
        )
    shares = _core_shares(data, window, recorded) if config.get("generator", {}).get("engine") == "torch" else {}
    of_generator, of_learner = (shares.get(role, 1.0) for role in ROLES)
    slots, scorer = config.get("generator", {}).get("slots", 1), config.get("scorer", {})
    saved = {line["step"]: line["checkpoint_s"] for line in data.steps if line.get("checkpoint_s")}
    steps = [
        (float(step.tokens), (step.stepped - step.bound) * of_learner)
        for number, step in recorded.steps.items()
        # The learner writes a checkpoint before it looks at the next batch, which may be bound by then.
        if step.stepped is not None and window[0] <= step.bound < window[1] and number - 1 not in saved
    ]
    cores = (os.cpu_count() or 0) if shares else 0
    return Observed(
        lengths=[float(rollout.tokens) for rollout in recorded.rollouts.values() if rollout.finished is not None],
        prompt_tokens=fmean(recorded.prompt_tokens.values()) if recorded.prompt_tokens else None,
        sampling=[
            (tokens, seconds * of_generator, min(1.0, taken / slots))
            for tokens, seconds, taken in recorded.sampling(window)
        ],
        grading=recorded.grading(window),
        workers=scorer.get("workers", 1),
        verdict_failure_rate=recorded.failure_rate(),
        steps=steps,
        checkpoints_s=[seconds * of_learner for step, seconds in saved.items() if step >= SKIPPED_STEPS],
        weights_s=recorded.weights_s(window),
        installs_s=_installs_s(data),
        cores=cores,
        other_load=_other_load(recorded, window, shares, cores),
    )


def _window(recorded: Recorded, data: RunData) -> Span:
    """From the steps that are warm to those for which the last groups were opened: later, generators run dry."""
    staleness = data.config.get("staleness", {})
    pacing = staleness.get("pacing", -1)
    tail = 1 + (staleness.get("max_staleness", 0) if pacing < 0 else pacing)
    ends = [step.stepped for _, step in sorted(recorded.steps.items()) if step.stepped is not None]
    if len(ends) < 2 * SKIPPED_STEPS + tail:
        raise ConfigError(
            f"--from {data.run_dir}: recorded {len(ends)} steps; at least {2 * SKIPPED_STEPS + tail} are wanted"
        )
    return ends[SKIPPED_STEPS - 1], ends[-1 - tail]


def _core_shares(data: RunData, window: Span, recorded: Recorded) -> dict[str, float]:
    """CPU seconds of a second at work in the window, by role; nothing unless time lines of both tell it. A role with
    more than one had helping threads: that is the whole core. For roles that compute on the processor alone, as they
    do beside the embedded engine."""
    # The journal counts from its own start; both know when the steps were reported.
    stepped = {number: step.stepped for number, step in recorded.steps.items() if step.stepped is not None}
    offsets = [line["time"] - stepped[line["step"]] for line in data.steps if line["step"] in stepped]
    if not offsets:
        return {}
    offset = median(offsets)
    begin, end = window[0] + offset, window[1] + offset
    sums = {role: [0.0, 0.0] for role in ROLES}
    for name, bins in data.bins.items():
        if (role := role_of(name)) in sums:
            inside = [bin_ for bin_ in bins if begin <= bin_["start"] and bin_["start"] + bin_["span_s"] <= end]
            sums[role][0] += sum(bin_["cpu_s"] for bin_ in inside)
            sums[role][1] += sum(sum(bin_["busy"].values()) for bin_ in inside)
    if not all(cpu_s > 0 and busy_s > 0 for cpu_s, busy_s in sums.values()):
        return {}
    return {role: min(1.0, cpu_s / busy_s) for role, (cpu_s, busy_s) in sums.items()}


def _other_load(recorded: Recorded, window: Span, shares: Mapping[str, float], cores: int) -> float:
    """The least load of other programs that gives every role the share of a core it had, if all get the same."""
    if not shares:
        return 0.0
    sampling = [span for taken in recorded.taken().values() for span in taken.spans()]
    spans = dict(zip(ROLES, (sampling, recorded.training()), strict=True))
    busy = counted([span for each in spans.values() for span in each])
    loads = np.arange(0.0, MOST_LOAD, LOAD_STEP)
    errors = np.zeros(len(loads))
    for role, of_role in spans.items():
        seconds = busy.seconds_by_count([span for span in of_role if within(span, window)])
        total = sum(seconds.values())
        if total > 0:
            given = sum(s * np.minimum(1.0, cores / (count + loads)) for count, s in seconds.items()) / total
            errors += total * (given - shares[role]) ** 2
    return float(loads[int(errors.argmin())])


def _installs_s(data: RunData) -> list[float]:
    """The last that was heard of generators: they leave before the buffer does."""
    heard = ([peer["stats"] for peer in line["peers"] if peer["role"] == "generator"] for line in reversed(data.buffer))
    stats = next((stats for stats in heard if stats), [])
    installs = sum(each.get("installs", 0.0) for each in stats)
    seconds = sum(each.get("busy_s:install", 0.0) for each in stats)
    return [seconds / installs] if installs else []
