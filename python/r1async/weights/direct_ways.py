"""The learner's end of each engine's own way of taking weights. Which calls the engine gets: generator/.

vLLM's are its own trainer-side functions, so its package has to be there where the learner's rank 0 runs. SGLang's is a
group of torch.distributed's under a name; here its backend is made directly, since torch has no public way to a group
with processes that are not among one's own ranks.
"""

# vLLM is not among our own packages, and torch's stores are documented but not in its list of names.
# pyright: reportMissingImports=false, reportPrivateImportUsage=false

from __future__ import annotations

import base64
import math
import pickle
import socket
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor

from r1async.weights.direct import DirectError, Meeting, Way, buckets
from r1async.weights.manifest import DTYPES, Snapshot, TensorEntry

GROUP = "r1async"
"""Of SGLang's group; in its store keys are under it."""
_INDEX_LIMIT = 2**31
"""vLLM's sparse patches have 32-bit indices."""


class Sender(Protocol):
    """One engine's end, kept from version to version. Calls come from one thread at a time."""

    def prepare(self, snapshot: Snapshot, base: Snapshot | None) -> Meeting:
        """What the engine has to know before `send`.

        Raises:
            DirectError: this version cannot go this way.
        """
        ...

    def send(self) -> None:
        """Sends what was prepared; returns when it has gone. The engine joins in meanwhile."""
        ...

    def close(self) -> None:
        """Leaves the group; from any thread, also while `send` hangs in it."""
        ...


def make_sender(way: Way, *, address: str, workers: int, device: str, timeout_s: float) -> Sender:
    """The end for an engine of so many workers.

    Args:
        way: the engine's.
        address: of this machine, as the engine's reaches it.
        workers: processes of the engine.
        device: where its weights are; on a GPU the learner needs one too.
        timeout_s: seconds that the engine may take to join, or to take its part.

    Raises:
        DirectError: what that needs is not here.
    """
    if way != "sglang-nccl" and device != "cuda":
        raise DirectError(f"{way} moves weights between GPUs; the engine's are on its {device}")
    if device == "cuda" and not torch.cuda.is_available():
        raise DirectError(f"{way}: the engine's weights are on a GPU, and the learner's rank 0 has none")
    match way:
        case "sglang-nccl":
            return Collective(address, workers, device, timeout_s)
        case "vllm-nccl":
            return VllmNccl(address, workers, device)
        case "vllm-sparse_nccl":
            return VllmSparse(address, workers, device)
        case "vllm-ipc":
            return VllmIpc()


def free_port(address: str) -> int:
    """A port that nobody listens on at the moment."""
    with socket.create_server((address, 0)) as server:
        return server.getsockname()[1]


class Collective:
    """SGLang's `update_weights_from_distributed`: one broadcast for each bucket, over NCCL between GPUs, else gloo."""

    def __init__(self, address: str, workers: int, device: str, timeout_s: float) -> None:
        self._address, self._world, self._device = address, workers + 1, device
        self._timeout = timedelta(seconds=timeout_s)
        self._port = 0
        self._group: TorchGroup | None = None
        self._snapshot: Snapshot | None = None

    def prepare(self, snapshot: Snapshot, base: Snapshot | None) -> Meeting:
        self._snapshot = snapshot
        if self._group is not None:
            return Meeting(None, {})
        self._port = free_port(self._address)
        join = {
            "master_address": self._address,
            "master_port": self._port,
            "rank_offset": 1,
            "world_size": self._world,
            "group_name": GROUP,
            "backend": "nccl" if self._device == "cuda" else "gloo",
        }
        return Meeting(join, {})

    def send(self) -> None:
        snapshot, self._snapshot = self._snapshot, None
        assert snapshot is not None
        group = self._group = self._group or self._join()
        tensors, options = snapshot.tensors(), dist.BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        for bucket in buckets(entries_of(snapshot)):
            flat = torch.cat([tensors[each.name].reshape(-1).view(torch.uint8) for each in bucket]).to(self._device)
            group.broadcast([flat], options).wait()
            if flat.is_cuda:
                torch.cuda.current_stream().synchronize()  # `wait` has only queued it behind the broadcast

    def close(self) -> None:
        group, self._group = self._group, None
        if group is not None:
            group.abort() if self._device == "cuda" else group.shutdown()

    def _join(self) -> TorchGroup:
        store = dist.TCPStore(self._address, self._port, self._world, is_master=True, timeout=self._timeout)
        # As torch.distributed nests them for the group that SGLang makes.
        named = dist.PrefixStore(f"{self._device}/", dist.PrefixStore(f"{GROUP}/", dist.PrefixStore(GROUP, store)))
        if self._device == "cuda":
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = self._timeout
            return cast(TorchGroup, dist.ProcessGroupNCCL(named, 0, self._world, options))
        return cast(TorchGroup, dist.ProcessGroupGloo(named, 0, self._world, self._timeout))


class TorchGroup(Protocol):
    """What torch's annotations leave out of its backends."""

    def broadcast(self, tensors: list[Tensor], options: dist.BroadcastOptions) -> dist.Work: ...

    def abort(self) -> None: ...

    def shutdown(self) -> None: ...


class VllmNccl:
    """vLLM's `nccl`: whole tensors in packed buffers, by its own producer."""

    def __init__(self, address: str, workers: int, device: str) -> None:
        self._link, self._device = VllmLink(address, workers), device
        self._snapshot: Snapshot | None = None

    def prepare(self, snapshot: Snapshot, base: Snapshot | None) -> Meeting:
        self._snapshot = snapshot
        return Meeting(self._link.join(packed=True), {})

    def send(self) -> None:
        from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_producer

        snapshot, self._snapshot = self._snapshot, None
        assert snapshot is not None
        group = self._link.group()
        packed_nccl_broadcast_producer(
            iterator=on_device(snapshot, self._device), group=group, src=0, post_iter_func=lambda named: named[1]
        )

    def close(self) -> None:
        self._link.close()


class VllmSparse:
    """vLLM's `sparse_nccl`: for each tensor that changed, the indices of changed values and the values."""

    def __init__(self, address: str, workers: int, device: str) -> None:
        self._link, self._device = VllmLink(address, workers), device
        self._patches: list[tuple[Tensor, Tensor]] = []

    def prepare(self, snapshot: Snapshot, base: Snapshot | None) -> Meeting:
        if base is None:
            raise DirectError(f"version {snapshot.version}: what the engine has is not here to compare with")
        patches = changed_values(snapshot, base)
        self._patches = [(indices, values) for _, indices, values in patches]
        update = {
            "names": [entry.name for entry, _, _ in patches],
            "dtype_names": [entry.dtype for entry, _, _ in patches],
            "shapes": [list(entry.shape) for entry, _, _ in patches],
            "num_updates_list": [len(indices) for _, indices, _ in patches],
        }
        return Meeting(self._link.join(packed=False), update)

    def send(self) -> None:
        patches, self._patches = self._patches, []
        group = self._link.group()
        for patch in patches:
            for part in patch:
                sent = part.to(self._device)
                group.broadcast(sent, src=0)  # on the current stream
                if sent.is_cuda:
                    torch.cuda.current_stream().synchronize()  # its memory is given back after it

    def close(self) -> None:
        self._link.close()


class VllmIpc:
    """vLLM's `ipc`: the engine opens the learner's own memory, on the GPU that both use."""

    def __init__(self) -> None:
        self._shared: list[Tensor] = []

    def prepare(self, snapshot: Snapshot, base: Snapshot | None) -> Meeting:
        from torch.multiprocessing.reductions import reduce_tensor

        uuid = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
        # Those of the version before have been loaded: the engine asks again only after that.
        self._shared, handles = [], []
        for _, tensor in on_device(snapshot, "cuda"):
            self._shared.append(tensor)
            _, arguments = reduce_tensor(tensor)
            handles.append({uuid: handle_fields(arguments)})
        torch.cuda.current_stream().synchronize()
        return Meeting({"packed": False}, {"handles": handles})

    def send(self) -> None:
        """Nothing: the engine reads."""

    def close(self) -> None:
        self._shared = []


class VllmLink:
    """The group of the learner's rank 0 and an engine's workers, as vLLM makes it."""

    def __init__(self, address: str, workers: int) -> None:
        self._address, self._world = address, workers + 1
        self._port = 0
        self._group: VllmGroup | None = None

    def join(self, *, packed: bool) -> Mapping[str, object] | None:
        """For vLLM's `init_weight_transfer_engine`; None if it is in."""
        if self._group is not None:
            return None
        self._port = free_port(self._address)
        return {
            "master_address": self._address,
            "master_port": self._port,
            "rank_offset": 1,
            "world_size": self._world,
            "packed": packed,
        }

    def group(self) -> VllmGroup:
        """The group; meets the engine's workers in it the first time."""
        group = self._group
        if group is None:
            from vllm.distributed.weight_transfer.nccl_common import trainer_init

            where = {"master_address": self._address, "master_port": self._port, "world_size": self._world}
            group = self._group = cast(VllmGroup, trainer_init(where))
        return group

    def close(self) -> None:
        group, self._group = self._group, None
        if group is not None:
            group.destroy()


class VllmGroup(Protocol):
    """vLLM's PyNcclCommunicator."""

    def broadcast(self, tensor: Tensor, src: int, stream: object = None) -> None: ...

    def destroy(self) -> None: ...


def entries_of(snapshot: Snapshot) -> list[TensorEntry]:
    """Whole tensors in the order of the manifest, as `direct.whole_tensors` has them at the other end."""
    return [
        TensorEntry(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), "")
        for name, tensor in snapshot.tensors().items()
    ]


def on_device(snapshot: Snapshot, device: str) -> Iterator[tuple[str, Tensor]]:
    """One tensor after another, so that the device holds few at a time."""
    for name, tensor in snapshot.tensors().items():
        yield name, tensor.to(device)


def changed_values(snapshot: Snapshot, base: Snapshot) -> list[tuple[TensorEntry, Tensor, Tensor]]:
    """Of each tensor that differs: flat indices (int32) and values. Bits are compared, so -0 is another value than 0.

    Raises:
        DirectError: other tensors; a value that became NaN, which vLLM reads as unchanged; a tensor too large to index.
    """
    if not snapshot.has_tensors_of(base):
        raise DirectError(f"version {snapshot.version} has other tensors than {base.version}")
    before, found = base.tensors(), []
    for entry, tensor in zip(entries_of(snapshot), snapshot.tensors().values(), strict=True):
        if math.prod(entry.shape) >= _INDEX_LIMIT:
            raise DirectError(f"tensor {entry.name!r} has 2^31 values or more: too many for vLLM's sparse patches")
        new, old = (_bits(each) for each in (tensor, before[entry.name]))
        indices = (new != old).nonzero().reshape(-1)
        if not len(indices):
            continue
        values = tensor.reshape(-1)[indices]
        if not tensor.is_floating_point() or bool(values.isnan().any()):
            raise DirectError(f"tensor {entry.name!r} has changes that vLLM's sparse patches cannot express")
        found.append((entry, indices.to(torch.int32), values))
    return found


def _bits(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize])


def handle_fields(arguments: tuple) -> list[object]:
    """What torch needs to open a CUDA tensor of another process, as msgpack has it: no pickle crosses our sockets.

    Inverse: `handle_arguments`. The fields are those of `torch.multiprocessing.reductions.rebuild_cuda_tensor`.
    """
    cls, size, stride, offset, storage, dtype, *rest = arguments
    if cls is not Tensor or storage is not torch.storage.TypedStorage:
        raise DirectError(f"a tensor of class {cls.__name__} in a {storage.__name__} cannot be shared")
    return [list(size), list(stride), offset, str(dtype).removeprefix("torch."), *rest]


def handle_arguments(fields: list) -> tuple:
    """Raises:
    DirectError: not what `handle_fields` gives.
    """
    match fields:
        case [list(size), list(stride), int(offset), str(dtype), *rest] if dtype in DTYPES and len(rest) == 9:
            return (Tensor, torch.Size(size), tuple(stride), offset, torch.storage.TypedStorage, DTYPES[dtype], *rest)
        case _:
            raise DirectError(f"a shared tensor has {len(fields)} fields, wanted 13")


def pickled_handles(handles: list) -> str:
    """As vLLM's `ipc_handles_pickled` wants them, which it reads from whoever may call it."""
    opened = [{uuid: handle_arguments(fields) for uuid, fields in each.items()} for each in handles]
    return base64.b64encode(pickle.dumps(opened)).decode()
