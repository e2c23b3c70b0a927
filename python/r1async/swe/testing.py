"""One run of an instance's tests on a tree, and what became of each test."""

from __future__ import annotations

import json
import re
import secrets
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files as package_files

from r1async.config_swe import SweConfig
from r1async.rewards.sandbox import Outcome
from r1async.swe.boxes import Boxes, Job, search_path
from r1async.swe.instance import Instance
from r1async.swe.names import function_of, test_file
from r1async.swe.tree import Tree, to_tar
from r1async.swe.workshop import Base

# PYTHONHASHSEED and TZ are the sandbox's own; a container gets the same.
_ENV = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONNOUSERSITE": "1", "LC_ALL": "C.UTF-8", "PYTHONSAFEPATH": ""}

_SCRIPT = """mkdir repo && tar -xf tree.tar -C repo && tar -xf git.tar -C repo || exit 98
rm tree.tar git.tar && cd repo || exit 98
exec "$@" """


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What a run of tests says."""

    outcomes: Mapping[str, str] = field(default_factory=dict)
    """Test name: passed, failed, skipped, xfailed, xpassed."""
    collected: Sequence[str] = ()
    ended: str = "ok"
    """ok: the run came to its end and its exit code says the same as its results. unfinished: it did not, or does not.
    timeout, memory, output: the limit that ended it."""
    detail: str = ""
    """Of the first failure."""
    details: Mapping[str, str] = field(default_factory=dict)
    looked: Sequence[str] = ()
    """Audit events of code that looks into its callers, with the file that it is in."""
    wall_s: float = 0.0


class Tester:
    """Runs tests in boxes.

    Args:
        settings: `reward.swe`.
    """

    def __init__(self, settings: SweConfig, boxes: Boxes) -> None:
        self._settings, self._boxes = settings, boxes
        self._harness = package_files("r1async.swe").joinpath("harness.py").read_bytes()

    def run(self, instance: Instance, base: Base, tree: Tree, tests: Sequence[str]) -> Report:
        """Run some tests on a tree: all cases of their functions, so that nothing in the order tells a control (whose
        cases may have other names) from the real run.

        Raises:
            SandboxError: the box failed.
        """
        environment = instance.environment
        if environment.runner == "command":
            return self._command(instance, base, tree, tests)
        word = secrets.token_hex(16)
        order = {
            "word": word,
            "runner": environment.runner,
            "functions": list(dict.fromkeys(map(function_of, tests))),
            "files": list(dict.fromkeys(test_file(each) for each in tests)),
            "arguments": list(environment.arguments),
            "plugins": None if environment.plugins is None else list(environment.plugins),
            "pythonpath": list(environment.pythonpath),
        }
        python = self._boxes.python(environment)
        outcome = self._outcome(instance, base, tree, (python, "-s", "-B", "../harness.py"), json.dumps(order).encode())
        return _read(outcome, word)

    def _outcome(self, instance: Instance, base: Base, tree: Tree, argv: Sequence[str], stdin: bytes) -> Outcome:
        environment = instance.environment
        job = Job(
            script=_SCRIPT,
            arguments=argv,
            files={"tree.tar": to_tar(tree), "git.tar": base.git, "harness.py": self._harness},
            stdin=stdin,
            env={**_ENV, **environment.env, "PATH": search_path(self._boxes.python(environment))},
            timeout_s=environment.timeout_s or self._settings.timeout_s,
            memory_mib=environment.memory_mib or self._settings.memory_mib,
        )
        return self._boxes.box(environment).run(job)

    def _command(self, instance: Instance, base: Base, tree: Tree, tests: Sequence[str]) -> Report:
        environment = instance.environment
        names = dict.fromkeys(test_file(each) if environment.log_parser == "pytest" else each for each in tests)
        # Not str.format: a command may hold braces of its own.
        command = environment.test_command.replace("{tests}", " ".join(shlex.quote(name) for name in names))
        outcome = self._outcome(instance, base, tree, ("/bin/sh", "-c", f"exec 2>&1; {command}"), b"")
        outcomes = LOG_PARSERS[environment.log_parser](outcome.stdout.decode(errors="replace"))
        return _closed(outcome, outcomes, list(outcomes), {}, outcome.exit_code)


def _read(outcome: Outcome, word: str) -> Report:
    """The lines that begin with the word; everything else is somebody else's."""
    outcomes: dict[str, str] = {}
    details: dict[str, str] = {}
    collected: list[str] = []
    looked: list[str] = []
    finished: int | None = None
    mark = word.encode() + b" "
    for line in outcome.stdout.split(b"\n"):
        if not line.startswith(mark):
            continue
        try:
            record = json.loads(line[len(mark) :])
        except ValueError:
            continue
        match record:
            case {"collected": list(names)}:
                collected += [name for name in names if isinstance(name, str)]
            case {"test": str(name), "when": str(when), "outcome": str(found), "detail": str(detail)}:
                _note(outcomes, name, when, found)
                if detail:
                    details.setdefault(name, detail)
            case {"broken": str(name), "detail": str(detail)}:
                details.setdefault(name, detail)
            case {"looked": str(event), "in": str(path)}:
                looked.append(f"{event} in {path}")
            case {"finished": int(code)}:
                finished = code
            case _:
                pass
    report = replace(_closed(outcome, outcomes, collected, details, finished), looked=looked)
    if not report.detail and report.ended != "ok":
        tail = outcome.stderr[-400:].decode(errors="replace").strip()
        return replace(report, detail=tail)
    return report


def _note(outcomes: dict[str, str], name: str, when: str, found: str) -> None:
    """A test passes by its call, and only if setup and teardown do not fail; the worst word stays."""
    before = outcomes.get(name)
    if before == "failed" or (when != "call" and found == "passed"):
        return
    if before is None or found == "failed" or when == "call":
        outcomes[name] = found


def _closed(
    outcome: Outcome,
    outcomes: Mapping[str, str],
    collected: Sequence[str],
    details: Mapping[str, str],
    finished: int | None,
) -> Report:
    ended = "ok"
    if outcome.status in ("timeout", "memory", "output"):
        ended = outcome.status
    elif finished is None or finished != outcome.exit_code:
        ended = "unfinished"
    elif (finished == 0) == any(found in ("failed", "xpassed") for found in outcomes.values()) and not details:
        ended = "unfinished"  # the exit code says one thing, and the results another
    return Report(
        outcomes=outcomes,
        collected=collected,
        ended=ended,
        detail=next((f"{name}: {text}" for name, text in details.items()), ""),
        details=details,
        wall_s=outcome.wall_s,
    )


_PYTEST_LINE = re.compile(r"(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\s+(?:\[\d+\]\s+)?(\S.*?)(?:\s+-\s.*)?$")
_PYTEST_WORDS = {
    "PASSED": "passed",
    "FAILED": "failed",
    "ERROR": "failed",
    "SKIPPED": "skipped",
    "XFAIL": "xfailed",
    "XPASS": "xpassed",
}


def read_pytest_log(text: str) -> dict[str, str]:
    """Results from the summary of `pytest -rA`; a test named twice has the worse one."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if (line_of := _PYTEST_LINE.fullmatch(line.strip())) is not None:
            _worse(found, line_of[2], _PYTEST_WORDS[line_of[1]])
    return found


_UNITTEST_LINE = re.compile(r"(\S+(?: \([\w.]+\))?)(?:\n.*?)? \.\.\. (ok|FAIL|ERROR|skipped.*|expected failure)$", re.M)


def read_unittest_log(text: str) -> dict[str, str]:
    """Results from `unittest -v`, and from Django's runner."""
    words = {"ok": "passed", "FAIL": "failed", "ERROR": "failed", "expected failure": "xfailed"}
    found: dict[str, str] = {}
    for line in _UNITTEST_LINE.finditer(text):
        _worse(found, line[1], words.get(line[2], "skipped"))
    return found


def _worse(found: dict[str, str], name: str, outcome: str) -> None:
    if found.get(name) != "failed":
        found[name] = outcome


LOG_PARSERS: Mapping[str, Callable[[str], dict[str, str]]] = {
    "pytest": read_pytest_log,
    "unittest": read_unittest_log,
}


def of_function(report: Report, function: str) -> list[str]:
    """Outcomes of all cases of a test function."""
    return [found for name, found in report.outcomes.items() if function_of(name) == function]
