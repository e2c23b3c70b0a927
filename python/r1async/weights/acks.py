"""What receivers say of a version that they installed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from r1async.types import PolicyVersion
from r1async.weights.manifest import read_version
from r1async.wire import WireError


@dataclass(frozen=True, kw_only=True, slots=True)
class Ack:
    """A receiver's word that an engine serves a version."""

    name: str
    """Of the receiver; behind a relay the relay's, a slash, and the receiver's."""
    version: PolicyVersion
    hash: str
    pinned: bool
    """The version was asked for by name."""
    bytes: int
    """That travelled for it."""
    sync_s: float
    """Seconds from its announcement until it was complete and verified."""
    pause_s: float
    """Seconds that the engine stood still to take it."""

    def header(self) -> dict[str, object]:
        """As the message `ack`."""
        return {
            "t": "ack",
            "name": self.name,
            "version": list(self.version),
            "hash": self.hash,
            "pinned": self.pinned,
            "bytes": self.bytes,
            "sync_s": self.sync_s,
            "pause_s": self.pause_s,
        }

    @classmethod
    def from_header(cls, header: dict) -> Ack:
        """Inverse of `header`.

        Raises:
            WireError: a field is missing, or has a value that it cannot have.
        """
        match header:
            case {
                "name": str(name),
                "hash": str(digest),
                "version": named,
                "pinned": bool(pinned),
                "bytes": int(sent),
                "sync_s": float(sync_s),
                "pause_s": float(pause_s),
            } if sent >= 0 and 0 <= sync_s < math.inf and 0 <= pause_s < math.inf:
                version = read_version(named)
            case _:
                raise WireError("ack wants name, version, hash, pinned, bytes, sync_s and pause_s")
        return cls(name=name, version=version, hash=digest, pinned=pinned, bytes=sent, sync_s=sync_s, pause_s=pause_s)
