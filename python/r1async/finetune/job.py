"""What `r1async sft` and `r1async reward-model` differ in: rows, model, loss, and what lies beside the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from transformers import PreTrainedModel

from r1async.config import ConfigError
from r1async.config_finetune import FinetuneConfig, RewardModelConfig, SftConfig
from r1async.finetune.objectives import BradleyTerry, CompletionLoss, Objective
from r1async.finetune.render import Encoded, Renderer
from r1async.finetune.rows import pair_rows, sft_rows, split_rows
from r1async.finetune.store import MARKER, Dropped, Store, encode_pairs, encode_rows, make_store, open_store, store_key
from r1async.models.loading import load_model, load_scorer

Kind = Literal["sft", "reward-model"]


class Source(NamedTuple):
    """A file's rows, and the examples (or the reason against one) of some of them."""

    rows: int
    examples: Callable[[range], Iterator[Sequence[Encoded] | Dropped]]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training, before ranks and folders."""

    kind: Kind
    config: FinetuneConfig
    renderer: Renderer
    objective: Objective
    width: int
    """Sequences of one example."""
    open: Callable[[str, str, bool], Source]
    """Path, the setting that names it, and whether it is held out."""
    make_model: Callable[[torch.device], PreTrainedModel]
    beside: Mapping[str, object] = field(default_factory=dict)
    """`r1async.json` of the exported model: what whoever uses it must know."""


def sft_job(config: SftConfig) -> Job:
    renderer = Renderer(Path(config.model.path), config.data.template, config.data.end_token)

    def make_model(device: torch.device) -> PreTrainedModel:
        model = load_model(config.model.path, attention=config.model.attention, device=device)
        _ends_with(model, renderer.end)
        return model

    def open_file(path: str, setting: str, held_out: bool) -> Source:
        rows = sft_rows(config.data, path, setting, held_out=held_out)
        return Source(len(rows), lambda chosen: encode_rows(rows, chosen, renderer, config.data))

    return Job(
        kind="sft", config=config, renderer=renderer, objective=CompletionLoss(), width=1, open=open_file,
        make_model=make_model,
        beside={"kind": "sft", "template": config.data.template, "end_token_id": renderer.end},
    )  # fmt: skip


def reward_model_job(config: RewardModelConfig) -> Job:
    """A fresh head of one number on the base model, and no dropout."""
    renderer = Renderer(Path(config.model.path), config.data.template)
    pad = renderer.make_pad()

    def make_model(device: torch.device) -> PreTrainedModel:
        attention = config.model.attention
        return load_scorer(config.model.path, pad=pad, seed=config.seed, attention=attention, device=device)

    def open_file(path: str, setting: str, held_out: bool) -> Source:
        rows = pair_rows(config.data, path, setting, held_out=held_out)
        return Source(len(rows), lambda chosen: encode_pairs(rows, chosen, renderer, config.data))

    return Job(
        kind="reward-model", config=config, renderer=renderer, objective=BradleyTerry(pad), width=2, open=open_file,
        make_model=make_model,
        beside={"kind": "reward-model", "template": config.data.template},
    )  # fmt: skip


def keys(job: Job) -> tuple[str, str]:
    """Of the trained and of the held-out rows, without reading them."""
    data, model = job.config.data, Path(job.config.model.path)
    path = Path(data.path)
    if not path.exists():
        raise ConfigError(f"data.path: {data.path} does not exist")
    trained = store_key(path, model, data, range(-data.eval_rows))
    if data.eval_path:
        if not Path(data.eval_path).exists():
            raise ConfigError(f"data.eval_path: {data.eval_path} does not exist")
        return trained, store_key(Path(data.eval_path), model, data, range(0), held_out=True)
    return trained, store_key(path, model, data, range(-data.eval_rows, 0), held_out=True)


def make_stores(job: Job, folder: Path) -> None:
    """Tokenizes what is not tokenized yet.

    Raises:
        ConfigError: data that cannot be read or does not fit; nothing to train.
    """
    trained, held_out = (folder / key for key in keys(job))
    if (trained / MARKER).is_file() and (held_out / MARKER).is_file():
        return
    data = job.config.data
    source = job.open(data.path, "data.path", False)
    other = job.open(data.eval_path, "data.eval_path", True) if data.eval_path else None
    chosen, looked_at = split_rows(data, source.rows, None if other is None else other.rows)
    for target, each, selection in ((trained, source, chosen), (held_out, other or source, looked_at)):
        if not (target / MARKER).is_file():
            make_store(target, each.examples(selection), job.width)


def open_stores(job: Job, folder: Path) -> tuple[Store, Store]:
    """Trained and held-out examples.

    Raises:
        ConfigError: every row was dropped.
    """
    trained, held_out = (open_store(folder / key) for key in keys(job))
    data = job.config.data
    for store, name in ((trained, "data.path"), (held_out, "data.eval_path")):
        wanted = name == "data.path" or data.eval_path or data.eval_rows
        if wanted and not len(store):
            raise ConfigError(
                f"{name}: none of {store.account.rows} rows is left: dropped {dict(store.account.dropped)}"
            )
    return trained, held_out


def _ends_with(model: PreTrainedModel, end: int) -> None:
    """Whoever generates with the model stops at the token that was learned as the end."""
    settings = model.generation_config
    if settings is None:
        return
    known = settings.eos_token_id
    ends = [known] if isinstance(known, int) else list(known or [])
    if end not in ends:
        settings.eos_token_id = [*ends, end] if ends else end
