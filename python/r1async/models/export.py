"""A model and its tokenizer written as an ordinary Hugging Face directory, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def export_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: str | Path,
    *,
    tensors: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
    beside: Mapping[str, Mapping[str, object]] | None = None,
) -> Path:
    """Writes config, weights and tokenizer beside ``directory``, then renames them into place.

    Args:
        directory: replaced if it exists; its parent is made if it does not.
        tensors: weights to write instead of the model's own (gathered from shards), by state-dict name.
        dtype: of the weights written; None keeps theirs.
        beside: JSON files to write into the directory, by name.

    Returns:
        The directory.
    """
    target = Path(directory)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        staging.chmod(0o777 & ~_umask())
        state = tensors if tensors is not None else model.state_dict()
        model.save_pretrained(
            staging, state_dict={name: tensor.to(dtype or tensor.dtype) for name, tensor in state.items()}
        )
        tokenizer.save_pretrained(staging)
        for name, content in (beside or {}).items():
            (staging / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        for file in staging.iterdir():
            _fsync(file)
        _fsync(staging)
        _replace(staging, target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    _fsync(target.parent)
    return target


def _replace(staging: Path, target: Path) -> None:
    """POSIX cannot rename over a full directory, so the old one steps aside first; both are whole all the time."""
    if not target.exists():
        staging.rename(target)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.replaced.", dir=target.parent))
    target.rename(aside / target.name)
    staging.rename(target)
    shutil.rmtree(aside)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
