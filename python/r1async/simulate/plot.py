"""A picture of simulations: over the values of the first swept key, a line or a row of bars for each of the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from r1async.simulate.model import Outcome
from r1async.simulate.run import POOLS, Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLES = ("-", "--", ":")
"""Of the figures that share a panel."""


def plot(points: Sequence[Point], paths: Sequence[Path]) -> None:
    """Speed, idle shares, length bias; and staleness and waste as shares of tokens."""
    from matplotlib.figure import Figure

    lines: dict[str, list[Point]] = {}
    for point in points:
        lines.setdefault(", ".join(f"{key}={value}" for key, value in point.values[1:]), []).append(point)
    places = list(dict.fromkeys(_place(point) for point in points))
    canvas = Figure(figsize=(11.0, 6.4), layout="constrained")
    (speed, tokens, idle), (staleness, waste, lengths) = canvas.subplots(2, 3)
    _draw(speed, lines, places, {"steps/h": lambda it: it["steps_per_s"] * 3600})
    _draw(tokens, lines, places, {"trained tokens/s": lambda it: it["trained_tokens_per_s"]})
    _draw(idle, lines, places, {f"{pool} idle": _idle(pool) for pool in POOLS})
    _stack(staleness, lines, places, "trained tokens by staleness", lambda it: _ages(it["staleness"]["histogram"]))
    _stack(waste, lines, places, "waste by reason", lambda it: it["waste"])
    ratios = ("length ratio", "length_ratio"), ("prefix coverage", "prefix_coverage")
    _draw(lengths, lines, places, {label: lambda it, name=name: it[name] for label, name in ratios})
    for axes in (speed, tokens, idle, staleness, waste, lengths):
        axes.set_xticks(range(len(places)), places)
        axes.set_xlabel(points[0].values[0][0] if points[0].values else "")
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
        axes.grid(alpha=0.3)
    if any(lines):
        speed.legend(fontsize="small")
    for path in paths:
        canvas.savefig(path, dpi=150)


def _draw(
    axes: Axes,
    lines: Mapping[str, Sequence[Point]],
    places: Sequence[str],
    figures: Mapping[str, Callable[[Outcome], float]],
) -> None:
    """A line for each key but the first, wider ones below, so that equal ones do not hide each other."""
    for style, (name, read) in zip(STYLES, figures.items(), strict=False):
        for number, (label, line) in enumerate(lines.items()):
            where = [places.index(_place(point)) for point in line]
            width = 1.2 + 1.6 * (len(lines) - 1 - number)
            values = [read(point.outcome) for point in line]
            shown = label if len(figures) == 1 else name if number == 0 else None
            color = f"C{number}"
            axes.plot(where, values, style, marker="o", markersize=3 + width, lw=width, color=color, label=shown)
    axes.set_ylabel(", ".join(figures) if len(figures) == 1 else "share of time" if len(figures) == 3 else "")
    if len(figures) > 1:
        axes.legend(fontsize="small")


def _stack(
    axes: Axes,
    lines: Mapping[str, Sequence[Point]],
    places: Sequence[str],
    title: str,
    shares: Callable[[Outcome], Mapping[str, float]],
) -> None:
    """Bars side by side in the order of the lines, each of the parts that `shares` names."""
    width, names = 0.8 / len(lines), {}
    for number, line in enumerate(lines.values()):
        for point in line:
            where, bottom = places.index(_place(point)) + (number - (len(lines) - 1) / 2) * width, 0.0
            for name, share in shares(point.outcome).items():
                color = names.setdefault(name, f"C{len(names) % 10}")
                axes.bar(where, share, 0.9 * width, bottom=bottom, color=color)
                bottom += share
    for name, color in names.items():
        axes.bar(0, 0, color=color, label=name)
    axes.set_ylabel(title)
    if names:
        axes.legend(fontsize="small")


def _idle(pool: str) -> Callable[[Outcome], float]:
    return lambda it: it["pools"][pool]["idle"]


def _ages(histogram: Mapping[str, int]) -> dict[str, float]:
    tokens = sum(histogram.values())
    return {age: histogram[age] / tokens for age in sorted(histogram, key=int)}


def _place(point: Point) -> str:
    return point.values[0][1] if point.values else "all"
