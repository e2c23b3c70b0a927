"""An engine's side of weight publication: only complete and verified versions reach the role.

receiver = Receiver(endpoint, inbox, run="demo", name="generator-0", deadline_s=120.0)
ready = inbox.get("weights", deadline_s=600.0)       # WeightsReady
engine.install(ready.version, ready.tensors)
receiver.installed(ready, pause_s)                   # acknowledges, and asks for the next
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from r1async.inbox import Inbox
from r1async.keys import ClientKeys
from r1async.types import PolicyVersion
from r1async.weights.acks import Ack
from r1async.weights.direct import Direct, DirectError, whole_tensors
from r1async.weights.directory import DirectoryReceiver
from r1async.weights.fence import Fence
from r1async.weights.manifest import Base, Manifest, Snapshot
from r1async.weights.medium import ReceivingMedium
from r1async.weights.package import Package, PackageError, decode
from r1async.weights.zmq_receiver import ZmqReceiver

log = logging.getLogger(__name__)

FIGURES = (
    "packages_refused",
    "deltas",
    "snapshots",
    "directs",
    "push_bytes",
    "push_density",
    "push_sync_s",
    "push_pause_s",
)
"""Packages that did not lead to the version they name; versions taken as a delta, whole, and by the engine itself; of
the newest version: bytes that travelled, share of values that changed (1 if it came whole), seconds from announcement
to verified, seconds that the engine stood still."""


@dataclass(frozen=True, slots=True)
class WeightsReady:
    """A version is here, every tensor with the hash the learner gave it.

    `tensors` stay as they are until `Receiver.installed` is called for a newer version: then their memory takes
    the version after that. Those of a pinned version are nobody else's.
    """

    version: PolicyVersion
    hash: str
    tensors: Mapping[str, Tensor]
    pinned: bool
    """Asked for by `fetch`."""
    bytes: int = 0
    """That travelled for it."""
    sync_s: float = 0.0
    """Seconds from its announcement until it was verified."""


@dataclass(frozen=True, slots=True)
class WeightsMissing:
    """The publisher does not have the version that `fetch` asked for."""

    version: PolicyVersion
    newest: PolicyVersion | None


class Receiver:
    """Fetches newer versions, one at a time, and pinned ones when told.

    The next newest version is asked for when `installed` says that the last one is in: at most one waits in the
    inbox. It may come as a delta: that is applied to a copy of what is installed, in the medium's thread, while the
    engine generates; what does not lead to the version's own hashes is thrown away and asked for whole. Two buffers
    take turns, so no more is allocated once both exist. Versions of an older epoch than any seen are never taken: their
    learner has been replaced.

    Args:
        endpoint: the publisher's address; it need not be there yet.
        directory: versions are read in this folder of all runs, not asked for at `endpoint`.
        inbox: gets `WeightsReady`, `WeightsMissing`, and failures.
        run: must be the publisher's.
        name: ours, for acknowledgements.
        deadline_s: seconds without a chunk after which the transfer begins again from the manifest.
        max_message_bytes: a larger message is refused before anything is allocated for it.
        newest: False: fetch pinned versions only.
        keys: ours for this socket; None where it needs none.
        threads: that decode a version at most.
        direct: the engine takes versions itself: all but the first, which proves the engine, and those that it was
            refused come as `Direct`.
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
        threads: int = 1,
        directory: Path | None = None,
        direct: bool = False,
        stuck: Callable[[PolicyVersion, float], None] | None = None,
    ) -> None:
        self._inbox = inbox
        self._lock = threading.Lock()
        self._name = name
        self._threads = threads
        self._fence = Fence()
        self._figures = dict.fromkeys(FIGURES, 0.0)
        self._current: Snapshot | None = None
        """Installed: what deltas lead on from. Only read."""
        self._staged: Snapshot | None = None
        """Handed out, not installed yet."""
        self._spare: NDArray[np.uint8] | None = None
        """Of the version before the current one: the next is decoded into it."""
        self._stuck = stuck
        self._takes_direct = direct
        self._diverting = False
        """Whether the next version is left to the engine."""
        self._answers: SimpleQueue[Mapping[str, object]] = SimpleQueue()
        self._medium: ReceivingMedium
        if directory is not None:
            self._medium = DirectoryReceiver(
                directory, self, run=run, name=name, deadline_s=deadline_s, threads=threads
            )
        else:
            self._medium = ZmqReceiver(
                endpoint, self, run=run, name=name, deadline_s=deadline_s, max_message_bytes=max_message_bytes,
                keys=keys,
            )  # fmt: skip
        inbox.add_source(self._medium.describe)
        if newest:
            self._medium.want(None)

    def installed(self, ready: WeightsReady, pause_s: float = 0.0) -> None:
        """The engine serves `ready` now, for which it stood still `pause_s` seconds; tensors of the version before are
        written to from now on."""
        if not ready.pinned:
            with self._lock:
                if self._staged is not None and self._staged.version == ready.version:
                    self._spare = None if self._current is None else self._current.data
                    self._current, self._staged = self._staged, None
                self._figures["push_pause_s"] = pause_s
        ack = Ack(
            name=self._name, version=ready.version, hash=ready.hash, pinned=ready.pinned, bytes=ready.bytes,
            sync_s=ready.sync_s, pause_s=pause_s,
        )  # fmt: skip
        self._medium.acknowledge(ack)
        if not ready.pinned:
            self._diverting = self._takes_direct
            self._medium.want(Base(ready.version, ready.hash))

    def installed_direct(self, taken: Direct, sync_s: float, pause_s: float) -> None:
        """The engine has taken `taken` itself and serves it now."""
        with self._lock:
            self._current = self._spare = None  # nothing here is the base of what comes next
            self._figures["push_pause_s"], self._figures["push_sync_s"] = pause_s, sync_s
            self._figures["directs"] += 1
        sent = sum(tensor.num_bytes for tensor in taken.tensors)
        ack = Ack(
            name=self._name, version=taken.version, hash=taken.hash, pinned=False, bytes=sent, sync_s=sync_s,
            pause_s=pause_s,
        )  # fmt: skip
        self._medium.acknowledge(ack)
        self._diverting = True
        self._medium.want(Base(taken.version, taken.hash))

    def fetch_instead(self, refused: Direct) -> None:
        """The engine could not take `refused` itself: the newest version comes by the socket."""
        log.info("version %s is fetched instead", refused.version)
        self._diverting = False
        current = self._current
        self._medium.want(None if current is None else current.base)

    def fetch(self, version: PolicyVersion) -> None:
        """Ask for one version by name: `WeightsReady(pinned=True)` or `WeightsMissing` will come."""
        current = self._current
        self._medium.fetch(version, None if current is None else current.base)

    def release(self, version: PolicyVersion) -> None:
        """No evaluation needs this version any more: the learner need not keep it."""
        self._medium.release(version)

    def stats(self) -> dict[str, float]:
        """Bytes received, chunks corrupted, transfers begun again, `versions_fenced` (dead learners'), `FIGURES`."""
        with self._lock:
            return {**self._medium.stats(), **self._figures, "versions_fenced": self._fence.refused}

    def close(self) -> None:
        self._medium.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def accepts(self, manifest: Manifest) -> bool:
        """Called by the medium's thread."""
        return self._fence.accepts(manifest.version)

    def diverts(self, manifest: Manifest) -> bool:
        """Called by the medium's thread."""
        if not self._diverting:
            return False
        self._inbox.put(Direct(manifest.version, manifest.hash, whole_tensors(manifest), self._ask_direct))
        return True

    def direct(self, answer: Mapping[str, object]) -> None:
        """Called by the medium's thread."""
        self._answers.put(answer)

    def _ask_direct(self, asked: Mapping[str, object], deadline_s: float) -> Mapping[str, object]:
        while not self._answers.empty():
            self._answers.get()  # to a question that nobody waits for any more
        self._medium.direct(asked)
        try:
            return self._answers.get(timeout=deadline_s)
        except Empty:
            raise DirectError(f"no answer of the learner within {deadline_s:g} s") from None

    def complete(self, package: Package, pinned: bool, sync_s: float) -> bool:
        """Called by the medium's thread."""
        begun, manifest = time.monotonic(), package.manifest
        with self._lock:
            base, shadow = self._current, None if pinned else self._spare
        try:
            snapshot = decode(package, base, shadow, threads=self._threads)
        except PackageError as error:
            log.warning("threw away a package: %s", error)
            with self._lock:
                self._figures["packages_refused"] += 1
            return False
        sync_s += time.monotonic() - begun
        sent = manifest.total_bytes
        with self._lock:
            if not pinned:
                self._staged, self._spare = snapshot, None
                self._figures |= {"push_bytes": sent, "push_density": manifest.density, "push_sync_s": sync_s}
            self._figures["deltas" if manifest.base is not None else "snapshots"] += 1
        self._inbox.put(WeightsReady(manifest.version, manifest.hash, snapshot.tensors(), pinned, sent, sync_s))
        return True

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
