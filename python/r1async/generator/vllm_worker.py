"""Inside vLLM's worker processes: weights from a file, verified before any is loaded. Named, never imported, by us.

vLLM imports this module because `worker_extension_cls` names it; that registers the weight-transfer backend `r1async`
with vLLM's own factory. An update takes two steps, so that generation pauses only for the second: `r1async_stage` maps
the file and compares the hash of every tensor while requests go on, `update_weights` loads what was verified.
"""

# vLLM is in an environment of its own, which the checker does not look into.
# pyright: reportMissingImports=false

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from r1async.generator.vllm_names import BACKEND
from r1async.generator.vllm_owner import end_with_owner


@dataclass
class FileInit(WeightTransferInitInfo):
    """What `init_weight_transfer_engine` takes; without that call the defaults hold."""

    repack_tied_head: bool = True
    """False keeps vLLM's bug, for the test that shows it."""


@dataclass
class FileUpdate(WeightTransferUpdateInfo):
    """One set of weights: a safetensors file and the xxh3-128 of every tensor's bytes, in hexadecimal, by name."""

    path: str
    hashes: dict[str, str]


class Staging:
    """A file being verified in a thread of its own: hashing lets go of the interpreter lock, so steps go on."""

    def __init__(self, update: FileUpdate) -> None:
        self.update = update
        self.tensors: dict[str, Tensor] = {}
        self.refusal: str | None = f"{update.path} was not verified to its end; the engine's log says why"
        """Why the set must not be loaded; valid once `done`."""
        self._thread = threading.Thread(target=self._run, name="r1async-verify", daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def result(self) -> Mapping[str, Tensor]:
        """The tensors, mapped.

        Raises:
            ValueError: they are not what the hashes say.
        """
        self._thread.join()
        if self.refusal is not None:
            raise ValueError(self.refusal)
        return self.tensors

    def _run(self) -> None:
        try:
            self.tensors = _read(self.update.path)
            self.refusal = _difference(self.tensors, self.update.hashes)
        except (OSError, SafetensorError) as error:
            self.refusal = f"{self.update.path} cannot be read: {error}"


class FileTransfer(WeightTransferEngine[FileInit, FileUpdate]):
    """The backend. The model is not touched before the whole set is verified; a failure after that is remembered."""

    init_info_cls = FileInit
    update_info_cls = FileUpdate

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.intact = True
        """False from the first tensor that is replaced to the last."""
        self.loaded: str | None = None
        """The file that the model's weights are from; None for those it started with."""
        self._repack = True
        self._staging: Staging | None = None

    def init_transfer_engine(self, init_info: FileInit) -> None:
        self._repack = init_info.repack_tied_head

    def stage(self, update: FileUpdate) -> None:
        self._staging = Staging(update)

    def state(self) -> dict[str, object]:
        """``staged``: whether the staged file was looked through; ``refusal``: what is wrong with it, or None;
        ``intact``: whether the model is one set of weights; ``loaded``: the file that is from."""
        staging = self._staging
        return {
            "intact": self.intact,
            "loaded": self.loaded,
            "staged": staging is not None and staging.done,
            "refusal": staging.refusal if staging else None,
        }

    def start_weight_update(self) -> None:
        """Nothing: vLLM's reload is begun only when the weights are known to be good, as it empties the model."""

    def update_weights(self, update_info: dict) -> None:
        self.receive_weights(self.parse_update_info(update_info))
        # The base class does this without asking, which fails on a machine without an accelerator.
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: FileUpdate) -> None:
        """Loads the file, all of it; verifies it first if `stage` has not.

        Raises:
            ValueError: a tensor is not what its hash says; nothing has changed.
            RuntimeError: vLLM did not load every parameter; the model is not whole.
        """
        staging, self._staging = self._staging, None
        if staging is None or staging.update != update_info:
            staging = Staging(update_info)
        tensors = staging.result()
        self.intact = False
        # Before the reload is begun, which takes a tied head's parameter from the embedding's for its while.
        parameters = {name for name, _ in self.model.named_parameters()}
        initialize_layerwise_reload(self.model)
        _check_all_loaded(parameters, self.model.load_weights(iter(tensors.items())))
        finalize_layerwise_reload(self.model, self.model_config)
        if self._repack:
            repack_heads(self.model)
        self.intact, self.loaded = True, update_info.path

    def finish_weight_update(self) -> None:
        """Nothing: `update_weights` has done it all."""

    def shutdown(self) -> None:
        self._staging = None


class Extension:
    """Methods that `collective_rpc` finds on vLLM's worker. Arguments and answers are what JSON has, for HTTP."""

    def r1async_stage(self, update: str) -> None:
        """Begins to verify a `FileUpdate`, given as JSON."""
        _transfer(self).stage(FileUpdate(**json.loads(update)))

    def r1async_load(self, update: str) -> None:
        """Loads a `FileUpdate` where vLLM's backend is another than ours; the caller has paused and sets the label."""
        with set_current_vllm_config(self.vllm_config):  # pyright: ignore[reportAttributeAccessIssue]  (the worker's)
            _transfer(self).update_weights(json.loads(update))

    def r1async_state(self) -> dict[str, object]:
        """`FileTransfer.state`, and the ``pid``. That the call exists says that the extension is in."""
        return {"pid": os.getpid(), **_transfer(self).state()}

    def r1async_settings(self) -> dict[str, object]:
        """What this vLLM was started with, as far as our side relies on it."""
        config: VllmConfig = self.vllm_config  # pyright: ignore[reportAttributeAccessIssue]  (the worker's)
        backend = config.weight_transfer_config
        return {
            "backend": None if backend is None else backend.backend,
            "device": config.device_config.device_type,
            "logprobs_mode": config.model_config.logprobs_mode,
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "max_model_len": config.model_config.max_model_len,
            "max_num_seqs": config.scheduler_config.max_num_seqs,
            "enable_chunked_prefill": config.scheduler_config.enable_chunked_prefill,
            "enable_prefix_caching": config.cache_config.enable_prefix_caching,
            "block_size": config.cache_config.block_size,
        }


def repack_heads(model: nn.Module) -> None:
    """Packs output heads again whose weight is the embedding's.

    On a CPU a head multiplies by a copy that oneDNN packed when the model was loaded. vLLM's reload packs again what
    received weights, and a tied head receives none: the copy stays that of the old weights, silently.
    """
    for layer in model.modules():
        if isinstance(layer, VocabParallelEmbedding) and hasattr(layer, "cpu_linear"):
            dispatch_cpu_unquantized_gemm(layer, remove_weight=False)


def _transfer(worker: object) -> FileTransfer:
    transfer = getattr(worker, "weight_transfer_engine", None)  # vLLM's attribute: we are mixed into its class
    if isinstance(transfer, FileTransfer):
        return transfer
    if transfer is None:
        raise RuntimeError(f"this vLLM was not started with the weight-transfer backend {BACKEND!r}")
    # Weights come by vLLM's own backend. The first, a canary's and an evaluation's still come as files.
    beside = _BESIDE.get(transfer)
    if beside is None:
        beside = _BESIDE[transfer] = FileTransfer(
            transfer.config, transfer.vllm_config, transfer.device, transfer.model
        )
    return beside


def _read(path: str) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (it is not a mapping)


def _difference(tensors: Mapping[str, Tensor], hashes: Mapping[str, str]) -> str | None:
    """What makes the tensors other than the hashes say; None if nothing does."""
    if tensors.keys() != hashes.keys():
        odd = sorted(tensors.keys() ^ hashes.keys())
        return f"the staged file and its hashes differ by tensor {odd[0]!r} ({len(odd)} such)"
    for name, tensor in tensors.items():
        got = xxhash.xxh3_128_hexdigest(tensor.reshape(-1).view(torch.uint8).numpy().data)
        if got != hashes[name]:
            return f"tensor {name!r} was changed on its way: xxh3-128 must be {hashes[name]}, got {got}"
    return None


def _check_all_loaded(parameters: set[str], loaded: object) -> None:
    """A loader that passes over a name says so only in what it returns, if it returns anything."""
    passed = sorted(parameters - loaded) if isinstance(loaded, set) else []
    if passed:
        raise RuntimeError(f"vLLM loaded no weights into {passed[0]!r} ({len(passed)} such)")


_BESIDE: dict[WeightTransferEngine, FileTransfer] = {}
"""By a worker's engine of another backend: ours."""

WeightTransferEngineFactory.register_engine(BACKEND, FileTransfer)
end_with_owner()
