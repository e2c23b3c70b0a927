"""`r1async eval compare A B`: what two checkpoints' results differ by, problem by problem.

Problems that are hard for one are hard for the other, so the difference is taken for each problem first: its standard
error over problems is what the pair supports, and smaller than either's own (Miller, arXiv 2411.00640, section 4).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from r1async.config import ConfigError
from r1async.evaluation.metrics import Z95, estimate
from r1async.evaluation.result import Record, read_results
from r1async.evaluation.table import percent
from r1async.terminal import wide

HELP = """Paired difference of two checkpoints on the benchmarks that both were evaluated on.

  r1async eval compare runs/math/evaluations/v0 runs/math/evaluations/v500
  r1async eval compare runs/base-eval-model-1a2b3c4d runs/tuned-eval-model-5e6f7a8b --json

A and B are runs' folders (their newest version), folders of versions, or results (.json). Both must have asked the same
problems in the same way.

exit codes: 0 done, 2 a mistake in the files or on the command line"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """B less A on one benchmark."""

    benchmark: str
    title: str
    a: float
    """pass@1 of A over the problems that both have samples of."""
    b: float
    difference: float
    """Mean over problems of B's share less A's."""
    stderr: float | None
    """Of the difference, over problems."""
    stderr_sampling: float | None
    """From sampling alone: these very problems."""
    low: float | None
    """95 % interval of the difference, as a claim about problems like these."""
    high: float | None
    better: int
    """Problems that B passes more often."""
    worse: int
    problems: int
    left_out: int
    """Problems that one of them has no graded sample of."""


def compare(a: Mapping[str, object], b: Mapping[str, object]) -> Difference:
    """Two results of one benchmark.

    Raises:
        ConfigError: they asked other problems, or sampled in another way; the message says what differs.
    """
    if a["digest"] != b["digest"]:
        raise ConfigError(f"{b['benchmark']}: {_what_differs(a, b)}, so the two cannot be compared; evaluate one again")
    pairs = [
        (first, second)
        for first, second in zip(_problems(a), _problems(b), strict=True)
        if first["samples"] and second["samples"]
    ]
    if not pairs:
        raise ConfigError(f"{b['benchmark']}: no problem has graded samples of both")
    shares = [(one["passed"] / one["samples"], two["passed"] / two["samples"]) for one, two in pairs]
    differences = [second - first for first, second in shares]
    over = estimate(differences)
    assert over.value is not None, "there are pairs"
    half = None if over.stderr is None else Z95 * over.stderr
    return Difference(
        benchmark=str(b["benchmark"]),
        title=str(b["title"]),
        a=math.fsum(first for first, _ in shares) / len(shares),
        b=math.fsum(second for _, second in shares) / len(shares),
        difference=over.value,
        stderr=over.stderr,
        stderr_sampling=_sampling([each for pair in pairs for each in pair], len(pairs)),
        low=None if half is None else over.value - half,
        high=None if half is None else over.value + half,
        better=sum(each > 0 for each in differences),
        worse=sum(each < 0 for each in differences),
        problems=len(pairs),
        left_out=len(_problems(b)) - len(pairs),
    )


def _sampling(rows: Sequence[Mapping[str, int]], problems: int) -> float | None:
    """Root of both results' sampling variances: their samples are independent of each other."""
    if any(row["samples"] < 2 for row in rows):
        return None
    variances = [(p := row["passed"] / row["samples"]) * (1 - p) / (row["samples"] - 1) for row in rows]
    return math.sqrt(math.fsum(variances)) / problems


def _problems(result: Mapping[str, object]) -> Sequence[Mapping[str, int]]:
    rows = result["by_problem"]
    if not isinstance(rows, list):
        raise ConfigError(f"{result.get('file')}: not a benchmark's result: by_problem is {type(rows).__name__}")
    return rows


def _what_differs(a: Mapping[str, object], b: Mapping[str, object]) -> str:
    protocols = a["protocol"], b["protocol"]
    if isinstance(protocols[0], dict) and isinstance(protocols[1], dict):
        for key in ("k", "temperature", "top_p", "max_tokens"):
            if protocols[0].get(key) != protocols[1].get(key):
                return f"{key} is {protocols[0].get(key)} in A and {protocols[1].get(key)} in B"
    if a["asked"] != b["asked"]:
        return f"A has {a['asked']} problems and B {b['asked']}"
    return "the problems or their prompts differ"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="r1async eval compare", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("a", type=Path, metavar="A", help="results of the first checkpoint")
    parser.add_argument("b", type=Path, metavar="B", help="results of the second")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    first, second = read_results(options.a), read_results(options.b)
    common = [name for name in first if name in second]
    if not common:
        raise ConfigError(f"no benchmark in common: A has {', '.join(first)}, B has {', '.join(second)}")
    differences = [compare(first[name], second[name]) for name in common]
    if options.json:
        print(json.dumps([asdict(each) for each in differences], indent=2))
        return 0
    _print(differences, first, second)
    return 0


def _print(differences: Sequence[Difference], first: Mapping[str, Record], second: Mapping[str, Record]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("benchmark")
    for name in ("A", "B", "B - A", "± problems", "± sampling", "95 %", "better", "worse", "problems"):
        table.add_column(name, justify="right")
    for each in differences:
        interval = "–" if each.low is None else f"{signed(each.low)} to {signed(each.high)}"
        table.add_row(
            each.title,
            percent(each.a),
            percent(each.b),
            signed(each.difference),
            percent(each.stderr) or "–",
            percent(each.stderr_sampling) or "–",
            interval,
            str(each.better),
            str(each.worse),
            str(each.problems),
        )
    console = wide()
    console.print(table)
    alone = [name for name in {**first, **second} if not (name in first and name in second)]
    if alone:
        console.print(f"only one of them has {', '.join(alone)}")
    for each in differences:
        if each.left_out:
            console.print(f"{each.title}: {each.left_out} problems left out, one of the two has no graded sample")


def signed(value: float | None) -> str:
    """A difference of shares, with its sign."""
    return "–" if value is None else f"{100 * value:+.1f} %"
