"""The weight codec through its Python binding; its properties are tested in rust/r1async-weights/tests."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from r1async import _core

LAYOUT = [("bfloat16", 0, 4000), ("float32", 4032, 400), ("int64", 4480, 8), ("float16", 4544, 0)]
SIZE = 4544


def version(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, SIZE, np.uint8)


def joined(encoded: list[tuple[str, NDArray[np.uint8], int]]) -> tuple[list[tuple[str, int, int]], NDArray[np.uint8]]:
    places, at = [], 0
    for codec, payload, _ in encoded:
        places.append((codec, at, len(payload)))
        at += len(payload)
    return places, np.concatenate([payload for _, payload, _ in encoded])


def nudged(base: NDArray[np.uint8], places: list[int]) -> NDArray[np.uint8]:
    """Some bf16 values of the first tensor one unit in the last place up."""
    new = base.copy()
    new[:4000].view(np.uint16)[places] += 1
    return new


def test_a_delta_leads_from_base_to_version_with_its_hashes() -> None:
    base = version(0)
    new = nudged(base, [5, 6, 1999])
    encoded = _core.weights_encode(new, base, LAYOUT, 1)
    assert [(codec, changed) for codec, _, changed in encoded] == [("ulp", 3), ("same", 0), ("same", 0), ("same", 0)]
    places, blob = joined(encoded)
    assert len(blob) < 20
    shadow = base.copy()
    hashes = _core.weights_decode(shadow, LAYOUT, places, blob, 2)
    assert np.array_equal(shadow, new)
    assert hashes == _core.weights_hashes(new, LAYOUT, 1)
    assert hashes[1:] == _core.weights_hashes(base, LAYOUT, 1)[1:]


def test_merged_deltas_lead_from_the_first_base_to_the_last_version() -> None:
    one = version(0)
    two = nudged(one, [5, 6])
    three = nudged(two, [6, 7])
    first, second = (joined(_core.weights_encode(new, base, LAYOUT, 1)) for base, new in ((one, two), (two, three)))
    merged = _core.weights_merge(LAYOUT, *first, *second, 1)
    assert [changed for _, _, changed in merged] == [3, 0, 0, 0]
    shadow = one.copy()
    _core.weights_decode(shadow, LAYOUT, *joined(merged), 1)
    assert np.array_equal(shadow, three)


def test_a_checksum_is_the_standards() -> None:
    """RFC 3720, B.4, and the check value of CRC-32C."""
    assert _core.crc32c(np.frombuffer(b"123456789", np.uint8)) == 0xE3069283
    assert _core.crc32c(np.zeros(32, np.uint8)) == 0x8A9136AA


def test_a_snapshot_needs_no_base() -> None:
    new = version(1)
    new[:4000].view(np.uint16)[:] = 0x3C00 + np.arange(2000) % 256  # exponents alike, as in trained weights
    encoded = _core.weights_encode(new, None, LAYOUT, 1)
    assert [codec for codec, _, _ in encoded] == ["planes", "raw", "raw", "raw"]
    shadow = np.zeros(SIZE, np.uint8)
    _core.weights_decode(shadow, LAYOUT, *joined(encoded), 1)
    for _, start, size in LAYOUT:
        assert np.array_equal(shadow[start : start + size], new[start : start + size])


@pytest.mark.parametrize(
    ("layout", "places", "text"),
    [
        ([("complex64", 0, 8)], [("raw", 0, 8)], "unknown dtype"),
        ([("bfloat16", 8, 8), ("bfloat16", 0, 8)], [("raw", 0, 8)] * 2, "8 bytes from 0 on, after 16"),
        ([("bfloat16", 0, SIZE + 2)], [("raw", 0, 8)], "bytes from 0 on"),
        ([("bfloat16", 0, 8)], [("raw", 2**63, 2**63)], "bytes from 9223372036854775808 on, of 8"),
        ([("bfloat16", 0, 8)], [("zip", 0, 8)], "unknown codec"),
        ([("bfloat16", 0, 8)], [], "0 encoded tensors, not 1"),
        ([("bfloat16", 0, 8)], [("raw", 0, 7)], "tensor 0: 7 bytes are not the 8 of the tensor"),
        ([("bfloat16", 0, 8)], [("ulp", 0, 8)], "tensor 0"),
    ],
)
def test_what_cannot_be_is_refused(
    layout: list[tuple[str, int, int]], places: list[tuple[str, int, int]], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        _core.weights_decode(version(0), layout, places, np.zeros(8, np.uint8), 1)


def test_baselines_are_exact_and_counted() -> None:
    base = version(0)
    new = nudged(base, [5, 6])
    shadow = base.copy()
    _core.weights_xor_zstd_decode(shadow, LAYOUT, _core.weights_xor_zstd(new, base, LAYOUT))
    assert np.array_equal(shadow, new)
    size, bound = _core.weights_bounds(new[:4000], base[:4000], "bfloat16")
    assert size == 2 * 6
    assert bound == pytest.approx((2 * np.log2(1000) + 1998 * np.log2(2000 / 1998)) / 8)  # one difference: no entropy
