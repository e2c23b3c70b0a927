"""What a publisher keeps and what it makes of it for whom: no sockets, a clock that the test sets."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from r1async.types import PolicyVersion
from r1async.weights.manifest import Base, Manifest, Snapshot, take_snapshot
from r1async.weights.package import Package, PackageError, decode, encode, merge
from r1async.weights.store import Key, VersionStore
from r1async.wire import Message, WireError, pack, unpack
from torch import Tensor

SIZE = 4000


def tensors(number: int) -> dict[str, Tensor]:
    """Of each version, three values more have moved a little; the bias never does."""
    weight = torch.linspace(-1, 1, SIZE).to(torch.bfloat16)
    weight[: 3 * number] *= 1.25
    return {"weight": weight.reshape(40, 100), "bias": torch.full((5,), 0.5)}


def taken(number: int, epoch: int = 1, values: Mapping[str, Tensor] | None = None) -> Snapshot:
    return take_snapshot(PolicyVersion(epoch, number), tensors(number) if values is None else values, dtype="bfloat16")


def encoded(snapshot: Snapshot, base: Snapshot | None) -> Package:
    return encode(snapshot, base, run="run", chunk_bytes=1024, threads=1)


def store(*, newest: int, window: int = 4) -> VersionStore:
    """Versions 0 to `newest`, each with its delta."""
    made = VersionStore(run="run", chunk_bytes=1024, window=window, threads=1, transfer_s=10.0)
    before = None
    for number in range(newest + 1):
        snapshot = taken(number)
        made.add(snapshot, 0.0, None if before is None else encoded(snapshot, before))
        before = snapshot
    return made


def version(number: int) -> PolicyVersion:
    return PolicyVersion(1, number)


def got(made: VersionStore, key: Key | None) -> Package:
    assert key is not None
    assert made.make(key, 0.0)
    package = made.package(b"reader", key, 0.0)
    assert package is not None
    return package


def test_a_receiver_gets_the_delta_from_what_it_has() -> None:
    made = store(newest=3)
    key = made.key_for(version(3), taken(2).base)
    assert key == (version(3), version(2))
    assert key is not None
    package = made.package(b"reader", key, 0.0)
    assert package is not None  # made when it was published
    assert package.manifest.changed == 3
    assert decode(package, taken(2), None, threads=1).hash == taken(3).hash


@pytest.mark.parametrize("have", [0, 1])
def test_a_receiver_that_skipped_versions_downloads_less_than_the_chain(have: int) -> None:
    made = store(newest=4)
    key = made.key_for(version(4), taken(have).base)
    assert key == (version(4), version(have))
    merged = got(made, key)
    chain = [encoded(taken(n + 1), taken(n)) for n in range(have, 4)]
    assert merged.manifest.total_bytes < sum(each.manifest.total_bytes for each in chain)
    assert merged.manifest.changed == 3 * (4 - have)
    assert decode(merged, taken(have), None, threads=1).hash == taken(4).hash


@pytest.mark.parametrize(
    "base",
    [
        None,
        Base(version(0), taken(0).hash),  # before the window
        Base(version(3), "another hash"),  # a version of the same name from another life
        Base(PolicyVersion(2, 3), taken(3).hash),
    ],
)
def test_who_has_no_base_of_ours_gets_the_version_by_itself(base: Base | None) -> None:
    made = store(newest=5, window=4)
    key = made.key_for(version(5), base)
    assert key == (version(5), None)
    package = got(made, key)
    assert package.manifest.base is None
    assert package.manifest.total_bytes < package.manifest.tensors[0].num_bytes
    assert decode(package, None, None, threads=1).hash == taken(5).hash


def test_without_a_window_every_version_travels_whole() -> None:
    made = store(newest=2, window=0)
    assert made.key_for(version(2), taken(1).base) == (version(2), None)


def test_a_pinned_version_comes_as_a_delta_from_the_newest_too() -> None:
    made = store(newest=2)
    made.retain(version(2), 0.0)
    made.add(taken(3), 0.0, encoded(taken(3), taken(2)))
    key = made.key_for(version(2), taken(3).base)
    assert key == (version(2), version(3))
    package = got(made, key)
    assert decode(package, taken(3), None, threads=1).hash == taken(2).hash


def test_tensors_of_another_shape_begin_a_new_chain() -> None:
    made = store(newest=2)
    other = taken(3, values={"weight": torch.ones(7)})
    package = encoded(other, taken(2))
    assert package.manifest.base is None
    made.add(other, 0.0, package)
    assert made.key_for(version(3), taken(2).base) == (version(3), None)


def test_what_is_read_is_kept_until_it_is_acknowledged_or_the_reader_is_silent() -> None:
    made = store(newest=1)
    key = version(1), version(0)
    for number, now in ((2, 1.0), (3, 2.0)):
        assert made.package(b"slow", key, now) is not None
        made.add(taken(number), now, encoded(taken(number), taken(number - 1)))
    assert made.versions() == [version(3)]
    made.add(taken(4), 12.5, encoded(taken(4), taken(3)))
    assert made.package(b"slow", key, 12.5) is not None  # the beginning of what leads on from 0
    got(made, (version(4), version(0)))
    made.done(b"reader", version(4), 12.5)
    made.gone(b"slow", 12.5)
    assert made.package(b"slow", key, 12.5) is None


def test_a_delta_that_saves_nothing_gives_way_to_the_version_by_itself() -> None:
    noise = [torch.randint(0, 255, (SIZE,), dtype=torch.uint8) for _ in range(2)]
    one, two = (taken(n, values={"noise": noise[n]}) for n in range(2))
    three = taken(2, values={"noise": torch.zeros(SIZE, dtype=torch.uint8)})
    made = VersionStore(run="run", chunk_bytes=1024, window=4, threads=1, transfer_s=10.0)
    for snapshot, before in ((one, None), (two, one), (three, two)):
        made.add(snapshot, 0.0, None if before is None else encoded(snapshot, before))
    package = got(made, (version(2), version(0)))
    assert package.manifest.base is None or package.manifest.total_bytes < 100
    assert decode(package, one, None, threads=1).hash == three.hash


def test_a_package_is_applied_to_its_exact_base_and_once() -> None:
    package = encoded(taken(1), taken(0))
    for base in (None, taken(1), taken(2)):
        with pytest.raises(PackageError, match="comes as a delta from 0@1"):
            decode(package, base, None, threads=1)


@pytest.mark.parametrize("at", range(0, 60, 7))
def test_damage_that_chunks_do_not_show_never_becomes_a_version(at: int) -> None:
    package = encoded(taken(3), taken(0))
    data = package.data.copy()
    data[at % len(data)] ^= 4
    with pytest.raises(PackageError):
        decode(Package(package.manifest, data), taken(0), None, threads=1)


def test_only_deltas_that_follow_each_other_merge() -> None:
    one, two, three = encoded(taken(1), taken(0)), encoded(taken(2), taken(1)), encoded(taken(3), taken(2))
    with pytest.raises(PackageError, match="a delta from 2@1 does not follow version 1@1"):
        merge(one, three, threads=1)
    whole = merge(merge(one, two, threads=1), three, threads=1)
    assert decode(whole, taken(0), None, threads=1).hash == taken(3).hash
    assert merge(one, encoded(taken(2), None), threads=1).manifest.base is None


def sent(manifest: Manifest) -> Message:
    return unpack(pack(manifest.header(), {"chunk_crcs": manifest.chunk_crcs}))


def test_a_manifest_comes_back_as_it_was_sent() -> None:
    for package in (encoded(taken(1), taken(0)), encoded(taken(1), None)):
        manifest = Manifest.from_message(sent(package.manifest))
        assert manifest.header() == package.manifest.header()
        assert np.array_equal(manifest.chunk_crcs, package.manifest.chunk_crcs)
        assert 0 < manifest.density <= 1


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("base", None, "names no base"),
        ("base", [[1, 1], "h"], "has itself as base"),
        ("base", [[1, 0]], r"must be \[version, hash\]"),
        ("hash", "0" * 32, "has not the hash of what it lists"),
        ("total_bytes", 7, "of 7"),
        ("chunk_bytes", 0, "lacks a field"),
        ("chunk_bytes", 1, "checksums for"),
        ("tensors", [], "names no tensor"),
        ("tensors", [["w", "bfloat16", [2], 0, "h", "zip", 1]], "a tensor must be"),
        ("tensors", [["w", "bfloat16", [2], 0, "h", "raw", 5]], "of 4 bytes is encoded in 5"),
        ("tensors", [["w", "bfloat16", [2], 1, "h", "raw", 4]], "do not follow those before them"),
        ("tensors", [["w", "bfloat16", [2], 0, "h", "raw", 4]] * 2, "two tensors of a manifest have one name"),
        ("version", [-1, 0], "a version must be"),
    ],
)
def test_a_manifest_says_what_is_wrong_with_it(field: str, value: object, text: str) -> None:
    message = sent(encoded(taken(1), taken(0)).manifest)
    message.header[field] = value
    with pytest.raises(WireError, match=text):
        Manifest.from_message(message)


def test_a_proof_does_not_take_the_pin_of_an_evaluation() -> None:
    made = store(newest=0)
    before = taken(0)
    for number in range(1, 7):
        snapshot = taken(number)
        made.add(snapshot, 1.0, encoded(snapshot, before))
        before = snapshot
        if number < 5:
            made.retain(version(number), 1.0)
            made.get(version(1), pin=True)  # evaluated now
        else:
            made.get(version(number), pin=True)  # a generator's proof of the newest, which nobody retains
    assert version(1) in made.versions()
