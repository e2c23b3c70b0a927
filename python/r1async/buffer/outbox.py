"""What waits for peers that do not read."""

from __future__ import annotations

from collections import deque

import zmq

from r1async.wire import Frame

FIRST, LAST = int(zmq.NOBLOCK | zmq.SNDMORE), int(zmq.NOBLOCK)
"""Flags of a message's two parts; combining them for each message cost as much as sending it."""

RETRY_S = 0.05
"""Seconds until a waiting frame is tried again, unless its peer says something before: a ROUTER does not tell when
one of its peers has room again."""
ZERO_COPY_BYTES = 1 << 18
"""A larger frame is sent from where it lies; for a smaller one pyzmq's bookkeeping costs more than the copy."""


class Outbox:
    """Sends without blocking, in order per peer; keeps at most `limit` frames for a peer that is full.

    Args:
        socket: a ROUTER with ROUTER_MANDATORY.
        limit: past it the peer counts as lost.
    """

    def __init__(self, socket: zmq.Socket, limit: int) -> None:
        self._socket = socket
        self._limit = limit
        self._waiting: dict[bytes, deque[Frame]] = {}

    @property
    def empty(self) -> bool:
        return not self._waiting

    def send(self, peer: bytes, frame: Frame) -> bool:
        """False: the peer is gone, or will not read; what waited for it is dropped."""
        frames = self._waiting.get(peer)
        if frames is None:
            sent = self._try(peer, frame)
            if sent is None:
                self._waiting[peer] = deque([frame])
            return sent is not False
        if len(frames) >= self._limit:
            del self._waiting[peer]
            return False
        frames.append(frame)
        return True

    def retry(self, peer: bytes) -> bool:
        """Sends what waits for a peer, as far as it takes it. False: the peer is gone."""
        frames = self._waiting.get(peer)
        while frames:
            sent = self._try(peer, frames[0])
            if sent is None:
                return True
            if sent is False:
                del self._waiting[peer]
                return False
            frames.popleft()
        self._waiting.pop(peer, None)
        return True

    def retry_all(self) -> list[bytes]:
        """The peers that turned out to be gone."""
        return [peer for peer in list(self._waiting) if not self.retry(peer)]

    def _try(self, peer: bytes, frame: Frame) -> bool | None:
        """True: sent. None: no room. False: no such peer."""
        try:
            self._socket.send(peer, FIRST)
            self._socket.send(frame, LAST, copy=len(frame) < ZERO_COPY_BYTES)
        except zmq.Again:
            return None
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return False
        return True
