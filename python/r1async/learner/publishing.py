"""Publication beside the training loop: the loop copies the weights, a thread hashes, serves and reports them.

The loop's thread waits only if the version before is still being prepared: every version is published, in order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Protocol

from r1async.inbox import DeadlineExceeded
from r1async.types import PolicyVersion
from r1async.weights.manifest import Rows


class WeightPublisher(Protocol):
    """What the loop needs of a rank's publisher (`weights.shards`)."""

    def publish(self, version: PolicyVersion, rows: Sequence[Rows], *, retain: bool = False) -> str: ...


class PublishThread:
    """One thread that publishes what it is given.

    Args:
        publisher: hashes and serves; called in the thread.
        report: told of each version and its hash once it can be had; called in the thread. None: another rank tells.
        fail: told of an error; nothing is published after one.
        deadline_s: seconds that one publication may take.
    """

    def __init__(
        self,
        publisher: WeightPublisher,
        report: Callable[[PolicyVersion, str], None] | None,
        fail: Callable[[BaseException], None],
        *,
        deadline_s: float,
    ) -> None:
        self._publisher = publisher
        self._report = report
        self._fail = fail
        self._deadline_s = deadline_s
        self._work: SimpleQueue[tuple[PolicyVersion, Sequence[Rows], bool] | None] = SimpleQueue()
        self._idle = threading.Event()
        self._idle.set()
        self._thread = threading.Thread(target=self._run, name="publish weights", daemon=True)
        self._thread.start()

    def wait_idle(self) -> None:
        """Until everything handed over is published.

        Raises:
            DeadlineExceeded: it is not, by the deadline.
        """
        if not self._idle.wait(self._deadline_s):
            raise DeadlineExceeded("the publication of the version before", self._deadline_s, "weights thread")

    def publish(self, version: PolicyVersion, rows: Sequence[Rows], *, retain: bool) -> None:
        """Hands over tensors that nobody else changes."""
        self.wait_idle()
        self._idle.clear()
        self._work.put((version, rows, retain))

    def close(self) -> None:
        """After what was handed over."""
        self._work.put(None)
        self._thread.join(self._deadline_s)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            version, rows, retain = work
            try:
                digest = self._publisher.publish(version, rows, retain=retain)
                if self._report is not None:
                    self._report(version, digest)
            except Exception as error:  # noqa: BLE001  raised in the main thread, which is the one that can end the role
                self._fail(error)
                self._idle.set()
                return
            self._idle.set()
