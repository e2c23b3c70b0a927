"""Versions into bytes for a receiver, and back: encode, merge, decode. No sockets, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from r1async import _core
from r1async.types import PolicyVersion
from r1async.weights.manifest import (
    Base,
    Manifest,
    Part,
    Snapshot,
    TensorEntry,
    layout_of,
    snapshot_of,
    version_hash,
)

WORTH = 0.5
"""Share of a version's bytes above which a delta may be larger than the version by itself."""


class PackageError(ValueError):
    """A package that does not lead to the version it names: from another base, or to other bytes."""


Encoded = tuple[str, NDArray[np.uint8], int]
"""Codec, payload, and values that changed, of a tensor."""


@dataclass(frozen=True, slots=True)
class Package:
    """A manifest and its bytes."""

    manifest: Manifest
    data: NDArray[np.uint8]

    def chunk(self, index: int) -> NDArray[np.uint8]:
        return self.data[self.manifest.chunk(index)]


def encode(snapshot: Snapshot, base: Snapshot | None, *, run: str, chunk_bytes: int, threads: int) -> Package:
    """A version for those who have `base`, or by itself. Tensors that are others than the base's: by itself."""
    if base is not None and not snapshot.has_tensors_of(base):
        base = None
    encoded = _core.weights_encode(snapshot.data, None if base is None else base.data, snapshot.layout, threads)
    return assemble(run, snapshot.version, base and base.base, snapshot.entries, encoded, chunk_bytes)


def merge(first: Package, second: Package, *, threads: int) -> Package:
    """One package that leads from the first's base to the second's version; neither version is needed.

    Raises:
        PackageError: the second does not follow the first.
    """
    one, two = first.manifest, second.manifest
    if two.base is None:
        return second
    if two.base != Base(one.version, one.hash):
        raise PackageError(f"a delta from {two.base.version} does not follow version {one.version}")
    layout, _ = layout_of(two.tensors)
    encoded = _core.weights_merge(layout, one.places(), first.data, two.places(), second.data, threads)
    return assemble(two.run, two.version, one.base, two.tensors, encoded, two.chunk_bytes)


def decode(package: Package, base: Snapshot | None, shadow: NDArray[np.uint8] | None, *, threads: int) -> Snapshot:
    """The version, every tensor's hash verified. `base` is only read.

    Args:
        package: its chunks have the manifest's checksums.
        base: what we have.
        shadow: a buffer that may be overwritten, of any size; None: a new one is made.
        threads: that decode at most.

    Raises:
        PackageError: we do not have its base, bytes that no encoder made, or another hash than the manifest's.
    """
    manifest = package.manifest
    layout, num_bytes = layout_of(manifest.tensors)
    if shadow is None or len(shadow) != num_bytes:
        shadow = np.zeros(num_bytes, np.uint8)
    if manifest.base is not None:
        if base is None or base.base != manifest.base or not base.has_tensors_of(manifest):
            have = "nothing" if base is None else f"{base.version} ({base.hash})"
            wanted = f"{manifest.base.version} ({manifest.base.hash})"
            raise PackageError(f"version {manifest.version} comes as a delta from {wanted}, we have {have}")
        np.copyto(shadow, base.data)
    try:
        hashes = _core.weights_decode(shadow, layout, manifest.places(), package.data, threads)
    except ValueError as error:
        raise PackageError(f"version {manifest.version}: {error}") from error
    for tensor, digest in zip(manifest.tensors, hashes, strict=True):
        if digest != tensor.hash:
            text = f"tensor {tensor.name!r} of version {manifest.version} has hash {digest}, not {tensor.hash}"
            raise PackageError(text)
    return snapshot_of(manifest.version, manifest.tensors, shadow, hashes)


def assemble(
    run: str,
    version: PolicyVersion,
    base: Base | None,
    tensors: Sequence[TensorEntry],
    encoded: Sequence[Encoded],
    chunk_bytes: int,
) -> Package:
    """A package of tensors that are encoded."""
    data = np.concatenate([payload for _, payload, _ in encoded])
    starts = range(0, len(data), chunk_bytes)
    manifest = Manifest(
        run=run,
        version=version,
        base=base,
        tensors=tuple(tensors),
        parts=tuple(Part(codec, len(payload)) for codec, payload, _ in encoded),
        changed=sum(changed for _, _, changed in encoded),
        hash=version_hash(tensors),
        chunk_bytes=chunk_bytes,
        chunk_crcs=np.array([_core.crc32c(data[start : start + chunk_bytes]) for start in starts], np.int64),
    )
    return Package(manifest, data)
