"""From a row to tokens, and which of them are learned.

A prompt has exactly the tokens that `r1async run` would ask it with, and a completion begins with a token of its own:
what is learned is what will be sampled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from r1async.config import ConfigError
from r1async.finetune.rows import Answered, Conversation, Messages, PlainText, SftRow
from r1async.models.loading import load_tokenizer, stop_token_ids
from r1async.tasks import PromptError
from r1async.tasks.file import RowError
from r1async.tasks.templates import Question, Template, render
from r1async.tasks.tokenizer import TokenizerError
from r1async.tasks.tokenizer import load_tokenizer as load_prompt_tokenizer

THINK = "<think>"


class Encoded(NamedTuple):
    token_ids: list[int]
    learned: list[bool]
    """Which tokens have a loss; never the first, which nothing predicts."""


class Renderer:
    """A model's tokenizer with a template.

    Args:
        model_dir: the model's directory.
        end_token: as `data.end_token`.

    Raises:
        ConfigError: no chat template for template=chat, or an end token that is not one token.
    """

    def __init__(self, model_dir: Path, template: Template, end_token: str = "") -> None:
        self.tokenizer = load_tokenizer(model_dir)
        self.template: Template = template
        self._prompts = load_prompt_tokenizer(model_dir)
        if template == "chat" and not self.tokenizer.chat_template:
            raise ConfigError(
                f"data.template=chat: the tokenizer of {model_dir} has no chat template; set data.template=r1_zero or "
                "none"
            )
        self._marks_turns = template == "chat" and "{% generation" in str(self.tokenizer.chat_template).replace(
            "{%-", "{%"
        )
        self.end = self._end_id(model_dir, end_token)
        # SentencePiece's mark of a space: such a tokenizer may begin every text with one.
        self._adds_space = (
            "▁" in self.tokenizer.get_vocab() and self._encode("x", False)[:1] != self._encode("\nx", False)[-1:]
        )
        self._newline = self._encode("\n", False) if self._adds_space else []

    def row(self, row: SftRow, *, turns: str) -> Encoded:
        """A row's tokens.

        Raises:
            RowError: it does not fit the template; the text names file and line.
        """
        try:
            match row:
                case Conversation(messages):
                    return self._conversation(messages, turns)
                case Answered(prompt, completion):
                    return self.answered(prompt, completion)
                case PlainText(text):
                    return self._text(text)
        except (PromptError, TokenizerError) as error:
            raise RowError(f"{row.where}: {error}") from error

    def answered(self, prompt: Question, completion: str) -> Encoded:
        """The prompt as a generator gets it, then the completion and the token that ends it.

        A template that ends in <think> has begun the thought already: a completion that begins with it goes on.
        """
        text = render(self.template, prompt, self._prompts, prefill=False)
        begin = text.rfind(THINK)
        if begin >= 0 and not text[begin + len(THINK) :].strip() and completion.startswith(THINK):
            completion = completion.removeprefix(text[begin:] if completion.startswith(text[begin:]) else THINK)
        before = self._encode(text, self.template != "chat")
        after = [*self._continue(completion), self.end] if completion else []
        return Encoded(before + after, [False] * len(before) + [True] * len(after))

    def scored(self, prompt: Question, response: str) -> list[int]:
        """Tokens that a reward model reads, all of them at once: those of `rewards.classifier`, whatever the template
        does behind the end of a turn or to thoughts."""
        if self.template != "chat":
            text = render(self.template, prompt, self._prompts, prefill=False)
            ids = self._encode(text + (" " if self.template == "r1_zero" else "") + response, True)
            return [*ids, self.end] if ids[-1:] != [self.end] else ids
        asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        whole = self._chat([*asked, {"role": "assistant", "content": response}])
        if response.strip() not in whole:
            whole = self._chat(asked, begin_turn=True) + response + str(self.tokenizer.eos_token or "")
        return self._encode(whole, False)

    def make_pad(self) -> int:
        """A pad token that no text ends in, which the tokenizer gets if its own is another: a sequence classifier of
        transformers reads its number at the last token that is no pad."""
        tokenizer = self.tokenizer
        eos = tokenizer.eos_token_id
        ends = {self.end, eos if isinstance(eos, int) else self.end}
        candidates: list[object] = [
            tokenizer.pad_token_id,
            tokenizer.unk_token_id,
            *tokenizer.all_special_ids,
            *range(len(ends) + 1),
        ]
        pad = next(token for token in candidates if isinstance(token, int) and token not in ends)
        if pad != tokenizer.pad_token_id:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
        return pad

    def _text(self, text: str) -> Encoded:
        ids = self._encode(text, True) if text else []
        ids = ids if ids[-1:] == [self.end] else [*ids, self.end]
        return Encoded(ids, [False] + [True] * (len(ids) - 1))

    def _conversation(self, messages: Messages, turns: str) -> Encoded:
        if turns == "last" or self.template != "chat":
            if messages[-1]["role"] != "assistant":
                raise PromptError(f"the last message must be of the assistant, got one of {messages[-1]['role']!r}")
            if not messages[:-1]:
                raise PromptError("nothing is asked: the only message is of the assistant")
            return self.answered(messages[:-1], messages[-1]["content"])
        return self._marked(messages) if self._marks_turns else self._by_prefixes(messages)

    def _marked(self, messages: Messages) -> Encoded:
        """The template says itself what the assistant wrote ({% generation %})."""
        made = self.tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        assert isinstance(made, Mapping), "apply_chat_template(return_dict=True) gives a mapping"
        ids: list[int] = list(made["input_ids"])
        mask = [bool(flag) for flag in made["assistant_masks"]]
        return Encoded(ids, [False, *mask[1:]])

    def _by_prefixes(self, messages: Messages) -> Encoded:
        """What each turn of the assistant adds to the text before it, up to the token that ends the turn."""
        whole = self._chat(messages)
        edges = [0]
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            begun, ended = self._chat(messages[:i], begin_turn=True), self._chat(messages[: i + 1])
            if not (ended.startswith(begun) and whole.startswith(ended)):
                raise PromptError(
                    f"the chat template rewrites turns that are over, so the tokens of turn {i} are not those that were"
                    " sampled; set data.turns=last, or give the row as prompt and completion"
                )
            edges += [len(begun), len(ended)]
        ids: list[int] = []
        learned: list[bool] = []
        for n, (start, stop) in enumerate(pairwise([*edges, len(whole)])):
            part = self._encode(whole[start:stop], False) if n == 0 else []
            part = part or self._continue(whole[start:stop])
            ids += part
            learned += self._until_end(part) if n % 2 else [False] * len(part)
        return Encoded(ids, [False, *learned[1:]])

    def _until_end(self, ids: Sequence[int]) -> list[bool]:
        """A template's newline behind the end of a turn is nothing that a model has to write."""
        last = max((i for i, token in enumerate(ids) if token == self.end), default=len(ids) - 1)
        return [i <= last for i in range(len(ids))]

    def _continue(self, text: str) -> list[int]:
        """Tokens of a text that goes on: a tokenizer that begins every text with a space must not do so here."""
        if not text:
            return []
        if self._adds_space:
            ids = self._encode("\n" + text, False)
            if ids[: len(self._newline)] == self._newline:
                return ids[len(self._newline) :]
        return self._encode(text, False)

    def _chat(self, messages: Messages, *, begin_turn: bool = False) -> str:
        if not messages:
            return ""
        made = self.tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=begin_turn
        )
        assert isinstance(made, str), "apply_chat_template(tokenize=False) gives a string"
        return made

    def _encode(self, text: str, special: bool) -> list[int]:
        try:
            return self._prompts.encode(text, add_special_tokens=special)
        except Exception as error:
            # The library raises bare Exception for a character that a vocabulary without an unknown token has not.
            raise PromptError(f"{text[:80]!r} cannot be encoded: {error}") from error

    def _end_id(self, model_dir: Path, end_token: str) -> int:
        if end_token:
            ids = self._encode(end_token, False)
            if len(ids) != 1:
                raise ConfigError(f"data.end_token: {end_token!r} must be one token of the vocabulary, got {len(ids)}")
            return ids[0]
        if self.template == "chat":
            answer = "ends here"
            turn = self._chat([{"role": "user", "content": "when?"}, {"role": "assistant", "content": answer}])
            rest = self._encode(turn[turn.rfind(answer) + len(answer) :], False)
            special = [token for token in rest if token in set(self.tokenizer.all_special_ids)]
            added = self.tokenizer.added_tokens_decoder
            special = special or [token for token in rest if token in added and added[token].special]
            if special:
                return special[0]
        own = self.tokenizer.eos_token_id
        return own if isinstance(own, int) else stop_token_ids(model_dir, self.tokenizer)[0]
