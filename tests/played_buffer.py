"""A buffer played by the test: a real ROUTER that says what the test tells it to."""

from __future__ import annotations

import zmq
from r1async.wire import Message, pack, unpack

WAIT_MS = 60_000


class Router:
    """The buffer's side of one socket, driven by the test."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.ROUTER)
        self.socket.linger = 0
        self.socket.router_handover = 1
        self.socket.bind(endpoint)
        self.peer = b""

    def receive(self) -> Message:
        assert self.socket.poll(WAIT_MS), "the client sent nothing"
        self.peer, frame = self.socket.recv_multipart()
        return unpack(frame)

    def expect(self, kind: str) -> Message:
        """The next message, which is of this kind. On a slow machine a client says in between that it lives."""
        message = self.receive()
        while message.type == "heartbeat" != kind:
            message = self.receive()
        assert message.type == kind
        return message

    def send(self, header: dict, columns: dict | None = None) -> None:
        self.socket.send_multipart([self.peer, pack(header, columns)])

    def welcome(self, peer_deadline_s: float = 20.0) -> Message:
        hello = self.expect("hello")
        self.send({"t": "welcome", "peer_deadline_s": peer_deadline_s})
        return hello

    def close(self) -> None:
        self.socket.close(linger=0)
        self._context.term()
