"""`r1async relay CONFIG`: takes each weight version once for a host, and serves it there.

Takes: packages of the publisher, or of a relay above it. Gives: the same versions by the same protocol, out of a store
of its own: who skipped versions gets what the relay merged. Waits for: either socket. Woken by: a version that is
complete, a question of a receiver. Every version is decoded and verified before it is passed on, so a bad line above is
noticed once, here; a relay that is gone is a publisher that is gone: its receivers keep what they have and ask again.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from r1async.config import Config, ConfigError
from r1async.inbox import DeadlineExceeded, Inbox, stop_on_signals
from r1async.keys import ClientKeys, ServerKeys, client_keys, server_keys
from r1async.monitor.metrics import MetricsWriter, run_started
from r1async.types import PolicyVersion
from r1async.weights.acks import Ack
from r1async.weights.fence import Fence
from r1async.weights.manifest import Manifest, Snapshot
from r1async.weights.package import Package, PackageError, decode
from r1async.weights.store import VersionStore
from r1async.weights.zmq_receiver import ZmqReceiver
from r1async.weights.zmq_sender import ZmqSender

log = logging.getLogger(__name__)

MAX_GONE = 1024
"""Versions that are remembered as gone above."""


def main(config: Config, name: str, upstream: str) -> None:
    """Serves `endpoints.relay` until a signal.

    Args:
        config: of the run.
        name: ours, for acknowledgements.
        upstream: address of a relay above; empty: the learner's `endpoints.weights`.

    Raises:
        ConfigError: no address to serve, or one that cannot be bound.
        PublisherError: another run's publisher.
    """
    if not config.endpoints.relay:
        raise ConfigError("endpoints.relay: must be an address to serve, for `r1async relay`; it is empty")
    inbox = Inbox()
    if upstream:
        above = dataclasses.replace(config, endpoints=dataclasses.replace(config.endpoints, relay=upstream))
        keys = client_keys(above, "relay", "relay")
    else:
        keys = client_keys(config, "weights", "relay")
    path = config.run_dir / "metrics" / f"{name}.jsonl"
    with (
        stop_on_signals(inbox),
        Relay(
            upstream or config.endpoint("weights"),
            config.endpoints.relay,
            inbox,
            run=config.name,
            name=name,
            chunk_bytes=config.weights.chunk_bytes,
            window=config.weights.window,
            threads=config.weights.threads,
            deadline_s=config.weights.deadline_s,
            max_message_bytes=max(config.buffer.max_message_bytes, 2 * config.weights.chunk_bytes),
            upstream_keys=keys,
            keys=server_keys(config, "relay"),
        ) as relay,
        MetricsWriter(path, run_started(config.run_dir)) as writer,
    ):
        while True:
            try:
                inbox.get("a signal", config.monitor.interval_s)
            except DeadlineExceeded:
                writer.write("relay", relay.stats())


class Relay:
    """One upstream, one store, one socket; threads of its own until `close`.

    Args:
        upstream: the publisher's address, or a relay's; nobody need be there yet.
        endpoint: the address to bind.
        inbox: gets failures.
        run: of the publisher, and of every receiver.
        name: ours. What our receivers acknowledge goes up as ours, a slash, and theirs.
        chunk_bytes: of packages that are made here.
        window: deltas of so many versions are kept.
        threads: that decode and encode at most.
        deadline_s: as `Receiver` and `Publisher` have it.
        max_message_bytes: as `Receiver` has it.
        upstream_keys: ours for the upstream; None where it needs none.
        keys: of the socket; None where it needs none.
    """

    def __init__(
        self,
        upstream: str,
        endpoint: str,
        inbox: Inbox,
        *,
        run: str,
        name: str,
        chunk_bytes: int,
        window: int,
        threads: int,
        deadline_s: float,
        max_message_bytes: int = 256 * 2**20,
        upstream_keys: ClientKeys | None = None,
        keys: ServerKeys | None = None,
    ) -> None:
        self._name = name
        self._inbox = inbox
        self._threads = threads
        self._fence = Fence()
        self._lock = threading.Lock()
        self._refused = 0
        self._current: Snapshot | None = None
        """Written and read in the upstream's thread, and read elsewhere."""
        self._fetching: set[PolicyVersion] = set()
        self._gone: dict[PolicyVersion, None] = {}
        self._store = VersionStore(
            run=run, chunk_bytes=chunk_bytes, window=window, threads=threads, transfer_s=deadline_s
        )
        self._sender = ZmqSender(endpoint, self._store, run=run, keys=keys, above=self)
        try:
            self._receiver = ZmqReceiver(
                upstream, self, run=run, name=name, deadline_s=deadline_s, max_message_bytes=max_message_bytes,
                keys=upstream_keys,
            )  # fmt: skip
        except BaseException:
            self._sender.close()
            raise
        inbox.add_source(self._receiver.describe)
        self._receiver.want(None)

    def versions(self) -> list[PolicyVersion]:
        """What is kept, in order."""
        return self._store.versions()

    def stats(self) -> dict[str, float]:
        """Of the line above, as `Receiver.stats`; and receivers below that have acknowledged a version."""
        return {
            **self._receiver.stats(),
            "versions_fenced": self._fence.refused,
            "packages_refused": self._refused,
            "receivers": len(self._sender.acknowledged()),
            "version": -1 if self._current is None else self._current.version.number,
        }

    def close(self) -> None:
        self._receiver.close()
        self._sender.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # What the line above says, in its thread.

    def accepts(self, manifest: Manifest) -> bool:
        return self._fence.accepts(manifest.version)

    def diverts(self, manifest: Manifest) -> bool:
        return False

    def direct(self, answer: Mapping[str, object]) -> None:
        raise AssertionError("a relay asks for nothing directly")

    def complete(self, package: Package, pinned: bool, sync_s: float) -> bool:
        begun, manifest = time.monotonic(), package.manifest
        try:
            snapshot = decode(package, self._current, None, threads=self._threads)
        except PackageError as error:
            log.warning("threw away a package: %s", error)
            self._refused += 1
            return False
        now = time.monotonic()
        if pinned:
            with self._lock:
                self._fetching.discard(snapshot.version)
            self._store.keep(snapshot, now)
        else:
            self._store.add(snapshot, now, package)
            self._current = snapshot
        ack = Ack(
            name=self._name, version=snapshot.version, hash=snapshot.hash, pinned=pinned,
            bytes=manifest.total_bytes, sync_s=sync_s + now - begun, pause_s=0.0,
        )  # fmt: skip
        self._receiver.acknowledge(ack)
        self._sender.announce()
        if not pinned:
            self._receiver.want(snapshot.base)
        return True

    def missing(self, version: PolicyVersion, newest: PolicyVersion | None) -> None:
        with self._lock:
            self._fetching.discard(version)
            self._gone[version] = None
            while len(self._gone) > MAX_GONE:
                del self._gone[next(iter(self._gone))]
        self._sender.announce()

    def stuck(self, version: PolicyVersion, waited_s: float) -> None:
        log.warning("no chunk of version %s for %.1f s; asked again", version, waited_s)

    def failed(self, error: BaseException) -> None:
        self._inbox.fail(error)

    # What receivers below say, in the sender's thread.

    def fetches(self, version: PolicyVersion) -> bool:
        """Whether a version that is not here may still come: it is asked for above, once."""
        with self._lock:
            if version in self._gone:
                return False
            if version in self._fetching:
                return True
            self._fetching.add(version)
        current = self._current
        self._receiver.fetch(version, None if current is None else current.base)
        return True

    def acknowledged(self, ack: Ack) -> None:
        """Passed on, so that the learner knows of every engine."""
        self._receiver.acknowledge(dataclasses.replace(ack, name=f"{self._name}/{ack.name}"))
