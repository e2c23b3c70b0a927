"""The ways in which a paused SGLang server is given weights."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

from r1async.weights.direct_ways import GROUP
from r1async.weights.manifest import TensorEntry

Control = Callable[[str, Mapping[str, object]], Awaitable[None]]
"""Posts a body to a path; raises `EngineError` if the server says no."""
Load = Callable[[str, bool], Awaitable[None]]
"""Has the server load weights, under a label, and drop its cache or not."""

_ALWAYS: Mapping[str, object] = {"abort_all_requests": False, "torch_empty_cache": False}


def from_directory(control: Control, directory: str) -> Load:
    """Of a Hugging Face directory."""

    async def load(label: str, flush: bool) -> None:
        update = {"model_path": directory, "load_format": "auto", "weight_version": label, "flush_cache": flush}
        await control("/update_weights_from_disk", {**update, **_ALWAYS})

    return load


def from_learner(control: Control, pieces: Sequence[Sequence[TensorEntry]], *, session: bool) -> Load:
    """Of the learner's broadcasts, one for each piece.

    Only the last has the label and the flush: before it the model is of two versions.

    Args:
        control: of the server.
        pieces: as the learner cuts them.
        session: whether the update stands between a begin and an end.
    """

    async def load(label: str, flush: bool) -> None:
        if session:
            await control("/begin_weight_update", {})
        try:
            for number, piece in enumerate(pieces, 1):
                last = number == len(pieces)
                update = {
                    "names": [tensor.name for tensor in piece],
                    "dtypes": [tensor.dtype for tensor in piece],
                    "shapes": [list(tensor.shape) for tensor in piece],
                    "group_name": GROUP,
                    "load_format": "flattened_bucket",
                    "flush_cache": flush and last,
                }
                labelled = {"weight_version": label} if last else {}
                await control("/update_weights_from_distributed", {**update, **labelled, **_ALWAYS})
        finally:
            if session:
                await control("/end_weight_update", {})

    return load
