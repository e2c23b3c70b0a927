"""Learner ranks: what is the same with one of them and with many.

FSDP2 shards parameters, gradients and optimizer state, over gloo on CPUs and NCCL on GPUs. Every collective is
called by every rank in the same order; a rank without rollouts in a micro-batch runs a dummy through the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from r1async.models.loading import state_tensors
from r1async.weights.manifest import Rows


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among the learner's ranks. With one rank every method is the identity."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    publishing: dist.ProcessGroup | None = None
    """For the publishing threads alone, of CPU tensors; None with one rank."""

    @property
    def first(self) -> bool:
        """Rank 0 talks to the buffer about steps, serves weights and writes metrics."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Added up over ranks."""
        if self.world > 1:
            dist.all_reduce(values, dist.ReduceOp.SUM)
        return values

    def max(self, values: Tensor) -> Tensor:
        """The largest over ranks, entry by entry."""
        if self.world > 1:
            dist.all_reduce(values, dist.ReduceOp.MAX)
        return values

    def most(self, number: int) -> int:
        """The largest of the ranks' numbers, on every rank."""
        if self.world == 1:
            return number
        return int(self.max(torch.tensor([number], dtype=torch.int64, device=self.device)).item())

    def meet(self) -> None:
        """Until every rank is here."""
        self.most(0)

    def from_first(self, values: list[int]) -> list[int]:
        """Rank 0's numbers on every rank."""
        if self.world == 1:
            return values
        shared = torch.tensor(values, dtype=torch.int64, device=self.device)
        dist.broadcast(shared, 0)
        return shared.tolist()

    def rows(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        """The ranks' rows one after another; ranks may have different numbers of them."""
        if self.world == 1:
            return matrix
        counts = torch.zeros(self.world, dtype=torch.int64, device=self.device)
        counts[self.rank] = len(matrix)
        self.sum(counts)
        padded = torch.zeros((int(counts.max()), matrix.shape[1]), dtype=torch.float64, device=self.device)
        padded[: len(matrix)] = torch.from_numpy(matrix).to(self.device)
        gathered = [torch.empty_like(padded) for _ in range(self.world)]
        dist.all_gather(gathered, padded)
        parts = zip(gathered, counts.tolist(), strict=True)
        return np.concatenate([part[:count].cpu().numpy() for part, count in parts])


def join_ranks(rank: int, world: int, *, local_rank: int, timeout_s: float) -> Ranks:
    """Meets the other ranks where MASTER_ADDR and MASTER_PORT say; one rank meets nobody.

    Args:
        local_rank: number of this rank on its machine; picks the GPU.
        timeout_s: seconds a rank waits for the others in one collective before it fails.
    """
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world == 1:
        return Ranks(rank, world, device)
    backend, timeout = "nccl" if device.type == "cuda" else "gloo", timedelta(seconds=timeout_s)
    dist.init_process_group(backend, rank=rank, world_size=world, timeout=timeout)
    publishing = dist.new_group(timeout=timeout, backend="gloo")
    assert isinstance(publishing, dist.ProcessGroup)
    return Ranks(rank, world, device, publishing)


def leave_ranks(ranks: Ranks) -> None:
    if ranks.world > 1:
        dist.destroy_process_group()


def shard(model: PreTrainedModel, ranks: Ranks, *, trained: bool = True) -> None:
    """FSDP2 over all ranks: each decoder layer is gathered when it is needed, the rest stays with the root.

    FSDP leaves the root gathered for the backward pass; where none follows, it must not, or it would not see
    that its shards have changed.
    """
    if ranks.world == 1:
        return
    mesh = init_device_mesh(ranks.device.type, (ranks.world,))
    for layer in _layers(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=None if trained else True)


def _layers(model: PreTrainedModel) -> list[nn.Module]:
    """The repeated blocks: the classes that transformers itself never splits over devices."""
    names = set(model._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def held_rows(model: PreTrainedModel, ranks: Ranks) -> list[Rows]:
    """A copy of this rank's rows of every tensor, in the order of the state dict; no rank waits for another.

    What is not sharded is rank 0's to tell. FSDP2 deals out rows in equal runs, of which the last ones may be short.
    """
    found = []
    for name, tensor in state_tensors(model).items():
        if not isinstance(tensor, DTensor):
            if ranks.first:
                found.append(Rows(name, tensor.clone()))
            continue
        if [placement.is_shard(0) for placement in tensor.placements] != [True]:
            raise ValueError(f"tensor {name!r} is placed {tensor.placements}; ranks publish rows")
        run = -(-tensor.shape[0] // ranks.world)
        first, local = ranks.rank * run, tensor.to_local()
        assert len(local) == max(0, min(run, tensor.shape[0] - first)), (name, local.shape)
        if len(local) or ranks.first:
            found.append(Rows(name, local.clone(), first))
    return found


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered from all ranks (a collective), any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`whole` for each, in the order of the mapping, which is the same on every rank."""
    return {name: whole(tensor) for name, tensor in tensors.items()}
