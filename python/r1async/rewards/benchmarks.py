"""Verdicts on samples of benchmarks: a problem says in its row which grader it wants, whatever the run is rewarded for.

One call of `grade` is one sample. Right is 1, wrong is 0, with the part `accuracy`; a completion cut at its limit is
wrong, as in the protocols (DeepSeek-R1, section 3). Unknown is not zero here either.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache

from r1async.answers import extract_answer, response_of
from r1async.config import ConfigError, RewardConfig
from r1async.rewards.choice import chosen_letter
from r1async.rewards.code import CodeGrader
from r1async.rewards.ifeval import Instruction, followed, read_instructions
from r1async.rewards.math import Equivalence, grade
from r1async.rewards.sandbox import SandboxError
from r1async.tasks.meta import GRADER_KEY, Question
from r1async.types import Completion, Verdict

GRADERS = ("math", "choice", "code", "ifeval")
"""Graders that a benchmark can name."""


class BenchmarkGrader:
    """Grades samples of benchmarks one after another.

    Args:
        settings: of the run's reward: sandbox, equivalence.
        before_slow: called before anything that can take longer than microseconds.
    """

    def __init__(self, settings: RewardConfig, before_slow: Callable[[], None]) -> None:
        self._settings, self._before_slow = settings, before_slow
        self._equivalence = Equivalence(True, before_slow)
        self._code: CodeGrader | None = None
        self._graders: Mapping[str, Callable[[Question, Completion], Verdict]] = {
            "math": self._math,
            "choice": self._choice,
            "code": self._program,
            "ifeval": self._ifeval,
        }

    def grade(self, question: Question, completion: Completion) -> Verdict:
        """The verdict of the grader that the question names in its row."""
        name = question.extra[GRADER_KEY]
        if name not in self._graders:
            return Verdict(
                total=None, status="ungradable", detail=f"no grader {name!r}; there are {', '.join(GRADERS)}"
            )
        if completion.finish == "length":
            return _verdict(0.0, "truncated", "cut at the limit of tokens")
        return self._graders[name](question, completion)

    def _math(self, question: Question, completion: Completion) -> Verdict:
        answer = extract_answer(completion.text)
        value, status = grade(answer or "", question.answer, self._equivalence)
        if value is None:
            return Verdict(total=None, status=status, detail=f"reference: {question.answer:.200}")
        return _verdict(value, status, "no answer" if answer is None else f"answer: {answer:.200}")

    def _choice(self, question: Question, completion: Completion) -> Verdict:
        letter = chosen_letter(completion.text, _options(question.extra["options"]))
        right = letter == question.answer
        return _verdict(float(right), "ok" if right else "wrong", f"answer: {letter}" if letter else "no answer")

    def _program(self, question: Question, completion: Completion) -> Verdict:
        self._before_slow()
        if self._code is None:
            try:
                self._code = CodeGrader(self._settings.code)
            except SandboxError as error:
                raise ConfigError(f"a benchmark runs programs: {error} (reward.code.unsafe)") from error
        extra = question.extra
        item = {key: extra[key] for key in ("language", "time_limit_s", "memory_limit_mib") if key in extra}
        graded = self._code.grade({**item, "problem": extra["problem"], "completion": completion.text})
        if graded.verdict.total is None:
            return Verdict(total=None, status=graded.verdict.status, detail=graded.detail)
        return _verdict(graded.verdict.total, graded.verdict.status, graded.detail)

    def _ifeval(self, question: Question, completion: Completion) -> Verdict:
        from r1async.rewards.identify import identify_any

        self._before_slow()
        instructions = _instructions(question.extra["instructions"])
        results = followed(instructions, response_of(completion.text), identify_any)
        failed = [each.name for each, fine in zip(instructions, results, strict=True) if not fine]
        return _verdict(float(not failed), "wrong" if failed else "ok", ", ".join(failed))


def _verdict(value: float, status: str, detail: str) -> Verdict:
    return Verdict(total=value, parts={"accuracy": value}, status=status, detail=detail)


@lru_cache(maxsize=64)
def _options(text: str) -> tuple[str, ...]:
    return tuple(json.loads(text))


@lru_cache(maxsize=64)
def _instructions(text: str) -> tuple[Instruction, ...]:
    row = json.loads(text)
    return tuple(read_instructions(row["names"], row["arguments"]))
