"""Checkpoints: bit-exact resumption, refusals, pruning."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from r1async.config import LearnerConfig
from r1async.learner.checkpoint import (
    MARKER,
    CheckpointError,
    checkpoints,
    load_checkpoint,
    newest_checkpoint,
    prune,
    read_marker,
    save_checkpoint,
)
from r1async.learner.core import LearnerCore
from r1async.learner.loss import LossSettings

from tests.learner_batches import make_batch
from tests.tiny_models import tiny_model

LOSS = LossSettings(correction="behavior_clip", kl_coef=0.1, ref_refresh_steps=3)


def core_of(loss: LossSettings = LOSS, *, seed: int = 0, **model: object) -> LearnerCore:
    settings = LearnerConfig(lr=1e-3, schedule="cosine", warmup_steps=2)
    return LearnerCore(tiny_model(seed=seed, **{"hidden": 32, "mlp": 48, **model}), loss, settings, steps=12)


def losses(core: LearnerCore, steps: range) -> list[object]:
    return [core.step(make_batch(step=step, max_staleness=2, micro_batches=2))["loss"] for step in steps]


@pytest.mark.parametrize("tied", [True, False])
def test_a_run_cut_in_two_has_the_same_losses_bit_for_bit(tmp_path: Path, tied: bool):
    """Reference included: it was refreshed at step 3, before the cut, and is again at 6, after it."""
    whole = core_of(tied=tied)
    expected = losses(whole, range(8))
    first = core_of(tied=tied)
    got = losses(first, range(4))
    path = save_checkpoint(tmp_path, first, epoch=1)
    torch.manual_seed(99)
    second = core_of(seed=5, tied=tied)  # other weights: all must come from the checkpoint
    assert load_checkpoint(path, second).step == second.version == 4
    assert got + losses(second, range(4, 8)) == expected
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True))


def test_the_random_state_comes_back(tmp_path: Path):
    torch.manual_seed(1)
    path = save_checkpoint(tmp_path, core_of(), epoch=1)
    expected = torch.rand(3)
    load_checkpoint(path, core_of())
    assert torch.equal(torch.rand(3), expected)


def test_a_checkpoint_of_another_model_is_refused_with_both_names(tmp_path: Path):
    path = save_checkpoint(tmp_path, core_of(), epoch=1)
    other = core_of(layers=3)
    before = [parameter.clone() for parameter in other.model.parameters()]
    with pytest.raises(CheckpointError, match="another model") as refused:
        load_checkpoint(path, other)
    names = {f"qwen2 with {sum(p.numel() for p in core.model.parameters()):,}" for core in (core_of(), other)}
    assert len(names) == 2
    assert all(name in str(refused.value) for name in names)
    assert all(torch.equal(a, b) for a, b in zip(before, other.model.parameters(), strict=True))


def test_a_reference_that_is_not_there_is_named(tmp_path: Path):
    path = save_checkpoint(tmp_path, core_of(LossSettings()), epoch=1)
    with pytest.raises(CheckpointError, match="no reference model"):
        load_checkpoint(path, core_of())


def test_a_reference_that_is_not_needed_is_left(tmp_path: Path):
    path = save_checkpoint(tmp_path, core_of(), epoch=1)
    assert load_checkpoint(path, core_of(LossSettings())).reference


def test_a_folder_without_marker_is_not_a_checkpoint(tmp_path: Path):
    core = core_of(LossSettings())
    save_checkpoint(tmp_path, core, epoch=1)
    losses(core, range(1))
    torn = save_checkpoint(tmp_path, core, epoch=1)
    (torn / MARKER).unlink()
    assert newest_checkpoint(tmp_path) == tmp_path / "step-000000"


def test_torn_data_is_an_error_that_names_the_checkpoint(tmp_path: Path):
    path = save_checkpoint(tmp_path, core_of(), epoch=1)
    data = next(path.glob("*.distcp"))
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="step-000000"):
        load_checkpoint(path, core_of())


def test_a_marker_that_cannot_be_read_is_named(tmp_path: Path):
    path = save_checkpoint(tmp_path, core_of(), epoch=1)
    (path / MARKER).write_text(json.dumps({"format": 1}))
    with pytest.raises(CheckpointError, match=r"checkpoint\.json"):
        read_marker(path)


class _Hostile:
    def __reduce__(self):
        return print, ("this pickle has run code",)


def test_pickled_code_in_the_metadata_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = save_checkpoint(tmp_path, core_of(), epoch=1)
    (path / ".metadata").write_bytes(pickle.dumps(_Hostile()))
    with pytest.raises(CheckpointError, match=r"builtins\.print"):
        load_checkpoint(path, core_of())
    assert "run code" not in capsys.readouterr().out


def test_saving_over_a_checkpoint_of_the_same_step_replaces_it(tmp_path: Path):
    save_checkpoint(tmp_path, core_of(), epoch=1)
    path = save_checkpoint(tmp_path, core_of(seed=3), epoch=2)
    assert read_marker(path).epoch == 2
    assert list(checkpoints(tmp_path)) == [0]


def _empty(folder: Path, *steps: int) -> None:
    for step in steps:
        (folder / f"step-{step:06d}").mkdir()
        (folder / f"step-{step:06d}" / MARKER).write_text("{}")


def test_pruning_keeps_the_newest_and_what_the_buffer_has_committed(tmp_path: Path):
    _empty(tmp_path, 2, 4, 6, 8)
    (tmp_path / ".step-000005.saving").mkdir()
    prune(tmp_path, keep=2, committed=4)
    assert list(checkpoints(tmp_path)) == [4, 6, 8]
    assert not (tmp_path / ".step-000005.saving").exists()
