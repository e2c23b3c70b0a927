"""The frame layout: what is packed is unpacked, without a copy, and hostile bytes are a WireError, never more."""

import struct

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from r1async.wire import DTYPES, MAGIC, WireError, pack, unpack


def frame(header: bytes, columns: bytes = b"") -> bytes:
    head = MAGIC + struct.pack("<I", len(header)) + header
    return head + bytes(-len(head) % 8) + columns


def packed(header: object) -> bytes:
    return bytes(msgpack.Packer().pack(header))


def sample() -> bytes:
    tokens = np.arange(5, dtype=np.int32)
    return pack({"t": "chunks", "items": [[1, 0, 5, None, [[1, 2, 5]]]]}, {"tokens": tokens, "logprobs": -tokens / 2})


@pytest.mark.parametrize("name", sorted(DTYPES))
@pytest.mark.parametrize("count", [0, 1, 7, 8])
def test_columns_of_every_dtype_and_length_come_back(name, count):
    column = np.arange(count).astype(DTYPES[name])
    message = unpack(pack({"t": "x", "n": -1, "b": b"\xff", "none": None}, {"first": column, "second": column[::-1]}))
    assert message.type == "x"
    assert message.header == {"t": "x", "n": -1, "b": b"\xff", "none": None}
    assert message.columns["first"].dtype == column.dtype
    np.testing.assert_array_equal(message.columns["first"], column)
    np.testing.assert_array_equal(message.columns["second"], column[::-1])


def test_columns_are_views_of_the_frame():
    bytes_ = sample()
    begin = np.frombuffer(bytes_, np.uint8).ctypes.data
    for column in unpack(bytes_).columns.values():
        assert begin <= column.ctypes.data < begin + len(bytes_)
        assert column.ctypes.data % 8 == 0


@pytest.mark.parametrize(
    ("column", "text"),
    [
        (np.zeros((2, 2), np.float32), r"column 'x' must be one-dimensional of .*, got float32\(2, 2\)"),
        (np.zeros(2, np.complex64), "got complex64"),
        (np.array(["a"]), "got <U1"),
        (np.array([None]), "got object"),
    ],
)
def test_column_that_the_wire_does_not_know_is_refused(column, text):
    with pytest.raises(WireError, match=text):
        pack({"t": "x"}, {"x": column})


@pytest.mark.parametrize(
    ("bytes_", "text"),
    [
        (b"", "not a message of this protocol: 0 bytes"),
        (b"GET / HTTP/1.1", "not a message of this protocol"),
        (MAGIC + struct.pack("<I", 2**32 - 1), "header of 4294967295 bytes in a frame of 8"),
        (MAGIC + struct.pack("<I", 9) + b"12345678", "header of 9 bytes in a frame of 16"),
        (frame(b"\xc1"), "header is not msgpack"),
        (frame(b"\x91" * 100_000), "header is not msgpack"),
        (frame(b"\xdd\xff\xff\xff\xff"), "header is not msgpack"),
        (frame(packed([])), "a map with a string 't'"),
        (frame(packed({"t": 1})), "a map with a string 't'"),
        (frame(packed({"t": "x", "cols": 1})), "cols must be a list"),
        (frame(packed({"t": "x", "cols": [1]})), "column entry must be"),
        (frame(packed({"t": "x", "cols": [["a", "i4", -1]]})), "column entry must be"),
        (frame(packed({"t": "x", "cols": [["a", "O", 1]]})), "column entry must be"),
        (frame(packed({"t": "x", "cols": [["a", "i4", 2**62]]})), "column 'a' ends at byte"),
        (frame(packed({"t": "x", "cols": [["a", "i4", 1]]}), b"\0" * 3), "column 'a' ends at byte"),
        (frame(packed({"t": "x"}), b"\0" * 8), "8 bytes after the last column"),
    ],
)
def test_frame_that_breaks_the_layout_is_refused_with_the_place(bytes_, text):
    with pytest.raises(WireError, match=text):
        unpack(bytes_)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_are_a_wire_error_or_a_message(bytes_):
    for attempt in (bytes_, frame(bytes_)):
        try:
            unpack(attempt)
        except WireError:
            continue


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(sample()) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_mutated_frames_are_a_wire_error_or_a_message(changes):
    bytes_ = bytearray(sample())
    for at, byte in changes:
        bytes_[at] = byte
    try:
        message = unpack(bytes_)
    except WireError:
        return
    assert sum(column.nbytes for column in message.columns.values()) <= len(bytes_)
