"""An engine's side of weight publication: only complete and verified versions reach the role.

receiver = Receiver(endpoint, inbox, run="demo", name="generator-0", deadline_s=120.0)
ready = inbox.get("weights", deadline_s=600.0)       # WeightsReady
engine.install(ready.version, ready.tensors)
receiver.installed(ready)                            # acknowledges, and asks for the next
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from torch import Tensor

from r1async.inbox import Inbox
from r1async.keys import ClientKeys
from r1async.types import PolicyVersion
from r1async.weights.manifest import Manifest, Snapshot
from r1async.weights.zmq_receiver import ZmqReceiver

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WeightsReady:
    """Every byte of a version is here and has the hash the learner gave it."""

    version: PolicyVersion
    hash: str
    tensors: Mapping[str, Tensor]
    pinned: bool
    """Asked for by `fetch`."""


@dataclass(frozen=True, slots=True)
class WeightsMissing:
    """The publisher does not have the version that `fetch` asked for."""

    version: PolicyVersion
    newest: PolicyVersion | None


class Receiver:
    """Fetches newer versions, one at a time, and pinned ones when told.

    The next newest version is asked for when `installed` says that the last one is in: at most one waits in the
    inbox. Versions of an older epoch than any seen are never taken: their learner has been replaced.

    Args:
        endpoint: the publisher's address; it need not be there yet.
        inbox: gets `WeightsReady`, `WeightsMissing`, and failures.
        run: must be the publisher's.
        name: ours, for acknowledgements.
        deadline_s: seconds without a chunk after which the transfer begins again from the manifest.
        max_message_bytes: a larger message is refused before anything is allocated for it.
        newest: False: fetch pinned versions only.
        keys: ours for this socket; None where it needs none.
        stuck: told, in the medium's thread, of a version whose chunks stopped coming and for how many seconds.
    """

    def __init__(
        self,
        endpoint: str,
        inbox: Inbox,
        *,
        run: str,
        name: str,
        deadline_s: float,
        max_message_bytes: int = 256 * 2**20,
        newest: bool = True,
        keys: ClientKeys | None = None,
        stuck: Callable[[PolicyVersion, float], None] | None = None,
    ) -> None:
        self._inbox = inbox
        self._lock = threading.Lock()
        self._epoch = 0
        self._fenced = 0
        self._stuck = stuck
        self._medium = ZmqReceiver(
            endpoint, self, run=run, name=name, deadline_s=deadline_s, max_message_bytes=max_message_bytes, keys=keys
        )
        inbox.add_source(self._medium.describe)
        if newest:
            self._medium.want(None)

    def installed(self, ready: WeightsReady) -> None:
        """The engine serves `ready` now."""
        self._medium.acknowledge(ready.version, ready.hash, pinned=ready.pinned)
        if not ready.pinned:
            self._medium.want(ready.version)

    def fetch(self, version: PolicyVersion) -> None:
        """Ask for one version by name: `WeightsReady(pinned=True)` or `WeightsMissing` will come."""
        self._medium.fetch(version)

    def release(self, version: PolicyVersion) -> None:
        """No evaluation needs this version any more: the learner need not keep it."""
        self._medium.release(version)

    def stats(self) -> dict[str, float]:
        """Bytes received, chunks corrupted, transfers begun again, versions of dead learners refused."""
        return {**self._medium.stats(), "versions_fenced": float(self._fenced)}

    def close(self) -> None:
        self._medium.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def accepts(self, manifest: Manifest) -> bool:
        """Called by the medium's thread."""
        with self._lock:
            if manifest.version.epoch < self._epoch:
                self._fenced += 1
                log.warning("refused version %s: epoch %d has begun", manifest.version, self._epoch)
                return False
            self._epoch = manifest.version.epoch
            return True

    def complete(self, snapshot: Snapshot, pinned: bool) -> None:
        """Called by the medium's thread."""
        manifest = snapshot.manifest
        self._inbox.put(WeightsReady(manifest.version, manifest.hash, snapshot.tensors(), pinned))

    def missing(self, version: PolicyVersion, newest: PolicyVersion | None) -> None:
        """Called by the medium's thread."""
        self._inbox.put(WeightsMissing(version, newest))

    def stuck(self, version: PolicyVersion, waited_s: float) -> None:
        """Called by the medium's thread."""
        if self._stuck is not None:
            self._stuck(version, waited_s)

    def failed(self, error: BaseException) -> None:
        """Called by the medium's thread."""
        self._inbox.fail(error)
