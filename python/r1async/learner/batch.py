"""From a `batch` message to a `Batch`, and from its ranges of rollouts to tensors. Nothing is copied on a CPU.

Shapes: n rollouts, T tokens with prompts, N completion tokens, R version runs.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from r1async.types import OBSERVED, Batch
from r1async.wire import DTYPES, Message, WireError

PART = "part:"
PER_TOKEN = {"token_ids": "i4", "behavior_logprobs": "f4"}
PER_ROLLOUT = {
    "prompt_lens": "i4",
    "advantages": "f4",
    "rewards": "f8",
    "groups": "i8",
    "rollouts": "i8",
    "finish_versions": "i4",
    "truncated": "u1",
}
PER_RUN = {"run_versions": "i4", "run_lengths": "i4", "over_age": "u1"}
OFFSETS = {"cu_seqlens": "i4", "cu_runs": "i4"}
_DTYPES = {name: DTYPES[code] for name, code in (PER_TOKEN | PER_ROLLOUT | PER_RUN | OFFSETS).items()}


def batch_from_message(message: Message) -> Batch:
    """The batch in a frame; its arrays are views that keep the frame alive.

    Raises:
        WireError: a field or column is missing, has another dtype, or the lengths do not add up.
    """
    header, columns = message.header, message.columns
    arrays = {name: _column(columns, name, dtype) for name, dtype in _DTYPES.items()}
    try:
        batch = Batch(
            step=header["step"],
            epoch=header["epoch"],
            part=header["part"],
            last=header["last"],
            **arrays,
            parts={name: _column(columns, PART + name, DTYPES["f4"]) for name in header["parts"]},
            micro_batches=tuple((int(start), int(stop)) for start, stop in header["micro_batches"]),
            total_rollouts=header["total_rollouts"],
            total_groups=header["total_groups"],
            total_completion_tokens=header["total_completion_tokens"],
            total_loss_tokens=header["total_loss_tokens"],
            temperature=header["temperature"],
        )
    except KeyError as error:
        raise WireError(f"batch has no field {error}") from error
    check_batch(batch)
    return batch


def _column(columns: dict[str, NDArray], name: str, dtype: np.dtype) -> NDArray:
    if name not in columns:
        raise WireError(f"batch has no column {name!r}; got {sorted(columns)}")
    column = columns[name]
    if column.dtype is not dtype and column.dtype != dtype:
        raise WireError(f"column {name!r} of a batch must be {dtype}, got {column.dtype}")
    return column


def without_truncated(batch: Batch) -> Batch:
    """The batch with the tokens of completions that were cut out of the loss (reward.truncated=mask).

    Like tokens over age they stay in the context and in the denominators of the loss. `total_loss_tokens` counts them
    still: it is over all ranks, and a rank knows only its own.
    """
    if not batch.truncated.any():
        return batch
    cut = np.repeat(batch.truncated, np.diff(batch.cu_runs))
    return replace(batch, over_age=batch.over_age | cut)


def check_batch(batch: Batch) -> None:
    """Lengths that contradict each other would train tokens under another rollout's advantage.

    Raises:
        WireError: naming the column, what it has and what it should have.
    """
    n, tokens, runs = len(batch.prompt_lens), len(batch.token_ids), len(batch.run_versions)
    for names, want in ((PER_TOKEN, tokens), (PER_ROLLOUT, n), (PER_RUN, runs), (OFFSETS, n + 1)):
        for name in names:
            column: NDArray = getattr(batch, name)
            if column.shape != (want,):
                raise WireError(f"column {name!r} of a batch must have {want} entries, got {column.shape}")
    for name, offsets, end in (("cu_seqlens", batch.cu_seqlens, tokens), ("cu_runs", batch.cu_runs, runs)):
        if offsets[0] != 0 or offsets[-1] != end or (offsets[1:] < offsets[:-1]).any():
            raise WireError(f"column {name!r} of a batch must rise from 0 to {end}, got {offsets[:3]}...{offsets[-1]}")
    if n and batch.prompt_lens.min() < 1:
        raise WireError("a rollout of a batch has no prompt: nothing predicts its first token")
    lengths, covered = completion_lengths(batch), int(batch.run_lengths.sum())
    if (n and lengths.min() < 0) or int(lengths.sum()) != covered:
        raise WireError(f"version runs cover {covered} completion tokens of {lengths.sum()}")
    flat = [edge for pair in batch.micro_batches for edge in pair]
    if flat != sorted(flat) or flat[:1] not in ([], [0]) or (flat and flat[-1] != n) or flat[1:-1:2] != flat[2::2]:
        raise WireError(f"micro-batches must split {n} rollouts in order, got {batch.micro_batches}")


def completion_lengths(batch: Batch) -> NDArray[np.int64]:
    """Completion tokens of each rollout, ``(n,)``."""
    lengths = np.subtract(batch.cu_seqlens[1:], batch.cu_seqlens[:-1], dtype=np.int64)
    lengths -= batch.prompt_lens
    return lengths


def token_staleness(batch: Batch) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Staleness of each completion token and whether it has a loss, ``(N,)`` each."""
    staleness = np.repeat(batch.step - batch.run_versions.astype(np.int64), batch.run_lengths)
    return staleness, np.repeat(batch.over_age == 0, batch.run_lengths) & sampled_tokens(batch)


def sampled_tokens(batch: Batch) -> NDArray[np.bool_]:
    """Completion tokens that the policy sampled, ``(N,)``; false on what a tool wrote."""
    lengths = np.diff(batch.cu_seqlens)
    places = np.arange(len(batch.token_ids)) - np.repeat(batch.cu_seqlens[:-1], lengths)
    return batch.behavior_logprobs[places >= np.repeat(batch.prompt_lens, lengths)] < OBSERVED


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatch:
    """One forward pass's rollouts on the learner's device. What follows from runs and lengths is derived there."""

    token_ids_T: Tensor
    cu_seqlens: Tensor
    """(n + 1,)"""
    prompt_lens_n: Tensor
    lengths_n: Tensor
    """Full completion lengths."""
    advantages_n: Tensor
    completion_T: Tensor
    """True on completion tokens."""
    behavior_logprobs_N: Tensor
    loss_mask_N: Tensor
    staleness_N: Tensor

    @property
    def rollouts(self) -> int:
        return len(self.lengths_n)


def micro_batch(batch: Batch, start: int, stop: int, device: torch.device) -> MicroBatch:
    """Rollouts `start` to `stop` (which may be none) as tensors."""
    with warnings.catch_warnings():
        # A frame is read-only, which torch cannot say of a tensor and so warns about; these are only read.
        warnings.simplefilter("ignore", UserWarning)
        return _micro_batch(batch, start, stop, device)


def _micro_batch(batch: Batch, start: int, stop: int, device: torch.device) -> MicroBatch:
    first, last = int(batch.cu_seqlens[start]), int(batch.cu_seqlens[stop])
    runs = slice(int(batch.cu_runs[start]), int(batch.cu_runs[stop]))
    cu_seqlens = _view(batch.cu_seqlens[start : stop + 1], device) - first
    prompt_lens_n = _view(batch.prompt_lens[start:stop], device)
    starts_n, sizes_n = cu_seqlens[:-1], cu_seqlens.diff()
    completion_T = torch.arange(last - first, device=device) >= (starts_n + prompt_lens_n).repeat_interleave(
        sizes_n, output_size=last - first
    )
    run_lengths_R = _view(batch.run_lengths[runs], device)
    num_tokens = int(batch.run_lengths[runs].sum())
    staleness_R = batch.step - _view(batch.run_versions[runs], device)
    behavior_logprobs_N = _view(batch.behavior_logprobs[first:last], device)[completion_T]
    # What a tool wrote is context: nobody sampled it, so there is no probability to make larger or smaller.
    sampled_N = behavior_logprobs_N < OBSERVED
    young_N = (_view(batch.over_age[runs], device) == 0).repeat_interleave(run_lengths_R, output_size=num_tokens)
    return MicroBatch(
        token_ids_T=_view(batch.token_ids[first:last], device),
        cu_seqlens=cu_seqlens,
        prompt_lens_n=prompt_lens_n,
        lengths_n=(sizes_n - prompt_lens_n).long(),
        advantages_n=_view(batch.advantages[start:stop], device),
        completion_T=completion_T,
        behavior_logprobs_N=behavior_logprobs_N.masked_fill(~sampled_N, 0.0),
        loss_mask_N=young_N & sampled_N,
        staleness_N=staleness_R.repeat_interleave(run_lengths_R, output_size=num_tokens),
    )


def _view(array: NDArray, device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device, non_blocking=True)
