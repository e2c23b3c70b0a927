"""Processes of one measurement: started together, their CPU and memory read from outside, ended together."""

from __future__ import annotations

import importlib
import multiprocessing
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from r1async.bench import BenchError

DEADLINE_S = 300.0
"""For anything that a measured process is waited for."""

_SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True, slots=True)
class Part:
    """A process of a measurement."""

    side: str
    """Whose CPU it is: several processes may be on one side."""
    target: str
    """`module:function`, imported by the process itself: only the learner's pays for torch."""
    arguments: tuple[Any, ...]
    reports: bool = True
    """It takes a pipe as its last argument."""


@dataclass(slots=True)
class Timed:
    """What one run shows."""

    seconds: float
    """Of the timed batches, on the consumer's clock."""
    cpu_s: dict[str, float]
    """By side."""
    memory_mb: dict[str, float]
    """By side, at the end: proportional set size, so that shared libraries count once."""
    batches: list[Any] = field(default_factory=list)
    """(when it came, its rollouts), where that was asked for."""
    sent: list[dict[int, float]] = field(default_factory=list)
    """By process that reports: when each rollout was sent."""


def free_ports(count: int) -> list[int]:
    """TCP ports of the loopback that nobody has now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def measure(parts: Sequence[Part], consumer: Part) -> Timed:
    """Runs all parts until the consumer has reported its end.

    Raises:
        BenchError: a process ended before, or nothing moved for `DEADLINE_S`.
    """
    with _started([*parts, consumer]) as (processes, pipes):
        pid_sides = [(process.pid or 0, part.side) for process, part in zip(processes, [*parts, consumer], strict=True)]
        began = _expect("begin", pipes[-1], processes)
        before = [_cpu_s(pid) for pid, _ in pid_sides]
        ended = _expect("end", pipes[-1], processes)
        after = [_cpu_s(pid) for pid, _ in pid_sides]
        timed = Timed(ended - began, {}, {}, _expect("batches", pipes[-1], processes))
        for (pid, side), start, end in zip(pid_sides, before, after, strict=True):
            timed.cpu_s[side] = timed.cpu_s.get(side, 0.0) + end - start
            timed.memory_mb[side] = timed.memory_mb.get(side, 0.0) + _memory_mb(pid)
        pipes[-1].send("done")
        for process, pipe, part in zip(processes, pipes, parts, strict=False):
            if part.reports:
                process.terminate()
                timed.sent.append(pipe.recv() if pipe.poll(DEADLINE_S) else {})
    return timed


def _run(target: str, arguments: tuple[Any, ...]) -> None:
    module, function = target.split(":")
    vars(importlib.import_module(module))[function](*arguments)


@contextmanager
def _started(parts: Sequence[Part]) -> Iterator[tuple[list[SpawnProcess], list[Pipe]]]:
    processes, pipes = [], []
    try:
        for part in parts:
            near, far = _SPAWN.Pipe()
            arguments = (*part.arguments, far) if part.reports else part.arguments
            process = _SPAWN.Process(target=_run, args=(part.target, arguments), daemon=True)
            process.start()
            far.close()
            processes.append(process)
            pipes.append(near)
        yield processes, pipes
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(10.0)
            if process.is_alive():
                process.kill()
                process.join()


def _expect(what: str, pipe: Pipe, processes: Sequence[SpawnProcess]) -> Any:
    """The consumer's next report, which must be of this kind."""
    sentinels = {process.sentinel: process for process in processes}
    ready = wait([pipe, *sentinels], DEADLINE_S)
    if pipe in ready:
        try:
            kind, value = pipe.recv()
        except EOFError:
            raise BenchError("the consumer ended early; its error is above") from None
        assert kind == what, f"got {kind!r}, want {what!r}"
        return value
    ended = [sentinels[each].name for each in ready if isinstance(each, int)]
    raise BenchError(
        f"{', '.join(ended)} ended early; its error is above" if ended else f"no {what} for {DEADLINE_S} s"
    )


def _cpu_s(pid: int) -> float:
    """CPU seconds of all threads of a process, to the nanosecond: Linux's clock id of another process."""
    return time.clock_gettime((~pid << 3) | 2)


def _memory_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise BenchError(f"no Pss in /proc/{pid}/smaps_rollup")
