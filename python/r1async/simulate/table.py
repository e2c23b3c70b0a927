"""What simulations came to, for people and for programs: a table, JSON, CSV and a plot."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from r1async.simulate.model import Outcome
from r1async.simulate.plot import plot
from r1async.simulate.run import MORE, Point, Split, best

COLUMNS: Mapping[str, tuple[Callable[[Outcome], Any], str]] = {
    "steps/h": (lambda it: it["steps_per_s"] * 3600, ",.1f"),
    "trained tokens/s": (lambda it: it["trained_tokens_per_s"], ",.0f"),
    "rollouts/s": (lambda it: it["rollouts_per_s"], ",.2f"),
    "generators idle": (lambda it: it["pools"]["generators"]["idle"], ".0%"),
    "scorers idle": (lambda it: it["pools"]["scorers"]["idle"], ".0%"),
    "learner idle": (lambda it: it["pools"]["learner"]["idle"], ".0%"),
    "staleness": (lambda it: it["staleness"]["mean"], ".2f"),
    "p95": (lambda it: it["staleness"]["p95"], "d"),
    "max": (lambda it: it["staleness"]["max"], "d"),
    "waste": (lambda it: it["waste_share"], ".1%"),
    "length ratio": (lambda it: it["length_ratio"], ".3f"),
    "prefix coverage": (lambda it: it["prefix_coverage"], ".0%"),
}
"""Figures of a simulation and how they are written."""


def to_terminal(points: Sequence[Point], splits: Sequence[Split] = ()) -> str:
    """A line for each point, what holds it back, and the splits of machines if there are any."""
    swept = [key.rpartition(".")[2] for key, _ in points[0].values]
    table = Table(*(Column(name, min_width=len(name)) for name in swept), *COLUMNS, "bottleneck")
    for point in points:
        figures = [format(read(point.outcome), form) for read, form in COLUMNS.values()]
        table.add_row(*(value for _, value in point.values), *figures, point.bottleneck.pool)
    parts = [table, *(_why(point) for point in points)]
    if splits:
        parts += [_split_table(splits), _best_split(splits)]
    console = Console(width=max(200, 13 * (len(COLUMNS) + 1) + sum(len(name) + 3 for name in swept)))
    with console.capture() as capture:
        for part in parts:
            console.print(part, highlight=False)
    return capture.get().rstrip()


def _why(point: Point) -> str:
    name = ", ".join(f"{key}={value}" for key, value in point.values)
    found, outcome = point.bottleneck, point.outcome
    lines = [f"{found.pool} are the pool with the least idle time ({found.idle:.0%})"]
    if found.pool == "learner":
        lines = [f"the learner has the least idle time ({found.idle:.0%})"]
    if found.growth:
        tried = sorted(found.growth.items(), key=lambda item: -item[1])
        lines.append(
            "a quarter more speed of one pool, or one more step of staleness, changes steps/h by: "
            + ", ".join(f"{what} {growth:+.1%}" for what, growth in tried)
        )
    lines.append("staleness of trained tokens: " + _distribution(outcome["staleness"]["histogram"]))
    if outcome["waste"]:
        shares = sorted(outcome["waste"].items(), key=lambda item: -item[1])
        lines.append("waste of tokens: " + ", ".join(f"{reason} {share:.2%}" for reason, share in shares))
    lines.append(
        f"places {outcome['places']:.0f} of {outcome['place_limit']} taken; "
        f"{outcome['holds']} of {outcome['steps']} steps held, {outcome['held_s']:.0f} s in all"
    )
    head = f"{name}: " if name else ""
    return "\n  ".join([head + lines[0], *lines[1:]])


def _distribution(histogram: Mapping[str, int]) -> str:
    """Shares of tokens by staleness, youngest first."""
    tokens = sum(histogram.values())
    ages = sorted(histogram.items(), key=lambda item: int(item[0]))
    return ", ".join(f"{age}: {count / tokens:.1%}" for age, count in ages) or "none was trained"


def _split_table(splits: Sequence[Split]) -> Table:
    winner = best(splits)
    table = Table("generators", "learner machines", *COLUMNS, "", title="splits of the machines")
    for each in splits:
        figures = [format(read(each.outcome), form) for read, form in COLUMNS.values()]
        table.add_row(str(each.generators), str(each.learners), *figures, "best" if each is winner else "")
    return table


def _best_split(splits: Sequence[Split]) -> str:
    winner = best(splits)
    others = [each.outcome["steps_per_s"] for each in splits if each is not winner]
    speed = winner.outcome["steps_per_s"]
    text = (
        f"best split of {winner.generators + winner.learners} machines: {winner.generators} to sample, "
        f"{winner.learners} to learn, {speed * 3600:,.1f} steps/h"
    )
    if others and max(others) > 0.999 * speed:
        text += "; others are as fast: neither pool holds the run back"
    return text


def write_files(folder: Path, points: Sequence[Point], splits: Sequence[Split] = ()) -> None:
    """simulate.json, .csv, .png and .svg."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "simulate.json").write_text(json.dumps(as_json(points, splits), indent=2) + "\n")
    keys = [key for key, _ in points[0].values]
    with (folder / "simulate.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*keys, *COLUMNS, "bottleneck"])
        for point in points:
            figures = [read(point.outcome) for read, _ in COLUMNS.values()]
            writer.writerow([*(value for _, value in point.values), *figures, point.bottleneck.pool])
    plot(points, [folder / "simulate.png", folder / "simulate.svg"])


def as_json(points: Sequence[Point], splits: Sequence[Split]) -> dict[str, Any]:
    """All figures."""
    return {
        "points": [
            {
                "values": dict(point.values),
                "outcome": point.outcome,
                "bottleneck": {
                    "pool": point.bottleneck.pool,
                    "idle": point.bottleneck.idle,
                    "more": MORE,
                    "growth": point.bottleneck.growth,
                },
            }
            for point in points
        ],
        "splits": [
            {"generators": each.generators, "learners": each.learners, "outcome": each.outcome} for each in splits
        ],
        "best_split": (lambda it: {"generators": it.generators, "learners": it.learners})(best(splits))
        if splits
        else None,
    }
