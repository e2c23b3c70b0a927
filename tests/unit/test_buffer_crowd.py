"""When the buffer lets messages gather before it answers them."""

import math

import pytest
from r1async.buffer.server import CROWD_PER_S, RATE_S, Crowd


def test_a_steady_trickle_is_read_at_once():
    crowd = Crowd()
    for place in range(1000):
        crowd.came(1, 100.0 + place / 400)
        assert not crowd.is_there


def test_two_messages_that_come_together_are_no_crowd():
    crowd = Crowd()
    crowd.came(2, 100.0)
    assert not crowd.is_there


@pytest.mark.parametrize("per_round", [1, 3, 100])
def test_many_a_second_are_one_however_many_are_read_at_a_time(per_round):
    crowd, rate = Crowd(), 10 * CROWD_PER_S
    for place in range(int(5 * RATE_S * rate / per_round)):
        crowd.came(per_round, 100.0 + place * per_round / rate)
    assert crowd.is_there


def test_it_is_forgotten():
    crowd = Crowd()
    crowd.came(200, 100.0)  # 10,000 a second
    assert crowd.is_there
    crowd.came(0, 100.0 + RATE_S * (math.log(5) - 0.01))
    assert crowd.is_there
    crowd.came(0, 100.0 + RATE_S * (math.log(5) + 0.01))
    assert not crowd.is_there
