"""What is asked: the prompts of the task, then those mixed-in rows whose thought is sampled, under one numbering."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from r1async.config import Config
from r1async.config_finetune import SftDataConfig
from r1async.config_sample import MixConfig
from r1async.finetune.rows import Answered, Conversation, sft_rows
from r1async.sample.overlap import Overlap
from r1async.tasks import PromptError, PromptSource
from r1async.tasks.file import RowError, Rows, digest_of, read_any, read_rows
from r1async.tasks.source import open_source
from r1async.tasks.templates import Question, apply_template, question_text
from r1async.tasks.tokenizer import PromptTokenizer, load_tokenizer
from r1async.types import Prompt

HELD_OUT = "held_out"
"""The task's own held-out prompts among the evaluation sets."""


def sampling_config(config: Config) -> Config:
    """The run of no steps that samples: every row once, all slots for pinned completions.

    `data.eval_path` names what is held out; without it nothing is, or the file's last rows would never be sampled.
    """
    data = config.data
    if data.task == "file":
        data = replace(data, epochs=1, shuffle=False, eval_path=data.eval_path or data.path)
    slots = max(config.generator.slots, config.generator.eval_slots)
    return replace(
        config,
        steps=0,
        data=data,
        generator=replace(config.generator, eval_slots=slots),
        learner=replace(config.learner, schedule="constant", warmup_steps=0),
    )


class MixedRow(NamedTuple):
    """A row of a mixed-in source."""

    source: str
    prompt: Question
    completion: str
    thinks: bool
    """A thought is sampled for it."""


class Mixed:
    """The rows of all mixed-in sources, checked.

    Raises:
        ConfigError: a file that cannot be read, or a row in no form of a prompt with a completion.
    """

    def __init__(self, mix: Mapping[str, MixConfig]) -> None:
        self._mix = mix
        self._rows = {name: _mix_rows(name, each) for name, each in mix.items()}

    def rows(self, name: str) -> list[MixedRow]:
        return [self._row(name, index) for index in range(len(self._rows[name]))]

    def __iter__(self) -> Iterator[MixedRow]:
        for name in self._mix:
            yield from self.rows(name)

    def fingerprint(self) -> list[list[str]]:
        """Of all sources in their order, since a row's number counts those of the sources before it; empty if none is
        sampled from."""
        if all(each.thought != "sampled" for each in self._mix.values()):
            return []
        return [
            [name, digest_of(Path(each.path)), each.prompt_key, each.completion_key, each.messages_key]
            for name, each in self._mix.items()
        ]

    def _row(self, name: str, index: int) -> MixedRow:
        row, mix = self._rows[name][index], self._mix[name]
        match row:
            case Answered(prompt, completion, _):
                pass
            case Conversation(messages, where):
                if messages[-1]["role"] != "assistant" or len(messages) < 2:
                    raise RowError(f"{where}: the conversation must end with an answer of the assistant")
                prompt, completion = messages[:-1], messages[-1]["content"]
            case _:
                raise RowError(f"{row.where}: sample.mix.{name} needs a prompt and a completion, got plain text")
        simple = len(question_text(prompt).split()) <= mix.simple_words
        return MixedRow(name, prompt, completion, mix.thought == "sampled" and not simple)


def _mix_rows(name: str, mix: MixConfig) -> Rows:
    data = SftDataConfig(
        prompt_key=mix.prompt_key, completion_key=mix.completion_key, messages_key=mix.messages_key, text_key=""
    )
    return sft_rows(data, mix.path, f"sample.mix.{name}.path")


@dataclass(kw_only=True)
class Asked:
    """Every prompt by its number.

    Numbers below `main` are the task's; those from there on are mixed-in rows, one each, whether or not a thought is
    sampled for it.
    """

    source: PromptSource
    main: int
    mixed: list[MixedRow]
    overlap: Overlap
    config: Config
    tokenizer: PromptTokenizer

    @property
    def total(self) -> int:
        return self.main + len(self.mixed)

    def prompt(self, number: int) -> Prompt | str:
        """The prompt, or the reason why it is not asked."""
        if number >= self.main:
            row = self.mixed[number - self.main]
            return self._thinking(number, row) if row.thinks else "no_thought"
        try:
            prompt = self.source.prompt(number)
        except PromptError:
            return "invalid"
        found = self.overlap.find(prompt.text, prompt=True)
        return prompt if found is None else f"contaminated:{found}"

    def _thinking(self, number: int, row: MixedRow) -> Prompt | str:
        request = self.config.sample.thought_request
        if isinstance(row.prompt, str):
            question: Question = f"{row.prompt}\n\n{request}"
        else:
            *before, last = row.prompt
            question = [*before, {**last, "content": f"{last['content']}\n\n{request}"}]
        data, reward = self.config.data, self.config.reward
        try:
            ids = apply_template(data.template, question, self.tokenizer, prefill=reward.think_prefilled)
        except PromptError:
            return "invalid"
        if not 0 < len(ids) <= data.max_prompt_tokens:
            return "invalid"
        import numpy as np

        return Prompt(
            ordinal=number, text=question_text(row.prompt), answer=row.completion,
            token_ids=np.asarray(ids, dtype=np.int32), source=row.source,
        )  # fmt: skip


def open_asked(config: Config) -> Asked:
    """Everything that is asked, with the evaluation sets that it is held against.

    Args:
        config: as `sampling_config` made it.

    Raises:
        ConfigError: data or evaluation sets that cannot be read.
    """
    model = Path(config.model.path)
    source = open_source(config, model)
    limit = config.sample.prompts
    main = min(limit, source.total) if limit and source.total is not None else limit or source.total
    assert main is not None, "sample_problems refuses a source without end"
    return Asked(
        source=source, main=main, mixed=list(Mixed(config.sample.mix)), overlap=open_overlap(config, source),
        config=config, tokenizer=load_tokenizer(model),
    )  # fmt: skip


def open_overlap(config: Config, source: PromptSource) -> Overlap:
    """The evaluation sets; what `data.eval_path` holds, all of it, and not just as much as an evaluation asks."""
    decontaminate = config.sample.decontaminate
    sets = evaluation_sets(decontaminate.against, decontaminate.keys, "sample.decontaminate.against")
    data = config.data
    if data.task == "file" and data.eval_path not in ("", data.path):
        path, keys = Path(data.eval_path), (data.prompt_key, data.answer_key)
        rows = read_rows(path, *keys, held_out=True, setting="data.eval_path")
        sets[HELD_OUT] = [question_text(rows[index].question) for index in range(len(rows))]
    elif data.task == "chain-mod" or data.eval_path != data.path:
        held_out = source.held_out(config.eval.prompts)
        sets[HELD_OUT] = [prompt.text for prompt in held_out]
    return Overlap(sets, ngram=decontaminate.ngram, short=decontaminate.short)


def evaluation_sets(against: Mapping[str, str], keys: tuple[str, ...], setting: str) -> dict[str, list[str]]:
    """The texts of each evaluation set, by its name.

    Raises:
        ConfigError: one cannot be read, or has a row with none of the columns.
    """
    return {name: evaluation_texts(Path(path), keys, f"{setting}.{name}") for name, path in against.items()}


def evaluation_texts(path: Path, keys: tuple[str, ...], setting: str) -> list[str]:
    """The texts of an evaluation set under these columns.

    Raises:
        ConfigError: it cannot be read, or has a row with none of them.
    """

    def parse(row: Mapping[str, object], where: str) -> list[str]:
        found = [_text(row[key]) for key in keys if row.get(key) is not None]
        if not found:
            raise RowError(
                f"{where}: the row has {', '.join(row) or 'nothing'}, and none of the columns of "
                f"sample.decontaminate.keys: {', '.join(keys)}"
            )
        return found

    def columns(dataset: object) -> None:
        """All of them: a set need not have each."""

    rows = read_any(path, parse, columns, held_out=True, setting=setting)
    return [text for index in range(len(rows)) for text in rows[index]]


def _text(value: object) -> str:
    """A question may be a list of messages."""
    if isinstance(value, list):
        return "\n".join(str(each.get("content", "")) if isinstance(each, Mapping) else str(each) for each in value)
    return str(value)
