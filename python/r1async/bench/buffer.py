"""`r1async bench buffer`: rollouts through the buffer, beside what people would use instead. No GPU.

Processes of their own generate, score, buffer and learn over loopback. Every run begins with batches whose values
are compared with the truth; ways are run in turn, forwards and backwards, and compared within one repeat.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from r1async.bench import BenchError
from r1async.bench.harness import Timed
from r1async.bench.peers import PEERS
from r1async.bench.targets import Target, component_targets, latency_targets, transfer_targets
from r1async.bench.transfer import WARM, Transfer, figures, latencies_ms, quantiles, run_transfer
from r1async.bench.workload import ROLLOUTS_PER_BATCH, Workload
from r1async.terminal import wide

DURABILITIES = ("memory", "group", "sync")
PACED_WARM = 6
"""Batches of a paced run before timing begins: nothing queues up, so only the checked ones and two more."""


def main(arguments: Sequence[str]) -> int:
    """The command line after `r1async bench buffer`; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        result = bench(options)
    except BenchError as error:
        print(f"r1async bench: {error}", file=sys.stderr, flush=True)
        return 1
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    print_result(result)
    return 0


def bench(options: argparse.Namespace) -> dict[str, Any]:
    """Everything asked for, measured.

    Raises:
        BenchError: a process failed, or values differed from the truth.
    """
    work = Workload(seed=options.seed)
    load_before = os.getloadavg()[0]
    transfers = [
        *(Transfer(way="buffer", per_message=k, durability=each) for each in options.durability for k in (16, 1)),
        *(Transfer(way="scorer", per_message=k) for k in (16, 1)),
        *(Transfer(way=peer, per_message=k) for peer in PEERS for k in (16, 1) if options.baselines),
    ]
    runs: defaultdict[str, list[dict[str, float]]] = defaultdict(list)
    for repeat in range(options.repeats):
        for transfer in transfers if repeat % 2 == 0 else reversed(transfers):
            timed = _run(transfer, work, options.producers, options.batches, f"repeat {repeat + 1}")
            runs[transfer.name].append(figures(timed, work, options.batches))
    paced = _paced(work, options) if options.paced_s > 0 else {}
    parts = _components(work, options) if options.components else {}
    targets = [*transfer_targets(runs), *latency_targets(paced), *(component_targets(parts) if parts else [])]
    return {
        "machine": {
            "cpus": os.cpu_count(),
            "cpu": cpu_name(),
            "load_before": load_before,
            "python": sys.version.split()[0],
        },
        "settings": {key: value for key, value in vars(options).items() if key != "json"},
        "transfers": {name: {"median": _medians(each), "runs": each} for name, each in runs.items()},
        "paced_ms": paced,
        "components": parts,
        "targets": [asdict(target) | {"reached": target.reached} for target in targets],
    }


def _run(transfer: Transfer, work: Workload, producers: int, batches: int, where: str) -> Timed:
    print(f"{where}: {transfer.name}", file=sys.stderr, flush=True)
    return run_transfer(transfer, work, producers=producers, batches=batches)


def _paced(work: Workload, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Milliseconds at a steady rate, one completion a message, over all repeats."""
    ways = ("buffer", "scorer", "msgpack") if options.baselines else ("buffer", "scorer")
    batches = max(1, round(options.paced_s * options.rate / ROLLOUTS_PER_BATCH))
    found: defaultdict[str, list[float]] = defaultdict(list)
    for repeat in range(options.repeats):
        for way in ways if repeat % 2 == 0 else reversed(ways):
            print(f"repeat {repeat + 1}: {way}, {options.rate:g} a second", file=sys.stderr, flush=True)
            transfer = Transfer(way=way, per_message=1, rate=options.rate)
            timed = run_transfer(transfer, work, producers=options.producers, batches=batches, warm=PACED_WARM)
            for since, values in latencies_ms(timed, PACED_WARM).items():
                found[f"{way}, from the last {since}"] += values
    return {name: quantiles(values) for name, values in found.items()}


def _components(work: Workload, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    from r1async.bench import components  # which imports torch

    print("components", file=sys.stderr, flush=True)
    components.check_packing(work)
    return {
        "packing": components.packing(work, repeats=60),
        "engine_json": components.engine_json(work, repeats=9),
        "insert_us": components.inserts((1_000, options.held), repeats=200),
        "next_batch_us": components.next_batches((1_000, options.held // 10), repeats=40),
        "last_verdict": components.last_verdicts(work, components.LIVE_GROUPS * options.held // 1_000_000, repeats=200),
        "memory": components.memory(work, rollouts=options.held // 50, chunk_tokens=64),
    }


def _medians(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: median(run[name] for run in runs) for name in runs[0]}


def cpu_name() -> str:
    """As the kernel has it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def print_result(result: Mapping[str, Any], console: Console | None = None) -> None:
    """The result for people."""
    console = console or wide()
    sides = ("consumer", "buffer", "learner", "scorer", "generators")
    table = _table(
        console, "completions", "per s", "MB/s", *(f"{side} us" for side in sides), "buffer MB", "learner MB"
    )
    for name, each in result["transfers"].items():
        middle = each["median"]
        cpu = [_number(middle.get(f"{side}_cpu_us")) for side in sides]
        memory = [_number(middle.get(f"{side}_memory_mb"), 0) for side in ("buffer", "learner")]
        table.add_row(name, _number(middle["completions_per_s"], 0), _number(middle["mb_per_s"]), *cpu, *memory)
    console.print(table)
    if result["paced_ms"]:
        table = _table(console, f"paced, {result['settings']['rate']:g}/s", "p50 ms", "p99 ms", "batches")
        for name, each in result["paced_ms"].items():
            table.add_row(name, _number(each["p50"], 2), _number(each["p99"], 2), _number(each["count"], 0))
        console.print(table)
    for part, each in result["components"].items():
        values = ", ".join(f"{name} {_number(value, 2)}" for name, value in each.items())
        console.print(f"{part}: {values}", highlight=False, soft_wrap=True)
    table = _table(console, "target", "reached", "wanted", "")
    for each in result["targets"]:
        target = Target(**{name: value for name, value in each.items() if name != "reached"})
        wanted = f"{target.sense} {target.limit:g} {target.unit}"
        verdict = "[green]yes[/green]" if target.reached else "[red]no[/red]"
        table.add_row(target.name, f"{target.value:.2f} {target.unit}", wanted, verdict)
    console.print(table)


def _table(console: Console, *columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left")
    return table


def _number(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="r1async bench buffer", description=__doc__)
    parser.add_argument("--baselines", action="store_true", help="also pyzmq without unpacking, and msgpack + numpy")
    parser.add_argument("--no-components", dest="components", action="store_false", help="only whole transfers")
    parser.add_argument("--producers", type=int, default=4, metavar="N", help="generator processes (default 4)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="runs of each way (default 5)")
    parser.add_argument(
        "--batches", type=int, default=200, metavar="N", help=f"timed batches after {WARM} (default 200)"
    )
    parser.add_argument("--paced-s", type=float, default=20.0, metavar="S", help="seconds of a paced run; 0: none")
    parser.add_argument("--rate", type=float, default=400.0, metavar="R", help="completions a second, paced")
    parser.add_argument("--held", type=int, default=1_000_000, metavar="N", help="rollouts held at most (default 10^6)")
    parser.add_argument(
        "--durability", nargs="+", choices=DURABILITIES, default=list(DURABILITIES), help="which of the buffer's"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the rollouts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result here")
    return parser
