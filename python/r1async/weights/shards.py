"""Publication by learner ranks that each hold rows of every tensor (FSDP2): nobody gathers the weights.

Each rank copies its rows, hashes them and encodes what changed in them; that, which is small, goes to rank 0. Rank 0
puts the ranks' rows in order, applies them to the version before, compares every hash, and serves the result.

    ShardPublisher(link, encoder).publish(version, rows)                # ranks above 0, in their publishing threads
    FirstShardPublisher(publisher, link, encoder).publish(version, rows)  # rank 0, in its own
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgpack
import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from r1async import _core
from r1async.types import PolicyVersion
from r1async.weights.manifest import Rows, Snapshot, TensorEntry, take_rows
from r1async.weights.package import Encoded
from r1async.weights.publisher import Publisher


@dataclass(frozen=True, slots=True)
class Shard:
    """One rank's part of a version, as bytes."""

    entries: Sequence[TensorEntry]
    encoded: Sequence[Encoded]
    delta: bool
    """From the rank's part of the version before."""


class ShardEncoder:
    """Remembers a rank's part of the version before. For one thread.

    Args:
        dtype: floating point tensors are cast to it.
        threads: that hash and encode at most.
        deltas: False: every version by itself.
    """

    def __init__(self, *, dtype: str, threads: int, deltas: bool) -> None:
        self._dtype = dtype
        self._threads = threads
        self._deltas = deltas
        self._before: Snapshot | None = None

    def encode(self, version: PolicyVersion, rows: Sequence[Rows]) -> Shard:
        """Raises:
        ValueError: tensors that cannot travel.
        """
        taken = take_rows(version, rows, dtype=self._dtype, threads=self._threads)
        before = self._before
        if before is not None and not (self._deltas and taken.has_tensors_of(before)):
            before = None
        base = None if before is None else before.data
        encoded = _core.weights_encode(taken.data, base, taken.layout, self._threads) if taken.entries else []
        self._before = taken
        return Shard(taken.entries, encoded, before is not None)


class ShardLink:
    """Shards from the other ranks to rank 0, over a process group of their own: the default one is the training loop's.

    Args:
        group: of every learner rank, of CPU tensors (gloo); nobody else uses it.
        rank: ours in it.
        world: ranks in it.
    """

    def __init__(self, group: dist.ProcessGroup, rank: int, world: int) -> None:
        self._group = group
        self._rank = rank
        self._world = world

    def send(self, version: PolicyVersion, shard: Shard) -> None:
        """To rank 0, which takes it when it has come so far.

        Raises:
            RuntimeError: rank 0 is gone, or does not take it by the group's deadline.
        """
        header = {
            "version": list(version),
            "delta": shard.delta,
            "entries": [[each.name, each.dtype, list(each.shape), each.hash, each.first_row] for each in shard.entries],
            "encoded": [[codec, len(payload), changed] for codec, payload, changed in shard.encoded],
        }
        head = np.frombuffer(msgpack.packb(header, use_bin_type=True) or b"", np.uint8).copy()  # torch wants to write
        data = np.concatenate([np.empty(0, np.uint8), *(payload for _, payload, _ in shard.encoded)])
        self._put(np.array([len(head), len(data)], np.int64))
        self._put(head)
        if len(data):
            self._put(data)

    def collect(self, version: PolicyVersion, own: Shard) -> list[Shard]:
        """Every rank's, in the ranks' order; rank 0's call.

        Raises:
            RuntimeError: a rank is gone, or does not send by the group's deadline, or sends another version.
        """
        return [own, *(self._take(version, rank) for rank in range(1, self._world))]

    def _take(self, version: PolicyVersion, rank: int) -> Shard:
        head_bytes, data_bytes = self._get(rank, 2, np.int64)
        header = msgpack.unpackb(self._get(rank, int(head_bytes), np.uint8).tobytes())
        data = self._get(rank, int(data_bytes), np.uint8) if data_bytes else np.empty(0, np.uint8)
        if header["version"] != list(version):
            raise RuntimeError(f"rank {rank} publishes version {header['version']}, rank 0 {list(version)}")
        encoded, at = [], 0
        for codec, size, changed in header["encoded"]:
            encoded.append((codec, data[at : at + size], changed))
            at += size
        entries = [TensorEntry(name, dtype, tuple(shape), *rest) for name, dtype, shape, *rest in header["entries"]]
        return Shard(entries, encoded, header["delta"])

    def _put(self, array: NDArray) -> None:
        dist.send(torch.from_numpy(array), 0, self._group)

    def _get(self, rank: int, size: int, dtype: type) -> NDArray:
        array = np.empty(size, dtype)
        dist.recv(torch.from_numpy(array), rank, self._group)
        return array


class ShardPublisher:
    """A rank above 0."""

    def __init__(self, link: ShardLink, encoder: ShardEncoder) -> None:
        self._link = link
        self._encoder = encoder

    def publish(self, version: PolicyVersion, rows: Sequence[Rows], *, retain: bool = False) -> str:
        """Encodes this rank's rows and sends them to rank 0, which serves them and knows the version's hash.

        Raises:
            RuntimeError: as `ShardLink.send`.
        """
        self._link.send(version, self._encoder.encode(version, rows))
        return ""


class FirstShardPublisher:
    """Rank 0: takes the others' shards, and serves the version."""

    def __init__(self, publisher: Publisher, link: ShardLink, encoder: ShardEncoder) -> None:
        self._publisher = publisher
        self._link = link
        self._encoder = encoder

    def publish(self, version: PolicyVersion, rows: Sequence[Rows], *, retain: bool = False) -> str:
        """As `Publisher.publish`.

        Raises:
            RuntimeError: as `ShardLink.collect` and `in_order`.
            PackageError: a rank's bytes do not lead to what it says.
        """
        begun = time.monotonic()
        shards = self._link.collect(version, self._encoder.encode(version, rows))
        if len({shard.delta for shard in shards if shard.entries}) > 1:
            raise RuntimeError(f"version {version}: some ranks send what changed, and some send everything")
        entries, encoded = in_order(shards)
        delta = any(shard.delta for shard in shards)
        return self._publisher.publish_encoded(version, entries, encoded, delta=delta, begun=begun, retain=retain)


class OneRankPublisher:
    """The only rank: its rows are the tensors."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    def publish(self, version: PolicyVersion, rows: Sequence[Rows], *, retain: bool = False) -> str:
        """As `Publisher.publish`."""
        return self._publisher.publish(version, {each.name: each.tensor for each in rows}, retain=retain)


def rank_publisher(
    publisher: Publisher | None,
    group: dist.ProcessGroup | None,
    rank: int,
    world: int,
    *,
    dtype: str,
    threads: int,
    deltas: bool,
) -> OneRankPublisher | FirstShardPublisher | ShardPublisher:
    """What a rank's publishing thread calls. `publisher` is rank 0's, `group` is None with one rank; the others are
    those of `ShardEncoder` and `ShardLink`."""
    if group is None:
        assert publisher is not None
        return OneRankPublisher(publisher)
    link, encoder = ShardLink(group, rank, world), ShardEncoder(dtype=dtype, threads=threads, deltas=deltas)
    return ShardPublisher(link, encoder) if publisher is None else FirstShardPublisher(publisher, link, encoder)


def in_order(shards: Sequence[Shard]) -> tuple[list[TensorEntry], list[Encoded]]:
    """All ranks' entries, the rows of each tensor one after another; tensors in rank 0's order.

    Raises:
        RuntimeError: rows that do not follow each other, of a tensor.
    """
    rows: dict[str, list[tuple[TensorEntry, Encoded]]] = {}
    for shard in shards:
        for entry, encoded in zip(shard.entries, shard.encoded, strict=True):
            held = rows.setdefault(entry.name, [])
            if not (entry.goes_on(held[-1][0]) if held else entry.first_row == 0):
                raise RuntimeError(f"rows {entry.first_row} and on of tensor {entry.name!r} do not follow other ranks'")
            held.append((entry, encoded))
    pairs = [pair for held in rows.values() for pair in held]
    return [entry for entry, _ in pairs], [encoded for _, encoded in pairs]
