"""What the evaluator hears besides the buffer's answers: events, and the learner's word about kept versions.

A thread with two sockets. Takes: events (hints), replies of the weights socket. Gives: both, into the inbox. Waits
for: a socket. It never reads weights: `look` answers with the version's hash, which is all that we need, and keeps the
version while generators fetch it.
"""

from __future__ import annotations

import logging
import threading
import uuid
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import zmq

from r1async.inbox import Inbox
from r1async.keys import ClientKeys
from r1async.types import PolicyVersion
from r1async.wire import Message, WireError, pack, unpack

log = logging.getLogger(__name__)

HINTS = frozenset({"state", "step"})
"""Events that can tell of a new version; the others are for people."""


@dataclass(frozen=True, slots=True)
class WeightsReply:
    """The learner's answer: held, missing, released or error."""

    message: Message


class SideSockets:
    """Connections to the events and the weights socket, until `close`.

    Args:
        events: the buffer's PUB socket.
        weights: the learner's ROUTER socket.
        inbox: gets event `Message`s and `WeightsReply`s.
        run: the run's name, which the learner checks.
        max_message_bytes: a larger message ends the connection before anything is allocated for it.
        events_keys: ours for the events socket; None where it needs none.
        weights_keys: the same for the weights socket.
    """

    def __init__(
        self,
        events: str,
        weights: str,
        inbox: Inbox,
        *,
        run: str,
        max_message_bytes: int,
        events_keys: ClientKeys | None = None,
        weights_keys: ClientKeys | None = None,
    ) -> None:
        self._run = run
        self._inbox = inbox
        self._weights_endpoint = weights
        self._context = zmq.Context()
        address = f"inproc://side-{uuid.uuid4().hex}"
        self._near, self._far = self._context.socket(zmq.PAIR), self._context.socket(zmq.PAIR)
        self._near.bind(address)
        self._far.connect(address)
        self._events = self._context.socket(zmq.SUB)
        self._events.subscribe(b"")
        self._weights = self._context.socket(zmq.DEALER)
        for socket, endpoint, keys in ((self._events, events, events_keys), (self._weights, weights, weights_keys)):
            socket.linger = 0
            socket.maxmsgsize = max_message_bytes
            if keys is not None:
                keys.protect(socket)
            socket.connect(endpoint)
        inbox.add_source(lambda: f"learner's weights {weights}")
        self._thread = threading.Thread(target=self._run_thread, name="evaluator's side sockets", daemon=True)
        self._thread.start()

    def want(self, pin: PolicyVersion) -> None:
        """Ask for a version to be kept, and for its hash; a `WeightsReply` follows."""
        self._send({"t": "look", "run": self._run, "name": "evaluator", "pin": list(pin)})

    def release(self, pin: PolicyVersion) -> None:
        """No evaluation needs the version any more."""
        self._send({"t": "release", "pin": list(pin)})

    def close(self) -> None:
        if self._context.closed:
            return
        self._near.send(b"")
        self._thread.join()
        for socket in (self._near, self._far):
            socket.close(linger=0)
        self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _send(self, header: dict[str, object]) -> None:
        self._near.send(pack(header))

    def _run_thread(self) -> None:
        poller = zmq.Poller()
        for socket in (self._far, self._events, self._weights):
            poller.register(socket, zmq.POLLIN)
        try:
            while True:
                ready = dict(poller.poll())
                if self._far in ready:
                    frame = self._far.recv()
                    if not frame:
                        return
                    self._weights.send(frame, zmq.NOBLOCK)
                if self._events in ready:
                    message = self._read(self._events)
                    if message is not None and message.type in HINTS:
                        self._inbox.put(message)
                if self._weights in ready and (message := self._read(self._weights)) is not None:
                    self._inbox.put(WeightsReply(message))
        except BaseException as error:
            self._inbox.fail(error)
            raise
        finally:
            self._events.close(linger=0)
            # The last release may still be on its way to a learner that is there.
            self._weights.close(linger=200)

    @staticmethod
    def _read(socket: zmq.Socket[bytes]) -> Message | None:
        parts = socket.recv_multipart()
        try:
            return unpack(parts[-1])
        except WireError as error:
            log.warning("a message that is not ours at %s: %s", socket.get_string(zmq.LAST_ENDPOINT), error)
            return None
