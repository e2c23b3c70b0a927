"""What a run came to: summary.json in its folder, and the same on the screen. docs/metrics.md explains each field."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from r1async.files import write_json
from r1async.monitor.pools import PoolFigures, cost, pool_figures, seconds, statuses
from r1async.monitor.rundata import Record, RunData, busy_fractions, load_run, staleness_histogram


def write_summary(run_dir: Path, wall_s: float | None = None) -> Record:
    """Write ``summary.json`` and return what it says.

    Args:
        run_dir: the run's folder.
        wall_s: seconds the run took; from its first to its newest line if None.
    """
    summary = summarize(load_run(run_dir), wall_s)
    write_json(run_dir / "summary.json", summary)
    return summary


def summarize(run: RunData, wall_s: float | None = None) -> Record:
    """The summary of a run's data; what is not known is None."""
    audit = run.audit or {}
    rollouts, tokens = audit.get("rollouts") or {}, audit.get("tokens") or {}
    if wall_s is None and run.started is not None and run.ended is not None:
        wall_s = run.ended - run.started
    histogram = staleness_histogram(run.steps)
    last = run.steps[-1] if run.steps else {}
    before, after = before_and_after(run.evaluations)
    return {
        "name": run.config.get("name", run.run_dir.name),
        "seed": run.config.get("seed"),
        "wall_s": wall_s,
        "cold_start": run.cold_start,
        "before": before,
        "after": after,
        "steps": len(run.steps),
        "completions_trained": rollouts.get("trained", sum(int(r.get("rollouts", 0)) for r in run.steps)),
        "policy_version": last.get("version", 0),
        "staleness": {"mean": histogram.mean, "p95": histogram.quantile(0.95), "max": histogram.max},
        "waste": _waste(run.buffer),
        "tokens": {
            "generated": tokens.get("in"),
            "trained": tokens.get("trained"),
            "observations": sum(int(record.get("observation_tokens", 0)) for record in run.steps),
            "dropped_by_reason": tokens.get("dropped") or {},
        },
        "role_busy_fraction": busy_fractions(run.bins, *training_window(run.steps)),
        "engines": engine_figures(run.engines),
        "rewards": rewards(run.config),
        "pools": {name: pool.as_record() for name, pool in last_pools(run.buffer).items()},
        "incidents": incident_counts(run.incidents),
        "quarantined": quarantined(run.incidents),
        "stall": run.stall,
        "audit": run.audit,
    }


def _waste(buffer: Sequence[Record]) -> Record | None:
    """What the staleness rule cost, from the buffer's last figures."""
    figures = next((record["buffer"] for record in reversed(buffer) if "waste_by_source" in record["buffer"]), None)
    if figures is None:
        return None
    shown = ("prefix_coverage", "length_quarters", "closed_early", "late_members", "holds", "held_s", "pacing")
    return {"by_source": figures["waste_by_source"], **{name: figures[name] for name in shown}}


def waste_line(waste: Record) -> str:
    """Tokens that died of age as shares of those generated, by why; what the beginnings of long rollouts lost."""
    sources = waste["by_source"].values()
    generated = max(1, sum(source["generated"] for source in sources))
    shares = {why: sum(source[why] for source in sources) / generated for why in ("own_length", "siblings", "queue")}
    reasons = ", ".join(f"{percent(share)} {why.replace('_', ' ')}" for why, share in shares.items())
    return (
        f"{reasons}; prefix coverage {percent(waste['prefix_coverage'])}; {waste['late_members']:,} late members; "
        f"held {duration(waste['held_s'])}"
    )


def engine_figures(engines: Mapping[str, Sequence[Record]]) -> dict[str, Record]:
    """By generator: its engine, how long weights paused it, and how its logprobs agreed with the learner's forward."""
    figures = {}
    for name, lines in engines.items():
        pauses = [each["pause_s"] for each in lines if each["kind"] == "install"]
        canaries = [each for each in lines if each["kind"] == "canary"]
        figures[name] = {
            "engine": lines[-1]["engine"] if lines else None,
            "installs": len(pauses),
            "pause_s": {"median": statistics.median(pauses), "max": max(pauses)} if pauses else None,
            "canaries": len(canaries),
            "mismatch_mean": max((each["mismatch_mean"] for each in canaries), default=None),
            "mismatch_max": max((each["mismatch_max"] for each in canaries), default=None),
        }
    return figures


def engine_line(figures: Record) -> str:
    """One generator's engine in words."""
    words = [figures["engine"]]
    if figures["pause_s"]:
        pause = figures["pause_s"]
        words.append(f"{figures['installs']} installs, paused {1000 * pause['median']:.1f} ms")
    if figures["canaries"]:
        words.append(f"mismatch {figures['mismatch_mean']:.1g} nats in the worst of {figures['canaries']} canaries")
    return "; ".join(words)


def rewards(config: Record) -> dict[str, Record]:
    """The weights of each domain's reward; those of all others under `others`."""
    reward = config.get("reward") or {}
    domains = {name: domain["weights"] for name, domain in (reward.get("domains") or {}).items()}
    return {"others": reward.get("weights") or {}, **domains}


def last_pools(buffer: Sequence[Record]) -> dict[str, PoolFigures]:
    """What the scorers' pools told last, before the scorers left."""
    told = (pool_figures(record.get("peers") or []) for record in reversed(buffer))
    return next((pools for pools in told if pools), {})


def pool_line(pool: PoolFigures) -> str:
    """One pool in words."""
    words = [f"{pool.verdicts:,} verdicts, p50 {seconds(pool.p50_s)}, p99 {seconds(pool.p99_s)}", statuses(pool)]
    slow = ", ".join(f"rollout {rollout} {seconds(took)}" for rollout, took in pool.slowest[:3])
    return "; ".join(word for word in [*words, cost(pool), f"slowest: {slow}" if slow else ""] if word)


def incident_counts(incidents: Sequence[Record]) -> dict[str, int]:
    """Faults by name and by what was done, the most frequent first."""
    return dict(Counter(f"{each['name']}: {each['act']}" for each in incidents).most_common())


def quarantined(incidents: Sequence[Record]) -> list[Record]:
    """Prompts that were set aside: their place in the source, their group, and why."""
    return [
        {"prompt": prompt, "groups": each["groups"], "why": each["text"]}
        for each in incidents
        if each["name"] == "poison_prompt"
        for prompt in each["prompts"]
    ]


def training_window(steps: Sequence[Record]) -> tuple[float, float]:
    """Unix times of the first step's end and the last one's; everything, if there are fewer than two.

    Start-up is no part of a busy fraction: every role is busy importing then.
    """
    if len(steps) < 2:
        return -math.inf, math.inf
    return steps[0]["time"], steps[-1]["time"]


def before_and_after(evaluations: Sequence[Record]) -> tuple[Record | None, Record | None]:
    """Version 0, and the newest version that was evaluated, if that is another one."""
    versions = sorted({record["version"] for record in evaluations})
    before = _version_figures(evaluations, 0) if 0 in versions else None
    after = _version_figures(evaluations, versions[-1]) if versions and versions[-1] > 0 else None
    return before, after


def _version_figures(evaluations: Sequence[Record], version: int) -> Record:
    by_pass = {record["pass"]: record for record in evaluations if record["version"] == version}
    sampled, greedy = by_pass.get("sampled", {}), by_pass.get("greedy", {})
    known = sampled or greedy
    return {
        "version": version,
        "epoch": known.get("epoch"),
        "hash": known.get("hash"),
        "accuracy": sampled.get("accuracy"),
        "stderr": sampled.get("stderr"),
        "greedy": greedy.get("accuracy"),
        "greedy_stderr": greedy.get("stderr"),
        "format": sampled.get("format"),
        "reward": sampled.get("reward"),
        "pass_at_k": sampled.get("pass_at_k"),
        "cons_at_k": sampled.get("cons_at_k"),
        "k": sampled.get("k"),
        "mean_tokens": sampled.get("mean_tokens"),
        "problems": known.get("problems"),
    }


def audit_line(audit: Mapping[str, object] | None) -> str:
    """The ledger's balance in one line: what came in is what was trained, dropped or is still live."""
    if not audit:
        return "no audit yet"
    rollouts = audit.get("rollouts")
    if not isinstance(rollouts, dict):
        return "no audit yet"
    dropped = rollouts.get("dropped") or {}
    lost = sum(dropped.values()) if isinstance(dropped, dict) else dropped
    balanced = "balanced" if audit.get("balanced") else "NOT BALANCED"
    return (
        f"{balanced}: {rollouts.get('in', 0):,} rollouts in = {rollouts.get('trained', 0):,} trained"
        f" + {lost:,} dropped + {rollouts.get('live', 0):,} live"
    )


def percent(value: object, stderr: object = None) -> str:
    if not isinstance(value, int | float):
        return "–"
    error = f" ± {100 * stderr:.1f}" if isinstance(stderr, int | float) else ""
    return f"{100 * value:.1f}{error} %"


def duration(seconds: float | None) -> str:
    """Seconds as a person says them: 43 s, 2 min 05 s, 1 h 10 min."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def print_summary(summary: Record, console: Console | None = None) -> None:
    """The summary as the run's last words on the screen."""
    (console or Console()).print(
        Panel(
            Group(_held_out(summary), Text(), _figures(summary)), title=f"[bold]{summary['name']}[/bold]", expand=False
        )
    )


def _held_out(summary: Record) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    before, after = summary["before"] or {}, summary["after"] or {}
    k = after.get("k") or before.get("k") or 1
    for column in ("held-out", "before", "after"):
        table.add_column(column, justify="left" if column == "held-out" else "right")
    for label, name, error in (
        ("accuracy", "accuracy", "stderr"),
        ("greedy", "greedy", "greedy_stderr"),
        ("format", "format", ""),
    ):
        if any(side.get(name) is not None for side in (before, after)):
            table.add_row(label, *(percent(side.get(name), side.get(error)) for side in (before, after)))
    rewards = [side.get("reward") for side in (before, after)]
    table.add_row("reward", *("–" if x is None else f"{x:.3f}" for x in rewards))
    if k > 1 and any(side.get("pass_at_k") for side in (before, after)):
        table.add_row(f"pass@{k}", *(percent((side.get("pass_at_k") or {}).get(str(k))) for side in (before, after)))
        table.add_row(f"cons@{k}", *(percent(side.get("cons_at_k")) for side in (before, after)))
    lengths = [side.get("mean_tokens") for side in (before, after)]
    table.add_row("tokens a completion", *("–" if x is None else f"{x:.1f}" for x in lengths))
    return table


def _figures(summary: Record) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 0))
    staleness, tokens = summary["staleness"], summary["tokens"]
    table.add_row("time", duration(summary["wall_s"]))
    table.add_row("trained", f"{summary['steps']:,} steps, {summary['completions_trained']:,} completions")
    if staleness["mean"] is not None:
        table.add_row(
            "staleness", f"mean {staleness['mean']:.2f}, p95 {staleness['p95']}, max {staleness['max']} steps"
        )
    if summary["waste"] is not None:
        table.add_row("over age", waste_line(summary["waste"]))
    if tokens["generated"]:
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in tokens["dropped_by_reason"].items() if count)
        observed = f", {tokens['observations']:,} of them observations" if tokens["observations"] else ""
        table.add_row(
            "tokens",
            f"{tokens['generated']:,} generated, {tokens['trained']:,} trained{observed}; dropped: {dropped or 'none'}",
        )
    busy = ", ".join(f"{role} {percent(share)}" for role, share in summary["role_busy_fraction"].items())
    table.add_row("busy", busy or "–")
    for name, figures in summary["engines"].items():
        if figures["engine"]:
            table.add_row(name, engine_line(figures))
    for name, record in summary["pools"].items():
        table.add_row(f"pool {name}", pool_line(PoolFigures.of(record)))
    faults = ", ".join(f"{count} {name}" for name, count in summary["incidents"].items())
    if faults:
        table.add_row("faults", faults)
    if summary["quarantined"]:
        table.add_row("quarantined", "; ".join(str(each["why"]) for each in summary["quarantined"]))
    if summary["stall"]:
        ended = "ended by" if summary["stall"]["ended"] else "newest standstill:"
        table.add_row("stall", f"{ended} {summary['stall']['name']}: {summary['stall']['text']}")
    table.add_row("audit", audit_line(summary["audit"]))
    return table
