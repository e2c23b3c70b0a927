"""What a publisher has: versions, and packages of them for receivers that have this or that.

Versions: the newest, and those that somebody needs by name. Packages: the deltas of the last versions (the chain), what
was merged of them, snapshots, each made when somebody first needs it, and kept while somebody reads it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from r1async.types import PolicyVersion
from r1async.weights.manifest import Base, Snapshot
from r1async.weights.package import WORTH, Package, encode, merge

log = logging.getLogger(__name__)

MAX_RETAINED = 3
"""Retained versions that are kept though nobody asks for them, besides number 0, which every run is measured from."""

Key = tuple[PolicyVersion, PolicyVersion | None]
"""A package: its version, and its base; None: the version by itself."""
_NOBODY = b""
"""Reads what has been made and not been asked for since."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """How to make a package: from both versions, from deltas that follow each other, or from the version alone."""

    key: Key
    snapshot: Snapshot
    base: Snapshot | None
    chain: tuple[Package, ...]


class VersionStore:
    """Thread-safe: the learner's publishing thread adds, the medium's thread reads, a builder makes packages.

    Args:
        run: goes into manifests.
        chunk_bytes: a package travels in pieces of this size.
        window: deltas of so many versions are kept; 0: only whole versions are served.
        threads: that encode at most.
        transfer_s: seconds after a receiver's last question for which what it reads is kept.
    """

    def __init__(self, *, run: str, chunk_bytes: int, window: int, threads: int, transfer_s: float) -> None:
        self._run = run
        self._chunk_bytes = chunk_bytes
        self._window = window
        self._threads = threads
        self._transfer_s = transfer_s
        self._lock = threading.Lock()
        self._snapshots: dict[PolicyVersion, Snapshot] = {}
        self._newest: PolicyVersion | None = None
        self._chain: list[Package] = []
        """Deltas, each from the version of the one before; the last leads to the newest version."""
        self._packages: dict[Key, Package] = {}
        self._retained: set[PolicyVersion] = set()
        self._pinned: PolicyVersion | None = None
        """Asked for by name last: the one that is being evaluated."""
        self._readers: dict[tuple[bytes, Key], float] = {}

    def add(self, snapshot: Snapshot, now: float, package: Package | None = None) -> None:
        """Makes `snapshot` the newest.

        Args:
            snapshot: of a version above the newest.
            now: seconds on a clock that never goes back.
            package: leads to it, best from the newest version so far; None: receivers fetch it whole.

        Raises:
            ValueError: its version is not newer than the newest.
        """
        version = snapshot.version
        with self._lock:
            if self._newest is not None and version <= self._newest:
                raise ValueError(f"version {version} cannot follow {self._newest}: versions only grow")
            base = None if package is None else package.manifest.base
            if package is None or base is None or base.version != self._newest or self._window == 0:
                self._chain = []
            else:
                self._chain = [*self._chain, package][-self._window :]
            if package is not None and (base is None or self._chain):
                self._packages[version, base and base.version] = package
            self._snapshots[version] = snapshot
            self._newest = version
            self._prune(now)

    def keep(self, snapshot: Snapshot, now: float) -> None:
        """Has a version beside the newest, retained: a relay fetched it because somebody named it."""
        with self._lock:
            self._snapshots[snapshot.version] = snapshot
            self._retained.add(snapshot.version)
            self._pinned = snapshot.version
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

    def get(self, version: PolicyVersion, *, pin: bool = False) -> Snapshot | None:
        """`pin`: it was asked for by name. If it is retained it stays so until its release, or the next pin."""
        with self._lock:
            snapshot = self._snapshots.get(version)
            # A canary's proof names a version too, which nobody retains.
            if pin and version in self._retained:
                self._pinned = version
            return snapshot

    def versions(self) -> list[PolicyVersion]:
        with self._lock:
            return sorted(self._snapshots)

    def key_for(self, version: PolicyVersion, base: Base | None) -> Key | None:
        """The package of a version for somebody who has `base`; None if we do not have the version."""
        with self._lock:
            if version not in self._snapshots:
                return None
            if base is None or base.version == version or self._window == 0:
                return version, None
            held = self._snapshots.get(base.version)
            if held is not None and held.hash == base.hash and held.has_tensors_of(self._snapshots[version]):
                return version, base.version
            on_the_way = version == self._newest and any(each.manifest.base == base for each in self._chain)
            return version, base.version if on_the_way else None

    def package(self, reader: bytes, key: Key, now: float) -> Package | None:
        """A package, kept for `reader` until it is done with it or falls silent; None if it has to be made first."""
        with self._lock:
            package = self._packages.get(key)
            if package is not None:
                self._readers.pop((_NOBODY, key), None)
                self._readers[reader, key] = now + self._transfer_s
            return package

    def make(self, key: Key, now: float) -> bool:
        """Makes a package; it takes its time, and holds up nobody.

        Returns:
            False if it cannot be made any more: its version or its base has gone.
        """
        with self._lock:
            if key in self._packages:
                return True
            plan = self._plan(key)
        if plan is None:
            return False
        package = self._build(plan)
        with self._lock:
            if key[0] not in self._snapshots:
                return False
            for each in {key, (key[0], None) if package.manifest.base is None else key}:
                self._packages[each] = package
                # Until whoever asked for it reads it.
                self._readers[_NOBODY, each] = now + self._transfer_s
            self._prune(now)
            return True

    def done(self, reader: bytes, version: PolicyVersion, now: float) -> None:
        """`reader` has all of a version."""
        with self._lock:
            self._readers = {
                (peer, key): until
                for (peer, key), until in self._readers.items()
                if peer != reader or key[0] != version
            }
            self._prune(now)

    def gone(self, reader: bytes, now: float) -> None:
        """`reader` will not ask again."""
        with self._lock:
            self._readers = {key: until for key, until in self._readers.items() if key[0] != reader}
            self._prune(now)

    def _plan(self, key: Key) -> _Plan | None:
        version, base = key
        snapshot = self._snapshots.get(version)
        if snapshot is None:
            return None
        if base is None:
            return _Plan(key, snapshot, None, ())
        begun = self._longest_from(base)
        if begun is not None and version == self._newest:
            rest = [each for each in self._chain if each.manifest.version > begun.manifest.version]
            return _Plan(key, snapshot, None, (begun, *rest))
        held = self._snapshots.get(base)
        return None if held is None else _Plan(key, snapshot, held, ())

    def _longest_from(self, base: PolicyVersion) -> Package | None:
        """Of what was merged already, what leads furthest from `base` along the chain."""
        nodes = {each.manifest.version for each in self._chain}
        if base not in {each.manifest.base.version for each in self._chain if each.manifest.base is not None}:
            return None
        found = [package for (version, start), package in self._packages.items() if start == base and version in nodes]
        found += [each for each in self._chain if each.manifest.base is not None and each.manifest.base.version == base]
        return max(found, key=lambda package: package.manifest.version)

    def _build(self, plan: _Plan) -> Package:
        def whole(base: Snapshot | None) -> Package:
            snapshot, run = plan.snapshot, self._run
            return encode(snapshot, base, run=run, chunk_bytes=self._chunk_bytes, threads=self._threads)

        if not plan.chain:
            return whole(plan.base)
        package = plan.chain[0]
        for following in plan.chain[1:]:
            package = merge(package, following, threads=self._threads)
        if package.manifest.total_bytes > WORTH * len(plan.snapshot.data):
            by_itself = whole(None)
            if by_itself.manifest.total_bytes < package.manifest.total_bytes:
                return by_itself
        return package

    def _prune(self, now: float) -> None:
        self._readers = {key: until for key, until in self._readers.items() if until > now}
        reading = {key for _, key in self._readers}
        versions_read = {version for version, _ in reading}
        for version in sorted(v for v in self._retained if v.number > 0)[:-MAX_RETAINED]:
            if version not in versions_read and version != self._pinned:
                self._retained.discard(version)
                log.warning("version %s is dropped before an evaluation released it: newer ones wait", version)
        keep = self._retained | {self._newest}
        for version in [v for v in self._snapshots if v not in keep]:
            del self._snapshots[version]
        self._packages = {
            key: package for key, package in self._packages.items() if key in reading or self._serves(key)
        }

    def _serves(self, key: Key) -> bool:
        """Whether somebody may still ask for it, or it is the beginning of what somebody may ask for."""
        version, base = key
        if base is None:
            return version in self._snapshots
        if version == self._newest:
            return True
        starts = {each.manifest.base.version for each in self._chain if each.manifest.base is not None}
        further = any(start == base and other > version for other, start in self._packages)
        return base in starts and not further


Wake = Callable[[], None]
"""Called when a package has been made, from the builder's thread."""


class Builder:
    """Makes the packages that a medium asks for, one at a time, in a thread of its own until `close`."""

    def __init__(self, store: VersionStore, clock: Callable[[], float], wake: Wake) -> None:
        self._store = store
        self._clock = clock
        self._wake = wake
        self._changed = threading.Condition()
        self._wanted: dict[Key, None] = {}
        self._closed = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="weight packages", daemon=True)
        self._thread.start()

    def want(self, key: Key) -> None:
        """Make this one; nothing if it is under way.

        Raises:
            RuntimeError: the thread has ended.
        """
        if self._failure is not None:
            raise RuntimeError("the thread that encodes weights has ended") from self._failure
        with self._changed:
            self._wanted[key] = None
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            while (key := self._next()) is not None:
                self._store.make(key, self._clock())
                with self._changed:
                    self._wanted.pop(key, None)
                self._wake()
        except BaseException as error:
            self._failure = error
            self._wake()
            raise

    def _next(self) -> Key | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._wanted)
            return None if self._closed else next(iter(self._wanted))
