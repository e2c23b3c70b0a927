"""Rating and percentile from solved sets: Elo's numbers, and what has no answer."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from r1async.evaluation.codeforces import contest_rating, percentile, rating_of, win_probability


@pytest.mark.parametrize(
    ("rating", "opponent", "chance"),
    [(1500, 1500, 0.5), (1900, 1500, 10 / 11), (1500, 1900, 1 / 11), (1500, 2300, 1 / 101)],
)
def test_four_hundred_points_are_ten_to_one(rating, opponent, chance):
    assert win_probability(rating, opponent) == pytest.approx(chance, abs=1e-12)


def test_half_of_equal_problems_is_their_rating():
    assert rating_of([(1400, 1), (1400, 0)]) == pytest.approx(1400, abs=1e-6)


def test_ten_of_eleven_is_four_hundred_above():
    assert rating_of([(1400, 10 / 11)] * 3) == pytest.approx(1800, abs=1e-6)


def test_two_problems_by_hand():
    # one of 1000 and 2000 solved: by symmetry the rating between them
    assert rating_of([(1000, 1), (2000, 0)]) == pytest.approx(1500, abs=1e-6)
    # which one was solved does not matter: the equation knows the number alone
    assert rating_of([(1000, 0), (2000, 1)]) == pytest.approx(1500, abs=1e-6)


@pytest.mark.parametrize("solved", [[(800, 0), (900, 0)], [(800, 1), (900, 1)]])
def test_none_or_all_solved_has_no_rating(solved):
    assert rating_of(solved) is None


@pytest.mark.parametrize("solved", [[], [(800, 1.5)]])
def test_shares_outside_of_a_share_are_refused(solved):
    with pytest.raises(ValueError, match="share of 0 to 1"):
        rating_of(solved)


@given(st.lists(st.floats(800, 3500), min_size=1, max_size=12), st.floats(500, 3600))
def test_rating_is_found_again_from_what_it_would_solve(problems, rating):
    solved = [(each, win_probability(rating, each)) for each in problems]
    assert rating_of(solved) == pytest.approx(rating, abs=1e-3)


def test_place_in_a_contest_by_hand():
    # second of three against 1000 and 2000: one beats us on average, which is so at 1500
    assert contest_rating(2, [1000, 2000]) == pytest.approx(1500, abs=1e-6)
    # place 2 of 12 among equals: 1/11 of 11 beat us, which is 400 points above
    assert contest_rating(2, [1500] * 11) == pytest.approx(1500 + 400 * math.log10(10), abs=1e-6)
    assert contest_rating(1, [1500]) is None
    with pytest.raises(ValueError, match="place must be 1 to 3"):
        contest_rating(4, [1, 2])


@pytest.mark.parametrize(
    ("rating", "expected"),
    [(2029, 96.3), (717, 20.3), (1134, 58.7), ((1134 + 1444) / 2, (58.7 + 80.4) / 2), (500, None), (2500, None)],
)
def test_percentile_lies_between_published_pairs(rating, expected):
    found = percentile(rating)
    assert found is None if expected is None else found == pytest.approx(expected, abs=1e-9)
