"""Settings of `r1async sft` and `r1async reward-model`, with their ranges. Imports neither torch nor an engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from r1async.checks import ranges_broken
from r1async.config import MonitorConfig
from r1async.ranges import COUNT, MAYBE, POSITIVE, SHARE, Range


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseModelConfig:
    path: str = ""
    """Directory of the Hugging Face model that training starts from (config.json, safetensors, tokenizer)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the exported weights; training keeps float32 masters."""
    attention: Literal["auto", "sdpa", "flash_attention_2", "eager"] = "auto"
    """auto takes FlashAttention where its kernel exists, and packs without padding; else padded SDPA."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SftDataConfig:
    path: str = ""
    """JSONL or parquet file, a folder of those, or a folder saved by `datasets`."""
    eval_path: str = ""
    """Held-out rows in the same form. Empty: the last `data.eval_rows` of `data.path`."""
    eval_rows: int = 0
    """Rows held out of `data.path` and never trained; with `data.eval_path` all of its rows are taken."""
    messages_key: str = "messages"
    """Column with a whole conversation: a list of {role, content}. A row that has it needs no other."""
    prompt_key: str = "prompt"
    """Column with the prompt: a string, or a list of messages."""
    completion_key: str = "completion"
    """Column with what is to be learned: a string, or a list of one message of the assistant."""
    text_key: str = "text"
    """Column with plain text, all of which is learned; taken where a row has neither of the others."""
    template: Literal["none", "chat", "r1_zero"] = "chat"
    """chat: the tokenizer's chat template. none: the prompt as it is. r1_zero: R1-Zero's plain template."""
    turns: Literal["all", "last"] = "all"
    """Of a conversation, which turns of the assistant are learned."""
    end_token: str = ""
    """Token that ends a completion. Empty: what the chat template ends a turn with, else the tokenizer's own."""
    max_tokens: int = 4096
    """Tokens of a row, prompt included."""
    too_long: Literal["drop", "truncate", "refuse"] = "drop"
    """A longer row is dropped and counted, cut (its end is not learned then), or an error."""
    shuffle: bool = True
    """Shuffle the rows anew, by `seed`, in each epoch; false keeps the file's order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairDataConfig:
    path: str = ""
    """JSONL or parquet file, a folder of those, or a folder saved by `datasets`."""
    eval_path: str = ""
    """Held-out pairs in the same form. Empty: the last `data.eval_rows` of `data.path`."""
    eval_rows: int = 0
    """Pairs held out of `data.path` and never trained; with `data.eval_path` all of its rows are taken."""
    prompt_key: str = "prompt"
    """Column with the prompt: a string, or a list of messages. Without it both answers must be conversations."""
    chosen_key: str = "chosen"
    """Column with the better answer: a string, or a list of messages (after the prompt's, where there is one)."""
    rejected_key: str = "rejected"
    """Column with the worse answer, in the same form."""
    template: Literal["none", "chat", "r1_zero"] = "chat"
    """As in `r1async sft`; whoever uses the reward model must render prompts in the same way."""
    max_tokens: int = 4096
    """Tokens of the longer of prompt + chosen and prompt + rejected."""
    too_long: Literal["drop", "refuse"] = "drop"
    """A longer pair is dropped and counted, or an error. Cutting would hide what made the answer better."""
    shuffle: bool = True
    """Shuffle the pairs anew, by `seed`, in each epoch; false keeps the file's order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    epochs: int = 1
    """Passes over the data."""
    steps: int = 0
    """Optimizer steps at most; 0: as many as the epochs have. The schedule's end moves with it."""
    batch_size: int = 32
    """Rows that one optimizer step trains, over all ranks."""
    micro_batch_tokens: int = 16384
    """Tokens of one forward pass at most, padding included where there is any."""
    lr: float = 1e-5
    """Peak learning rate of AdamW."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's moment decay rates."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm; 0 does not clip."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Learning rate after the warm-up, down to `train.min_lr_ratio` of the peak at the last step."""
    warmup_ratio: float = 0.03
    """Share of all steps that are warm-up."""
    min_lr_ratio: float = 0.0
    """Share of the peak learning rate that the schedule ends at."""
    autocast: bool = False
    """bfloat16 autocast in forward and backward."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass."""
    ranks: int = 1
    """Processes on this machine (FSDP2 when more than one). Started by torchrun, its world decides instead."""
    threads: int = 1
    """Torch threads of one rank."""
    rank_deadline_s: float = 1800.0
    """Seconds a rank waits for the others in one collective before it fails; tokenizing the data counts."""
    eval_every: int = 0
    """Optimizer steps between two looks at the held-out rows; 0: only before and after."""
    checkpoint_every: int = 100
    """Optimizer steps between two checkpoints; one is always saved at the end and on Ctrl-C."""
    keep_checkpoints: int = 2
    """Checkpoints kept; older ones are deleted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    rank: int = 0
    """Rank of the adapters (LoRA, arXiv 2106.09685); 0 trains all weights."""
    alpha: int = 32
    """The adapters' product is multiplied by alpha / rank."""
    targets: tuple[str, ...] = ()
    """Names of the linear layers that get adapters. Empty: all but the head."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneConfig:
    """What the settings of both commands have."""

    name: str
    """The run's folder is `runs_dir`/`name`."""
    runs_dir: str = "runs"
    """Where runs live."""
    seed: int = 0
    """Seeds the order of the rows, a reward model's new head, and adapters."""
    resume: Literal["auto", "true", "false"] = "auto"
    """auto: go on with the run in the folder. true: insist on one. false: refuse a folder that holds one."""
    model: BaseModelConfig = field(default_factory=BaseModelConfig)
    data: SftDataConfig | PairDataConfig
    train: TrainConfig = field(default_factory=TrainConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)

    @property
    def run_dir(self) -> Path:
        return Path(self.runs_dir) / self.name


@dataclass(frozen=True, kw_only=True, slots=True)
class SftConfig(FinetuneConfig):
    name: str = "sft"
    data: SftDataConfig = field(default_factory=SftDataConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardModelConfig(FinetuneConfig):
    name: str = "reward-model"
    data: PairDataConfig = field(default_factory=PairDataConfig)


FINETUNE_RANGES: Mapping[str, Range] = {
    "seed": Range(0, 2**31 - 1),
    "data.eval_rows": MAYBE,
    "data.max_tokens": Range(2, 2**24),
    "train.epochs": COUNT,
    "train.steps": MAYBE,
    "train.batch_size": COUNT,
    "train.micro_batch_tokens": Range(2, 2**31),
    "train.lr": POSITIVE,
    "train.betas": Range(0, 0.999999),
    "train.weight_decay": Range(0),
    "train.max_grad_norm": Range(0),
    "train.warmup_ratio": Range(0, 0.9),
    "train.min_lr_ratio": SHARE,
    "train.ranks": Range(1, 4096),
    "train.threads": Range(1, 1024),
    "train.rank_deadline_s": Range(1, 30 * 86400),
    "train.eval_every": MAYBE,
    "train.checkpoint_every": COUNT,
    "train.keep_checkpoints": COUNT,
    "lora.rank": Range(0, 65536),
    "lora.alpha": POSITIVE,
    "monitor.interval_s": Range(0.05, 3600),
}


def sft_config(path: str | Path | None, overrides: Sequence[str] = ()) -> SftConfig:
    """The checked settings of `r1async sft`.

    Raises:
        ConfigError: as `r1async.config.load_config`.
    """
    from r1async.settings import load_as  # as in `load_config`: it needs the classes of config.py

    return load_as(SftConfig, finetune_problems, path, overrides)


def reward_model_config(path: str | Path | None, overrides: Sequence[str] = ()) -> RewardModelConfig:
    """The checked settings of `r1async reward-model`.

    Raises:
        ConfigError: as `r1async.config.load_config`.
    """
    from r1async.settings import load_as

    return load_as(RewardModelConfig, finetune_problems, path, overrides)


def finetune_problems(config: FinetuneConfig) -> list[str]:
    """Why these settings cannot work; empty when they can."""
    if found := ranges_broken(config, FINETUNE_RANGES):
        return found
    train, data = config.train, config.data
    if any(part in ("", ".", "..") for part in config.name.split("/")):
        found.append(f"name: must be a folder name such as sft or r1/sft, got {config.name!r}")
    for key, path in (("model.path", config.model.path), ("data.path", data.path)):
        if not path:
            found.append(f"{key}: must be set")
    if data.eval_path and data.eval_rows:
        found.append(
            f"data.eval_rows: {data.eval_rows} rows of data.path are held out only without data.eval_path; set one"
        )
    rows = 2 if isinstance(data, PairDataConfig) else 1
    if train.micro_batch_tokens < rows * data.max_tokens:
        found.append(
            f"train.micro_batch_tokens: {train.micro_batch_tokens} cannot hold "
            f"{'a pair' if rows == 2 else 'a row'} of data.max_tokens={data.max_tokens}; "
            f"set {rows * data.max_tokens} or more"
        )
    if train.ranks > train.batch_size:
        found.append(f"train.ranks: {train.ranks} ranks for {train.batch_size} rows a step leave some without work")
    if train.eval_every and not (data.eval_path or data.eval_rows):
        found.append("train.eval_every: there is nothing to look at; set data.eval_path or data.eval_rows")
    return found
