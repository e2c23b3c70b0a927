"""The tokenizer of a model directory, as little of it as prompts and graders need.

The `tokenizers` library alone loads in 40 ms; `transformers.AutoTokenizer` takes seconds and pulls in torch, so it
is loaded only where its Python class can change what is encoded, or to render a chat template.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tokenizers import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GENERIC_CLASSES = frozenset({"PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend"})
"""Tokenizer classes that add nothing of their own to tokenizer.json."""

TAGS = frozenset({"<think>", "</think>", "<answer>", "</answer>"})
"""Text of the layouts that format looks for, even where a vocabulary makes them special tokens."""

Messages = Sequence[Mapping[str, str]]


class TokenizerError(ValueError):
    """A model directory without a usable tokenizer; the message names it."""


class PromptTokenizer(Protocol):
    """What turns prompts into tokens."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def render_chat(self, messages: Messages) -> str:
        """The messages in the model's chat template, up to where the assistant begins.

        Raises:
            TokenizerError: the tokenizer has no chat template.
        """
        ...


class _Added(Protocol):
    """A token beside the vocabulary proper; `tokenizers` and transformers have a class each."""

    @property
    def content(self) -> str: ...

    @property
    def special(self) -> bool: ...


class _Generic:
    """tokenizer.json through the `tokenizers` library; transformers only for a chat template."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tokenizer = _read_tokenizer_json(folder)
        self._full: _Full | None = None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def render_chat(self, messages: Messages) -> str:
        if self._full is None:
            self._full = _Full(self._folder)
        return self._full.render_chat(messages)


class _Full:
    """Whatever class the model names, through transformers."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        try:
            self._tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise TokenizerError(f"cannot load the tokenizer of {folder}: {error}") from error
        self._folder = folder

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def decode_batch(self, sequences: Sequence[Sequence[int]], skip_special_tokens: bool = True) -> list[str]:
        decode = self._tokenizer.decode
        return [str(decode(list(tokens), skip_special_tokens=skip_special_tokens)) for tokens in sequences]

    def get_added_tokens_decoder(self) -> Mapping[int, _Added]:
        return self._tokenizer.added_tokens_decoder

    def render_chat(self, messages: Messages) -> str:
        if not self._tokenizer.chat_template:
            raise TokenizerError(
                f"the tokenizer of {self._folder} has no chat template: set data.template=r1_zero or data.template=none"
            )
        conversation = [dict(message) for message in messages]
        rendered = self._tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        assert isinstance(rendered, str), "apply_chat_template(tokenize=False) gives a string"
        return rendered


def load_tokenizer(folder: Path) -> PromptTokenizer:
    """The tokenizer that encodes prompts exactly as transformers would.

    Raises:
        TokenizerError: the directory has none.
    """
    if named_class(folder) in GENERIC_CLASSES and (folder / "tokenizer.json").is_file():
        return _Generic(folder)
    return _Full(folder)


def named_class(folder: Path) -> str | None:
    """The class that the tokenizer of a model directory says it is."""
    return _read_json(folder / "tokenizer_config.json").get("tokenizer_class")


class Detokenizer:
    """Completion tokens to the text that graders see.

    Args:
        folder: the model directory.
        stop: extra stop tokens (`sampling.stop`).
    """

    def __init__(self, folder: Path, stop: Sequence[str] = ()) -> None:
        # A handful of short completions at a time: threads would cost more than they save.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        # Decoding needs no Python class: tokenizer.json says it all.
        fast = (folder / "tokenizer.json").is_file()
        tokenizer = _read_tokenizer_json(folder) if fast else _Full(folder)
        self._decode = tokenizer.decode_batch
        self._end_ids = eos_ids(folder) | _special_ids(tokenizer.get_added_tokens_decoder(), stop)

    def texts(self, completions: Sequence[Sequence[int]], stopped: Sequence[bool]) -> list[str]:
        """Each completion as text, without the end-of-sequence token or special stop token that ended it.

        A stop token that is plain text stays, and so does a tag: </answer> ends a completion and belongs to its answer.
        Other special tokens stay: a completion that writes <bos> in its middle is not in format, and tags such as
        <think> are special tokens in many vocabularies.
        """
        kept = [
            tokens[:-1] if stop and len(tokens) and tokens[-1] in self._end_ids else tokens
            for tokens, stop in zip(completions, stopped, strict=True)
        ]
        return self._decode(kept, skip_special_tokens=False)


def _special_ids(added: Mapping[int, _Added], stop: Sequence[str]) -> frozenset[int]:
    """The stop tokens that are marks like <|im_end|> and no text."""
    marks = set(stop) - TAGS
    return frozenset(id_ for id_, token in added.items() if token.special and token.content in marks)


def eos_ids(folder: Path) -> frozenset[int]:
    """End-of-sequence tokens of a model: what its configs name, the tokenizer's own included."""
    ids: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        value = _read_json(folder / name).get("eos_token_id")
        ids.update(value if isinstance(value, list) else [] if value is None else [value])
    token = _read_json(folder / "tokenizer_config.json").get("eos_token")
    text = token.get("content") if isinstance(token, dict) else token
    if isinstance(text, str) and (folder / "tokenizer.json").is_file():
        found = _read_tokenizer_json(folder).token_to_id(text)
        ids.update([] if found is None else [found])
    return frozenset(ids)


def _read_tokenizer_json(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise TokenizerError(f"{folder} has no tokenizer.json")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:
        # The library raises bare Exception for every malformed file.
        raise TokenizerError(f"{path} is not a tokenizer: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TokenizerError(f"{path} is not JSON: {error}") from error
    return content if isinstance(content, dict) else {}
