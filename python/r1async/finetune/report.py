"""summary.json and report.html of a fine-tuning run, from the lines that it wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from r1async.files import write_atomic
from r1async.monitor.charts import line_chart
from r1async.monitor.metrics import read_metrics
from r1async.monitor.report import figures, page, section, settings_table, tile_row
from r1async.monitor.summary import duration

Lines = Mapping[int, Mapping[str, Any]]


def lines_of(run_dir: Path, kind: str, line: str) -> Lines:
    """Lines of one sort by step, in order; a step done again after a kill has its last line."""
    return dict(
        sorted({each["step"]: each for each in read_metrics(run_dir / "metrics" / f"{kind}.jsonl", line)}.items())
    )


def summarize(run_dir: Path, kind: str) -> dict[str, Any]:
    """The figures of the training: first and last loss, and the held-out rows before and after."""
    steps, looks = lines_of(run_dir, kind, "step"), lines_of(run_dir, kind, "held_out")
    losses = [each["loss"] for each in steps.values()]
    return {
        "kind": kind,
        "loss": {"first": losses[0], "last": losses[-1], "mean_of_last_10": sum(losses[-10:]) / len(losses[-10:])},
        "tokens": sum(each["tokens"] for each in steps.values()),
        "before": _figures(list(looks.values())[:1]),
        "after": _figures(list(looks.values())[-1:]),
    }


def _figures(looks: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """None without held-out rows."""
    own = ("kind", "time", "run_s")
    return {name: value for name, value in looks[0].items() if name not in own} if looks else None


def write_report(run_dir: Path, summary: Mapping[str, Any], settings: str) -> Path:
    """The page."""
    kind = summary["kind"]
    steps, looks = lines_of(run_dir, kind, "step"), lines_of(run_dir, kind, "held_out")

    def curve(lines: Lines, name: str) -> tuple[list[int], list[float]]:
        found = [(step, each[name]) for step, each in lines.items() if each.get(name) is not None]
        return [step for step, _ in found], [value for _, value in found]

    unit = "nats a pair" if kind == "reward-model" else "nats a token"
    losses = {"trained": curve(steps, "loss"), "held out": curve(looks, "loss")}
    ranked = {"trained": curve(steps, "accuracy"), "held out": curve(looks, "accuracy")}
    drawn = [
        line_chart("loss", "Loss", "Mean over each step's examples, before the step.", losses, ylabel=unit),
        line_chart("ranked", "Pairs ranked right", "The chosen answer scores higher.", ranked, ylabel="share"),
        line_chart("lr", "Learning rate", "Warm-up, then the schedule.", {"lr": curve(steps, "lr")}, ylabel="lr"),
        line_chart(
            "norm", "Gradient norm", "Before clipping.", {"norm": curve(steps, "grad_norm")}, ylabel="gradient norm"
        ),
    ]
    subtitle = escape(f"{kind} · {summary['steps']:,} steps · data {summary['data']} · model {summary['model']}")
    container = OmegaConf.to_container(OmegaConf.create(settings))
    assert isinstance(container, dict), "settings are a table"
    main = "".join(
        [
            tile_row(_tiles(summary)),
            section("", figures([chart for chart in drawn if chart is not None])),
            section("What became of the rows", _rows_table(summary["rows"])),
            section("Settings", settings_table({str(key): value for key, value in container.items()})),
        ]
    )
    path = run_dir / "report.html"
    write_atomic(path, page(str(summary["name"]), subtitle, main).encode())
    return path


def _tiles(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    before, after, loss = summary["before"] or {}, summary["after"] or {}, summary["loss"]
    tiles = [("loss", f"{loss['first']:.3f} → {loss['mean_of_last_10']:.3f}", "first step → mean of the last ten")]
    for name, label in (("loss", "held-out loss"), ("accuracy", "held-out pairs ranked right")):
        if name in after:
            tiles.append((label, f"{before[name]:.3f} → {after[name]:.3f}", "before → after"))
    return [
        *tiles,
        ("tokens trained", f"{summary['tokens']:,}", "prompts and padding-free completions"),
        ("wall time", duration(summary["wall_s"]), f"{summary['cpu_s']:.0f} CPU seconds of the first rank"),
    ]


def _rows_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    reasons = sorted({reason for account in rows.values() for reason in account["dropped"]})
    lines = [(name, [account[name] for account in rows.values()]) for name in ("rows", "examples")]
    lines += [(f"dropped: {reason}", [each["dropped"].get(reason, 0) for each in rows.values()]) for reason in reasons]
    lines += [(name, [each[key] for each in rows.values()]) for name, key in (
        ("cut at data.max_tokens", "truncated"), ("tokens", "tokens"), ("learned tokens", "learned_tokens"),
    )]  # fmt: skip
    head = "<th></th>" + "".join(f'<th class="number">{escape(name.replace("_", " "))}</th>' for name in rows)
    body = "".join(
        f"<tr><td>{escape(label)}</td>" + "".join(f'<td class="number">{value:,}</td>' for value in values) + "</tr>"
        for label, values in lines
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
