"""report.html: what a run did on one page that needs no network, no script and no server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from r1async.files import write_atomic
from r1async.monitor.charts import Chart, charts, styled
from r1async.monitor.pools import PoolFigures, cost, seconds, statuses
from r1async.monitor.rundata import Record, RunData, load_run
from r1async.monitor.summary import audit_line, duration, percent, summarize, waste_line

SAMPLES_SHOWN = 8


def write_report(run_dir: Path, wall_s: float | None = None) -> Path:
    """Write ``report.html`` into the run's folder; wall_s as for `write_summary`."""
    run = load_run(run_dir)
    path = run_dir / "report.html"
    write_atomic(path, render(run, wall_s).encode())
    return path


def render(run: RunData, wall_s: float | None = None) -> str:
    """The page."""
    summary = summarize(run, wall_s)
    drawn = styled(charts, run)
    sections = [
        section("", figures(drawn)) if drawn else "",
        section("Completions before and after", samples_table(run.evaluations)),
        section("Verdicts by pool", pools_table(summary["pools"])),
        section("Where every rollout and token went", audit_table(run.audit)),
        section("Settings", settings_table(run.config)),
    ]
    return page(str(summary["name"]), _subtitle(run, summary), f"{_tiles(summary)}\n{''.join(sections)}")


def page(name: str, subtitle: str, main: str) -> str:
    """A page that needs nothing else; `subtitle` and `main` are HTML."""
    name = escape(name)
    style = files("r1async.monitor").joinpath("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<link rel="icon" href="data:,">\n<title>{name} · r1async</title>\n<style>\n{style}</style>\n</head>\n<body>\n'
        f"<header><h1>{name}</h1><p>{subtitle}</p></header>\n"
        f"<main>\n{main}</main>\n</body>\n</html>\n"
    )


def _subtitle(run: RunData, summary: Record) -> str:
    model, data = run.config.get("model") or {}, run.config.get("data") or {}
    task = data.get("path") or data.get("task")
    parts = [
        f"{summary['steps']:,} steps",
        f"task {task}" if task else "",
        f"model {model['path']}" if model.get("path") else "",
        f"seed {summary['seed']}" if summary["seed"] is not None else "",
    ]
    return escape(" · ".join(part for part in parts if part))


def _tiles(summary: Record) -> str:
    before, after = summary["before"] or {}, summary["after"] or {}
    staleness, audit, waste = summary["staleness"], summary["audit"], summary.get("waste")
    stale = "–" if staleness["mean"] is None else f"{staleness['mean']:.2f}"
    k = after.get("k") or 1
    tiles = [
        ("held-out accuracy", _change(before, after, "accuracy"), f"sampled, {k} a problem"),
        ("greedy accuracy", _change(before, after, "greedy"), "one completion a problem"),
        ("format", _change(before, after, "format"), "of the sampled completions"),
        ("wall time", duration(summary["wall_s"]), f"{summary['completions_trained']:,} completions trained"),
        ("mean staleness", stale, f"p95 {_dash(staleness['p95'])}, max {_dash(staleness['max'])} steps"),
        *([("prefix coverage", percent(waste["prefix_coverage"]), waste_line(waste))] if waste else []),
        ("audit", _balance(audit), "in = trained + dropped + live"),
    ]
    return tile_row(tiles)


def tile_row(tiles: Sequence[tuple[str, str, str]]) -> str:
    """The figures one looks at first: label, value, note."""
    return '<div class="tiles">' + "".join(_tile(*each) for each in tiles) + "</div>"


def _tile(label: str, value: str, note: str) -> str:
    return (
        f'<div class="tile"><div class="label">{label}</div><div class="value">{value}</div>'
        f'<div class="note">{note}</div></div>'
    )


def _dash(value: object) -> str:
    return "–" if value is None else str(value)


def _balance(audit: Mapping[str, object] | None) -> str:
    if not audit:
        return "–"
    return '<span class="good">balanced</span>' if audit.get("balanced") else '<span class="bad">not balanced</span>'


def _change(before: Record, after: Record, name: str) -> str:
    start, end = before.get(name), after.get(name)
    if start is None and end is None:
        return "–"
    if end is None or start is None:
        return percent(end if start is None else start)
    return f'<span class="from">{percent(start)} →</span> {percent(end)}'


def section(title: str, body: str) -> str:
    if not body:
        return ""
    heading = f"<h2>{title}</h2>" if title else ""
    return f"<section>{heading}{body}</section>\n"


def figures(drawn: Sequence[Chart]) -> str:
    cells = [
        f'<figure id="{chart.name}"{" class=wide" if chart.wide else ""}><h3>{chart.title}</h3>{chart.svg}'
        f"<figcaption>{escape(chart.caption)}</figcaption></figure>"
        for chart in drawn
    ]
    return '<div class="figures">' + "\n".join(cells) + "</div>"


def samples_table(evaluations: Sequence[Record]) -> str:
    """The same problems answered by version 0 and by the newest version, side by side."""
    sampled = [record for record in evaluations if record["pass"] == "sampled" and record.get("samples_shown")]
    if not sampled:
        return ""
    first, last = sampled[0], sampled[-1]
    after = {sample["prompt_index"]: sample for sample in last["samples_shown"]}
    pairs = [(sample, after.get(sample["prompt_index"])) for sample in first["samples_shown"]][:SAMPLES_SHOWN]
    same = first is last
    head = f"<th>problem</th><th>version {first['version']}</th>" + (
        "" if same else f"<th>version {last['version']}</th>"
    )
    rows = [
        f'<tr><td class="prompt"><code>{escape(sample["prompt"])}</code>'
        f'<div class="note">answer {escape(sample["answer"])}</div></td>'
        f"{_completion(sample)}{'' if same else _completion(newer)}</tr>"
        for sample, newer in pairs
    ]
    table = f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="scroll"><table class="samples">{table}</table></div>'


def _completion(sample: Record | None) -> str:
    if sample is None:
        return "<td>–</td>"
    mark = {True: '<span class="good">right</span>', False: '<span class="bad">wrong</span>'}.get(
        sample["passed"], "not graded"
    )
    reward = "" if sample.get("reward") is None else f", reward {sample['reward']:.2f}"
    cut = ", cut at max_tokens" if sample.get("truncated") else ""
    note = f"{mark}{reward}, {sample['tokens']} token{'s' * (sample['tokens'] != 1)}{cut}"
    return f'<td><code>{escape(sample["completion"])}</code><div class="note">{note}</div></td>'


def pools_table(pools: Mapping[str, Record]) -> str:
    """What each pool of workers gave, how long it took, and which rollouts took longest."""
    if not pools:
        return ""
    head = "".join(f"<th>{name}</th>" for name in ("pool", "verdicts", "p50", "p99", "statuses", "slowest", "cost"))
    rows = []
    for name, record in pools.items():
        pool = PoolFigures.of(record)
        slow = ", ".join(f"rollout {rollout} {seconds(took)}" for rollout, took in pool.slowest)
        cells = [name, f"{pool.verdicts:,}", seconds(pool.p50_s), seconds(pool.p99_s), statuses(pool), slow, cost(pool)]
        rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def audit_table(audit: Mapping[str, object] | None) -> str:
    """The ledger's accounts: what came in is what was trained, dropped for a reason, or is still live."""
    if not audit:
        return ""
    accounts = {
        name: account for name in ("prompts", "rollouts", "tokens") if isinstance(account := audit.get(name), dict)
    }
    dropped = {name: account.get("dropped") or {} for name, account in accounts.items()}
    reasons = sorted({reason for counts in dropped.values() for reason, count in counts.items() if count})
    rows: list[tuple[str, dict[str, object]]] = [
        ("in", {name: account.get("in", 0) for name, account in accounts.items()}),
        ("trained", {name: account.get("trained", 0) for name, account in accounts.items()}),
        *(
            (f"dropped: {reason}", {name: counts.get(reason, 0) for name, counts in dropped.items()})
            for reason in reasons
        ),
        ("live at the end", {name: account.get("live", 0) for name, account in accounts.items()}),
    ]
    head = "<th></th>" + "".join(f'<th class="number">{name}</th>' for name in accounts)
    body = "".join(
        f"<tr><td>{escape(label)}</td>"
        + "".join(f'<td class="number">{_number(v)}</td>' for v in values.values())
        + "</tr>"
        for label, values in rows
    )
    return f"<p>{escape(audit_line(audit))}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int | float) else escape(str(value))


def settings_table(config: Mapping[str, object]) -> str:
    rows = "".join(
        f"<tr><td>{escape(key)}</td><td><code>{escape(value)}</code></td></tr>" for key, value in flat(config)
    )
    return (
        f"<details><summary>{len(flat(config))} settings, resolved</summary><table>{rows}</table></details>"
        if rows
        else ""
    )


def flat(config: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Settings as ``section.key`` and text."""
    pairs: list[tuple[str, str]] = []
    for key, value in config.items():
        if isinstance(value, Mapping):
            pairs += flat({str(k): v for k, v in value.items()}, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", str(value)))
    return pairs
