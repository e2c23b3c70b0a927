"""Where programs run: in this machine's sandbox, or (`remote`) in one behind HTTP. Neither sees expected outputs."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

from r1async.config import CodeConfig
from r1async.rewards.languages import HARNESSES, LANGUAGES, PRELUDES, PYTHON, RESULT_FILE, Language, find_tool
from r1async.rewards.sandbox import WORK, Limits, Outcome, Program, Sandbox, SandboxError, base_python

log = logging.getLogger(__name__)


class Call(NamedTuple):
    """A function to call, and its arguments as a JSON text of a list."""

    fn_name: str
    args: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One program and one test's input."""

    language: Language
    source: bytes
    stdin: bytes = b""
    call: Call | None = None
    """Instead of reading standard input, the program defines a function."""
    time_limit_s: float
    memory_limit_mib: int
    answer_s: float = 3600.0
    """Seconds for the runner itself, waiting and retries included; then it has failed."""


class Trial(NamedTuple):
    """What became of a task."""

    status: str
    """ok, compile, runtime, timeout, memory or output."""
    output: bytes = b""
    """Standard output, or the JSON text that the function's result became; empty if there is none."""
    wall_s: float = 0.0
    detail: str = ""


class Runner(Protocol):
    """Runs tasks one after another.

    Raises:
        SandboxError: the runner failed, not the program.
    """

    def run(self, task: Task) -> Trial: ...

    def close(self) -> None: ...


def call_files(task: Task, call: Call) -> dict[str, bytes]:
    """Beside the program: its arguments. The expected result is not among them."""
    prelude = json.dumps(PRELUDES.get(task.language.name, ""))
    text = f'{{"fn_name": {json.dumps(call.fn_name)}, "prelude": {prelude}, "args": {call.args}}}'
    return {"args.json": text.encode(), task.language.file: task.source}


class LocalRunner:
    """The sandbox of this machine.

    Args:
        settings: limits and layers.

    Raises:
        LayersMissingError: this machine cannot isolate programs, and `reward.code.unsafe` is not set.
    """

    def __init__(self, settings: CodeConfig) -> None:
        self._settings = settings
        shown = (*settings.read_only, *_prefixes(settings.python))
        self._sandbox = Sandbox(read_only=shown, cgroup=settings.cgroup, unsafe=settings.unsafe)
        self._compiled: tuple[bytes, Mapping[str, bytes] | Trial] | None = None
        """Of the last program: its tests come one after another."""
        missing = [f"{name} ({language.tool})" for name, language in LANGUAGES.items() if not self._tool(language.tool)]
        holes = "; ".join(f"no {name}: {why}" for name, why in self._sandbox.layers.items() if why)
        log.warning(
            "code rewards: isolation %s; languages %s%s",
            f"with {holes}" if holes else "complete",
            ", ".join(name for name, language in LANGUAGES.items() if self._tool(language.tool)),
            f"; not here: {', '.join(missing)}" if missing else "",
        )

    @property
    def layers(self) -> Mapping[str, str]:
        return self._sandbox.layers

    def close(self) -> None:
        self._sandbox.close()

    def run(self, task: Task) -> Trial:
        """Compile if need be, then run.

        Raises:
            SandboxError: the sandbox failed twice, or the language's compiler is not here.
        """
        made = self._made(task)
        if isinstance(made, Trial):
            return made
        if task.call is None:
            files, name = {**made}, ""
        else:
            name = task.language.harness
            files = {**made, **call_files(task, task.call), name: HARNESSES[name].encode()}
        words = [word.format(memory_mib=task.memory_limit_mib, python=PYTHON) for word in task.language.run]
        if name:
            words[-1] = name
        program = Program(
            argv=self._argv(words),
            files=files,
            stdin=task.stdin,
            env=task.language.env,
            fetch=(RESULT_FILE,) if name else (),
            fetch_mib=max(1, self._settings.output_kib // 1024),
            limits=self._limits(task),
        )
        outcome = self._run(program)
        status = outcome.status
        if status == "runtime" and any(mark in outcome.stderr for mark in task.language.memory_marks):
            status = "memory"
        output = outcome.files.get(RESULT_FILE, b"") if name else outcome.stdout
        return Trial(status, output, outcome.wall_s, _detail(outcome))

    def _made(self, task: Task) -> Mapping[str, bytes] | Trial:
        """The files that a run needs; a trial if the program does not compile."""
        language = task.language
        if not language.compile:
            return {language.file: task.source}
        key = hashlib.sha256(language.name.encode() + b"\0" + task.source).digest()
        # By a name of its own: another thread may compile another program meanwhile.
        last = self._compiled
        if last is None or last[0] != key:
            self._compiled = last = key, self._compile(language, task.source)
        return last[1]

    def _compile(self, language: Language, source: bytes) -> Mapping[str, bytes] | Trial:
        seconds = self._settings.compile_s
        limits = Limits(
            wall_s=seconds, cpu_s=seconds, memory_mib=2048, stack_mib=64, box_mib=256, processes=32, output_kib=1024
        )
        program = Program(
            argv=self._argv(language.compile), files={language.file: source}, fetch=language.made, limits=limits
        )
        outcome = self._run(program)
        if outcome.status == "ok" and outcome.files.keys() >= set(language.made):
            return outcome.files
        return Trial("compile", b"", 0.0, _detail(outcome))

    def _run(self, program: Program) -> Outcome:
        try:
            return self._sandbox.run(program)
        except SandboxError as error:
            log.warning("the sandbox failed, trying once more: %s", error)
        return self._sandbox.run(program)

    def _limits(self, task: Task) -> Limits:
        language = task.language
        memory = task.memory_limit_mib + language.runtime_mib
        return Limits(
            wall_s=task.time_limit_s,
            cpu_s=task.time_limit_s,
            memory_mib=memory,
            address_mib=int(language.address_factor * memory) + 512 if language.address_factor else 0,
            stack_mib=language.stack_mib,
            output_kib=self._settings.output_kib,
            box_mib=self._settings.files_mib,
            processes=self._settings.processes,
        )

    def _argv(self, words: Sequence[str]) -> list[str]:
        first, *rest = words
        tool = self._tool(first)
        if not tool:
            raise SandboxError(f"{first} is neither a program of the system nor in reward.code.read_only")
        return [*tool, *rest]

    def _tool(self, word: str) -> list[str]:
        """The path of a compiler or interpreter and its switches; empty without one."""
        if word == PYTHON:
            # Without an interpreter of the user's choice, none of the packages that happen to lie about here.
            own = self._settings.python
            return [own, "-s", "-B"] if own else [base_python(), "-S", "-s", "-P", "-B"]
        if word.startswith("./"):
            return [f"{WORK}/{word[2:]}"]
        path = find_tool(word, self._settings.read_only)
        return [path] if path else []


def _prefixes(python: str) -> list[str]:
    """What an interpreter needs: its environment's folder, and the one that this was made from; a name without a folder
    is looked for on the box's own PATH."""
    if "/" not in python:
        return []
    path = Path(python)
    return [str(path.parent.parent), str(path.resolve().parent.parent)]


def _detail(outcome: Outcome) -> str:
    tail = outcome.stderr[-400:].decode(errors="replace").strip()
    ended = f"exit code {outcome.exit_code}" if outcome.exit_code is not None else f"ended after {outcome.wall_s:.1f} s"
    return f"{ended}: {tail}" if tail else ended


def limited(task: Task, seconds: float, answer_s: float) -> Task:
    """The task with no more than these seconds, for the program and for the runner."""
    return replace(task, time_limit_s=min(task.time_limit_s, seconds), answer_s=answer_s)
