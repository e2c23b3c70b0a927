"""Tiny checkpoints made on the spot: a Qwen2, Qwen3 or Llama that fits in a few hundred kilobytes, with a tokenizer."""

from __future__ import annotations

from operator import methodcaller
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

Architecture = Literal["qwen2", "qwen3", "llama"]

SPECIAL = ["<pad>", "<bos>", "<eos>", "<think>", "</think>", "<answer>", "</answer>"]
VOCABULARY = [*SPECIAL, *"0123456789+-*=%,; ?()abcdxy"]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """34 tokens: seven special ones, then a character each."""
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(VOCABULARY)}, unk_token="<pad>"))
    pattern = Regex(r"</?(?:think|answer)>|<pad>|<bos>|<eos>|[\s\S]")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern, "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<pad>"
    )


def tiny_model(
    architecture: Architecture = "qwen2",
    *,
    tied: bool = True,
    seed: int = 0,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 2,
    kv_heads: int = 1,
    mlp: int = 192,
    vocabulary: int = len(VOCABULARY),
    scale: float = 0.12,
    rope: dict | None = None,
    **config: object,
) -> PreTrainedModel:
    """A random model of the demo's shape. ```scale``: the weights' deviation; logits span a few nats."""
    cls, make = {
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
    }[architecture]
    if architecture == "qwen3":
        config.setdefault("head_dim", hidden // heads)
    made = cls(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=tied,
        rope_parameters=rope or {"rope_type": "default", "rope_theta": 10000.0},
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **config,
    )
    model = make(made).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            # Norm weights stay near one and biases are not zero, so a forward that drops either is caught.
            parameter.copy_(1 + 0.1 * noise if "norm" in name else scale * noise)
    return model


def save_tiny(
    directory: Path,
    architecture: Architecture = "qwen2",
    *,
    tied: bool = True,
    hidden: int = 64,
    mlp: int = 192,
    scale: float = 0.12,
) -> Path:
    """`tiny_model` and `tiny_tokenizer` as a Hugging Face directory."""
    model = tiny_model(architecture, tied=tied, hidden=hidden, mlp=mlp, scale=scale)
    model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


def generate(model: PreTrainedModel, prompts_BL: Tensor, settings: GenerationConfig) -> Tensor:
    """`generate` of transformers for prompts of one length; its annotations refuse its own models."""
    call = methodcaller(
        "generate", attention_mask=torch.ones_like(prompts_BL), generation_config=settings, inputs=prompts_BL
    )
    return call(model)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Any text: a token for each byte, after the special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


def save_byte_model(folder: Path) -> None:
    """A random model of 300 kB that can be asked anything and answers noise."""
    tokenizer = byte_tokenizer()
    model = tiny_model(vocabulary=len(tokenizer), hidden=32, mlp=64)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
