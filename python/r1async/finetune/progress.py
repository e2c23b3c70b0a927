"""What a person sees while training goes on: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time

from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from r1async.config import MonitorConfig

PLAIN_LINE_S = 5.0
"""Seconds between two lines where there is no terminal, at least."""


class Progress:
    """Steps of a run.

    Args:
        kind: what is run.
        shown: False: says nothing, for ranks but the first.
    """

    def __init__(self, kind: str, steps: int, monitor: MonitorConfig, *, shown: bool) -> None:
        self._kind, self._steps = kind, steps
        self._every_s = max(PLAIN_LINE_S, monitor.interval_s)
        self._shown = shown and monitor.terminal != "quiet"
        live = monitor.terminal == "live" or (monitor.terminal == "auto" and sys.stdout.isatty())
        self._said_at, self._tokens, self._seconds = 0.0, 0, 0.0
        self._bar: Bar | None = None
        if self._shown and live:
            self._bar = Bar(
                TextColumn(kind), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TextColumn("{task.fields[told]}"), TimeRemainingColumn(), refresh_per_second=1 / monitor.interval_s,
            )  # fmt: skip
            self._task = self._bar.add_task(kind, total=steps, told="")
            self._bar.start()

    def step(self, done: int, loss: float, lr: float, tokens: int, seconds: float) -> None:
        """A step is done that trained `tokens` in `seconds`."""
        self._tokens, self._seconds = self._tokens + tokens, self._seconds + seconds
        told = f"loss {loss:.4f}, lr {lr:.2e}, {self._tokens / self._seconds:,.0f} tokens/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, told=told)
        elif time.monotonic() - self._said_at >= self._every_s or done == self._steps:
            left = (self._steps - done) * seconds
            self.say(f"step {done}/{self._steps}, {told}, {left:.0f} s left")
            self._said_at = time.monotonic()

    def say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(f"{self._kind}: {line}", highlight=False)
        elif self._shown:
            print(f"{self._kind}: {line}", flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
