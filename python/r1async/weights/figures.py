"""What a push cost, as the learner logs it."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from r1async.types import PolicyVersion
from r1async.weights.acks import Ack
from r1async.weights.manifest import Snapshot
from r1async.weights.package import Package


class PushFigures:
    """Thread-safe: the publishing thread tells of pushes, the learner's asks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest: PolicyVersion | None = None
        self._push: dict[str, float] = {}
        self._told: dict[str, PolicyVersion] = {}
        """By receiver: the version whose acknowledgement has been reported."""

    def published(self, snapshot: Snapshot, delta: Package | None, encode_s: float) -> None:
        """A version can be had; `delta` leads to it from the one before, if there is one."""
        whole = len(snapshot.data)
        with self._lock:
            self._newest = snapshot.version
            self._push = {"push/encode_s": encode_s, "push/full_bytes": whole}
            if delta is not None:
                manifest = delta.manifest
                self._push |= {"push/density": manifest.density, "push/delta_bytes": manifest.total_bytes}

    def newest(self) -> dict[str, float]:
        """What the newest push cost the learner."""
        with self._lock:
            return dict(self._push)

    def figures(self, acks: Mapping[str, Ack]) -> dict[str, float]:
        """`acks`: the newest of each receiver."""
        with self._lock:
            newest, found = self._newest, dict(self._push)
            new = [ack for name, ack in acks.items() if self._told.get(name) != ack.version]
            self._told = {name: ack.version for name, ack in acks.items()}
        if newest is None:
            return found
        alive = [ack for ack in acks.values() if ack.version.epoch == newest.epoch]
        found["push/receivers"] = len(alive)
        if alive:
            found["push/lag"] = max(newest.number - ack.version.number for ack in alive)
        if new:
            found |= {
                "push/acks": len(new),
                "push/bytes": sum(ack.bytes for ack in new) / len(new),
                "push/sync_s": max(ack.sync_s for ack in new),
                "push/pause_s": max(ack.pause_s for ack in new),
            }
        return found
