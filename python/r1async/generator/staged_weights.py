"""A set of weights as a safetensors file in memory, with the hash of every tensor, for an engine in another process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash
from torch import Tensor

_DTYPES: Mapping[torch.dtype, str] = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_ALIGNMENT = 64
"""Bytes of which the header's length is a multiple: a mapped tensor begins where vector loads like it."""


@dataclass(frozen=True, slots=True)
class Staged:
    path: Path
    hashes: Mapping[str, str]
    """xxh3-128 of each tensor's bytes, in hexadecimal."""


def stage(path: Path, tensors: Mapping[str, Tensor]) -> Staged:
    """Writes the file, tensor by tensor, and hashes what was handed in, not what is in the file.

    Raises:
        ValueError: a dtype that is not float32, bfloat16 or float16.
        OSError: there is no room.
    """
    header, end = {}, 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise ValueError(f"tensor {name!r} must be {', '.join(map(str, _DTYPES))}, got {tensor.dtype}")
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    head = json.dumps(header).encode()
    head += b" " * (-(8 + len(head)) % _ALIGNMENT)
    hashes = {}
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for name, tensor in tensors.items():
            data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            hashes[name] = xxhash.xxh3_128_hexdigest(data)
            file.write(data)
    return Staged(path, hashes)
