"""Driving an engine in tests: requests in, everything it reported out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from r1async.generator.engine import Engine, EngineSpec, Progress, Request
from r1async.generator.torch_engine import TorchEngine
from r1async.models.loading import state_tensors
from r1async.types import FinishReason, PolicyVersion, Sampling
from torch import Tensor
from transformers import PreTrainedModel

EOS = 2
V0 = PolicyVersion(1, 0)
PLAIN = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=24)


@dataclass
class Outcome:
    """All that was reported of one request."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[PolicyVersion] = field(default_factory=list)
    reports: int = 0
    finish: FinishReason | None = None

    def take(self, progress: Progress) -> None:
        assert self.finish is None, "reported after its end"
        assert sum(run.count for run in progress.runs) == len(progress.token_ids) == len(progress.logprobs)
        self.tokens += progress.token_ids.tolist()
        self.logprobs += progress.logprobs.tolist()
        self.versions += [run.version for run in progress.runs for _ in range(run.count)]
        self.reports += 1
        self.finish = progress.finish


def make_engine(
    model: PreTrainedModel, *, slots: int = 16, stop_ids: Sequence[int] = (EOS,), **settings: int
) -> TorchEngine:
    """An engine that serves the model as version 0."""
    settings = {"seed": 0, "max_len": 64, **settings}
    engine = TorchEngine(
        model.config,
        seed=settings["seed"],
        slots=slots,
        max_len=settings["max_len"],
        stop_ids=stop_ids,
        pinned_slots=settings.get("pinned_slots", 0),
        chunk_tokens=settings.get("chunk_tokens", 64),
    )
    engine.install(V0, state_tensors(model))
    return engine


def engine_spec(
    model_dir: Path, folder: Path, notify: Callable[[], None], deadline_s: float, **changes: object
) -> EngineSpec:
    """What an engine elsewhere is made with, for the tiny model."""
    plain = EngineSpec(
        name="generator-0",
        model_path=model_dir,
        dtype="float32",
        seed=0,
        slots=4,
        max_len=64,
        stop_ids=(EOS,),
        vocabulary=34,
        chunk_tokens=1,
        kv_policy="keep",
        threads=1,
        scratch=folder,
        log=folder / "log",
        start_deadline_s=deadline_s,
        stall_deadline_s=deadline_s,
        notify=notify,
    )
    return replace(plain, **changes)


def random_prompt(rng: np.random.Generator, length: int, vocabulary: int = 34) -> NDArray[np.int32]:
    return rng.integers(3, vocabulary, length).astype(np.int32)


def drive(
    engine: Engine, requests: Sequence[Request], *, at: dict[int, Callable[[], object]] | None = None
) -> dict[int, Outcome]:
    """Submits, steps to the end, and collects; ``at[n]`` is called after the n-th step."""
    engine.submit(requests)
    return collect(engine, at=at)


def collect(engine: Engine, *, at: dict[int, Callable[[], object]] | None = None) -> dict[int, Outcome]:
    outcomes: dict[int, Outcome] = {}
    steps = 0
    while engine.busy:
        assert steps < 5000, "the engine does not finish"
        for progress in engine.step():
            outcomes.setdefault(progress.id, Outcome()).take(progress)
        steps += 1
        if at and steps in at:
            at[steps]()
    return outcomes


def full_logprobs(model: PreTrainedModel, prompt: Sequence[int], completion: Sequence[int]) -> Tensor:
    """(completion, V): transformers' log-softmax before each completion token, in one forward pass."""
    ids = torch.tensor([[*prompt, *completion]], dtype=torch.long)
    with torch.no_grad():
        logits = model(ids).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits.float(), dim=-1)


def chosen(logprobs_CV: Tensor, completion: Sequence[int]) -> Tensor:
    return logprobs_CV.gather(1, torch.tensor(completion).unsqueeze(1)).squeeze(1)
