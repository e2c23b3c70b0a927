"""How a role talks to the buffer: one DEALER socket in a thread of its own.

The thread says hello, keeps the connection alive with heartbeats, and puts what the buffer sends into the role's
inbox; the role's main thread sends through an inproc pair that wakes it. Takes: messages of the role and of the
buffer. Gives: the same, moved. Waits for: a socket or the next heartbeat.

A *session* begins with the buffer's welcome. After a reconnect, or when the buffer does not know us any more, there
is a new one: a `Connected` item arrives, and whatever was sent before the role took that item is void (the thread
drops it). So a role answers `Connected` by saying again what it holds, and needs no other case for a lost message.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import zmq
import zmq.utils.monitor
from numpy.typing import NDArray

from r1async.inbox import Arriving, DeadlineExceeded, Inbox
from r1async.keys import ClientKeys
from r1async.wire import PROTOCOL, Message, WireError, pack, unpack

log = logging.getLogger(__name__)

SEND_HWM = 1000
"""Messages that ZeroMQ keeps for a buffer that does not read; past that `send` waits."""
PAIR_HWM = 32
"""Messages between the role's thread and ours, each way."""
SAY_EVERY_S = 10.0
"""Seconds between two log lines of one wait for the buffer."""
GONE_WITHIN_S = 0.4
"""Seconds that `close` gives the buffer to answer our bye."""
READABLE, WRITABLE, NOBLOCK = int(zmq.POLLIN), int(zmq.POLLOUT), int(zmq.NOBLOCK)
"""As plain numbers: combining zmq's enums costs as much as receiving."""
CONNECTION_EVENTS = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_DISCONNECTED
FATAL = frozenset({"protocol", "run", "epoch", "role"})
"""Error codes that saying it again cannot mend."""


class Refused(RuntimeError):  # noqa: N818
    """The buffer will not have us: another protocol, run, role, or an epoch that has ended.

    `seen` is the newest epoch the buffer knows, for code "epoch"; else None.
    """

    def __init__(self, endpoint: str, header: Mapping) -> None:
        self.code: str = str(header.get("code", ""))
        self.about: str = str(header.get("about", ""))
        seen = header.get("seen")
        self.seen: int | None = seen if isinstance(seen, int) else None
        super().__init__(
            f"the buffer at {endpoint} refused {self.about or 'us'} ({self.code}): {header.get('message')}"
        )


@dataclass(frozen=True, slots=True)
class Connected(Arriving):
    """A session began. `first` is False when it follows one that was lost."""

    connection: Connection
    session: int
    welcome: Message
    first: bool

    def taken(self) -> None:
        self.connection._adopt(self.session)


def greeting(role: str, name: str, run: str, **more: int | str) -> dict[str, object]:
    """The header of a hello."""
    return {"t": "hello", "protocol": PROTOCOL, "role": role, "name": name, "run": run, **more}


class Connection:
    """A role's connection to one socket of the buffer.

    Args:
        endpoint: ``ipc://`` or ``tcp://`` address; the buffer need not be there yet.
        hello: header of the hello (see `greeting`), or a function that makes it; called in the thread each time.
        inbox: gets `Connected`, every message that the role must see, and failures.
        stats: figures for the heartbeat; called in the thread.
        watch: header fields of the buffer's messages; an answered heartbeat reaches the inbox only when one changed.
        quiet: other messages of which that is true, because the role asks nothing of them; called in the thread.
        max_message_bytes: a larger message ends the connection before anything is allocated for it.
        connect_deadline_s: seconds without a welcome after which the role fails, at the start and later.
        send_deadline_s: seconds that `send` waits for a buffer that does not read.
        keys: of our role for this socket; None where it needs none.
    """

    def __init__(
        self,
        endpoint: str,
        hello: Mapping[str, object] | Callable[[], Mapping[str, object]],
        inbox: Inbox,
        *,
        stats: Callable[[], Mapping[str, float]] = dict,
        watch: Sequence[str] = ("state",),
        quiet: Callable[[Message], bool] = lambda _: False,
        max_message_bytes: int = 256 * 2**20,
        connect_deadline_s: float = 600.0,
        send_deadline_s: float = 60.0,
        keys: ClientKeys | None = None,
    ) -> None:
        self.endpoint = endpoint
        self._inbox = inbox
        self._session = 0
        """Of the main thread: the session whose `Connected` it has taken."""
        self._send_deadline_s = send_deadline_s
        self._send_lock = threading.Lock()
        self._to_send: deque[tuple[int, Sequence[bytes]]] = deque()
        """(session, frames): an item for each message in the pair, which wakes the thread and bounds how many wait."""
        self._context = zmq.Context()
        name = f"inproc://client-{uuid.uuid4().hex}"
        self._outgoing, outgoing = _pair(self._context, f"{name}-out")
        self._control, control = _pair(self._context, f"{name}-control")
        # The main thread closes all four ends: a send must not hang because the thread has just failed.
        self._pairs = (self._outgoing, outgoing, self._control, control)
        self._outgoing.sndtimeo = round(send_deadline_s * 1000)
        make_hello = hello if callable(hello) else lambda: hello
        self._worker = _Worker(
            self,
            self._context,
            outgoing,
            self._to_send,
            control,
            make_hello,
            inbox,
            stats,
            watch,
            quiet,
            max_message_bytes,
            connect_deadline_s,
            keys,
        )
        inbox.add_source(self._worker.describe)
        self._thread = threading.Thread(target=self._worker.run, name=f"buffer {endpoint}", daemon=True)
        self._thread.start()

    def wait_connected(self, deadline_s: float) -> Message:
        """Wait for the first welcome; items that come meanwhile stay in the inbox.

        Raises:
            DeadlineExceeded: none came in time.
            Refused: the buffer will not have us.
        """

        def mine(item: object) -> bool:
            return isinstance(item, Connected) and item.connection is self

        item = self._inbox.get("the buffer's welcome", deadline_s, mine)
        assert isinstance(item, Connected)
        return item.welcome

    def send(
        self,
        header: Mapping,
        columns: Mapping[str, NDArray | Sequence[NDArray]] | None = None,
        *,
        session: int | None = None,
    ) -> None:
        """Send a message in a session; dropped if that is over.

        Args:
            header: of the message.
            columns: of the message.
            session: by default the one whose `Connected` the main thread has taken.

        Raises:
            DeadlineExceeded: the buffer did not read for `send_deadline_s`.
        """
        self._send([pack(header, columns)], session, str(header.get("t")))

    def send_together(self, headers: Sequence[Mapping], *, session: int | None = None) -> None:
        """Send messages one after the other; the thread and the buffer are woken once for all. As `send`."""
        self._send([pack(header) for header in headers], session, str(headers[0].get("t")))

    def _send(self, frames: Sequence[bytes], session: int | None, kind: str) -> None:
        try:
            with self._send_lock:
                # Not through the pair: for each part of a message pyzmq takes longer than for all of this.
                self._to_send.append((self._session if session is None else session, frames))
                try:
                    self._outgoing.send(b"")
                except zmq.ZMQError:
                    self._to_send.pop()
                    raise
        except zmq.Again:
            raise DeadlineExceeded(f"room to send {kind!r}", self._send_deadline_s, self._worker.describe()) from None

    def tell_incident(
        self,
        name: str,
        act: str,
        text: str,
        *,
        deadline_s: float,
        named_after_s: float,
        groups: Sequence[int] = (),
        rollouts: Sequence[int] = (),
    ) -> None:
        """Name a fault that this role noticed and what it does about it (docs/progress.md); raises like `send`."""
        ids = {"groups": list(groups), "rollouts": list(rollouts)}
        seconds = {"deadline_s": deadline_s, "named_after_s": named_after_s}
        self.send({"t": "incident", "name": name, "act": act, "text": text[:80], **ids, **seconds})

    def close(self) -> None:
        """Say bye, give the buffer a moment to answer, end the thread. Again: nothing."""
        if self._context.closed:
            return
        if self._thread.is_alive():
            self._control.send(b"close")
        self._thread.join()
        for socket in self._pairs:
            socket.close(linger=0)
        self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _adopt(self, session: int) -> None:
        self._session = session


def _pair(context: zmq.Context, address: str) -> tuple[zmq.Socket, zmq.Socket]:
    """Two ends: for the main thread and for the background thread."""
    near, far = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    near.sndhwm = far.rcvhwm = PAIR_HWM
    near.bind(address)
    far.connect(address)
    return near, far


class _Worker:
    """What the background thread owns. Everything but `describe` runs in it."""

    def __init__(
        self,
        connection: Connection,
        context: zmq.Context,
        outgoing: zmq.Socket,
        to_send: deque[tuple[int, Sequence[bytes]]],
        control: zmq.Socket,
        hello: Callable[[], Mapping[str, object]],
        inbox: Inbox,
        stats: Callable[[], Mapping[str, float]],
        watch: Sequence[str],
        quiet: Callable[[Message], bool],
        max_message_bytes: int,
        connect_deadline_s: float,
        keys: ClientKeys | None,
    ) -> None:
        self._connection = connection
        self._context = context
        self._endpoint = connection.endpoint
        self._outgoing = outgoing
        self._to_send = to_send
        self._control = control
        self._hello = hello
        self._inbox = inbox
        self._stats = stats
        self._watch = watch
        self._quiet = quiet
        self._max_message_bytes = max_message_bytes
        self._connect_deadline_s = connect_deadline_s
        self._keys = keys
        self._pending: deque[bytes] = deque()
        """Frames that the socket does not take yet."""
        self._key_refused = False
        """The last handshake failed for our key."""
        self._attached = False
        """There is a connection; the buffer may not know us yet."""
        self._welcomed = False
        self._hello_sent = False
        """A hello is on its way: errors "hello" before its answer are about what was sent before it."""
        self._session = 0
        self._watched: tuple[object, ...] = (None,) * len(watch)
        self._peer_deadline_s = 20.0
        now = time.monotonic()
        self._heard = self._beat = now
        self._lost_at = self._said = now
        """Since when there is no welcome; when that was last logged."""
        self._closing_until: float | None = None

    def describe(self) -> str:
        if self._welcomed:
            return f"buffer {self._endpoint}: connected, last heard {time.monotonic() - self._heard:.1f} s ago"
        nobody = "it refuses our key" if self._key_refused else "nobody answers"
        what = "connected, not welcomed yet" if self._attached else nobody
        return f"buffer {self._endpoint}: {what} for {time.monotonic() - self._lost_at:.1f} s"

    def run(self) -> None:
        self._open()
        try:
            self._loop()
        except BaseException as error:
            self._inbox.fail(error)
            if not isinstance(error, (DeadlineExceeded, Refused, WireError)):
                raise
        finally:
            self._close()

    def _open(self) -> None:
        self._dealer = self._context.socket(zmq.DEALER)
        self._monitor = self._dealer.get_monitor_socket(CONNECTION_EVENTS)
        # One identity for all reconnects, which nobody can guess: the buffer knows us again, and only us.
        self._dealer.routing_id = b"c" + uuid.uuid4().bytes
        self._dealer.linger = 0
        self._dealer.sndhwm = SEND_HWM
        self._dealer.rcvhwm = SEND_HWM
        self._dealer.maxmsgsize = self._max_message_bytes
        # Nothing waits in ZeroMQ for a buffer that is away: it would arrive before our next hello.
        self._dealer.immediate = 1
        self._dealer.reconnect_ivl = 50
        self._dealer.reconnect_ivl_max = 1000
        if self._keys is not None:
            self._keys.protect(self._dealer)
        self._dealer.connect(self._endpoint)
        self._poller = zmq.Poller()
        self._poller.register(self._monitor, zmq.POLLIN)
        self._poller.register(self._control, zmq.POLLIN)

    def _close(self) -> None:
        self._dealer.disable_monitor()
        self._monitor.close(linger=0)
        self._dealer.close(linger=0)

    def _loop(self) -> None:
        while True:
            # A socket that is full stops the role's sends, not its receives.
            self._poller.register(self._dealer, READABLE | (WRITABLE if self._pending else 0))
            self._poller.register(self._outgoing, 0 if self._pending else READABLE)
            ready = dict(self._poller.poll(self._timeout_ms()))
            if self._monitor in ready:
                self._on_connection()
            if ready.get(self._dealer, 0) & READABLE:
                self._receive()
            if self._outgoing in ready:
                self._forward()
            if self._control in ready:
                self._begin_close()
            self._on_time(time.monotonic())
            self._flush()
            if self._closing_until is not None and (not self._welcomed or time.monotonic() >= self._closing_until):
                return

    def _timeout_ms(self) -> int:
        if self._closing_until is not None:
            due = self._closing_until
        elif self._welcomed:
            due = min(self._beat + self._peer_deadline_s / 4, self._heard + self._peer_deadline_s)
        else:
            due = min(self._said + SAY_EVERY_S, self._lost_at + self._connect_deadline_s)
        return max(0, int((due - time.monotonic()) * 1000) + 1)

    def _on_connection(self) -> None:
        while self._monitor.poll(0):
            event = zmq.utils.monitor.recv_monitor_message(self._monitor)["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._attached, self._key_refused = True, False
                self._say_hello()
            elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                self._key_refused = True
            else:
                self._attached = False
                self._lose()

    def _lose(self) -> None:
        """The session is over; what waits to be sent belonged to it."""
        self._pending.clear()
        self._hello_sent = False
        if self._welcomed:
            self._welcomed = False
            self._lost_at = self._said = time.monotonic()
            log.warning("lost the buffer at %s; waiting for it", self._endpoint)

    def _say_hello(self) -> None:
        self._lose()
        self._pending.append(pack(self._hello()))
        self._hello_sent = True

    def _receive(self) -> None:
        for _ in range(100):  # then look at the other sockets too
            try:
                part = self._dealer.recv(NOBLOCK, copy=False)
            except zmq.Again:
                return
            self._heard = time.monotonic()
            if part.more:
                count = 1 + len(self._dealer.recv_multipart(copy=False))
                raise WireError(f"the buffer at {self._endpoint} sent a message of {count} frames, not 1")
            self._handle(unpack(part.buffer))

    def _handle(self, message: Message) -> None:
        header = message.header
        before = self._watched
        self._watched = tuple(header.get(name, value) for name, value in zip(self._watch, before, strict=True))
        match message.type:
            case "welcome":
                self._welcome(message)
            case "error" if header.get("code") == "hello":
                if not self._hello_sent:
                    self._say_hello()
            case "error" if header.get("code") in FATAL:
                raise Refused(self._endpoint, header)
            case "gone":
                self._welcomed = False
            case "alive" if self._watched == before:
                pass
            case _ if self._watched == before and self._quiet(message):
                pass
            case _:
                self._inbox.put(message)

    def _welcome(self, message: Message) -> None:
        deadline_s = message.header.get("peer_deadline_s")
        if not isinstance(deadline_s, int | float) or not deadline_s > 0:
            raise WireError(f"welcome from {self._endpoint} has peer_deadline_s={deadline_s!r}, not a positive number")
        self._peer_deadline_s = float(deadline_s)
        self._hello_sent = False
        self._welcomed = True
        self._session += 1
        self._beat = time.monotonic()
        if self._session > 1:
            log.warning("the buffer at %s is back", self._endpoint)
        self._inbox.put(Connected(self._connection, self._session, message, self._session == 1))

    def _forward(self) -> None:
        for _ in range(100):
            if self._pending:
                return
            try:
                self._outgoing.recv(NOBLOCK)
            except zmq.Again:
                return
            session, frames = self._to_send.popleft()
            if self._welcomed and session == self._session:
                self._pending += frames
                self._flush()

    def _flush(self) -> None:
        while self._pending:
            try:
                self._dealer.send(self._pending[0], NOBLOCK)
            except zmq.Again:
                return
            self._pending.popleft()

    def _begin_close(self) -> None:
        self._control.recv()
        while self._welcomed and not self._pending and self._outgoing.poll(0):
            self._forward()
        self._pending.append(pack({"t": "bye"}))
        self._closing_until = time.monotonic() + GONE_WITHIN_S

    def _on_time(self, now: float) -> None:
        if self._closing_until is not None:
            return
        if not self._welcomed:
            self._wait_for_welcome(now)
        elif now >= self._heard + self._peer_deadline_s:
            log.warning(
                "the buffer at %s has not answered for %.1f s; connecting again", self._endpoint, now - self._heard
            )
            self._reconnect()
        elif now >= self._beat + self._peer_deadline_s / 4:
            self._beat = now
            self._pending.append(pack({"t": "heartbeat", "stats": dict(self._stats())}))

    def _wait_for_welcome(self, now: float) -> None:
        if now >= self._lost_at + self._connect_deadline_s:
            raise DeadlineExceeded("the buffer's welcome", now - self._lost_at, self.describe())
        if now >= self._said + SAY_EVERY_S:
            self._said = now
            log.warning("waiting for the %s", self.describe())

    def _reconnect(self) -> None:
        """A connection that looks open but carries nothing is given up."""
        self._attached = False
        self._lose()
        self._dealer.disconnect(self._endpoint)
        self._dealer.connect(self._endpoint)
