"""The weights of a Qwen2, Qwen3 or Llama, laid out for decoding.

Query, key and value of one KV head lie side by side, and the two halves of each rotary pair are neighbours, so
that one matrix product gives all three, one complex product rotates them, and every later view needs no copy.
Weights keep their Hugging Face names: each name has a view into the fused tensors that takes its values.
Shapes: H hidden, D head dimension, K KV heads, G query heads of one KV head, I width of the MLP, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from r1async.models.loading import HEAD, ModelError, check_tensors

SUPPORTED = ("llama", "qwen2", "qwen3")
_STATIC_ROPE = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What of a model's config the forward pass needs."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocabulary: int
    norm_eps: float
    tied: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool

    @property
    def heads_per_kv(self) -> int:
        return self.heads // self.kv_heads


def shape_of(config: PreTrainedConfig) -> Shape:
    """Reads a config, and refuses what the embedded engine would compute wrongly.

    Raises:
        ModelError: another architecture, or an option of a supported one that is not implemented, by name.
    """
    kind = config.model_type
    if kind not in SUPPORTED:
        name = (config.architectures or [kind])[0]
        raise ModelError(f"the embedded engine knows {', '.join(SUPPORTED)}; it does not know {name!r}")
    if config.hidden_act != "silu":
        raise ModelError(f"the embedded engine knows hidden_act 'silu', got {config.hidden_act!r}")
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise ModelError("the embedded engine has no sliding-window attention; set use_sliding_window to false")
    attention_bias = bool(getattr(config, "attention_bias", False))
    return Shape(
        hidden=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        mlp=config.intermediate_size,
        vocabulary=config.vocab_size,
        norm_eps=config.rms_norm_eps,
        tied=bool(config.tie_word_embeddings),
        qkv_bias=kind == "qwen2" or attention_bias,
        output_bias=kind != "qwen2" and attention_bias,
        mlp_bias=bool(getattr(config, "mlp_bias", False)),
        qk_norm=kind == "qwen3",
    )


def rope_table(config: PreTrainedConfig, positions: int) -> Tensor:
    """(positions, 1, D / 2) complex64, cos + i sin of each rotary pair, scaled as the config's rope type says.

    Raises:
        ModelError: a rope type whose frequencies depend on the length of the text.
    """
    parameters = config.rope_parameters
    rope_type = parameters["rope_type"]
    if rope_type not in _STATIC_ROPE:
        raise ModelError(f"the embedded engine knows rope types {', '.join(_STATIC_ROPE)}, got {rope_type!r}")
    if rope_type == "default":
        dim = shape_of(config).head_dim
        frequencies, scaling = 1.0 / parameters["rope_theta"] ** (torch.arange(0, dim, 2).float() / dim), 1.0
    else:
        frequencies, scaling = ROPE_INIT_FUNCTIONS[rope_type](config, torch.device("cpu"))
    angles = torch.arange(positions).float()[:, None] * frequencies.float()
    return torch.complex(angles.cos() * scaling, angles.sin() * scaling).unsqueeze(1)


@dataclass(slots=True)
class LayerWeights:
    """One layer. Matrices are stored (out, in) and used transposed."""

    input_norm: Tensor
    qkv: Tensor
    """(K * (G + 2) * D, H): for each KV head its query heads, its key, its value."""
    qkv_bias: Tensor | None
    query_norm: Tensor | None
    key_norm: Tensor | None
    output: Tensor
    output_bias: Tensor | None
    post_norm: Tensor
    gate_up: Tensor
    """(2 * I, H)"""
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


class FusedWeights:
    """One set of weights in float32; 16-bit ones are widened, which loses nothing and is faster on a CPU."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.views: dict[str, Tensor] = {}
        """Hugging Face name -> where its values go; same number of elements, possibly reordered."""
        self.wanted: dict[str, tuple[int, ...]] = {}
        """Hugging Face name -> shape."""
        self.embedding = self._plain("model.embed_tokens.weight", shape.vocabulary, shape.hidden)
        self.layers = [self._layer(f"model.layers.{i}.") for i in range(shape.layers)]
        self.norm = self._plain("model.norm.weight", shape.hidden)
        self.head = self.embedding if shape.tied else self._plain(HEAD, shape.vocabulary, shape.hidden)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes a whole set by Hugging Face name.

        Raises:
            ModelError: a tensor missing, foreign, mis-shaped or not finite; nothing has changed.
        """
        check_tensors(self.wanted, tensors)
        for name, view in self.views.items():
            view.copy_(tensors[name].reshape(view.shape))

    def copy_from(self, other: FusedWeights) -> None:
        """Takes another set of the same shape."""
        for name, view in self.views.items():
            view.copy_(other.views[name])

    def _plain(self, name: str, *size: int) -> Tensor:
        tensor = torch.zeros(size)
        self.views[name], self.wanted[name] = tensor, size
        return tensor

    def _stacked(self, names: tuple[str, ...], rows: int, *rest: int) -> Tensor:
        """Matrices (or biases) of ``rows`` rows each, one under the other."""
        tensor = torch.zeros(len(names) * rows, *rest)
        for i, name in enumerate(names):
            self.views[name], self.wanted[name] = tensor[i * rows : (i + 1) * rows], (rows, *rest)
        return tensor

    def _layer(self, prefix: str) -> LayerWeights:
        shape, attention, mlp = self.shape, f"{prefix}self_attn.", f"{prefix}mlp."
        query_width, gate_up = shape.heads * shape.head_dim, (f"{mlp}gate_proj", f"{mlp}up_proj")
        weights, biases = (tuple(f"{name}.{kind}" for name in gate_up) for kind in ("weight", "bias"))
        return LayerWeights(
            input_norm=self._plain(f"{prefix}input_layernorm.weight", shape.hidden),
            qkv=self._qkv(attention, "weight", shape.hidden),
            qkv_bias=self._qkv(attention, "bias") if shape.qkv_bias else None,
            query_norm=self._head_norm(f"{attention}q_norm.weight") if shape.qk_norm else None,
            key_norm=self._head_norm(f"{attention}k_norm.weight") if shape.qk_norm else None,
            output=self._plain(f"{attention}o_proj.weight", shape.hidden, query_width),
            output_bias=self._plain(f"{attention}o_proj.bias", shape.hidden) if shape.output_bias else None,
            post_norm=self._plain(f"{prefix}post_attention_layernorm.weight", shape.hidden),
            gate_up=self._stacked(weights, shape.mlp, shape.hidden),
            gate_up_bias=self._stacked(biases, shape.mlp) if shape.mlp_bias else None,
            down=self._plain(f"{mlp}down_proj.weight", shape.hidden, shape.mlp),
            down_bias=self._plain(f"{mlp}down_proj.bias", shape.hidden) if shape.mlp_bias else None,
        )

    def _qkv(self, prefix: str, kind: str, *rest: int) -> Tensor:
        """Hugging Face rotates dimension d together with d + D / 2; here the two become neighbours."""
        shape = self.shape
        kv, group, half = shape.kv_heads, shape.heads_per_kv, shape.head_dim // 2
        fused = torch.zeros(kv, group + 2, half, 2, *rest)
        self.views[f"{prefix}q_proj.{kind}"] = fused[:, :group].transpose(2, 3)
        self.views[f"{prefix}k_proj.{kind}"] = fused[:, group].transpose(1, 2)
        self.views[f"{prefix}v_proj.{kind}"] = fused[:, group + 1]
        self.wanted[f"{prefix}q_proj.{kind}"] = (shape.heads * shape.head_dim, *rest)
        for name in ("k_proj", "v_proj"):
            self.wanted[f"{prefix}{name}.{kind}"] = (kv * shape.head_dim, *rest)
        return fused.view(-1, *rest)

    def _head_norm(self, name: str) -> Tensor:
        fused = torch.zeros(self.shape.head_dim // 2, 2)
        self.views[name], self.wanted[name] = fused.t(), (self.shape.head_dim,)
        return fused.view(-1)


def random_weights(shape: Shape, seed: int = 0) -> FusedWeights:
    """Weights for measuring, scaled so that activations neither vanish nor blow up."""
    weights = FusedWeights(shape)
    # A large vocabulary repeats the same numbers: drawing a hundred million costs seconds.
    pool = torch.randn(2**20 - 1, generator=torch.Generator().manual_seed(seed)) / shape.hidden**0.5
    for view in weights.views.values():
        values = pool.repeat(-(-view.numel() // len(pool)))[: view.numel()].view(view.shape)
        view.copy_(values if view.dim() > 1 else values + 1)
    return weights
