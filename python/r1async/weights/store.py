"""Which snapshots the learner keeps: the newest, those that somebody needs by name, those that are being read."""

from __future__ import annotations

import logging
import threading

from r1async.types import PolicyVersion
from r1async.weights.manifest import Snapshot

log = logging.getLogger(__name__)

MAX_RETAINED = 3
"""Retained versions that are kept though nobody asks for them, besides number 0, which every run is measured from."""


class SnapshotStore:
    """Thread-safe: the learner's main thread adds, the medium's thread reads.

    Args:
        transfer_s: seconds after a receiver's last question for which the version it reads is kept.
    """

    def __init__(self, transfer_s: float) -> None:
        self._lock = threading.Lock()
        self._transfer_s = transfer_s
        self._snapshots: dict[PolicyVersion, Snapshot] = {}
        self._newest: PolicyVersion | None = None
        self._retained: set[PolicyVersion] = set()
        self._pinned: PolicyVersion | None = None
        """Asked for by name last: the one that is being evaluated."""
        self._readers: dict[tuple[bytes, PolicyVersion], float] = {}

    def add(self, snapshot: Snapshot, now: float) -> None:
        """Makes `snapshot` the newest.

        Raises:
            ValueError: its version is not newer than the newest.
        """
        version = snapshot.manifest.version
        with self._lock:
            if self._newest is not None and version <= self._newest:
                raise ValueError(f"version {version} cannot follow {self._newest}: versions only grow")
            self._snapshots[version] = snapshot
            self._newest = version
            self._prune(now)

    def retain(self, version: PolicyVersion, now: float) -> bool:
        """Keeps a version until `release`, or until `MAX_RETAINED` newer ones are kept and nobody reads it.

        Returns:
            False if it is gone already.
        """
        with self._lock:
            if version not in self._snapshots:
                return False
            self._retained.add(version)
            self._prune(now)
            return True

    def release(self, version: PolicyVersion, now: float) -> None:
        """Undoes `retain`; of a version that is not retained: nothing."""
        with self._lock:
            self._retained.discard(version)
            if self._pinned == version:
                self._pinned = None
            self._prune(now)

    def newest(self) -> Snapshot | None:
        with self._lock:
            return None if self._newest is None else self._snapshots[self._newest]

    def get(self, version: PolicyVersion) -> Snapshot | None:
        with self._lock:
            return self._snapshots.get(version)

    def read(self, reader: bytes, version: PolicyVersion, now: float, *, pin: bool = False) -> Snapshot | None:
        """The snapshot, kept for `reader` until it is done with it or falls silent.

        `pin`: it was asked for by name. If it is retained it stays so until its release, or the next pin.
        """
        with self._lock:
            snapshot = self._snapshots.get(version)
            if snapshot is not None:
                self._readers[reader, version] = now + self._transfer_s
                if pin:
                    self._pinned = version
            return snapshot

    def done(self, reader: bytes, version: PolicyVersion, now: float) -> None:
        """`reader` has all of a version."""
        with self._lock:
            self._readers.pop((reader, version), None)
            self._prune(now)

    def gone(self, reader: bytes, now: float) -> None:
        """`reader` will not ask again."""
        with self._lock:
            self._readers = {key: until for key, until in self._readers.items() if key[0] != reader}
            self._prune(now)

    def versions(self) -> list[PolicyVersion]:
        with self._lock:
            return sorted(self._snapshots)

    def _prune(self, now: float) -> None:
        self._readers = {key: until for key, until in self._readers.items() if until > now}
        reading = {version for _, version in self._readers}
        for version in sorted(v for v in self._retained if v.number > 0)[:-MAX_RETAINED]:
            if version not in reading and version != self._pinned:
                self._retained.discard(version)
                log.warning("version %s is dropped before an evaluation released it: newer ones wait", version)
        keep = self._retained | reading | {self._newest}
        for version in [v for v in self._snapshots if v not in keep]:
            del self._snapshots[version]
