"""`r1async bench throughput`: what asynchrony is worth on this machine, as a ratio of paired runs.

One generator and one learner train the same steps from the same start checkpoint, once with lag allowed and once
without, in turn. Rates are taken in the steady middle of each run. A ratio of runs made side by side says more than
either rate: whatever else the machine does slows both. docs/benchmarks.md explains how to read it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from r1async.bench import BenchError
from r1async.monitor.metrics import jsonable
from r1async.monitor.rundata import Record, busy_fractions, cpu_seconds, load_run
from r1async.monitor.summary import percent
from r1async.terminal import wide

DEFAULT_CONFIG = Path("configs/demo.yaml")
WARMUP_STEPS = 10
"""First steps left out: imports, caches, and the lag that has to build up."""
TAIL_STEPS = 3
"""Last steps left out: nothing is generated for the steps after the end, so the learner has the machine to itself."""
FEWEST_STEPS = WARMUP_STEPS + TAIL_STEPS + 5
RUN_DEADLINE_S = 1800.0
TAIL_LINES = 20
"""Lines of a failed run's output that are shown."""

BUSY_LOAD = 0.5
"""Load average per CPU, before the first run, from which the result carries a warning."""

FIXED = (
    "generator.count=1",
    "learner.ranks=1",
    "eval.every=0",
    "eval.prompts=1",
    "eval.samples=1",
    "eval.greedy=false",
    "monitor.terminal=quiet",
    "monitor.tensorboard=false",
)
"""Settings of every run, beside the two that differ. Evaluation cannot be less than one problem, before and after."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One run's steady state."""

    max_staleness: int
    completions_per_s: float
    tokens_per_s: float
    step_s: float
    """Seconds from one step to the next."""
    window_s: float
    role_busy_fraction: Mapping[str, float]
    cpu_s: Mapping[str, float]
    """CPU seconds of each role in the window, children that it waits for not included."""
    staleness_mean: float | None


def main(arguments: Sequence[str]) -> int:
    """The command line after `r1async bench`; returns the exit code."""
    parser = _parser()
    options, settings = parser.parse_known_args(arguments)
    unknown = [each for each in settings if each.startswith("-")]
    config, overrides = options.config, [*options.overrides, *settings]
    if "=" in str(config):  # no CONFIG was given, and this is the first setting
        config, overrides = DEFAULT_CONFIG, [str(config), *overrides]
    if unknown:
        parser.error(f"unknown option {unknown[0]}")
    if not config.is_file():
        parser.error(f"{config}: no such file")
    if options.steps < FEWEST_STEPS:
        parser.error(f"--steps: must be at least {FEWEST_STEPS}, got {options.steps}")
    load_before = os.getloadavg()[0]
    try:
        pairs = run_pairs(config, overrides, steps=options.steps, pairs=options.pairs, lag=options.lag, run=run_once)
    except BenchError as error:
        print(f"r1async bench: {error}", file=sys.stderr, flush=True)
        return 1
    result = compare(pairs) | {
        "config": str(config),
        "overrides": overrides,
        "steps": options.steps,
        "warmup_steps": WARMUP_STEPS,
        "tail_steps": TAIL_STEPS,
        "cpus": os.cpu_count(),
        "load_before": load_before,
    }
    if options.json is not None:
        options.json.write_text(json.dumps(jsonable(result), indent=2) + "\n")
    print_result(result)
    return 0


def run_pairs(
    config: Path,
    overrides: Sequence[str],
    *,
    steps: int,
    pairs: int,
    lag: int,
    run: Callable[[Path, Sequence[str], Path], None],
) -> list[tuple[Measurement, Measurement]]:
    """Measure asynchronous and synchronous runs in turn; who goes first alternates too.

    Args:
        run: does one run: config file, overrides, the run's folder that it must leave behind.

    Returns:
        For each pair, the asynchronous measurement and the synchronous one.
    """
    measured = []
    with tempfile.TemporaryDirectory(prefix="r1async-bench-") as folder:
        for pair in range(pairs):
            by_lag: dict[int, Measurement] = {}
            for max_staleness in (lag, 0) if pair % 2 == 0 else (0, lag):
                name = f"pair{pair}-staleness{max_staleness}"
                settings = (
                    *overrides,
                    *FIXED,
                    f"name={name}",
                    f"runs_dir={folder}",
                    f"steps={steps}",
                    f"learner.checkpoint_every={steps + 1}",
                    f"staleness.max_staleness={max_staleness}",
                )
                run_dir = Path(folder) / name
                run(config, settings, run_dir)
                by_lag[max_staleness] = measure(run_dir, max_staleness)
            measured.append((by_lag[lag], by_lag[0]))
    return measured


def run_once(config: Path, settings: Sequence[str], run_dir: Path) -> None:
    """`r1async run` as a process of its own.

    Raises:
        BenchError: it did not end well.
    """
    print(f"run: {run_dir.name}", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "r1async", "run", str(config), *settings]
    try:
        ended = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=RUN_DEADLINE_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{run_dir.name} did not end within {RUN_DEADLINE_S:.0f} s") from error
    if ended.returncode != 0:
        tail = "\n".join(ended.stdout.splitlines()[-TAIL_LINES:])
        raise BenchError(f"{run_dir.name} ended with exit code {ended.returncode}:\n{tail}")


def measure(run_dir: Path, max_staleness: int) -> Measurement:
    """A run's rates between the end of its warm-up and the beginning of its tail.

    Raises:
        BenchError: fewer steps than warm-up and tail.
    """
    run = load_run(run_dir)
    steps = run.steps[WARMUP_STEPS - 1 : len(run.steps) - TAIL_STEPS]
    if len(run.steps) < WARMUP_STEPS + TAIL_STEPS + 1:
        raise BenchError(f"{run_dir.name} has {len(run.steps)} steps; want {WARMUP_STEPS + TAIL_STEPS + 1} at least")
    start, end = steps[0]["time"], steps[-1]["time"]
    inside, window_s = steps[1:], end - start
    ages = [record["staleness/mean"] for record in inside if record.get("staleness/mean") is not None]
    return Measurement(
        max_staleness=max_staleness,
        completions_per_s=sum(record["rollouts"] for record in inside) / window_s,
        tokens_per_s=sum(record.get("tokens", 0) for record in inside) / window_s,
        step_s=window_s / len(inside),
        window_s=window_s,
        role_busy_fraction=busy_fractions(run.bins, start, end),
        cpu_s=cpu_seconds(run.bins, start, end),
        staleness_mean=sum(ages) / len(ages) if ages else None,
    )


def compare(pairs: Sequence[tuple[Measurement, Measurement]]) -> Record:
    """The benchmark's result: medians over pairs, and every pair."""
    ratios = [asynchronous.completions_per_s / synchronous.completions_per_s for asynchronous, synchronous in pairs]
    lagging, synchronous = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    busy = _medians([each.role_busy_fraction for each in lagging])
    return {
        "async_over_sync": median(ratios),
        "role_busy_fraction": busy,
        "bottleneck": max(busy, key=lambda role: busy[role]) if busy else None,
        "max_staleness": lagging[0].max_staleness,
        "completions_per_s": {
            "async": median(each.completions_per_s for each in lagging),
            "sync": median(each.completions_per_s for each in synchronous),
        },
        "sync_role_busy_fraction": _medians([each.role_busy_fraction for each in synchronous]),
        "cpu_s": {
            "async": _medians([each.cpu_s for each in lagging]),
            "sync": _medians([each.cpu_s for each in synchronous]),
        },
        "pairs": [
            {"ratio": ratio, "async": asdict(a), "sync": asdict(s)} for ratio, (a, s) in zip(ratios, pairs, strict=True)
        ],
    }


def print_result(result: Mapping[str, Any], console: Console | None = None) -> None:
    """The result for people."""
    console = console or wide()
    rate, lag = result["completions_per_s"], result["max_staleness"]
    ratios = ", ".join(f"{pair['ratio']:.2f}" for pair in result["pairs"])
    console.print(
        f"async over sync: [bold]{result['async_over_sync']:.2f}x[/bold] completions trained per second "
        f"(max_staleness {lag}: {rate['async']:.0f}/s, 0: {rate['sync']:.0f}/s; pairs: {ratios})",
        highlight=False,
        soft_wrap=True,
    )
    table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False)
    for column in ("role", "busy async", "busy sync", "CPU s async", "CPU s sync"):
        table.add_column(column, justify="left" if column == "role" else "right")
    for role, share in sorted(result["role_busy_fraction"].items(), key=lambda item: -item[1]):
        seconds = [result["cpu_s"][way].get(role, 0.0) for way in ("async", "sync")]
        shares = (share, result["sync_role_busy_fraction"].get(role))
        table.add_row(role, *(percent(each) for each in shares), *(f"{each:.1f}" for each in seconds))
    console.print(table)
    console.print(f"bottleneck: [bold]{result['bottleneck']}[/bold]", highlight=False)
    load, cpus = result.get("load_before", 0.0), result.get("cpus") or 1
    if load > BUSY_LOAD * cpus:
        console.print(
            f"[yellow]others were busy[/yellow]: load {load:.1f} on {cpus} CPUs before the first run; "
            "with no core to spare neither way of training can overlap, and the ratio says little",
            highlight=False,
            soft_wrap=True,
        )


def _medians(each: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """By key, over those that have it; the busiest first."""
    keys = {key for mapping in each for key in mapping}
    found = {key: median(mapping[key] for mapping in each if key in mapping) for key in keys}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="r1async bench", description="Measure this machine with real runs.")
    commands = parser.add_subparsers(required=True, metavar="BENCHMARK")
    commands.add_parser("buffer", help="rollouts through the buffer and its rivals: `r1async bench buffer --help`")
    commands.add_parser("weights", help="size and cost of a weight push and its rivals: `r1async bench weights --help`")
    throughput = commands.add_parser(
        "throughput",
        help="asynchronous over synchronous training, completions per second",
        description="Paired runs of one generator and one learner with and without lag; the median of their ratios.",
    )
    throughput.add_argument("config", nargs="?", type=Path, default=DEFAULT_CONFIG, metavar="CONFIG")
    throughput.add_argument("overrides", nargs="*", metavar="key=value", help="settings of every run")
    throughput.add_argument("--json", type=Path, metavar="FILE", help="also write the result here")
    throughput.add_argument("--pairs", type=_positive, default=3, help="pairs of runs (default 3)")
    throughput.add_argument("--steps", type=_positive, default=60, help="optimizer steps of each run (default 60)")
    throughput.add_argument(
        "--lag", type=_positive, default=2, help="max_staleness of the asynchronous runs (default 2)"
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, got {text!r}")
    return int(text)
