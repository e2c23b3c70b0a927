"""Batches that the buffer put into memory which this process maps: nothing travels, and tensors are views of it."""

from __future__ import annotations

import mmap
import os
import weakref
from collections import OrderedDict, deque

import numpy as np
from numpy.typing import NDArray

from r1async.wire import Message, WireError, unpack

MAPPED = 4
"""Segments whose maps are kept for the next batch in them; the buffer has as many at a time at most."""


class BatchMemory:
    """The segments that the buffer wrote batches into (`rust/r1async-memory`), mapped once each; of one connection, for
    a buffer that was started again counts its segments anew.

    A segment is the buffer's again when no array and no tensor looks into it any more: `freed` tells.
    """

    def __init__(self) -> None:
        self._maps: OrderedDict[int, mmap.mmap] = OrderedDict()
        self._freed: deque[int] = deque()

    def read(self, place: object) -> Message:
        """The message at a place that a `batch` names.

        Raises:
            OSError: this process cannot open or map it.
            WireError: it names no place, or what is there is not a message.
        """
        match place:
            case [int(process), int(descriptor), int(segment), int(size)]:
                pass
            case _:
                raise WireError(f"memory must be [process, descriptor, segment, bytes], got {place!r}")
        mapped = self._maps.get(segment)
        if mapped is None:
            mapped = self._maps[segment] = _map(f"/proc/{process}/fd/{descriptor}", segment)
            if len(self._maps) > MAPPED:
                self._maps.popitem(last=False)
        else:
            self._maps.move_to_end(segment)
        if size > len(mapped):
            raise WireError(f"a batch of {size} bytes in a segment of {len(mapped)}")
        return unpack(self._view(mapped, segment, size).data)

    def freed(self) -> list[int]:
        """Segments that nobody has looked into since this was last asked."""
        return [self._freed.popleft() for _ in range(len(self._freed))]

    def _view(self, mapped: mmap.mmap, segment: int, size: int) -> NDArray[np.uint8]:
        """All that is made of it keeps it alive, so its end is theirs."""
        view = np.frombuffer(mapped, np.uint8, size)
        weakref.finalize(view, self._freed.append, segment).atexit = False
        return view


def _map(path: str, segment: int) -> mmap.mmap:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        found = os.readlink(f"/proc/self/fd/{descriptor}")
        if found != f"/memfd:r1async-batch-{segment} (deleted)":  # closed, and its number given to another file
            raise FileNotFoundError(f"{path} is {found}, not segment {segment}")
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(descriptor)
