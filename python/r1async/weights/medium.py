"""What moves snapshots between learner and engines. A file or two per medium; the ZeroMQ one runs anywhere.

A medium moves bytes and decides nothing else: which versions there are is the store's business, which of them an
engine may take is the receiver's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from r1async.types import PolicyVersion
from r1async.weights.manifest import Manifest, Snapshot


class SendingMedium(Protocol):
    """The learner's side; it reads from a `SnapshotStore`, in a thread of its own."""

    def announce(self) -> None:
        """The store has a newer version."""
        ...

    def acknowledged(self) -> dict[str, tuple[PolicyVersion, str]]:
        """By receiver's name: the version it last installed, with the hash of what it has."""
        ...

    def close(self) -> None: ...


class Sink(Protocol):
    """Who a receiving medium reports to; called in the medium's thread."""

    def accepts(self, manifest: Manifest) -> bool:
        """Whether this version may be taken; if not, it is not even fetched."""
        ...

    def complete(self, snapshot: Snapshot, pinned: bool) -> None:
        """Every byte is there, and every hash right."""
        ...

    def missing(self, version: PolicyVersion, newest: PolicyVersion | None) -> None:
        """The publisher does not have (any more) what was asked for by name."""
        ...

    def stuck(self, version: PolicyVersion, waited_s: float) -> None:
        """Chunks of this version stopped coming so many seconds ago; it is asked for again."""
        ...

    def failed(self, error: BaseException) -> None:
        """The medium has ended."""
        ...


class ReceivingMedium(Protocol):
    """A generator's side, in a thread of its own. The methods are for one other thread and return at once."""

    def want(self, have: PolicyVersion | None) -> None:
        """Fetch the newest version as soon as there is one above `have`."""
        ...

    def fetch(self, version: PolicyVersion) -> None:
        """Fetch this very version."""
        ...

    def acknowledge(self, version: PolicyVersion, digest: str, *, pinned: bool) -> None:
        """Tell the learner what is installed."""
        ...

    def release(self, version: PolicyVersion) -> None:
        """Tell the learner that this version need not be kept for us any longer."""
        ...

    def stats(self) -> Mapping[str, float]: ...

    def describe(self) -> str:
        """How it stands, in words."""
        ...

    def close(self) -> None: ...
