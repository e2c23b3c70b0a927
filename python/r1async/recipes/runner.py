"""`r1async recipe`: runs the stages of a recipe that are not done yet, each a process of its own.

Takes: a recipe. Gives: the stages' outputs, `recipe.json` beside them. Waits for: a stage's end, a signal, or the time
to say how far they are. Woken by: the signal descriptor, that time.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import zmq

from r1async.config import ConfigError
from r1async.files import write_json
from r1async.launch.folders import FolderLock
from r1async.launch.lifeline import JOB, Lifeline
from r1async.launch.local import CHECKPOINT_S, END_S
from r1async.launch.supervise import Exit, Role, Signals, Supervisor, end_interrupted
from r1async.monitor.summary import duration
from r1async.recipes.graph import Recipe, load_recipe
from r1async.recipes.plan import Job, begin, check, finish, forget, plan, point

SAY_S = 10.0
"""Between two lines of progress."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """Which stages to run; all of them unless one of these is given."""

    first: str = ""
    last: str = ""
    only: str = ""
    again: bool = False
    """Run the selected ones even if they are done."""


def recipe(path: Path, overrides: Sequence[str], selection: Selection, *, parallel: int, dry_run: bool) -> int:
    """Runs what is not done yet of the selected stages; returns the exit code.

    Args:
        path: the recipe's file.
        overrides: as for `load_recipe`.
        selection: which stages.
        parallel: stages at a time.
        dry_run: print the plan instead.

    Raises:
        ConfigError: a mistake in the recipe, in the settings of any of its stages, or in the selection.
    """
    read = load_recipe(path, overrides)
    jobs = plan(read)
    selected = select(read, selection)
    with tempfile.TemporaryDirectory() as scratch:
        problems = check(jobs, Path(scratch))
    if problems:
        raise ConfigError("\n".join(f"{path}: {line}" for line in problems))
    if dry_run:
        print(plan_table(read, jobs, selected, again=selection.again))
        return 0
    _refuse_missing(read, jobs, selected)
    root = read.folder / read.name
    lock = FolderLock(root)
    try:
        with Signals() as signals:
            return _Runner(read, jobs, selected, signals, parallel=parallel, again=selection.again).run()
    finally:
        lock.close()


def select(read: Recipe, selection: Selection) -> list[str]:
    """Names of the selected stages, in order.

    Raises:
        ConfigError: no such stage, or a selection of nothing.
    """
    for name in (selection.first, selection.last, selection.only):
        if name and name not in read.stages:
            raise ConfigError(f"no stage {name!r}; stages are {', '.join(read.stages)}")
    if selection.only:
        return [selection.only]
    chosen = list(read.stages)
    if selection.last:
        needed = read.upstream(selection.last)
        chosen = [name for name in chosen if name in needed]
    if selection.first:
        following = read.downstream(selection.first)
        chosen = [name for name in chosen if name in following]
    if not chosen:
        raise ConfigError(f"--from {selection.first} --to {selection.last}: the second does not need the first")
    return chosen


def _refuse_missing(read: Recipe, jobs: Mapping[str, Job], selected: Sequence[str]) -> None:
    """Stages outside the selection are not run, so what is needed of them has to be there."""
    needed = {need for name in selected for need in read.stages[name].needs if need not in selected}
    missing = [name for name in jobs if name in needed and not jobs[name].done]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)}: not done with these settings, and not selected; run it first (--to {missing[-1]})"
        )


def plan_table(read: Recipe, jobs: Mapping[str, Job], selected: Sequence[str], *, again: bool) -> str:
    """The plan for people: what each stage is, what it waits for, and what would happen to it."""
    rows = [("stage", "job", "needs", "key", "")]
    for name, job in jobs.items():
        state = "not selected"
        if name in selected:
            state = "goes on" if job.begun else "runs"
            if job.done:
                state = "runs again" if again else "done"
        elif job.done:
            state = "done"
        what = f"{job.stage.command.name} {Path(job.stage.target).name}"
        rows.append((name, what, ", ".join(read.stages[name].needs) or "–", job.key, state))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, f"outputs: {read.folder / read.name}/STAGE-KEY"])


class _Runner:
    """The stages, up to `parallel` at a time, each as soon as what it needs is there."""

    def __init__(
        self,
        read: Recipe,
        jobs: Mapping[str, Job],
        selected: Sequence[str],
        signals: Signals,
        *,
        parallel: int,
        again: bool,
    ) -> None:
        self._recipe, self._jobs, self._selected = read, jobs, selected
        self._signals, self._parallel = signals, parallel
        self._waiting = [name for name in selected if again or not jobs[name].done]
        self._began: dict[str, float] = {}
        self._said: dict[str, str] = {}
        self._lifeline = Lifeline()
        self._root = read.folder / read.name
        self._supervisor = Supervisor(self._lifeline, self._root / "logs")
        self._poller = zmq.Poller()
        self._poller.register(signals, zmq.POLLIN)
        if again:
            for name in selected:
                forget(jobs[name])

    def run(self) -> int:
        """0 when all are done, a stage's exit code if one failed, 128 + n if signal n ended it."""
        began = time.monotonic()
        for name in self._selected:
            if name not in self._waiting:
                point(self._jobs[name])  # it may have pointed elsewhere since, or we were killed before it did
                print(f"{self._head(name)}: done earlier, {self._jobs[name].folder}", flush=True)
        code = 0
        try:
            while self._supervisor.running or (self._waiting and not code):
                while not code and (name := self._next()):
                    self._start(name)
                for ended in self._wait():
                    code = self._end(ended) or code
                    self._write_record()
                if self._signals.requests:
                    return self._interrupted(self._signals.requests.popleft())
        finally:
            self._supervisor.kill(self._supervisor.running)
            self._lifeline.close()
        self._write_record()
        if code:
            print("recipe: the same command goes on from here", file=sys.stderr, flush=True)
        else:
            print(f"recipe {self._recipe.name}: done in {duration(time.monotonic() - began)}", flush=True)
        return code

    def _head(self, name: str) -> str:
        return f"[{self._selected.index(name) + 1}/{len(self._selected)}] {name}"

    def _next(self) -> str | None:
        """The first stage that could begin now, if there is a place for one."""
        if len(self._supervisor.running) >= self._parallel:
            return None
        unfinished = {*self._waiting, *(role.kind for role in self._supervisor.running.values())}
        for name in self._waiting:
            if not unfinished & set(self._jobs[name].stage.needs):
                return name
        return None

    def _start(self, name: str) -> None:
        job = self._jobs[name]
        about = f" ({job.stage.about})" if job.stage.about else ""
        print(f"{self._head(name)}: {'goes on' if job.begun else 'begins'}{about}", flush=True)
        self._waiting.remove(name)
        self._began[name] = time.monotonic()
        arguments = _arguments(job, begin(job))
        # Named with its key, so that its log is not that of the same stage under other settings.
        self._supervisor.start(Role(name=job.folder.name, kind=name, arguments=arguments, environment={JOB: "1"}))

    def _wait(self) -> list[Exit]:
        """Until a stage ends or a signal comes; says meanwhile how far the running ones are."""
        self._poller.poll(int(SAY_S * 1000))
        self._signals.drain()
        ended = self._supervisor.reap()
        if not ended:
            for role in self._supervisor.running.values():
                self._say(role)
        return ended

    def _say(self, role: Role) -> None:
        told = self._supervisor.tail(role).splitlines()
        lines = [line for line in told if line.strip() and not line.lstrip().startswith("--- ")]  # the log's own
        line = lines[-1].strip() if lines else ""
        if line and line != self._said.get(role.kind):
            print(f"{self._head(role.kind)}: {line}", flush=True)
            self._said[role.kind] = line

    def _end(self, ended: Exit) -> int:
        """Files what an ended stage made; returns its exit code."""
        name, seconds = ended.role.kind, time.monotonic() - self._began[ended.role.kind]
        if ended.code == 0:
            finish(self._jobs[name], seconds)
            print(f"{self._head(name)}: done in {duration(seconds)}, {self._jobs[name].folder}", flush=True)
            return 0
        log = self._supervisor.log(ended.role)
        print(
            f"{self._head(name)}: {ended}, see {log}\n{self._supervisor.tail(ended.role)}", file=sys.stderr, flush=True
        )
        return ended.code if ended.code > 0 else 1

    def _interrupted(self, number: int) -> int:
        """Running stages save their state; a second Ctrl-C is passed on."""
        print("recipe: ending; the same command goes on from here", flush=True)
        return end_interrupted(self._supervisor, self._signals, number, END_S + CHECKPOINT_S)

    def _write_record(self) -> None:
        """`recipe.json`: where the newest outputs of each stage are, and what they took."""
        done = {name: job.record for name, job in self._jobs.items() if job.done}
        write_json(self._root / "recipe.json", {"name": self._recipe.name, "seed": self._recipe.seed, "stages": done})


def _arguments(job: Job, settings: Path) -> tuple[str, ...]:
    """The command line of the stage, without the program: what a person would type."""
    if job.stage.command.takes_file:
        return (job.stage.command.name, str(settings), *job.stage.command.words(job.settings, job.folder))
    return (job.stage.command.name, job.stage.target, str(job.folder), str(settings))
