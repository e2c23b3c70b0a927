"""What vLLM's own weight-transfer backends are told of weights that the learner sends."""

from __future__ import annotations

from collections.abc import Mapping

from r1async.config import DirectMedium
from r1async.weights.direct import Direct, Meeting, Way
from r1async.weights.direct_ways import pickled_handles

WAYS: Mapping[DirectMedium, Way] = {
    "nccl": "vllm-nccl",
    "ipc": "vllm-ipc",
    "sparse_nccl": "vllm-sparse_nccl",
}


def update_info(medium: DirectMedium, direct: Direct, meeting: Meeting) -> Mapping[str, object] | None:
    """The fields of vLLM's update info; None if no value has changed, which vLLM has no message for.

    Raises:
        DirectError: handles of shared memory that are none.
    """
    if medium == "sparse_nccl":
        return meeting.update if meeting.update["names"] else None
    update = {
        "names": [tensor.name for tensor in direct.tensors],
        "dtype_names": [tensor.dtype for tensor in direct.tensors],
        "shapes": [list(tensor.shape) for tensor in direct.tensors],
    }
    if medium == "nccl":
        return update
    handles = meeting.update["handles"]
    assert isinstance(handles, list)
    return {**update, "ipc_handles_pickled": pickled_handles(handles)}
