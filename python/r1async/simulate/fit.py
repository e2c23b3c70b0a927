"""From what was observed of a run to `simulate.*` settings. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from r1async.simulate.observe import Observed

QUANTILES = 256
"""Values that stand for a distribution that was observed."""

SPREAD = 0.1
"""A slope is fitted only where the cause varies by this share of its mean: else noise would decide it."""


def overrides(observed: Observed) -> list[str]:
    """`key=value` for everything that was observed; what was not keeps its setting."""
    values: dict[str, float | list[float]] = {}
    if observed.lengths:
        values["lengths"] = quantiles(observed.lengths)
    if observed.prompt_tokens is not None:
        values["prompt_tokens"] = observed.prompt_tokens
    if observed.sampling:
        values["start_s"], alone_s, full_s = sampling_seconds(observed.sampling)
        values["tokens_per_s"], values["tokens_per_s_alone"] = 1 / full_s, 1 / alone_s
    if observed.grading:
        values["verdicts_s"], values["verdict_travel_s"] = grading_seconds(observed.grading, observed.workers)
        values["verdict_failure_rate"] = observed.verdict_failure_rate
    if observed.steps:
        values["step_base_s"], values["step_token_s"] = line(observed.steps)
        values["step_group_s"] = 0.0
    if observed.checkpoints_s:
        values["checkpoint_s"] = fmean(observed.checkpoints_s)
    install_s = fmean(observed.installs_s) if observed.installs_s else 0.0
    if observed.weights_s:
        values["transfer_s"] = max(0.0, fmean(observed.weights_s) - install_s)
    if observed.installs_s:
        values["install_s"] = install_s
    values["cores"], values["other_load"] = observed.cores, observed.other_load
    return [f"simulate.{name}={_text(value)}" for name, value in values.items()]


def _text(value: float | list[float]) -> str:
    return f"[{','.join(map(repr, value))}]" if isinstance(value, list) else repr(float(value))


def quantiles(values: Sequence[float]) -> list[float]:
    """At most `QUANTILES` numbers with the distribution of `values`."""
    if len(values) <= QUANTILES:
        return sorted(map(float, values))
    return np.quantile(np.asarray(values, float), (np.arange(QUANTILES) + 0.5) / QUANTILES).tolist()


def line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(base, slope) of seconds over tokens by least squares, neither below 0; no slope where tokens hardly vary."""
    tokens, seconds = np.array(points, float).T
    base, slope = least_squares([np.ones(len(points)), tokens if varies(tokens) else None], seconds)
    return base, slope


def sampling_seconds(points: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """Seconds from a loan to the first token, for a token of a slot that is alone, and for one of a full generator.

    Args:
        points: (tokens, seconds from loan to end, share of slots taken).
    """
    tokens, seconds, taken = np.array(points, float).T
    start = np.ones(len(points)) if varies(tokens) else None
    crowd = tokens * taken if varies(taken) else None
    start_s, alone_s, crowd_s = least_squares([start, tokens, crowd], seconds)
    if alone_s + crowd_s == 0.0:  # Rollouts of all lengths took the same time: as if it were that of their tokens.
        start_s, alone_s, crowd_s = least_squares([None, tokens, crowd], seconds)
    return start_s, max(alone_s, 0.02 * (alone_s + crowd_s)), alone_s + crowd_s


def grading_seconds(points: Sequence[tuple[float, float]], workers: int) -> tuple[list[float], float]:
    """Seconds of a worker for one verdict, as a distribution, and seconds on the way.

    Where rollouts stood in line, each place before the last ones, which workers hold, cost one verdict's time of one
    worker. Where none did, nothing tells work from the way: all is work.

    Args:
        points: (place in the scorer's line, seconds from loan to verdict).
        workers: of a scorer.
    """
    places, seconds = np.array(points, float).T
    turns = np.maximum(1.0, places / workers)
    if not varies(turns):
        return quantiles(seconds.tolist()), 0.0
    travel_s, verdict_s = least_squares([np.ones(len(points)), turns], seconds)
    return [verdict_s], travel_s


def varies(causes: NDArray[np.float64]) -> bool:
    return len(causes) > 2 and float(causes.std()) >= SPREAD * float(causes.mean())


def least_squares(columns: Sequence[NDArray[np.float64] | None], values: NDArray[np.float64]) -> list[float]:
    """A factor for each column, none below 0, that of None being 0: nothing gets faster by more work."""
    present = [index for index, column in enumerate(columns) if column is not None]
    while True:
        matrix = np.stack([column for index in present if (column := columns[index]) is not None], axis=1)
        factors = np.linalg.lstsq(matrix, values, rcond=None)[0]
        if factors.min() >= 0 or len(present) == 1:
            break
        del present[int(factors.argmin())]
    found = dict(zip(present, factors.tolist(), strict=True))
    return [max(0.0, found.get(index, 0.0)) for index in range(len(columns))]
