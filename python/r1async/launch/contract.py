"""The progress contract of a run on one machine: faults that were named, what blocks, and what is done about it.

Takes: incidents and figures of the buffer, ends of roles. Gives: lines for the screen, roles to start again, and
``stall.json``. docs/progress.md is the table of what is named and done.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from r1async import disk
from r1async.config import Config
from r1async.files import write_json
from r1async.launch.stall import Diagnosis, StallWatch
from r1async.launch.supervise import Supervisor
from r1async.monitor.metrics import MetricsWriter, run_started

KEPT = 100
"""Incidents that `stall.json` repeats, the newest."""


class Contract:
    """What the launcher knows of faults, and its rules.

    Args:
        config: of the run.
        supervisor: of its roles.
        watch: of its progress.
        note: says a line to the user.
        now: seconds on the monotonic clock.
    """

    def __init__(
        self, config: Config, supervisor: Supervisor, watch: StallWatch, note: Callable[[str], None], now: float
    ) -> None:
        self._config, self._supervisor, self._watch, self._note = config, supervisor, watch, note
        self._lost: dict[str, tuple[float, str]] = {}
        """Roles that the buffer lost while their process lives: since when, and what it said."""
        self._tried: set[str] = set()
        """Roles that were started again in this standstill: each once."""
        self._named: set[str] = set()
        """Waits that were named in this standstill; later they are only said again."""
        self._began = now
        self.counts: Counter[str] = Counter()
        """Incidents by name and act."""
        self._incidents: deque[Mapping[str, Any]] = deque(maxlen=KEPT)
        self._metrics = MetricsWriter(config.run_dir / "metrics" / "launcher.jsonl", run_started(config.run_dir))

    def close(self) -> None:
        self._metrics.close()

    def incident(self, fields: Mapping[str, Any], now: float) -> None:
        """Takes one of the buffer's, which has written it down."""
        self._remember(fields)
        role = str(fields.get("role", ""))
        if fields["name"] != "lost_peer" or role not in self._supervisor.running:
            return
        # A process that started after that was heard last is the next life, still loading: not the one that is lost.
        if self._supervisor.started(role) < now - fields["named_after_s"]:
            self._lost[role] = (now, str(fields.get("text", "")))

    def own(
        self, name: str, act: str, text: str, *, role: str = "", after_s: float = 0.0, allowed_s: float = 0.0
    ) -> None:
        """Names a fault that the launcher found."""
        fields = {
            "name": name, "act": act, "role": role, "groups": [], "rollouts": [], "prompts": [], "count": 1,
            "deadline_s": allowed_s, "named_after_s": round(after_s, 3), "text": text,
        }  # fmt: skip
        with self._room_or_note("launcher.jsonl"):
            self._metrics.write("incident", fields)
        self._remember(fields)

    def figures(self, stats: Mapping[str, Any]) -> None:
        """Takes a `stats` event: a lost role that is among the peers has come back."""
        for peer in stats.get("peers", []):
            if self._lost.pop(str(peer.get("name")), None) is not None:
                self._note(f"{peer['name']} is back")

    def ended(self, role: str) -> None:
        """A role's process ended: it is not expected back."""
        self._lost.pop(role, None)

    @property
    def deadline(self) -> float:
        """When `overdue` may have something to say."""
        return min((since for since, _ in self._lost.values()), default=float("inf")) + self._config.progress.role_s

    def overdue(self, now: float) -> list[str]:
        """Lost roles that shall be started again: the stopped ones, and those that did not come back in time."""
        again = []
        for role, (since, text) in list(self._lost.items()):
            late = now >= since + self._config.progress.role_s
            frozen = self._supervisor.is_stopped(role)
            if not (late or frozen):
                continue
            del self._lost[role]
            silent_s = self._config.buffer.peer_deadline_s + now - since
            self.own(
                "frozen_role" if frozen else "lost_role",
                "started again",
                f"{role} is stopped by a signal" if frozen else f"{role} did not come back: {text}",
                role=role,
                after_s=silent_s,
                allowed_s=self._config.buffer.peer_deadline_s + (0 if frozen else self._config.progress.role_s),
            )
            again.append(role)
        return again

    def moved(self) -> None:
        self._tried.clear()
        self._named.clear()

    def stalled(self, now: float) -> tuple[Diagnosis, str | None]:
        """Nothing has moved for the limit: what blocks, and which role to start again for it, if one."""
        found, role = self._blame(now)
        after_s = self._watch.still_s(now)
        allowed_s = self._config.progress.limit_s
        act = "waits"
        if found.name == "frozen_role" and found.role == "buffer":
            # Nothing else brings back what only it knows; the others can be started again.
            self._supervisor.go_on("buffer")
            act, role = "told to go on", None
        elif role is not None:
            act = "started again"
        if found.name in self._named and act == "waits":
            self._note(found.text)
        else:
            self._named.add(found.name)
            self.own(found.name, act, found.text, role=found.role, after_s=after_s, allowed_s=allowed_s)
        self.write_stall(found, now, ended=False)
        return found, role

    def _blame(self, now: float) -> tuple[Diagnosis, str | None]:
        found = self._watch.diagnose(now)
        for name in self._supervisor.running:
            if self._supervisor.is_stopped(name):
                text = f"{name} is stopped by a signal; {found.text}"
                return Diagnosis(name="frozen_role", text=text, role=name), self._once(name)
        if self._watch.still_s(now) < self._own_deadline_s(found.name):
            return found, None
        match found.name:
            case "fenced" | "generating":
                return found, self._once(found.role)
            case "train" | "weights" if not self._watch.learner_works:
                return found, self._once("learner")
            case _:
                return found, None

    def _own_deadline_s(self, wait: str) -> float:
        """Seconds that a wait may last by its own rules, whatever the limit is."""
        match wait:
            case "generating":
                return self._config.group.lease_s
            case "fenced" | "weights":
                return self._config.weights.deadline_s
            case _:
                return 0.0

    def _once(self, role: str) -> str | None:
        if role in self._tried or role not in self._supervisor.running:
            return None
        self._tried.add(role)
        return role

    def write_stall(self, found: Diagnosis, now: float, *, ended: bool) -> None:
        """`stall.json`: the newest diagnosis. A disk that is full has it on the screen only."""
        record = {
            **found.record(),
            "ended": ended,
            "limit_s": self._config.progress.limit_s,
            "still_s": round(self._watch.still_s(now), 3),
            "run_s": round(now - self._began, 3),
            "incidents": dict(self.counts),
            "newest": list(self._incidents),
        }
        with self._room_or_note("stall.json"):
            write_json(self._config.run_dir / "stall.json", record)

    @contextmanager
    def _room_or_note(self, name: str) -> Iterator[None]:
        """A full disk must not keep the launcher from saying so."""
        try:
            yield
        except OSError as error:
            if not disk.is_full(error, self._config.run_dir):
                raise
            self._note(f"no room for {name} in {self._config.run_dir}")

    def _remember(self, fields: Mapping[str, Any]) -> None:
        self.counts[str(fields["name"])] += 1
        self._incidents.append(fields)
        self._note(said(fields))


def said(fields: Mapping[str, Any]) -> str:
    """An incident in one line."""
    what = str(fields.get("text") or "")
    if not what:
        where = f"rollouts {_list(fields.get('rollouts', []))} of groups {_list(fields.get('groups', []))}"
        what = f"{fields.get('role') or 'nobody'} with {where}"
    seconds = f" after {fields['named_after_s']:.1f} s" if fields.get("named_after_s") else ""
    return f"{fields['name']}: {what}{seconds}; {fields['act']}"


def _list(ids: Iterable[object]) -> str:
    return ", ".join(str(each) for each in ids)
