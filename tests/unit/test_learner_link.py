"""What the buffer hears of a learner after a reconnect, while the publishing thread speaks too."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from r1async.config import Config, EndpointsConfig
from r1async.inbox import DeadlineExceeded, Inbox
from r1async.learner.link import Link
from r1async.types import PolicyVersion
from r1async.wire import Message


class FakeConnection:
    """Keeps what is sent by session; a new session lets `overtake` speak at once, as another thread could."""

    def __init__(self, *_: object, **__: object) -> None:
        self.session = 0
        self.sent: list[tuple[int, str]] = []
        self.overtake = lambda: None

    def _adopt(self, session: int) -> None:
        self.session = session
        self.overtake()

    def send(self, header: Mapping[str, Any], columns: object = None, *, session: int | None = None) -> None:
        self.sent.append((self.session if session is None else session, header["t"]))

    def send_together(self, headers: Sequence[Mapping[str, Any]], *, session: int | None = None) -> None:
        for header in headers:
            self.send(header, session=session)


def test_published_never_overtakes_stepped_in_a_new_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("r1async.learner.link.Connection", FakeConnection)
    from r1async.client import Connected

    inbox = Inbox()
    config = Config(name="run", endpoints=EndpointsConfig(batches="ipc:///unused"))
    link = Link(config, inbox, rank=0, epoch=1, step=0, stats=dict)
    connection: Any = link._connection
    welcome = Message({"t": "welcome", "steps": config.steps}, {})
    inbox.put(Connected(connection, 1, welcome, True))
    link.connect()
    link.stepped(0, {})
    connection.overtake = lambda: link.published(PolicyVersion(1, 1), "h1")
    inbox.put(Connected(connection, 2, welcome, False))
    with pytest.raises(DeadlineExceeded):
        link.wait_committed(1, deadline_s=0.05)
    assert [kind for session, kind in connection.sent if session == 1] == ["stepped", "next_batch", "published"]
    assert [kind for session, kind in connection.sent if session == 2] == ["stepped", "published", "next_batch"]


def test_a_learner_serves_its_last_version_however_long_an_evaluation_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """It used to end with an error after twice `eval.deadline_s`, which a benchmark may take for a single sample."""
    monkeypatch.setattr("r1async.learner.link.Connection", FakeConnection)
    inbox = Inbox()
    link = Link(Config(name="run", endpoints=EndpointsConfig(batches="ipc:///unused")), inbox, rank=0, epoch=1, step=0,
                stats=dict)  # fmt: skip
    timer = threading.Timer(0.5, lambda: inbox.put(Message({"t": "alive", "state": "stopping"}, {})))
    timer.start()
    link.serve(0.1)
    timer.join()
