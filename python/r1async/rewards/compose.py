"""A verdict from its parts: accuracy, format, code and functions of the user's own, added up by their weights.

A reward function of your own is ``module:function`` in `reward.weights`:

    def concise(prompt: Question, completion: Completion) -> float | Verdict | None:
        return 1.0 if completion.num_tokens < 100 else 0.0

None, NaN and an exception abstain: the grader does not know, and unknown is not zero.
"""

from __future__ import annotations

import importlib
import logging
import math
import numbers
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from r1async.answers import extract_answer
from r1async.config import CodeConfig, ConfigError, RewardConfig
from r1async.rewards.code import CodeGrader
from r1async.rewards.format import in_format
from r1async.rewards.math import Equivalence, grade
from r1async.rewards.sandbox import SandboxError
from r1async.tasks.meta import Question
from r1async.types import Completion, Verdict

log = logging.getLogger(__name__)

RewardFunction = Callable[[Question, Completion], "float | Verdict | None"]

LOG_FIRST, LOG_EVERY = 3, 100
"""A function that fails is logged the first times in full, then once in so many: it may fail on every rollout."""


class Part(NamedTuple):
    name: str
    weight: float
    judge: Callable[[Question, Completion], Verdict]


class Grader:
    """The configured reward.

    Args:
        settings: what adds up to it.
        before_slow: called before anything that can take longer than microseconds.

    Raises:
        ConfigError: a part that does not exist or cannot be imported; the message names it.
    """

    def __init__(self, settings: RewardConfig, before_slow: Callable[[], None]) -> None:
        self._parts = [
            Part(name, weight, _judge(name, settings, before_slow)) for name, weight in settings.weights.items()
        ]

    def grade(self, question: Question, completion: Completion) -> Verdict:
        """Weighted sum of the parts; abstains with the first part that does, unless that part weighs nothing."""
        total, status, parts = 0.0, "ok", {}
        for part in self._parts:
            verdict = part.judge(question, completion)
            for name, value in verdict.parts.items():
                parts[f"{part.name}.{name}"] = value
            if verdict.total is None:
                if part.weight:
                    return Verdict(total=None, parts=parts, status=verdict.status)
                continue
            parts[part.name] = verdict.total
            total += part.weight * verdict.total
            status = verdict.status if status == "ok" else status
        if not math.isfinite(total):
            return Verdict.abstain("nan")
        return Verdict(total=total, parts=parts, status=status)


def _judge(
    name: str, settings: RewardConfig, before_slow: Callable[[], None]
) -> Callable[[Question, Completion], Verdict]:
    if name == "accuracy":
        return _accuracy(Equivalence(settings.equivalence == "symbolic", before_slow))
    if name == "format":
        return _format(settings)
    if name == "code":
        return _code(settings.code, before_slow)
    if ":" in name:
        return _Custom(name, import_function(name), before_slow)
    raise ConfigError(f"reward.weights.{name}: must be accuracy, format, code, or module:function of your own")


def _accuracy(equivalence: Equivalence) -> Callable[[Question, Completion], Verdict]:
    def judge(question: Question, completion: Completion) -> Verdict:
        value, status = grade(extract_answer(completion.text) or "", question.answer, equivalence)
        return Verdict(total=value, status=status)

    return judge


def _format(settings: RewardConfig) -> Callable[[Question, Completion], Verdict]:
    layout, prefilled = settings.format, settings.think_prefilled

    def judge(question: Question, completion: Completion) -> Verdict:
        # A completion that was cut has not ended its answer, whatever it looks like so far.
        good = completion.finish == "stop" and in_format(completion.text, layout, think_prefilled=prefilled)
        return Verdict(total=float(good))

    return judge


def _code(settings: CodeConfig, before_slow: Callable[[], None]) -> Callable[[Question, Completion], Verdict]:
    try:
        grader = CodeGrader(settings)
    except SandboxError as error:
        raise ConfigError(f"reward.weights.code: {error} (reward.code.unsafe)") from error
    abstentions: Counter[str] = Counter()

    def judge(question: Question, completion: Completion) -> Verdict:
        before_slow()
        extra = question.extra
        item = {key: extra[key] for key in ("language", "raw", "time_limit_s", "memory_limit_mib") if key in extra}
        problem = extra.get("problem", question.answer)
        graded = grader.grade({**item, "problem": problem, "completion": completion.text})
        if graded.verdict.total is None:
            status = graded.verdict.status
            abstentions[status] += 1
            if abstentions[status] <= LOG_FIRST or abstentions[status] % LOG_EVERY == 0:
                log.error("code abstains, %s: %s (%d so far)", status, graded.detail, abstentions[status])
        return graded.verdict

    return judge


def import_function(name: str) -> RewardFunction:
    """The function behind ``module:function``.

    Raises:
        ConfigError: no such module or function, or something that cannot be called.
    """
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ConfigError(
            f"reward.weights.{name}: cannot import {module_name}: {type(error).__name__}: {error}"
        ) from error
    if not hasattr(module, function_name):
        raise ConfigError(f"reward.weights.{name}: {module.__file__} has no {function_name!r}")
    function: RewardFunction = getattr(module, function_name)
    if not callable(function):
        raise ConfigError(f"reward.weights.{name}: must be a function, got {type(function).__name__}")
    return function


class _Custom:
    """A user's function, held to the rules of a verdict."""

    def __init__(self, name: str, function: RewardFunction, before_slow: Callable[[], None]) -> None:
        self._name, self._function, self._before_slow = name, function, before_slow
        self._failures: Counter[str] = Counter()

    def __call__(self, question: Question, completion: Completion) -> Verdict:
        self._before_slow()
        try:
            return self._held_to_rules(self._function(question, completion))
        except Exception as error:  # noqa: BLE001 - whatever it raises, it is the grader's fault and not the model's
            return self._fail("error", f"raised {type(error).__name__}: {error}", error)

    def _held_to_rules(self, result: float | Verdict | None) -> Verdict:
        """The result in plain floats and strings, which is what the pipe to the scorer carries: no NumPy scalars."""
        if result is None:
            return Verdict.abstain("abstained")
        if isinstance(result, Verdict):
            total = None if result.total is None else float(result.total)
            parts = {str(name): float(value) for name, value in result.parts.items()}
            if unfit := [f"{name}={value}" for name, value in parts.items() if not math.isfinite(value)]:
                return self._fail("nan", f"returned the part {unfit[0]}")
            return Verdict(total=total, parts=parts, status=str(result.status))
        if not isinstance(result, numbers.Real):
            return self._fail("error", f"returned {type(result).__name__}, wanted a number, a Verdict or None")
        value = float(result)
        return Verdict(total=value) if math.isfinite(value) else self._fail("nan", f"returned {value}")

    def _fail(self, status: str, what: str, error: Exception | None = None) -> Verdict:
        self._failures[status] += 1
        count = self._failures[status]
        if count <= LOG_FIRST or count % LOG_EVERY == 0:
            log.error("reward %s %s; the rollout abstains (%d so far)", self._name, what, count, exc_info=error)
        return Verdict.abstain(status)
