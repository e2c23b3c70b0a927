"""Checkpoints: model, reference, optimizer, random state and policy version, whole or not at all.

A checkpoint is a folder ``step-000020`` with what torch.distributed.checkpoint writes and, as its last file,
``checkpoint.json``: without it a folder is not a checkpoint. Only tensors are stored, and loading runs no pickled
code. Any number of ranks can go on from what any other number saved.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from transformers import PreTrainedModel

from r1async.disk import full_error, is_full
from r1async.learner.distributed import Ranks
from r1async.learner.frozen import FrozenCopy
from r1async.models.loading import state_tensors

MARKER = "checkpoint.json"
FORMAT = 1
VOLATILE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "architectures")
"""Entries of a model's config that may differ between runs of one model."""


class Trained(Protocol):
    """What a checkpoint is of: a `LearnerCore`, or a `finetune.core.Finetuner`."""

    version: int
    """Optimizer steps done."""

    @property
    def model(self) -> PreTrainedModel: ...
    @property
    def optimizer(self) -> torch.optim.Optimizer: ...
    @property
    def reference(self) -> FrozenCopy | None: ...
    @property
    def ranks(self) -> Ranks: ...


class CheckpointError(ValueError):
    """A checkpoint that cannot be gone on from; the message names it and what is wrong."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Marker:
    """What ``checkpoint.json`` says."""

    format: int
    model: str
    """Name of the model, for people."""
    model_hash: str
    """Of its config and the shapes of its tensors."""
    step: int
    """Optimizer steps in the checkpoint: the number of its policy version."""
    epoch: int
    """Learner life that saved it."""
    world: int
    reference: bool
    """There is a reference model in it."""


def model_identity(model: PreTrainedModel) -> tuple[str, str]:
    """A name for people and a hash of config and tensor shapes: what two models must share to share a checkpoint."""
    config = {key: value for key, value in model.config.to_dict().items() if key not in VOLATILE}
    shapes = {name: list(tensor.shape) for name, tensor in state_tensors(model).items()}
    digest = hashlib.sha256(json.dumps([config, shapes], sort_keys=True, default=str).encode()).hexdigest()
    size = sum(tensor.numel() for tensor in state_tensors(model).values())
    return f"{model.config.model_type} with {size:,} parameters", digest


def checkpoints(folder: Path) -> dict[int, Path]:
    """Whole checkpoints by step, in order."""
    found = {int(path.name[5:]): path for path in folder.glob("step-*") if (path / MARKER).is_file()}
    return dict(sorted(found.items()))


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole one, whether or not the buffer has heard of it: the hello will tell."""
    found = checkpoints(folder)
    return found[max(found)] if found else None


def read_marker(path: Path) -> Marker:
    """The marker of a checkpoint.

    Raises:
        CheckpointError: it is missing, torn, or of another format.
    """
    try:
        fields = json.loads((path / MARKER).read_text())
        marker = Marker(**fields)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path / MARKER} cannot be read: {error}") from error
    if marker.format != FORMAT:
        raise CheckpointError(f"{path} has format {marker.format}, this version reads {FORMAT}")
    return marker


def save_checkpoint(folder: Path, core: Trained, epoch: int) -> Path:
    """Writes the checkpoint of the core's version; collective. It exists, whole, when this returns."""
    name, digest = model_identity(core.model)
    target = folder / f"step-{core.version:06d}"
    staging = folder / f".step-{core.version:06d}.saving"
    ranks = core.ranks
    if ranks.first:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
    ranks.meet()  # nobody writes before the folder is there
    try:
        with _quiet():
            save(_tensors(core), storage_writer=FileSystemWriter(staging), no_dist=_alone(core))
    except (CheckpointException, OSError, RuntimeError) as error:
        full = is_full(error, folder)
        shutil.rmtree(staging, ignore_errors=True)  # half a checkpoint only takes the room that a whole one needs
        if full:
            raise full_error(folder) from error
        raise
    ranks.meet()  # and nobody renames before all have written
    if ranks.first:
        marker = Marker(
            format=FORMAT, model=name, model_hash=digest, step=core.version, epoch=epoch, world=ranks.world,
            reference=core.reference is not None,
        )  # fmt: skip
        write_durably(staging / MARKER, json.dumps(asdict(marker), indent=1))
        _sync(staging)
        shutil.rmtree(target, ignore_errors=True)
        staging.rename(target)
        _sync(folder)
    return target


def load_checkpoint(path: Path, core: Trained) -> Marker:
    """Restores the core from a checkpoint; collective.

    Raises:
        CheckpointError: a checkpoint of another model, or without the reference that the loss needs.
    """
    marker = read_marker(path)
    name, digest = model_identity(core.model)
    if marker.model_hash != digest:
        raise CheckpointError(
            f"{path} is a checkpoint of another model: {marker.model} (config {marker.model_hash[:12]}); this run's "
            f"model is {name} (config {digest[:12]}). Set model.path to that model, or use another run name"
        )
    if core.reference is not None and not marker.reference:
        raise CheckpointError(
            f"{path} holds no reference model: it was saved with kl_coef=0; set loss.kl_coef=0 or use another run name"
        )
    tensors = _tensors(core, random=marker.world == core.ranks.world)
    try:
        with _quiet():
            load(tensors, storage_reader=_Reader(path), no_dist=_alone(core))
    except (CheckpointException, RuntimeError, OSError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path} cannot be loaded: {error}") from error
    if (state := tensors.get(_random_key(core))) is not None:
        torch.set_rng_state(state)
    core.version = marker.step
    return marker


def prune(folder: Path, keep: int, committed: int) -> None:
    """Deletes all but the newest `keep` and the one with `committed` steps, and what a killed save left behind.

    What the buffer has committed stays until it has committed a newer one: both can go on from no other.
    """
    for path in [path for step, path in list(checkpoints(folder).items())[:-keep] if step != committed]:
        # Without its marker it is no checkpoint any more, however far the deletion gets.
        (path / MARKER).unlink()
        shutil.rmtree(path)
    newest = max(checkpoints(folder), default=-1)
    for path in folder.glob(".step-*.saving"):
        if int(path.name[6:12]) <= newest:
            shutil.rmtree(path)


def write_durably(path: Path, text: str) -> None:
    """The file with this text, on the disk when this returns."""
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's word on every save and load that it guesses what `no_dist` says."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _alone(core: Trained) -> bool:
    return core.ranks.world == 1


def _random_key(core: Trained) -> str:
    return f"random.{core.ranks.rank}"


def _tensors(core: Trained, *, random: bool = True) -> dict[str, Tensor]:
    """Everything a checkpoint holds, by name, sharing the core's memory."""
    # What is frozen is in the model's own directory already.
    frozen = {name for name, parameter in core.model.named_parameters() if not parameter.requires_grad}
    tensors = {f"model.{name}": t for name, t in state_tensors(core.model).items() if name not in frozen}
    if core.reference is not None:
        tensors |= {f"reference.{name}": tensor for name, tensor in state_tensors(core.reference.model).items()}
    tensors |= _optimizer_tensors(core)
    if random:
        tensors[_random_key(core)] = torch.get_rng_state()
    return tensors


def _optimizer_tensors(core: Trained) -> dict[str, Tensor]:
    """AdamW's moments and step counts by parameter; made, as zeros, where no step has been taken yet."""
    tensors = {}
    for name, parameter in core.model.named_parameters():
        if not parameter.requires_grad:
            continue
        state = core.optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter, requires_grad=False)
            state["exp_avg_sq"] = torch.zeros_like(parameter, requires_grad=False)
        tensors |= {f"optimizer.{name}.{key}": state[key] for key in ("step", "exp_avg", "exp_avg_sq")}
    return tensors


class _Unpickler(pickle.Unpickler):
    """Reads the plain data classes that torch.distributed.checkpoint describes tensors with, and nothing else."""

    MODULES = ("torch.distributed.checkpoint.", "torch.distributed.tensor.")
    NAMES = frozenset(
        {
            ("torch", "Size"),
            ("torch", "device"),
            ("torch.serialization", "_get_layout"),
            ("torch._C._distributed", "Placement"),
            ("collections", "OrderedDict"),
            ("pathlib", "PosixPath"),
            ("pathlib", "Path"),
        }
    )

    def find_class(self, module: str, name: str) -> object:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or (module, name) in self.NAMES:
            return super().find_class(module, name)
        found = super().find_class(module, name) if module.startswith(self.MODULES) else None
        if isinstance(found, type):
            return found
        raise pickle.UnpicklingError(f"its metadata names {module}.{name}, which no checkpoint needs")


class _Reader(FileSystemReader):
    """torch's reader, except that the metadata, a pickle, may hold nothing but metadata."""

    def read_metadata(self, *args: object, **kwargs: object) -> Metadata:
        metadata = _Unpickler(io.BytesIO((Path(self.path) / ".metadata").read_bytes())).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError(f"its metadata is a {type(metadata).__name__}")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
