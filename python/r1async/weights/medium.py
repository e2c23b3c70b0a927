"""What moves versions between learner and engines. A file or two per medium; the ZeroMQ one runs anywhere.

A medium moves packages and decides nothing else: which versions there are, and as what they travel, is the store's
business; whether bytes are the version that they say, and whether an engine may take it, is the receiver's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from r1async.types import PolicyVersion
from r1async.weights.acks import Ack
from r1async.weights.manifest import Base, Manifest
from r1async.weights.package import Package


class SendingMedium(Protocol):
    """The learner's side; it reads from a `VersionStore`, in a thread of its own."""

    def announce(self) -> None:
        """The store has a newer version."""
        ...

    def acknowledged(self) -> dict[str, Ack]:
        """By receiver's name: what it said of the version that it last installed."""
        ...

    def close(self) -> None: ...


class Sink(Protocol):
    """Who a receiving medium reports to; called in the medium's thread."""

    def accepts(self, manifest: Manifest) -> bool:
        """Whether this version may be taken; if not, it is not even fetched."""
        ...

    def diverts(self, manifest: Manifest) -> bool:
        """Whether the engine takes this version, which is the newest, itself (`direct.py`): nothing is fetched."""
        ...

    def complete(self, package: Package, pinned: bool, sync_s: float) -> bool:
        """Every chunk is there and right, so many seconds after the manifest.

        Returns:
            False: it does not lead to the version that it names; the version by itself may.
        """
        ...

    def missing(self, version: PolicyVersion, newest: PolicyVersion | None) -> None:
        """The publisher does not have (any more) what was asked for by name."""
        ...

    def direct(self, answer: Mapping[str, object]) -> None:
        """The learner's answer to `ReceivingMedium.direct`."""
        ...

    def stuck(self, version: PolicyVersion, waited_s: float) -> None:
        """Chunks of this version stopped coming so many seconds ago; it is asked for again."""
        ...

    def failed(self, error: BaseException) -> None:
        """The medium has ended."""
        ...


class ReceivingMedium(Protocol):
    """A generator's side, in a thread of its own. The methods are for one other thread and return at once."""

    def want(self, have: Base | None) -> None:
        """Fetch the newest version as soon as there is one above `have`, which it may come as a delta from."""
        ...

    def fetch(self, version: PolicyVersion, have: Base | None) -> None:
        """Fetch this very version, which may come as a delta from `have`."""
        ...

    def acknowledge(self, ack: Ack) -> None:
        """Tell the learner what is installed."""
        ...

    def direct(self, asked: Mapping[str, object]) -> None:
        """Ask the learner to send a version to the engine itself."""
        ...

    def release(self, version: PolicyVersion) -> None:
        """Tell the learner that this version need not be kept for us any longer."""
        ...

    def stats(self) -> Mapping[str, float]: ...

    def describe(self) -> str:
        """How it stands, in words."""
        ...

    def close(self) -> None: ...
