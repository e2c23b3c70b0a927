"""Instances in the shape of SWE-bench, with the environment that we need besides."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal, NamedTuple, get_args

RunnerKind = Literal["pytest", "unittest", "command"]
LogParser = Literal["pytest", "unittest"]
_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_REPO = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)?")
URL = re.compile(r"(https?|ssh|git|file)://\S+")
"""A repository that says itself where it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """How an instance's tests are run: the object `environment` of its row."""

    python: str = ""
    """Interpreter with the repository's dependencies and the test runner. Empty: `reward.swe.python`."""
    setup: tuple[str, ...] = ()
    """Shell commands in the repository at the base commit, before any patch; what they leave is part of the tree."""
    build: tuple[str, ...] = ()
    """Shell commands after the model's patch, which may run its code."""
    runner: RunnerKind = "pytest"
    """command: `test_command`, whose log `log_parser` reads. The log is the tested program's own word."""
    test_command: str = ""
    """Shell command; {tests} becomes the test files (pytest) or names (unittest), quoted."""
    log_parser: LogParser = "pytest"
    """pytest: lines of `pytest -rA`. unittest: lines `name ... ok` of `-v` (Django's runner too)."""
    arguments: tuple[str, ...] = ()
    """More arguments for pytest."""
    plugins: tuple[str, ...] | None = None
    """Names of pytest plugins to load; none: all that are installed."""
    pythonpath: tuple[str, ...] = (".", "src")
    """Folders of the repository that tests import from; those that do not exist are left out."""
    env: Mapping[str, str] = field(default_factory=dict)
    """More environment variables."""
    unprotected: tuple[str, ...] = ()
    """Patterns of paths that look like tests or their settings, but that a patch may change (`fnmatch`)."""
    image: str = ""
    """Container image that has all this, with the repository's dependencies."""
    timeout_s: float = 0.0
    """Seconds for one run of the tests. 0: `reward.swe.timeout_s`."""
    memory_mib: int = 0
    """0: `reward.swe.memory_mib`."""


class Hole(NamedTuple):
    """A place that an answer of a few characters fills, for models too small to write a patch."""

    path: str
    before: str
    """What stands there, exactly once."""
    after: str
    """What takes its place; {answer} becomes the answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Instance:
    """One task."""

    instance_id: str
    repo: str
    base_commit: str
    patch: str
    """The reference solution; never shown to a policy."""
    test_patch: str
    problem_statement: str
    fail_to_pass: tuple[str, ...]
    pass_to_pass: tuple[str, ...]
    version: str = ""
    environment: Environment = field(default_factory=Environment)
    hole: Hole | None = None

    @property
    def required(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.fail_to_pass, *self.pass_to_pass)))


class Unreadable(NamedTuple):
    """A line that is no instance."""

    instance_id: str
    why: str


def read_instances(path: Path) -> Iterator[Instance | Unreadable]:
    """Line by line of a JSONL file."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _read_line(line, f"line {number}")


def _read_line(line: bytes, where: str) -> Instance | Unreadable:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Unreadable(where, f"not JSON: {error}")
    if not isinstance(row, dict):
        return Unreadable(where, f"must be an object, got {type(row).__name__}")
    try:
        return parse_instance(row)
    except ValueError as error:
        name = row.get("instance_id")
        return Unreadable(name if isinstance(name, str) else where, str(error))


def parse_instance(row: Mapping[str, object]) -> Instance:
    """An instance from a row of a data set.

    Raises:
        ValueError: the message names the field, what it has and what it must have.
    """
    repo, commit = _text(row, "repo"), _text(row, "base_commit")
    if not URL.fullmatch(repo) and (not _REPO.fullmatch(repo) or ".." in repo):
        raise ValueError(f"repo: must be owner/name or a URL, got {repo!r}")
    if not _COMMIT.fullmatch(commit):
        raise ValueError(f"base_commit: must be a commit's hexadecimal name, got {commit!r}")
    fail_to_pass = _names(row, "FAIL_TO_PASS")
    if not fail_to_pass:
        raise ValueError("FAIL_TO_PASS: must name at least one test")
    name = _text(row, "instance_id")
    if not name:
        raise ValueError("instance_id: must not be empty")
    return Instance(
        instance_id=name,
        repo=repo,
        base_commit=commit,
        patch=_text(row, "patch"),
        test_patch=_text(row, "test_patch"),
        problem_statement=_text(row, "problem_statement"),
        fail_to_pass=fail_to_pass,
        pass_to_pass=_names(row, "PASS_TO_PASS"),
        version=str(row.get("version") or ""),
        environment=parse_environment(row.get("environment")),
        hole=_hole(row.get("hole")),
    )


def _hole(value: object) -> Hole | None:
    match value:
        case None:
            return None
        case {"path": str(path), "before": str(before), "after": str(after)} if path and before and "{answer}" in after:
            return Hole(path, before, after)
        case _:
            raise ValueError(f"hole: must be {{path, before, after}} with {{answer}} in after, got {value!r:.200}")


def _text(row: Mapping[str, object], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name}: must be a text, got {type(value).__name__}")
    return value


def _names(row: Mapping[str, object], name: str) -> tuple[str, ...]:
    """A list of test names, or its JSON text as in SWE-bench's files."""
    value = row.get(name)
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else []
        except ValueError as error:
            raise ValueError(f"{name}: must be a list or its JSON text, got {value!r:.100}") from error
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) and each for each in value):
        raise ValueError(f"{name}: must be a list of names of tests, got {value!r:.100}")
    return tuple(value)


def parse_environment(value: object) -> Environment:
    """The object `environment` of a row, or its JSON text.

    Raises:
        ValueError: an unknown or ill-typed field; the message names it.
    """
    if value is None or value == "":
        return Environment()
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f"environment: must be an object or its JSON text, got {value!r:.100}") from error
    if not isinstance(value, Mapping):
        raise ValueError(f"environment: must be an object, got {type(value).__name__}")
    known = {each.name for each in fields(Environment)}
    if unknown := sorted(set(value) - known):
        raise ValueError(f"environment.{unknown[0]}: is not known; there are {', '.join(sorted(known))}")
    given = {name: _field(name, each) for name, each in value.items()}
    environment = Environment(**given)  # pyright: ignore[reportArgumentType] - `_field` saw to the types
    if environment.runner == "command" and not environment.test_command:
        raise ValueError("environment.test_command: runner=command needs it")
    return environment


_LISTS = frozenset(("setup", "build", "arguments", "plugins", "pythonpath", "unprotected"))
_CHOICES: Mapping[str, Sequence[str]] = {"runner": get_args(RunnerKind), "log_parser": get_args(LogParser)}


def _field(name: str, value: object) -> object:
    if name in _LISTS:
        if name == "plugins" and value is None:
            return None
        if isinstance(value, str) or not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise ValueError(f"environment.{name}: must be a list of texts, got {value!r:.100}")
        return tuple(value)
    if name == "env":
        if not isinstance(value, Mapping) or not all(isinstance(v, str) for pair in value.items() for v in pair):
            raise ValueError(f"environment.env: must be an object of texts, got {value!r:.100}")
        return dict(value)
    if name in ("timeout_s", "memory_mib"):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**20:
            raise ValueError(f"environment.{name}: must be a number from 0, got {value!r}")
        return float(value) if name == "timeout_s" else int(value)
    if not isinstance(value, str):
        raise ValueError(f"environment.{name}: must be a text, got {type(value).__name__}")
    if name in _CHOICES and value not in _CHOICES[name]:
        raise ValueError(f"environment.{name}: must be one of {', '.join(_CHOICES[name])}, got {value!r}")
    return value
