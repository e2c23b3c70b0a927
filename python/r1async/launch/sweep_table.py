"""What a sweep came to: means and standard errors over seeds, as JSON, CSV, Markdown and a plot."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

Summary = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Result:
    """One complete run."""

    values: Mapping[str, str]
    """Swept keys and their values, as written on the command line."""
    seed: int
    summary: Summary


@dataclass(frozen=True, slots=True)
class Figure:
    """Mean over seeds; `stderr` is the mean's standard error, None where it is not known."""

    mean: float
    stderr: float | None
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if self.stderr is None else f"{self.mean:.3f} ± {self.stderr:.3f}"


@dataclass(frozen=True, slots=True)
class Row:
    """All seeds of one combination of the other swept values."""

    values: tuple[tuple[str, str], ...]
    seeds: tuple[int, ...]
    figures: Mapping[str, Figure]


def _number(*path: str) -> Callable[[Summary], float | None]:
    def read(summary: Summary) -> float | None:
        node: Any = summary
        for name in path:
            node = node.get(name) if isinstance(node, Mapping) else None
        return float(node) if isinstance(node, int | float) else None

    return read


def _per_second(summary: Summary) -> float | None:
    trained, wall_s = summary.get("completions_trained"), summary.get("wall_s")
    return trained / wall_s if trained and wall_s else None


FIGURES: Mapping[str, Callable[[Summary], float | None]] = {
    "before": _number("before", "accuracy"),
    "accuracy": _number("after", "accuracy"),
    "greedy": _number("after", "greedy"),
    "format": _number("after", "format"),
    "staleness": _number("staleness", "mean"),
    "completions/s": _per_second,
    "wall s": _number("wall_s"),
}
"""Columns of the tables, from a run's summary."""

EVALUATION_STDERR = {"accuracy": _number("after", "stderr"), "before": _number("before", "stderr")}
"""Sampling error of one run's evaluation: the error of a mean of one."""


def rows_of(results: Sequence[Result]) -> list[Row]:
    """One row per combination of what was swept besides the seed, in order of first appearance."""
    groups: dict[tuple[tuple[str, str], ...], list[Result]] = {}
    for result in results:
        others = tuple((key, value) for key, value in result.values.items() if key != "seed")
        groups.setdefault(others, []).append(result)
    return [
        Row(values, tuple(result.seed for result in group), _figures([result.summary for result in group]))
        for values, group in groups.items()
    ]


def _figures(summaries: Sequence[Summary]) -> dict[str, Figure]:
    figures = {}
    for name, read in FIGURES.items():
        known = [value for value in map(read, summaries) if value is not None]
        if known:
            error = EVALUATION_STDERR[name](summaries[0]) if len(known) == 1 and name in EVALUATION_STDERR else None
            figures[name] = figure(known, error)
    return figures


def figure(values: Sequence[float], single_stderr: float | None = None) -> Figure:
    """Mean and standard error; of a single value, the error is `single_stderr`."""
    if len(values) == 1:
        return Figure(values[0], single_stderr, 1)
    return Figure(fmean(values), stdev(values) / math.sqrt(len(values)), len(values))


def write_tables(folder: Path, results: Sequence[Result]) -> str:
    """Writes sweep.json, .csv, .md, .png and .svg into the folder; returns the table for the terminal."""
    rows = rows_of(results)
    (folder / "sweep.json").write_text(json.dumps(_as_json(rows, results), indent=2) + "\n")
    _write_csv(folder / "sweep.csv", results)
    markdown = to_markdown(rows)
    (folder / "sweep.md").write_text(markdown)
    plot(rows, [folder / "sweep.png", folder / "sweep.svg"])
    return f"{_to_terminal(rows)}\ntables and plot: {folder}/sweep.md .csv .json .png .svg"


def _as_json(rows: Sequence[Row], results: Sequence[Result]) -> dict[str, Any]:
    return {
        "rows": [
            {
                "values": dict(row.values),
                "seeds": row.seeds,
                "figures": {
                    name: {"mean": f.mean, "stderr": f.stderr, "n": f.count} for name, f in row.figures.items()
                },
            }
            for row in rows
        ],
        "runs": [{"values": result.values, "seed": result.seed, "summary": result.summary} for result in results],
    }


def _write_csv(path: Path, results: Sequence[Result]) -> None:
    keys = [key for key in results[0].values if key != "seed"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*keys, "seed", *FIGURES])
        for result in results:
            figures = [read(result.summary) for read in FIGURES.values()]
            row = [*(result.values[key] for key in keys), result.seed, *figures]
            writer.writerow(["" if cell is None else cell for cell in row])


def _cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    keys = [key for key, _ in rows[0].values]
    names = [name for name in FIGURES if any(name in row.figures for row in rows)]
    cells = [
        [
            *(value for _, value in row.values),
            *(str(row.figures[name]) if name in row.figures else "–" for name in names),
            str(len(row.seeds)),
        ]
        for row in rows
    ]
    return [*keys, *names, "runs"], cells


def to_markdown(rows: Sequence[Row]) -> str:
    """A table with mean ± standard error over the seeds."""
    head, cells = _cells(rows)
    lines = [head, ["---"] * len(head), *cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _to_terminal(rows: Sequence[Row]) -> str:
    head, cells = _cells(rows)
    table = Table(*head)
    for line in cells:
        table.add_row(*line)
    console = Console(width=max(100, 16 * len(head)))
    with console.capture() as capture:
        console.print(table)
    return capture.get().rstrip()


def plot(rows: Sequence[Row], paths: Sequence[Path]) -> None:
    """Held-out accuracy over the values of the first swept key, a line for each combination of the others."""
    from matplotlib.figure import Figure as Canvas

    lines: dict[str, list[Row]] = {}
    for row in rows:
        label = ", ".join(f"{key}={value}" for key, value in row.values[1:])
        lines.setdefault(label, []).append(row)
    axis_key = rows[0].values[0][0] if rows[0].values else "run"
    places = list(dict.fromkeys(_place(row) for row in rows))
    canvas = Canvas(figsize=(6.4, 4.0), layout="constrained")
    axes = canvas.subplots()
    for label, line in lines.items():
        known = [(places.index(_place(row)), row.figures["accuracy"]) for row in line if "accuracy" in row.figures]
        axes.errorbar(
            [place for place, _ in known],
            [accuracy.mean for _, accuracy in known],
            yerr=[accuracy.stderr or 0.0 for _, accuracy in known],
            marker="o",
            capsize=3,
            label=label or None,
        )
    axes.set_xticks(range(len(places)), places)
    axes.set_xlabel(axis_key)
    axes.set_ylabel("held-out accuracy")
    axes.grid(alpha=0.3)
    if any(lines):
        axes.legend()
    for path in paths:
        canvas.savefig(path, dpi=150)


def _place(row: Row) -> str:
    return row.values[0][1] if row.values else "all"
