"""A buffer of a few lines on a real socket: what the learner's tests talk to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self

import zmq
from r1async.types import Batch
from r1async.wire import PROTOCOL, Message, pack, unpack

from tests.learner_batches import batch_frame


class FakeBuffer:
    """Hands out `share(step, rank)` until `steps` are asked for, answers the rest, and records what it hears.

    Args:
        endpoint: to bind.
        share: the batch of a step for a rank; None keeps that rank waiting.
        steps: of the run.
        seen: the highest epoch used before.
        refuse: message types that are answered with an error.
        end_after: step from which on there is no batch: less than `steps` when the prompts run out.
        end: answer `finish` with the state that ends the run.
    """

    def __init__(
        self,
        endpoint: str,
        share: Callable[[int, int], Batch | None],
        *,
        steps: int,
        seen: int = 0,
        refuse: tuple[str, ...] = (),
        end_after: int | None = None,
        end: bool = False,
    ) -> None:
        self.heard: SimpleQueue[dict] = SimpleQueue()
        self._state = "running"
        self._end_after = steps if end_after is None else end_after
        self._end = end
        self._share, self._steps, self._seen, self._refuse = share, steps, seen, refuse
        self._stepped, self._published = 0, -1
        self._context = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.linger = 0
        self._router.bind(endpoint)
        self._near, self._far = self._context.socket(zmq.PAIR), self._context.socket(zmq.PAIR)
        self._near.bind("inproc://end")
        self._far.connect("inproc://end")
        self._epochs: dict[bytes, int] = {}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def wait_for(self, kind: str, deadline_s: float = 90.0, **fields: object) -> dict:
        """The next message of this type with these fields; the others before it are skipped."""
        end = time.monotonic() + deadline_s
        while True:
            try:
                header = self.heard.get(timeout=max(0.0, end - time.monotonic()))
            except Empty:
                raise AssertionError(f"no {kind!r} with {fields} within {deadline_s} s") from None
            if header["t"] == kind and all(header.get(name) == value for name, value in fields.items()):
                return header

    def drain(self) -> list[dict]:
        """Everything heard and not yet taken."""
        return [self.heard.get() for _ in range(self.heard.qsize())]

    def close(self) -> None:
        if self._context.closed:
            return
        self._near.send(b"")
        self._thread.join()
        for socket in (self._near, self._far, self._router):
            socket.close(linger=0)
        self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._far, zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self._far in ready:
                return
            peer, frame = self._router.recv_multipart()
            message = unpack(frame)
            self._answer(peer, message)
            if message.type != "heartbeat":
                self.heard.put(message.header)

    def _reply(self, peer: bytes, header: dict, columns: dict | None = None) -> None:
        common = {"epoch": self._seen, "version": self._stepped, "published": self._published, "state": self._state}
        self._router.send_multipart([peer, pack({**common, **header}, columns)])

    def _answer(self, peer: bytes, message: Message) -> None:
        header = message.header
        if message.type in self._refuse:
            text = f"{message.type} is refused by this test"
            self._reply(peer, {"t": "error", "code": "invalid", "message": text, "about": message.type})
            return
        match message.type:
            case "hello":
                self._hello(peer, header)
            case "heartbeat":
                self._reply(peer, {"t": "alive"})
            case "bye":
                self._reply(peer, {"t": "gone"})
            case "next_batch":
                self._next_batch(peer, header["step"], header["rank"])
            case "stepped":
                self._stepped = header["step"] + 1
                self._reply(peer, {"t": "ok", "step": header["step"]})
            case "committed":
                self._reply(peer, {"t": "committed_ok", "step": header["step"]})
            case "published":
                self._published = header["version"]
                self._reply(peer, {"t": "ok"})
            case "finish":
                self._state = "stopping" if self._end else self._state
                self._reply(peer, {"t": "ok"})

    def _hello(self, peer: bytes, header: dict) -> None:
        mine = self._epochs.get(peer) == header["epoch"] or header["rank"] > 0
        if header["epoch"] <= self._seen and not mine:
            text = f"epoch {header['epoch']} has been used"
            self._reply(peer, {"t": "error", "code": "epoch", "message": text, "about": "hello", "seen": self._seen})
            return
        self._seen = max(self._seen, header["epoch"])
        self._epochs[peer] = header["epoch"]
        welcome = {"t": "welcome", "protocol": PROTOCOL, "peer_deadline_s": 20.0, "group_size": 4, "seed": 0}
        self._reply(peer, welcome | {"steps": self._steps, "seen": self._seen})

    def _next_batch(self, peer: bytes, step: int, rank: int) -> None:
        if step >= self._end_after:
            self._reply(peer, {"t": "finished"})
            return
        batch = self._share(step, rank)
        if batch is None:
            self._reply(peer, {"t": "waiting", "reason": "groups: 1 of 2 ready"})
            return
        header, columns = batch_frame(batch)
        self._reply(peer, header | {"epoch": self._seen}, columns)
