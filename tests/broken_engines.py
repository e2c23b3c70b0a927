"""The embedded engine, broken on purpose in the ways in which real ones have been seen to be."""

from __future__ import annotations

from dataclasses import replace

import torch
from r1async.generator.torch_engine import TorchEngine


class HeadNotReloaded(TorchEngine):
    """A tied head that has a copy of the embedding keeps the first one it got."""

    def install(self, version, tensors):
        pause_s = super().install(version, tensors)
        weights = self._main.weights
        assert weights is not None
        if weights.head is weights.embedding:
            weights.head = weights.embedding.clone()
        return pause_s


class StalePrefix(TorchEngine):
    """Prompts are looked up in a prefix cache that no update clears."""

    @property
    def block_tokens(self) -> int:
        return 4

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self._kept = {}

    def _compute_contexts(self, pool, weights, todo):
        fresh = [(row, context) for row, context in todo if context.tobytes() not in self._kept]
        if fresh:
            super()._compute_contexts(pool, weights, fresh)
        shape, cache = pool.cache.shape, pool.cache
        for row, context in todo:
            rows = [
                layer.view(2, cache.rows, shape.kv_heads, cache.columns, shape.head_dim)[:, row, :, : len(context)]
                for layer in cache.layers
            ]
            kept = self._kept.setdefault(context.tobytes(), [each.clone() for each in rows])
            for each, before in zip(rows, kept, strict=True):
                each.copy_(before)


class SwappedTensors(TorchEngine):
    """Two tensors of one shape change places on the way."""

    first, second = "model.layers.0.input_layernorm.weight", "model.layers.0.post_attention_layernorm.weight"

    def install(self, version, tensors):
        swapped = {**tensors, self.first: tensors[self.second], self.second: tensors[self.first]}
        return super().install(version, swapped)


class FlippedBit(TorchEngine):
    """One bit of one weight is another, in every set after the first."""

    name = "model.layers.1.mlp.down_proj.weight"

    def install(self, version, tensors):
        if self._main.version is None:
            return super().install(version, tensors)
        flipped = tensors[self.name].clone()
        bits = flipped.view(torch.int32).flatten()
        bits[7] ^= 1 << 25  # of the exponent: the value is 16 times, or a sixteenth of, what it was
        return super().install(version, {**tensors, self.name: flipped})


class RawLogprobs(TorchEngine):
    """Reports logprobs as they are before the temperature, and samples so."""

    def submit(self, requests):
        super().submit([replace(each, sampling=replace(each.sampling, temperature=1.0)) for each in requests])


class WrongLabels(TorchEngine):
    """The new version's name comes one token late: an update that does not pause."""

    def install(self, version, tensors):
        before = self._main.version
        pause_s = super().install(version, tensors)
        if before is not None and len(self._main.slots):
            self._main.version = before
            self._late = version
        return pause_s

    def step(self):
        reports = super().step()
        if (late := self.__dict__.pop("_late", None)) is not None:
            self._main.version = late
        return reports


class DropsKV(TorchEngine):
    """Computes the KV of running requests again, whatever the policy is."""

    def install(self, version, tensors):
        pause_s = super().install(version, tensors)
        self._main.waiting |= self._main.slots.seats()
        return pause_s
