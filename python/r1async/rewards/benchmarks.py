"""Parts of a reward that benchmarks are graded by, besides `code` and `swe`: math, choice and ifeval.

Each takes what it needs from the row's further columns, and is a part like any other: a run may train on it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Literal

from r1async.answers import extract_answer, response_of
from r1async.rewards.choice import LETTERS, chosen_letter
from r1async.rewards.ifeval import Instruction, followed, read_instructions
from r1async.rewards.math import Equivalence, grade
from r1async.tasks.meta import Question
from r1async.types import Completion, Verdict

GraderName = Literal["math", "choice", "ifeval"]


def benchmark_judge(name: GraderName, before_slow: Callable[[], None]) -> Callable[[Question, Completion], Verdict]:
    """The part of that name.

    Args:
        before_slow: called before anything that can take longer than microseconds.
    """
    match name:
        case "math":
            return _math(Equivalence(True, before_slow))
        case "choice":
            return _choice
        case "ifeval":
            return _ifeval(before_slow)


def _math(equivalence: Equivalence) -> Callable[[Question, Completion], Verdict]:
    """As `accuracy`, with algebra whatever `reward.equivalence` says."""

    def judge(question: Question, completion: Completion) -> Verdict:
        answer = extract_answer(completion.text)
        value, status = grade(answer or "", question.answer, equivalence)
        detail = "no answer" if answer is None else f"answer: {answer:.200}"
        return Verdict(total=value, status=status, detail=detail)

    return judge


def _choice(question: Question, completion: Completion) -> Verdict:
    """The row's column `options` is a JSON list of texts, its answer a letter."""
    try:
        options = _options(question.extra.get("options", ""))
    except ValueError as error:
        return _ungradable(f"column options: {error}")
    if question.answer not in LETTERS[: len(options)] or len(question.answer) != 1:
        return _ungradable(f"the answer must be one of the first {len(options)} letters, got {question.answer!r:.100}")
    letter = chosen_letter(completion.text, options)
    right = letter == question.answer
    detail = f"answer: {letter}" if letter else "no answer"
    return Verdict(total=float(right), status="ok" if right else "wrong", detail=detail)


def _ifeval(before_slow: Callable[[], None]) -> Callable[[Question, Completion], Verdict]:
    """The row's column `instructions` is a JSON object of `names` and `arguments`."""

    def judge(question: Question, completion: Completion) -> Verdict:
        # Imported here, with NumPy and a model of languages: most rewards do without.
        from r1async.rewards.identify import identify_any

        before_slow()
        try:
            instructions = _instructions(question.extra.get("instructions", ""))
        except ValueError as error:
            return _ungradable(f"column instructions: {error}")
        results = followed(instructions, response_of(completion.text), identify_any)
        failed = [each.name for each, fine in zip(instructions, results, strict=True) if not fine]
        return Verdict(total=float(not failed), status="wrong" if failed else "ok", detail=", ".join(failed))

    return judge


def _ungradable(why: str) -> Verdict:
    return Verdict(total=None, status="ungradable", detail=why)


@lru_cache(maxsize=64)
def _options(text: str) -> tuple[str, ...]:
    options = json.loads(text)
    if not isinstance(options, list) or not all(isinstance(each, str) for each in options):
        raise ValueError(f"must be a list of texts, got {options!r:.100}")
    return tuple(options)


@lru_cache(maxsize=64)
def _instructions(text: str) -> tuple[Instruction, ...]:
    row = json.loads(text)
    if not isinstance(row, dict):
        raise ValueError(f"must be an object, got {type(row).__name__}")
    return tuple(read_instructions(row.get("names"), row.get("arguments")))
