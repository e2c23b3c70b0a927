"""Code rewards: does the program pass the tests? The expected outputs never leave this process.

A program is run once for each test, in a sandbox of its own, which gets the test's input and nothing else. What it
writes, or what its function returns (as JSON), comes back as bytes and is compared here.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

from r1async.config import CodeConfig
from r1async.rewards.languages import Language, find_language
from r1async.rewards.outputs import read_value, same_text, same_value
from r1async.rewards.remote import RemoteRunner
from r1async.rewards.runners import Call, LocalRunner, Runner, Task, Trial, limited
from r1async.rewards.sandbox import SandboxError
from r1async.types import Verdict

MAX_SOURCE_BYTES = 256 * 2**10
"""A longer program scores 0 with status `guard`."""
_FENCE = re.compile(r"[ \t]{0,3}(`{3,}|~{3,})[ \t]*([^\s`]*)[^`]*")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_LONGEST_LIMIT_S, _LARGEST_MIB = 3600.0, 2**20


class Test(NamedTuple):
    """An input and what is expected for it."""

    input: str
    """Standard input, or the arguments as the JSON text of a list."""
    expected: object
    """Text for standard output, any JSON value for a function."""


class Problem(NamedTuple):
    """What a program has to do."""

    kind: Literal["stdin", "call"]
    fn_name: str
    tests: Sequence[Test]


class Source(NamedTuple):
    """A program and the language that its fence names, if any."""

    text: str
    tag: str


class Graded(NamedTuple):
    """A verdict and how it came about."""

    verdict: Verdict
    detail: str = ""
    """Of the first test that failed."""
    tests: int = 0
    """That were run."""
    program_s: float = 0.0
    """Seconds that the program took, over all tests."""


class CodeGrader:
    """Grades programs one after another.

    Args:
        settings: limits, credit and where programs run.
        runner: instead of the one that the settings ask for, in tests.

    Raises:
        LayersMissingError: this machine cannot isolate programs, and `reward.code.unsafe` is not set.
    """

    def __init__(self, settings: CodeConfig, runner: Runner | None = None) -> None:
        self._settings = settings
        self._runner = runner or make_runner(settings)

    def close(self) -> None:
        self._runner.close()

    def grade(self, item: Mapping[str, object]) -> Graded:
        """The verdict on one completion.

        Args:
            item: `completion` and `problem`; perhaps `language`, `raw` (the completion is the program),
                `time_limit_s`, `memory_limit_mib`. All but the completion may be JSON texts.

        Returns:
            A score, with the status of the first test that failed; or an abstention: `ungradable` for a problem that
            cannot be read, `infra_error` for a sandbox that failed.
        """
        try:
            problem = parse_problem(item.get("problem"))
            time_s = _positive(item, "time_limit_s", self._settings.time_limit_s, _LONGEST_LIMIT_S)
            memory_mib = int(_positive(item, "memory_limit_mib", self._settings.memory_limit_mib, _LARGEST_MIB))
            named = _language(item.get("language"))
            completion = item.get("completion")
            if not isinstance(completion, str):
                raise ValueError(f"completion must be a text, got {type(completion).__name__}")
        except ValueError as error:
            return Graded(Verdict.abstain("ungradable"), str(error))
        source = Source(completion, "") if item.get("raw") in (True, "true") else last_fence(completion)
        if source is None:
            return Graded(_score(0.0, "wrong"), "no complete code fence")
        language = named or find_language(source.tag) or find_language(self._settings.language)
        if language is None:
            return Graded(Verdict.abstain("ungradable"), f"no language {self._settings.language!r}")
        if problem.kind == "call" and not language.harness:
            return Graded(Verdict.abstain("ungradable"), f"functions cannot be called in {language.name}")
        data = source.text.encode(errors="replace")
        if len(data) > MAX_SOURCE_BYTES:
            return Graded(_score(0.0, "guard"), f"a program of {len(data)} bytes")
        task = Task(
            language=language,
            source=data,
            time_limit_s=time_s * self._settings.time_factor,
            memory_limit_mib=memory_mib,
        )
        try:
            return self._run(task, problem)
        except SandboxError as error:
            return Graded(Verdict.abstain("infra_error"), str(error))

    def _run(self, task: Task, problem: Problem) -> Graded:
        left_s, used_s, passed, run = self._settings.deadline_s, 0.0, 0, 0
        until = time.monotonic() + self._settings.deadline_s + self._settings.compile_s
        status, detail = "ok", ""
        for number, test in enumerate(problem.tests):
            if used_s >= left_s:
                trial = Trial("timeout", detail=f"all tests together may take {left_s:g} s")
            else:
                # Time that passes without the program running is the runner's: a server's queue, retries.
                answer_s = until - time.monotonic()
                if answer_s <= 0:
                    raise SandboxError(f"{run} of {len(problem.tests)} tests in time, the program took {used_s:.1f} s")
                trial = self._runner.run(limited(_with_input(task, problem, test), left_s - used_s, answer_s))
                run += 1
            used_s += trial.wall_s
            found = trial.status
            if found == "ok" and not self._right(trial.output, problem, test):
                found = "wrong"
            passed += found == "ok"
            if found != "ok" and status == "ok":
                status, detail = found, f"test {number + 1} of {len(problem.tests)}: {found}, {trial.detail}"
            if found == "compile" or (found != "ok" and self._settings.credit == "all"):
                break
        share = passed / len(problem.tests)
        score = share if self._settings.credit == "fraction" else float(passed == len(problem.tests))
        return Graded(_score(score, status), detail, run, used_s)

    def _right(self, output: bytes, problem: Problem, test: Test) -> bool:
        if problem.kind == "stdin":
            assert isinstance(test.expected, str)
            # A byte that is no UTF-8 becomes a character that no expected output has.
            return same_text(output.decode(errors="replace"), test.expected, self._settings.tolerance)
        try:
            return same_value(read_value(output), test.expected, self._settings.tolerance)
        except ValueError:
            return False


def make_runner(settings: CodeConfig) -> Runner:
    """The server of `reward.code.url`, or this machine's sandbox."""
    if settings.url:
        return RemoteRunner(
            settings.url,
            compile_s=settings.compile_s,
            tries=settings.url_tries,
            output_bytes=settings.output_kib * 1024,
        )
    return LocalRunner(settings)


def grade_code(item: Mapping[str, object], settings: CodeConfig | None = None) -> Verdict:
    """The verdict on one completion; the sandbox is started at the first call and kept. See `CodeGrader.grade`."""
    return _grader(settings or CodeConfig()).grade(item).verdict


_graders: dict[CodeConfig, CodeGrader] = {}


def _grader(settings: CodeConfig) -> CodeGrader:
    if settings not in _graders:
        _graders[settings] = CodeGrader(settings)
    return _graders[settings]


def close_graders() -> None:
    """End the sandboxes that `grade_code` keeps."""
    while _graders:
        _graders.popitem()[1].close()


def _score(value: float, status: str) -> Verdict:
    return Verdict(total=value, status=status)


def _with_input(task: Task, problem: Problem, test: Test) -> Task:
    stdin = test.input.encode(errors="replace") if problem.kind == "stdin" else b""
    return Task(
        language=task.language,
        source=task.source,
        stdin=stdin,
        call=Call(problem.fn_name, test.input) if problem.kind == "call" else None,
        time_limit_s=task.time_limit_s,
        memory_limit_mib=task.memory_limit_mib,
    )


def last_fence(text: str) -> Source | None:
    """The last code fence of a completion; None if there is none, or if the last one is not closed.

    A fence that was cut off is the last word of its author, so an earlier draft does not take its place.
    """
    found: Source | None = None
    mark, tag, lines = "", "", []
    for line in text.split("\n"):
        fence = _FENCE.fullmatch(line.rstrip("\r"))
        if not mark:
            if fence is not None:
                mark, tag, lines = fence[1], fence[2], []
                found = None
        elif fence is not None and fence[1][0] == mark[0] and len(fence[1]) >= len(mark) and not fence[2]:
            found, mark = Source("\n".join(lines) + "\n", tag), ""
        else:
            lines.append(line)
    return found


def parse_problem(value: object) -> Problem:
    """A problem in one of the shapes that data sets have.

    `{type: stdin | call, fn_name, tests: [[input, output], ...]}`; `tests` may hold `{input, output}` objects
    (LiveCodeBench), or there are `inputs` and `outputs` (APPS, TACO), whose outputs of calls are wrapped in lists of
    one. Without `type`, a `fn_name` means call. A call's input is the list of its arguments, or a text with a JSON
    value for each on its line, in which case the output is a JSON text too.

    Raises:
        ValueError: none of these; the message says what is wrong.
    """
    if isinstance(value, str):
        return _parsed(value)
    if not isinstance(value, Mapping):
        raise ValueError(f"problem must be an object, got {type(value).__name__}")
    fn_name = value.get("fn_name") or ""
    kind = value.get("type") or ("call" if fn_name else "stdin")
    if kind not in ("stdin", "call"):
        raise ValueError(f"problem.type must be stdin or call, got {kind!r}")
    if kind == "call" and not (isinstance(fn_name, str) and _NAME.fullmatch(fn_name)):
        raise ValueError(f"problem.fn_name must be the name of a function, got {fn_name!r}")
    pairs = _pairs(value, kind == "call")
    if not pairs:
        raise ValueError("problem.tests must hold at least one [input, output]")
    read = _call_test if kind == "call" else _stdin_test
    return Problem(kind, fn_name, [read(given, expected) for given, expected in pairs])


@lru_cache(maxsize=16)
def _parsed(text: str) -> Problem:
    """Members of a group come one after another and share their problem, which may have megabytes of tests."""
    value = _json(text, "problem")
    if not isinstance(value, dict):
        raise ValueError(f"problem must be an object, got {type(value).__name__}")
    return parse_problem(value)


def _pairs(problem: Mapping[str, object], call: bool) -> list[tuple[object, object]]:
    tests = problem.get("tests")
    if isinstance(tests, str):
        tests = _json(tests, "problem.tests")
    if isinstance(tests, list | tuple):
        return [_pair(test) for test in tests]
    inputs, outputs = problem.get("inputs"), problem.get("outputs")
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
        raise ValueError("problem must have tests: [[input, output], ...], or inputs and outputs of the same number")
    if call and all(isinstance(each, list) and len(each) == 1 for each in outputs):
        outputs = [each[0] for each in outputs]
    return list(zip(inputs, outputs, strict=True))


def _pair(test: object) -> tuple[object, object]:
    match test:
        case [given, expected] | {"input": given, "output": expected}:
            return given, expected
        case _:
            raise ValueError(f"a test must be [input, output], got {test!r:.200}")


def _stdin_test(given: object, expected: object) -> Test:
    return Test(_text(given), _text(expected))


def _text(value: object) -> str:
    """A text, or the lines of one."""
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    if not isinstance(value, str):
        raise ValueError(f"inputs and outputs must be texts, got {value!r:.200}")
    return value


def _call_test(given: object, expected: object) -> Test:
    if isinstance(given, str):
        lines = [line for line in given.split("\n") if line.strip()]
        for line in lines:
            _json(line, "an argument")
        return Test(f"[{', '.join(lines)}]", _json(expected, "an output") if isinstance(expected, str) else expected)
    if not isinstance(given, list):
        raise ValueError(f"a call's input must be a list of arguments, or JSON texts by line, got {given!r:.200}")
    return Test(json.dumps(given), expected)


def _json(text: str, what: str) -> object:
    try:
        return read_value(text)
    except ValueError as error:
        raise ValueError(f"{what} must be JSON, got {text!r:.200}: {error}") from error


def _positive(item: Mapping[str, object], key: str, default: float, most: float) -> float:
    value = item.get(key)
    if value is None:
        return default
    if isinstance(value, str):
        value = _json(value, key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{key} must be a number above 0, got {value!r}")
    return min(float(value), most)


def _language(name: object) -> Language | None:
    if name is None or name == "":
        return None
    language = find_language(name) if isinstance(name, str) else None
    if language is None:
        raise ValueError(f"language {name!r} is not known here")
    return language
