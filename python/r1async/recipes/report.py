"""The page of a recipe: curves of its runs, and a table of all checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from r1async.config import ConfigError
from r1async.files import write_atomic, write_json
from r1async.monitor.charts import Chart, line_chart
from r1async.monitor.report import figures, page, section
from r1async.monitor.rundata import Record, RunData, load_run

CURVE_KEYS = ("title", "caption", "metric", "evaluation", "ylabel")


@dataclass(frozen=True, kw_only=True, slots=True)
class Exam:
    """One checkpoint's figures on held-out problems."""

    checkpoint: str
    record: Record

    def value(self, name: str) -> float | None:
        value = self.record.get(name)
        return float(value) if isinstance(value, int | float) else None


def report(
    folder: Path,
    *,
    title: str,
    exams: Mapping[str, str],
    runs: Mapping[str, str],
    curves: Sequence[Mapping[str, str]],
) -> None:
    """Writes `report.html` and `report.json`.

    Args:
        folder: where they go.
        title: of the page.
        exams: by checkpoint, the folder of a run whose last evaluation counts.
        runs: by label, the folder of a run that the curves are of.
        curves: figures, each with `title`, `caption`, and `metric` (a figure of a step) or `evaluation` (one of an
            evaluation, over policy versions); `ylabel` if it is not the title.

    Raises:
        ConfigError: a curve of something else, an examination without figures.
    """
    examined = [_exam(checkpoint, Path(path)) for checkpoint, path in exams.items()]
    data = {label: load_run(Path(path)) for label, path in runs.items()}
    charts = [chart for number, curve in enumerate(curves) if (chart := _chart(number, curve, data)) is not None]
    body = section("All checkpoints", _table(examined)) + section("", figures(charts))
    subtitle = escape(f"{len(examined)} checkpoints")
    write_atomic(folder / "report.html", page(title, subtitle, body).encode())
    write_json(folder / "report.json", {"title": title, "exams": {each.checkpoint: each.record for each in examined}})
    print(_text_table(examined), flush=True)


def _exam(checkpoint: str, folder: Path) -> Exam:
    found = [r for r in load_run(folder).evaluations if r["pass"] == "sampled"]
    if not found:
        raise ConfigError(f"report: {folder} has no sampled evaluation of {checkpoint}")
    kept = {key: value for key, value in found[-1].items() if key != "samples_shown"}
    return Exam(checkpoint=checkpoint, record=kept)


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


COLUMNS = (("pass@1", "accuracy"), ("cons@k", "cons_at_k"), ("reward", "reward"), ("tokens", "mean_tokens"))


def _cells(exam: Exam) -> list[str]:
    """pass@1 with its standard error; a dash where there is no figure."""
    cells = []
    for label, name in COLUMNS:
        value = exam.value(name)
        text = "–" if value is None else f"{value:.1f}" if label == "tokens" else f"{value:.3f}"
        error = exam.value("stderr") if label == "pass@1" else None
        cells.append(text if error is None else f"{text} ± {error:.3f}")
    return cells


def _table(exams: Sequence[Exam]) -> str:
    head = "".join(f'<th class="number">{escape(label)}</th>' for label, _ in COLUMNS)
    rows = "".join(
        f"<tr><td>{escape(exam.checkpoint)}</td>"
        + "".join(f'<td class="number">{escape(cell)}</td>' for cell in _cells(exam))
        + "</tr>"
        for exam in exams
    )
    head = f"<thead><tr><th>checkpoint</th>{head}</tr></thead>"
    return f'<div class="scroll"><table>{head}<tbody>{rows}</tbody></table></div>'


def _text_table(exams: Sequence[Exam]) -> str:
    rows = [["checkpoint", *(label for label, _ in COLUMNS)], *([exam.checkpoint, *_cells(exam)] for exam in exams)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
