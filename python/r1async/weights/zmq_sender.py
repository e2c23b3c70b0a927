"""The learner's end of the ZeroMQ medium. `zmq_receiver.py` is the other one.

Receivers pull: nothing is sent that was not asked for, so a slow one holds up nobody. Messages (wire.py's frame):

    want {run, name, have: [epoch, number] | nil, pin: [epoch, number] | nil}
        -> manifest {pinned, ...} as soon as there is a newer version than `have`; at once for `pin`, or
        -> missing {version, newest, pinned}
    chunks {version, pinned, indexes: [...]}   -> chunk {version, pinned, index}, column `data`, for each; or missing
    ack {name, version, hash, pinned}          the version is installed; no answer
    release {pin}                              -> released {pin}: no evaluation needs that version any more
    anything else                              -> error {code, message, about}

Of a connection that has not sent a `want` with this run's name, `ack` and `release` are refused; `ack` must have the
name of that `want`, and `release` a version that the connection asked for by name.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import zmq
from numpy.typing import NDArray

from r1async.keys import Gate, ServerKeys
from r1async.sockets import bind, router
from r1async.types import PolicyVersion
from r1async.weights.manifest import Snapshot, read_version
from r1async.weights.store import SnapshotStore
from r1async.wire import Message, WireError, pack, unpack

log = logging.getLogger(__name__)

Key = TypeVar("Key")
Value = TypeVar("Value")

MAX_REQUEST_BYTES = 2**16
"""A larger message of a receiver is refused before anything is allocated for it."""
MAX_CHUNKS = 64
"""Chunks that one message may ask for."""
MAX_NAME_BYTES = 256
"""Of a receiver's name; as the buffer's."""
MAX_READERS = 1024
"""Connections, and names, that are remembered; past that the one that was silent longest is forgotten."""
MAX_PINS = 64
"""Versions asked for by name that are remembered of a connection until their release."""
SEND_HWM = 64
"""Messages that ZeroMQ keeps for a receiver that does not read; what does not fit, it asks for again."""


@dataclass(slots=True)
class _Reader:
    """A connection whose `want` named this run."""

    name: str
    pins: OrderedDict[PolicyVersion, None] = field(default_factory=OrderedDict)
    """Asked for by name, not released yet."""


class ZmqSender:
    """Serves a store's snapshots from a thread of its own until `close`.

    Args:
        endpoint: the address to bind.
        store: what is served.
        run: receivers of another run are refused.
        keys: who is let in; None where everybody is who reaches the address.

    Raises:
        ConfigError: the address cannot be bound; the text names it.
    """

    def __init__(self, endpoint: str, store: SnapshotStore, *, run: str, keys: ServerKeys | None) -> None:
        self.endpoint = endpoint
        self._store = store
        self._run = run
        self._lock = threading.Lock()
        self._acknowledged: OrderedDict[str, tuple[PolicyVersion, str]] = OrderedDict()
        self._readers: OrderedDict[bytes, _Reader] = OrderedDict()
        self._waiting: dict[bytes, PolicyVersion | None] = {}
        """What each receiver has that waits for something newer."""
        self._failure: BaseException | None = None
        self.refused = 0
        """Messages answered with an error."""
        self._context = zmq.Context()
        self._router = router(self._context, max_message_bytes=MAX_REQUEST_BYTES, sndhwm=SEND_HWM)
        self._gate = Gate(self._context)
        self._gate.guard(self._router, "weights", keys)
        try:
            bind(self._router, endpoint, "endpoints.weights")
        except BaseException:
            self._gate.close()
            raise
        address = f"inproc://publisher-{uuid.uuid4().hex}"
        self._wake = self._context.socket(zmq.PAIR)
        self._woken = self._context.socket(zmq.PAIR)
        self._wake.bind(address)
        self._woken.connect(address)
        self._thread = threading.Thread(target=self._serve, name=f"publisher {endpoint}", daemon=True)
        self._thread.start()

    def announce(self) -> None:
        if self._failure is not None:
            raise RuntimeError(f"the thread that serves weights at {self.endpoint} has ended") from self._failure
        self._wake.send(b"new")

    def acknowledged(self) -> dict[str, tuple[PolicyVersion, str]]:
        with self._lock:
            return dict(self._acknowledged)

    def close(self) -> None:
        if self._context.closed:
            return
        if self._failure is None:
            self._wake.send(b"close")
        self._thread.join()
        self._woken.close(linger=0)
        self._wake.close(linger=0)
        self._gate.close()
        self._context.term()

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._woken, zmq.POLLIN)
        try:
            while True:
                ready = dict(poller.poll())
                if self._woken in ready:
                    if self._woken.recv() == b"close":
                        return
                    self._offer_newest()
                if self._router in ready:
                    self._receive()
        except BaseException as error:
            self._failure = error
            raise
        finally:
            self._router.close(linger=0)

    def _receive(self) -> None:
        parts = self._router.recv_multipart()
        peer, frame = parts[0], parts[1] if len(parts) == 2 else b""
        about = ""
        try:
            message = unpack(frame)
            about = message.type[:80]
            self._handle(peer, message)
        except WireError as error:
            self.refused += 1
            log.warning("refused a message on %s: %s", self.endpoint, error)
            self._send(peer, {"t": "error", "code": "malformed", "message": str(error)[:500], "about": about})

    def _handle(self, peer: bytes, message: Message) -> None:
        handlers: dict[str, Callable[[bytes, dict], None]] = {
            "want": self._want,
            "chunks": self._chunks,
            "ack": self._ack,
            "release": self._release,
        }
        handler = handlers.get(message.type)
        if handler is None:
            raise WireError(f"unknown type {message.type!r:.80}; receivers send {sorted(handlers)}")
        handler(peer, message.header)

    def _want(self, peer: bytes, header: dict) -> None:
        run, pin = header.get("run"), header.get("pin")
        if run != self._run:
            text = f"this is run {self._run!r}, not {run!r:.80}; check endpoints.weights"
            self._send(peer, {"t": "error", "code": "run", "message": text, "about": "want"})
            return
        reader = self._read_by(peer, header.get("name"))
        if pin is not None:
            version = read_version(pin)
            _remember(reader.pins, version, None, MAX_PINS)
            snapshot = self._store.read(peer, version, time.monotonic(), pin=True)
            if snapshot is None:
                self._send_missing(peer, version, pinned=True)
            else:
                self._send_manifest(peer, snapshot, pinned=True)
        else:
            have = header.get("have")
            self._waiting[peer] = None if have is None else read_version(have)
            self._offer_newest(peer)

    def _read_by(self, peer: bytes, name: object) -> _Reader:
        """This connection is a reader of our run from now on."""
        if not isinstance(name, str) or len(name.encode()) > MAX_NAME_BYTES:
            raise WireError(f"want needs a name of at most {MAX_NAME_BYTES} bytes, got {name!r:.80}")
        reader = self._readers.get(peer) or _Reader(name)
        reader.name = name
        _remember(self._readers, peer, reader, MAX_READERS)
        return reader

    def _reader(self, peer: bytes, what: str) -> _Reader:
        reader = self._readers.get(peer)
        if reader is None:
            raise WireError(f"{what} of a receiver that has asked for nothing of run {self._run!r}")
        return reader

    def _offer_newest(self, peer: bytes | None = None) -> None:
        """Answer those who wait for something newer, or this one of them."""
        newest = self._store.newest()
        if newest is None:
            return
        for each in [peer] if peer is not None else list(self._waiting):
            have = self._waiting[each]
            if have is None or newest.manifest.version > have:
                self._store.read(each, newest.manifest.version, time.monotonic())
                if self._send_manifest(each, newest, pinned=False):
                    self._waiting.pop(each, None)

    def _chunks(self, peer: bytes, header: dict) -> None:
        version, pinned, indexes = (
            read_version(header.get("version")),
            bool(header.get("pinned")),
            header.get("indexes"),
        )
        if not isinstance(indexes, list) or len(indexes) > MAX_CHUNKS:
            raise WireError(f"chunks wants a list of at most {MAX_CHUNKS} indexes")
        snapshot = self._store.read(peer, version, time.monotonic())
        if snapshot is None:
            self._send_missing(peer, version, pinned)
            return
        for index in indexes:
            if not isinstance(index, int) or not 0 <= index < snapshot.manifest.num_chunks:
                raise WireError(f"chunk {index!r:.80} of {snapshot.manifest.num_chunks}")
            header = {"t": "chunk", "version": list(version), "pinned": pinned, "index": index}
            if not self._send(peer, header, snapshot.chunk(index)):
                return

    def _ack(self, peer: bytes, header: dict) -> None:
        match header:
            case {"name": str(name), "hash": str(digest), "version": named, "pinned": bool(pinned)}:
                version = read_version(named)
                if name != self._reader(peer, "ack").name or len(digest) > MAX_NAME_BYTES:
                    raise WireError(f"ack by the name {name!r:.80}, or of a hash, that cannot be this receiver's")
                if not pinned:
                    with self._lock:
                        _remember(self._acknowledged, name, (version, digest), MAX_READERS)
                self._store.done(peer, version, time.monotonic())
            case _:
                raise WireError("ack wants name, version, hash and pinned")

    def _release(self, peer: bytes, header: dict) -> None:
        version = read_version(header.get("pin"))
        pins = self._reader(peer, "release").pins
        if version not in pins:
            raise WireError(f"release of version {version}, which this receiver did not ask for by name")
        del pins[version]
        self._store.release(version, time.monotonic())
        self._send(peer, {"t": "released", "pin": list(version)})

    def _send_manifest(self, peer: bytes, snapshot: Snapshot, *, pinned: bool) -> bool:
        header = {**snapshot.manifest.header(), "pinned": pinned}
        return self._send_frame(peer, pack(header, {"chunk_hashes": snapshot.manifest.chunk_hashes}))

    def _send_missing(self, peer: bytes, version: PolicyVersion, pinned: bool) -> None:
        newest = self._store.newest()
        named = None if newest is None else list(newest.manifest.version)
        self._send(peer, {"t": "missing", "version": list(version), "newest": named, "pinned": pinned})

    def _send(self, peer: bytes, header: dict, data: NDArray | None = None) -> bool:
        return self._send_frame(peer, pack(header, None if data is None else {"data": data}))

    def _send_frame(self, peer: bytes, frame: bytes) -> bool:
        """False if the receiver has gone, or does not read: then it asks again, when it does."""
        try:
            self._router.send_multipart([peer, frame], zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._waiting.pop(peer, None)
            self._readers.pop(peer, None)
            self._store.gone(peer, time.monotonic())
            return False
        return True


def _remember(table: OrderedDict[Key, Value], key: Key, value: Value, limit: int) -> None:
    """As the newest entry; past the limit the oldest is forgotten."""
    table[key] = value
    table.move_to_end(key)
    if len(table) > limit:
        table.popitem(last=False)
