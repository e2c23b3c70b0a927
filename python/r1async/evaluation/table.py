"""Benchmarks' figures in a table, for the terminal and the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.table import Table

from r1async.terminal import wide

FIGURES = ("pass@1", "± problems", "± sampling", "cons@k", "rating", "percentile", "k", "problems", "truncated",
           "not graded", "unfinished", "mean tokens")  # fmt: skip
"""Columns; those that no benchmark has anything in are left out."""
ALWAYS = frozenset(("pass@1", "k", "problems", "truncated"))


def figures_of(results: Iterable[Mapping[str, object]]) -> list[str]:
    """The columns that some result has something in."""
    made = [_cells(result) for result in results]
    return [name for name in FIGURES if name in ALWAYS or any(cells.get(name) for cells in made)]


def figure_cells(result: Mapping[str, object], names: Sequence[str]) -> list[str]:
    cells = _cells(result)
    return [cells.get(name) or "–" for name in names]


def print_results(results: Sequence[Mapping[str, object]], console: Console | None = None) -> None:
    """The table on the terminal."""
    names = figures_of(results)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("benchmark", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        table.add_row(str(result["title"]), *figure_cells(result, names))
    (console or wide()).print(table)


def _cells(result: Mapping[str, object]) -> dict[str, str]:
    abstained, unfinished = result.get("abstained"), result.get("unfinished")
    return {
        "pass@1": percent(result.get("accuracy")),
        "± problems": percent(result.get("stderr")),
        "± sampling": percent(result.get("stderr_sampling")),
        "cons@k": percent(result.get("cons_at_k")),
        "rating": _whole(result.get("rating")),
        "percentile": _decimal(result.get("percentile")),
        "k": str(result.get("k", "")),
        "problems": str(result.get("problems", "")),
        "truncated": percent(result.get("truncated")),
        "not graded": str(abstained) if abstained else "",
        "unfinished": percent(unfinished) if unfinished else "",
        "mean tokens": _whole(result.get("mean_tokens")),
    }


def percent(value: object) -> str:
    return f"{100 * value:.1f} %" if isinstance(value, int | float) else ""


def _whole(value: object) -> str:
    return f"{value:,.0f}" if isinstance(value, int | float) else ""


def _decimal(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, int | float) else ""
