"""`r1async sweep`: every combination of listed values, each a run of its own, then a table and a plot.

Takes: a config and lists of values. Gives: runs and what they came to. Waits for: a run's end or a signal. Woken by:
the signal descriptor.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import zmq

from r1async.config import Config, ConfigError, load_config
from r1async.launch.folders import FolderLock, is_done
from r1async.launch.lifeline import Lifeline
from r1async.launch.local import CHECKPOINT_S, END_S
from r1async.launch.supervise import Exit, Role, Signals, Supervisor, end_interrupted
from r1async.launch.sweep_table import Result, write_tables

BRACKETS = {"[": "]", "{": "}", "(": ")"}


@dataclass(frozen=True, slots=True)
class Point:
    """One combination of values."""

    name: str
    values: tuple[tuple[str, str], ...]
    """Swept keys and their values, as written."""
    overrides: tuple[str, ...]
    config: Config


def sweep(config_path: Path, arguments: Sequence[str], *, jobs: int) -> int:
    """Runs what is not complete yet, then writes sweep.json, .csv, .md, .png and .svg beside the runs.

    Args:
        config_path: the YAML file that every run starts from.
        arguments: `key=value`, or `key=value1,value2,...` to sweep over.
        jobs: runs at a time.

    Raises:
        ConfigError: nothing to sweep over, or a combination that cannot work; nothing has run then.
    """
    points = points_of(config_path, arguments)
    folder = points[0].config.run_dir.parent
    lock = FolderLock(folder / "sweep")
    try:
        with Signals() as signals:
            code = _Sweep(config_path, points, folder, jobs, signals).run()
    finally:
        lock.close()
    done, failed = _results(points)
    if done:
        print(write_tables(folder, done))
    for point in failed:
        print(f"r1async: not complete: {point.config.run_dir}", file=sys.stderr)
    return code or (1 if failed else 0)


def points_of(config_path: Path, arguments: Sequence[str]) -> list[Point]:
    """The combinations in order, the last key turning fastest; all of them checked."""
    swept, fixed = split_arguments(arguments)
    if not swept:
        raise ConfigError("sweep: give at least one key with several values, as in staleness.max_staleness=0,1,2")
    name = load_config(config_path, [*fixed, *(f"{key}={values[0]}" for key, values in swept.items())]).name
    labels = _labels(list(swept))
    points = []
    for combination in product(*swept.values()):
        values = tuple(zip(swept, combination, strict=True))
        label = ",".join(f"{labels[key]}={_file_name(value)}" for key, value in values)
        overrides = (*fixed, *(f"{key}={value}" for key, value in values), f"name={name}/{label}")
        points.append(Point(label, values, overrides, load_config(config_path, overrides)))
    return points


def split_arguments(arguments: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Keys that are swept over, with their values as written, and the arguments that are not."""
    swept, fixed = {}, []
    for argument in arguments:
        key, equals, text = argument.partition("=")
        values = split_values(text)
        if key == "name" and len(values) > 1:
            raise ConfigError("name: names the sweep; its points get names of their own")
        if equals and len(values) > 1:
            swept[key] = values
        else:
            fixed.append(argument)
    return swept, fixed


def split_values(text: str) -> list[str]:
    """Splits at commas outside brackets and quotes: `[0.9,0.99],[0.9,0.999]` is two values."""
    values, closing, quote, start = [], [], "", 0
    for at, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in BRACKETS:
            closing.append(BRACKETS[character])
        elif closing and character == closing[-1]:
            closing.pop()
        elif character == "," and not closing:
            values.append(text[start:at])
            start = at + 1
    return [*values, text[start:]]


def _labels(keys: list[str]) -> dict[str, str]:
    """The last part of each key, or the whole key where two share it."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: short if last.count(short) == 1 else key for key, short in zip(keys, last, strict=True)}


def _file_name(value: str) -> str:
    return "".join(character if character.isalnum() or character in "-+._" else "_" for character in value)


def _results(points: Sequence[Point]) -> tuple[list[Result], list[Point]]:
    done, failed = [], []
    for point in points:
        if is_done(point.config):
            summary = json.loads((point.config.run_dir / "summary.json").read_text())
            done.append(Result(dict(point.values), point.config.seed, summary))
        else:
            failed.append(point)
    return done, failed


class _Sweep:
    """The runs of one sweep, `jobs` at a time."""

    def __init__(self, config_path: Path, points: Sequence[Point], folder: Path, jobs: int, signals: Signals) -> None:
        self._config_path = config_path
        self._points = points
        self._jobs = jobs
        self._signals = signals
        self._lifeline = Lifeline()
        self._supervisor = Supervisor(self._lifeline, folder / "sweep" / "logs")
        self._began: dict[str, float] = {}
        self._poller = zmq.Poller()
        self._poller.register(signals, zmq.POLLIN)

    def run(self) -> int:
        """0, or the exit code of an interruption. A failed run does not stop the others."""
        waiting = [point for point in self._points if not is_done(point.config)]
        print(
            f"sweep: {len(self._points)} runs, {len(self._points) - len(waiting)} of them complete already", flush=True
        )
        try:
            while waiting or self._supervisor.running:
                while waiting and len(self._supervisor.running) < self._jobs:
                    self._start(waiting.pop(0))
                # No deadline of our own: each run watches itself for stalls and ends.
                self._poller.poll()
                self._signals.drain()
                for ended in self._supervisor.reap():
                    self._say(ended)
                if self._signals.requests:
                    return self._interrupted(self._signals.requests.popleft())
        finally:
            self._supervisor.kill(self._supervisor.running)
            self._lifeline.close()
        return 0

    def _start(self, point: Point) -> None:
        self._began[point.name] = time.monotonic()
        arguments = ("run", str(self._config_path), *point.overrides, "monitor.terminal=plain")
        self._supervisor.start(Role(name=point.name, kind=point.name, arguments=arguments))

    def _say(self, ended: Exit) -> None:
        seconds = time.monotonic() - self._began[ended.role.name]
        place = 1 + [point.name for point in self._points].index(ended.role.name)
        head = f"[{place}/{len(self._points)}] {ended.role.name}"
        if ended.code == 0:
            run_dir = self._points[place - 1].config.run_dir
            after = json.loads((run_dir / "summary.json").read_text())["after"] or {}
            print(f"{head}: accuracy {after.get('accuracy')}, {seconds:.0f} s", flush=True)
        else:
            log = self._supervisor.log(ended.role)
            print(f"{head}: exit code {ended.code}, see {log}\n{self._supervisor.tail(ended.role)}", flush=True)

    def _interrupted(self, number: int) -> int:
        """Each run saves its state; a second Ctrl-C is passed on and makes them skip that."""
        print("sweep: ending; the same command goes on from here", flush=True)
        return end_interrupted(self._supervisor, self._signals, number, 4 * END_S + CHECKPOINT_S)
