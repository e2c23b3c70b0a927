"""One engine for all tests of this folder: starting a real one takes half a minute. `--engine` says which."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from r1async.config import load_config
from r1async.generator.engine import Engine, KVPolicy, Request
from r1async.generator.engines import make_engine, scratch_folder
from r1async.models.loading import load_model, state_tensors
from r1async.types import PolicyVersion
from torch import Tensor
from transformers import PreTrainedModel

from tests.engine_runs import Outcome
from tests.tiny_models import save_tiny, tiny_model

STEP_S = 60.0
"""Seconds without a token after which a test gives up."""


class Served:
    """An engine with a model in it, and the means to drive it to where a test wants it."""

    def __init__(self, engine: Engine, base: PreTrainedModel, arrived: threading.Event) -> None:
        self.engine = engine
        self.base = base
        self._arrived = arrived
        self._number = 0
        self._ids = 0

    def install(self, model: PreTrainedModel | Mapping[str, Tensor]) -> PolicyVersion:
        """The weights as a version that was never there before."""
        self._number += 1
        version = PolicyVersion(1, self._number)
        tensors = state_tensors(model) if isinstance(model, PreTrainedModel) else model
        pause_s = self.engine.install(version, tensors)
        assert 0 <= pause_s < STEP_S
        return version

    def policy(self, policy: KVPolicy) -> None:
        """For the installs that follow."""
        self.engine.kv_policy = policy

    def requests(self, prompts: Sequence[NDArray[np.int32]], **sampling: object) -> list[Request]:
        from dataclasses import replace

        from tests.engine_runs import PLAIN

        self._ids += len(prompts)
        first = self._ids - len(prompts) + 1
        return [
            Request(id=first + i, rollout=first + i, prompt_ids=prompt, sampling=replace(PLAIN, **sampling))
            for i, prompt in enumerate(prompts)
        ]

    def run(
        self,
        requests: Sequence[Request],
        *,
        when: Callable[[Mapping[int, Outcome]], bool] | None = None,
        then: Callable[[], object] | None = None,
    ) -> dict[int, Outcome]:
        """Submits and collects to the end; calls `then` once, as soon as `when` holds of what was reported."""
        self.engine.submit(requests)
        outcomes = {request.id: Outcome() for request in requests}
        while any(outcome.finish is None for outcome in outcomes.values()):
            for progress in self.step():
                outcomes[progress.id].take(progress)
            if when is not None and then is not None and when(outcomes):
                assert any(outcome.finish is None for outcome in outcomes.values()), "all ended before it could happen"
                then()
                when = None
        assert when is None, "never happened"
        return outcomes

    def step(self) -> list:
        """What is reported next; empty only from an engine that computes in `step`."""
        if self.engine.computes:
            return self.engine.step()
        while True:
            self._arrived.clear()
            reports = self.engine.step()
            if reports:
                return reports
            assert self._arrived.wait(STEP_S), f"{self.engine.describe()} sampled nothing for {STEP_S:g} s"


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tied embeddings: the kind that engines reload wrongly."""
    return save_tiny(tmp_path_factory.mktemp("engine") / "model", "qwen2", tied=True)


@pytest.fixture(scope="session")
def session_engine(
    request: pytest.FixtureRequest, model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    kind, settings = str(request.config.getoption("--engine")), request.config.getoption("--engine-set") or []
    overrides = [
        f"model.path={model_dir}",
        f"runs_dir={tmp_path_factory.mktemp('runs')}",
        "data.task=chain-mod",
        "data.max_prompt_tokens=330",
        "sampling.max_tokens=160",
        "generator.slots=16",
        "generator.chunk_tokens=1",
        f"generator.engine={kind}",
        f"weights.medium={request.config.getoption('--medium')}",
        *(f"generator.{item}" for item in settings),
    ]
    config = load_config(None, overrides)
    arrived = threading.Event()
    with scratch_folder(config, "generator-0") as scratch:
        engine = make_engine(config, kind, "generator-0", scratch, arrived.set)
        try:
            yield Served(engine, load_model(model_dir).eval(), arrived)
        finally:
            engine.close()


@pytest.fixture
def served(session_engine: Served) -> Iterator[Served]:
    """The engine, idle, with the base model's weights and keep as its KV policy."""
    session_engine.policy("keep")
    session_engine.install(session_engine.base)
    yield session_engine
    engine = session_engine.engine
    engine.abort(range(session_engine._ids + 1))
    assert engine.free == engine.capacity


@pytest.fixture
def other() -> PreTrainedModel:
    """The same architecture with all weights different."""
    return tiny_model("qwen2", tied=True, seed=1)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
