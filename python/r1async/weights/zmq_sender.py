"""The learner's end of the ZeroMQ medium. `zmq_receiver.py` is the other one.

Receivers pull: nothing is sent that was not asked for, so a slow one holds up nobody. Messages (wire.py's frame; a
version is [epoch, number], a base [version, hash] of what the receiver can take a delta from, or nil):

    want {run, name, have: version | nil, base, pin: version | nil}
        -> manifest {pinned, ...} as soon as there is a newer version than `have`; at once for `pin`, or
        -> missing {version, newest, pinned}
    chunks {version, base: version | nil, pinned, indexes: [...]}
        -> chunk {version, base, pinned, index}, column `data`, for each; or missing
    ack {name, version, hash, pinned, bytes, sync_s, pause_s}    the version is installed; no answer
    look {run, name, pin}      -> held {version, hash}: we have it, and keep it for the receivers; or missing
    release {pin}              -> released {pin}: no evaluation needs that version any more
    direct {version, way, base, workers, device, fresh}    -> directed {join, update} or {error}: see direct.py
    anything else              -> error {code, message, about}

Of a connection that has not sent a `want` or `look` with this run's name, the last three are refused; `ack` must
have the name of that `want`, or begin with it and a slash (a relay's receivers), and `release` a version that the
connection asked for by name. A package that has to be made first is made in another thread: nobody waits for it but
who asked.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Protocol, TypeVar

import zmq
from numpy.typing import NDArray

from r1async.keys import Gate, ServerKeys
from r1async.sockets import bind, router
from r1async.types import PolicyVersion
from r1async.weights.acks import Ack
from r1async.weights.direct_sender import DirectSender
from r1async.weights.manifest import Base, read_base, read_version
from r1async.weights.package import Package
from r1async.weights.store import Builder, Key, VersionStore
from r1async.wire import Message, WireError, pack, unpack

log = logging.getLogger(__name__)

Name = TypeVar("Name")
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


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a connection waits for."""

    version: PolicyVersion | None
    """Newest: the one it has. By name: the one it wants."""
    base: Base | None


class Above(Protocol):
    """Where a relay's store is filled from; called in the sender's thread."""

    def fetches(self, version: PolicyVersion) -> bool:
        """Whether a version that was named and is not here may still come."""
        ...

    def acknowledged(self, ack: Ack) -> None:
        """A receiver's engine serves a version."""
        ...


class ZmqSender:
    """Serves a store's versions from a thread of its own until `close`.

    Args:
        endpoint: the address to bind.
        store: what is served.
        run: receivers of another run are refused.
        keys: who is let in; None where everybody is who reaches the address.
        above: who may have versions that the store lacks; None of a publisher, which is the first to have them.
        direct: sends versions to engines themselves; None: nobody does.

    Raises:
        ConfigError: the address cannot be bound; the text names it.
    """

    def __init__(
        self,
        endpoint: str,
        store: VersionStore,
        *,
        run: str,
        keys: ServerKeys | None,
        above: Above | None = None,
        direct: DirectSender | None = None,
    ) -> None:
        self.endpoint = endpoint
        self._store = store
        self._run = run
        self._above = above
        self._direct_sender = direct
        self._answers: SimpleQueue[tuple[bytes, dict]] = SimpleQueue()
        """Of other threads, to be sent by this socket's."""
        self._lock = threading.Lock()
        self._acknowledged: OrderedDict[str, Ack] = OrderedDict()
        self._readers: OrderedDict[bytes, _Reader] = OrderedDict()
        self._waiting: OrderedDict[bytes, _Asked] = OrderedDict()
        """Who waits for something newer than what he has, or for its package."""
        self._waiting_by_name: OrderedDict[tuple[bytes, PolicyVersion], _Asked] = OrderedDict()
        """Who waits for the package of a version that he named."""
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
        self._builder = Builder(store, time.monotonic, self._wake_up)
        self._thread = threading.Thread(target=self._serve, name=f"publisher {endpoint}", daemon=True)
        self._thread.start()

    def announce(self) -> None:
        if self._failure is not None:
            raise RuntimeError(f"the thread that serves weights at {self.endpoint} has ended") from self._failure
        self._wake_up()

    def _wake_up(self) -> None:
        with self._lock:  # the publishing thread and the builder share the socket
            self._wake.send(b"new")

    def acknowledged(self) -> dict[str, Ack]:
        with self._lock:
            return dict(self._acknowledged)

    def close(self) -> None:
        if self._context.closed:
            return
        self._builder.close()
        if self._failure is None:
            with self._lock:
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
                    self._offer_all()
                    self._answer_all()
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
            "look": self._look,
            "direct": self._direct,
            "release": self._release,
        }
        handler = handlers.get(message.type)
        if handler is None:
            raise WireError(f"unknown type {message.type!r:.80}; receivers send {sorted(handlers)}")
        handler(peer, message.header)

    def _want(self, peer: bytes, header: dict) -> None:
        if not self._is_ours(peer, header):
            return
        pin, have, base = header.get("pin"), header.get("have"), read_base(header.get("base"))
        reader = self._read_by(peer, header.get("name"))
        if pin is None:
            asked = _Asked(None if have is None else read_version(have), base)
            _remember(self._waiting, peer, asked, MAX_READERS)
            self._offer_newest(peer, asked)
            return
        version = read_version(pin)
        _remember(reader.pins, version, None, MAX_PINS)
        asked = _Asked(version, base)
        _remember(self._waiting_by_name, (peer, version), asked, MAX_READERS)
        self._offer_named(peer, version, asked)

    def _look(self, peer: bytes, header: dict) -> None:
        if not self._is_ours(peer, header):
            return
        version = read_version(header.get("pin"))
        _remember(self._read_by(peer, header.get("name")).pins, version, None, MAX_PINS)
        snapshot = self._store.get(version, pin=True)
        if snapshot is None:
            self._send_missing(peer, version, pinned=True)
        else:
            self._send(peer, {"t": "held", "version": list(version), "hash": snapshot.hash})

    def _is_ours(self, peer: bytes, header: dict) -> bool:
        run = header.get("run")
        if run != self._run:
            text = f"this is run {self._run!r}, not {run!r:.80}; check endpoints.weights"
            self._send(peer, {"t": "error", "code": "run", "message": text, "about": header["t"]})
        return run == self._run

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

    def _offer_all(self) -> None:
        """There is a newer version, or another package."""
        for peer, asked in list(self._waiting.items()):
            self._offer_newest(peer, asked)
        for (peer, version), asked in list(self._waiting_by_name.items()):
            self._offer_named(peer, version, asked)

    def _offer_newest(self, peer: bytes, asked: _Asked) -> None:
        newest = self._store.newest()
        if newest is None or (asked.version is not None and newest.version <= asked.version):
            return
        key = self._store.key_for(newest.version, asked.base)
        if key is not None and self._offer(peer, key, pinned=False):
            self._waiting.pop(peer, None)

    def _offer_named(self, peer: bytes, version: PolicyVersion, asked: _Asked) -> None:
        held = self._store.get(version, pin=True)
        key = None if held is None else self._store.key_for(version, asked.base)
        if key is None:
            if self._above is None or not self._above.fetches(version):
                self._waiting_by_name.pop((peer, version), None)
                self._send_missing(peer, version, pinned=True)
        elif self._offer(peer, key, pinned=True):
            self._waiting_by_name.pop((peer, version), None)

    def _offer(self, peer: bytes, key: Key, *, pinned: bool) -> bool:
        """False: not yet, or not to be sent; the receiver goes on waiting, and asks again at its deadline."""
        package = self._store.package(peer, key, time.monotonic())
        if package is None:
            self._builder.want(key)
            return False
        return self._send_manifest(peer, package, pinned=pinned)

    def _chunks(self, peer: bytes, header: dict) -> None:
        version, base = read_version(header.get("version")), header.get("base")
        pinned, indexes = bool(header.get("pinned")), header.get("indexes")
        if not isinstance(indexes, list) or len(indexes) > MAX_CHUNKS:
            raise WireError(f"chunks wants a list of at most {MAX_CHUNKS} indexes")
        key = version, None if base is None else read_version(base)
        package = self._store.package(peer, key, time.monotonic())
        if package is None:
            self._send_missing(peer, version, pinned)
            return
        for index in indexes:
            if not isinstance(index, int) or not 0 <= index < package.manifest.num_chunks:
                raise WireError(f"chunk {index!r:.80} of {package.manifest.num_chunks}")
            header = {"t": "chunk", "version": list(version), "base": base, "pinned": pinned, "index": index}
            if not self._send(peer, header, package.chunk(index)):
                return

    def _ack(self, peer: bytes, header: dict) -> None:
        ack = Ack.from_header(header)
        own = self._reader(peer, "ack").name
        if (
            not (ack.name == own or ack.name.startswith(f"{own}/"))
            or max(len(ack.name), len(ack.hash)) > MAX_NAME_BYTES
        ):
            raise WireError(f"ack by the name {ack.name!r:.80}, or of a hash, that cannot be this receiver's")
        if not ack.pinned:
            with self._lock:
                _remember(self._acknowledged, ack.name, ack, MAX_READERS)
        if self._above is not None:
            self._above.acknowledged(ack)
        if ack.name == own:
            self._store.done(peer, ack.version, time.monotonic())

    def _direct(self, peer: bytes, header: dict) -> None:
        name = self._reader(peer, "direct").name
        if self._direct_sender is None:
            text = "this learner sends nothing directly: its weights.medium is another"
            self._send(peer, {"t": "directed", "error": text})
            return

        def reply(answer: Mapping[str, object]) -> None:
            self._answers.put((peer, {**answer, "t": "directed"}))
            self._wake_up()

        self._direct_sender.begin(name, header, reply)

    def _answer_all(self) -> None:
        while not self._answers.empty():
            self._send(*self._answers.get())

    def _release(self, peer: bytes, header: dict) -> None:
        version = read_version(header.get("pin"))
        pins = self._reader(peer, "release").pins
        if version not in pins:
            raise WireError(f"release of version {version}, which this receiver did not ask for by name")
        del pins[version]
        self._store.release(version, time.monotonic())
        self._send(peer, {"t": "released", "pin": list(version)})

    def _send_manifest(self, peer: bytes, package: Package, *, pinned: bool) -> bool:
        header = {**package.manifest.header(), "pinned": pinned}
        return self._send_frame(peer, pack(header, {"chunk_crcs": package.manifest.chunk_crcs}))

    def _send_missing(self, peer: bytes, version: PolicyVersion, pinned: bool) -> None:
        newest = self._store.newest()
        named = None if newest is None else list(newest.version)
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
            for key in [key for key in self._waiting_by_name if key[0] == peer]:
                del self._waiting_by_name[key]
            self._readers.pop(peer, None)
            self._store.gone(peer, time.monotonic())
            return False
        return True


def _remember(table: OrderedDict[Name, Value], key: Name, value: Value, limit: int) -> None:
    """As the newest entry; past the limit the oldest is forgotten."""
    table[key] = value
    table.move_to_end(key)
    if len(table) > limit:
        table.popitem(last=False)
