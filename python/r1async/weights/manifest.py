"""What a weight version is, and what travels of it.

A `Snapshot` is a version: all tensors one after the other in one host buffer, cast to the dtype that is served, with
xxh3-128 of each and of the whole. A `Package` is a version as bytes for somebody: each tensor by itself or as what
changed since a base that he has (`_core.weights_encode`), cut into chunks. Its `Manifest` names base and result. Of a
tensor that several learner ranks hold each rank's rows are an entry; they lie without a gap, so that it is whole again.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from r1async import _core
from r1async.types import PolicyVersion
from r1async.wire import Message, WireError

ALIGNMENT = 64
"""Bytes. A tensor viewed in the buffer must begin at a multiple of its item size."""
DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
    "int64": torch.int64,
    "int32": torch.int32,
    "int16": torch.int16,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
CODECS = frozenset({"same", "raw", "planes", "ulp", "ulp_planes"})
"""As rust/r1async-weights has them."""
NEED_BASE = frozenset({"same", "ulp", "ulp_planes"})

Layout = list[tuple[str, int, int]]
"""dtype, first byte and bytes of each tensor in a snapshot's buffer."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor of a version, or the rows of one that a learner rank holds."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    hash: str
    """xxh3-128 of its bytes, in hexadecimal."""
    first_row: int = 0
    """Index of its first row in the whole tensor."""

    @property
    def num_values(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.num_values * DTYPES[self.dtype].itemsize

    def goes_on(self, before: TensorEntry | None) -> bool:
        """Whether its rows are those after `before`'s."""
        return (
            before is not None
            and len(self.shape) > 0
            and (self.name, self.dtype, self.shape[1:]) == (before.name, before.dtype, before.shape[1:])
            and self.first_row == before.first_row + before.shape[0]
        )


@dataclass(frozen=True, slots=True)
class Part:
    """How a tensor is encoded in a package, and in how many bytes; parts follow each other without a gap."""

    codec: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Base:
    """The version that a package leads on from."""

    version: PolicyVersion
    hash: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    run: str
    version: PolicyVersion
    base: Base | None
    """What the receiver must have; None: the version by itself."""
    tensors: tuple[TensorEntry, ...]
    parts: tuple[Part, ...]
    """Of each tensor."""
    changed: int
    """Values that differ from the base; all of them without one."""
    hash: str
    """Of the version, see `version_hash`."""
    chunk_bytes: int
    chunk_crcs: NDArray[np.int64]
    """crc32c of each chunk: what the line did to it shows at once, and costs one chunk."""

    @property
    def total_bytes(self) -> int:
        """Of the package."""
        return sum(part.num_bytes for part in self.parts)

    @property
    def num_chunks(self) -> int:
        return -(-self.total_bytes // self.chunk_bytes)

    @property
    def density(self) -> float:
        """Share of values that differ from the base; 1 without one."""
        values = sum(tensor.num_values for tensor in self.tensors)
        return self.changed / values if values else 0.0

    def chunk(self, index: int) -> slice:
        """The bytes of a chunk."""
        return slice(index * self.chunk_bytes, min((index + 1) * self.chunk_bytes, self.total_bytes))

    def places(self) -> list[tuple[str, int, int]]:
        """Codec, first byte and bytes of each tensor in the package."""
        places, at = [], 0
        for part in self.parts:
            places.append((part.codec, at, part.num_bytes))
            at += part.num_bytes
        return places

    def header(self) -> dict[str, object]:
        """As a message's header; `chunk_crcs` is the one column beside it."""
        return {
            "t": "manifest",
            "run": self.run,
            "version": list(self.version),
            "base": None if self.base is None else [list(self.base.version), self.base.hash],
            "tensors": [
                [each.name, each.dtype, list(each.shape), each.first_row, each.hash, part.codec, part.num_bytes]
                for each, part in zip(self.tensors, self.parts, strict=True)
            ],
            "changed": self.changed,
            "total_bytes": self.total_bytes,
            "chunk_bytes": self.chunk_bytes,
            "hash": self.hash,
        }

    @classmethod
    def from_message(cls, message: Message) -> Manifest:
        """Inverse of `header`.

        Raises:
            WireError: not a manifest, or one that contradicts itself; the text says where.
        """
        match message.header:
            case {
                "run": str(run),
                "tensors": list(tensors),
                "changed": int(changed),
                "total_bytes": int(total_bytes),
                "chunk_bytes": int(chunk_bytes),
                "hash": str(digest),
            } if chunk_bytes > 0 and changed >= 0:
                pass
            case _:
                raise WireError(f"a manifest lacks a field or has one of another type: {sorted(message.header)}")
        crcs = message.columns.get("chunk_crcs")
        entries = [_entry(item) for item in tensors]
        manifest = cls(
            run=run,
            version=read_version(message.header.get("version")),
            base=read_base(message.header.get("base")),
            tensors=tuple(tensor for tensor, _ in entries),
            parts=tuple(part for _, part in entries),
            changed=changed,
            hash=digest,
            chunk_bytes=chunk_bytes,
            chunk_crcs=np.empty(0, np.int64) if crcs is None else crcs,
        )
        _check(manifest, total_bytes)
        return manifest


def read_version(value: object) -> PolicyVersion:
    """[epoch, number] of a header.

    Raises:
        WireError: something else.
    """
    match value:
        case [int(epoch), int(number)] if epoch >= 0 and number >= 0:
            return PolicyVersion(epoch, number)
        case _:
            raise WireError(f"a version must be [epoch, number], got {value!r:.80}")


def read_base(value: object) -> Base | None:
    """[version, hash] of a header, or nothing.

    Raises:
        WireError: something else.
    """
    match value:
        case None:
            return None
        case [version, str(digest)]:
            return Base(read_version(version), digest)
        case _:
            raise WireError(f"a base must be [version, hash] or nil, got {value!r:.80}")


def _entry(item: object) -> tuple[TensorEntry, Part]:
    match item:
        case [str(name), str(dtype), list(shape), int(first_row), str(digest), str(codec), int(num_bytes)] if (
            dtype in DTYPES and codec in CODECS
        ):
            if all(isinstance(size, int) and size >= 0 for size in shape):
                return TensorEntry(name, dtype, tuple(shape), digest, first_row), Part(codec, num_bytes)
    raise WireError(f"a tensor must be [name, dtype, shape, first row, hash, codec, bytes], got {item!r:.160}")


def _check(manifest: Manifest, total_bytes: int) -> None:
    if not manifest.tensors:
        raise WireError("a manifest names no tensor")
    _check_rows(manifest.tensors)
    for tensor, part in zip(manifest.tensors, manifest.parts, strict=True):
        if not 0 <= part.num_bytes <= tensor.num_bytes:
            raise WireError(f"tensor {tensor.name!r} of {tensor.num_bytes} bytes is encoded in {part.num_bytes}")
        if part.codec in NEED_BASE and manifest.base is None:
            raise WireError(f"tensor {tensor.name!r} is encoded as {part.codec}, and the manifest names no base")
    if manifest.total_bytes != total_bytes:
        raise WireError(f"tensors end at byte {manifest.total_bytes} of {total_bytes}")
    if manifest.chunk_crcs.dtype != np.int64 or len(manifest.chunk_crcs) != manifest.num_chunks:
        raise WireError(f"{len(manifest.chunk_crcs)} checksums for {manifest.num_chunks} chunks")
    if manifest.hash != version_hash(manifest.tensors):
        raise WireError(f"the manifest of version {manifest.version} has not the hash of what it lists")
    if manifest.base is not None and manifest.base.version == manifest.version:
        raise WireError(f"version {manifest.version} has itself as base")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    _, num_bytes = layout_of(manifest.tensors)
    if num_bytes > memory:
        raise WireError(f"a version of {num_bytes} bytes; this machine has {memory}")


def _check_rows(tensors: Sequence[TensorEntry]) -> None:
    names = set()
    for before, tensor in itertools.pairwise([None, *tensors]):
        assert tensor is not None
        if tensor.first_row == 0:
            if tensor.name in names:
                raise WireError("two tensors of a manifest have one name")
            names.add(tensor.name)
        elif not tensor.goes_on(before):
            raise WireError(f"rows {tensor.first_row} and on of tensor {tensor.name!r} do not follow those before them")


def layout_of(tensors: Iterable[TensorEntry]) -> tuple[Layout, int]:
    """Where tensors lie in a snapshot's buffer, and its bytes."""
    layout, end, before = [], 0, None
    for tensor in tensors:
        start = end if tensor.goes_on(before) else end + -end % ALIGNMENT
        before = tensor
        layout.append((tensor.dtype, start, tensor.num_bytes))
        end = start + tensor.num_bytes
    return layout, end


def version_hash(tensors: Iterable[TensorEntry]) -> str:
    """xxh3-128 over name, dtype, shape, first row and hash of every tensor, in order: what a version's weights are."""
    lines = (f"{each.name}\0{each.dtype}\0{list(each.shape)}\0{each.first_row}\0{each.hash}\n" for each in tensors)
    return xxhash.xxh3_128_hexdigest("".join(lines).encode())


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All tensors of a version. Nobody writes to `data` while it is one."""

    version: PolicyVersion
    entries: tuple[TensorEntry, ...]
    data: NDArray[np.uint8]
    hash: str
    layout: Layout = field(repr=False)

    @property
    def base(self) -> Base:
        """As the base of a package."""
        return Base(self.version, self.hash)

    def has_tensors_of(self, other: Snapshot | Manifest) -> bool:
        """Whether names, dtypes and shapes are the other's: only then is there a difference."""
        theirs = other.entries if isinstance(other, Snapshot) else other.tensors
        return _kinds(self.entries) == _kinds(theirs)

    def tensors(self) -> dict[str, Tensor]:
        """Views of the bytes, by name, each of the whole tensor."""
        flat = torch.from_numpy(self.data)
        found: dict[str, Tensor] = {}
        placed = zip(self.entries, (start for _, start, _ in self.layout), strict=True)
        for name, group in itertools.groupby(placed, lambda each: each[0].name):
            (first, start), *rest = group
            rows = [entry.shape[0] for entry, _ in rest]
            shape = (first.shape[0] + sum(rows), *first.shape[1:]) if rows else first.shape
            found[name] = _view(flat, TensorEntry(name, first.dtype, shape, ""), start)
        return found


def _kinds(entries: Iterable[TensorEntry]) -> list[tuple[str, str, tuple[int, ...], int]]:
    return [(entry.name, entry.dtype, entry.shape, entry.first_row) for entry in entries]


def snapshot_of(
    version: PolicyVersion, entries: Iterable[TensorEntry], data: NDArray[np.uint8], hashes: Iterable[str]
) -> Snapshot:
    """A version of tensors whose hashes are known; those of `entries` do not matter."""
    named = tuple(
        TensorEntry(each.name, each.dtype, each.shape, digest, each.first_row)
        for each, digest in zip(entries, hashes, strict=True)
    )
    layout, _ = layout_of(named)
    return Snapshot(version, named, data, version_hash(named), layout)


@dataclass(frozen=True, slots=True)
class Rows:
    """What one learner rank holds of a tensor: rows from `first_row` on; all of it, where nothing is sharded."""

    name: str
    tensor: Tensor
    first_row: int = 0


def take_snapshot(version: PolicyVersion, tensors: Mapping[str, Tensor], *, dtype: str, threads: int = 1) -> Snapshot:
    """Copies tensors to the host, floating point ones cast to `dtype`, and hashes them.

    Raises:
        ValueError: no tensor, or one of a dtype that has no name here.
    """
    if not tensors:
        raise ValueError(f"version {version} has no tensors to publish")
    return take_rows(version, [Rows(name, tensor) for name, tensor in tensors.items()], dtype=dtype, threads=threads)


def take_rows(version: PolicyVersion, rows: Sequence[Rows], *, dtype: str, threads: int = 1) -> Snapshot:
    """`take_snapshot` of what one rank holds, in its order.

    Raises:
        ValueError: a tensor of a dtype that has no name here.
    """
    entries = []
    for each in rows:
        kind = dtype if each.tensor.is_floating_point() else _NAMES.get(each.tensor.dtype)
        if kind is None:
            raise ValueError(f"tensor {each.name!r} is {each.tensor.dtype}; can be published: {sorted(DTYPES)}")
        entries.append(TensorEntry(each.name, kind, tuple(each.tensor.shape), "", each.first_row))
    layout, num_bytes = layout_of(entries)
    flat = torch.zeros(num_bytes, dtype=torch.uint8)
    for entry, (_, start, _), each in zip(entries, layout, rows, strict=True):
        _view(flat, entry, start).copy_(each.tensor.detach())
    data = flat.numpy()
    return snapshot_of(version, entries, data, _core.weights_hashes(data, layout, threads))


def _view(flat: Tensor, entry: TensorEntry, start: int) -> Tensor:
    return flat[start : start + entry.num_bytes].view(DTYPES[entry.dtype]).view(entry.shape)
