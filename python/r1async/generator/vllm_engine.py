"""vLLM in the generator's own process: AsyncLLM, whose engine and workers are processes of their own."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import yaml

from r1async.engines import check_version
from r1async.generator import vllm_owner
from r1async.generator.engine import EngineError, EngineSpec
from r1async.generator.staged_weights import Staged
from r1async.generator.vllm_adapter import VllmAdapter
from r1async.generator.vllm_calls import Delta, SamplingSettings, Span
from r1async.generator.vllm_names import BACKEND, EXTENSION

# vLLM is in an environment of its own, which the checker does not look into.
# pyright: reportMissingImports=false

if TYPE_CHECKING:
    from vllm.logprobs import FlatLogprobs
    from vllm.v1.engine.async_llm import AsyncLLM

_OURS = {
    "model": "model.path decides it",
    "dtype": "model.dtype decides it",
    "seed": "the run's seed decides it",
    "max_model_len": "data.max_prompt_tokens and sampling.max_tokens decide it",
    "max_num_seqs": "generator.slots decides it",
    "logprobs_mode": "the learner needs the logprobs of what was sampled from",
    "worker_extension_cls": "ours loads the weights",
    "weight_transfer_config": "ours loads the weights",
    "enable_prefix_caching": "groups share their prompt by it",
}
"""Arguments of vLLM that are not for `generator.vllm.args`, and why."""
_CPU_BLOCK = 128
"""Tokens of a block of vLLM's KV cache on a CPU, unless its block_size says otherwise."""
_STEP_TOKENS = 2048
"""Tokens that a step computes at most on a CPU, as vLLM has it by default."""
_END_S = 10.0
"""Seconds that vLLM's processes have to end by themselves."""


class VllmEngine(VllmAdapter):
    """An `Engine` over a vLLM that this process starts.

    Args:
        spec: what it is made with.
        args: `generator.vllm.args`.

    Raises:
        EngineVersionError: vLLM has a version that we do not know.
        ValueError: an argument that vLLM does not have, or that is not for `generator.vllm.args`.
        EngineError: vLLM did not start.
    """

    def __init__(self, spec: EngineSpec, args: Sequence[str]) -> None:
        version = vllm_version()
        check_version("vllm", version)
        super().__init__(spec, LocalVllm(spec, args, version))


class LocalVllm:
    """A `Vllm` over AsyncLLM."""

    orders_outputs = True

    def __init__(self, spec: EngineSpec, args: Sequence[str], version: str) -> None:
        self._spec = spec
        self._args = parse_args(args)
        self._version = version
        self._engine: AsyncLLM | None = None
        self._processes: set[int] = set()
        self._before = {process.pid for process in multiprocessing.active_children()}
        self._closed = False

    def describe(self) -> str:
        return f"vLLM {self._version} of {self._spec.name}"

    async def start(self) -> None:
        """In the loop's thread, which it holds until vLLM is up."""
        self._set_environment()
        with _output_to(self._spec.log):
            # Only now: vLLM reads its environment, and sets up its logging, when it is imported.
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.platforms import current_platform
            from vllm.v1.engine.async_llm import AsyncLLM

            settings = self._settings(on_cpu=current_platform.is_cpu())
            if unknown := sorted(settings.keys() - {field.name for field in fields(AsyncEngineArgs)}):
                raise ValueError(f"generator.vllm.args: vLLM {self._version} has no argument {unknown[0]!r}")
            with self._said("start"), vllm_owner.children_die_with_thread(self._spec.log.parent):
                self._engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**settings))
        # From here on its front end speaks up among our own lines; its engine and workers go on in their log.
        logging.getLogger("vllm").setLevel(logging.WARNING)
        self._processes = {state["pid"] for state in await self.workers("r1async_state")} | self._children()

    def _set_environment(self) -> None:
        spec = self._spec
        os.environ.update(vllm_owner.environment())
        # Before vLLM writes them itself: its threads spin on the cores that learner and graders want.
        defaults = {
            "OMP_NUM_THREADS": str(spec.threads),
            # Not to cores of its own: two generators would take the same ones.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        if spec.direct == "ipc":
            # vLLM takes shared memory's handles pickled alone; they come from this process.
            os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
        for name, value in defaults.items():
            os.environ.setdefault(name, value)

    def _settings(self, *, on_cpu: bool) -> dict[str, object]:
        spec = self._spec
        settings: dict[str, object] = {
            "model": str(spec.model_path),
            "dtype": spec.dtype,
            "seed": spec.seed,
            "max_model_len": spec.max_len,
            "max_num_seqs": spec.slots,
            "logprobs_mode": "processed_logprobs",
            "worker_extension_cls": EXTENSION,
            "weight_transfer_config": {"backend": spec.direct or BACKEND},
            "enable_prefix_caching": True,
            "skip_tokenizer_init": True,
            "generation_config": "vllm",
            "disable_log_stats": True,
        }
        if on_cpu:
            # Helpers of the sampler are compiled even with enforce_eager: 25 s at the first request.
            os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
            settings["enforce_eager"] = True
            # The adapter wants no prompt cut, so a step's budget has room for the longest.
            settings["enable_chunked_prefill"] = False
            settings["max_num_batched_tokens"] = max(_STEP_TOKENS, spec.max_len)
            if not self._args.keys() & {"kv_cache_memory_bytes", "gpu_memory_utilization"}:
                # vLLM would take nine tenths of the machine's memory.
                settings["kv_cache_memory_bytes"] = _cache_bytes(spec)
        return settings | self._args

    async def generate(
        self, key: str, prompt_ids: list[int], cache_salt: str, sampling: SamplingSettings
    ) -> AsyncIterator[Delta]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            **asdict(sampling) | {"stop_token_ids": list(sampling.stop_token_ids)},
            output_kind=RequestOutputKind.DELTA,
            flat_logprobs=True,
        )
        prompt = {"prompt_token_ids": prompt_ids, "cache_salt": cache_salt}
        async for output in self.engine.generate(prompt, params, key):
            (completion,) = output.outputs
            spans = completion.weight_versions
            yield Delta(
                token_ids=completion.token_ids,
                logprobs=_of_the_sampled(completion.logprobs, completion.token_ids),
                finish=completion.finish_reason,
                spans=None if spans is None else [Span(span.version, span.start, span.end) for span in spans],
                cached=output.num_cached_tokens or 0,
            )

    async def abort(self, keys: Sequence[str]) -> None:
        await self.engine.abort(keys)

    async def pause(self, mode: Literal["keep", "abort"]) -> None:
        with self._said("pause"):
            await self.engine.pause_generation(mode=mode, clear_cache=mode == "abort")

    async def drain(self) -> None:
        """Lets what the engine said before the pause go through vLLM's front end to us.

        The answer to the pause came after it on the same socket, so it is in this loop already: in the queue of vLLM's
        output handler, or of a request. From there on it takes turns of the loop, no waiting: one for each 128 requests
        that the handler works on, and three to hand over.
        """
        for _ in range(8 + self._spec.slots // 16):
            await asyncio.sleep(0)

    async def update(self, staged: Staged, label: str) -> None:
        from vllm.distributed.weight_transfer.base import (
            WeightTransferUpdateRequest,
        )

        update = {"path": str(staged.path), "hashes": dict(staged.hashes)}
        with self._said("load weights"):
            if self._spec.direct is not None:  # vLLM's one backend is another than ours
                await self.engine.collective_rpc("r1async_load", args=(json.dumps(update),))
                await self.engine.update_weight_version(label)
                return
            await self.engine.start_weight_update()
            await self.engine.update_weights(WeightTransferUpdateRequest(update_info=update))
            await self.engine.finish_weight_update(weight_version=label)

    async def join(self, init: Mapping[str, object]) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        with self._said("join the learner's group"):
            await self.engine.init_weight_transfer_engine(WeightTransferInitRequest(init_info=dict(init)))

    async def take(self, update: Mapping[str, object] | None, label: str) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        with self._said("take weights"):
            await self.engine.start_weight_update()
            if update is not None:
                await self.engine.update_weights(WeightTransferUpdateRequest(update_info=dict(update)))
            await self.engine.finish_weight_update(weight_version=label)

    async def recompute(self) -> None:
        with self._said("drop its KV"):
            if not await self.engine.reset_prefix_cache(reset_running_requests=True):
                raise EngineError(f"{self.describe()} kept the KV of its requests, and was told not to")

    async def resume(self) -> None:
        with self._said("resume"):
            await self.engine.resume_generation()

    async def workers(self, method: str, *args: str) -> list[dict]:
        with self._said(f"answer {method}"):
            return await self.engine.collective_rpc(method, args=args)

    async def close(self) -> None:
        # Dropped too: its destructor shuts down again, which fails when the interpreter is half gone.
        engine, self._engine = self._engine, None
        if engine is not None:
            self._closed = True
            engine.shutdown(timeout=_END_S)

    def kill(self) -> None:
        """Ends the processes that are left, after `_END_S` for those that are ending."""
        left = {pid: vllm_owner.start_time(pid) for pid in self._processes | self._children()}
        until = time.monotonic() + (_END_S if self._closed else 0.0)
        while left and time.monotonic() < until:
            multiprocessing.active_children()  # reaps those of ours that have ended
            left = {pid: at for pid, at in left.items() if at is not None and vllm_owner.start_time(pid) == at}
            time.sleep(0.02)
        for pid in left:
            vllm_owner.end(pid)
        multiprocessing.active_children()

    @property
    def engine(self) -> AsyncLLM:
        assert self._engine is not None
        return self._engine

    def _children(self) -> set[int]:
        found = {process.pid for process in multiprocessing.active_children()} - self._before
        return {pid for pid in found if pid is not None}

    @contextmanager
    def _said(self, what: str) -> Iterator[None]:
        """vLLM hands on what its processes raise as a bare Exception with the text of it."""
        try:
            yield
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(f"{self.describe()} could not {what}: {error}; its log is {self._spec.log}") from error


def vllm_version() -> str:
    """Of the vLLM installed, without importing it.

    Raises:
        EngineError: there is none.
    """
    for name in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    raise EngineError(f"vLLM is not installed for {sys.executable}; see docs/engines.md")


def parse_args(args: Sequence[str]) -> dict[str, object]:
    """`generator.vllm.args`, name=value each, the value as YAML reads it.

    Raises:
        ValueError: one that is not name=value, or that another setting decides.
    """
    parsed: dict[str, object] = {}
    for arg in args:
        name, separator, value = arg.partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        if not separator or not name.isidentifier():
            raise ValueError(f"generator.vllm.args: must be name=value each, got {arg!r}")
        if name in _OURS:
            raise ValueError(f"generator.vllm.args: {name} is not for here: {_OURS[name]}")
        parsed[name] = yaml.safe_load(value)
    return parsed


def _of_the_sampled(logprobs: FlatLogprobs | None, token_ids: Sequence[int]) -> list[float]:
    """vLLM's logprobs, one a token; anything else is refused rather than read wrongly."""
    if logprobs is None or list(logprobs.token_ids) != list(token_ids):
        said = None if logprobs is None else logprobs.token_ids[:8]
        if not token_ids:
            return []
        raise EngineError(f"vLLM gives logprobs of tokens {said}, it sampled {list(token_ids[:8])}")
    return list(logprobs.logprobs)


def _cache_bytes(spec: EngineSpec) -> int:
    """KV for every slot at full length, and half as much again for prefixes that nobody uses at the moment."""
    from r1async.models.loading import DTYPES, load_config

    model = load_config(spec.model_path)
    heads = int(model.num_attention_heads)
    kv_heads = int(getattr(model, "num_key_value_heads", None) or heads)  # not every architecture shares heads
    head_dim = int(getattr(model, "head_dim", None) or model.hidden_size // heads)
    token = 2 * int(model.num_hidden_layers) * kv_heads * head_dim * DTYPES[spec.dtype].itemsize
    blocks = -(-spec.max_len // _CPU_BLOCK) * spec.slots
    return token * _CPU_BLOCK * (blocks + blocks // 2 + 2)


@contextmanager
def _output_to(log: Path) -> Iterator[None]:
    """Processes started in it print to the file. For that while, so does this one: they inherit its descriptors."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    try:
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for target, descriptor in zip((1, 2), kept, strict=True):
            os.dup2(descriptor, target)
            os.close(descriptor)
