"""When a run has learned what it can: a metric that no longer grows from one window of steps to the next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from r1async.config import ConfigError, ConvergeConfig
from r1async.monitor.metrics import read_metrics

CONVERGED = "converged"
"""The figure of a step that tells the buffer to admit no more prompts."""


class Convergence:
    """Follows one metric, a value a step.

    Windows of `settings.window` steps follow one another without overlap. A window is a gain if its mean exceeds the
    best earlier window's by at least `settings.gain`; after `settings.patience` windows in a row that are none the
    run has converged.

    Args:
        settings: which metric, and what counts.
        steps: figures of the steps already trained, in order: a learner that goes on from a checkpoint.
    """

    def __init__(self, settings: ConvergeConfig, steps: Iterable[Mapping[str, object]] = ()) -> None:
        self._settings = settings
        self._window: list[float] = []
        self._best: float | None = None
        self._without_gain = 0
        for figures in steps:
            self.observe(figures)

    def observe(self, figures: Mapping[str, object]) -> bool:
        """Takes the figures of one step; True from the step on with which the run has converged.

        A step without the metric (a part of the reward that nothing in the batch had) is in no window.

        Raises:
            ConfigError: no step can have it.
        """
        settings = self._settings
        if not settings.metric:
            return False
        value = figures.get(settings.metric)
        if settings.metric not in figures and not settings.metric.startswith("reward/"):
            raise ConfigError(
                f"learner.converge.metric: a step has no {settings.metric!r}; it has {', '.join(sorted(figures))}"
            )
        if isinstance(value, int | float):
            self._window.append(float(value))
        if len(self._window) == settings.window:
            self._close(sum(self._window) / settings.window)
            self._window.clear()
        return self._without_gain >= settings.patience

    def _close(self, mean: float) -> None:
        if self._best is None or mean >= self._best + self._settings.gain:
            self._without_gain = 0
        else:
            self._without_gain += 1
        self._best = mean if self._best is None else max(self._best, mean)


def trained_steps(path: Path, version: int) -> list[Mapping[str, object]]:
    """What a learner wrote of the steps before `version`; of one that was trained twice, the later line."""
    steps = {r["step"]: r for r in read_metrics(path) if r.get("kind") == "step" and r["step"] < version}
    return [steps[step] for step in sorted(steps)]
