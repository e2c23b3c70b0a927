"""One message is one frame: a msgpack header, then raw little-endian columns.

    offset 0   magic  b"R1A1"          the layout's version
           4   u32    header bytes H
           8   header H bytes of msgpack: a map with "t" (the type) and "cols": [[name, dtype, count], ...]
       8 + H   zero padding up to a multiple of 8
               the columns in that order, each padded up to a multiple of 8

One frame, because what a message costs in Python is the object per frame, not the bytes. The same
layout is read and written by `rust/r1async-core/src/frame.rs`; docs/protocol.md lists the messages.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgpack
import numpy as np
from numpy.typing import NDArray

PROTOCOL = 1
"""Raised when a message changes its meaning; `hello` names it and the buffer refuses another."""

MAGIC = b"R1A1"
MAX_HEADER_BYTES = 64 * 2**20
DTYPES: Mapping[str, np.dtype] = {
    name: np.dtype(code)
    for name, code in {
        "u1": "<u1", "i2": "<i2", "u2": "<u2", "i4": "<i4", "i8": "<i8", "f4": "<f4", "f8": "<f8",
    }.items()
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


Frame = bytes | memoryview
"""A message; a large one of the buffer is a view of its bytes, which is sent without a copy."""


class WireError(ValueError):
    """A message that breaks the layout or names a type nobody knows."""


@dataclass(frozen=True, slots=True)
class Message:
    header: dict
    columns: dict[str, NDArray]

    @property
    def type(self) -> str:
        return self.header["t"]


def _padding(size: int) -> int:
    return -size % 8


_PADDING = [bytes(_padding(size)) for size in range(8)]
"""By size modulo 8."""
_SIZE = struct.Struct("<I")


def pack(header: Mapping, columns: Mapping[str, NDArray | Sequence[NDArray]] | None = None) -> bytes:
    """A message as the bytes of its one frame, copied once from where they lie.

    A column may be given as its pieces, of one dtype, at least one.

    Raises:
        WireError: a column is not one-dimensional or has a dtype the wire does not know.
    """
    cols, body = [], list[memoryview | bytes]()
    for name, column in (columns or {}).items():
        pieces = (column,) if isinstance(column, np.ndarray) else column
        dtype, count = pieces[0].dtype, 0
        for piece in pieces:
            if piece.ndim != 1 or piece.dtype != dtype or dtype not in _NAMES:
                got = f"{piece.dtype}{piece.shape}"
                raise WireError(f"column {name!r} must be one-dimensional of {sorted(DTYPES)}, got {got}")
            count += len(piece)
            body.append((piece if piece.flags.c_contiguous else piece.copy()).data)
        cols.append([name, _NAMES[dtype], count])
        body.append(_PADDING[count * dtype.itemsize % 8])
    head = msgpack.packb({**header, "cols": cols})
    assert isinstance(head, bytes)
    return b"".join([MAGIC, _SIZE.pack(len(head)), head, _PADDING[len(head) % 8], *body])


def unpack(frame: Frame | bytearray) -> Message:
    """The message in a frame. Columns are views of the frame, not copies; they keep it alive.

    Raises:
        WireError: the frame breaks the layout; the text says where.
    """
    view = memoryview(frame).cast("B")
    if len(view) < 8 or view[:4] != MAGIC:
        raise WireError(f"not a message of this protocol: {len(view)} bytes beginning with {bytes(view[:4])!r}")
    (size,) = _SIZE.unpack_from(view, 4)
    if size > MAX_HEADER_BYTES or 8 + size > len(view):
        raise WireError(f"header of {size} bytes in a frame of {len(view)}")
    try:
        header = msgpack.unpackb(view[8 : 8 + size])
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise WireError(f"header is not msgpack: {error}") from error
    if not isinstance(header, dict) or not isinstance(header.get("t"), str):
        raise WireError("header must be a map with a string 't'")
    entries = header.pop("cols", [])
    if not isinstance(entries, list):
        raise WireError(f"cols must be a list, got {entries!r}")
    columns, offset, end = {}, 8 + size + _padding(size), len(view)
    for entry in entries:
        name, dtype, count = _column_entry(entry)
        after = offset + count * dtype.itemsize
        if after > end:
            raise WireError(f"column {name!r} ends at byte {after} of {end}")
        columns[name] = np.frombuffer(view, dtype, count, offset) if count else np.empty(0, dtype)
        offset = after + (-after & 7)
    if offset != len(view):
        raise WireError(f"{len(view) - offset} bytes after the last column")
    return Message(header, columns)


def _column_entry(entry: object) -> tuple[str, np.dtype, int]:
    if type(entry) is list and len(entry) == 3:
        name, code, count = entry
        # Of plain types, which is all that msgpack makes: a match statement takes five times as long.
        if type(name) is str and type(code) is str and code in DTYPES and type(count) is int and count >= 0:
            return name, DTYPES[code], count
    raise WireError(f"column entry must be [name, dtype, count], got {entry!r}")
