"""The embedded engine: continuous batching in plain torch on the CPU, no server to start.

Same seed, same tokens: a rollout's tokens and logprobs depend on its prompt, its number, the run's seed and the
weights, bit for bit, not on what else is in the batch (`decoder`, `sampling`). Memory: the KV cache holds every slot
at the length of the longest rollout so far, 2 * layers * KV heads * head dimension * 4 bytes a token and slot, and
grows in steps of a quarter; weights are held once in float32, and once more when an evaluation first pins a version.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedConfig

from r1async.generator.decoder import PREFILL_ROWS, PREFILL_TOKENS, UNIT, Decoder, KVCache, bucket, rows_are_independent
from r1async.generator.engine import EngineError, KVPolicy, Progress, Request, WeightsError, check_request
from r1async.generator.fused_model import FusedWeights, rope_table, shape_of
from r1async.generator.sampling import sample
from r1async.generator.slots import Seat, Slots
from r1async.models.loading import ModelError
from r1async.types import PolicyVersion

log = logging.getLogger(__name__)

_INITIAL_COLUMNS = 64


class _Pool:
    """One weight set and the requests sampled under it."""

    def __init__(self, decoder: Decoder, capacity: int, seed: int) -> None:
        self.slots = Slots(capacity, seed)
        self.decoder = decoder
        self.weights: FusedWeights | None = None
        self.version: PolicyVersion | None = None
        self.waiting: dict[int, Seat] = {}
        """Placed but not yet in the cache, by id."""
        self._cache: KVCache | None = None

    @property
    def cache(self) -> KVCache:
        if self._cache is None:
            self._cache = KVCache(self.decoder.shape, self.slots.rows, _INITIAL_COLUMNS)
        return self._cache

    def load(self, version: PolicyVersion, tensors: Mapping[str, Tensor]) -> None:
        weights = self.weights or FusedWeights(self.decoder.shape)
        try:
            weights.load(tensors)
        except ModelError as error:
            raise WeightsError(f"version {version} refused, {self.version or 'none'} still served: {error}") from error
        self.weights, self.version = weights, version


class TorchEngine:
    """An `Engine` that computes inside `step`: one decode step of one weight set, the two in turn."""

    def __init__(
        self,
        config: PreTrainedConfig,
        *,
        seed: int,
        slots: int,
        max_len: int,
        stop_ids: Sequence[int],
        pinned_slots: int = 0,
        chunk_tokens: int = 64,
        kv_policy: KVPolicy = "keep",
    ) -> None:
        """Makes an engine that serves nothing before the first `install`.

        Args:
            config: of the model, as `load_config` reads it.
            seed: the run's; keys the sampling noise together with rollout and position.
            slots: unpinned requests at a time.
            max_len: tokens of the longest rollout, prompt and completion.
            stop_ids: tokens that end a completion.
            pinned_slots: pinned requests at a time, besides.
            chunk_tokens: unreported tokens of an unfinished request after which `step` reports them.
            kv_policy: abort is the same as recompute here: a request's context goes through the model again.

        Raises:
            ModelError: an architecture, or an option of one, that the embedded engine does not compute.
            ValueError: a size that is not positive, or a stop token outside the vocabulary.
        """
        if slots < 1 or pinned_slots < 0 or max_len < 2 or chunk_tokens < 1:
            raise ValueError(
                "want slots >= 1, pinned_slots >= 0, max_len >= 2, chunk_tokens >= 1, "
                f"got {slots}, {pinned_slots}, {max_len}, {chunk_tokens}"
            )
        shape = shape_of(config)
        self._is_stop = np.zeros(shape.vocabulary, np.bool_)
        for token in stop_ids:
            if not 0 <= token < shape.vocabulary:
                raise ValueError(f"stop token {token} is outside the vocabulary of {shape.vocabulary}")
            self._is_stop[token] = True
        self._max_len, self._chunk_tokens = max_len, chunk_tokens
        self.kv_policy: KVPolicy = kv_policy
        with torch.inference_mode():
            # Prefill pads a context to a bucket, so positions up to a bucket past the last are rotated too.
            self._decoder = Decoder(shape, rope_table(config, bucket(max_len) + PREFILL_TOKENS))
            self._main = _Pool(self._decoder, slots, seed)
            self._pinned = _Pool(self._decoder, pinned_slots, seed) if pinned_slots else None
            probe_rows = max(pool.slots.rows for pool in self._pools)
            self.independent = rows_are_independent(self._decoder, probe_rows, bucket(min(max_len, 1024)))
        if not self.independent:
            log.warning("this BLAS rounds a row by the batch's width: every step computes all rows at full length")
        self._turn = 0

    @property
    def capacity(self) -> int:
        return self._main.slots.capacity

    @property
    def pinned_capacity(self) -> int:
        return self._pinned.slots.capacity if self._pinned else 0

    @property
    def free(self) -> int:
        return self._main.slots.free

    @property
    def pinned_free(self) -> int:
        return self._pinned.slots.free if self._pinned else 0

    @property
    def version(self) -> PolicyVersion | None:
        return self._main.version

    @property
    def pinned(self) -> PolicyVersion | None:
        return self._pinned.version if self._pinned else None

    @property
    def busy(self) -> bool:
        return any(len(pool.slots) for pool in self._pools)

    @property
    def computes(self) -> bool:
        return True

    @property
    def block_tokens(self) -> int:
        return 0

    def describe(self) -> str:
        return "the embedded torch engine"

    @property
    def _pools(self) -> list[_Pool]:
        return [self._main, self._pinned] if self._pinned else [self._main]

    def submit(self, requests: Sequence[Request]) -> None:
        """See `Engine`. The prompts are prefilled by the next `step`."""
        ids: set[int] = set()
        for request in requests:
            self._check(request)
            if request.id in ids or any(request.id in pool.slots for pool in self._pools):
                raise ValueError(f"request {request.id} is in the engine already")
            ids.add(request.id)
        by_pool = [
            (pool, [r for r in requests if (r.pin is not None) == (pool is self._pinned)]) for pool in self._pools
        ]
        for pool, mine in by_pool:
            free, capacity = pool.slots.free, pool.slots.capacity
            if len(mine) > free:
                kind = "pinned " if pool is self._pinned else ""
                raise ValueError(f"{len(mine)} {kind}requests for {free} free slots of {capacity}")
        for pool, mine in by_pool:
            for request, seat in zip(mine, pool.slots.place(mine), strict=True):
                pool.waiting[request.id] = seat

    def abort(self, ids: Iterable[int]) -> None:
        for request_id in ids:
            for pool in self._pools:
                pool.waiting.pop(request_id, None)
                pool.slots.remove(request_id)

    @torch.inference_mode()
    def step(self) -> list[Progress]:
        """One token for every request of one weight set; the next call takes the other, if it has requests."""
        pools = [pool for pool in self._pools if len(pool.slots)]
        if not pools:
            return []
        self._turn += 1
        pool = pools[self._turn % len(pools)]
        assert pool.weights is not None
        assert pool.version is not None
        slots = pool.slots
        self._compact(pool)
        self._prefill(pool, pool.weights)
        width, columns = self._extent(pool)
        logits = self._decoder.decode(pool.weights, pool.cache, slots.tokens[:width], slots.positions[:width], columns)
        tokens, logprobs = (part.numpy() for part in sample(logits, slots.settings(width), slots.noise(width)))
        self._check_finite(pool, logprobs)
        return slots.append(tokens, logprobs, pool.version, self._is_stop, self._chunk_tokens)

    def flush(self) -> list[Progress]:
        return [progress for pool in self._pools for progress in pool.slots.flush()]

    @torch.inference_mode()
    def install(self, version: PolicyVersion, tensors: Mapping[str, Tensor]) -> float:
        started = time.monotonic()
        self._main.load(version, tensors)
        if self.kv_policy != "keep":
            self._main.waiting |= self._main.slots.seats()
        return time.monotonic() - started

    @torch.inference_mode()
    def install_pinned(self, version: PolicyVersion, tensors: Mapping[str, Tensor] | None) -> None:
        pool = self._pinned
        if pool is None:
            raise ValueError("the engine was made without pinned slots")
        if version == pool.version:
            return
        if len(pool.slots):
            raise ValueError(
                f"{len(pool.slots)} requests pinned to {pool.version} are unfinished; cannot pin {version}"
            )
        if tensors is not None:
            pool.load(version, tensors)
            return
        if self._main.weights is None or version != self._main.version:
            installed = self._main.version or "nothing"
            raise ValueError(f"cannot pin {version} without its tensors: {installed} is installed")
        pool.weights = pool.weights or FusedWeights(self._decoder.shape)
        pool.weights.copy_from(self._main.weights)
        pool.version = version

    def close(self) -> None:
        """Drops every request; memory goes with the engine."""
        for pool in self._pools:
            self.abort(pool.slots.ids())

    def _check(self, request: Request) -> None:
        check_request(request, max_len=self._max_len, vocabulary=len(self._is_stop))
        if request.pin is None and self._main.version is None:
            raise ValueError("no weights are installed")
        if request.pin is not None and request.pin != self.pinned:
            held = self.pinned or "none"
            raise ValueError(f"request {request.id} is pinned to {request.pin}, the engine holds {held}")

    def _compact(self, pool: _Pool) -> None:
        if not self.independent or pool.waiting:
            return
        moved = pool.slots.compact()
        if moved:
            source, target = (torch.from_numpy(rows) for rows in moved)
            pool.cache.copy_rows(source, target, min(pool.slots.columns, pool.cache.columns))

    def _extent(self, pool: _Pool) -> tuple[int, int]:
        """Width and columns of this step; always the whole where a row's bits would depend on them."""
        columns = pool.slots.columns if self.independent else bucket(self._max_len)
        self._reserve(pool, columns)
        return pool.slots.width if self.independent else pool.slots.rows, columns

    def _reserve(self, pool: _Pool, columns: int) -> None:
        if columns > pool.cache.columns:
            pool.cache.grow(columns)

    def _prefill(self, pool: _Pool, weights: FusedWeights) -> None:
        """Fills the cache for the requests placed since the last step; a context that several share goes once."""
        rows_of: dict[bytes, list[int]] = {}
        contexts: dict[bytes, NDArray[np.int64]] = {}
        for seat in pool.waiting.values():
            if len(seat.context):
                key = seat.context.tobytes()
                rows_of.setdefault(key, []).append(seat.row)
                contexts[key] = seat.context
        pool.waiting.clear()
        if not contexts:
            return
        self._reserve(pool, bucket(max(len(context) for context in contexts.values()) + UNIT))
        self._compute_contexts(pool, weights, [(rows_of[key][0], context) for key, context in contexts.items()])
        copies = [(first, other) for first, *others in rows_of.values() for other in others]
        if copies:
            # Of a shorter context what lies past its end is copied too; it is overwritten before it is attended to.
            source, target = torch.tensor(copies).t()
            pool.cache.copy_rows(source, target, max(len(context) for context in contexts.values()))

    def _compute_contexts(self, pool: _Pool, weights: FusedWeights, todo: list[tuple[int, NDArray[np.int64]]]) -> None:
        """Piece by piece; pieces of equal place and padded length go together, as many as `PREFILL_ROWS` holds."""
        longest = max(len(context) for _, context in todo)
        for start in range(0, longest, PREFILL_TOKENS):
            by_length: dict[int, list[tuple[int, NDArray[np.int64]]]] = {}
            for row, context in todo:
                if piece := len(context[start : start + PREFILL_TOKENS]):
                    by_length.setdefault(bucket(piece), []).append((row, context[start : start + PREFILL_TOKENS]))
            for length, pieces in by_length.items():
                self._reserve(pool, bucket(start + length))
                together = max(1, PREFILL_ROWS // length) if self.independent else 1
                for i in range(0, len(pieces), together):
                    self._prefill_pieces(pool, weights, pieces[i : i + together], length, start)

    def _prefill_pieces(
        self, pool: _Pool, weights: FusedWeights, pieces: list[tuple[int, NDArray[np.int64]]], length: int, start: int
    ) -> None:
        padded = np.zeros((len(pieces), length), np.int64)
        for i, (_, piece) in enumerate(pieces):
            padded[i, : len(piece)] = piece
        rows = torch.tensor([row for row, _ in pieces])
        self._decoder.prefill(weights, pool.cache, torch.from_numpy(padded), rows, start)

    def _check_finite(self, pool: _Pool, logprobs: NDArray[np.float32]) -> None:
        """Empty rows are checked with the others: they hold a token like any other."""
        finite = np.isfinite(logprobs)
        if not finite.all():
            bad = len(finite) - np.count_nonzero(finite)
            raise EngineError(
                f"version {pool.version} gives logits that are not finite, in {bad} of {len(finite)} rows"
            )
