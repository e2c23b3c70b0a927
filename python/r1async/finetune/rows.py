"""Rows of fine-tuning data, checked when the file is opened: an error has its file and line before anything trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from r1async.config import ConfigError
from r1async.config_finetune import PairDataConfig, SftDataConfig
from r1async.tasks.file import RowError, Rows, message_of, question_of, read_any
from r1async.tasks.templates import Question

if TYPE_CHECKING:
    from datasets import Dataset

Messages = Sequence[Mapping[str, str]]


class Conversation(NamedTuple):
    messages: Messages
    where: str


class Answered(NamedTuple):
    prompt: Question
    completion: str
    where: str


class PlainText(NamedTuple):
    text: str
    where: str


class Pair(NamedTuple):
    prompt: Question
    chosen: str
    rejected: str
    where: str


SftRow = Conversation | Answered | PlainText


def sft_rows(data: SftDataConfig, path: str, setting: str, *, held_out: bool = False) -> Rows[SftRow]:
    """Rows of `r1async sft`.

    Raises:
        ConfigError: no such file, no rows, or a row that is none of the three forms; the text names file and line.
    """
    forms = ((data.messages_key,), (data.prompt_key, data.completion_key), (data.text_key,))
    wanted = (
        f"data.messages_key={data.messages_key}, or data.prompt_key={data.prompt_key} and "
        f"data.completion_key={data.completion_key}, or data.text_key={data.text_key}"
    )

    def parse(row: Mapping[str, Any], where: str) -> SftRow:
        if row.get(data.messages_key) is not None:
            return Conversation(_conversation(row[data.messages_key], f"{where}: {data.messages_key!r}"), where)
        if row.get(data.prompt_key) is not None and row.get(data.completion_key) is not None:
            prompt = question_of(row[data.prompt_key], f"{where}: {data.prompt_key!r}")
            return Answered(prompt, _answer(row[data.completion_key], f"{where}: {data.completion_key!r}"), where)
        if row.get(data.text_key) is not None:
            return PlainText(_string(row[data.text_key], f"{where}: {data.text_key!r}"), where)
        raise RowError(f"{where}: the row has {', '.join(row) or 'nothing'}; it must have {wanted}")

    return read_any(Path(path), parse, _columns(path, forms, wanted), held_out=held_out, setting=setting)


def pair_rows(data: PairDataConfig, path: str, setting: str, *, held_out: bool = False) -> Rows[Pair]:
    """Rows of `r1async reward-model`.

    Raises:
        ConfigError: as `sft_rows`; also two answers to different prompts, or twice the same.
    """
    forms = ((data.prompt_key, data.chosen_key, data.rejected_key), (data.chosen_key, data.rejected_key))
    wanted = (
        f"data.chosen_key={data.chosen_key} and data.rejected_key={data.rejected_key}, and "
        f"data.prompt_key={data.prompt_key} unless both are conversations"
    )

    def parse(row: Mapping[str, Any], where: str) -> Pair:
        chosen, rejected = row.get(data.chosen_key), row.get(data.rejected_key)
        if chosen is None or rejected is None:
            raise RowError(f"{where}: the row has {', '.join(row) or 'nothing'}; it must have {wanted}")
        if row.get(data.prompt_key) is not None:
            prompt = question_of(row[data.prompt_key], f"{where}: {data.prompt_key!r}")
            begun = () if isinstance(prompt, str) else prompt
            pair = Pair(
                prompt,
                _answer(chosen, f"{where}: {data.chosen_key!r}", begun),
                _answer(rejected, f"{where}: {data.rejected_key!r}", begun),
                where,
            )
        else:
            pair = _whole_conversations(chosen, rejected, where, data)
        if pair.chosen == pair.rejected:
            raise RowError(f"{where}: {data.chosen_key!r} and {data.rejected_key!r} are the same: {pair.chosen!r:.80}")
        return pair

    return read_any(Path(path), parse, _columns(path, forms, wanted), held_out=held_out, setting=setting)


def _whole_conversations(chosen: object, rejected: object, where: str, data: PairDataConfig) -> Pair:
    """Two conversations that differ in their last message alone."""
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise RowError(f"{where}: no {data.prompt_key!r}, and the answers are strings; what are they answers to?")
    better = _conversation(chosen, f"{where}: {data.chosen_key!r}")
    worse = _conversation(rejected, f"{where}: {data.rejected_key!r}")
    if better[:-1] != worse[:-1] or not better[:-1]:
        raise RowError(
            f"{where}: {data.chosen_key!r} and {data.rejected_key!r} must be the same conversation up to their last "
            "message"
        )
    for messages in (better, worse):
        _is_assistant(messages[-1], f"{where}: the last message")
    return Pair(better[:-1], better[-1]["content"], worse[-1]["content"], where)


def _columns(path: str, forms: Sequence[Sequence[str]], wanted: str) -> Callable[[Dataset], Sequence[str]]:
    def columns(dataset: Dataset) -> Sequence[str]:
        have = dataset.column_names
        if not any(all(key in have for key in form) for form in forms):
            raise RowError(f"{path}: it has the columns {', '.join(have)}; rows must have {wanted}")
        return [key for key in dict.fromkeys(key for form in forms for key in form) if key in have]

    return columns


def _conversation(value: object, where: str) -> Messages:
    if not isinstance(value, list) or not value:
        raise RowError(f"{where} must be a list of chat messages, got {value!r:.80}")
    messages = [message_of(message, f"{where}[{i}]") for i, message in enumerate(value)]
    if not any(message["role"] == "assistant" for message in messages):
        roles = ", ".join(message["role"] for message in messages)
        raise RowError(f"{where} has no message of the assistant to learn from, only of: {roles}")
    return messages


def _answer(value: object, where: str, begun: Messages = ()) -> str:
    """A completion: a string, one message of the assistant, or the prompt's messages with one more."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and len(value) > len(begun) and list(value[: len(begun)]) == list(begun):
        value = value[len(begun) :]
    match value:
        case [message]:
            return _is_assistant(message_of(message, f"{where}[0]"), where)["content"]
        case list():
            raise RowError(f"{where} must be one message of the assistant, got {len(value)}; use a whole conversation")
        case _:
            raise RowError(f"{where} must be a string or a list of one message, got {value!r:.80}")


def _is_assistant(message: Mapping[str, str], where: str) -> Mapping[str, str]:
    if message["role"] != "assistant":
        raise RowError(f"{where} must be of the assistant, got one of {message['role']!r}")
    return message


def _string(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise RowError(f"{where} must be a string, got {value!r:.80}")
    return value


def split_rows(data: SftDataConfig | PairDataConfig, rows: int, held_out_rows: int | None) -> tuple[range, range]:
    """Which rows are trained, and which of the held-out file (or of the same) are looked at.

    Raises:
        ConfigError: `data.eval_rows` would leave nothing to train.
    """
    if held_out_rows is not None:
        return range(rows), range(held_out_rows)
    if data.eval_rows >= rows:
        raise ConfigError(f"data.eval_rows: {data.eval_rows} holds out all {rows} rows of data.path={data.path}")
    return range(rows - data.eval_rows), range(rows - data.eval_rows, rows)
