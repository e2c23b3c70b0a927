"""The embedded engine's forward pass on a preallocated KV cache: one token for each of many rows, or a few prompts.

The bits of a row depend on that row alone: not on the other rows, not on how many there are, not on how many masked
columns the cache shows. Widths and lengths are multiples of `UNIT`, where BLAS, softmax and reductions keep the order
of their sums on the machines tried; `rows_are_independent` measures whether they do on this one.
Shapes: B rows, W columns of the cache, R = B * K pairs of row and KV head; the rest as in `fused_model`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from r1async.generator.fused_model import FusedWeights, LayerWeights, Shape, random_weights

UNIT = 16
"""Rows and columns come in multiples of it: at least two vectors of any SIMD width."""
PREFILL_TOKENS = 256
"""Tokens of one prompt that one pass takes; a longer prompt takes several, always cut at the same places."""
PREFILL_ROWS = 512
"""Padded tokens of all prompts that one pass takes."""


def bucket(n: int) -> int:
    """The smallest width to compute n rows or columns in: multiples of a quarter of the power of two, at least `UNIT`.

    So padding is at most a quarter, and a cache that grows bucket by bucket is copied O(log n) times.
    """
    step = max(UNIT, (1 << (max(n, 1).bit_length() - 1)) // 4)
    return -(-max(n, 1) // step) * step


class LayerView(NamedTuple):
    """One layer of the cache, seen by a decode step."""

    cells: Tensor
    """(2 * all pairs * all columns, D)"""
    keys: Tensor
    """(R, D, W)"""
    values: Tensor
    """(R, W, D)"""


class KVCache:
    """Keys and values of ``rows`` rows: per layer (2, rows * K, columns, D), zero where nothing was written."""

    def __init__(self, shape: Shape, rows: int, columns: int) -> None:
        self.shape, self.rows, self.columns = shape, rows, columns
        self.layers = [torch.zeros(2, rows * shape.kv_heads, columns, shape.head_dim) for _ in range(shape.layers)]
        self._views: dict[tuple[int, int], list[LayerView]] = {}
        self._cells = self._all_cells()

    def grow(self, columns: int) -> None:
        """Makes room for ``columns``, layer by layer, so that one layer at a time exists twice."""
        for i, layer in enumerate(self.layers):
            grown = torch.zeros(*layer.shape[:2], columns, layer.shape[3])
            grown[:, :, : self.columns] = layer
            self.layers[i] = grown
        self.columns = columns
        self._views.clear()
        self._cells = self._all_cells()

    def _all_cells(self) -> Tensor:
        total = self.rows * self.shape.kv_heads
        return (torch.arange(total).unsqueeze(1) + torch.tensor([0, total])) * self.columns

    def views(self, pairs: int, columns: int) -> list[LayerView]:
        """Per layer, what a step of this width and length touches. Kept: making a view costs as much as using it."""
        views = self._views.get((pairs, columns))
        if views is None:
            views = [
                LayerView(layer.view(-1, layer.shape[3]), layer[0, :pairs, :columns].mT, layer[1, :pairs, :columns])
                for layer in self.layers
            ]
            self._views[pairs, columns] = views
        return views

    def cells(self, pairs: int) -> Tensor:
        """(R, 2), where the key row and the value row of each pair begin among a layer's cells."""
        return self._cells[:pairs]

    def copy_rows(self, source: Tensor, target: Tensor, columns: int) -> None:
        """Copies the first ``columns`` of rows ``source`` to rows ``target``; both (n,) int64, disjoint."""
        for layer in self.layers:
            by_row = layer.view(2, self.rows, self.shape.kv_heads, self.columns, self.shape.head_dim)
            by_row[:, target, :, :columns] = by_row[:, source, :, :columns]


class Decoder:
    """Forward passes for one shape of model; keeps no weights and no cache."""

    def __init__(self, shape: Shape, rope: Tensor) -> None:
        self.shape = shape
        self.rope = rope
        self._columns = torch.arange(len(rope))
        self._norm_eps = torch.full((1, 1), shape.norm_eps)
        self._scale = shape.head_dim**-0.5

    def decode(
        self, weights: FusedWeights, cache: KVCache, tokens_B: Tensor, position_B: Tensor, columns: int
    ) -> Tensor:
        """Writes the tokens' keys and values at their positions and returns the next tokens' logits, (B, V).

        Args:
            tokens_B: int64, one a row, rows 0 .. B - 1 of the cache; B a multiple of `UNIT`.
            position_B: int64, of those tokens, below ``columns``.
            columns: of the cache to attend over, a `bucket` of the highest position + 1.
        """
        shape = self.shape
        pairs = len(tokens_B) * shape.kv_heads
        rope = self.rope.index_select(0, position_B)
        position_R1 = position_B.unsqueeze(1)
        if shape.kv_heads > 1:
            position_R1 = position_R1.repeat_interleave(shape.kv_heads, dim=0)
            rope = rope.repeat_interleave(shape.kv_heads, dim=0)
        written = (position_R1 + cache.cells(pairs),)
        bias_RGW = torch.where(self._columns[:columns] <= position_R1, 0.0, -torch.inf)
        bias_RGW = bias_RGW.unsqueeze(1).expand(-1, shape.heads_per_kv, -1)
        hidden_BH = weights.embedding.index_select(0, tokens_B)
        for layer, view in zip(weights.layers, cache.views(pairs, columns), strict=True):
            queries, key_value = self._rotated_qkv(layer, hidden_BH, rope).split_with_sizes((shape.heads_per_kv, 2), 1)
            view.cells.index_put_(written, key_value)
            scores = torch.baddbmm(bias_RGW, queries, view.keys, alpha=self._scale)
            mixed = torch.bmm(torch.softmax(scores, -1), view.values)
            self._output_and_mlp(layer, hidden_BH, mixed.view(len(tokens_B), -1))
        return self._rms_norm(hidden_BH, weights.norm) @ weights.head.t()

    def prefill(self, weights: FusedWeights, cache: KVCache, tokens_nL: Tensor, rows_n: Tensor, start: int) -> None:
        """Writes keys and values of ``tokens_nL`` at columns ``start`` .. ``start + L`` of the cache's rows ``rows_n``.

        Padding at the end of a prompt is written too; nothing attends to it before it is overwritten. The logits come
        from `decode`, which is given the last prompt token, so nothing past the last layer's keys is computed.
        """
        shape, (n, length) = self.shape, tokens_nL.shape
        end, group, kv, dim = start + length, shape.heads_per_kv, shape.kv_heads, shape.head_dim
        rope = self.rope[start:end].repeat_interleave(kv, dim=0).repeat(n, 1, 1)
        seen_LW = torch.arange(end) <= torch.arange(start, end).unsqueeze(1)
        bias_LW = torch.zeros(length, end).masked_fill_(~seen_LW, -torch.inf)
        hidden_TH = weights.embedding.index_select(0, tokens_nL.reshape(-1))
        for i, layer in enumerate(weights.layers):
            qkv = self._rotated_qkv(layer, hidden_TH, rope).view(n, length, kv, group + 2, dim)
            by_row = cache.layers[i].view(2, cache.rows, kv, cache.columns, dim)
            by_row[:, rows_n, :, start:end] = qkv[:, :, :, -2:].permute(3, 0, 2, 1, 4)
            if i + 1 == shape.layers:
                return
            keys, values = by_row[:, rows_n, :, :end]
            # Query heads of one KV head go below one another: (n * K, G * L, D) against the head's keys.
            queries = qkv[:, :, :, :group].permute(0, 2, 3, 1, 4).reshape(n * kv, group * length, dim)
            scores = torch.baddbmm(
                bias_LW.repeat(group, 1).expand(n * kv, -1, -1),
                queries,
                keys.reshape(n * kv, end, dim).transpose(1, 2),
                alpha=self._scale,
            )
            mixed = torch.bmm(torch.softmax(scores, -1), values.reshape(n * kv, end, dim))
            mixed = mixed.view(n, kv, group, length, dim).permute(0, 3, 1, 2, 4).reshape(n * length, -1)
            self._output_and_mlp(layer, hidden_TH, mixed)

    def _rotated_qkv(self, layer: LayerWeights, hidden_BH: Tensor, rope: Tensor) -> Tensor:
        """(R, G + 2, D): query heads, key, value; queries and key normed (Qwen3) and rotated."""
        shape = self.shape
        normed = self._rms_norm(hidden_BH, layer.input_norm)
        qkv = _linear(normed, layer.qkv, layer.qkv_bias).view(-1, shape.heads_per_kv + 2, shape.head_dim)
        queries_and_key = qkv[:, :-1]
        if layer.query_norm is not None and layer.key_norm is not None:
            qkv[:, :-2] = self._rms_norm(qkv[:, :-2], layer.query_norm)
            qkv[:, -2] = self._rms_norm(qkv[:, -2], layer.key_norm)
        torch.view_as_complex(queries_and_key.unflatten(-1, (-1, 2))).mul_(rope)
        return qkv

    def _output_and_mlp(self, layer: LayerWeights, hidden_BH: Tensor, mixed: Tensor) -> None:
        """Adds the attention's output and the MLP's to ``hidden_BH``, in place."""
        _add_linear(hidden_BH, mixed, layer.output, layer.output_bias)
        normed = self._rms_norm(hidden_BH, layer.post_norm)
        gate, up = _linear(normed, layer.gate_up, layer.gate_up_bias).chunk(2, dim=-1)
        _add_linear(hidden_BH, functional.silu(gate, inplace=True).mul_(up), layer.down, layer.down_bias)

    def _rms_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """As F.rms_norm, which on a CPU takes two to three times as long as these five."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x.mul(torch.addcmul(self._norm_eps, norm, norm, value=1 / x.shape[-1]).rsqrt_()).mul_(weight)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.mm(x, weight.t()) if bias is None else torch.addmm(bias, x, weight.t())


def _add_linear(total: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    total.addmm_(x, weight.t())
    if bias is not None:
        total.add_(bias)


def rows_are_independent(decoder: Decoder, rows: int, columns: int) -> bool:
    """Whether, on this machine, a row's bits are the same in every width and every length of the cache.

    Measured on at most two layers of random weights with the model's sizes. If not, the engine always computes at
    full width and full length, one prompt at a time: dearer, but as reproducible.
    """
    probe = Decoder(replace(decoder.shape, layers=min(2, decoder.shape.layers)), decoder.rope)
    weights = random_weights(probe.shape)
    return _decode_is_independent(probe, weights, rows, columns) and _prefill_is_independent(probe, weights)


def _decode_is_independent(probe: Decoder, weights: FusedWeights, rows: int, columns: int) -> bool:
    generator = torch.Generator().manual_seed(1)
    cache = KVCache(probe.shape, rows, columns)
    for layer in cache.layers:
        layer.normal_(generator=generator)
    tokens = torch.randint(probe.shape.vocabulary, (rows,), generator=generator)
    position = torch.randint(UNIT, (rows,), generator=generator)
    whole = probe.decode(weights, cache, tokens, position, columns)
    # Narrow and short, middling, wide and long: the head of a large vocabulary is too dear for every combination.
    parts = {(UNIT, UNIT), (bucket(rows // 3), bucket(columns // 2)), (bucket(rows // 2), bucket(columns // 5))}
    return all(
        torch.equal(probe.decode(weights, cache, tokens[:width], position[:width], length), whole[:width])
        for width, length in sorted(parts)
        if width <= rows and length <= columns
    )


def _prefill_is_independent(probe: Decoder, weights: FusedWeights) -> bool:
    generator = torch.Generator().manual_seed(2)
    for length in (UNIT, 3 * UNIT):
        n = PREFILL_ROWS // length
        tokens = torch.randint(probe.shape.vocabulary, (n, length), generator=generator)
        together, alone = KVCache(probe.shape, n, length), KVCache(probe.shape, 1, length)
        probe.prefill(weights, together, tokens, torch.arange(n), 0)
        probe.prefill(weights, alone, tokens[-1:], torch.zeros(1, dtype=torch.long), 0)
        last = slice(-probe.shape.kv_heads, None)
        if not all(torch.equal(a[:, last], b) for a, b in zip(together.layers, alone.layers, strict=True)):
            return False
    return True
