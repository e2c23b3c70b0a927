"""Weights laid out as a Hugging Face directory, for an engine whose process reads them from there."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor


class Staging:
    """Directories in one folder: what is served, and what is about to be.

    Args:
        model_path: Hugging Face directory of the model.
        folder: where they are made.
        dtype: of the tensors written.
    """

    def __init__(self, model_path: Path, folder: Path, dtype: torch.dtype) -> None:
        self._config = model_path / "config.json"
        self._folder = folder
        self._dtype = dtype
        self._number = 0

    def write(self, tensors: Mapping[str, Tensor]) -> Path:
        """A directory of these, which are checked already."""
        self._number += 1
        directory = self._folder / f"weights-{self._number}"
        directory.mkdir()
        shutil.copyfile(self._config, directory / "config.json")
        written = {name: tensor.detach().to("cpu", self._dtype).contiguous() for name, tensor in tensors.items()}
        save_file(written, directory / "model.safetensors", metadata={"format": "pt"})
        return directory

    def keep_only(self, directory: Path) -> None:
        """Removes every other directory made here."""
        for other in self._folder.glob("weights-*"):
            if other != directory:
                shutil.rmtree(other)
