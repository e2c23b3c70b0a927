"""The part `swe` of a reward: does the patch in a completion resolve the instance that its row names?"""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import asdict
from pathlib import Path

from r1async.config import ConfigError
from r1async.config_swe import SweConfig
from r1async.rewards.sandbox import SandboxError
from r1async.swe.grade import Graded, SweGrader
from r1async.swe.instance import Instance, Unreadable, read_instances
from r1async.swe.repository import RepositoryError
from r1async.tasks.meta import Question
from r1async.types import Verdict

REMEMBERED = 4096
"""Verdicts kept: members of a group often propose the same."""


class SweJudge:
    """Verdicts on completions, by the row's column `instance_id`.

    A row's column `task` may say `patch` (the completion is the patch itself, as in predictions) or `check` (the
    completion does not matter, the instance is examined).

    Args:
        settings: `reward.swe`.

    Raises:
        ConfigError: the instances cannot be read, or there is no container program that is asked for.
    """

    def __init__(self, settings: SweConfig) -> None:
        self._instances = load_instances(settings)
        try:
            self._grader = SweGrader(settings)
        except SandboxError as error:
            raise ConfigError(str(error)) from error
        self._known: OrderedDict[tuple[str, str, str], Graded] = OrderedDict()

    def judge(self, question: Question, text: str) -> Verdict:
        """The verdict; abstains as `ungradable` for a row that names no instance."""
        name, task = question.extra.get("instance_id", ""), question.extra.get("task", "")
        instance = self._instances.get(name)
        if instance is None:
            return Verdict(total=None, status="ungradable", detail=f"reward.swe.instances has no instance {name!r}")
        if isinstance(instance, Unreadable):
            return Verdict(total=None, status="ungradable", detail=instance.why)
        if task == "check":
            return self._checked(instance)
        key = name, task, text if task == "patch" else self._grader.proposal_of(text)
        if key not in self._known:
            graded = (
                self._grader.grade(instance, text) if task == "patch" else self._grader.grade_answer(instance, text)
            )
            if graded.verdict.total is None:
                return Verdict(total=None, status=graded.verdict.status, detail=graded.detail)
            self._known[key] = graded
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        graded = self._known[key]
        return Verdict(total=graded.verdict.total, status=graded.verdict.status, detail=graded.detail)

    def _checked(self, instance: Instance) -> Verdict:
        try:
            check = self._grader.check(instance, again=True)
        except (SandboxError, RepositoryError) as error:
            return Verdict(total=None, status="infra_error", detail=str(error))
        return Verdict(total=float(check.ok), status=check.status, detail=json.dumps(asdict(check)))


def load_instances(settings: SweConfig) -> dict[str, Instance | Unreadable]:
    """All instances of `reward.swe.instances` by name.

    Raises:
        ConfigError: there is no such file, or one name twice.
    """
    path = Path(settings.instances)
    if not settings.instances or not path.is_file():
        raise ConfigError(f"reward.swe.instances: must be a JSONL file of instances, got {settings.instances!r}")
    found: dict[str, Instance | Unreadable] = {}
    for instance in read_instances(path):
        if instance.instance_id in found:
            raise ConfigError(f"reward.swe.instances: {path} has {instance.instance_id} twice")
        found[instance.instance_id] = instance
    return found
