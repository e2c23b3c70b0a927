"""Versions that learner ranks publish in shards: what rank 0 makes of them. The ranks themselves: test_learner.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from r1async.types import PolicyVersion
from r1async.weights.manifest import Rows, TensorEntry, layout_of
from r1async.weights.package import PackageError
from r1async.weights.publisher import Publisher
from r1async.weights.shards import Shard, ShardEncoder, in_order
from torch import Tensor

V0, V1 = PolicyVersion(1, 0), PolicyVersion(1, 1)


def tensors(step: int) -> dict[str, Tensor]:
    """Of 7 rows each rank of three has 3, 3 and 1; of one row the first has it and the others nothing."""
    weight = torch.linspace(-1, 1, 35).reshape(7, 5)
    weight[::3] += step * 0.01
    return {
        "weight": weight,
        "norm": torch.full((1,), 1.0 + step),
        "count": torch.tensor([step, 2, 3], dtype=torch.int64),
    }


def rows_of(whole: Mapping[str, Tensor], rank: int) -> list[Rows]:
    """As FSDP deals them out to three ranks; `count` is not sharded, so rank 0 tells it."""
    weight = Rows("weight", whole["weight"][3 * rank : 3 * rank + 3], 3 * rank)
    return [weight, Rows("norm", whole["norm"]), Rows("count", whole["count"])] if rank == 0 else [weight]


class Learner:
    """Three ranks' encoders and rank 0's publisher, without the wire between them."""

    def __init__(self, endpoint: str) -> None:
        self.encoders = [ShardEncoder(dtype="bfloat16", threads=1, deltas=True) for _ in range(3)]
        self.publisher = Publisher(endpoint, run="run", dtype="bfloat16", chunk_bytes=1024, deadline_s=10.0)

    def publish(self, version: PolicyVersion, whole: Mapping[str, Tensor]) -> list[Shard]:
        shards = [encoder.encode(version, rows_of(whole, rank)) for rank, encoder in enumerate(self.encoders)]
        entries, encoded = in_order(shards)
        self.publisher.publish_encoded(version, entries, encoded, delta=shards[0].delta, begun=0.0)
        return shards


def test_shards_are_put_together_to_the_whole_version_and_the_next_are_deltas(tmp_path: Path) -> None:
    learner = Learner(f"ipc://{tmp_path}/w")
    with learner.publisher as publisher:
        assert not any(shard.delta for shard in learner.publish(V0, tensors(0)))
        assert all(shard.delta for shard in learner.publish(V1, tensors(1)))
        served = publisher._store.newest()
        figures = publisher.figures()
    assert served is not None
    for name, tensor in tensors(1).items():
        wanted = tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
        assert torch.equal(served.tensors()[name], wanted), name
    # Rows 0, 3 and 6 of five values, the norm and one count: 17 of 39 values.
    assert figures["push/density"] == pytest.approx(17 / 39)


def test_rows_that_do_not_lead_to_their_hashes_are_never_served(tmp_path: Path) -> None:
    """A rank whose version before was another one: its delta leads elsewhere."""
    learner = Learner(f"ipc://{tmp_path}/w")
    with learner.publisher as publisher:
        learner.publish(V0, tensors(0))
        learner.encoders[1].encode(V1, rows_of(tensors(1), 1))  # so nothing changed, it will say
        with pytest.raises(PackageError, match="tensor 'weight' of version 1@1 has hash"):
            learner.publish(V1, tensors(1))
        assert publisher.versions() == [V0]


def test_rows_of_another_rank_must_follow() -> None:
    def shard(first_row: int, rows: int) -> Shard:
        return Shard(
            [TensorEntry("w", "bfloat16", (rows, 2), "h", first_row)], [("raw", np.empty(0, np.uint8), 0)], delta=False
        )

    entries, _ = in_order([shard(0, 3), shard(3, 1)])
    assert [entry.first_row for entry in entries] == [0, 3]
    with pytest.raises(RuntimeError, match="rows 4 and on of tensor 'w' do not follow"):
        in_order([shard(0, 3), shard(4, 1)])
    with pytest.raises(RuntimeError, match="rows 3 and on of tensor 'w' do not follow"):
        in_order([shard(3, 1)])


def test_rows_lie_without_a_gap_and_the_next_tensor_is_aligned() -> None:
    """Three bf16 rows of five are 30 bytes, the next rank's three begin there; 64 is the next tensor's place."""
    rows = [TensorEntry("w", "bfloat16", (3, 5), "", first) for first in (0, 3)]
    layout, size = layout_of([*rows, TensorEntry("b", "float32", (2,), "")])
    assert layout == [("bfloat16", 0, 30), ("bfloat16", 30, 30), ("float32", 64, 8)]
    assert size == 72
