"""Weights that go from the learner's device straight into an engine, by the engine's own means (NCCL, CUDA IPC).

What travels on the weights socket is the control of it. A receiver that may take versions so gets the manifest as ever
and does not fetch; the engine's adapter then asks for the version (`Direct.ask`), is told what to say to its engine,
and both sides meet in the engine's group. One group for each receiver: a slow or dead engine holds up nobody else. What
the learner sends are the bytes that the manifest has hashes of. An engine loads them as they come, so nobody compares
hashes at its end: what proves it is the canary. Every version can also be had by the socket, with hashes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from r1async.types import PolicyVersion
from r1async.weights.manifest import Manifest, TensorEntry

Way = Literal["vllm-nccl", "vllm-ipc", "vllm-sparse_nccl", "sglang-nccl"]
"""An engine, and its own way of taking weights."""
WAYS: tuple[Way, ...] = get_args(Way)

BUCKET_BYTES = 2**30
"""Of tensors that travel together, at most, unless one tensor is larger; vLLM packs as much by default."""


class DirectError(RuntimeError):
    """The learner does not send this version this way. Nothing has begun, and the version can be had by the socket."""


@dataclass(frozen=True, slots=True)
class Meeting:
    """What the learner says before it sends."""

    join: Mapping[str, object] | None
    """Where the engine joins the learner's group, and as whom; None: it is in it."""
    update: Mapping[str, object]
    """What the engine has to be told of this update, besides names, dtypes and shapes."""


@dataclass(frozen=True, slots=True)
class Direct:
    """A version that is not here, and that an engine may take itself; an item of the generator's inbox."""

    version: PolicyVersion
    hash: str
    tensors: tuple[TensorEntry, ...]
    """Whole tensors, in the order in which they travel."""
    send: Callable[[Mapping[str, object], float], Mapping[str, object]]
    """Asks the learner and waits for its answer, so many seconds at most."""

    def ask(
        self, way: Way, *, base: PolicyVersion | None, workers: int, device: str, fresh: bool, deadline_s: float
    ) -> Meeting:
        """Has the learner send this version. It begins when the engine joins in.

        Args:
            way: the engine's.
            base: what the engine serves; None if that is not known.
            workers: processes of the engine that take part.
            device: cpu or cuda, where the engine's weights are.
            fresh: this engine is in no group of the learner's yet.
            deadline_s: for the answer.

        Raises:
            DirectError: it does not.
        """
        asked = {
            "version": list(self.version),
            "way": way,
            "base": None if base is None else list(base),
            "workers": workers,
            "device": device,
            "fresh": fresh,
        }
        answer = self.send(asked, deadline_s)
        match answer:
            case {"error": str(error)}:
                raise DirectError(error)
            case {"join": None | dict() as join, "update": dict(update)}:
                return Meeting(join, update)
            case _:
                raise DirectError(f"the learner answered {sorted(answer)}")


def whole_tensors(manifest: Manifest) -> tuple[TensorEntry, ...]:
    """The tensors of a version, the rows that ranks publish each by itself put together."""
    found: list[TensorEntry] = []
    for entry in manifest.tensors:
        if entry.first_row == 0:
            found.append(entry)
            continue
        before = found.pop()
        shape = (before.shape[0] + entry.shape[0], *entry.shape[1:])
        found.append(TensorEntry(entry.name, entry.dtype, shape, ""))
    return tuple(found)


def buckets(tensors: Sequence[TensorEntry], limit: int = BUCKET_BYTES) -> Iterator[list[TensorEntry]]:
    """The tensors in runs of one dtype that travel as one piece each; both ends cut alike."""
    bucket: list[TensorEntry] = []
    size = 0
    for tensor in tensors:
        if bucket and (bucket[0].dtype != tensor.dtype or size + tensor.num_bytes > limit):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.num_bytes
    if bucket:
        yield bucket
