"""A receiver's end of the ZeroMQ medium; the messages are described in `zmq_sender.py`.

At most two transfers at a time: the newest version, and the version that an evaluation pins. After a reconnect, and
when nothing moves for `deadline_s`, what is wanted is asked for again; until then the last complete version stands.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Mapping

import zmq
import zmq.utils.monitor

from r1async.keys import ClientKeys
from r1async.types import PolicyVersion
from r1async.weights.acks import Ack
from r1async.weights.manifest import Base, Manifest, read_base, read_version
from r1async.weights.medium import Sink
from r1async.weights.package import Package
from r1async.weights.transfer import Transfer, TransferError
from r1async.wire import Message, WireError, pack, unpack

log = logging.getLogger(__name__)

SAY_EVERY_S = 10.0
"""Seconds between two log lines while nobody answers."""
RETRY_S = 0.1
"""Seconds after which a question that ZeroMQ did not take is asked again."""
HEARTBEAT_MS = 5000
"""ZeroMQ's own, so that a publisher's machine that has gone is noticed while we wait for a newer version."""


class PublisherError(ValueError):
    """The publisher will not serve us: another run's."""


class _Want:
    """One thing asked for, and the transfer that answers it."""

    def __init__(self, pinned: bool) -> None:
        self.pinned = pinned
        self.active = False
        self.version: PolicyVersion | None = None
        """Pinned: the version. Newest: the version we have."""
        self.base: Base | None = None
        """What a delta may lead on from."""
        self.transfer: Transfer | None = None
        self.begun = 0.0
        """When the manifest came."""
        self.moved = 0.0
        """When something last came, or was asked for."""

    def begin(self, version: PolicyVersion | None, base: Base | None, now: float) -> None:
        self.active, self.version, self.base, self.transfer, self.moved = True, version, base, None, now

    def end(self) -> None:
        self.active, self.transfer = False, None


class ZmqReceiver:
    """Fetches from a publisher in a thread of its own until `close`. The publisher need not be there yet.

    Args:
        endpoint: the publisher's address.
        sink: who gets what arrives.
        run: must be the publisher's.
        name: ours, for acknowledgements.
        deadline_s: seconds without a chunk, or without any answer to a question, after which we ask again.
        max_message_bytes: a larger message ends the connection before anything is allocated for it.
        keys: ours for this socket; None where it needs none.
    """

    def __init__(
        self,
        endpoint: str,
        sink: Sink,
        *,
        run: str,
        name: str,
        deadline_s: float,
        max_message_bytes: int,
        keys: ClientKeys | None,
    ) -> None:
        self.endpoint = endpoint
        self._sink = sink
        self._run = run
        self._name = name
        self._deadline_s = deadline_s
        self._max_message_bytes = max_message_bytes
        self._keys = keys
        self._stats = {"weights_bytes": 0.0, "chunks_corrupted": 0.0, "transfers_restarted": 0.0}
        self._newest, self._pinned = _Want(pinned=False), _Want(pinned=True)
        self._pins: deque[tuple[PolicyVersion, Base | None]] = deque()
        self._attached = False
        self._asked_direct = False
        """A question of `direct` has no answer yet."""
        self._ordering = threading.Lock()
        self._since = self._said = time.monotonic()
        self._context = zmq.Context()
        address = f"inproc://receiver-{uuid.uuid4().hex}"
        self._commands = self._context.socket(zmq.PAIR)
        self._orders = self._context.socket(zmq.PAIR)
        self._commands.bind(address)
        self._orders.connect(address)
        self._thread = threading.Thread(target=self._serve, name=f"receiver {endpoint}", daemon=True)
        self._thread.start()

    def want(self, have: Base | None) -> None:
        self._order({"t": "want", "base": _listed(have)})

    def fetch(self, version: PolicyVersion, have: Base | None) -> None:
        self._order({"t": "fetch", "version": list(version), "base": _listed(have)})

    def acknowledge(self, ack: Ack) -> None:
        self._order(ack.header())

    def direct(self, asked: Mapping[str, object]) -> None:
        self._order({**asked, "t": "direct"})

    def release(self, version: PolicyVersion) -> None:
        self._order({"t": "release", "pin": list(version)})

    def stats(self) -> Mapping[str, float]:
        return dict(self._stats)

    def describe(self) -> str:
        how = "connected" if self._attached else "nobody answers"
        moving = [
            f"fetching {want.transfer.manifest.version}"
            for want in (self._newest, self._pinned)
            if want.transfer is not None
        ]
        return f"weights {self.endpoint}: {', '.join([how, *moving])} for {time.monotonic() - self._since:.1f} s"

    def close(self) -> None:
        if self._context.closed:
            return
        if self._thread.is_alive():
            self._order({"t": "close"})
        self._thread.join()
        self._commands.close(linger=0)
        self._orders.close(linger=0)
        self._context.term()

    def _order(self, order: Mapping) -> None:
        with self._ordering:  # a relay gives orders from two threads
            self._commands.send(pack(order))

    def _serve(self) -> None:
        self._dealer = self._context.socket(zmq.DEALER)
        monitor = self._dealer.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        try:
            self._connect()
            self._loop(monitor)
        except BaseException as error:
            self._sink.failed(error)
            if not isinstance(error, PublisherError):
                raise
        finally:
            self._dealer.disable_monitor()
            monitor.close(linger=0)
            self._dealer.close(linger=0)

    def _connect(self) -> None:
        dealer = self._dealer
        dealer.linger = 0
        dealer.immediate = 1
        dealer.maxmsgsize = self._max_message_bytes
        dealer.reconnect_ivl = 50
        dealer.reconnect_ivl_max = 1000
        dealer.heartbeat_ivl = HEARTBEAT_MS
        dealer.heartbeat_timeout = 3 * HEARTBEAT_MS
        if self._keys is not None:
            self._keys.protect(dealer)
        dealer.connect(self.endpoint)

    def _loop(self, monitor: zmq.Socket) -> None:
        poller = zmq.Poller()
        for socket in (self._dealer, self._orders, monitor):
            poller.register(socket, zmq.POLLIN)
        while True:
            ready = dict(poller.poll(self._timeout_ms()))
            if monitor in ready:
                self._on_connection(zmq.utils.monitor.recv_monitor_message(monitor)["event"])
            if self._orders in ready and not self._obey():
                return
            if self._dealer in ready:
                self._receive()
            self._on_time(time.monotonic())

    def _timeout_ms(self) -> int:
        due = [want.moved + self._deadline_s for want in (self._newest, self._pinned) if want.active and self._attached]
        if not self._attached:
            due.append(self._said + SAY_EVERY_S)
        return max(0, int((min(due) - time.monotonic()) * 1000) + 1) if due else -1

    def _on_connection(self, event: int) -> None:
        self._since = self._said = time.monotonic()
        self._attached = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
        if self._attached:
            self._ask(self._newest)
            self._ask(self._pinned)
        else:
            log.warning("lost the publisher at %s; keeping what is installed", self.endpoint)
            self._answer_direct({"error": f"lost the learner at {self.endpoint}"})

    def _obey(self) -> bool:
        """Carries out the main thread's orders; False at the last."""
        while self._orders.poll(0):
            header = unpack(self._orders.recv()).header
            match header["t"]:
                case "close":
                    return False
                case "want":
                    base = read_base(header["base"])
                    self._newest.begin(base and base.version, base, time.monotonic())
                    self._ask(self._newest)
                case "fetch":
                    self._pins.append((read_version(header["version"]), read_base(header["base"])))
                    self._next_pin()
                case "direct":
                    self._asked_direct = True
                    if not self._send(header):
                        self._answer_direct({"error": f"nobody answers at {self.endpoint}"})
                case _:
                    self._send(header)
        return True

    def _answer_direct(self, answer: Mapping[str, object]) -> None:
        if self._asked_direct:
            self._asked_direct = False
            self._sink.direct(answer)

    def _next_pin(self) -> None:
        if self._pins and not self._pinned.active:
            self._pinned.begin(*self._pins.popleft(), time.monotonic())
            self._ask(self._pinned)

    def _ask(self, want: _Want) -> None:
        """Ask from the beginning, if anything is wanted."""
        if not want.active:
            return
        if want.transfer is not None:
            self._stats["transfers_restarted"] += 1
        want.begin(want.version, want.base, time.monotonic())
        version = want.version and list(want.version)
        have, pin = (None, version) if want.pinned else (version, None)
        base = _listed(want.base)
        asked = {"t": "want", "run": self._run, "name": self._name, "have": have, "base": base, "pin": pin}
        if not self._send(asked) and self._attached:
            want.moved += RETRY_S - self._deadline_s  # the handshake is over, the pipe not open yet

    def _receive(self) -> None:
        parts = self._dealer.recv_multipart(copy=False)
        try:
            if len(parts) != 1:
                raise WireError(f"a message of {len(parts)} frames, not 1")
            self._handle(unpack(parts[0].buffer))
        except WireError as error:
            log.warning("passed over a message from %s: %s", self.endpoint, error)

    def _handle(self, message: Message) -> None:
        header = message.header
        want = self._pinned if header.get("pinned") else self._newest
        match message.type:
            case "manifest":
                self._on_manifest(want, message)
            case "chunk":
                self._on_chunk(want, message)
            case "missing":
                self._on_missing(want, header)
            case "directed":
                self._answer_direct(header)
            case "error" if header.get("about") == "direct":
                self._answer_direct({"error": str(header.get("message"))})
            case "error" if header.get("code") == "run":
                raise PublisherError(f"the publisher at {self.endpoint} refused us: {header.get('message')}")
            case "error":
                log.warning("the publisher at %s says: %s", self.endpoint, header.get("message"))

    def _on_manifest(self, want: _Want, message: Message) -> None:
        manifest = Manifest.from_message(message)
        if not want.active or want.transfer is not None or manifest.run != self._run:
            return
        if want.pinned and manifest.version != want.version:
            return
        if not want.pinned and want.version is not None and manifest.version <= want.version:
            return  # the answer to a question that was asked twice
        if manifest.base is not None and manifest.base != want.base:
            raise WireError(f"version {manifest.version} comes as a delta from {manifest.base}, not {want.base}")
        want.begun = want.moved = time.monotonic()
        if not self._sink.accepts(manifest):
            if want.pinned:
                want.end()
                self._sink.missing(manifest.version, None)
                self._next_pin()
            return
        if not want.pinned and self._sink.diverts(manifest):
            want.end()
            return
        want.transfer = Transfer(manifest)
        self._go_on(want)

    def _on_chunk(self, want: _Want, message: Message) -> None:
        transfer = want.transfer
        if transfer is None or not _is_of(message.header, transfer.manifest):
            return
        want.moved = time.monotonic()
        corrupted, data = transfer.corrupted, message.columns.get("data")
        try:
            transfer.add(message.header.get("index"), data)
            self._go_on(want)
        except TransferError as error:
            log.warning("%s; asking again from the manifest", error)
            self._ask(want)
        self._stats["chunks_corrupted"] += transfer.corrupted - corrupted
        self._stats["weights_bytes"] += 0 if data is None else data.nbytes

    def _go_on(self, want: _Want) -> None:
        transfer = want.transfer
        assert transfer is not None
        package = transfer.finish()
        if package is not None:
            self._on_complete(want, package)
            return
        indexes = transfer.next_chunks()
        if indexes:
            manifest = transfer.manifest
            version, base = list(manifest.version), manifest.base and list(manifest.base.version)
            self._send({"t": "chunks", "version": version, "base": base, "pinned": want.pinned, "indexes": indexes})

    def _on_complete(self, want: _Want, package: Package) -> None:
        if self._sink.complete(package, want.pinned, time.monotonic() - want.begun):
            want.end()
            self._next_pin()
            return
        # A delta that failed: the version by itself. That one failed too: again, but not before the deadline.
        now, again = time.monotonic(), want.base is not None
        self._stats["transfers_restarted"] += 1
        want.begin(want.version, None, now)
        if again:
            self._ask(want)

    def _on_missing(self, want: _Want, header: dict) -> None:
        if not want.active:
            return
        if not want.pinned:
            self._ask(want)  # overtaken by a newer version in the middle
            return
        if read_version(header.get("version")) != want.version:
            return
        newest = header.get("newest")
        want.end()
        self._sink.missing(read_version(header.get("version")), None if newest is None else read_version(newest))
        self._next_pin()

    def _on_time(self, now: float) -> None:
        if not self._attached:
            if now >= self._said + SAY_EVERY_S:
                self._said = now
                log.warning("waiting for the learner: %s", self.describe())
            return
        for want in (self._newest, self._pinned):
            if want.active and now >= want.moved + self._deadline_s:
                if want.transfer is not None:
                    log.warning("%s moves no more; asking again", self.describe())
                    self._sink.stuck(want.transfer.manifest.version, now - want.moved)
                self._ask(want)

    def _send(self, header: Mapping) -> bool:
        try:
            self._dealer.send(pack(header), zmq.NOBLOCK)
            return True
        except zmq.Again:
            # Nobody is connected, or he does not read: asked again after the handshake, or at the deadline.
            log.debug("could not send %s to %s", header["t"], self.endpoint)
            return False


def _listed(base: Base | None) -> list[object] | None:
    return None if base is None else [list(base.version), base.hash]


def _is_of(header: Mapping, manifest: Manifest) -> bool:
    """Whether a chunk is one of this package: the same version may travel from another base too."""
    base = header.get("base")
    return read_version(header.get("version")) == manifest.version and (
        None if base is None else read_version(base)
    ) == (manifest.base and manifest.base.version)
