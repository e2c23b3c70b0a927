"""LoRA through peft: small trained matrices beside frozen layers, merged into them for export.

peft is an extra (`pip install 'r1async[lora]'`): the field's library for adapters, whose files other tools load.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from r1async.config import ConfigError
from r1async.config_finetune import LoraConfig

if TYPE_CHECKING:
    from peft import PeftModel

HEADS = ("lm_head", "score")
"""Output layers: never adapted; a reward model's, which is new, is trained whole."""


def add_adapters(model: PreTrainedModel, lora: LoraConfig, seed: int) -> PeftModel:
    """Freezes the model and puts adapters into it; the model is the same object, inside of what this returns.

    Raises:
        ConfigError: peft is missing, or a target that the model has not.
    """
    try:
        import peft
    except ImportError as error:
        raise ConfigError("lora.rank: needs peft; pip install 'r1async[lora]', or set lora.rank=0") from error
    linear = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)} - set(
        HEADS
    )
    if unknown := sorted(set(lora.targets) - linear):
        raise ConfigError(
            f"lora.targets: {unknown[0]!r} is no linear layer of this model; it has {', '.join(sorted(linear))}"
        )
    torch.manual_seed(seed)
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=sorted(lora.targets or linear))
    )
    for name, module in model.named_modules():
        if name == "score":
            module.requires_grad_(True)
    return adapted


@torch.no_grad()
def merged(adapted: PeftModel, trained: Mapping[str, Tensor], folder: Path | None) -> PreTrainedModel:
    """The plain model with the trained adapters added to its weights.

    Args:
        adapted: a fresh one on one device, as `add_adapters` made it.
        trained: whole tensors by name of the inner model's parameters.
        folder: the adapters alone are saved there.
    """
    inner = adapted.get_base_model()
    for name, parameter in inner.named_parameters():
        if name in trained:
            parameter.copy_(trained[name])
    if folder is not None:
        adapted.save_pretrained(str(folder))
    plain = adapted.merge_and_unload()
    assert isinstance(plain, PreTrainedModel), "peft gives back the model that it was given"
    return plain
