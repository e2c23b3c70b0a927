"""Proof that an engine serves the weights it was given: a canary prompt now and then, scored once more by the learner's
own forward pass.

A reload that answers "done" may have left a part of the model as it was (a tied head, a stale prefix cache, swapped
tensors), and nothing fails: the run trains on wrong logprobs. What is sampled says it: the logprobs that the engine
reports must be those of the new weights, and then cannot be those of the former ones.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from r1async.generator.engine import Engine, EngineError, Progress, Request
from r1async.generator.sample import Sample
from r1async.types import PolicyVersion, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

REQUESTS = 2
"""Places in an engine that are kept for canaries."""
TOKENS = 32
"""Sampled of each."""
SHORT = 12
"""Prompt tokens of the short one."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """|logprob of the engine - logprob of the learner's forward|, in nats."""

    mean: float
    maximum: float

    def admits(self, tokens: int, mean: float, maximum: float) -> bool:
        """Whether differences of so many tokens are numerics."""
        return tokens > 0 and mean <= self.mean and maximum <= self.maximum


TOLERANCES: Mapping[str, Tolerance] = {
    # float32 on a CPU agrees to 4e-5 at most over prompts of 300 tokens, and to 1e-6 in the mean; bfloat16 to 0.05 and
    # 1.2e-2, whichever side computes in what. Wrong weights are off by 0.1 and more.
    "float32": Tolerance(5e-5, 1e-3),
    "bfloat16": Tolerance(3e-2, 0.5),
}


class EngineUntrusted(EngineError):  # noqa: N818  a state, as Stopped is
    """The engine does not serve what it was given; the message names it, with the figures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mismatch:
    """Logprobs of an engine against a forward pass on the weights it is to serve."""

    tokens: int
    mean: float
    """Of |difference|, nats."""
    maximum: float
    before_mean: float | None
    """The same against the weights proven last; None: there were none."""
    separation: float | None
    """Mean |difference| between the two forward passes: how far wrong weights would be off."""

    def holds(self, tolerance: Tolerance) -> bool:
        return tolerance.admits(self.tokens, self.mean, self.maximum)

    def __str__(self) -> str:
        text = f"mean |difference| {self.mean:.2g}, max {self.maximum:.2g} nats over {self.tokens} tokens"
        if self.before_mean is not None:
            text += f"; against the weights before: mean {self.before_mean:.2g}, which are {self.separation:.2g} apart"
        return text


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What became of one canary; an item of the generator's inbox."""

    version: PolicyVersion
    mismatch: Mismatch | None
    """None: it could not be judged, for another version came too early."""
    error: BaseException | None = None
    """The forward pass itself failed."""


class Reference:
    """The model as the learner computes it, on the CPU, with the weights of one version.

    Args:
        model_path: Hugging Face directory of the architecture.
        dtype: the weights are served in it; the forward pass is in float32, which no engine's dtype favours.
    """

    def __init__(self, model_path: str | Path, dtype: str) -> None:
        self._path, self._dtype = model_path, dtype
        self._model: PreTrainedModel | None = None
        self.loaded = False

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Raises:
        ModelError: not the tensors of this model.
        """
        from r1async.models.loading import DTYPES, load_model, load_state

        if self._model is None:
            self._model = load_model(self._path, attention="sdpa").eval()
        served = DTYPES[self._dtype]
        load_state(self._model, {name: tensor.to(served).float() for name, tensor in tensors.items()})
        self.loaded = True

    @torch.no_grad()
    def logprobs(self, prompt: NDArray[np.int32], completion: Sequence[int], temperature: float) -> NDArray[np.float32]:
        """(completion,) in nats."""
        from r1async.models.forward import packed_logprobs

        assert self._model is not None
        ids = torch.tensor([*prompt.tolist(), *completion])
        ends, lens = torch.tensor([0, len(ids)]), torch.tensor([len(prompt)])
        scored = packed_logprobs(self._model, ids, ends, prompt_lens=lens, temperature=temperature)
        return scored.logprobs_T[len(prompt) :].numpy()


def compare(
    new: Reference,
    before: Reference | None,
    rollouts: Sequence[tuple[NDArray[np.int32], Sequence[int], Sequence[float]]],
    temperature: float,
) -> Mismatch:
    """Of (prompt, completion, logprobs that the engine reported) each."""
    told = np.concatenate([np.array(logprobs, np.float32) for _, _, logprobs in rollouts])
    ours = np.concatenate([new.logprobs(prompt, tokens, temperature) for prompt, tokens, _ in rollouts])
    off = np.abs(told - ours)
    if before is None or not before.loaded:
        before_mean = separation = None
    else:
        former = np.concatenate([before.logprobs(prompt, tokens, temperature) for prompt, tokens, _ in rollouts])
        before_mean, separation = float(np.abs(told - former).mean()), float(np.abs(ours - former).mean())
    return Mismatch(
        tokens=len(told),
        mean=float(off.mean()),
        maximum=float(off.max()),
        before_mean=before_mean,
        separation=separation,
    )


def prompts(engine: Engine, vocabulary: int, max_len: int, max_tokens: int) -> list[NDArray[np.int32]]:
    """Two prompts, the same each time: a short one, and one of two blocks of the KV cache where the context holds it.

    The long one finds its beginning in the engine's prefix cache, if that still has what older weights left.
    """
    rng = np.random.default_rng(20250122)
    longest = max_len - max_tokens
    long = 2 * engine.block_tokens + SHORT
    lengths = [min(SHORT, longest), long if engine.block_tokens and long <= longest else longest]
    return [rng.integers(0, vocabulary, length).astype(np.int32) for length in lengths]


class Canary:
    """Asks an engine for canaries after the first install and every so many, and says what came of them.

    One thread computes; sampling goes on meanwhile.

    Args:
        model_path: Hugging Face directory.
        dtype: of the weights the engine serves.
        every: installs from one canary to the next.
        temperature: as in training: the engine must report logprobs of the distribution it samples from.
        vocabulary: token ids are below it.
        max_len: tokens of the longest request the engine takes.
        told: gets each verdict, in the computing thread.
    """

    def __init__(
        self,
        model_path: str | Path,
        *,
        dtype: str,
        every: int,
        temperature: float,
        vocabulary: int,
        max_len: int,
        told: Callable[[Verdict], None],
    ) -> None:
        self._dtype, self._every, self._told = dtype, every, told
        self._vocabulary, self._max_len = vocabulary, max_len
        self._max_tokens = max(1, min(TOKENS, max_len // 2))
        self._sampling = Sampling(temperature=temperature, top_p=1.0, top_k=0, max_tokens=self._max_tokens)
        self._new, self._before = Reference(model_path, dtype), Reference(model_path, dtype)
        self._installs = 0
        self._ids = 0
        self._version: PolicyVersion | None = None
        self._tensors: Mapping[str, Tensor] = {}
        self._birds: dict[int, Sample] = {}
        self._judging = False
        """A verdict is to come."""

    @property
    def tolerance(self) -> Tolerance:
        return TOLERANCES[self._dtype]

    @property
    def kept(self) -> int:
        """Places of the engine that are free and for canaries alone."""
        return REQUESTS - sum(not bird.finished for bird in self._birds.values())

    @property
    def under_way(self) -> bool:
        return bool(self._birds) or self._judging

    def wants(self, engine: Engine) -> bool:
        """The engine has weights that are not here: whether they are to be fetched and given to `installed`."""
        due = self._installs % self._every == 0
        if not due:
            self._installs += 1
        return due and not self.under_way and engine.free >= REQUESTS

    def installed(self, version: PolicyVersion, tensors: Mapping[str, Tensor], engine: Engine) -> None:
        """The engine has these weights since now; submits canaries if it is time and there is room for them."""
        due = self._installs % self._every == 0
        if due and (self.under_way or engine.free < REQUESTS):
            return  # with the next install
        self._installs += 1
        if not due:
            return
        self._version = version
        # The receiver may reuse its memory for the next version before the thread has looked at it.
        self._tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        for prompt in prompts(engine, self._vocabulary, self._max_len, self._max_tokens):
            self._ids -= 1
            # Leases are positive; rollout numbers are, too, so no rollout shares a canary's noise.
            request = Request(id=self._ids, rollout=2**40 - self._ids, prompt_ids=prompt, sampling=self._sampling)
            self._birds[request.id] = Sample(request)
        engine.submit([bird.request for bird in self._birds.values()])

    def take(self, progress: Progress) -> bool:
        """Whether it was a canary's. With the last of them the computing begins."""
        if progress.id >= 0:
            return False
        bird = self._birds.get(progress.id)
        if bird is None:
            return True
        bird.take(progress)
        if all(each.finished for each in self._birds.values()):
            birds = list(self._birds.values())
            self._birds, self._judging = {}, True
            thread = threading.Thread(target=self._judge, args=(birds,), name="canary", daemon=True)
            thread.start()
        return True

    def judged(self) -> None:
        """The verdict is here: another canary may follow, though the thread has not quite ended."""
        self._judging = False

    def again(self) -> None:
        """Asks with the next install, whenever it is due."""
        self._installs = 0

    def cancel(self, engine: Engine) -> None:
        """Takes the canaries out of the engine; asked again with the next install."""
        if self._birds:
            engine.abort(list(self._birds))
            self._birds = {}
            self.again()

    def _judge(self, birds: Sequence[Sample]) -> None:
        version, tensors = self._version, self._tensors
        assert version is not None
        try:
            torch.set_num_threads(1)
            self._new.load(tensors)
            rollouts = []
            for bird in birds:
                n = next((i for i, seen in enumerate(bird.versions) if seen != version), len(bird.versions))
                if n:
                    rollouts.append((bird.request.prompt_ids, bird.token_ids[:n], bird.logprobs[:n]))
            mismatch = compare(self._new, self._before, rollouts, self._sampling.temperature) if rollouts else None
            self._new, self._before = self._before, self._new
            self._told(Verdict(version=version, mismatch=mismatch))
        except Exception as error:  # noqa: BLE001  raised in the generator's main thread
            self._told(Verdict(version=version, mismatch=None, error=error))


def refuse(engine: Engine, verdict: Verdict, tolerance: Tolerance) -> None:
    """Raises:
    EngineUntrusted: the engine's logprobs are not those of the version.
    """
    if verdict.error is not None:
        raise EngineError(f"the canary of version {verdict.version} could not be scored: {verdict.error}") from (
            verdict.error
        )
    mismatch = verdict.mismatch
    if mismatch is None:
        log.info("the canary of version %s was overtaken by the next version", verdict.version)
        return
    if not mismatch.holds(tolerance):
        raise EngineUntrusted(
            f"{engine.describe()} does not serve version {verdict.version}: {mismatch} "
            f"(tolerated: mean {tolerance.mean:g}, max {tolerance.maximum:g})"
        )
    log.info("%s serves version %s: %s", engine.describe(), verdict.version, mismatch)
