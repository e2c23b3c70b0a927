"""The generator's loop over a played engine that takes weights from the learner itself, and says what came."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace

import pytest
from r1async.config import Config, WeightsConfig
from r1async.generator.canary import TOLERANCES, Canary, Mismatch, Verdict
from r1async.generator.engine import Engine
from r1async.types import PolicyVersion
from r1async.weights import publisher as publishing
from r1async.weights.direct import Direct, DirectError, Meeting
from r1async.weights.direct_sender import DirectSender
from r1async.weights.manifest import Snapshot
from r1async.weights.publisher import Publisher
from torch import Tensor

from tests.integration.test_generator import Running, leases, publish, start
from tests.integration.test_generator import buffer as buffer
from tests.integration.test_generator import config as config
from tests.played_buffer import Router
from tests.played_engine import PlayedEngine

V0, V1, V2, V3 = (PolicyVersion(1, number) for number in range(4))
AGAIN = PolicyVersion(0, -1), 0.0
"""What a canary that is to be asked again writes down."""
PROOF = Mismatch(tokens=8, mean=0.0, maximum=0.0, before_mean=None, separation=None)


class NoEnd:
    """The learner's end of nothing."""

    def prepare(self, snapshot: Snapshot, base: Snapshot | None) -> Meeting:
        return Meeting(None, {})

    def send(self) -> None: ...

    def close(self) -> None: ...


class Taker(PlayedEngine):
    def __init__(self, **settings: int) -> None:
        super().__init__(**settings)
        self.taken: list[PolicyVersion] = []
        self.refuses: set[PolicyVersion] = set()

    def install_direct(self, direct: Direct) -> float:
        direct.ask("vllm-nccl", base=self.version, workers=1, device="cuda", fresh=True, deadline_s=10.0)
        if direct.version in self.refuses:
            raise DirectError("not this one")
        self.taken.append(direct.version)
        self.version = direct.version
        return 0.125


class Sees(Canary):
    """A canary that writes down what it is given, and asks for tensors with every install."""

    def __init__(self) -> None:
        self.seen: list[tuple[PolicyVersion, float]] = []
        self._birds = {}

    @property
    def tolerance(self):
        return TOLERANCES["float32"]

    def wants(self, engine: Engine) -> bool:
        return True

    def installed(self, version: PolicyVersion, tensors: Mapping[str, Tensor], engine: Engine) -> None:
        self.seen.append((version, float(tensors["w"][0])))

    def again(self) -> None:
        self.seen.append(AGAIN)


@pytest.fixture
def direct_config(config: Config) -> Config:
    return replace(config, weights=WeightsConfig(medium="nccl"))


@pytest.fixture
def learner(direct_config: Config, monkeypatch: pytest.MonkeyPatch) -> Iterator[Publisher]:
    def sender(*args: object, **settings: object) -> DirectSender:
        return DirectSender(*args, **settings, make=lambda *_, **__: NoEnd())  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(publishing, "DirectSender", sender)
    with Publisher(
        direct_config.endpoint("weights"), run="run", dtype="float32", chunk_bytes=2**16, deadline_s=10.0,
        direct="127.0.0.1",
    ) as publisher:  # fmt: skip
        yield publisher


def ready_for(buffer: Router, version: PolicyVersion) -> None:
    while (message := buffer.receive()).type != "ready" or message.header["version"] != version.number:
        pass


def wait_for(canary: Sees, count: int) -> None:
    ticker = threading.Event()
    for _ in range(3000):
        if len(canary.seen) >= count:
            return
        ticker.wait(0.01)
    raise AssertionError(f"the canary was given {canary.seen}")


def test_versions_go_past_the_generator_and_one_that_is_refused_is_fetched(
    direct_config: Config,
    buffer: Router,
    learner: Publisher,
):
    engine = Taker()
    engine.refuses = {V2}
    publish(learner, V0)
    with Running(direct_config, engine):
        start(buffer)
        for version in (V1, V2, V3):
            publish(learner, version)
            ready_for(buffer, version)
        assert engine.taken == [V1, V3]
        assert engine.installed == {V0: 0.0, V2: 2.0}  # with their tensors
        assert learner.acknowledged()["generator-0"][0] in (V2, V3)


def test_an_evaluation_claims_an_engine_and_gets_its_version_by_the_socket(
    direct_config: Config,
    buffer: Router,
    learner: Publisher,
):
    engine = Taker(pinned_capacity=0)
    publish(learner, V0, retain=True)
    with Running(direct_config, engine):
        start(buffer)
        publish(learner, V1)
        ready_for(buffer, V1)
        buffer.send(*leases((9, 9), max_tokens=1, pin=V0))
        engine.permit(1)
        while buffer.receive().type != "chunks":
            pass
        buffer.send({"t": "acks", "items": [[9, 1]], "lost": []})
        ready_for(buffer, V1)
        assert engine.installed == {V0: 0.0}
        assert engine.taken[0] == V1
        assert engine.version == V1


def test_a_canary_is_scored_by_tensors_that_come_with_their_hashes(
    direct_config: Config,
    buffer: Router,
    learner: Publisher,
):
    canary, engine = Sees(), Taker()
    publish(learner, V0)
    with Running(direct_config, engine, canary=canary):
        buffer.welcome()
        wait_for(canary, 1)
        publish(learner, V1)
        wait_for(canary, 2)
    assert engine.taken == [V1]
    assert canary.seen == [(V0, 0.0), (V1, 1.0)]


def test_a_first_canary_that_was_overtaken_is_followed_by_one_of_what_is_served(
    direct_config: Config,
    buffer: Router,
    learner: Publisher,
):
    """No later version may ever come, and no room is offered before a proof: such a run stood still."""
    canary, engine = Sees(), Taker()
    publish(learner, V0)
    with Running(direct_config, engine, canary=canary) as generator:
        buffer.welcome()
        wait_for(canary, 1)
        publish(learner, V1)
        wait_for(canary, 2)
        generator.inbox.put(Verdict(version=V0, mismatch=None))
        wait_for(canary, 4)
        assert canary.seen == [(V0, 0.0), (V1, 1.0), AGAIN, (V1, 1.0)]
        generator.inbox.put(Verdict(version=V1, mismatch=PROOF))
        ready_for(buffer, V1)
