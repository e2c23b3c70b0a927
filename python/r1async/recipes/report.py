"""The page of a recipe: tables of all checkpoints on all benchmarks, what they differ by, curves of the runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path

from r1async.config import ConfigError
from r1async.evaluation.compare import signed
from r1async.evaluation.table import figure_cells, figures_of, percent
from r1async.files import write_atomic, write_json
from r1async.monitor.charts import Chart, line_chart
from r1async.monitor.report import figures, page, section
from r1async.monitor.rundata import Record, RunData, load_run
from r1async.recipes.examined import (
    Benchmark,
    Folders,
    Pair,
    differences,
    figures_alone,
    read_exams,
    refuse_unknown,
)

CURVE_KEYS = ("title", "caption", "metric", "evaluation", "ylabel")
Cells = Sequence[Sequence[str]]


def report(
    folder: Path,
    *,
    title: str,
    exams: Mapping[str, str | Folders],
    runs: Mapping[str, str] | None = None,
    curves: Sequence[Mapping[str, str]] = (),
    compare: Sequence[Sequence[str]] = (),
    tables: Mapping[str, str] | None = None,
) -> None:
    """Writes `report.html`, which needs no network, and `report.json`.

    Args:
        folder: where they go.
        title: of the page.
        exams: by checkpoint, the folder of an `eval`, or of a run whose last evaluation counts; or several such tables
            by name.
        runs: by label, the folder of a run that the curves are of.
        curves: figures, each with `title`, `caption`, and `metric` (a figure of a step) or `evaluation` (one of an
            evaluation, over policy versions); `ylabel` if it is not the title.
        compare: pairs of checkpoints whose difference is shown besides that of each and the one before it.
        tables: by title, a JSON file with `head` (a list of texts) and `rows` (lists of as many).

    Raises:
        ConfigError: a curve of something else, an examination without figures, a pair of nobody.
    """
    benchmarks = read_exams(exams)
    refuse_unknown(benchmarks, compare)
    pairs = {each.name: differences(each, compare) for each in benchmarks}
    data = {label: load_run(Path(path)) for label, path in (runs or {}).items()}
    charts = [chart for number, curve in enumerate(curves) if (chart := _chart(number, curve, data)) is not None]
    checkpoints = _checkpoints(benchmarks)
    sections = [
        section("All checkpoints", _table(_overview(benchmarks))) if len(benchmarks) > 1 else "",
        *(section(escape(each.title), _details(each, pairs[each.name])) for each in benchmarks),
        *(section(escape(name), _file_table(Path(path))) for name, path in (tables or {}).items()),
        section("", figures(charts)) if charts else "",
    ]
    subtitle = f"{len(checkpoints)} checkpoints · {', '.join(each.title for each in benchmarks)}"
    write_atomic(folder / "report.html", page(title, escape(subtitle), "".join(sections)).encode())
    write_json(folder / "report.json", {"title": title, **_record(benchmarks, pairs)})
    print(_text_table(_overview(benchmarks)), flush=True)


def _record(benchmarks: Sequence[Benchmark], pairs: Mapping[str, Sequence[Pair]]) -> Record:
    return {
        "exams": {
            each.name: {checkpoint: figures_alone(record) for checkpoint, record in each.results.items()}
            for each in benchmarks
        },
        "differences": [
            {"from": pair.first, "to": pair.second, **asdict(pair.difference)}
            for each in benchmarks
            for pair in pairs[each.name]
        ],
    }


def _checkpoints(benchmarks: Sequence[Benchmark]) -> list[str]:
    return list(dict.fromkeys(name for each in benchmarks for name in each.results))


def _overview(benchmarks: Sequence[Benchmark]) -> Cells:
    """A row for each checkpoint, a column for each benchmark: pass@1 and its standard error over problems, or the mean
    reward where nothing says what is right."""
    head = ["checkpoint", *(each.title for each in benchmarks)]
    return [head, *([name, *(_headline(each.results.get(name)) for each in benchmarks)]
                    for name in _checkpoints(benchmarks))]  # fmt: skip


def _headline(record: Record | None) -> str:
    if record is None:
        return "–"
    value, error = record.get("accuracy"), record.get("stderr")
    if value is None:
        reward = record.get("reward")
        return "–" if reward is None else f"reward {reward:.3f}"
    return percent(value) + ("" if error is None else f" ± {percent(error)}")


def _details(benchmark: Benchmark, pairs: Sequence[Pair]) -> str:
    """All figures of each checkpoint, and the differences."""
    names, rewards = figures_of(benchmark.results.values()), _rewards(benchmark)
    head = ["checkpoint", *names, *(["reward"] if rewards else [])]
    rows = [
        [checkpoint, *figure_cells(record, names), *([rewards[checkpoint]] if rewards else [])]
        for checkpoint, record in benchmark.results.items()
    ]
    if not pairs:
        return _table([head, *rows])
    note = "Difference of pass@1, problem by problem; ± over problems, and from sampling alone."
    return f"{_table([head, *rows])}<p>{note}</p>{_table(_difference_cells(pairs))}"


def _rewards(benchmark: Benchmark) -> dict[str, str]:
    """Mean rewards, where a training run's evaluation has them."""
    found = {name: record.get("reward") for name, record in benchmark.results.items()}
    told = {name: "–" if value is None else f"{value:.3f}" for name, value in found.items()}
    return told if any(value is not None for value in found.values()) else {}


def _difference_cells(pairs: Sequence[Pair]) -> Cells:
    head = ["", "difference", "± problems", "± sampling", "95 %", "better", "worse", "problems"]
    rows = []
    for pair in pairs:
        each = pair.difference
        interval = "–" if each.low is None else f"{signed(each.low)} to {signed(each.high)}"
        rows.append(
            [f"{pair.first} → {pair.second}", signed(each.difference), percent(each.stderr) or "–",
             percent(each.stderr_sampling) or "–", interval, str(each.better), str(each.worse), str(each.problems)]
        )  # fmt: skip
    return [head, *rows]


def _table(cells: Cells, *, others: str = ' class="number"') -> str:
    """`others`: attributes of all cells but the first of a row."""
    head, *rows = cells

    def row(tag: str, first: str, *rest: str) -> str:
        return f"<tr><{tag}>{escape(first)}</{tag}>" + "".join(
            f"<{tag}{others}>{escape(each)}</{tag}>" for each in rest
        ) + "</tr>"  # fmt: skip

    body = "".join(row("td", *each) for each in rows)
    return f'<div class="scroll"><table><thead>{row("th", *head)}</thead><tbody>{body}</tbody></table></div>'


def _file_table(path: Path) -> str:
    table = json.loads(path.read_text())
    return _table([table["head"], *table["rows"]], others="")


def _text_table(rows: Cells) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _chart(number: int, curve: Mapping[str, str], runs: Mapping[str, RunData]) -> Chart | None:
    """None if no run has the figure."""
    unknown = [key for key in curve if key not in CURVE_KEYS]
    if unknown or ("metric" in curve) == ("evaluation" in curve) or "title" not in curve:
        raise ConfigError(
            f"report: curves[{number}] must have title, and metric or evaluation; it may have caption and ylabel; got "
            f"{json.dumps(dict(curve))}"
        )
    drawn = {
        label: run.curve(curve["metric"]) if "metric" in curve else _evaluated(run, curve["evaluation"])
        for label, run in runs.items()
    }
    title = curve["title"]
    caption, ylabel = curve.get("caption", ""), curve.get("ylabel", title)
    return line_chart(f"curve-{number}", title, caption, drawn, ylabel=ylabel, smooth="metric" in curve)


def _evaluated(run: RunData, name: str) -> tuple[list[int], list[float]]:
    points = [
        (r["version"], r[name])
        for r in run.evaluations
        if r["pass"] == "sampled" and isinstance(r.get(name), int | float)
    ]
    return [int(version) for version, _ in points], [float(value) for _, value in points]
