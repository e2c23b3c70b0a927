"""A role's connection against a buffer played by the test over a real ROUTER socket."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from r1async import client
from r1async.client import Connected, Connection, Refused, greeting
from r1async.inbox import DeadlineExceeded, Inbox
from r1async.wire import Message, WireError, pack

from tests.played_buffer import Router

HELLO = greeting("generator", "generator-0", "run")
WAIT_MS = 10_000


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/rollouts"


@pytest.fixture
def router(endpoint: str) -> Iterator[Router]:
    made = Router(endpoint)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def no_threads_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


def test_hello_then_welcome_opens_the_session(router: Router) -> None:
    inbox = Inbox()
    with Connection(router.endpoint, HELLO, inbox) as connection:
        hello = router.welcome()
        assert hello.header == HELLO
        assert connection.wait_connected(10).header["peer_deadline_s"] == 20.0
        router.send({"t": "leases", "seq": 1}, {"prompt_tokens": np.arange(3, dtype=np.int32)})
        message = inbox.get("leases", 10)
        assert isinstance(message, Message)
        assert message.columns["prompt_tokens"].tolist() == [0, 1, 2]
        connection.send({"t": "ready", "free": 4})
        assert router.expect("ready").header["free"] == 4
    assert router.expect("bye").header == {"t": "bye"}


def test_client_started_before_the_buffer_waits_and_says_so(
    endpoint: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(client, "SAY_EVERY_S", 0.05)
    said = threading.Event()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "waiting for the buffer" in record.getMessage() and endpoint in record.getMessage():
                said.set()

    handler = Handler()
    logging.getLogger("r1async.client").addHandler(handler)
    try:
        with Connection(endpoint, HELLO, Inbox()) as connection:
            assert said.wait(10)
            router = Router(endpoint)
            router.welcome()
            connection.wait_connected(10)
            router.close()
    finally:
        logging.getLogger("r1async.client").removeHandler(handler)


def test_no_welcome_in_time_names_the_wait_and_the_endpoint(endpoint: str) -> None:
    inbox = Inbox()
    with (
        Connection(endpoint, HELLO, inbox, connect_deadline_s=0.1) as connection,
        pytest.raises(DeadlineExceeded, match=rf"the buffer's welcome; buffer {endpoint}: nobody answers"),
    ):
        connection.wait_connected(10)


def test_a_wait_that_ends_names_itself_how_long_and_where(router: Router) -> None:
    inbox = Inbox()
    with Connection(router.endpoint, HELLO, inbox) as connection:
        router.welcome()
        connection.wait_connected(10)
        with pytest.raises(DeadlineExceeded, match=rf"waited \d\.\d s for leases; buffer {router.endpoint}: connected"):
            inbox.get("leases", 0.1)


@pytest.mark.parametrize("code", ["protocol", "run", "epoch", "role"])
def test_refusal_is_raised_in_the_main_thread_with_the_buffers_text(router: Router, code: str) -> None:
    inbox = Inbox()
    with Connection(router.endpoint, HELLO, inbox) as connection:
        router.expect("hello")
        router.send({"t": "error", "code": code, "message": "we are run 'x'", "about": "hello", "seen": 7})
        with pytest.raises(Refused, match=rf"refused hello \({code}\): we are run 'x'") as caught:
            connection.wait_connected(10)
    assert (caught.value.code, caught.value.seen) == (code, 7)


def test_a_restarted_buffer_gets_hello_again_and_nothing_of_the_lost_session(endpoint: str) -> None:
    inbox = Inbox()
    router = Router(endpoint)
    with Connection(endpoint, HELLO, inbox) as connection:
        router.welcome()
        connection.wait_connected(10)
        router.close()
        router = Router(endpoint)
        router.welcome()
        connection.send({"t": "chunks", "items": []})  # of the session that is over: void
        again = inbox.get("the buffer", 10)
        assert isinstance(again, Connected)
        assert not again.first
        connection.send({"t": "announce", "items": []})
        assert router.receive().type == "announce"
    router.close()


def test_a_buffer_that_forgot_us_gets_one_hello_whatever_it_complains_about(router: Router) -> None:
    inbox = Inbox()
    with Connection(router.endpoint, HELLO, inbox) as connection:
        router.welcome()
        connection.wait_connected(10)
        for _ in range(3):
            router.send({"t": "error", "code": "hello", "message": "who are you?", "about": "chunks"})
        router.welcome()
        assert isinstance(inbox.get("the buffer", 10), Connected)
        connection.send({"t": "ready"})
        assert router.receive().type == "ready"  # and not a second hello


def test_heartbeats_carry_stats_and_a_silent_buffer_is_connected_anew(router: Router) -> None:
    inbox = Inbox()
    with Connection(router.endpoint, HELLO, inbox, stats=lambda: {"tokens": 5.0}) as connection:
        router.welcome(peer_deadline_s=0.2)
        connection.wait_connected(10)
        started = time.monotonic()
        kinds = []
        while (message := router.receive()).type != "hello":
            kinds.append(message.type)
            assert message.header["stats"] == {"tokens": 5.0}
        # Every 0.05 s while nothing is answered for 0.2 s; fewer if this machine is busy.
        assert 1 <= len(kinds) <= 4
        assert time.monotonic() - started >= 0.15
        router.send({"t": "welcome", "peer_deadline_s": 20.0})
        assert isinstance(inbox.get("the buffer", 10), Connected)


def test_alive_is_for_the_thread_unless_the_run_changes_state(router: Router) -> None:
    inbox = Inbox()
    with Connection(router.endpoint, HELLO, inbox) as connection:
        router.expect("hello")
        router.send({"t": "welcome", "peer_deadline_s": 20.0, "state": "running"})
        connection.wait_connected(10)
        router.send({"t": "alive", "state": "running"})
        router.send({"t": "alive", "state": "stopping"})
        message = inbox.get("alive", 10)
        assert isinstance(message, Message)
        assert message.header["state"] == "stopping"


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        ([b"not a message"], "not a message"),
        ([b"", b"x"], "2 frames"),
        ([pack({"t": "welcome"})], "peer_deadline_s=None"),
    ],
)
def test_bytes_that_are_no_message_of_a_buffer_end_the_role_with_a_clear_error(
    router: Router, frames: list[bytes], text: str
) -> None:
    inbox = Inbox()
    with Connection(router.endpoint, HELLO, inbox) as connection:
        router.expect("hello")
        router.socket.send_multipart([router.peer, *frames])
        with pytest.raises(WireError, match=text):
            connection.wait_connected(10)


def test_send_to_a_buffer_that_does_not_read_ends_at_its_deadline(
    router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "SEND_HWM", 1)
    with Connection(router.endpoint, HELLO, Inbox(), send_deadline_s=0.2) as connection:
        router.welcome()
        connection.wait_connected(10)
        column = {"tokens": np.zeros(250_000, np.int32)}

        def flood() -> None:
            for _ in range(4000):
                connection.send({"t": "chunks"}, column)

        with pytest.raises(DeadlineExceeded, match=r"0\.\d s for room to send 'chunks'"):
            flood()


def test_close_without_a_buffer_is_quick(endpoint: str) -> None:
    connection = Connection(endpoint, HELLO, Inbox())
    started = time.monotonic()
    connection.close()
    connection.close()
    assert time.monotonic() - started < 1.0
