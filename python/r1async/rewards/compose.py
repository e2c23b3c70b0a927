"""A verdict from its parts: rewards, penalties and functions of the user's own, added up by their weights.

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
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from r1async.answers import extract_answer, last_boxed
from r1async.config import CodeConfig, ConfigError, RewardConfig
from r1async.config_rewards import REWARD_PARTS
from r1async.config_swe import SweConfig
from r1async.reward_pools import OTHERS, weights_of
from r1async.rewards.benchmarks import GraderName, benchmark_judge
from r1async.rewards.code import CodeGrader
from r1async.rewards.format import in_format, thought_of
from r1async.rewards.math import Equivalence, grade
from r1async.rewards.penalties import overlong
from r1async.rewards.sandbox import SandboxError
from r1async.tasks.meta import Question
from r1async.types import Completion, Verdict

if TYPE_CHECKING:
    from r1async.rewards.words import Script

log = logging.getLogger(__name__)

RewardFunction = Callable[[Question, Completion], "float | Verdict | None"]

LOG_FIRST, LOG_EVERY = 3, 100
"""A function that fails is logged the first times in full, then once in so many: it may fail on every rollout."""


Judge = Callable[[Question, Completion], Verdict]


class Grader:
    """The configured reward, of those parts that need nothing but this process.

    Args:
        settings: what adds up to it.
        before_slow: called before anything that can take longer than microseconds.
        weights: by domain, parts and weights; None: all of `settings`.

    Raises:
        ConfigError: a part that does not exist or cannot be imported; the message names it.
    """

    def __init__(
        self,
        settings: RewardConfig,
        before_slow: Callable[[], None],
        weights: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        self._weights = weights_of(settings) if weights is None else weights
        names = dict.fromkeys(name for parts in self._weights.values() for name in parts)
        self._judges = {name: _judge(name, settings, before_slow) for name in names}

    def grade(self, question: Question, completion: Completion, domain: str = OTHERS) -> Verdict:
        """See `add_up`. Asks no further part once one abstains."""
        weights = self._weights[domain]
        return add_up((name, weight, self._judges[name](question, completion)) for name, weight in weights.items())


def add_up(parts: Iterable[tuple[str, float, Verdict]]) -> Verdict:
    """Weighted sum of the parts; abstains with the first part that does, unless that part weighs nothing.

    A part that is neutral (`NEUTRAL`) is left out of the sum, and the verdict abstains if nothing else of any weight
    is in it.

    Args:
        parts: name, weight and verdict of each.
    """
    total, status, named, details = 0.0, "ok", {}, []
    neutral, known = "", False
    for name, weight, verdict in parts:
        for inner, value in verdict.parts.items():
            named[f"{name}.{inner}"] = value
        if verdict.detail:
            details.append(verdict.detail)
        if verdict.total is None:
            if verdict.status in NEUTRAL:
                neutral = neutral or verdict.status
            elif weight:
                return Verdict(total=None, parts=named, status=verdict.status, detail="; ".join(details))
            continue
        named[name] = verdict.total
        total += weight * verdict.total
        known = known or bool(weight)
        status = verdict.status if status == "ok" else status
    if not math.isfinite(total):
        return Verdict.abstain("nan")
    if neutral and not known:
        return Verdict(total=None, parts=named, status=neutral, detail="; ".join(details))
    return Verdict(total=total, parts=named, status=status, detail="; ".join(details))


def join(verdicts: Mapping[str, Verdict], weightless: Collection[str] = ()) -> Verdict:
    """One verdict of those that several pools gave on the parts they grade: sums add up.

    Args:
        verdicts: by pool.
        weightless: pools all of whose parts weigh nothing: what they do not know is left out.
    """
    total, status, parts, details, neutral = 0.0, "ok", {}, [], ""
    known = weighed = False
    for pool, verdict in verdicts.items():
        parts |= verdict.parts
        details += [verdict.detail] if verdict.detail else []
        if verdict.total is None:
            if verdict.status in NEUTRAL:
                neutral = neutral or verdict.status
            elif pool not in weightless:
                return Verdict(total=None, parts=parts, status=verdict.status, detail="; ".join(details))
            continue
        total, known, weighed = total + verdict.total, True, weighed or pool not in weightless
        status = verdict.status if status == "ok" else status
    if known and not math.isfinite(total):
        return Verdict.abstain("nan")
    if not known or (neutral and not weighed):
        return Verdict(total=None, parts=parts, status=neutral or "abstained", detail="; ".join(details))
    return Verdict(total=total, parts=parts, status=status, detail="; ".join(details))


NEUTRAL = frozenset(("no_words",))
"""Statuses of a part that has nothing to judge: neither for the completion nor against it."""


def _judge(name: str, settings: RewardConfig, before_slow: Callable[[], None]) -> Judge:
    if name in JUDGES:
        return JUDGES[name](settings, before_slow)
    if ":" in name:
        return _Custom(name, import_function(name), before_slow)
    raise ConfigError(f"reward.weights.{name}: must be {', '.join(REWARD_PARTS)}, or module:function of your own")


def _accuracy(settings: RewardConfig, equivalence: Equivalence) -> Judge:
    # Where they abstain the buffer keeps those it trains; what comes here is evaluated, and wrong there.
    cut_is_wrong = settings.truncated in ("wrong", "abstain")

    def judge(question: Question, completion: Completion) -> Verdict:
        if cut_is_wrong and completion.finish == "length":
            return Verdict(total=0.0, status="truncated")
        answer = extract_answer(completion.text)
        value, status = grade(answer or "", reference_of(question.answer), equivalence)
        detail = "no answer" if answer is None else f"answer: {answer:.{DETAIL_CHARS}}"
        return Verdict(total=value, status=status, detail=detail)

    return judge


DETAIL_CHARS = 200


@lru_cache(maxsize=1024)
def reference_of(answer: str) -> str:
    """A reference answer, bare or inside of its box."""
    return last_boxed(answer) or answer


def _format(settings: RewardConfig) -> Judge:
    layout, mark = settings.format, settings.special_token

    def judge(question: Question, completion: Completion) -> Verdict:
        # A completion that was cut has not ended its answer, whatever it looks like so far.
        prefilled = settings.prefilled(question.extra)
        good = in_format(completion.text, layout, think_prefilled=prefilled, special_token=mark)
        return Verdict(total=float(good and completion.finish == "stop"))

    return judge


def _language(settings: RewardConfig, before_slow: Callable[[], None]) -> Judge:
    # Imported here, with NumPy: most rewards do without.
    from r1async.rewards.identify import identify
    from r1async.rewards.language import consistency, target_of

    def announced(text: str, script: Script) -> str:
        before_slow()
        return identify(text, script)

    def judge(question: Question, completion: Completion) -> Verdict:
        try:
            target = target_of(question.extra.get("target_language", settings.target_language))
        except ValueError as error:
            return Verdict(total=None, status="ungradable", detail=str(error))
        thought = thought_of(
            completion.text,
            settings.format,
            think_prefilled=settings.prefilled(question.extra),
            special_token=settings.special_token,
        )
        found = consistency(thought, target, announced if settings.identify_sentences else None)
        if found.score is None or found.share is None:
            return Verdict(total=None, status="no_words", detail="a thought without words")
        parts = {"share": found.share, "repeated": found.repeated}
        return Verdict(total=found.score, parts=parts, detail=f"{found.words} words")

    return judge


def _overlong(settings: RewardConfig) -> Judge:
    cache, longest = settings.overlong_cache, settings.overlong_max

    def judge(question: Question, completion: Completion) -> Verdict:
        return Verdict(total=overlong(completion.num_tokens, longest=longest, cache=cache))

    return judge


def _repetition(settings: RewardConfig) -> Judge:
    from r1async.rewards.words import repetition

    def judge(question: Question, completion: Completion) -> Verdict:
        return Verdict(total=0.0 - repetition(completion.text, settings.repetition_row))

    return judge


def _benchmark(name: GraderName, settings: RewardConfig, before_slow: Callable[[], None]) -> Judge:
    cut_is_wrong = settings.truncated in ("wrong", "abstain")  # as `accuracy`
    graded = benchmark_judge(name, before_slow)

    def judge(question: Question, completion: Completion) -> Verdict:
        if cut_is_wrong and completion.finish == "length":
            return Verdict(total=0.0, status="truncated")
        if name == "ifeval" and settings.prefilled(question.extra):
            # The prompt opened the thought: one that never ends would pass for the response.
            completion = replace(completion, text=f"<think>{completion.text}")
        return graded(question, completion)

    return judge


def _code(settings: CodeConfig, before_slow: Callable[[], None]) -> Judge:
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
        return replace(graded.verdict, detail=graded.detail)

    return judge


def _swe(settings: SweConfig, before_slow: Callable[[], None]) -> Judge:
    # Imported here: most rewards do without.
    from r1async.rewards.swe import SweJudge

    judge_of = SweJudge(settings)
    abstentions: Counter[str] = Counter()

    def judge(question: Question, completion: Completion) -> Verdict:
        before_slow()
        verdict = judge_of.judge(question, completion.text)
        if verdict.total is None:
            abstentions[verdict.status] += 1
            times = abstentions[verdict.status]
            if times <= LOG_FIRST or times % LOG_EVERY == 0:
                log.error("swe abstains, %s: %.500s (%d so far)", verdict.status, verdict.detail, times)
        return verdict

    return judge


JUDGES: Mapping[str, Callable[[RewardConfig, Callable[[], None]], Judge]] = {
    "accuracy": lambda settings, before_slow: _accuracy(
        settings, Equivalence(settings.equivalence == "symbolic", before_slow)
    ),
    "format": lambda settings, before_slow: _format(settings),
    "code": lambda settings, before_slow: _code(settings.code, before_slow),
    "swe": lambda settings, before_slow: _swe(settings.swe, before_slow),
    "language": _language,
    "overlong": lambda settings, before_slow: _overlong(settings),
    "repetition": lambda settings, before_slow: _repetition(settings),
    "math": lambda settings, before_slow: _benchmark("math", settings, before_slow),
    "choice": lambda settings, before_slow: _benchmark("choice", settings, before_slow),
    "ifeval": lambda settings, before_slow: _benchmark("ifeval", settings, before_slow),
}
"""Parts that one worker grades by itself, one rollout at a time. A new one is one entry here, and its pool in
`config_rewards.POOL_OF`."""


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
            return Verdict(total=total, parts=parts, status=str(result.status), detail=str(result.detail))
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
