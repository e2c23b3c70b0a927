"""Rollouts from generators to the learner, through the buffer and through what people would use instead."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from r1async.bench.harness import Part, Timed, free_ports, measure
from r1async.bench.peers import PEERS, Peer
from r1async.bench.players import bench_config
from r1async.bench.workload import ROLLOUTS_PER_BATCH, Workload

CHECKED = 4
"""Batches at the start of every run that are compared with the truth, value by value."""
WARM = 70
"""Batches before timing begins: until the queues, which filled while values were compared, are as usual."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Transfer:
    """One way of moving rollouts, and how it is driven."""

    way: str
    """`buffer`, `scorer` or a `Peer`."""
    per_message: int
    rate: float | None = None
    """Completions a second; None: as many as go."""
    durability: str = "memory"

    @property
    def name(self) -> str:
        names = {"buffer": f"buffer {self.durability}", "scorer": f"buffer {self.durability} with a scorer"}
        return f"{names.get(self.way, self.way)}, {self.per_message} a message"


def run_transfer(transfer: Transfer, work: Workload, *, producers: int, batches: int, warm: int = WARM) -> Timed:
    """`batches` timed batches after `warm` others, of which the first are checked.

    Raises:
        BenchError: a process failed, values that differ from the truth included.
    """
    rate = None if transfer.rate is None else transfer.rate / producers
    run = _through_peer if transfer.way in PEERS else _through_buffer
    return run(transfer, work, producers, rate, batches, warm)


def _through_buffer(
    transfer: Transfer, work: Workload, producers: int, rate: float | None, batches: int, warm: int
) -> Timed:
    with tempfile.TemporaryDirectory(prefix="r1async-bench-") as folder:
        steps, checked, paced = warm + batches, min(CHECKED, warm), rate is not None
        grades = transfer.way == "buffer"
        config = bench_config(
            folder,
            free_ports(3),
            steps=steps,
            max_tokens=work.max_tokens,
            more=[f"journal.durability={transfer.durability}"],
        )
        parts = [Part("buffer", "r1async.bench.players:buffer", (config, work), reports=False)]
        parts += [
            Part(
                "generators",
                "r1async.bench.players:generator",
                (config, work, index, transfer.per_message, rate, grades),
            )
            for index in range(producers)
        ]
        if not grades:
            parts.append(Part("scorer", "r1async.bench.players:scorer", (config, work, paced)))
        return measure(parts, Part("learner", "r1async.bench.consumers:learner", (config, work, checked, warm, paced)))


def _through_peer(
    transfer: Transfer, work: Workload, producers: int, rate: float | None, batches: int, warm: int
) -> Timed:
    peer: Peer = next(each for each in PEERS if each == transfer.way)
    endpoint = f"tcp://127.0.0.1:{free_ports(1)[0]}"
    steps, checked, paced = warm + batches, min(CHECKED, warm), rate is not None
    parts = [
        Part(
            "generators",
            "r1async.bench.peers:producer",
            (endpoint, peer, work, index, producers, transfer.per_message, rate),
        )
        for index in range(producers)
    ]
    taken = (endpoint, peer, work, steps, checked, warm, paced, transfer.per_message)
    return measure(parts, Part("learner", "r1async.bench.consumers:consumer", taken))


def figures(timed: Timed, work: Workload, batches: int) -> dict[str, float]:
    """Rates and costs of one run; CPU in microseconds a completion."""
    completions = batches * ROLLOUTS_PER_BATCH
    bytes_each = work.payload_bytes(range(1 << 14)) / (1 << 14)
    cpu = {f"{side}_cpu_us": seconds / completions * 1e6 for side, seconds in timed.cpu_s.items()}
    memory = {f"{side}_memory_mb": amount for side, amount in timed.memory_mb.items()}
    consumer = sum(timed.cpu_s.get(side, 0.0) for side in ("buffer", "learner"))
    return {
        "completions_per_s": completions / timed.seconds,
        "mb_per_s": completions / timed.seconds * bytes_each / 1e6,
        "consumer_cpu_us": consumer / completions * 1e6,
        **cpu,
        **memory,
    }


def latencies_ms(timed: Timed, warm: int) -> dict[str, list[float]]:
    """From the moment the last rollout (and a scorer's last verdict) of a batch's groups was sent to the batch in
    hand."""
    scored = timed.sent[-1] if "scorer" in timed.cpu_s else {}
    moments = {"rollout": _merged(timed.sent[:-1] if scored else timed.sent), "verdict": scored}
    found: dict[str, list[float]] = {}
    for name, sent in moments.items():
        pairs = [(came, [sent.get(int(each)) for each in rollouts]) for came, rollouts in timed.batches[warm:]]
        found[name] = [
            1e3 * (came - max(known))
            for came, whens in pairs
            if (known := [when for when in whens if when is not None])
        ]
    return {name: values for name, values in found.items() if values}


def _merged(parts: Sequence[dict[int, float]]) -> dict[int, float]:
    return {rollout: when for part in parts for rollout, when in part.items()}


def quantiles(values: Sequence[float]) -> dict[str, float]:
    return {"p50": float(np.quantile(values, 0.5)), "p99": float(np.quantile(values, 0.99)), "count": len(values)}
