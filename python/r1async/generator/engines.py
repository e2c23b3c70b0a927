"""Makes the engine that the settings name. Each engine's packages are imported only for a generator that runs it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from r1async.benchmarks import longest_of
from r1async.config import Config, ipc_dir
from r1async.engines import engine_of, kinds, python_for
from r1async.generator.canary import REQUESTS, Canary, Verdict
from r1async.generator.engine import Engine, EngineSpec

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_MEMORY = Path("/dev/shm")
CANARY_TOKENS = 320
"""Context that a canary wants: two blocks of vLLM's KV cache on a CPU (128 tokens each) and some."""


def evaluates(config: Config, index: int) -> bool:
    """Whether generator `index` samples evaluations. Where one holds a second weight set, that one takes them without
    stopping, and no other is claimed for them."""
    if config.eval.generator == "dedicated":
        return index == config.generator.count - 1
    return engine_of(config, index) == "torch" or "torch" not in kinds(config.generator.engine)


def trains(config: Config, index: int) -> bool:
    """Whether generator `index` samples for training: a dedicated one does not."""
    return config.eval.generator == "shared" or index < config.generator.count - 1


@contextmanager
def scratch_folder(config: Config, name: str) -> Iterator[Path]:
    """A folder in memory where there is one, for weights on their way into an engine. A killed life's is taken over."""
    parent = _MEMORY if _MEMORY.is_dir() else Path(tempfile.gettempdir())
    folder = parent / f"{ipc_dir(config.run_dir).name}-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make_engine(
    config: Config, kind: str, name: str, scratch: Path, notify: Callable[[], None], *, stops: bool = True
) -> Engine:
    """An engine without weights.

    Args:
        config: the run's.
        kind: torch, vllm or sglang.
        name: of the generator.
        scratch: folder for weights that another process has to read.
        notify: called when an engine that computes elsewhere has something to collect.
        stops: whether the model's end-of-sequence tokens end a completion; if not, all are of full length.

    Raises:
        ModelError: the model cannot be read, or its context is too short.
        EngineVersionError: an engine of a version that is not supported.
        EngineError: the engine did not start.
    """
    import torch

    from r1async.models.loading import check_context, load_config, load_tokenizer, stop_token_ids

    torch.set_num_threads(config.generator.threads)
    path, max_prompt, max_completion = config.model.path, config.data.max_prompt_tokens, config.sampling.max_tokens
    model = load_config(path)
    check_context(model, max_prompt, max_completion)
    _check_benchmarks(config, model)
    stop_ids = stop_token_ids(path, load_tokenizer(path), config.sampling.stop) if stops else ()
    generator = config.generator
    slots = generator.slots + (REQUESTS if generator.canary_every else 0)
    if kind == "torch":
        from r1async.generator.torch_engine import TorchEngine

        return TorchEngine(
            model,
            seed=config.seed,
            slots=slots,
            pinned_slots=generator.eval_slots,
            max_len=max_len(config, kind, model),
            stop_ids=stop_ids,
            chunk_tokens=generator.chunk_tokens,
            kv_policy=generator.kv_policy,
        )
    logs = config.run_dir / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    spec = EngineSpec(
        name=name,
        model_path=Path(path),
        dtype=config.model.dtype,
        seed=config.seed,
        slots=slots,
        max_len=max_len(config, kind, model),
        stop_ids=stop_ids,
        vocabulary=int(model.vocab_size),
        chunk_tokens=generator.chunk_tokens,
        kv_policy=generator.kv_policy,
        threads=generator.threads,
        scratch=scratch,
        log=logs / f"{name}-{kind}.log",
        start_deadline_s=generator.start_deadline_s,
        stall_deadline_s=generator.stall_deadline_s,
        direct=config.direct_medium,
        notify=notify,
    )
    match kind:
        case "vllm" if generator.vllm.url:
            from r1async.generator.vllm_server import VllmServer

            return VllmServer(spec, generator.vllm.url)
        case "vllm":
            from r1async.generator.vllm_engine import VllmEngine

            return VllmEngine(spec, generator.vllm.args)
        case "sglang":
            from r1async.generator.sglang_engine import SglangEngine

            url = generator.sglang.url
            python = None if url else python_for(config, "sglang")
            return SglangEngine(spec, url=url, python=python, args=generator.sglang.args)
    raise ValueError(f"no engine {kind!r}")


def _check_benchmarks(config: Config, model: PreTrainedConfig) -> None:
    from r1async.models.loading import ModelError, context_of

    longest, context = longest_of(config), context_of(model)
    if context is not None and longest > context:
        raise ModelError(
            f"eval.protocol: a benchmark's longest request has {longest} tokens, the model has max_position_embeddings="
            f"{context}; lower eval.protocol.max_prompt_tokens, or set eval.protocol.max_tokens: completions cut there "
            "are wrong"
        )


def make_canary(config: Config, kind: str, told: Callable[[Verdict], None]) -> Canary | None:
    """What proves the engine; None where the settings trust it."""
    if not config.generator.canary_every:
        return None
    from r1async.models.loading import load_config

    model = load_config(config.model.path)
    return Canary(
        config.model.path,
        dtype=config.model.dtype,
        every=config.generator.canary_every,
        temperature=config.sampling.temperature,
        vocabulary=int(model.vocab_size),
        max_len=max_len(config, kind, model),
        told=told,
    )


def max_len(config: Config, kind: str, model: PreTrainedConfig) -> int:
    """Tokens of the longest request; an engine with a prefix cache has room for a canary that meets it."""
    from r1async.models.loading import context_of

    longest, context = config.data.max_prompt_tokens + config.sampling.max_tokens, context_of(model)
    longest = max(longest, longest_of(config))
    if kind == "torch":
        return longest
    return max(longest, CANARY_TOKENS if context is None else min(CANARY_TOKENS, context))
