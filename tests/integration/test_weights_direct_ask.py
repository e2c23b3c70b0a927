"""A version that an engine may take itself, asked for when the learner that made it is gone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from r1async.inbox import Inbox
from r1async.types import PolicyVersion
from r1async.weights import publisher as publishing
from r1async.weights.direct import Direct, DirectError, Meeting
from r1async.weights.direct_sender import DirectSender
from r1async.weights.manifest import Snapshot
from r1async.weights.publisher import Publisher
from r1async.weights.receiver import Receiver, WeightsReady
from r1async.weights.zmq_receiver import ZmqReceiver

WAIT_S = 10.0


class NoEnd:
    """The learner's end of nothing."""

    def prepare(self, snapshot: Snapshot, base: Snapshot | None) -> Meeting:
        return Meeting(None, {})

    def send(self) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def learn(run_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Publisher]]:
    def sender(*args: object, **settings: object) -> DirectSender:
        return DirectSender(*args, **settings, make=lambda *_, **__: NoEnd())  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(publishing, "DirectSender", sender)
    made: list[Publisher] = []

    def learner() -> Publisher:
        made.append(
            Publisher(f"ipc://{run_root}/weights", run="run", dtype="float32", chunk_bytes=2**16, deadline_s=WAIT_S,
                      direct="127.0.0.1")
        )  # fmt: skip
        return made[-1]

    yield learner
    for publisher in made:
        publisher.close()


@pytest.fixture
def receiver(run_root: Path) -> Iterator[Receiver]:
    with Receiver(f"ipc://{run_root}/weights", Inbox(), run="run", name="generator-0", deadline_s=WAIT_S,
                  direct=True) as receiver:  # fmt: skip
        yield receiver


def left_to_the_engine(receiver: Receiver, learner: Publisher) -> Direct:
    inbox = receiver._inbox
    learner.publish(PolicyVersion(1, 0), {"w": torch.zeros(3)})
    ready = inbox.get("the first version", WAIT_S)
    assert isinstance(ready, WeightsReady)
    receiver.installed(ready)
    learner.publish(PolicyVersion(1, 1), {"w": torch.ones(3)})
    direct = inbox.get("the second", WAIT_S)
    assert isinstance(direct, Direct)
    return direct


def ask(direct: Direct) -> None:
    """Refused long before the question's deadline, by whom it is about."""
    begun = time.monotonic()
    with pytest.raises(DirectError, match=r"learner|nobody answers|asked for nothing"):
        direct.ask("vllm-nccl", base=None, workers=1, device="cuda", fresh=True, deadline_s=60.0)
    assert time.monotonic() - begun < 30.0


def attached(receiver: Receiver) -> bool:
    medium = receiver._medium
    assert isinstance(medium, ZmqReceiver)
    return medium._attached


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end
        threading.Event().wait(0.01)


@pytest.mark.parametrize("back", [False, True], ids=["away", "another"])
def test_a_learner_that_is_lost_is_not_waited_for(learn, receiver: Receiver, back: bool):
    first = learn()
    direct = left_to_the_engine(receiver, first)
    first.close()
    until(lambda: not attached(receiver))
    if back:
        learn().publish(PolicyVersion(2, 0), {"w": torch.zeros(3)})
        until(lambda: attached(receiver))
    ask(direct)


def test_a_learner_that_dies_before_it_answers_is_not_waited_for(
    learn, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
):
    learner = learn()
    direct = left_to_the_engine(receiver, learner)
    monkeypatch.setattr(DirectSender, "begin", lambda *_: None)
    timer = threading.Timer(0.5, learner.close)
    timer.start()
    ask(direct)
    timer.join()
