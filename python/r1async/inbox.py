"""The one place where a role waits: everything that background threads receive for it arrives here.

    inbox = Inbox()
    with stop_on_signals(inbox), Connection(endpoint, hello, inbox, ...) as buffer:
        item = inbox.get("leases", deadline_s=60.0)

A wait has a name and a deadline, a failure in a background thread is raised in the role's main thread, and a
signal ends the wait at once.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Protocol

SIGNAL_S = 1.0
"""A signal that comes just before the wait, after Python has last looked for one, does not end it: it is seen when
the thread wakes, at the latest after so many seconds."""


class DeadlineExceeded(TimeoutError):  # noqa: N818
    """A wait that did not end in time. The text names the wait, how long it was, and the endpoints."""

    def __init__(self, wait: str, waited_s: float, endpoints: str) -> None:
        super().__init__(f"waited {waited_s:.1f} s for {wait}; {endpoints or 'nothing is connected to this inbox'}")
        self.wait = wait
        self.waited_s = waited_s


class Stopped(Exception):  # noqa: N818
    """A signal asked the role to end. Raised once per signal, so that what follows may still wait."""


class Arriving:
    """An item that wants to know when the main thread takes it.

    A base class, not a protocol: every item is tested for it, and a runtime-checked protocol costs 20 us a time.
    """

    __slots__ = ()

    def taken(self) -> None:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class _Failure:
    error: BaseException


class _Stop:
    pass


class Inbox:
    """Many background threads put, one main thread gets."""

    def __init__(self) -> None:
        # Not queue.Queue: a signal handler may put while the main thread is inside get, which SimpleQueue allows.
        self._queue: SimpleQueue[object] = SimpleQueue()
        self._held: deque[object] = deque()
        """Items that a get with `match` passed over, oldest first."""
        self._sources: list[Callable[[], str]] = []

    def add_source(self, describe: Callable[[], str]) -> None:
        """`describe` says where items come from and how it stands there, for the text of a missed deadline."""
        self._sources.append(describe)

    def put(self, item: object) -> None:
        self._queue.put(item)

    def fail(self, error: BaseException) -> None:
        """Have `error` raised in the main thread, by its next look into the inbox."""
        self._queue.put(_Failure(error))

    def stop(self) -> None:
        """Have `Stopped` raised in the main thread. A signal handler may call it."""
        self._queue.put(_Stop())

    def get(self, wait: str, deadline_s: float, match: Callable[[object], bool] | None = None) -> object:
        """The next item (that `match` accepts; others stay, in order, for a later get).

        Raises:
            DeadlineExceeded: no such item within `deadline_s`.
            Stopped: a signal came.
        """
        for place, item in enumerate(self._held):
            if match is None or match(item):
                del self._held[place]
                return item
        start = time.monotonic()
        while True:
            left_s = deadline_s - (time.monotonic() - start)
            try:
                item = self._open(self._queue.get(timeout=min(max(left_s, 0.0), SIGNAL_S)))
            except Empty:
                if left_s > SIGNAL_S:
                    continue
                raise DeadlineExceeded(wait, time.monotonic() - start, self.sources()) from None
            if match is None or match(item):
                return item
            self._held.append(item)

    def take(self) -> list[object]:
        """Everything that is there, without waiting; raises like `get`."""
        items = list(self._held)
        self._held.clear()
        while not self._queue.empty():
            items.append(self._open(self._queue.get_nowait()))
        return items

    def sources(self) -> str:
        """Where items come from, in words."""
        return "; ".join(describe() for describe in self._sources)

    @staticmethod
    def _open(item: object) -> object:
        if isinstance(item, _Failure):
            raise item.error
        if isinstance(item, _Stop):
            raise Stopped
        if isinstance(item, Arriving):
            item.taken()
        return item


class Stoppable(Protocol):
    """A loop that can be told to end from a signal handler: an `Inbox` (its next wait raises `Stopped`), a server."""

    def stop(self) -> None: ...


@contextmanager
def stop_on_signals(loop: Stoppable) -> Iterator[None]:
    """SIGTERM and SIGINT stop the loop. In another than the main thread: nothing.

    A signal that is ignored stays ignored: the launcher keeps the terminal's Ctrl-C from its roles that way.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [n for n in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda *_: loop.stop()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
