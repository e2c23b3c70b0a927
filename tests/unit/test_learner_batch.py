"""From the bytes of a batch to tensors, and what is derived from them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from r1async.learner.batch import batch_from_message, micro_batch, token_staleness, without_truncated
from r1async.types import Batch
from r1async.wire import Message, WireError, pack, unpack

from tests.learner_batches import batch_frame, batch_message, make_batch, take

CPU = torch.device("cpu")


def test_a_batch_survives_the_wire_uncopied():
    batch = make_batch(step=3, max_staleness=2, over_age=1, micro_batches=2)
    message = batch_message(batch)
    got = batch_from_message(message)
    for name in Batch.__slots__:
        if name == "parts":
            assert {part: column.tolist() for part, column in got.parts.items()} == {
                part: column.tolist() for part, column in batch.parts.items()
            }
        else:
            np.testing.assert_array_equal(getattr(got, name), getattr(batch, name))
    assert got.token_ids is message.columns["token_ids"]


def test_tensors_of_a_micro_batch_share_the_frames_memory():
    batch = batch_from_message(batch_message(make_batch()))
    part = micro_batch(batch, 0, 8, CPU)
    assert part.token_ids_T.data_ptr() == batch.token_ids.ctypes.data


def test_what_follows_from_runs_and_lengths_is_derived():
    batch = make_batch(step=5, groups=1, group_size=3, prompt_len=2, lengths=[3, 1, 4])
    batch = replace(
        batch,
        run_versions=np.array([3, 5, 4, 2, 5], np.int32),
        run_lengths=np.array([2, 1, 1, 1, 3], np.int32),
        cu_runs=np.array([0, 2, 3, 5], np.int32),
        over_age=np.array([0, 0, 0, 1, 0], np.uint8),
    )
    part = micro_batch(batch, 1, 3, CPU)
    assert part.lengths_n.tolist() == [1, 4]
    assert part.cu_seqlens.tolist() == [0, 3, 9]
    assert part.completion_T.tolist() == [False, False, True, False, False, True, True, True, True]
    assert part.staleness_N.tolist() == [1, 3, 0, 0, 0]
    assert part.loss_mask_N.tolist() == [True, False, True, True, True]
    assert part.behavior_logprobs_N.tolist() == batch.behavior_logprobs[[7, 10, 11, 12, 13]].tolist()
    staleness, in_loss = token_staleness(batch)
    assert staleness.tolist() == [2, 2, 0, 1, 3, 0, 0, 0]
    assert in_loss.tolist() == [True, True, True, True, False, True, True, True]


def test_a_range_without_rollouts_has_no_tokens():
    part = micro_batch(make_batch(), 3, 3, CPU)
    assert part.rollouts == 0
    assert len(part.token_ids_T) == len(part.loss_mask_N) == 0


def test_a_share_keeps_the_totals_of_the_whole_batch():
    batch = make_batch(max_staleness=1)
    share = take(batch, [5, 1])
    assert share.total_loss_tokens == batch.total_loss_tokens
    assert micro_batch(share, 0, 2, CPU).lengths_n.tolist() == [
        micro_batch(batch, i, i + 1, CPU).lengths_n.item() for i in (5, 1)
    ]


def _changed(**changes: object) -> Message:
    header, columns = batch_frame(make_batch())
    for name, value in changes.items():
        if isinstance(value, np.ndarray):
            columns[name] = value
        else:
            header[name] = value
    return unpack(pack(header, columns))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"advantages": np.zeros(3, np.float32)}, "advantages"),
        ({"behavior_logprobs": np.zeros(1, np.float32)}, "behavior_logprobs"),
        ({"token_ids": np.zeros(4, np.int64)}, "token_ids"),
        ({"cu_seqlens": np.zeros(9, np.int32)}, "cu_seqlens"),
        ({"run_lengths": np.zeros(16, np.int32)}, "version runs cover 0"),
        ({"prompt_lens": np.zeros(8, np.int32)}, "no prompt"),
        ({"micro_batches": [[0, 3], [4, 8]]}, "micro-batches"),
        ({"micro_batches": [[0, 3]]}, "micro-batches"),
        ({"parts": ["accuracy", "format", "style"]}, "part:style"),
    ],
)
def test_columns_that_contradict_each_other_are_refused_by_name(changes, named):
    with pytest.raises(WireError, match=named):
        batch_from_message(_changed(**changes))


def test_a_missing_field_is_named():
    header, columns = batch_frame(make_batch())
    del header["temperature"]
    with pytest.raises(WireError, match="temperature"):
        batch_from_message(unpack(pack(header, columns)))


def test_tokens_of_cut_completions_leave_the_loss_and_stay_in_the_context():
    batch = make_batch(groups=1, group_size=3, prompt_len=2, lengths=[3, 1, 4])  # the last is the longest: cut
    masked = without_truncated(batch)
    part = micro_batch(masked, 0, 3, CPU)
    assert part.loss_mask_N.tolist() == [True] * 4 + [False] * 4
    assert part.lengths_n.tolist() == [3, 1, 4]
    assert masked.rewards is batch.rewards
    whole = replace(batch, truncated=np.zeros(3, np.uint8))
    assert without_truncated(whole) is whole


def test_tokens_over_age_stay_masked_beside_cut_completions():
    batch = make_batch(step=4, groups=1, group_size=2, lengths=[4, 6], max_staleness=2, over_age=0)
    masked = without_truncated(batch)
    assert (masked.over_age >= batch.over_age).all()
    assert masked.over_age[batch.cu_runs[1] :].all()
