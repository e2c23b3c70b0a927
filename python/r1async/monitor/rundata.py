"""What a run's folder holds, read once for the summary and the report.

Every file may be missing or end in the middle of a line: a run that was killed still has a report.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from r1async.monitor.metrics import read_metrics

Record = dict[str, Any]
_ENGINE = "-engine"
"""Ending of a generator's file about its engine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunData:
    run_dir: Path
    config: Record
    """The resolved settings; empty without a config.yaml."""
    started: float | None
    """Unix time of the folder's first use."""
    ended: float | None
    """Unix time of the newest line of any role."""
    steps: Sequence[Record]
    """The learner's line of every step, in order; a step done again after a restart has its last line."""
    evaluations: Sequence[Record]
    """One per version and pass, in order of version; a version evaluated again has its last line."""
    bins: Mapping[str, Sequence[Record]]
    """Time line bins by process."""
    buffer: Sequence[Record]
    """The buffer's own figures over time."""
    engines: Mapping[str, Sequence[Record]]
    """What each generator's engine did about weights: installs, and canaries with their mismatch."""
    incidents: Sequence[Record]
    """Faults that were named and what was done about each, in order of time."""
    stall: Record | None
    """The newest diagnosis of a standstill."""
    audit: Record | None
    cold_start: Record | None

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one metric, where it is a number."""
        points = [(r["step"], r[name]) for r in self.steps if isinstance(r.get(name), int | float)]
        return [int(step) for step, _ in points], [float(value) for _, value in points]

    def names(self, prefix: str) -> list[str]:
        """Names of numeric metrics that begin so, in order of first appearance."""
        seen: dict[str, None] = {}
        for record in self.steps:
            for name, value in record.items():
                if name.startswith(prefix) and isinstance(value, int | float):
                    seen[name] = None
        return list(seen)


@dataclass(frozen=True, kw_only=True, slots=True)
class Histogram:
    """Tokens by staleness."""

    tokens: Mapping[int, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.tokens.values())

    @property
    def mean(self) -> float | None:
        return sum(s * n for s, n in self.tokens.items()) / self.total if self.total else None

    @property
    def max(self) -> int | None:
        return max((s for s, n in self.tokens.items() if n), default=None)

    def quantile(self, share: float) -> int | None:
        """The lowest staleness that at least `share` of the tokens do not exceed."""
        below = 0
        for staleness in sorted(self.tokens):
            below += self.tokens[staleness]
            if below >= share * self.total and below:
                return staleness
        return None


def load_run(run_dir: Path) -> RunData:
    """Read a run's folder.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not run_dir.is_dir():
        raise FileNotFoundError(f"no run at {run_dir}: give the folder that holds its config.yaml")
    files = sorted((run_dir / "metrics").glob("*.jsonl"))
    records = {path.stem: list(read_metrics(path)) for path in files}
    times = [r["time"] for lines in records.values() for r in lines[-1:] if isinstance(r.get("time"), float)]
    return RunData(
        run_dir=run_dir,
        config=_config(run_dir / "config.yaml"),
        started=float((run_dir / "started").read_text()) if (run_dir / "started").exists() else None,
        ended=max(times, default=None),
        steps=_last_by(records.get("learner", []) + records.get("learner-0", []), "step", ("step",)),
        evaluations=_last_by(read_metrics(run_dir / "evaluation.jsonl"), "evaluation", ("version", "pass")),
        bins={
            name: bins for name, lines in records.items() if (bins := [r for r in lines if r.get("kind") == "timeline"])
        },
        buffer=[r for r in records.get("buffer", []) if r.get("kind") == "stats"],
        engines={name.removesuffix(_ENGINE): lines for name, lines in records.items() if name.endswith(_ENGINE)},
        incidents=sorted(
            (r for lines in records.values() for r in lines if r.get("kind") == "incident"), key=lambda r: r["time"]
        ),
        stall=_json(run_dir / "stall.json"),
        audit=_json(run_dir / "audit.json"),
        cold_start=_json(run_dir / "cold_start.json"),
    )


def role_of(process: str) -> str:
    """The role of a process's name: "generator-0" is a generator."""
    return re.sub(r"-\d+$", "", process)


def busy_fractions(
    bins: Mapping[str, Sequence[Record]], start: float = -np.inf, end: float = np.inf
) -> dict[str, float]:
    """Share of wall time each role is busy between two Unix times; the mean over its processes."""
    by_role: dict[str, list[float]] = {}
    for process, records in bins.items():
        inside = [r for r in records if r["start"] >= start and r["start"] + r["span_s"] <= end]
        span = sum(r["span_s"] for r in inside)
        if span > 0:
            busy = sum(sum(r["busy"].values()) for r in inside)
            by_role.setdefault(role_of(process), []).append(busy / span)
    return {role: float(np.mean(shares)) for role, shares in by_role.items()}


def cpu_seconds(bins: Mapping[str, Sequence[Record]], start: float = -np.inf, end: float = np.inf) -> dict[str, float]:
    """CPU seconds of each role between two Unix times, all its processes together."""
    total: dict[str, float] = {}
    for process, records in bins.items():
        inside = [r["cpu_s"] for r in records if r["start"] >= start and r["start"] + r["span_s"] <= end]
        total[role_of(process)] = total.get(role_of(process), 0.0) + sum(inside)
    return total


def staleness_histogram(steps: Iterable[Record]) -> Histogram:
    """Trained tokens by staleness over all steps."""
    tokens: dict[int, int] = {}
    for record in steps:
        for staleness, count in (record.get("staleness/histogram") or {}).items():
            tokens[int(staleness)] = tokens.get(int(staleness), 0) + int(count)
    return Histogram(tokens=tokens)


def _last_by(records: Iterable[Record], kind: str, keys: tuple[str, ...]) -> list[Record]:
    """The last record for each value of the keys, in order of the keys."""
    last: dict[tuple[Any, ...], Record] = {}
    for record in records:
        if record.get("kind") == kind and all(key in record for key in keys):
            last[tuple(record[key] for key in keys)] = record
    return [last[key] for key in sorted(last)]


def _config(path: Path) -> Record:
    if not path.exists():
        return {}
    loaded = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    return {str(key): value for key, value in loaded.items()} if isinstance(loaded, dict) else {}


def _json(path: Path) -> Record | None:
    return json.loads(path.read_text()) if path.exists() else None
