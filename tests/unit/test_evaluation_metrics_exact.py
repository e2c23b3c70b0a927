"""The figures against tables worked out by hand, to 1e-12, and against counting every case there is."""

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from r1async.evaluation.metrics import (
    Sample,
    consensus,
    estimate,
    evaluate,
    sampling_stderr,
    unbiased_pass_at_k,
    wilson,
)

EXACT = 1e-12


def samples_of(table: Sequence[Sequence[bool | None]], answers: list[list[str]] | None = None) -> list[Sample]:
    return [
        Sample(
            prompt=i,
            member=j,
            passed=passed,
            format=None,
            reward=None if passed is None else float(passed),
            answer=answers[i][j] if answers else "",
            tokens=10,
            truncated=False,
        )
        for i, row in enumerate(table)
        for j, passed in enumerate(row)
    ]


# Three problems of four samples: 4, 1 and 2 right.
TABLE = [[True] * 4, [True, False, False, False], [True, True, False, False]]
ANSWERS = [["5"] * 4, ["7", "1", "1", "2"], ["9", "9", "3", "6/2"]]


def test_table_by_hand():
    metrics = evaluate(samples_of(TABLE, ANSWERS), k=4)
    # pass@1: (1 + 1/4 + 1/2) / 3
    assert metrics.accuracy == pytest.approx(7 / 12, abs=EXACT)
    # pass@2: (1 + (1 - 3/6) + (1 - 1/6)) / 3; pass@4: all three
    assert metrics.pass_at_k["2"] == pytest.approx((1 + 1 / 2 + 5 / 6) / 3, abs=EXACT)
    assert metrics.pass_at_k["4"] == pytest.approx(1.0, abs=EXACT)
    # cons@4: right; wrong ("1" twice against once); a tie of two, "3" and "6/2" being one
    assert metrics.cons_at_k == pytest.approx((1 + 0 + 1 / 2) / 3, abs=EXACT)
    # over problems: deviations from 7/12 are 5/12, -4/12, -1/12: squares add up to 42/144, over 2, over 3
    assert metrics.stderr == pytest.approx(math.sqrt(42 / 144 / 2 / 3), abs=EXACT)
    # sampling: p(1-p)/3 of 0, 3/16, 1/4, added up, root, over 3
    assert metrics.stderr_sampling == pytest.approx(math.sqrt((3 / 16 + 1 / 4) / 3) / 3, abs=EXACT)
    assert metrics.interval is not None
    half = 1.959963984540054 * math.sqrt(42 / 864)
    assert metrics.interval == pytest.approx((7 / 12 - half, 1.0), abs=EXACT)  # no share is above 1


def test_errors_of_unequal_numbers_of_samples_by_hand():
    # 2 of 3 and 1 of 2 right: variances of the means (2/3 * 1/3) / 2 and (1/2 * 1/2) / 1
    assert sampling_stderr([(3, 2), (2, 1)]) == pytest.approx(math.sqrt(1 / 9 + 1 / 4) / 2, abs=EXACT)
    # one sample says nothing about its own variance
    assert sampling_stderr([(3, 2), (1, 1)]) is None
    assert sampling_stderr([]) is None


def test_interval_of_single_samples_is_wilsons():
    # 8 of 10 at z = 2: centre (0.8 + 0.2) / 1.4, half 2 sqrt(0.016 + 0.01) / 1.4
    half = 2 * math.sqrt(0.026) / 1.4
    assert wilson(8, 10, z=2.0) == pytest.approx((1 / 1.4 - half, 1 / 1.4 + half), abs=EXACT)
    # no successes: from 0 to z^2 / (n + z^2)
    assert wilson(0, 10, z=2.0) == pytest.approx((0.0, 4 / 14), abs=EXACT)
    assert wilson(10, 10, z=2.0) == pytest.approx((10 / 14, 1.0), abs=EXACT)
    metrics = evaluate(samples_of([[True]] * 8 + [[False]] * 2), k=1)
    assert metrics.interval == pytest.approx(wilson(8, 10), abs=EXACT)
    with pytest.raises(ValueError, match="samples >= 1"):
        wilson(0, 0)


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_all_draws_with_a_hit(case):
    samples, passed, k = case
    draws = list(combinations([i < passed for i in range(samples)], k))
    expected = Fraction(sum(any(draw) for draw in draws), len(draws))
    assert unbiased_pass_at_k(samples, passed, k) == pytest.approx(float(expected), abs=EXACT)


@given(st.lists(st.fractions(0, 1, max_denominator=6), min_size=1, max_size=3), st.integers(2, 4), st.integers(1, 3))
def test_pass_at_k_is_unbiased(rates, samples, k):
    """The mean over every outcome of the coin flips, weighted by its chance, is 1 - (1 - p)^k for each problem."""
    k = min(k, samples)
    for p in rates:
        mean = sum(
            _chance(outcome, p)
            * Fraction(unbiased_pass_at_k(samples, sum(outcome), k)).limit_denominator(1000)
            for outcome in product((0, 1), repeat=samples)
        )  # fmt: skip
        assert float(mean) == pytest.approx(float(1 - (1 - p) ** k), abs=EXACT)


@given(st.fractions(0, 1, max_denominator=6), st.integers(2, 5))
def test_sampling_variance_is_unbiased(p, samples):
    """Over every outcome, the estimate's square is on average the variance of the mean, p (1 - p) / k."""
    mean = sum(
        float(_chance(outcome, p)) * (sampling_stderr([(samples, sum(outcome))]) or 0.0) ** 2
        for outcome in product((0, 1), repeat=samples)
    )
    assert mean == pytest.approx(float(p * (1 - p)) / samples, abs=EXACT)


def _chance(outcome: tuple[int, ...], p: Fraction) -> Fraction:
    hits = sum(outcome)
    return p**hits * (1 - p) ** (len(outcome) - hits)


@given(st.lists(st.sampled_from(["right", "1", "2", "3", ""]), min_size=1, max_size=7))
def test_consensus_is_the_mean_over_all_ways_to_break_a_tie(labels):
    votes = [("5" if label == "right" else label, label == "right") for label in labels]
    counts = {label: labels.count(label) for label in set(labels) if label}
    leaders = [label for label in counts if counts[label] == max(counts.values())]
    expected = sum(leader == "right" for leader in leaders) / len(leaders) if leaders else 0.0
    assert consensus(votes) == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        # 0.5 and 1/2 are one wrong candidate of two votes, and beat one right vote
        ([("0.5", False), ("1/2", False), ("7", True)], 0.0),
        ([("0.5", False), ("1/3", False), ("7", True)], 1 / 3),
        # equality with rounding is not transitive: each is compared with the most frequent spelling of a candidate
        ([("0.333333", False), ("1/3", False), ("1/3", False), ("7", True), ("7", True), ("7", True)], 0.5),
        ([("1,000", False), ("1000", False), ("7", True), ("7", True)], 0.5),
    ],
)
def test_wrong_answers_that_are_equal_vote_together(votes, expected):
    assert consensus(votes) == pytest.approx(expected, abs=EXACT)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_error_over_problems_is_the_textbook_formula(values):
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    found = estimate(values)
    assert found.value == pytest.approx(mean, abs=EXACT)
    assert found.stderr == pytest.approx(math.sqrt(variance / len(values)), abs=EXACT)


def test_problem_with_abstentions_counts_with_what_it_has():
    metrics = evaluate(samples_of([[True, None], [False, False], [None, None]]), k=2)
    assert metrics.accuracy == pytest.approx(1 / 2, abs=EXACT)
    assert metrics.pass_at_k == pytest.approx({"1": 1 / 2, "2": 0.0}, abs=EXACT)
    assert metrics.stderr_sampling is None
    assert (metrics.problems, metrics.abstained) == (2, 3)
