"""Which snapshots the learner keeps: the newest, those that somebody needs by name, those that are being read."""

from __future__ import annotations

import threading

from r1async.types import PolicyVersion
from r1async.weights.manifest import Snapshot


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

    def retain(self, version: PolicyVersion) -> bool:
        """Keeps a version until `release`; False if it is gone already."""
        with self._lock:
            if version not in self._snapshots:
                return False
            self._retained.add(version)
            return True

    def release(self, version: PolicyVersion, now: float) -> None:
        """Undoes `retain`; of a version that is not retained: nothing."""
        with self._lock:
            self._retained.discard(version)
            self._prune(now)

    def newest(self) -> Snapshot | None:
        with self._lock:
            return None if self._newest is None else self._snapshots[self._newest]

    def get(self, version: PolicyVersion) -> Snapshot | None:
        with self._lock:
            return self._snapshots.get(version)

    def read(self, reader: bytes, version: PolicyVersion, now: float) -> Snapshot | None:
        """The snapshot, kept for `reader` until it is done with it or falls silent."""
        with self._lock:
            snapshot = self._snapshots.get(version)
            if snapshot is not None:
                self._readers[reader, version] = now + self._transfer_s
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
        keep = self._retained | {version for _, version in self._readers} | {self._newest}
        for version in [v for v in self._snapshots if v not in keep]:
            del self._snapshots[version]
