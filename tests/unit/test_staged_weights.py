"""The file that weights are handed over in, read by the library that engines read it with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import xxhash
from r1async.generator.staged_weights import stage
from safetensors.torch import load_file


def test_the_file_holds_what_was_handed_in(tmp_path: Path):
    tensors = {
        "a": torch.randn(3, 5),
        "half": torch.randn(7).bfloat16(),
        "none": torch.empty(0, 4),
        "turned": torch.randn(4, 6).t(),
        "scalar": torch.tensor(2.0),
    }
    staged = stage(tmp_path / "file", tensors)
    read = load_file(staged.path)
    assert read.keys() == tensors.keys() == staged.hashes.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)
    assert staged.hashes["a"] == xxhash.xxh3_128_hexdigest(tensors["a"].numpy().tobytes())


def test_another_dtype_is_refused_by_name(tmp_path: Path):
    with pytest.raises(ValueError, match=r"'a' must be .*float32.*, got torch.int64"):
        stage(tmp_path / "file", {"a": torch.ones(2, dtype=torch.int64)})
