"""One weight version as bytes: a snapshot, and the manifest that says what is in it.

A snapshot is all tensors one after the other in one host buffer, cast to the dtype that is served. The manifest names
them, and has a hash of every chunk (which one to ask for again) and of the whole (what a version's weights are).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

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


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies in the snapshot."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    run: str
    version: PolicyVersion
    tensors: tuple[TensorEntry, ...]
    total_bytes: int
    chunk_bytes: int
    hash: str
    """xxh3-128 of all bytes, in hexadecimal."""
    chunk_hashes: NDArray[np.int64]
    """xxh3-64 of each chunk, the bits of the unsigned number."""

    @property
    def num_chunks(self) -> int:
        return -(-self.total_bytes // self.chunk_bytes)

    def chunk(self, index: int) -> slice:
        """The bytes of a chunk."""
        return slice(index * self.chunk_bytes, min((index + 1) * self.chunk_bytes, self.total_bytes))

    def header(self) -> dict[str, object]:
        """As a message's header; `chunk_hashes` is the one column beside it."""
        return {
            "t": "manifest",
            "run": self.run,
            "version": list(self.version),
            "tensors": [[t.name, t.dtype, list(t.shape), t.offset] for t in self.tensors],
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
                "total_bytes": int(total_bytes),
                "chunk_bytes": int(chunk_bytes),
                "hash": str(digest),
            } if chunk_bytes > 0:
                pass
            case _:
                raise WireError(f"a manifest lacks a field or has one of another type: {sorted(message.header)}")
        hashes = message.columns.get("chunk_hashes")
        manifest = cls(
            run=run,
            version=read_version(message.header.get("version")),
            tensors=tuple(_entry(item) for item in tensors),
            total_bytes=total_bytes,
            chunk_bytes=chunk_bytes,
            hash=digest,
            chunk_hashes=np.empty(0, np.int64) if hashes is None else hashes,
        )
        _check(manifest)
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


def _entry(item: object) -> TensorEntry:
    match item:
        case [str(name), str(dtype), list(shape), int(offset)] if dtype in DTYPES:
            if all(isinstance(size, int) and size >= 0 for size in shape):
                return TensorEntry(name, dtype, tuple(shape), offset)
    raise WireError(f"a tensor must be [name, dtype, shape, offset], got {item!r:.120}")


def _check(manifest: Manifest) -> None:
    end = 0
    for tensor in manifest.tensors:
        if tensor.offset != end + -end % ALIGNMENT:
            raise WireError(f"tensor {tensor.name!r} begins at byte {tensor.offset}, the one before ends at {end}")
        end = tensor.offset + tensor.num_bytes
    if end != manifest.total_bytes:
        raise WireError(f"tensors end at byte {end} of {manifest.total_bytes}")
    if len({tensor.name for tensor in manifest.tensors}) != len(manifest.tensors):
        raise WireError("two tensors of a manifest have one name")
    if manifest.chunk_hashes.dtype != np.int64 or len(manifest.chunk_hashes) != manifest.num_chunks:
        raise WireError(f"{len(manifest.chunk_hashes)} chunk hashes for {manifest.num_chunks} chunks")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if manifest.total_bytes > memory:
        raise WireError(f"a snapshot of {manifest.total_bytes} bytes; this machine has {memory}")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A manifest and its bytes."""

    manifest: Manifest
    data: NDArray[np.uint8]

    def chunk(self, index: int) -> NDArray[np.uint8]:
        return self.data[self.manifest.chunk(index)]

    def tensors(self) -> dict[str, Tensor]:
        """Views of the bytes, by name."""
        flat = torch.from_numpy(self.data)
        return {t.name: _view(flat, t) for t in self.manifest.tensors}


def take_snapshot(
    version: PolicyVersion, tensors: Mapping[str, Tensor], *, run: str, dtype: str, chunk_bytes: int
) -> Snapshot:
    """Copies tensors to the host, floating point ones cast to `dtype`.

    Raises:
        ValueError: no tensor, or one of a dtype that has no name here.
    """
    if not tensors:
        raise ValueError(f"version {version} has no tensors to publish")
    entries, end = [], 0
    for name, tensor in tensors.items():
        kind = dtype if tensor.is_floating_point() else _NAMES.get(tensor.dtype)
        if kind is None:
            raise ValueError(f"tensor {name!r} is {tensor.dtype}; can be published: {sorted(DTYPES)}")
        entries.append(TensorEntry(name, kind, tuple(tensor.shape), end + -end % ALIGNMENT))
        end = entries[-1].offset + entries[-1].num_bytes
    flat = torch.zeros(end, dtype=torch.uint8)
    for entry, tensor in zip(entries, tensors.values(), strict=True):
        _view(flat, entry).copy_(tensor.detach())
    data = flat.numpy()
    starts = range(0, end, chunk_bytes)
    chunk_hashes = np.array([chunk_hash(data[start : start + chunk_bytes]) for start in starts], np.int64)
    manifest = Manifest(
        run=run,
        version=version,
        tensors=tuple(entries),
        total_bytes=end,
        chunk_bytes=chunk_bytes,
        hash=whole_hash(data),
        chunk_hashes=chunk_hashes,
    )
    return Snapshot(manifest, data)


def whole_hash(data: NDArray[np.uint8]) -> str:
    return xxhash.xxh3_128_hexdigest(data.data)


def chunk_hash(data: NDArray[np.uint8]) -> int:
    """xxh3-64 as a signed number: the wire has no unsigned one of that width."""
    digest = xxhash.xxh3_64_intdigest(data.data)
    return digest - 2**64 if digest >= 2**63 else digest


def _view(flat: Tensor, entry: TensorEntry) -> Tensor:
    return flat[entry.offset : entry.offset + entry.num_bytes].view(DTYPES[entry.dtype]).view(entry.shape)
