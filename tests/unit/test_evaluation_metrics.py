"""Figures of an evaluation, against numbers worked out by hand."""

import math

import numpy as np
import pytest
from r1async.evaluation.metrics import Sample, answer_of, consensus, estimate, evaluate, unbiased_pass_at_k
from r1async.evaluation.passes import Answer, sample_of


def sample(prompt: int, member: int, passed: bool | None, answer: str = "", **changes) -> Sample:
    fields = {
        "format": 1.0,
        "reward": None if passed is None else float(passed),
        "tokens": 10,
        "truncated": False,
        **changes,
    }
    return Sample(prompt=prompt, member=member, passed=passed, answer=answer, **fields)


@pytest.mark.parametrize(
    ("samples", "passed", "k", "expected"),
    [
        (4, 0, 2, 0.0),
        (4, 4, 2, 1.0),
        (4, 1, 2, 0.5),  # 1 - C(3,2)/C(4,2) = 1 - 3/6; the biased 1 - (3/4)^2 would say 0.4375
        (4, 2, 2, 1 - 1 / 6),
        (10, 3, 5, 1 - 21 / 252),  # C(7,5) = 21, C(10,5) = 252
        (4, 3, 2, 1.0),  # two draws cannot both miss
        (5, 2, 1, 0.4),  # k = 1 is the share
    ],
)
def test_pass_at_k_is_the_chance_of_a_hit_without_replacement(samples, passed, k, expected):
    assert unbiased_pass_at_k(samples, passed, k) == pytest.approx(expected, abs=1e-15)


def test_pass_at_k_of_a_thousand_samples_stays_exact():
    assert unbiased_pass_at_k(1000, 1, 500) == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize(("samples", "passed", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)])
def test_pass_at_k_refuses_what_has_no_meaning(samples, passed, k):
    with pytest.raises(ValueError, match="1 <= k <= samples"):
        unbiased_pass_at_k(samples, passed, k)


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        ([("5", True), ("5", True), ("3", False)], 1.0),
        ([("5", True), ("3", False), ("3", False)], 0.0),
        ([("5", True), ("3", False)], 0.5),  # a tie of two, one of them right
        ([("5", True), ("3", False), ("4", False)], 1 / 3),
        ([("2", False), ("3", False)], 0.0),  # a tie between wrong answers
        ([("0.5", True), ("1/2", True), ("3", False)], 1.0),  # two spellings of the reference are one candidate
        ([("", False), ("", False), ("5", True)], 1.0),  # no answer is no vote
        ([("", False)], 0.0),
        ([], 0.0),
    ],
)
def test_consensus_is_the_majority_with_ties_shared(votes, expected):
    assert consensus(votes) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>1</think><answer> 5 </answer>", "5"),
        ("<answer>1</answer><answer>2</answer>", "2"),
        (r"so it is \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        ("5", ""),
        ("<answer>5", ""),
        (r"\boxed{\frac{\sqrt{x^{2}}}{2}}", r"\frac{\sqrt{x^{2}}}{2}"),  # three braces deep
        (r"<answer>so \boxed{$7$}</answer>", "7"),
        (r"<answer>\text{East}</answer>", "east"),
        (r"<answer>\dfrac12 .</answer>", r"\frac{1}{2}"),
    ],
)
def test_answer_is_the_last_one_marked(text, answer):
    assert answer_of(text) == answer


def test_standard_error_is_that_of_a_mean():
    # mean 0.5; deviations -0.5, -0.5, 0.5, 0.5: variance 4 * 0.25 / 3, standard error sqrt(1/3 / 4)
    result = estimate([0.0, 0.0, 1.0, 1.0])
    assert result.value == 0.5
    assert result.stderr == pytest.approx(math.sqrt(1 / 12))


def test_standard_error_of_one_problem_is_unknown_not_zero():
    assert estimate([1.0]).stderr is None
    assert estimate([]).value is None


def test_standard_error_is_clustered_by_problem():
    # Two problems, four equal samples each: two independent facts, not eight.
    samples = [sample(p, m, passed=p == 0, answer="5") for p in range(2) for m in range(4)]
    metrics = evaluate(samples, k=4)
    assert metrics.accuracy == 0.5
    assert metrics.stderr == pytest.approx(0.5)  # sd of {1, 0} is sqrt(1/2), over sqrt(2)


def test_figures_of_three_problems_by_hand():
    samples = [
        *[sample(0, m, passed=True, answer="5") for m in range(4)],
        *[sample(1, m, passed=m == 0, answer="7" if m == 0 else "1") for m in range(4)],
        *[sample(2, m, passed=False, answer=str(m)) for m in range(4)],
    ]
    metrics = evaluate(samples, k=4)
    assert metrics.accuracy == pytest.approx((1 + 0.25 + 0) / 3)
    assert metrics.pass_at_k == pytest.approx({"1": 1.25 / 3, "2": (1 + 0.5 + 0) / 3, "4": 2 / 3})
    assert metrics.cons_at_k == pytest.approx(1 / 3)
    assert (metrics.problems, metrics.samples, metrics.abstained, metrics.k) == (3, 12, 0, 4)


def test_abstentions_leave_the_statistics_and_are_counted():
    samples = [
        sample(0, 0, passed=True),
        sample(0, 1, passed=None),
        sample(1, 0, passed=None),
        sample(1, 1, passed=None),
    ]
    metrics = evaluate(samples, k=2)
    assert metrics.accuracy == 1.0
    assert (metrics.problems, metrics.samples, metrics.abstained) == (1, 1, 3)
    assert metrics.pass_at_k == {"1": 1.0}  # no problem has two graded samples


def test_reward_without_accuracy_is_graded_and_only_right_or_wrong_is_unknown():
    samples = [
        sample(0, 0, passed=None, format=1.0, reward=0.5),
        sample(1, 0, passed=None, format=0.0, reward=1.0),
        sample(2, 0, passed=None, format=None, reward=None),
    ]
    metrics = evaluate(samples, k=1)
    assert (metrics.problems, metrics.samples, metrics.abstained) == (2, 2, 1)
    assert (metrics.reward, metrics.format) == (0.75, 0.5)
    assert (metrics.accuracy, metrics.cons_at_k, metrics.pass_at_k) == (None, None, {})


def graded(total: float | None, parts: dict[str, float], status: str = "ok") -> Answer:
    return Answer(total=total, parts=parts, status=status, finish="stop", tokens=np.zeros(3, np.int32))


@pytest.mark.parametrize(
    ("answer", "passed", "reward"),
    [
        (graded(1.2, {"accuracy": 1.0, "format": 1.0}), True, 1.2),
        (graded(0.0, {"accuracy": 0.0, "format": 0.0}, "timeout"), False, 0.0),  # as the pool settles it
        (graded(0.7, {"own:style": 0.7}), None, 0.7),
        (graded(None, {"accuracy": 1.0}, "error"), None, None),
    ],
)
def test_sample_passes_by_its_accuracy_part(answer: Answer, passed: bool | None, reward: float | None):
    made = sample_of(0, 0, answer, "<answer>5</answer>")
    assert (made.passed, made.reward, made.answer) == (passed, reward, "5")


def test_nothing_graded_gives_no_figures_rather_than_zeros():
    metrics = evaluate([sample(0, 0, passed=None)], k=1)
    assert metrics.accuracy is None
    assert metrics.cons_at_k is None
    assert metrics.pass_at_k == {}


def test_format_reward_length_and_truncation_are_means_over_samples():
    samples = [
        sample(0, 0, passed=True, format=1.0, reward=1.2, tokens=10),
        sample(1, 0, passed=False, format=0.0, reward=0.0, tokens=30, truncated=True),
    ]
    metrics = evaluate(samples, k=1)
    assert (metrics.format, metrics.reward, metrics.mean_tokens, metrics.truncated) == (0.5, 0.6, 20.0, 0.5)


def test_pass_at_k_is_given_for_powers_of_two_and_the_whole():
    samples = [sample(0, m, passed=False) for m in range(6)]
    assert list(evaluate(samples, k=6).pass_at_k) == ["1", "2", "4", "6"]
