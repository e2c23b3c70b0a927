"""An engine with one weight set, claimed for an evaluation: played buffer and engine, a real publisher."""

from __future__ import annotations

from typing import Literal

import pytest
from r1async.config import Config, EvalConfig, GeneratorConfig
from r1async.generator.engines import evaluates, trains
from r1async.weights.publisher import Publisher
from r1async.wire import Message

from tests.integration.test_generator import V0, V1, V2, Running, chunk, leases, publish, start, steps
from tests.integration.test_generator import buffer as buffer
from tests.integration.test_generator import config as config
from tests.integration.test_generator import learner as learner
from tests.played_buffer import Router
from tests.played_engine import PlayedEngine


def test_training_rollouts_are_handed_back_and_training_goes_on_afterwards_with_the_newest(
    config, buffer: Router, learner: Publisher
):
    publish(learner, V0, retain=True)
    newest = publish(learner, V1)
    engine = PlayedEngine(pinned_capacity=0)
    with Running(config, engine):
        ready = start(buffer).header
        assert (ready["free"], ready["eval_free"]) == (4, 4)
        buffer.send(*leases((10, 1), (11, 2), max_tokens=9))
        steps(buffer, engine, 2, done=True)
        buffer.send(*leases((20, 5), pin=V0, seq=3))
        # With the tokens they have: who takes them goes on from there.
        assert chunk(buffer.expect("chunks")) == [
            (10, 0, [1000, 1001], None, [[1, 1, 2]]),
            (11, 0, [2000, 2001], None, [[1, 1, 2]]),
        ]
        assert buffer.expect("release").header["leases"] == [10, 11]
        ready = buffer.expect("ready").header
        assert (ready["free"], ready["eval_free"]) == (0, 3)
        # A training lease that was under way goes straight back, and a newer version waits.
        buffer.send(*leases((12, 3), seq=4))
        assert buffer.expect("release").header["leases"] == [12]
        newest = publish(learner, V2)
        steps(buffer, engine, 3)
        assert chunk(past_ready(buffer)) == [(20, 0, [5000, 5001, 5002], "length", [[1, 0, 3]])]
        while (ready := buffer.expect("ready").header)["version"] != 2:
            assert ready["free"] == 0 or ready["version"] == 1
        assert (ready["free"], ready["eval_free"], ready["hash"]) == (4, 4, newest)
        buffer.send(*leases((13, 4), max_tokens=2, seq=5))
        steps(buffer, engine, 2)
        assert chunk(past_ready(buffer)) == [(13, 0, [4000, 4001], "length", [[1, 2, 2]])]


def past_ready(buffer: Router) -> Message:
    while (message := buffer.receive()).type == "ready":
        pass
    return message


def test_the_installed_version_is_evaluated_without_fetching_and_two_pins_go_one_after_the_other(
    config, buffer: Router, learner: Publisher
):
    publish(learner, V0, retain=True)
    publish(learner, V1)
    engine = PlayedEngine(pinned_capacity=0)
    with Running(config, engine):
        start(buffer)
        buffer.send(*leases((20, 5), pin=V1))
        buffer.send(*leases((21, 6), pin=V0, seq=2))
        steps(buffer, engine, 3)
        assert chunk(past_ready(buffer)) == [(20, 0, [5000, 5001, 5002], "length", [[1, 1, 3]])]
        steps(buffer, engine, 3)
        assert chunk(past_ready(buffer)) == [(21, 0, [6000, 6001, 6002], "length", [[1, 0, 3]])]
        while buffer.expect("ready").header["free"] != 4:
            pass
        assert engine.version == V1


def test_weights_that_come_for_training_while_they_are_evaluated_are_installed_afterwards(
    config, buffer: Router, learner: Publisher
):
    """The evaluation fetched them by name, so the engine has them already: training still has to be told."""
    publish(learner, V0)
    engine = PlayedEngine(pinned_capacity=0)
    with Running(config, engine):
        start(buffer)
        buffer.send(*leases((10, 1), max_tokens=9))
        steps(buffer, engine, 1, done=True)
        buffer.send(*leases((20, 5), pin=V0, seq=2))
        assert past_ready(buffer).type == "chunks"
        assert buffer.expect("release").header["leases"] == [10]
        publish(learner, V1, retain=True)  # waits for the end of the claim
        buffer.send(*leases((21, 6), pin=V1, seq=3))
        steps(buffer, engine, 3)
        assert chunk(past_ready(buffer)) == [(20, 0, [5000, 5001, 5002], "length", [[1, 0, 3]])]
        steps(buffer, engine, 3)
        assert chunk(past_ready(buffer)) == [(21, 0, [6000, 6001, 6002], "length", [[1, 1, 3]])]
        while (ready := buffer.expect("ready").header)["version"] != 1:
            pass
        assert ready["free"] == 4
        publish(learner, V2)
        while buffer.expect("ready").header["version"] != 2:
            pass


def test_an_engine_beside_one_with_a_second_weight_set_offers_none(config, buffer: Router, learner: Publisher):
    publish(learner, V0)
    with Running(config, PlayedEngine(pinned_capacity=0), offers_evaluation=False):
        ready = start(buffer).header
        assert (ready["free"], ready["eval_free"]) == (4, 0)


@pytest.mark.parametrize("pinned_capacity", [0, 2])
def test_a_dedicated_engine_offers_nothing_to_training(
    config, buffer: Router, learner: Publisher, pinned_capacity: int
):
    publish(learner, V0)
    with Running(config, PlayedEngine(pinned_capacity=pinned_capacity), offers_training=False):
        ready = start(buffer).header
        assert (ready["free"], ready["eval_free"]) == (0, pinned_capacity or 4)


def test_beside_a_dedicated_engine_a_second_weight_set_offers_none(config, buffer: Router, learner: Publisher):
    publish(learner, V0)
    with Running(config, PlayedEngine(pinned_capacity=2), offers_evaluation=False):
        ready = start(buffer).header
        assert (ready["free"], ready["eval_free"]) == (4, 0)


@pytest.mark.parametrize(
    ("engine", "generator", "roles"),
    [
        # (trains, evaluates) of each generator
        ("torch", "shared", [(True, True), (True, True)]),
        ("vllm+torch", "shared", [(True, False), (True, True)]),
        ("vllm", "dedicated", [(True, False), (False, True)]),
        ("torch+vllm", "dedicated", [(True, False), (False, True)]),
    ],
)
def test_who_trains_and_who_evaluates(
    engine: str, generator: Literal["shared", "dedicated"], roles: list[tuple[bool, bool]]
):
    made = Config(generator=GeneratorConfig(engine=engine, count=2), eval=EvalConfig(generator=generator))
    assert [(trains(made, i), evaluates(made, i)) for i in range(2)] == roles
    assert made.training_generators == sum(each for each, _ in roles)
