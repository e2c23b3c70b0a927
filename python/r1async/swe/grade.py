"""Does a patch resolve its instance?"""

from __future__ import annotations

import os
import secrets
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from r1async.answers import extract_answer
from r1async.config_swe import SweConfig
from r1async.rewards.sandbox import SandboxError
from r1async.swe.boxes import Boxes
from r1async.swe.check import Check, Checker, CheckStore, NotApplicableError, Stage, rounds, survived, unresolved
from r1async.swe.edits import Edit, EditError, apply_edits, fill, find_diff, parse_edits
from r1async.swe.instance import Instance
from r1async.swe.repository import Repositories, RepositoryError
from r1async.swe.shell import ShellEnvironment
from r1async.swe.testing import Tester
from r1async.swe.tree import Tree
from r1async.swe.workshop import CommandError, Workshop
from r1async.types import Verdict

STAGES = 4
"""Instances kept ready in memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Graded:
    """A verdict and how it came about."""

    verdict: Verdict
    detail: str = ""
    applied: str = ""
    """The command that took the patch."""
    undone: Sequence[str] = ()
    """Changes to tests and their settings that were taken back."""
    controls: int = 0
    """Runs of tests that had to fail, and did."""


class SweGrader:
    """Grades patches one after another.

    Args:
        settings: `reward.swe`.

    Raises:
        SandboxError: `container` names what is not here.
    """

    def __init__(self, settings: SweConfig) -> None:
        self._settings = settings
        cache = Path(settings.cache or default_cache())
        self._boxes = Boxes(settings)
        self.workshop = Workshop(settings, Repositories(settings.repos, cache), self._boxes)
        self._tester = Tester(settings, self._boxes)
        self._checker = Checker(settings, self.workshop, self._tester)
        self._store = CheckStore(cache, settings)
        self._stages: OrderedDict[str, tuple[Instance, Stage]] = OrderedDict()

    def close(self) -> None:
        self._boxes.close()

    def check(self, instance: Instance, *, again: bool = False) -> Check:
        """Whether verdicts on an instance mean something; remembered.

        Args:
            again: find out anew.

        Raises:
            SandboxError: the box failed.
            RepositoryError: the repository is not to be had.
        """
        known = None if again else self._store.load(instance)
        if known is not None:
            return known
        with self._store.alone(instance):
            known = None if again else self._store.load(instance)
            if known is None:
                known = self._found_out(instance)
                self._store.save(instance, known)
        return known

    def _found_out(self, instance: Instance) -> Check:
        try:
            return self._checker.check(instance, self._stage(instance))
        except NotApplicableError as error:
            return Check(status="no_apply", detail=str(error))
        except CommandError as error:
            return Check(status="setup_fails", detail=str(error))

    def _stage(self, instance: Instance) -> Stage:
        name = instance.instance_id
        known = self._stages.get(name)
        if known is None or known[0] != instance:
            self._stages[name] = known = instance, self._checker.stage(instance)
            if len(self._stages) > STAGES:
                self._stages.popitem(last=False)
        self._stages.move_to_end(name)
        return known[1]

    def session(self, instance: Instance) -> ShellEnvironment:
        """A shell on the repository at the base commit, for a rollout of several turns.

        Raises:
            SandboxError, RepositoryError, CommandError: it cannot be had.
        """
        environment = instance.environment
        if environment.image and self._settings.container != "none":
            raise SandboxError(f"{instance.instance_id}: a session has no container; set reward.swe.container=none")
        base = self.workshop.base(instance)
        return ShellEnvironment(self._settings, base, environment, self._boxes.python(environment))

    def grade(self, instance: Instance, patch: str) -> Graded:
        """The verdict on a patch: a score of 1 with status ok, 0 with the reason, or an abstention: `ungradable` for an
        instance that its own reference patch does not resolve, `infra_error` for a sandbox or a repository that
        failed."""
        if not patch.strip():
            return _zero("empty", "no patch")
        if len(patch) > self._settings.max_patch_kib * 1024:
            return _zero("guard", f"a patch of {len(patch)} characters")
        return self._asked(instance, lambda check: self._grade(instance, patch, check))

    def proposal_of(self, completion: str) -> str:
        """What a completion proposes, without its thoughts: completions that agree in this have the same verdict."""
        if self._settings.answer == "replacement":
            return f"answer {extract_answer(completion)}"
        try:
            edits = parse_edits(completion) if self._settings.answer in ("edits", "any") else []
        except EditError as error:
            return f"error {error}"
        return repr(edits) if edits else find_diff(completion)

    def grade_answer(self, instance: Instance, completion: str) -> Graded:
        """The verdict on what a completion proposes (`reward.swe.answer`), else as `grade`."""
        if len(completion) > self._settings.max_patch_kib * 1024:
            return _zero("guard", f"a completion of {len(completion)} characters")
        kind = self._settings.answer
        if kind == "replacement" and instance.hole is None:
            return _unknown("ungradable", "reward.swe.answer=replacement, and the instance has no hole")
        try:
            edits = parse_edits(completion) if kind in ("edits", "any") else []
        except EditError as error:
            return _zero("no_apply", str(error))
        if kind in ("diff", "any") and not edits:
            return self.grade(instance, find_diff(completion))
        if kind == "edits" and not edits:
            return _zero("empty", "no edits")
        return self._asked(instance, lambda check: self._edited(instance, completion, edits, check))

    def _edited(self, instance: Instance, completion: str, edits: Sequence[Edit], check: Check) -> Graded:
        stage = self._stage(instance)
        try:
            hole = instance.hole
            tree = stage.base.tree
            tree = apply_edits(tree, edits) if edits or hole is None else fill(tree, hole, completion)
        except EditError as error:
            return _zero("no_apply", str(error))
        return self._graded(instance, stage, check, tree, "edits")

    def _asked(self, instance: Instance, grade: Callable[[Check], Graded]) -> Graded:
        try:
            check = self.check(instance)
            if not check.ok:
                return _unknown("ungradable", f"the instance is no good ({check.status}): {check.detail}")
            return grade(check)
        except (SandboxError, RepositoryError) as error:
            return _unknown("infra_error", str(error))
        except (NotApplicableError, CommandError) as error:
            return _unknown("ungradable", str(error))

    def _grade(self, instance: Instance, patch: str, check: Check) -> Graded:
        stage = self._stage(instance)
        applied = self.workshop.apply(instance.environment, stage.base, patch)
        if applied.tree is None:
            return _zero("no_apply", applied.how)
        return self._graded(instance, stage, check, applied.tree, applied.how)

    def _graded(self, instance: Instance, stage: Stage, check: Check, patched: Tree, how: str) -> Graded:
        try:
            tree, undone = self._checker.patched(instance, stage, patched)
        except CommandError as error:
            return _zero("compile", f"environment.build: {error}", how)
        report = self._tester.run(instance, stage.base, tree, instance.required)
        if why := unresolved(instance, report, check.expected):
            status = report.ended if report.ended in ("timeout", "memory", "output") else "wrong"
            return _zero(status, why, how, undone)
        if self._settings.introspection == "guard" and (new := sorted(set(report.looked) - set(check.looked))):
            return _zero("guard", f"looks into its callers: {new[0]}", how, undone)
        runs = 0
        for chosen in rounds(instance, check.controls):
            planned = self._checker.plan(instance, stage, chosen, secrets.randbits(32))
            control = self._checker.run_plan(instance, stage, tree, planned)
            if passed := [name for name in planned.functions if survived(control, name)]:
                return _zero("guard", f"passes what must fail: {passed[0]}", how, undone)
            runs += 1
        verdict = Verdict(total=1.0, status="ok")
        return Graded(verdict=verdict, applied=how, undone=undone, controls=runs)


def default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "r1async" / "swe"


def _zero(status: str, detail: str, applied: str = "", undone: Sequence[str] = ()) -> Graded:
    return Graded(verdict=Verdict(total=0.0, status=status), detail=detail, applied=applied, undone=undone)


def _unknown(status: str, detail: str) -> Graded:
    return Graded(verdict=Verdict.abstain(status), detail=detail)
