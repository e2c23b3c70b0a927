"""The directory medium: versions in a folder that learner and generators see, for where no socket reaches (a mount of
an object store, a network file system), or for one host (/dev/shm). Nothing is renamed that others may be reading.

    DIR/RUN/EPOCH-NUMBER/            a version
        delta.manifest, delta.00000000, ...   what changed since the version before; missing where a chain begins
        full.manifest, full.00000000, ...     by itself: of the first, of every `window`-th, of retained ones
        STABLE                                written last, removed first: the others are whole
    DIR/RUN/acks/NAME               what a receiver installed last

The manifest is that of the ZeroMQ medium, with its hashes of chunks and tensors: a file that is damaged, half
written or of another life is noticed as a bad line is. The learner prunes what is further back than the window.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from shutil import rmtree
from urllib.parse import quote

import numpy as np

from r1async.types import PolicyVersion
from r1async.weights.acks import Ack
from r1async.weights.manifest import Base, Manifest, Snapshot
from r1async.weights.medium import Sink
from r1async.weights.package import Package, PackageError, merge
from r1async.weights.transfer import Transfer, TransferError
from r1async.wire import WireError, pack, unpack

log = logging.getLogger(__name__)

STABLE = "STABLE"
POLL_S = 0.2
"""Seconds between two looks for a newer version."""


def _folder(version: PolicyVersion) -> str:
    return f"{version.epoch:010d}-{version.number:012d}"


def _version(folder: str) -> PolicyVersion | None:
    epoch, dash, number = folder.partition("-")
    return PolicyVersion(int(epoch), int(number)) if dash and epoch.isdecimal() and number.isdecimal() else None


def _stable_versions(run: Path) -> list[PolicyVersion]:
    """Newest first."""
    if not run.is_dir():
        return []
    found = (_version(path.name) for path in run.iterdir() if (path / STABLE).exists())
    return sorted((version for version in found if version is not None), reverse=True)


class DirectoryWriter:
    """The learner's side; called by its publishing thread.

    Args:
        directory: of all runs; made if it is missing.
        run: whose versions these are.
        window: versions back from the newest that are kept, and between two whole ones.
        whole: encodes a version by itself.
        kept: versions that somebody needs by name, and the newest: they stay.
    """

    def __init__(
        self,
        directory: Path,
        run: str,
        window: int,
        whole: Callable[[Snapshot], Package],
        kept: Callable[[], Iterable[PolicyVersion]],
    ) -> None:
        self._run = directory / run
        self._window = window
        self._whole = whole
        self._since_whole = 0
        self._kept = kept
        self._acks: dict[str, Ack] = {}
        (self._run / "acks").mkdir(parents=True, exist_ok=True)

    def add(self, snapshot: Snapshot, delta: Package | None, *, retain: bool) -> None:
        """Writes a version, prunes old ones, and reads what receivers said.

        Raises:
            OSError: it cannot be written.
        """
        folder = self._run / _folder(snapshot.version)
        if folder.exists():  # half written by a life that died, or by one of the same name: not to be mixed with ours
            _remove(folder)
        folder.mkdir()
        self._since_whole += 1
        if delta is not None:
            _write_package(folder, "delta", delta)
        if retain or delta is None or self._since_whole >= max(self._window, 1):
            _write_package(folder, "full", self._whole(snapshot))
            self._since_whole = 0
        _write(folder / STABLE, snapshot.hash.encode())
        self._prune()
        self._read_acks()

    def retain(self, snapshot: Snapshot) -> None:
        """A version that is there can be had by name: also whole."""
        folder = self._run / _folder(snapshot.version)
        if not (folder / "full.manifest").exists():
            _write_package(folder, "full", self._whole(snapshot))

    def acknowledged(self) -> dict[str, Ack]:
        """By receiver's name, as of the last version that was written."""
        return dict(self._acks)

    def _prune(self) -> None:
        kept = set(self._kept())
        for version in _stable_versions(self._run)[self._window + 1 :]:
            if version not in kept:
                _remove(self._run / _folder(version))

    def _read_acks(self) -> None:
        for path in (self._run / "acks").iterdir():
            if path.suffix == ".new":
                continue
            try:
                ack = Ack.from_header(unpack(path.read_bytes()).header)
            except (WireError, FileNotFoundError) as error:
                log.warning("passed over %s: %s", path, error)
                continue
            if not ack.pinned:
                self._acks[ack.name] = ack


def _write(path: Path, data: bytes) -> None:
    """All of the file or none, also after a crash."""
    new = path.with_name(f"{path.name}.new")
    with new.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def _write_package(folder: Path, kind: str, package: Package) -> None:
    manifest = package.manifest
    for index in range(manifest.num_chunks):
        _write(folder / f"{kind}.{index:08d}", package.chunk(index).tobytes())
    _write(folder / f"{kind}.manifest", pack(manifest.header(), {"chunk_crcs": manifest.chunk_crcs}))


def _remove(folder: Path) -> None:
    """The marker first: who has not begun to read does not begin now."""
    (folder / STABLE).unlink(missing_ok=True)
    rmtree(folder)


class DirectoryReceiver:
    """Reads versions from a folder in a thread of its own until `close`; it need not be there yet.

    Args:
        directory: of all runs.
        sink: who gets what arrives.
        run: whose versions.
        name: ours, for acknowledgements.
        deadline_s: seconds until a version that could not be verified is read again.
        threads: that merge deltas at most.
        poll_s: seconds between two looks.
    """

    def __init__(
        self,
        directory: Path,
        sink: Sink,
        *,
        run: str,
        name: str,
        deadline_s: float,
        threads: int,
        poll_s: float = POLL_S,
    ) -> None:
        self._run = directory / run
        self._run_name = run
        self._sink = sink
        self._name = name
        self._deadline_s = deadline_s
        self._threads = threads
        self._poll_s = poll_s
        self._stats = {"weights_bytes": 0.0, "chunks_corrupted": 0.0, "transfers_restarted": 0.0}
        self._orders: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._wants = False
        self._have: Base | None = None
        self._refused: dict[PolicyVersion, float] = {}
        """Versions that could not be verified whole, or must not be taken: until when they are left alone."""
        self._thread = threading.Thread(target=self._serve, name=f"receiver {self._run}", daemon=True)
        self._thread.start()

    def want(self, have: Base | None) -> None:
        def order() -> None:
            self._wants, self._have = True, have

        self._order(order)

    def fetch(self, version: PolicyVersion, have: Base | None) -> None:
        self._order(lambda: self._fetch(version))

    def acknowledge(self, ack: Ack) -> None:
        self._order(lambda: self._acknowledge(ack))

    def direct(self, asked: Mapping[str, object]) -> None:
        raise AssertionError("nobody at the other end of a folder could send anything")

    def release(self, version: PolicyVersion) -> None:
        """Nothing: how long a folder stays is the learner's to say, and the evaluator tells it by the socket."""

    def stats(self) -> Mapping[str, float]:
        return dict(self._stats)

    def describe(self) -> str:
        newest = next(iter(_stable_versions(self._run)), None)
        return f"weights in {self._run}: newest {newest or 'not there'}"

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _order(self, order: Callable[[], None]) -> None:
        with self._changed:
            self._orders.append(order)
            self._changed.notify()

    def _serve(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed or self._orders, self._poll_s if self._wants else None)
                    if self._closed:
                        return
                    orders = list(self._orders)
                    self._orders.clear()
                for order in orders:
                    order()
                if self._wants:
                    self._look()
        except BaseException as error:
            self._sink.failed(error)
            raise

    def _look(self) -> None:
        """Take the newest version, if it is newer than ours."""
        have = None if self._have is None else self._have.version
        version = next(iter(_stable_versions(self._run)), None)
        if version is None or (have is not None and version <= have):
            return
        if self._refused.get(version, 0.0) > time.monotonic():
            return
        for base in dict.fromkeys((self._have, None)):
            begun = time.monotonic()
            package = self._read(version, base)
            if package is None:
                continue
            if not self._sink.accepts(package.manifest):
                break
            if self._sink.complete(package, False, time.monotonic() - begun):
                self._wants = False
                self._refused.clear()
                return
            self._stats["transfers_restarted"] += 1
        self._refused[version] = time.monotonic() + self._deadline_s

    def _fetch(self, version: PolicyVersion) -> None:
        begun = time.monotonic()
        package = self._read(version, None) if (self._run / _folder(version) / STABLE).exists() else None
        if package is None or not self._sink.accepts(package.manifest):
            self._sink.missing(version, next(iter(_stable_versions(self._run)), None))
        elif not self._sink.complete(package, True, time.monotonic() - begun):
            self._sink.missing(version, None)

    def _acknowledge(self, ack: Ack) -> None:
        folder = self._run / "acks"
        if folder.is_dir():  # gone with its run, otherwise
            _write(folder / quote(self._name, safe=""), pack(ack.header()))

    def _read(self, version: PolicyVersion, base: Base | None) -> Package | None:
        """One package that leads to a version: its deltas back to `base`, or back to one that is there whole. None if
        there is no such chain, or if it is being pruned: another look will find another."""
        packages: list[Package] = []
        at = version
        try:
            while True:
                package = None if base is not None else self._package(at, "full")
                package = package or self._package(at, "delta")
                if package is None:
                    return None
                packages.append(package)
                led_from = package.manifest.base
                if led_from == base or led_from is None:
                    break
                at = led_from.version
        except (WireError, TransferError, FileNotFoundError) as error:
            log.warning("cannot read version %s in %s: %s", at, self._run, error)
            self._stats["transfers_restarted"] += 1
            return None
        merged = packages.pop()
        try:
            while packages:
                merged = merge(merged, packages.pop(), threads=self._threads)
        except (PackageError, ValueError) as error:
            log.warning("cannot read version %s in %s: %s", version, self._run, error)
            return None
        return merged

    def _package(self, version: PolicyVersion, kind: str) -> Package | None:
        folder = self._run / _folder(version)
        path = folder / f"{kind}.manifest"
        if not path.exists():
            return None
        manifest = Manifest.from_message(unpack(path.read_bytes()))
        if manifest.run != self._run_name or manifest.version != version:
            raise WireError(f"{path} is of version {manifest.version} of run {manifest.run!r}")
        transfer = Transfer(manifest)
        while indexes := transfer.next_chunks():
            for index in indexes:
                data = np.fromfile(folder / f"{kind}.{index:08d}", np.uint8)
                before = transfer.corrupted
                self._stats["weights_bytes"] += data.nbytes
                try:
                    transfer.add(index, data)
                finally:
                    self._stats["chunks_corrupted"] += transfer.corrupted - before
        return transfer.finish()
