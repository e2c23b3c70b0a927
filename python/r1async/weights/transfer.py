"""One package on its way: what to ask for next, and what has arrived whole. No sockets, no clock."""

from __future__ import annotations

from collections import deque

import numpy as np

from r1async import _core
from r1async.weights.manifest import Manifest
from r1async.weights.package import Package
from r1async.wire import WireError

WINDOW = 4
"""Chunks asked for and not yet here: enough that the line is never idle, few enough that nothing piles up."""
MAX_CORRUPTED = 16
"""Corrupted chunks after which the manifest itself is doubted."""


class TransferError(RuntimeError):
    """This transfer cannot end well; begin again from the manifest."""


class Transfer:
    """Collects the chunks of one manifest.

    Args:
        manifest: checked already.
        window: chunks to have under way at a time.
    """

    def __init__(self, manifest: Manifest, window: int = WINDOW) -> None:
        self.manifest = manifest
        self.corrupted = 0
        """Chunks that arrived with another checksum than the manifest's."""
        self._data = np.empty(manifest.total_bytes, np.uint8)
        self._window = window
        self._ask = deque(range(manifest.num_chunks))
        self._under_way: set[int] = set()
        self._have = 0

    def next_chunks(self) -> list[int]:
        """Indexes to ask for now; empty while enough are under way."""
        indexes = []
        while self._ask and len(self._under_way) < self._window:
            index = self._ask.popleft()
            self._under_way.add(index)
            indexes.append(index)
        return indexes

    def add(self, index: object, data: np.ndarray | None) -> None:
        """Takes a chunk; one with a wrong checksum is asked for again, one that was not asked for is passed over.

        Raises:
            TransferError: too many were corrupted.
            WireError: not a chunk.
        """
        if not isinstance(index, int) or data is None or data.dtype != np.uint8:
            got = None if data is None else data.dtype
            raise WireError(f"a chunk has an index and bytes, got {index!r:.80} and {got}")
        if index not in self._under_way:
            return
        self._under_way.remove(index)
        place = self.manifest.chunk(index)
        if len(data) != place.stop - place.start or _core.crc32c(data) != self.manifest.chunk_crcs[index]:
            self.corrupted += 1
            if self.corrupted > MAX_CORRUPTED:
                raise TransferError(f"{self.corrupted} chunks of version {self.manifest.version} arrived corrupted")
            self._ask.append(index)
            return
        self._data[place] = data
        self._have += 1

    def finish(self) -> Package | None:
        """The package, once every chunk is there."""
        return Package(self.manifest, self._data) if self._have == self.manifest.num_chunks else None
