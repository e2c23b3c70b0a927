"""The learner's side of weight publication.

publisher = Publisher(endpoint, run="demo", dtype="bfloat16", chunk_bytes=8 * 2**20, deadline_s=120.0, window=16)
digest = publisher.publish(PolicyVersion(1, 0), tensors)
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from torch import Tensor

from r1async.keys import ServerKeys
from r1async.types import PolicyVersion
from r1async.weights.acks import Ack
from r1async.weights.direct_sender import DirectSender
from r1async.weights.directory import DirectoryWriter
from r1async.weights.figures import PushFigures
from r1async.weights.manifest import Snapshot, TensorEntry, take_snapshot
from r1async.weights.medium import SendingMedium
from r1async.weights.package import Encoded, Package, assemble, decode, encode
from r1async.weights.store import VersionStore
from r1async.weights.zmq_sender import ZmqSender


class Publisher:
    """Keeps the newest version and those that an evaluation needs; a thread serves them. Binds when made.

    Args:
        endpoint: ``ipc://`` or ``tcp://`` address to bind.
        run: receivers of another run are refused.
        dtype: floating point tensors are cast to it: what engines serve.
        chunk_bytes: a snapshot travels in pieces of this size.
        window: a receiver that has one of so many versions before the newest gets what changed since; 0: every version
            travels whole.
        threads: that hash and encode a version at most.
        deadline_s: a version that is being read is kept this long after the reader's last question.
        directory: each version is also written into this folder of all runs; None: none is.
        direct: address of this machine where engines meet the learner to be sent versions themselves; None: nobody is.
        keys: of the socket, and who is let in; None where it needs none.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        run: str,
        dtype: str,
        chunk_bytes: int,
        deadline_s: float,
        window: int = 16,
        threads: int = 1,
        directory: Path | None = None,
        direct: str | None = None,
        keys: ServerKeys | None = None,
    ) -> None:
        self._run = run
        self._dtype = dtype
        self._chunk_bytes = chunk_bytes
        self._window = window
        self._threads = threads
        self._push = PushFigures()
        self._store = VersionStore(
            run=run, chunk_bytes=chunk_bytes, window=window, threads=threads, transfer_s=deadline_s
        )
        self._directory = (
            None if directory is None else DirectoryWriter(directory, run, window, self._whole, self._store.versions)
        )
        self._direct = None if direct is None else DirectSender(self._store, address=direct, timeout_s=deadline_s)
        self._medium: SendingMedium = ZmqSender(endpoint, self._store, run=run, keys=keys, direct=self._direct)

    def publish(self, version: PolicyVersion, tensors: Mapping[str, Tensor], *, retain: bool = False) -> str:
        """Copies and encodes the tensors and returns, whatever receivers do; they are served while the learner goes on.

        Args:
            version: above every version published before.
            tensors: the whole set, by state-dict name; a tied head left out.
            retain: keep it until `release`; of more than a few the oldest is dropped (see `SnapshotStore.retain`).

        Returns:
            The hash of what engines will serve (`manifest.version_hash`).

        Raises:
            ValueError: a version that is not newer, or tensors that cannot travel.
        """
        begun = time.monotonic()
        snapshot = take_snapshot(version, tensors, dtype=self._dtype, threads=self._threads)
        before, delta = self._store.newest(), None
        if before is not None and self._window and snapshot.has_tensors_of(before):
            delta = encode(snapshot, before, run=self._run, chunk_bytes=self._chunk_bytes, threads=self._threads)
        self._serve(snapshot, delta, begun, retain=retain)
        return snapshot.hash

    def publish_encoded(
        self,
        version: PolicyVersion,
        entries: Sequence[TensorEntry],
        encoded: Sequence[Encoded],
        *,
        delta: bool,
        begun: float,
        retain: bool = False,
    ) -> str:
        """`publish` of tensors that learner ranks have encoded, each its rows (`shards.py`).

        Args:
            version: as for `publish`.
            entries: with the hashes that must come out.
            encoded: of each.
            delta: they are what changed since the newest version; else each is by itself.
            begun: when the first rank began, as `time.monotonic` has it.
            retain: as for `publish`.

        Raises:
            ValueError: a version that is not newer.
            PackageError: the bytes do not lead to the hashes.
        """
        before = self._store.newest() if delta else None
        package = assemble(self._run, version, before and before.base, entries, encoded, self._chunk_bytes)
        snapshot = decode(package, before, None, threads=self._threads)
        self._serve(snapshot, package if delta else None, begun, retain=retain)
        return snapshot.hash

    def _serve(self, snapshot: Snapshot, delta: Package | None, begun: float, *, retain: bool) -> None:
        self._store.add(snapshot, time.monotonic(), delta)
        if retain:
            self._store.retain(snapshot.version, time.monotonic())
        if self._directory is not None:
            self._directory.add(snapshot, delta, retain=retain)
        self._push.published(snapshot, delta, time.monotonic() - begun)
        self._medium.announce()

    def retain(self, version: PolicyVersion) -> bool:
        """Keeps a version as `publish` does with `retain`; False if it is gone already."""
        kept = self._store.retain(version, time.monotonic())
        snapshot = self._store.get(version)
        if kept and self._directory is not None and snapshot is not None:
            self._directory.retain(snapshot)
        return kept

    def release(self, version: PolicyVersion) -> None:
        self._store.release(version, time.monotonic())

    def versions(self) -> list[PolicyVersion]:
        """What is kept, in order."""
        return self._store.versions()

    def acknowledged(self) -> dict[str, tuple[PolicyVersion, str]]:
        """By receiver's name: the version it last installed, with its hash."""
        return {name: (ack.version, ack.hash) for name, ack in self._acks().items()}

    def figures(self) -> dict[str, float]:
        """Of the newest push, and of what receivers said since this was last asked; docs/metrics-learner.md."""
        return self._push.figures(self._acks())

    def report(self) -> dict[str, object]:
        """Of the newest push, and by receiver what it said of the version that it serves: name, hash, what it cost."""
        newest = self._store.newest()
        return {
            "version": None if newest is None else list(newest.version),
            "hash": None if newest is None else newest.hash,
            **self._push.newest(),
            "receivers": {
                name: {
                    "version": list(ack.version),
                    "hash": ack.hash,
                    "bytes": ack.bytes,
                    "sync_s": ack.sync_s,
                    "pause_s": ack.pause_s,
                }
                for name, ack in self._acks().items()
            },
        }

    def _acks(self) -> dict[str, Ack]:
        by_files = {} if self._directory is None else self._directory.acknowledged()
        return {**by_files, **self._medium.acknowledged()}

    def _whole(self, snapshot: Snapshot) -> Package:
        return encode(snapshot, None, run=self._run, chunk_bytes=self._chunk_bytes, threads=self._threads)

    def close(self) -> None:
        self._medium.close()
        if self._direct is not None:
            self._direct.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
