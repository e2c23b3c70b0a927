"""What a person sees while a run runs: a table that redraws, or a line every few seconds.

Takes: the buffer's events (`event`), remarks (`note`), the time (`refresh`). Gives: text on a console. Waits for
nothing: the launcher owns the loop and calls `refresh` at least every `interval_s`.

Every figure comes from the newest message that carries it, so a lost event costs a moment, never a figure.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from r1async.config import Config
from r1async.monitor.pools import PoolFigures, cost, pool_figures, seconds, statuses
from r1async.monitor.rundata import role_of
from r1async.monitor.summary import audit_line, duration, percent

WAITS_SHOWN = 4
"""Waits named at a time; rejection sampling has many requests open."""
PLAIN_EVERY_S = 5.0
"""Seconds between two lines of the plain view."""
RATE_OVER_S = 10.0
"""Rates are taken over this many seconds: shorter flickers, longer lags."""
RUNNING_STEPS = 10
"""Reward and step time are running means over this many steps."""
COUNTERS: Mapping[str, tuple[str, str]] = {
    "generator": ("tokens", "tok/s"),
    "learner": ("tokens", "tok/s"),
    "scorer": ("verdicts", "verdicts/s"),
}
"""The counter in each role's heartbeat whose rate is shown, and its unit."""

Mode = Literal["live", "plain", "quiet"]


class Rate:
    """Events a second of a counter, over the last `RATE_OVER_S` seconds."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, float]] = deque()

    def saw(self, count: float, now: float) -> None:
        if self._points and count < self._points[-1][1]:
            self._points.clear()  # a process that started again counts from zero
        self._points.append((now, count))
        while len(self._points) > 2 and self._points[1][0] <= now - RATE_OVER_S:
            self._points.popleft()

    @property
    def per_s(self) -> float | None:
        if len(self._points) < 2:
            return None
        (t0, c0), (t1, c1) = self._points[0], self._points[-1]
        return (c1 - c0) / (t1 - t0) if t1 > t0 else None


class LiveView:
    """The state of a run as its messages tell it, drawn.

    Args:
        config: names the run, its length and how to show it.
        console: where to; standard output if None.
        clock: seconds, for rates and the time left.
    """

    def __init__(
        self, config: Config, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._config = config
        self._console = console or Console()
        self._clock = clock
        self.mode: Mode = resolve_mode(config.monitor.terminal, self._console.is_terminal)
        self.interval_s = config.monitor.interval_s if self.mode == "live" else PLAIN_EVERY_S
        self._began = clock()
        self._step = 0
        self._last_step_at = self._began
        self._first_step: tuple[int, float] | None = None
        self._recent: deque[Mapping[str, Any]] = deque(maxlen=RUNNING_STEPS)
        self._stats: Mapping[str, Any] = {}
        self._rates: dict[str, Rate] = {}
        self._pool_rates: dict[str, Rate] = {}
        self._published = 0
        self._drawn_at: float = -float("inf")
        self._live: Live | None = None
        if self.mode == "live":
            self._live = Live(self.render(), console=self._console, auto_refresh=False, transient=True)
            self._live.start()

    def event(self, header: Mapping[str, Any]) -> None:
        """Take in one message of the buffer's events socket."""
        now = self._clock()
        self._published = max(self._published, _int(header.get("published")))
        match header.get("t"):
            case "step":
                self._stepped(header, now)
            case "stats":
                self._stats = header
                for peer in header.get("peers", []):
                    counter = COUNTERS.get(role_of(str(peer.get("name"))), ("", ""))[0]
                    if counter in peer.get("stats", {}):
                        self._rates.setdefault(peer["name"], Rate()).saw(peer["stats"][counter], now)
                for name, pool in pool_figures(header.get("peers", [])).items():
                    self._pool_rates.setdefault(name, Rate()).saw(pool.verdicts, now)

    def note(self, text: str) -> None:
        """Say something once, above what redraws; quiet keeps it for standard error."""
        if self.mode == "quiet":
            print(f"r1async: {text}", file=sys.stderr, flush=True)
        else:
            self._console.print(f"[yellow]·[/yellow] {escape(text)}", highlight=False, soft_wrap=True)

    def refresh(self, now: float | None = None) -> None:
        """Draw, if the last time is `interval_s` ago."""
        now = self._clock() if now is None else now
        if now - self._drawn_at < self.interval_s:
            return
        self._drawn_at = now
        if self._live is not None:
            self._live.update(self.render(), refresh=True)
        elif self.mode == "plain":
            self._console.print(self.line(), highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Draw the last state for good and give the terminal back."""
        if self._live is not None:
            self._live.transient = False
            self._live.update(self.render(), refresh=True)
            self._live.stop()
            self._live = None

    def line(self) -> str:
        """The state in one line."""
        parts = [f"step {self._step}/{self._config.steps}"]
        if (reward := self._running("reward/mean")) is not None:
            parts.append(f"reward {reward:.3f}")
        if evaluated := self._evaluated():
            parts.append(evaluated)
        if staleness := self._staleness():
            parts.append(f"staleness {staleness}")
        parts += [f"{role} {rate}" for role, rate in self._role_rates().items()]
        waits = self.waits()
        if waits:
            parts.append("waits: " + "; ".join(waits))
        if (eta := self.seconds_left()) is not None:
            parts.append(f"{duration(eta)} left")
        return " | ".join(parts)

    def render(self) -> RenderableType:
        """The state as a table."""
        body = [self._progress(), self._figures(), self._peers()]
        if pools := pool_figures(self._stats.get("peers", [])):
            body.append(self._pools(pools))
        waits = self.waits()
        if waits:
            body.append(Text("waits for: " + "; ".join(waits), style="yellow"))
        body.append(Text(f"audit {audit_line(self._stats.get('audit'))}", style="dim"))
        return Panel(Group(*body), title=escape(self._config.name), title_align="left", border_style="dim")

    def waits(self) -> list[str]:
        """What the run itself waits for, by name."""
        found = [str(wait["text"]) for wait in self._stats.get("waits", [])]
        more = len(found) - WAITS_SHOWN
        return found if more <= 0 else [*found[:WAITS_SHOWN], f"and {more} more"]

    def seconds_left(self) -> float | None:
        """Until the last step at the pace since the first one seen; None before two steps were seen."""
        if self._first_step is None or self._step <= self._first_step[0]:
            return None
        step, at = self._first_step
        pace = (self._last_step_at - at) / (self._step - step)
        return pace * max(0, self._config.steps - self._step)

    def _stepped(self, header: Mapping[str, Any], now: float) -> None:
        done = _int(header.get("step")) + 1
        if self._first_step is None or done <= self._step:
            self._first_step = (done, now)  # also after a learner went back to its checkpoint
            self._recent.clear()
        self._step, self._last_step_at = done, now
        self._recent.append(header.get("metrics") or {})

    def _running(self, name: str) -> float | None:
        values = [float(m[name]) for m in self._recent if isinstance(m.get(name), int | float)]
        return sum(values) / len(values) if values else None

    def _staleness(self) -> str:
        mean = self._running("staleness/mean")
        if mean is None:
            return ""
        newest = self._recent[-1]
        p95, top = newest.get("staleness/p95"), newest.get("staleness/max")
        return f"{mean:.2f}" + ("" if p95 is None else f", p95 {p95:g}") + ("" if top is None else f", max {top:g}")

    def _evaluated(self) -> str:
        """The evaluator tells its newest result in its heartbeats."""
        for peer in self._stats.get("peers", []):
            stats = peer.get("stats", {})
            if "accuracy" in stats:
                return f"accuracy {percent(stats['accuracy'])} at version {_int(stats.get('accuracy_version'))}"
        return ""

    def _role_rates(self) -> dict[str, str]:
        """Events a second of each role, all its processes together."""
        total: dict[str, float] = {}
        for name, rate in self._rates.items():
            if rate.per_s is not None:
                total[role_of(name)] = total.get(role_of(name), 0.0) + rate.per_s
        return {role: f"{rate:,.0f} {COUNTERS[role][1]}" for role, rate in total.items()}

    def _progress(self) -> Table:
        eta = self.seconds_left()
        table = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=max(1, self._config.steps), completed=self._step, width=40)
        elapsed = duration(self._clock() - self._began)
        left = "" if eta is None else f", {duration(eta)} left"
        table.add_row(f"step {self._step}/{self._config.steps}", bar, f"{elapsed}{left}")
        return table

    def _figures(self) -> Text:
        reward = self._running("reward/mean")
        parts = [
            "" if reward is None else f"reward {reward:.3f}",
            self._evaluated(),
            f"staleness {self._staleness()}" if self._staleness() else "",
            f"version {self._published} published",
        ]
        return Text("   ".join(part for part in parts if part), style="bold")

    def _pools(self, pools: Mapping[str, PoolFigures]) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        table.add_column("pool", style="dim")
        for name in ("queue", "rate", "p50", "p99"):
            table.add_column(name, justify="right")
        table.add_column("verdicts; slowest rollout", overflow="ellipsis", no_wrap=True)
        for name, pool in pools.items():
            rate = self._pool_rates[name].per_s if name in self._pool_rates else None
            words = [statuses(pool), cost(pool)]
            words += [f"rollout {rollout} took {seconds(took)}" for rollout, took in pool.slowest[:1]]
            table.add_row(
                escape(name),
                f"{pool.queued:,}",
                "" if rate is None else f"{rate:,.1f}/s",
                seconds(pool.p50_s),
                seconds(pool.p99_s),
                escape("; ".join(word for word in words if word)),
            )
        return table

    def _peers(self) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        table.add_column("role", style="dim")
        table.add_column("rate", justify="right")
        table.add_column("busy", justify="right")
        table.add_column("waits for", overflow="ellipsis", no_wrap=True)
        for peer in sorted(self._stats.get("peers", []), key=lambda peer: str(peer.get("name"))):
            name = str(peer.get("name"))
            rate = self._rates[name].per_s if name in self._rates else None
            unit = COUNTERS.get(role_of(name), ("", ""))[1]
            busy = peer.get("stats", {}).get("busy_fraction")
            shown = "" if rate is None else f"{rate:,.0f} {unit}"
            table.add_row(escape(name), shown, "" if busy is None else f"{100 * busy:.0f} %", escape(_waits_for(peer)))
        return table


def resolve_mode(setting: Literal["auto", "live", "plain", "quiet"], is_terminal: bool) -> Mode:
    """`auto` redraws on a terminal and writes lines into a file."""
    if setting != "auto":
        return setting
    return "live" if is_terminal else "plain"


def _waits_for(peer: Mapping[str, Any]) -> str:
    """The wait that the buffer knows of, else the one that its heartbeat named, with its seconds."""
    named = str(peer.get("waits_for") or "")
    if named:
        return named
    waiting: Sequence[tuple[str, float]] = [
        (name.removeprefix("waiting:"), seconds)
        for name, seconds in peer.get("stats", {}).items()
        if name.startswith("waiting:")
    ]
    return ", ".join(f"{name} ({seconds:.1f} s)" for name, seconds in waiting)


def _int(value: object) -> int:
    return int(value) if isinstance(value, int | float) else 0
