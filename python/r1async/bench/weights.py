"""`r1async bench weights`: what a weight push has to send, and what it costs to make and to take. No GPU.

Versions come from AdamW with float32 masters and are published in bfloat16 after every step, as a learner does it;
the newest pair is encoded by ours and by what others send, on one thread, in turn within one repeat. Seconds are CPU
time of the process. Every decoded version is compared with the truth.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from r1async import _core
from r1async.bench import BenchError
from r1async.bench.buffer import cpu_name
from r1async.bench.targets import Target
from r1async.models.loading import read_tensors
from r1async.terminal import wide
from r1async.types import PolicyVersion
from r1async.weights.manifest import Layout, take_snapshot

DTYPE = "bfloat16"
BETAS = (0.9, 0.999)
MAX_GRAD_NORM = 1.0
SIGNAL = 0.1
"""Of a gradient, the part that is the same in every step, as a share of its noise."""

Bytes = NDArray[np.uint8]
Result = TypeVar("Result")


def main(arguments: Sequence[str]) -> int:
    """The command line after `r1async bench weights`; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        result = bench(options)
    except (BenchError, ValueError, FileNotFoundError) as error:
        print(f"r1async bench: {error}", file=sys.stderr, flush=True)
        return 1
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    print_result(result)
    return 0


def bench(options: argparse.Namespace) -> dict[str, Any]:
    """Everything asked for, measured.

    Raises:
        BenchError: a version did not come back bit for bit.
        FileNotFoundError, ValueError: the model cannot be read.
    """
    torch.manual_seed(options.seed)
    load_before = os.getloadavg()[0]
    rates = {}
    for lr in options.lr:
        print(f"lr {lr:g}: {options.steps} steps of AdamW", file=sys.stderr, flush=True)
        masters = synthetic(options.millions) if options.model is None else _floats(options.model)
        pair = versions(masters, lr, options.steps)
        del masters
        rates[f"{lr:g}"] = measure(pair, options.repeats)
    targets = [target for lr, figures in rates.items() for target in targets_of(lr, figures)]
    return {
        "machine": {"cpus": os.cpu_count(), "cpu": cpu_name(), "load_before": load_before},
        "settings": {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()},
        "rates": rates,
        "targets": [asdict(target) | {"reached": target.reached} for target in targets],
    }


def synthetic(millions: float) -> dict[str, Tensor]:
    """A decoder's tensors with about so many million values: width 512 (64 if it is small), as many layers as it takes.

    Projections are normal with a deviation of about 0.02 that differs from row to row (log-normal, by a factor of 2),
    as in trained models, whose rows have grown unlike; norms are near one.
    """
    width, hidden, vocabulary = (512, 1536, 8192) if millions >= 8 else (64, 192, 512)
    shapes = [("q", width, width), ("k", width // 4, width), ("v", width // 4, width), ("o", width, width)]
    shapes += [("gate", hidden, width), ("up", hidden, width), ("down", width, hidden)]
    per_layer = sum(rows * columns for _, rows, columns in shapes)
    layers = max(1, round((millions * 1e6 - vocabulary * width) / per_layer))
    tensors = {"embed.weight": _projection(vocabulary, width)}
    for layer in range(layers):
        for name, rows, columns in shapes:
            tensors[f"layers.{layer}.{name}.weight"] = _projection(rows, columns)
        tensors[f"layers.{layer}.norm.weight"] = 1.0 + 0.1 * torch.randn(width)
    return tensors


def _projection(rows: int, columns: int) -> Tensor:
    return 0.02 * torch.randn(rows, 1).mul(0.7).exp() * torch.randn(rows, columns)


def _floats(model: Path) -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in read_tensors(model).items() if tensor.is_floating_point()}


@dataclass(frozen=True, slots=True)
class Pair:
    """Two versions as they are published, one step apart."""

    base: Bytes
    new: Bytes
    layout: Layout
    density: float
    """Share of values that differ."""


def versions(masters: Mapping[str, Tensor], lr: float, steps: int) -> Pair:
    """The last two versions of `steps` optimizer steps from a cold optimizer, the first step at full learning rate."""
    # Gradients of a mean over tokens: small, each parameter with a scale of its own.
    scales = {name: 1e-4 * torch.randn_like(tensor).exp() for name, tensor in masters.items()}
    drifts = {name: SIGNAL * torch.randn_like(tensor) for name, tensor in masters.items()}
    optimizer = torch.optim.AdamW(list(masters.values()), lr=lr, betas=BETAS, weight_decay=0.0, foreach=False)
    base = new = np.empty(0, np.uint8)
    layout: Layout = []
    for step in range(steps):
        for name, tensor in masters.items():
            tensor.grad = scales[name] * (drifts[name] + torch.randn_like(tensor))
        torch.nn.utils.clip_grad_norm_(list(masters.values()), MAX_GRAD_NORM)
        optimizer.step()
        if step >= steps - 2:
            snapshot = take_snapshot(PolicyVersion(1, step), masters, dtype=DTYPE, threads=1)
            base, new, layout = new, snapshot.data, snapshot.layout
    changed = int((base.view(np.uint16) != new.view(np.uint16)).sum())
    return Pair(base, new, layout, changed / sum(size // 2 for _, _, size in layout))


def measure(pair: Pair, repeats: int) -> dict[str, dict[str, float]]:
    """By way: share of the full bytes; GB of full bytes a CPU second to encode and to decode, medians over repeats."""
    full = sum(size for _, _, size in pair.layout)
    runs: dict[str, list[tuple[int, float, float]]] = {}
    for repeat in range(repeats):
        ways = [_ours, _snapshot, _xor, _raw]
        for way in ways if repeat % 2 == 0 else reversed(ways):
            name, size, encode_s, decode_s = way(pair)
            runs.setdefault(name, []).append((size, encode_s, decode_s))
    found = {
        name: {
            "share": each[0][0] / full,
            "encode_gb_per_s": full / 1e9 / median(run[1] for run in each),
            "decode_gb_per_s": full / 1e9 / median(run[2] for run in each),
        }
        for name, each in runs.items()
    }
    bounds = [_core.weights_bounds(pair.new[a : a + n], pair.base[a : a + n], d) for d, a, n in pair.layout]
    whole = _core.weights_bounds(pair.new, pair.base, DTYPE)[1]
    found["index + value"] = {"share": sum(size for size, _ in bounds) / full}
    found["entropy bound"] = {"share": whole / full}
    found["entropy bound per tensor"] = {"share": sum(bound for _, bound in bounds) / full}
    found["changed"] = {"share": pair.density}
    return found


Run = tuple[str, int, float, float]
"""Way, bytes, CPU seconds to encode, CPU seconds to decode."""


def _ours(pair: Pair) -> Run:
    encoded, encode_s = _timed(lambda: _core.weights_encode(pair.new, pair.base, pair.layout, 1))
    return ("ours", *_decoded(pair, encoded, encode_s))


def _snapshot(pair: Pair) -> Run:
    encoded, encode_s = _timed(lambda: _core.weights_encode(pair.new, None, pair.layout, 1))
    return ("ours, snapshot", *_decoded(pair, encoded, encode_s))


def _decoded(pair: Pair, encoded: list[tuple[str, Bytes, int]], encode_s: float) -> tuple[int, float, float]:
    starts = np.cumsum([0, *(len(payload) for _, payload, _ in encoded)]).tolist()
    places = [(codec, start, len(payload)) for (codec, payload, _), start in zip(encoded, starts, strict=False)]
    blob = np.concatenate([payload for _, payload, _ in encoded])
    shadow = pair.base.copy()
    hashes, decode_s = _timed(lambda: _core.weights_decode(shadow, pair.layout, places, blob, 1))
    if hashes != _core.weights_hashes(pair.new, pair.layout, 1):
        raise BenchError("the hashes of the decoded version are not those of the version")
    _check(shadow, pair)
    return len(blob), encode_s, decode_s


def _xor(pair: Pair) -> Run:
    encoded, encode_s = _timed(lambda: _core.weights_xor_zstd(pair.new, pair.base, pair.layout))
    shadow = pair.base.copy()
    _, decode_s = _timed(lambda: _core.weights_xor_zstd_decode(shadow, pair.layout, encoded))
    _check(shadow, pair)
    return "XOR + zstd-1", sum(len(payload) for payload in encoded), encode_s, decode_s


def _raw(pair: Pair) -> Run:
    sent, encode_s = _timed(lambda: pair.new.copy())
    shadow = pair.base.copy()
    _, decode_s = _timed(lambda: np.copyto(shadow, sent))
    _check(shadow, pair)
    return "raw", sum(size for _, _, size in pair.layout), encode_s, decode_s


def _timed(work: Callable[[], Result]) -> tuple[Result, float]:
    begun = time.process_time()
    result = work()
    return result, time.process_time() - begun


def _check(shadow: Bytes, pair: Pair) -> None:
    if not np.array_equal(shadow, pair.new):
        raise BenchError("a decoded version differs from the one that was encoded")


def targets_of(lr: str, figures: Mapping[str, Mapping[str, float]]) -> Iterator[Target]:
    """What the codec is held to, of one learning rate's figures."""
    ours, snapshot = figures["ours"], figures["ours, snapshot"]
    at = f"lr {lr}"
    value = ours["share"] / figures["XOR + zstd-1"]["share"]
    yield Target(name=f"{at}: delta over XOR + zstd-1", value=value, sense="at most", limit=0.55)
    value = ours["share"] / figures["entropy bound"]["share"]
    yield Target(name=f"{at}: delta over the entropy bound", value=value, sense="at most", limit=1.2)
    if figures["changed"]["share"] <= 0.02:  # meant for 1 %; up to 2 % it is harder, and still held to
        value = ours["encode_gb_per_s"]
        yield Target(name=f"{at}: encode", value=value, sense="at least", limit=1.0, unit="GB/s")
    value = ours["decode_gb_per_s"]
    yield Target(name=f"{at}: decode, apply and hash", value=value, sense="at least", limit=2.0, unit="GB/s")
    yield Target(name=f"{at}: snapshot over raw", value=snapshot["share"], sense="at most", limit=0.70)


def print_result(result: Mapping[str, Any], console: Console | None = None) -> None:
    """The result for people."""
    console = console or wide()
    for lr, figures in result["rates"].items():
        changed = figures["changed"]["share"]
        table = Table("% of full bytes", "encode GB/s", "decode GB/s", box=None, padding=(0, 2, 0, 0), pad_edge=False)
        table.columns[0:0] = [type(table.columns[0])(header=f"lr {lr}, {changed:.2%} changed")]
        for column in table.columns[1:]:
            column.justify = "right"
        for name, each in figures.items():
            if name != "changed":
                speeds = (f"{each[key]:.2f}" if key in each else "" for key in ("encode_gb_per_s", "decode_gb_per_s"))
                table.add_row(name, f"{100 * each['share']:.3f}", *speeds)
        console.print(table)
    table = Table("target", "reached", "wanted", "", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for each in result["targets"]:
        target = Target(**{name: value for name, value in each.items() if name != "reached"})
        verdict = "[green]yes[/green]" if target.reached else "[red]no[/red]"
        reached, wanted = f"{target.value:.2f} {target.unit}", f"{target.sense} {target.limit:g} {target.unit}"
        table.add_row(target.name, reached, wanted, verdict)
    console.print(table)


def _steps(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"must be a whole number from 2, a version and the one before, got {text!r}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="r1async bench weights", description=__doc__)
    parser.add_argument("--model", type=Path, metavar="DIR", help="weights of this Hugging Face directory")
    parser.add_argument(
        "--millions", type=float, default=40.0, metavar="N", help="values of the synthetic model / 10^6"
    )
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-6, 1e-5], help="learning rates (default 1e-6 1e-5)")
    parser.add_argument("--steps", type=_steps, default=8, metavar="N", help="optimizer steps, two or more (default 8)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="measurements of each way (default 5)")
    parser.add_argument("--seed", type=int, default=0, help="of the model and its gradients")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result here")
    return parser
