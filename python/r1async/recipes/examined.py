"""What the checkpoints of a recipe were examined on: results by benchmark and checkpoint, and what two differ by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from r1async.config import ConfigError
from r1async.evaluation.compare import Difference, compare
from r1async.evaluation.result import read_results
from r1async.monitor.rundata import Record, load_run

HELD_OUT = "held-out problems"
"""Title of what a training run's own evaluation asks."""

Folders = Mapping[str, str]
"""By checkpoint, the folder of an evaluation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """One benchmark with the results of the checkpoints that were asked it."""

    name: str
    title: str
    results: Mapping[str, Record]
    """By checkpoint, in the recipe's order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """What the second checkpoint's pass@1 is more than the first one's, problem by problem."""

    first: str
    second: str
    difference: Difference


def read_exams(exams: Mapping[str, str | Folders]) -> list[Benchmark]:
    """Every benchmark of every checkpoint.

    Args:
        exams: by checkpoint, the folder of an `eval` (whose benchmarks are taken, all of them) or of a run (whose last
            sampled evaluation is); or several such tables by name.

    Raises:
        ConfigError: a folder without figures, or checkpoints beside tables.
    """
    tables = {name: each for name, each in exams.items() if not isinstance(each, str)}
    if tables and len(tables) < len(exams):
        raise ConfigError(f"report: exams must be folders by checkpoint, or tables of those, got both in {list(exams)}")
    flat = {name: each for name, each in exams.items() if isinstance(each, str)}
    found: dict[str, Benchmark] = {}
    for table, folders in (tables or {HELD_OUT: flat}).items():
        for checkpoint, folder in folders.items():
            for title, record in _records(Path(folder), checkpoint, table):
                name = str(record.get("benchmark", table))
                former = found.get(name, Benchmark(name=name, title=title, results={}))
                results = {**former.results, checkpoint: record}
                found[name] = Benchmark(name=name, title=former.title, results=results)
    return list(found.values())


def _records(folder: Path, checkpoint: str, table: str) -> list[tuple[str, Record]]:
    """Title and figures of each benchmark in an evaluation's folder."""
    if (folder / "evaluations").is_dir():
        return [(str(record["title"]), record) for record in read_results(folder).values()]
    sampled = [each for each in load_run(folder).evaluations if each["pass"] == "sampled"]
    if not sampled:
        raise ConfigError(f"exams: {folder} has no sampled evaluation of {checkpoint}")
    return [(table, {key: value for key, value in sampled[-1].items() if key != "samples_shown"})]


def differences(benchmark: Benchmark, besides: Sequence[Sequence[str]] = ()) -> list[Pair]:
    """Each checkpoint against the one before it, then the pairs of `besides` that were both asked.

    Raises:
        ConfigError: a pair of `besides` that is no pair; two results that were not asked the same.
    """
    names = [name for name, record in benchmark.results.items() if "by_problem" in record]
    wanted = [*pairwise(names), *map(_pair, besides)]
    return [
        Pair(
            first=first,
            second=second,
            difference=compare(benchmark.results[first], benchmark.results[second]),
        )
        for first, second in dict.fromkeys(wanted)
        if first in names and second in names
    ]


def _pair(names: Sequence[str]) -> tuple[str, str]:
    if len(names) != 2 or isinstance(names, str):
        raise ConfigError(f"report: compare must be a list of pairs of checkpoints, got {names!r}")
    return names[0], names[1]


def refuse_unknown(benchmarks: Sequence[Benchmark], besides: Sequence[Sequence[str]]) -> None:
    """
    Raises:
        ConfigError: a pair names a checkpoint that was not examined.
    """
    known = list(dict.fromkeys(name for benchmark in benchmarks for name in benchmark.results))
    for name in (name for pair in besides for name in _pair(pair)):
        if name not in known:
            raise ConfigError(f"report: compare names {name!r}, and examined are {', '.join(known)}")


def figures_alone(record: Record) -> Record:
    """A result without its problems."""
    return {key: value for key, value in record.items() if key not in ("by_problem", "file", "statuses")}
