"""From settings to a prompt source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from r1async.config import Config, ConfigError
from r1async.tasks import PromptError, PromptSource
from r1async.tasks.chain_mod import ChainModSource
from r1async.tasks.file import FileSource, Row, Rows, digest_of, read_rows
from r1async.tasks.swe import SweRows
from r1async.tasks.templates import Question, apply_template, render
from r1async.tasks.tokenizer import PromptTokenizer, TokenizerError, load_tokenizer
from r1async.types import Prompt


def open_source(config: Config, model_dir: Path) -> PromptSource:
    """The source that `data` describes, with the tokenizer of a model directory.

    Raises:
        ConfigError: the settings do not fit together, or the data or the tokenizer cannot be read.
    """
    try:
        tokenizer = load_tokenizer(model_dir)
        match config.data.task:
            case "chain-mod":
                source: PromptSource = _chain_mod(config, tokenizer)
            case "file" | "swe":
                source = _rows(config, tokenizer)
            case "none":
                source = NoPrompts()
    except TokenizerError as error:
        raise ConfigError(f"model: {error}") from error
    return source


class NoPrompts:
    """Nothing to train on: an evaluation on benchmarks alone."""

    total: int | None = 0
    fingerprint = "none"

    def prompt(self, ordinal: int) -> Prompt:
        raise IndexError(f"data.task=none has no prompts, asked for {ordinal}")

    def held_out(self, count: int) -> Sequence[Prompt]:
        if count:
            raise PromptError(f"eval.prompts={count}, but data.task=none has none; set eval.prompts=0")
        return []


def _chain_mod(config: Config, tokenizer: PromptTokenizer) -> PromptSource:
    data = config.data
    if data.template != "none":
        raise ConfigError(f"data.template={data.template}: task chain-mod has no words for it; set data.template=none")
    if data.epochs:
        raise ConfigError(f"data.epochs={data.epochs}: chain-mod draws new problems for ever; leave it 0, set `steps`")
    slow = Path(data.slow_path) if data.slow_path else None
    return ChainModSource(
        seed=config.seed,
        tokenizer=tokenizer,
        slow_share=data.slow_share,
        slow_rows=_slow_rows(config),
        slow_digest=_digest(config, data.slow_path) if slow else "",
    )


def _open_rows(config: Config, tokenizer: PromptTokenizer, path: str, *, held_out: bool) -> Rows:
    data = config.data
    if data.task == "swe":
        swe = config.reward.swe
        return SweRows(Path(path), swe.repos, swe.cache, tokenizer, data.template, data.max_prompt_tokens)
    setting = "data.eval_path" if held_out else "data.path"
    return read_rows(Path(path), data.prompt_key, data.answer_key, held_out=held_out, setting=setting)


def _rows(config: Config, tokenizer: PromptTokenizer) -> PromptSource:
    """Rows and held-out rows, which are the last of `data.path` unless `data.eval_path` names others."""
    data = config.data
    if not data.path:
        raise ConfigError("data.path: task file needs a JSONL or parquet file or a directory, got nothing")
    rows = _open_rows(config, tokenizer, data.path, held_out=False)
    if data.eval_path:
        held_out_rows = _open_rows(config, tokenizer, data.eval_path, held_out=True)
        held_out: Sequence[int] = range(len(held_out_rows))
    else:
        held_out_rows, held_out = rows, range(max(0, len(rows) - config.eval.prompts), len(rows))
        if len(held_out) == len(rows):
            raise ConfigError(
                f"data.path: {data.path} has {len(rows)} rows and eval.prompts={config.eval.prompts} holds out all of"
                " them: lower eval.prompts or set data.eval_path"
            )
    if data.task == "file":
        _check_prefill(config, rows[0].question, tokenizer)
    return FileSource(
        rows,
        held_out,
        held_out_rows,
        tokenizer=tokenizer,
        template=data.template,
        prefill=config.reward.think_prefilled,
        max_prompt_tokens=data.max_prompt_tokens,
        seed=config.seed,
        shuffle=data.shuffle,
        epochs=data.epochs,
        digest=_digest(config, data.path),
    )


def _digest(config: Config, path: str) -> str:
    """Of what rows are made of: the same file read by other keys is other data."""
    data = config.data
    keys = "" if data.task == "swe" else f", keys {data.prompt_key} and {data.answer_key}"
    return digest_of(Path(path)) + keys


def _check_prefill(config: Config, question: Question, tokenizer: PromptTokenizer) -> None:
    """A prompt that ends in <think> and a format reward that waits for <think> would score every completion 0."""
    if "format" not in config.reward.parts or config.data.template == "r1_zero":
        return
    try:
        text = render(config.data.template, question, tokenizer, prefill=False)
    except PromptError as error:
        raise ConfigError(f"data.path, first row: {error}") from error
    if text.rstrip().endswith("<think>") != config.reward.think_prefilled:
        does = "does not end" if config.reward.think_prefilled else "ends"
        raise ConfigError(
            f"reward.think_prefilled={config.reward.think_prefilled}, but the prompt under"
            f" data.template={config.data.template} {does} in <think>: ...{text[-60:]!r}"
        )


def instance_prompts(config: Config, model_dir: Path) -> dict[bytes, str]:
    """Which instance each prompt is, by the prompt's tokens (int32, as bytes): leases carry no more than these.

    Raises:
        ConfigError: as `open_source`.
        PromptError: an instance cannot be asked.
    """
    tokenizer, data = load_tokenizer(model_dir), config.data
    path = data.slow_path if data.task == "chain-mod" else data.path
    rows = _open_rows(config, tokenizer, path, held_out=False) if data.task != "chain-mod" else _slow_rows(config)
    template = "none" if data.task == "chain-mod" else data.template
    found: dict[bytes, str] = {}
    for row in (rows[index] for index in range(len(rows))) if rows is not None else ():
        ids = apply_template(template, row.question, tokenizer, prefill=config.reward.think_prefilled)
        found[np.asarray(ids, np.int32).tobytes()] = row.extra.get("instance_id", "")
    return found


def _slow_rows(config: Config) -> Rows[Row] | None:
    data = config.data
    if not data.slow_path:
        return None
    return read_rows(Path(data.slow_path), data.prompt_key, data.answer_key, setting="data.slow_path")
