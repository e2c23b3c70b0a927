"""Rating and percentile on Codeforces' scale, from which problems were solved. Pure functions.

Elo's model, as Codeforces publishes it: somebody rated r beats somebody rated s with probability
``1 / (1 + 10^((s - r) / 400))``, and a problem rated d is one that people rated d solve half the time. So

- from problems: the rating at which the expected number of solved problems is the number that was solved;
- from a contest's standings: the rating at which the expected place among its participants is the place reached, as in
  CodeElo (arXiv 2501.01257, section 3), averaged over contests.

Sources: Mirzayanov, "Open Codeforces Rating System" (codeforces.com/blog/entry/20762); CodeElo; percentiles from the
pairs of rating and percentile in DeepSeek-R1 (arXiv 2501.12948), tables 3 and 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

LOWEST, HIGHEST = 0.0, 4000.0
"""Ratings that exist, about."""

PERCENTILES = (
    (717.0, 20.3),
    (759.0, 23.6),
    (1134.0, 58.7),
    (1444.0, 80.4),
    (1534.0, 84.5),
    (1687.0, 90.5),
    (1746.0, 92.1),
    (1820.0, 93.4),
    (2029.0, 96.3),
    (2061.0, 96.6),
)
"""Codeforces rating and share of rated people below it, in percent."""


def win_probability(rating: float, opponent: float) -> float:
    """Elo's probability that somebody rated `rating` does better than `opponent`, a person or a problem."""
    return 1.0 / (1.0 + 10.0 ** ((opponent - rating) / 400.0))


def rating_of(solved: Sequence[tuple[float, float]]) -> float | None:
    """The rating at which ``sum_i P(solve problem i)`` is what was solved.

    Args:
        solved: rating of each problem, and the share of tries that solved it (pass@1, or 0 and 1 for one try).

    Returns:
        None if nothing was solved, or everything: the equation has no solution then, the rating is below or above all
        of the problems.

    Raises:
        ValueError: no problems, or a share outside 0 to 1.
    """
    if not solved or any(not 0.0 <= share <= 1.0 for _, share in solved):
        raise ValueError(f"need problems, each with a share of 0 to 1, got {solved!r:.200}")
    total = math.fsum(share for _, share in solved)
    if total <= 0.0 or total >= len(solved):
        return None
    return _root(lambda rating: math.fsum(win_probability(rating, problem) for problem, _ in solved) - total)


def contest_rating(place: int, opponents: Sequence[float]) -> float | None:
    """The rating at which the expected place among `opponents` is `place` (1 is the first).

    ``place = 1 + sum_i P(opponent i beats us)``. None for the first and the last place, as in `rating_of`.

    Raises:
        ValueError: no such place among them.
    """
    if not 1 <= place <= len(opponents) + 1:
        raise ValueError(f"place must be 1 to {len(opponents) + 1}, got {place}")
    if place in (1, len(opponents) + 1):
        return None
    return _root(lambda rating: place - 1.0 - math.fsum(win_probability(each, rating) for each in opponents))


def _root(rising: Callable[[float], float]) -> float:
    """Where a rising function is zero, by bisection to a billionth."""
    low, high = LOWEST - 4000.0, HIGHEST + 4000.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return (low + high) / 2


def percentile(rating: float) -> float | None:
    """Percent of rated people below a rating: between the published pairs by straight lines, None outside of them."""
    for (low, below), (high, above) in pairwise(PERCENTILES):
        if low <= rating <= high:
            return below + (above - below) * (rating - low) / (high - low)
    return None
