"""What an engine is asked, and what its answers must be.

Each check compares the logprobs that the engine reports with a forward pass of the learner's own on the weights that
the engine should have, and with one on weights that it should not have: agreement means something only where the
alternatives are far away.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from r1async.generator.canary import TOLERANCES, Tolerance
from r1async.generator.engine import Engine, EngineError, Request
from r1async.generator.sample import Sample
from r1async.models.forward import token_logprobs
from r1async.types import PolicyVersion, Sampling

APART = 100
"""Times the tolerated mean by which a wrong hypothesis must miss for the right one to be proven."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's outcome."""

    check: str
    ok: bool
    text: str
    """The figures; where it failed, what it means and what to do."""


class Patient:
    """An engine under examination, driven by hand.

    Args:
        engine: without requests.
        arrived: set by the engine's `notify`.
        deadline_s: seconds without a token after which it is given up.
    """

    def __init__(self, engine: Engine, arrived: threading.Event, deadline_s: float) -> None:
        self.engine = engine
        self._arrived, self._deadline_s = arrived, deadline_s
        self._ids = 0
        self._number = 0

    def install(self, tensors: Mapping[str, Tensor]) -> tuple[PolicyVersion, float]:
        """As a version that was never there before; with the pause in seconds."""
        self._number += 1
        version = PolicyVersion(1, self._number)
        return version, self.engine.install(version, tensors)

    def samples(
        self, prompts: Sequence[NDArray[np.int32]], max_tokens: int, temperature: float = 1.0
    ) -> dict[int, Sample]:
        """Requests that are put in, nothing of them yet."""
        sampling = Sampling(temperature=temperature, top_p=1.0, top_k=0, max_tokens=max_tokens)
        made = {}
        for prompt in prompts:
            self._ids += 1
            made[self._ids] = Sample(Request(id=self._ids, rollout=self._ids, prompt_ids=prompt, sampling=sampling))
        self.engine.submit([sample.request for sample in made.values()])
        return made

    def collect(self, samples: Mapping[int, Sample], until: Callable[[], bool]) -> None:
        """Takes what is reported, until it is enough or all are finished.

        Raises:
            EngineError: nothing came for the deadline.
        """
        last = time.monotonic()
        while not until() and not all(sample.finished for sample in samples.values()):
            self._arrived.clear()
            reports = self.engine.step()
            for progress in reports:
                if progress.id in samples:
                    samples[progress.id].take(progress)
            if reports:
                last = time.monotonic()
            elif not self.engine.computes and not self._arrived.wait(last + self._deadline_s - time.monotonic()):
                raise EngineError(f"{self.engine.describe()} sampled nothing for {self._deadline_s:g} s")

    def sample(self, prompts: Sequence[NDArray[np.int32]], max_tokens: int, temperature: float = 1.0) -> list[Sample]:
        """To their end."""
        samples = self.samples(prompts, max_tokens, temperature)
        self.collect(samples, lambda: False)
        return list(samples.values())


def noisy(tensors: Mapping[str, Tensor], seed: int, share: float = 0.2) -> dict[str, Tensor]:
    """Other weights of the same kind: each tensor with noise, a share of its deviation (of its size, if constant)."""
    generator = torch.Generator().manual_seed(seed)
    changed = {}
    for name, tensor in tensors.items():
        flat = tensor.float()
        spread = float(flat.std()) if flat.numel() > 1 else 0.0
        scale = share * (spread or max(float(flat.abs().mean()), 0.1))
        changed[name] = (flat + scale * torch.randn(flat.shape, generator=generator)).to(tensor.dtype)
    return changed


class Examination:
    """All checks of one engine.

    Args:
        patient: the engine.
        models: two of the engine's architecture on the CPU in float32, to be filled with weights.
        tensors: a whole set of weights, as the run serves them.
        dtype: they are served in.
        temperature: of the run.
        max_len: tokens of the longest request.
        vocabulary: token ids are below it.
    """

    def __init__(
        self,
        patient: Patient,
        models: tuple[PreTrainedModel, PreTrainedModel],
        tensors: Mapping[str, Tensor],
        *,
        dtype: str,
        temperature: float,
        max_len: int,
        vocabulary: int,
    ) -> None:
        from r1async.models.loading import DTYPES, load_state

        self._patient = patient
        served = {name: tensor.to(DTYPES[dtype]) for name, tensor in tensors.items()}
        self._weights = (served, noisy(served, seed=1))
        self._models = models
        for model, weights in zip(models, self._weights, strict=True):
            load_state(model, {name: tensor.float() for name, tensor in weights.items()})
        self._tolerance: Tolerance = TOLERANCES[dtype]
        self._temperature = temperature
        self._max_len = max_len
        self._max_tokens = max(1, min(64, max_len // 2))
        rng = np.random.default_rng(20250122)
        self._prompt = lambda length: rng.integers(0, vocabulary, length).astype(np.int32)

    def run(self) -> Iterator[Finding]:
        """One check after the other; each leaves the engine idle."""
        checks = (self.weights, self.reload, self.prefix_cache, self.in_flight, self.temperature)
        for check in checks:
            try:
                yield check()
            except EngineError as error:
                yield Finding(check.__name__, False, str(error))
                return

    def weights(self) -> Finding:
        """The weights it is given are those it serves."""
        self._patient.install(self._weights[0])
        off = self._off(self._patient.sample(self._prompts(8), self._max_tokens, self._temperature), 0)
        ok = self._agrees(off)
        text = f"logprobs against the learner's forward: {_figures(off)}"
        return Finding("weights", ok, text if ok else f"{text}; it computes another model, or another temperature")

    def reload(self) -> Finding:
        """After an update it serves the new weights, all of them, and not the old ones."""
        self._patient.install(self._weights[0])
        _, pause_s = self._patient.install(self._weights[1])
        samples = self._patient.sample(self._prompts(8), self._max_tokens, self._temperature)
        new, old = self._off(samples, 1), self._off(samples, 0)
        ok = self._agrees(new) and self._misses(old)
        text = f"new weights: {_figures(new)}; old weights: {_figures(old)}; paused {pause_s * 1000:.0f} ms"
        if not ok:
            text += "; a part of the model was not reloaded, or not as it was sent" + self._suspect(samples)
        return Finding("reload", ok, text)

    def prefix_cache(self) -> Finding:
        """What old weights left in the prefix cache is not served to a request that came after the update."""
        block = self._patient.engine.block_tokens
        if not block:
            return Finding("prefix_cache", True, "the engine keeps no prefix cache")
        tokens = max(1, min(16, self._max_len // 4))
        length = min(2 * block + 12, self._max_len - 2 * tokens)
        prompt = [self._prompt(length)]
        self._patient.install(self._weights[0])
        self._patient.sample(prompt, tokens)
        holding = self._patient.samples(prompt, 2 * tokens)
        self._patient.collect(holding, lambda: any(sample.token_ids for sample in holding.values()))
        self._patient.install(self._weights[1])
        samples = self._patient.sample(prompt, tokens)
        self._patient.engine.abort(list(holding))
        new, old = self._off(samples, 1), self._off(samples, 0)
        ok = self._agrees(new) and self._misses(old)
        text = f"a prompt of {length} tokens, seen before the update: new weights: {_figures(new)}"
        if length <= block:
            text += f"; the context is too short to fill a block of {block}, so nothing can be stale"
        return Finding("prefix_cache", ok, text if ok else f"{text}; the prefix cache still holds the old weights' KV")

    def in_flight(self) -> Finding:
        """Weights that change in the middle of a request: exact version labels, KV as the policy says."""
        patient, policy = self._patient, self._patient.engine.kv_policy
        before, _ = patient.install(self._weights[0])
        samples = patient.samples(self._prompts(min(16, patient.engine.free)), self._max_tokens)
        goal = max(1, self._max_tokens // 4)
        patient.collect(samples, lambda: all(len(each.token_ids) >= goal or each.finished for each in samples.values()))
        after, pause_s = patient.install(self._weights[1])
        patient.collect(samples, lambda: False)
        off: dict[str, list[float]] = {"kept": [], "recomputed": [], "old": []}
        for sample in samples.values():
            n = sample.versions.count(before)
            labels = [before] * n + [after] * (len(sample.token_ids) - n)
            told = np.array(sample.logprobs)
            first = np.abs(told[:n] - self._logprobs(0, sample)[:n])
            if sample.versions != labels or (n and not self._agrees(first)):
                text = f"version labels: {_figures(first)} for the {n} tokens labelled {before}; labels are wrong"
                return Finding("in_flight", False, text)
            if n < len(sample.token_ids):
                for name, expected in self._hypotheses(sample, n).items():
                    off[name] += np.abs(told[n:] - expected).tolist()
        if not off["old"]:
            return Finding("in_flight", False, "every request had ended before the weights changed: nothing was proven")
        figures = {name: np.array(values) for name, values in off.items()}
        meant = "kept" if policy == "keep" else "recomputed"
        ok = self._agrees(figures[meant]) and all(self._misses(figures[name]) for name in figures if name != meant)
        text = ", ".join(f"{name} KV: {_figures(values)}" for name, values in figures.items() if name != "old")
        text = f"kv_policy={policy}: {text}; old weights: {_figures(figures['old'])}; paused {pause_s * 1000:.0f} ms"
        return Finding("in_flight", ok, text if ok else f"{text}; the policy is not what happened")

    def temperature(self) -> Finding:
        """Logprobs are of the distribution that is sampled from."""
        other = 0.7 if abs(self._temperature - 0.7) > 0.1 else 1.3
        self._patient.install(self._weights[0])
        samples = self._patient.sample(self._prompts(8), self._max_tokens, other)
        scaled, plain = self._off(samples, 0, other), self._off(samples, 0, 1.0)
        ok = self._agrees(scaled) and self._misses(plain)
        text = f"at {other}: {_figures(scaled)}; as if at 1: {_figures(plain)}"
        if not ok:
            text += "; set the engine to report processed logprobs, after the temperature"
        return Finding("temperature", ok, text)

    def _prompts(self, n: int) -> list[NDArray[np.int32]]:
        return [self._prompt(min(12, self._max_len - self._max_tokens)) for _ in range(n)]

    def _agrees(self, off: NDArray) -> bool:
        return len(off) > 0 and self._tolerance.admits(len(off), float(off.mean()), float(off.max()))

    def _misses(self, off: NDArray) -> bool:
        # bfloat16 is tolerated so much that a hundred times it would be more than any weights are apart.
        return float(off.mean()) >= min(APART * self._tolerance.mean, 5 * self._tolerance.mean + 0.01)

    def _off(self, samples: Sequence[Sample], which: int, temperature: float | None = None) -> NDArray:
        at = self._temperature if temperature is None else temperature
        parts = [np.abs(np.array(s.logprobs) - self._logprobs(which, s, at)) for s in samples]
        return np.concatenate(parts) if parts else np.empty(0)

    @torch.no_grad()
    def _logprobs(self, which: int, sample: Sample, temperature: float = 1.0) -> NDArray:
        prompt = sample.request.prompt_ids.tolist()
        ids = torch.tensor([[*prompt, *sample.token_ids]])
        logits = self._models[which](ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        return token_logprobs(logits, ids[0, len(prompt) :], temperature)[0].numpy()

    @torch.no_grad()
    def _hypotheses(self, sample: Sample, n: int) -> dict[str, NDArray]:
        """Logprobs of the tokens from n on, by what became of the KV of the n before."""
        prompt, tokens = sample.request.prompt_ids.tolist(), sample.token_ids
        before, after = self._models
        cache = DynamicCache()
        # Held when the weights changed: all tokens but the last, which is the next input.
        seen = [*prompt, *tokens[:n]][:-1]
        if seen:
            before(torch.tensor([seen]), past_key_values=cache, use_cache=True)
        inputs = [[*prompt, *tokens[:n]][-1], *tokens[n:-1]]
        logits = [after(torch.tensor([[t]]), past_key_values=cache, use_cache=True).logits[0, -1] for t in inputs]
        kept = token_logprobs(torch.stack(logits), torch.tensor(tokens[n:]), 1.0)[0].numpy()
        return {"kept": kept, "recomputed": self._logprobs(1, sample)[n:], "old": self._logprobs(0, sample)[n:]}

    def _suspect(self, samples: Sequence[Sample]) -> str:
        """The part whose old weights, among new ones, explain what was seen best."""
        model, (old, new) = self._models[1], self._weights
        explained: dict[str, float] = {}
        state = dict(model.named_parameters())
        for part in sorted(old.keys() & state.keys()):
            state[part].data.copy_(old[part])
            explained[part] = float(self._off(samples, 1).mean())
            state[part].data.copy_(new[part])
        head = model.get_output_embeddings()
        if model.config.tie_word_embeddings and isinstance(head, torch.nn.Linear):
            shared = head.weight
            embedding = next(name for name, parameter in state.items() if parameter is shared)
            head.weight = torch.nn.Parameter(old[embedding].float())
            explained["the language-model head, tied to the embedding,"] = float(self._off(samples, 1).mean())
            head.weight = shared
        part = min(explained, key=explained.__getitem__)
        if explained[part] <= self._tolerance.mean:
            return f": {part} still has its old weights"
        return ""


def _figures(off: NDArray) -> str:
    if not len(off):
        return "no token"
    return f"mean |difference| {off.mean():.2g}, max {off.max():.2g} nats over {len(off)} tokens"
