"""From what was observed of a run to `simulate.*` settings. Pure: a journal can feed it as well as metrics can."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import numpy as np

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
    if observed.token_s:
        alone_s, full_s = token_seconds(observed.token_s)
        values["tokens_per_s"], values["tokens_per_s_alone"] = 1 / full_s, 1 / alone_s
    if observed.verdicts_s:
        values["verdicts_s"] = quantiles(observed.verdicts_s)
        values["verdict_failure_rate"] = observed.verdict_failure_rate
    if observed.verdict_travels_s:
        values["verdict_travel_s"] = fmean(observed.verdict_travels_s)
    if observed.steps:
        values["step_base_s"], values["step_token_s"] = line(observed.steps)
    if observed.checkpoints_s:
        values["checkpoint_s"] = fmean(observed.checkpoints_s)
    if observed.transfers_s:
        values["transfer_s"] = fmean(observed.transfers_s)
    if observed.installs_s:
        values["install_s"] = fmean(observed.installs_s)
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
    mean_s, mean_tokens = float(seconds.mean()), float(tokens.mean())
    if len(points) < 3 or tokens.std() < SPREAD * mean_tokens:
        return mean_s, 0.0
    slope = float(np.cov(tokens, seconds, bias=True)[0, 1] / tokens.var())
    slope = min(max(slope, 0.0), mean_s / mean_tokens)
    return mean_s - slope * mean_tokens, slope


def token_seconds(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Seconds for a token of a slot that is alone, and of one of a full generator, from (share taken, seconds)."""
    alone_s, slope = line(points)
    if slope == 0.0:
        return alone_s, alone_s
    return max(alone_s, 0.02 * (alone_s + slope)), alone_s + slope
