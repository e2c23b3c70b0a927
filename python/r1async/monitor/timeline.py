"""Where a role's time goes: seconds per activity in bins of wall time, cheap enough for every decode step.

    timeline = Timeline("generator-0", run_dir / "metrics/generator-0.jsonl")
    with timeline.wait("leases"):
        frames = socket.recv_multipart()
    with timeline.busy("decode"):
        engine.step()

A span inside another takes its time out of the outer one, so activities never add up to more than the wall. Bins
start at multiples of their length in Unix time: the bins of all roles of one machine line up.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple, Protocol

from r1async.monitor.metrics import MetricsWriter

Kind = Literal["busy", "wait"]


class Writer(Protocol):
    def write(self, kind: str, fields: Mapping[str, object]) -> None: ...


class Activity(NamedTuple):
    kind: Kind
    name: str


class Bin(NamedTuple):
    """What happened from Unix time `start` on, for `span_s` seconds."""

    start: float
    span_s: float
    cpu_s: float
    busy: dict[str, float]
    wait: dict[str, float]


class _Span:
    """One activity's context manager, made once and used again: an object per decode step would cost more."""

    __slots__ = ("_activity", "_timeline")

    def __init__(self, timeline: Timeline, activity: Activity) -> None:
        self._timeline = timeline
        self._activity = activity

    def __enter__(self) -> None:
        self._timeline._enter(self._activity)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._timeline._leave()


class Timeline:
    """One process's activities. Spans belong to one thread; `stats` may be called from another.

    Args:
        role: the process, as its file and the live view call it ("generator-0").
        path: file that finished bins are appended to as they end; None keeps them until `flush`.
        bin_s: seconds of a bin.
        started: Unix time that the file's ``run_s`` counts from.
        clock: Unix seconds; used twice a span, so it must be cheap.
        cpu_clock: CPU seconds of the process.
    """

    def __init__(
        self,
        role: str,
        path: Path | None = None,
        *,
        bin_s: float = 0.5,
        started: float | None = None,
        clock: Callable[[], float] | None = None,
        cpu_clock: Callable[[], float] = time.process_time,
    ) -> None:
        self.role = role
        self._clock = clock or _steady_clock()
        self._cpu_clock = cpu_clock
        self._own = MetricsWriter(path, started, self._clock) if path else None
        self._bin_s = bin_s
        self._busy_spans: dict[str, _Span] = {}
        self._wait_spans: dict[str, _Span] = {}
        self._totals: dict[Activity, float] = {}
        self._binned: dict[Activity, float] = {}
        """Totals at the start of the current bin; what came since is the bin's."""
        self._stack: list[Activity] = []
        self._current: Activity | None = None
        self._start = self._mark = self._bin_start = self._clock()
        self._bin_end = (math.floor(self._start / bin_s) + 1) * bin_s
        self._cpu_start = self._cpu_mark = cpu_clock()
        self._bins: list[Bin] = []

    def busy(self, activity: str) -> _Span:
        """A context whose time is work."""
        span = self._busy_spans.get(activity)
        if span is None:
            span = self._busy_spans[activity] = _Span(self, Activity("busy", activity))
        return span

    def wait(self, name: str) -> _Span:
        """A context whose time is spent waiting for `name`."""
        span = self._wait_spans.get(name)
        if span is None:
            span = self._wait_spans[name] = _Span(self, Activity("wait", name))
        return span

    def stats(self) -> dict[str, float]:
        """Numbers for a heartbeat: totals since the start, and ``waiting:<name>`` with its seconds if it waits now."""
        now, current, mark = self._clock(), self._current, self._mark
        totals = dict(self._totals)
        if current is not None:
            totals[current] = totals.get(current, 0.0) + now - mark
        busy_s = sum(seconds for activity, seconds in totals.items() if activity.kind == "busy")
        wall_s = now - self._start
        stats = {
            "wall_s": wall_s,
            "busy_s": busy_s,
            "busy_fraction": busy_s / wall_s if wall_s > 0 else 0.0,
            "cpu_s": self._cpu_clock() - self._cpu_start,
        }
        stats |= {f"{activity.kind}_s:{activity.name}": seconds for activity, seconds in totals.items()}
        if current is not None and current.kind == "wait":
            stats[f"waiting:{current.name}"] = now - mark
        return stats

    @property
    def waits_for(self) -> str:
        """The wait it is in now, or an empty string."""
        current = self._current
        return current.name if current is not None and current.kind == "wait" else ""

    def flush(self, writer: Writer | None = None) -> None:
        """Write the bins that have ended, to `writer` or to the file given at the start; without either, keep them."""
        self._advance(self._clock())
        writer = writer or self._own
        if writer is None:
            return
        bins, self._bins = self._bins, []
        for bin_ in bins:
            writer.write("timeline", {"role": self.role, **_record(bin_)})

    def close(self, writer: Writer | None = None) -> None:
        """Write everything, the unfinished bin included, with a line of totals."""
        now = self._clock()
        self._advance(now)
        self._end_bin(now)
        self.flush(writer)
        target = writer or self._own
        if target is not None:
            target.write("timeline_totals", {"role": self.role, **self.stats()})
        if self._own is not None:
            self._own.close()
            self._own = None

    def _enter(self, activity: Activity) -> None:
        self._advance(self._clock())
        self._stack.append(activity)
        self._current = activity

    def _leave(self) -> None:
        self._advance(self._clock())
        self._stack.pop()
        self._current = self._stack[-1] if self._stack else None

    def _advance(self, now: float) -> None:
        """Charge the time since the last mark to the current activity; end the bins it crosses."""
        if now >= self._bin_end:
            self._cross(now)
        if self._current is not None:
            self._totals[self._current] = self._totals.get(self._current, 0.0) + now - self._mark
        self._mark = now

    def _cross(self, now: float) -> None:
        """Split the current stretch at the bin's end. Whole bins inside the stretch become one long bin."""
        self._charge_until(self._bin_end)
        self._end_bin(self._bin_end)
        whole = math.floor(now / self._bin_s) * self._bin_s
        if whole > self._bin_start:
            self._charge_until(whole)
            self._end_bin(whole)
        self._bin_end = (math.floor(now / self._bin_s) + 1) * self._bin_s
        if self._own is not None:
            for bin_ in self._bins:
                self._own.write("timeline", {"role": self.role, **_record(bin_)})
            self._bins.clear()

    def _charge_until(self, end: float) -> None:
        if self._current is not None:
            self._totals[self._current] = self._totals.get(self._current, 0.0) + end - self._mark
        self._mark = end

    def _end_bin(self, end: float) -> None:
        span_s = end - self._bin_start
        if span_s <= 0:
            return
        shares: dict[Kind, dict[str, float]] = {"busy": {}, "wait": {}}
        for activity, seconds in self._totals.items():
            share = seconds - self._binned.get(activity, 0.0)
            if share > 0:
                shares[activity.kind][activity.name] = share
        cpu = self._cpu_clock()
        self._bins.append(Bin(self._bin_start, span_s, cpu - self._cpu_mark, shares["busy"], shares["wait"]))
        self._bin_start, self._cpu_mark = end, cpu
        self._binned = dict(self._totals)


def _steady_clock() -> Callable[[], float]:
    """Unix seconds that never step back: the monotonic clock, set once by the wall clock."""
    offset = time.time() - time.perf_counter()
    perf_counter = time.perf_counter
    return lambda: perf_counter() + offset


def _record(bin_: Bin) -> dict[str, object]:
    return {
        "start": round(bin_.start, 3),
        "span_s": round(bin_.span_s, 4),
        "cpu_s": round(bin_.cpu_s, 4),
        "busy": {name: round(seconds, 5) for name, seconds in bin_.busy.items()},
        "wait": {name: round(seconds, 5) for name, seconds in bin_.wait.items()},
    }
