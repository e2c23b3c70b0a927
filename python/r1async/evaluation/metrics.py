"""What an evaluation says: pass@1 over k samples, unbiased pass@k, cons@k, each with its standard error.

Pure functions. Abstentions are unknown, not wrong: they leave the statistics and are counted.
Problems are the units of chance here: every standard error is taken over problems, not over samples, because the
samples of one problem rise and fall together (a cluster; Miller, "Adding error bars to evals", arXiv 2411.00640).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from r1async.answers import extract_answer, normalise
from r1async.rewards.math import Equivalence, grade

Z95 = 1.959963984540054
"""Quantile of the normal distribution for two-sided 95 %."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One graded completion of a held-out problem."""

    prompt: int
    """The problem's place in the held-out list."""
    member: int
    """Which of its samples."""
    passed: bool | None
    """Full marks for accuracy; None if the grader abstained, or accuracy is no part of the reward."""
    format: float | None
    """The format part of the reward, if there is one."""
    reward: float | None
    """The weighted total; None if the grader abstained."""
    answer: str
    """What the completion answers, for the vote; empty if it does not."""
    tokens: int
    truncated: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean over problems and its standard error; both None where there is nothing to take them of."""

    value: float | None
    stderr: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalMetrics:
    """Figures of one pass over the held-out problems."""

    accuracy: float | None
    """pass@1: the mean over problems of the share of samples that pass."""
    stderr: float | None
    """Standard error of `accuracy`, clustered by problem: as a claim about problems like these. Contains the next."""
    stderr_sampling: float | None
    """Standard error of `accuracy` from sampling alone, the problems fixed: for two versions on the same problems. None
    where no problem has two samples."""
    interval: tuple[float, float] | None
    """95 % interval of `accuracy`: Wilson's where every problem has one sample, else 1.96 times `stderr` either way."""
    format: float | None
    reward: float | None
    pass_at_k: Mapping[str, float]
    """Unbiased, by k: 1, 2, 4, ... and the number of samples."""
    pass_at_k_stderr: Mapping[str, float | None]
    cons_at_k: float | None
    """Share of problems whose most frequent answer is right, ties shared. Like all of the above but `format` and
    `reward`, None or empty where accuracy is no part of the reward."""
    cons_at_k_stderr: float | None
    k: int
    """Samples a problem."""
    problems: int
    """With at least one graded sample."""
    samples: int
    """Graded ones."""
    abstained: int
    mean_tokens: float | None
    truncated: float | None
    """Share of completions cut at max_tokens."""

    def as_record(self) -> dict[str, object]:
        return asdict(self)


def unbiased_pass_at_k(samples: int, passed: int, k: int) -> float:
    """Probability that one of k samples drawn without replacement passes: ``1 - C(n - c, k) / C(n, k)``.

    Raises:
        ValueError: not ``0 <= passed <= samples`` or not ``1 <= k <= samples``.

    Source: Chen et al., "Evaluating large language models trained on code" (arXiv 2107.03374), eq. 1. The plain
    ``1 - (1 - c / n)^k`` is biased downwards.
    """
    if not 0 <= passed <= samples or not 1 <= k <= samples:
        raise ValueError(f"need 0 <= passed <= samples and 1 <= k <= samples, got {passed=}, {samples=}, {k=}")
    return 1.0 - math.comb(samples - passed, k) / math.comb(samples, k)


def consensus(votes: Iterable[tuple[str, bool]]) -> float:
    """Expected correctness of the most frequent answer; a tie is broken by lot, so each leader counts its share.

    Args:
        votes: answer and whether it is right, of every graded sample. All right answers are one candidate, however
            they are written (1/2 and 0.5 both equal the reference); so are wrong ones that are equal as written or as
            exact numbers. An empty answer does not vote; if nobody votes the consensus is wrong.

    Source: Wang et al., "Self-consistency" (arXiv 2203.11171); DeepSeek-R1's cons@64.
    """
    count: Counter[str | None] = Counter(None if right else answer for answer, right in votes if right or answer)
    right = count.pop(None, 0)
    wrong = _candidates(count)
    most = max([right, *wrong], default=0)
    return 1.0 / (1 + wrong.count(most)) if right and right == most else 0.0


def _candidates(count: Mapping[str | None, int]) -> list[int]:
    """Votes of each wrong candidate. An answer is compared with the first member of each, the most frequent spelling:
    with roundings among them equality is not transitive."""
    firsts: list[str] = []
    votes: list[int] = []
    for answer, number in sorted(count.items(), key=lambda item: (-item[1], str(item[0]))):
        assert answer is not None, "right answers are counted apart"
        place = next((i for i, first in enumerate(firsts) if grade(answer, first, _EXACT).value == 1.0), None)
        if place is None:
            firsts.append(answer)
            votes.append(number)
        else:
            votes[place] += number
    return votes


_EXACT = Equivalence(symbolic=False, before_slow=lambda: None)
"""Algebra may hang, and runs in scorers' workers alone."""


def answer_of(text: str) -> str:
    """What a completion answers, as the grader reads it: normalised, in lower case, without spaces; may be empty."""
    return "".join(normalise(extract_answer(text) or "").casefold().split())


def estimate(values: Sequence[float]) -> Estimate:
    """Mean of one value per problem; the standard error (sample standard deviation over root n) needs two."""
    if not values:
        return Estimate(value=None, stderr=None)
    array = np.asarray(values, dtype=np.float64)
    stderr = float(array.std(ddof=1) / math.sqrt(len(array))) if len(array) > 1 else None
    return Estimate(value=float(array.mean()), stderr=stderr)


def sampling_stderr(passed: Sequence[tuple[int, int]]) -> float | None:
    """Standard error of pass@1 from sampling alone: ``sqrt(sum_i p_i (1 - p_i) / (k_i - 1)) / N``.

    Args:
        passed: samples and how many of them passed, of each problem. With ``k - 1`` each term is unbiased for the
            variance of its problem's mean. None if a problem has one sample, which says nothing about its variance.
    """
    if not passed or any(samples < 2 for samples, _ in passed):
        return None
    variances = [(p := right / samples) * (1 - p) / (samples - 1) for samples, right in passed]
    return math.sqrt(math.fsum(variances)) / len(passed)


def wilson(passed: int, samples: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a share; z of 95 % by default.

    Raises:
        ValueError: not ``0 <= passed <= samples`` with at least one sample.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference" (1927).
    """
    if not 0 <= passed <= samples or samples < 1:
        raise ValueError(f"need 0 <= passed <= samples and samples >= 1, got {passed=}, {samples=}")
    p, z2 = passed / samples, z * z
    centre = (p + z2 / (2 * samples)) / (1 + z2 / samples)
    half = z * math.sqrt(p * (1 - p) / samples + z2 / (4 * samples * samples)) / (1 + z2 / samples)
    return max(0.0, centre - half), min(1.0, centre + half)


def _interval(passed: Sequence[tuple[int, int]], accuracy: Estimate) -> tuple[float, float] | None:
    if passed and all(samples == 1 for samples, _ in passed):
        return wilson(sum(right for _, right in passed), len(passed))
    if accuracy.value is None or accuracy.stderr is None:
        return None
    half = Z95 * accuracy.stderr
    return max(0.0, accuracy.value - half), min(1.0, accuracy.value + half)


def evaluate(samples: Sequence[Sample], k: int) -> EvalMetrics:
    """The figures of one pass with `k` samples a problem.

    A problem with abstentions has fewer than k graded samples: it counts in pass@1 with those it has, and only in
    the pass@j with j no larger than that. A reward without an accuracy part grades, but says nothing of right or wrong.
    """
    graded = [sample for sample in samples if sample.reward is not None]
    by_prompt: dict[int, list[Sample]] = {}
    for sample in graded:
        if sample.passed is not None:
            by_prompt.setdefault(sample.prompt, []).append(sample)
    problems = list(by_prompt.values())
    accuracy = estimate([_passed(problem) / len(problem) for problem in problems])
    passed = [(len(problem), _passed(problem)) for problem in problems]
    votes = estimate([consensus((s.answer, bool(s.passed)) for s in problem) for problem in problems])
    pass_at = {j: _pass_at(problems, j) for j in _ks(k)}
    return EvalMetrics(
        accuracy=accuracy.value,
        stderr=accuracy.stderr,
        stderr_sampling=sampling_stderr(passed),
        interval=_interval(passed, accuracy),
        format=estimate([s.format for s in graded if s.format is not None]).value,
        reward=estimate([s.reward for s in graded if s.reward is not None]).value,
        pass_at_k={str(j): at.value for j, at in pass_at.items() if at.value is not None},
        pass_at_k_stderr={str(j): at.stderr for j, at in pass_at.items() if at.value is not None},
        cons_at_k=votes.value,
        cons_at_k_stderr=votes.stderr,
        k=k,
        problems=len({sample.prompt for sample in graded}),
        samples=len(graded),
        abstained=len(samples) - len(graded),
        mean_tokens=estimate([float(s.tokens) for s in samples]).value,
        truncated=estimate([float(s.truncated) for s in samples]).value,
    )


def _passed(problem: Sequence[Sample]) -> int:
    return sum(bool(sample.passed) for sample in problem)


def _pass_at(problems: Sequence[Sequence[Sample]], k: int) -> Estimate:
    return estimate([unbiased_pass_at_k(len(p), _passed(p), k) for p in problems if len(p) >= k])


def _ks(samples: int) -> list[int]:
    """1, 2, 4, ... below the number of samples, and that number."""
    powers = [2**i for i in range(samples.bit_length()) if 2**i < samples]
    return [*powers, samples]
