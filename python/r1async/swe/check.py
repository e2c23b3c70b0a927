"""Is an instance good for training? Its reference patch resolves it, every time; no patch does not; and its tests can
be made to fail.

What is found out here is needed for every verdict on the instance, so it is remembered in a folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files as package_files
from pathlib import Path

from r1async.config_swe import SweConfig
from r1async.swe.controls import Plan, count_sites, evenly, plan
from r1async.swe.instance import Instance
from r1async.swe.names import function_of, places
from r1async.swe.restore import INFRASTRUCTURE, Restored, restore
from r1async.swe.testing import Report, Tester, of_function
from r1async.swe.tree import Tree, changed
from r1async.swe.workshop import Base, CommandError, Workshop

PASSED = "passed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """What is known about an instance."""

    status: str
    """ok, or why no verdict on it is worth anything: gold_fails, flaky, empty_passes, no_apply, setup_fails."""
    detail: str = ""
    gold_passes: int = 0
    gold_runs: int = 0
    expected: Mapping[str, str] = field(default_factory=dict)
    """Outcome of each required test under the reference patch."""
    controls: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Test functions, and the numbers of their changes that the reference patch was seen to fail."""
    looked: Sequence[str] = ()
    """Introspection that the reference solution and the tests do themselves."""
    uncontrolled: Sequence[str] = ()
    """Functions of FAIL_TO_PASS whose results nothing but the run itself vouches for."""
    elapsed_s: float = 0.0

    @property
    def ok(self) -> bool:
        return self.status == "ok"


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """An instance ready for patches."""

    base: Base
    trusted: Tree
    """With the test patch."""
    test_files: Sequence[str]
    allowed: Sequence[str]


class NotApplicableError(ValueError):
    """The instance's own patch does not apply."""


class Checker:
    """Checks instances.

    Args:
        settings: `reward.swe`.
    """

    def __init__(self, settings: SweConfig, workshop: Workshop, tester: Tester) -> None:
        self._settings, self._workshop, self._tester = settings, workshop, tester

    def stage(self, instance: Instance) -> Stage:
        """
        Raises:
            NotApplicableError: the test patch or the reference patch does not apply.
            CommandError, RepositoryError, SandboxError: as `Workshop`.
        """
        base = self._workshop.base(instance)
        trusted = self._apply(instance, base, "test_patch", instance.test_patch)
        gold = self._apply(instance, base, "patch", instance.patch)
        touched = [path for path in changed(base.tree, gold) if path.rpartition("/")[2] not in INFRASTRUCTURE]
        return Stage(
            base=base,
            trusted=trusted,
            test_files=list(changed(base.tree, trusted)),
            allowed=[*touched, *instance.environment.unprotected],
        )

    def _apply(self, instance: Instance, base: Base, what: str, patch: str) -> Tree:
        if not patch.strip():
            return base.tree
        applied = self._workshop.apply(instance.environment, base, patch)
        if applied.tree is None:
            raise NotApplicableError(f"{what}: {applied.how}")
        return applied.tree

    def patched(self, instance: Instance, stage: Stage, tree: Tree) -> Restored:
        """A tree with a model's patch, built, and with the tests as they should be.

        Raises:
            CommandError: `environment.build` failed on it.
            SandboxError: the box did.
        """
        restored = self._restored(stage, tree)
        if not instance.environment.build:
            return restored
        built = self._workshop.run_commands(instance, stage.base, restored.tree, instance.environment.build)
        # Once more: building ran the patch's code.
        return replace_undone(self._restored(stage, built), restored.undone)

    def _restored(self, stage: Stage, tree: Tree) -> Restored:
        return restore(tree, stage.trusted, test_files=stage.test_files, allowed=stage.allowed)

    def check(self, instance: Instance, stage: Stage) -> Check:
        """
        Raises:
            SandboxError: the box failed.
        """
        began = time.monotonic()
        try:
            check = self._check(instance, stage)
        except CommandError as error:
            check = Check(status="gold_fails", detail=f"environment.build: {error}")
        return replace(check, elapsed_s=time.monotonic() - began)

    def _check(self, instance: Instance, stage: Stage) -> Check:
        gold = self.patched(instance, stage, self._apply(instance, stage.base, "patch", instance.patch)).tree
        reports = [self._run(instance, stage, gold) for _ in range(self._settings.gold_runs)]
        check = _of_gold(instance, reports)
        if not check.ok:
            return check
        empty = self._run(instance, stage, self.patched(instance, stage, stage.base.tree).tree, instance.fail_to_pass)
        passing = [name for name in instance.fail_to_pass if empty.outcomes.get(name) == PASSED]
        if len(passing) == len(instance.fail_to_pass):
            return replace(check, status="empty_passes", detail="every FAIL_TO_PASS test passes without a patch")
        found = self._controls(instance, stage, gold)
        wanted = dict.fromkeys(function_of(name) for name in instance.fail_to_pass)
        uncontrolled = [name for name in wanted if name not in found] if self._settings.controls else []
        return replace(check, controls=found, uncontrolled=uncontrolled)

    def _run(self, instance: Instance, stage: Stage, tree: Tree, tests: Sequence[str] | None = None) -> Report:
        return self._tester.run(instance, stage.base, tree, instance.required if tests is None else tests)

    def _controls(self, instance: Instance, stage: Stage, gold: Tree) -> dict[str, list[int]]:
        """Which changes of which functions make them fail under the reference patch."""
        sources = test_sources(instance, stage)
        numbers = {
            name: evenly(count_sites(sources, places(name)), self._settings.controls)
            for name in controlled(instance, self._settings)
        }
        found: dict[str, list[int]] = {}
        for round_, chosen in enumerate(rounds(instance, numbers)):
            planned = self.plan(instance, stage, chosen, round_)
            for name in failing(self.run_plan(instance, stage, gold, planned), planned.functions):
                found.setdefault(name, []).append(chosen[name])
        return found

    def plan(self, instance: Instance, stage: Stage, chosen: Mapping[str, int], seed: int) -> Plan:
        return plan(test_sources(instance, stage), {name: places(name) for name in chosen}, chosen, seed)

    def run_plan(self, instance: Instance, stage: Stage, tree: Tree, planned: Plan) -> Report:
        """Run all required tests, some of them changed: fewer would tell a control from the real run."""
        changed_tree = {**tree}
        for path, data in planned.files.items():
            changed_tree[path] = changed_tree[path]._replace(data=data)
        return self._tester.run(instance, stage.base, changed_tree, instance.required)


def replace_undone(restored: Restored, before: Sequence[str]) -> Restored:
    return Restored(restored.tree, sorted({*restored.undone, *before}))


def _of_gold(instance: Instance, reports: Sequence[Report]) -> Check:
    good = [report for report in reports if not unresolved(instance, report, report.outcomes)]
    first = good[0] if good else reports[0]
    check = Check(
        status="ok",
        gold_passes=len(good),
        gold_runs=len(reports),
        looked=sorted({each for report in reports for each in report.looked}),
        expected={name: first.outcomes[name] for name in instance.required if name in first.outcomes},
    )
    if len(good) == len(reports):
        return check
    bad = next(report for report in reports if report not in good)
    why = unresolved(instance, bad, bad.outcomes)
    return replace(check, status="flaky" if good else "gold_fails", detail=why)


def unresolved(instance: Instance, report: Report, expected: Mapping[str, str]) -> str:
    """Why a run does not resolve its instance; empty if it does.

    Every FAIL_TO_PASS and PASS_TO_PASS test passed; one that is skipped, or fails as it is expected to, counts only
    where it is so under the reference patch too, and not in FAIL_TO_PASS if it is skipped.
    """
    if report.ended != "ok":
        return f"the run of the tests is {report.ended}: {report.detail or 'no reason'}"
    for name in instance.required:
        found = report.outcomes.get(name, "missing")
        lenient = ("xfailed",) if name in instance.fail_to_pass else ("xfailed", "xpassed", "skipped")
        if found == PASSED or (found in lenient and expected.get(name) == found):
            continue
        kind = "FAIL_TO_PASS" if name in instance.fail_to_pass else "PASS_TO_PASS"
        return f"{kind} {name}: {found}: {report.details.get(name, report.detail)}"
    return ""


def failing(report: Report, functions: Sequence[str]) -> list[str]:
    """Changed functions that failed, as they have to."""
    return [name for name in functions if not survived(report, name)]


def survived(report: Report, function: str) -> bool:
    """A changed function passed all the same. Cases that are skipped, or fail as expected, say nothing either way."""
    found = of_function(report, function)
    return PASSED in found and "failed" not in found


def controlled(instance: Instance, settings: SweConfig) -> list[str]:
    """Test functions that take part in controls: of FAIL_TO_PASS all, of PASS_TO_PASS some, always the same."""
    first = dict.fromkeys(function_of(name) for name in instance.fail_to_pass)
    others = {function_of(name) for name in instance.pass_to_pass} - first.keys()
    others = sorted(others, key=lambda name: hashlib.sha256(f"{instance.instance_id} {name}".encode()).digest())
    return [*first, *others[: settings.control_passing]]


def rounds(instance: Instance, numbers: Mapping[str, Sequence[int]]) -> list[dict[str, int]]:
    """Control runs: each function with its next change, until every one has had all of them.

    FAIL_TO_PASS and PASS_TO_PASS never in the same run: whoever knows the text of a PASS_TO_PASS test by heart would
    see by it that a run is a control.
    """
    new = {function_of(name) for name in instance.fail_to_pass}
    return [
        {name: each[round_] for name, each in part.items() if round_ < len(each)}
        for part in (
            {name: each for name, each in numbers.items() if name in new},
            {name: each for name, each in numbers.items() if name not in new},
        )
        for round_ in range(max(map(len, part.values()), default=0))
    ]


def test_sources(instance: Instance, stage: Stage) -> dict[str, bytes]:
    """The test files that required tests are written in."""
    paths = {where.path for name in instance.required for where in places(name)}
    return {path: stage.trusted[path].data for path in sorted(paths) if path in stage.trusted}


test_sources.__test__ = False  # pyright: ignore[reportFunctionMemberAccess] - pytest would take it for a test


def _fingerprint() -> str:
    """Of the code that a remembered check depends on."""
    whole = hashlib.sha256()
    for name in ("check.py", "controls.py", "harness.py", "restore.py", "testing.py", "workshop.py", "names.py"):
        whole.update(package_files("r1async.swe").joinpath(name).read_bytes())
    return whole.hexdigest()


class CheckStore:
    """Checks remembered as files, one an instance, made by one process at a time."""

    def __init__(self, folder: Path, settings: SweConfig) -> None:
        self._folder, self._code = folder / "checks", _fingerprint()
        self._settings = {name: value for name, value in asdict(settings).items() if name in _DECIDES}

    def load(self, instance: Instance) -> Check | None:
        try:
            row = json.loads(self._path(instance).read_bytes())
        except FileNotFoundError:
            return None
        return Check(**row)

    def save(self, instance: Instance, check: Check) -> None:
        path = self._path(instance)
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps(asdict(check)))
        fresh.replace(path)

    @contextlib.contextmanager
    def alone(self, instance: Instance) -> Iterator[None]:
        """Hold the instance against other processes; its lock ends with us."""
        path = self._path(instance).with_suffix(".lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _path(self, instance: Instance) -> Path:
        what = json.dumps([asdict(instance), self._settings, self._code], sort_keys=True)
        return self._folder / f"{hashlib.sha256(what.encode()).hexdigest()[:32]}.json"


_DECIDES = frozenset(
    (
        *("repos", "python", "container", "controls", "control_passing", "gold_runs", "memory_mib"),
        *("timeout_s", "files_mib", "processes", "read_only", "unsafe"),
    )
)
