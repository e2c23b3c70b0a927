"""What the buffer is held to: ratios within one run of the benchmark, and whether they are reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

Run = Mapping[str, float]
Sense = Literal["at least", "at most"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """`value` is to be at least, or at most, `limit`."""

    name: str
    value: float
    sense: Sense
    limit: float
    unit: str = "x"

    @property
    def reached(self) -> bool:
        return self.value >= self.limit if self.sense == "at least" else self.value <= self.limit


def ratio(ours: Sequence[Run], theirs: Sequence[Run], figure: str) -> float:
    """The median over repeats of the ratio within a repeat, whose runs are neighbours in time."""
    return median(a[figure] / b[figure] for a, b in zip(ours, theirs, strict=True))


def transfer_targets(runs: Mapping[str, Sequence[Run]]) -> list[Target]:
    """Of saturated runs by name (see `Transfer.name`); those whose runs were not made are left out."""
    found: list[Target] = []
    for per_message in (16, 1):
        sent = f"{per_message} a message"
        ours = runs.get(f"buffer memory, {sent}", ())
        wanted: list[tuple[str, str, Sense, float, str]] = [
            ("frames", "completions_per_s", "at least", 1.0, "rate over pyzmq in 3 frames, no unpacking"),
            ("oneframe", "completions_per_s", "at least", 0.5, "rate over pyzmq in 1 frame, no unpacking"),
            ("msgpack", "completions_per_s", "at least", 1.5, "rate over hand-written msgpack + numpy"),
            ("msgpack", "consumer_cpu_us", "at most", 0.6, "consumer CPU over hand-written msgpack + numpy"),
        ]
        for way, figure, sense, limit, name in wanted:
            theirs = runs.get(f"{way}, {sent}", ())
            if ours and theirs:
                value = ratio(ours, theirs, figure)
                found.append(Target(name=f"{name}, {sent}", value=value, sense=sense, limit=limit))
        grouped = runs.get(f"buffer group, {sent}", ())
        if ours and grouped:
            value = ratio(grouped, ours, "completions_per_s")
            name = f"rate of group durability over memory, {sent}"
            found.append(Target(name=name, value=value, sense="at least", limit=0.75))
    return found


def component_targets(parts: Mapping[str, Run]) -> list[Target]:
    """Of `components.py`'s figures by part."""
    packing, json, inserts = parts["packing"], parts["engine_json"], parts["insert_us"]
    batches, live, memory = parts["next_batch_us"], parts["last_verdict"], parts["memory"]
    found = [
        Target(
            name="statistics and packing over numpy",
            value=packing["core_us"] / packing["numpy_us"],
            sense="at most",
            limit=0.5,
        ),
        Target(
            name="learner's GIL per batch of 128 over the hand-written consumer's",
            value=packing["learner_batch_ms"] / packing["by_hand_batch_ms"],
            sense="at most",
            limit=0.2,
        ),
    ]
    for shape in ("sglang", "vllm"):
        if f"{shape}_orjson_us" in json:
            value = json[f"{shape}_us"] / json[f"{shape}_orjson_us"]
            name = f"{shape} JSON to columns over orjson + numpy"
            found.append(Target(name=name, value=value, sense="at most", limit=0.3))
    for name, figures in (("insert", inserts), ("next batch", batches)):
        few, many = min(figures, key=int), max(figures, key=int)
        name = f"{name} at {int(many):,} rollouts held over {int(few):,}"
        found.append(Target(name=name, value=figures[many] / figures[few], sense="at most", limit=1.5))
    value = memory["held_mb"] / memory["payload_mb"]
    found.append(Target(name="memory held over payload", value=value, sense="at most", limit=1.25))
    name = f"last verdict to batch in the core, {live['groups']:,.0f} groups live, p99"
    found.append(Target(name=name, value=live["p99_ms"], sense="at most", limit=2.0, unit="ms"))
    return found


def latency_targets(paced: Mapping[str, Run]) -> list[Target]:
    """Of paced runs: theirs from the last rollout, which brings its own reward, as ours does without a scorer."""
    theirs = paced.get("msgpack, from the last rollout")
    ways = {"": "buffer, from the last rollout", ", with a scorer": "scorer, from the last verdict"}
    return [
        Target(
            name=f"last verdict to batch, p99 over hand-written{more}",
            value=paced[way]["p99"] / theirs["p99"],
            sense="at most",
            limit=1.0,
        )
        for more, way in ways.items()
        if theirs is not None and way in paced
    ]
