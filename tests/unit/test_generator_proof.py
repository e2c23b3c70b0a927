"""The generator's loop driven by hand, without threads or sockets: proofs, claims and what comes between them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from r1async.generator.canary import Canary, Mismatch, Verdict
from r1async.generator.figures import Figures
from r1async.generator.generator import Generator
from r1async.generator.sample import Sample
from r1async.inbox import Inbox
from r1async.monitor.timeline import Timeline
from r1async.types import PolicyVersion
from r1async.weights.direct import Direct
from r1async.weights.receiver import WeightsMissing, WeightsReady
from r1async.wire import Message

from tests.integration.test_generator import leases
from tests.played_engine import PlayedEngine

V0, V1, V2 = (PolicyVersion(1, number) for number in range(3))
PROOF = Mismatch(tokens=8, mean=0.0, maximum=0.0, before_mean=None, separation=None)
QUIET_S = 0.3


class Engine(PlayedEngine):
    """Of canaries, too, whose rollouts have large numbers; takes every version itself."""

    @staticmethod
    def _report(row, finish):
        row.request = replace(row.request, rollout=row.request.rollout % 1000)
        return PlayedEngine._report(row, finish)

    def install_direct(self, direct: Direct) -> float:
        self.version = direct.version
        return 0.0


class Sent:
    """The buffer's end: what was said."""

    def __init__(self) -> None:
        self.sent: list[Mapping] = []

    def send(self, header: Mapping, columns: object = None, **_: object) -> None:
        self.sent.append(header)


class Weights:
    """The receiver: what was asked for by name."""

    def __init__(self) -> None:
        self.fetched: list[PolicyVersion] = []

    def fetch(self, version: PolicyVersion) -> None:
        self.fetched.append(version)

    def installed(self, ready: WeightsReady, pause_s: float = 0.0) -> None: ...

    def installed_direct(self, direct: Direct, *_: float) -> None: ...

    def release(self, version: PolicyVersion) -> None: ...


class Nothing:
    def write(self, *_: object, **__: object) -> None: ...


class Judged(Canary):
    """Its forward pass says what the test wants, and its thread stays until it is let go."""

    def __init__(self, inbox: Inbox) -> None:
        super().__init__(
            "/nowhere", dtype="float32", every=1, temperature=1.0, vocabulary=8, max_len=64, told=inbox.put
        )
        self.says: Mismatch | None = PROOF
        self.stays = threading.Event()

    def _judge(self, birds: Sequence[Sample]) -> None:
        assert self._version is not None
        self._told(Verdict(version=self._version, mismatch=self.says))
        assert self.stays.wait(30.0)


class Driven:
    """A generator whose loop the test turns."""

    def __init__(self, pinned_capacity: int) -> None:
        self.inbox, self.buffer, self.weights = Inbox(), Sent(), Weights()
        self.engine = Engine(capacity=6, pinned_capacity=pinned_capacity)
        self.engine.permit(10**6)
        self.canary = Judged(self.inbox)
        timeline = Timeline("generator-0")
        figures = Figures(timeline, "played", Nothing())  # pyright: ignore[reportArgumentType]
        self.generator = Generator(
            self.engine,
            self.buffer,  # pyright: ignore[reportArgumentType]
            self.weights,  # pyright: ignore[reportArgumentType]
            self.inbox,
            timeline,
            figures,
            self.canary,
            stall_s=1.0,
        )

    def take(self, *items: object) -> None:
        self.generator._take(items)

    def prove(self, version: PolicyVersion) -> None:
        """Installs it, and waits for the verdict and the end of the canary's thread."""
        self.canary.stays.set()
        self.take(ready(version))
        self.turn()

    def turn(self) -> None:
        """What the loop does, until there was nothing to do for a while."""
        end = time.monotonic() + QUIET_S
        while time.monotonic() < end:
            self.take(*self.inbox.take())
            if self.engine._rows:
                self.generator._stream(self.engine.step())
                end = time.monotonic() + QUIET_S
            if self.generator._room_changed and self.generator._proven:
                self.generator._say_ready()

    @property
    def said(self) -> Mapping:
        return self.buffer.sent[-1]


@pytest.fixture
def drive() -> Iterator[type[Driven]]:
    made: list[Driven] = []

    class Kept(Driven):
        def __init__(self, pinned_capacity: int) -> None:
            super().__init__(pinned_capacity)
            made.append(self)

    yield Kept
    for each in made:
        each.canary.stays.set()


def ready(version: PolicyVersion, *, pinned: bool = False) -> WeightsReady:
    return WeightsReady(version, f"version-{version}", {"w": torch.full((3,), float(version.number))}, pinned)


def direct(version: PolicyVersion) -> Direct:
    return Direct(version, f"version-{version}", (), lambda *_: {"join": None, "update": {}})


def message(*items: tuple[int, int], pin: PolicyVersion, seq: int | None = None) -> Message:
    return Message(*leases(*items, pin=pin, seq=seq))


def test_a_proof_that_comes_while_the_thread_of_the_last_verdict_still_ends(drive):
    driven = drive(2)
    driven.canary.says = None
    driven.take(ready(V0))
    driven.take(ready(V1))  # overtakes the canary of V0
    driven.turn()
    assert driven.weights.fetched == [V1]
    driven.canary.says = PROOF
    driven.take(ready(V1, pinned=True))
    driven.turn()
    assert driven.generator._proven


def test_a_version_that_comes_while_the_thread_of_the_last_verdict_still_ends(drive):
    """The last version of the run is behind the verdict in the inbox; the one that is to be proven is pruned."""
    driven = drive(2)
    driven.canary.says = None
    driven.take(ready(V0))
    driven.take(ready(V1))
    driven.turn()
    driven.canary.says = PROOF
    driven.take(ready(V2))
    driven.take(WeightsMissing(V1, V2))
    driven.turn()
    assert driven.generator._proven


def test_a_proof_that_comes_during_a_claim_takes_no_places(drive):
    driven = drive(0)
    driven.prove(V0)
    driven.take(direct(V1))
    assert driven.weights.fetched == [V1]  # to be proven
    room = driven.said["eval_free"]
    driven.take(message(*((9 + i, 9 + i) for i in range(room)), pin=V0))  # as many as were offered
    assert driven.weights.fetched == [V1, V0]
    driven.take(ready(V1, pinned=True))
    driven.take(ready(V0, pinned=True))
    assert driven.engine.free >= 0


def test_a_claim_that_ends_without_an_install_says_that_there_is_room(drive):
    driven = drive(0)
    driven.prove(V0)
    driven.prove(V1)
    driven.take(message((9, 9), pin=V0, seq=1))
    driven.turn()
    assert driven.said["free"] == 0
    driven.take(Message({"t": "acks", "items": [], "lost": [9]}, {}))  # a restarted buffer's answer
    driven.turn()
    assert driven.said["free"] == 0
    driven.take(ready(V0, pinned=True))
    driven.turn()
    assert driven.said["t"] == "ready"
    assert driven.said["free"] > 0
