"""A Hugging Face causal LM from a directory, its tokenizer, and its weights as named tensors.

Weights travel between roles as ``{state-dict name: tensor}``: names of the Hugging Face checkpoint, a tied
language-model head left out, since the embedding it shares is there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils.import_utils import is_flash_attn_2_available

from r1async.tasks.tokenizer import GENERIC_CLASSES, named_class

DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
HEAD = "lm_head.weight"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")


class ModelError(ValueError):
    """A model directory or a set of weights that cannot be used; the message names the file or the tensor."""


def load_config(path: str | Path) -> PreTrainedConfig:
    """The model's config.json.

    Raises:
        ModelError: the directory or its config.json is missing or unreadable.
    """
    directory = Path(path)
    if not (directory / "config.json").is_file():
        raise ModelError(f"model.path={str(path)!r} must be a directory with a Hugging Face config.json in it")
    try:
        return AutoConfig.from_pretrained(directory)
    except (ValueError, KeyError, OSError) as error:
        raise ModelError(f"{directory / 'config.json'} cannot be read: {error}") from error


def check_context(config: PreTrainedConfig, max_prompt_tokens: int, max_tokens: int) -> None:
    """Refuses completions that would run past the positions that the model was trained on, where it says how many.

    Raises:
        ModelError: the longest prompt with the longest completion does not fit.
    """
    limit = context_of(config)
    if limit is not None and max_prompt_tokens + max_tokens > limit:
        raise ModelError(
            f"data.max_prompt_tokens={max_prompt_tokens} + sampling.max_tokens={max_tokens} is "
            f"{max_prompt_tokens + max_tokens} tokens, the model has max_position_embeddings={limit}; lower either, or "
            "take a model with a longer context"
        )


def load_model(
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    attention: Literal["auto", "sdpa", "flash_attention_2", "eager"] = "auto",
    device: str | torch.device = "cpu",
) -> PreTrainedModel:
    """The causal LM in ``path``, ready to train.

    Raises:
        ModelError: no checkpoint there, or one whose weights do not fill the model.
    """
    config = load_config(path)
    loaded = AutoModelForCausalLM.from_pretrained(
        path,
        config=config,
        ignore_mismatched_sizes=True,
        dtype=dtype,
        attn_implementation=_attention(attention, torch.device(device)),
        output_loading_info=True,
    )
    # With output_loading_info it is a pair, which the annotations of transformers leave out.
    model, info = cast(tuple[PreTrainedModel, Mapping[str, Iterable]], loaded)
    _refuse_if_not_filled(path, info)
    nn.Module.to(model, device)
    return model


def load_scorer(
    path: str | Path,
    *,
    pad: int,
    seed: int,
    attention: Literal["auto", "sdpa", "flash_attention_2", "eager"] = "auto",
    device: str | torch.device = "cpu",
) -> PreTrainedModel:
    """The model in ``path`` with a head of one number, ready to train: the base of a causal LM gets a new head.

    Args:
        pad: token that pads; such a model reads its number at the last token that is none.
        seed: of a new head.

    Raises:
        ModelError: no checkpoint there, one whose weights do not fill the base, or no such model of its kind.
    """
    config = load_config(path)
    config.num_labels, config.pad_token_id = 1, pad
    torch.manual_seed(seed)
    try:
        loaded = AutoModelForSequenceClassification.from_pretrained(
            path,
            config=config,
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
            attn_implementation=_attention(attention, torch.device(device)),
            output_loading_info=True,
        )
    except ValueError as error:
        raise ModelError(f"{path}: transformers has no sequence classifier of {config.model_type}: {error}") from error
    model, info = cast(tuple[PreTrainedModel, Mapping[str, Iterable]], loaded)
    new = {f"{name}.weight" for name in ("score", "classifier")}
    _refuse_if_not_filled(path, {**info, "missing_keys": [each for each in info["missing_keys"] if each not in new]})
    nn.Module.to(model, device)
    return model


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer in ``path``.

    Raises:
        ModelError: there is none.
    """
    load_config(path)
    # Where none of these is, transformers 5 makes an empty tokenizer without a word.
    if not any((Path(path) / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelError(f"model.path={str(path)!r} has no tokenizer (none of {', '.join(_TOKENIZER_FILES)})")
    try:
        # For some architectures AutoTokenizer takes the model's own class though the tokenizer names a generic one, and
        # that class then reads tokenizer.json with a pre-tokenizer of its own: tokens are lost without a word.
        if named_class(Path(path)) in GENERIC_CLASSES and (Path(path) / "tokenizer.json").is_file():
            return PreTrainedTokenizerFast.from_pretrained(path)
        return AutoTokenizer.from_pretrained(path)
    except (ValueError, OSError) as error:
        raise ModelError(f"model.path={str(path)!r} has no usable tokenizer: {error}") from error


def stop_token_ids(path: str | Path, tokenizer: PreTrainedTokenizerBase, extra: Sequence[str] = ()) -> tuple[int, ...]:
    """Tokens that end a completion: the model's end-of-sequence tokens and ``extra``, ascending.

    The generation config decides (chat models list several there), else config.json, else the tokenizer.

    Raises:
        ModelError: an extra stop that is not one token of the vocabulary, or no stop token at all.
    """
    found = _eos(path) or _ids(tokenizer.eos_token_id)
    for text in extra:
        ids = tokenizer.encode(text, add_special_tokens=False)
        if len(ids) != 1:
            raise ModelError(f"sampling.stop {text!r} must be one token of the vocabulary, got {len(ids)}: {ids}")
        found |= set(ids)
    if not found:
        raise ModelError(f"{path} names no end-of-sequence token; say one with sampling.stop=[...]")
    return tuple(sorted(found))


def state_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """The model's weights by state-dict name, sharing its memory; a tied head is left out."""
    tied = bool(model.config.tie_word_embeddings)
    return {name: tensor.detach() for name, tensor in model.state_dict().items() if not (tied and name == HEAD)}


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The weights in a directory's safetensors files, as `state_tensors` names them, without making a model.

    Raises:
        ModelError: no safetensors there, or an index that names a missing file.
    """
    directory = Path(path)
    tied = bool(load_config(directory).tie_word_embeddings)
    tensors: dict[str, Tensor] = {}
    for file in _safetensors_files(directory):
        with safe_open(file, framework="pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys() if not (tied and name == HEAD)}  # noqa: SIM118
    return tensors


def check_tensors(wanted: Mapping[str, torch.Size | tuple[int, ...]], tensors: Mapping[str, Tensor]) -> None:
    """Says which tensor makes ``tensors`` other than a whole set of the ``wanted`` shapes, before any is used.

    Raises:
        ModelError: a tensor missing, foreign, of another shape, not floating-point, or with NaN or inf in it.
    """
    if missing := sorted(wanted.keys() - tensors.keys()):
        raise ModelError(f"weights have no tensor {missing[0]!r} ({len(missing)} of {len(wanted)} missing)")
    if foreign := sorted(tensors.keys() - wanted.keys()):
        raise ModelError(f"weights have a tensor {foreign[0]!r} that the model has not ({len(foreign)} such)")
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != tuple(wanted[name]):
            raise ModelError(f"tensor {name!r} must have shape {tuple(wanted[name])}, got {tuple(tensor.shape)}")
        if not tensor.is_floating_point():
            raise ModelError(f"tensor {name!r} must be floating-point, got {tensor.dtype}")
        # One pass, and NaN shows in both; isfinite().all() takes four times as long.
        if tensor.numel() and not all(bool(extreme.isfinite()) for extreme in tensor.aminmax()):
            raise ModelError(f"tensor {name!r} has NaN or inf in it")


@torch.no_grad()
def load_state(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> None:
    """Copies a whole set of weights into the model, all of it or nothing.

    Raises:
        ModelError: as `check_tensors` says; the model is as it was.
    """
    own = state_tensors(model)
    check_tensors({name: tensor.shape for name, tensor in own.items()}, tensors)
    for name, tensor in own.items():
        tensor.copy_(tensors[name])


def context_of(config: PreTrainedConfig) -> int | None:
    """Longest text in tokens; None if the architecture knows no limit."""
    positions: int | None = getattr(config, "max_position_embeddings", None)  # not every architecture has it
    rope = getattr(config, "rope_parameters", None) or {}
    if positions is None or rope.get("rope_type") not in ("linear", "yarn"):
        return positions
    # These stretch the context, and checkpoints differ in whether max_position_embeddings says it before or after.
    return max(positions, int(rope["factor"] * rope.get("original_max_position_embeddings", positions)))


def _attention(attention: str, device: torch.device) -> str:
    if attention != "auto":
        return attention
    return "flash_attention_2" if device.type == "cuda" and is_flash_attn_2_available() else "sdpa"


def _eos(path: str | Path) -> set[int]:
    if (Path(path) / "generation_config.json").is_file():
        ids = _ids(GenerationConfig.from_pretrained(path).eos_token_id)
        if ids:
            return ids
    return _ids(load_config(path).eos_token_id)


def _ids(value: object) -> set[int]:
    """Configs name one id, several, or none."""
    values = value if isinstance(value, list | tuple) else [value]
    return {token for token in values if isinstance(token, int)}


def _refuse_if_not_filled(path: str | Path, info: Mapping[str, Iterable]) -> None:
    for kind, says in (("missing_keys", "has no tensor"), ("mismatched_keys", "has another shape of tensor")):
        names = sorted(str(entry[0] if isinstance(entry, tuple) else entry) for entry in info[kind])
        if names:
            raise ModelError(f"{path} {says} {names[0]!r} ({len(names)} such); is it a checkpoint of another model?")


def _safetensors_files(directory: Path) -> list[Path]:
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        names = ["model.safetensors"]
    else:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    for name in names:
        if not (directory / name).is_file():
            raise ModelError(f"{directory / name} is missing; weights are read from safetensors files only")
    return [directory / name for name in names]
