"""The worker of the pool `reward_model`: Hugging Face sequence classifiers with one label, in a process of their own.

The only place of the rewards that imports torch. Takes: batches of rollouts from a pipe. Gives: results, a forward
pass's worth at a time. Waits for: the pipe.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import IO

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from r1async.config import ConfigError, RewardConfig
from r1async.config_rewards import RewardModelConfig
from r1async.models.loading import load_tokenizer
from r1async.reward_pools import ModelPart, Pool, models_of
from r1async.rewards.compose import add_up
from r1async.rewards.remote_model import response_of
from r1async.rewards.worker import WireJob, asked_of, read_batch, result_of, write_frame
from r1async.tasks.meta import Question
from r1async.tasks.templates import R1_ZERO
from r1async.types import Completion, Verdict

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Classifier:
    """One model and its tokenizer.

    Args:
        setting: that names it, for messages.

    Raises:
        ConfigError: no sequence classifier with one label, or no chat template where one is wanted.
    """

    def __init__(self, settings: RewardModelConfig, setting: str) -> None:
        self._settings = settings
        torch.set_num_threads(settings.threads)
        try:
            self._tokenizer = load_tokenizer(settings.path)
            model = AutoModelForSequenceClassification.from_pretrained(
                settings.path, dtype=DTYPES[settings.dtype], local_files_only=True
            )
            self._model = model.to(settings.device).eval()
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ConfigError(f"{setting}.path: {settings.path} cannot be loaded: {error}") from error
        if model.config.num_labels != 1:
            raise ConfigError(
                f"{setting}.path: {settings.path} must have one label, a number for the whole text; it has "
                f"{model.config.num_labels}"
            )
        if settings.template == "chat" and not self._tokenizer.chat_template:
            raise ConfigError(
                f"{setting}.template: the tokenizer of {settings.path} has no chat template; set template=none"
            )

    def tokens(self, prompt: str, response: str) -> list[int]:
        """What is scored: question and response in the template, as the model was trained on them."""
        text, special = self._text(prompt, response), self._settings.template != "chat"
        ids = list(self._tokenizer.encode(text, add_special_tokens=special))
        end = self._tokenizer.eos_token_id
        return [*ids, end] if special and isinstance(end, int) and ids[-1:] != [end] else ids

    def _text(self, prompt: str, response: str) -> str:
        if self._settings.template != "chat":
            before = R1_ZERO.format(question=prompt) + " " if self._settings.template == "r1_zero" else prompt
            return before + response
        question = [{"role": "user", "content": prompt}]
        whole = self._rendered([*question, {"role": "assistant", "content": response}], begin=False)
        if response.strip() in whole:
            return whole
        # A template that leaves out what was thought would hide it from the model; what it says itself is all there.
        return self._rendered(question, begin=True) + response + str(self._tokenizer.eos_token or "")

    def _rendered(self, messages: list[dict[str, str]], *, begin: bool) -> str:
        text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=begin)
        assert isinstance(text, str), "without tokenize it is a text"
        return text

    @torch.inference_mode()
    def scores(self, texts: Sequence[Sequence[int]]) -> list[float]:
        """The number that the model gives to each text, one forward pass for all of them."""
        longest = max(len(ids) for ids in texts)
        # Such a model reads its number at the last token that is no pad, so the pad is none of the texts' tokens.
        used = {token for ids in texts for token in ids}
        pad = next(token for token in range(len(used) + 1) if token not in used)
        ids_BT = torch.tensor([[*ids, *[pad] * (longest - len(ids))] for ids in texts])
        mask_BT = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in texts])
        self._model.config.pad_token_id = pad
        device = self._settings.device
        logits_B1: Tensor = self._model(input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device)).logits
        logits_B = logits_B1.float().squeeze(-1)
        return (logits_B.sigmoid() if self._settings.activation == "sigmoid" else logits_B).tolist()


Asked = tuple[int, ModelPart]
"""A rollout of the batch, and the part that wants it scored."""


class ClassifierWorker:
    """Scores a batch of rollouts, in as few forward passes as their tokens allow.

    Raises:
        ConfigError: a model that cannot be used.
    """

    def __init__(self, outgoing: IO[bytes], reward: RewardConfig, pool: Pool) -> None:
        self._outgoing, self._reward, self._weights = outgoing, reward, pool.weights
        self._models: dict[ModelPart, Classifier] = {}
        loaded: dict[RewardModelConfig, Classifier] = {}
        for part, settings in models_of(pool.weights, reward).items():
            if settings not in loaded:  # both parts may have the same model
                loaded[settings] = Classifier(settings, f"reward.{part}")
            self._models[part] = loaded[settings]

    def serve(self, incoming: IO[bytes]) -> None:
        """Until the pipe ends: EOFError."""
        while True:
            self.grade(read_batch(incoming))

    def grade(self, batch: Sequence[WireJob]) -> None:
        """Scores and reports all rollouts of a batch, shortest texts first."""
        start = time.monotonic()
        asked = [asked_of(job) for job in batch]
        found: dict[Asked, Verdict] = {}
        for part, model in self._models.items():
            texts: dict[int, list[int]] = {}
            for at, each in enumerate(asked):
                if isinstance(each, tuple) and part in self._weights[each[2]]:
                    settled = self._tokens(part, model, *each[:2])
                    if isinstance(settled, Verdict):
                        found[at, part] = settled
                    else:
                        texts[at] = settled
            for chunk in packed(texts, self._settings(part).batch_tokens):
                scores = model.scores([texts[at] for at in chunk])
                found |= {(at, part): _verdict(score) for at, score in zip(chunk, scores, strict=True)}
        elapsed_s = (time.monotonic() - start) / len(batch)
        verdicts = (self._sum(at, each, found) for at, each in enumerate(asked))
        results = [result_of(job[0], verdict, elapsed_s) for job, verdict in zip(batch, verdicts, strict=True)]
        write_frame(self._outgoing, results)

    def _settings(self, part: ModelPart) -> RewardModelConfig:
        return models_of(self._weights, self._reward)[part]

    def _tokens(
        self, part: ModelPart, model: Classifier, question: Question, completion: Completion
    ) -> list[int] | Verdict:
        settings, response = self._settings(part), response_of(part, self._reward, question, completion)
        if not response.strip():
            return Verdict(total=settings.worst, status="wrong", detail="nothing to score")
        if len(response) > settings.max_chars:
            return Verdict(total=settings.worst, status="guard", detail=f"{len(response)} characters")
        try:
            tokens = model.tokens(question.text, response)
        except Exception:
            # Tokenizers raise what they like, for a word that they have no token for or in a chat template.
            log.exception("%s: the tokenizer of %s refuses a text; the rollout abstains", part, settings.path)
            return Verdict.abstain("error")
        if len(tokens) > settings.max_tokens:
            return Verdict(total=settings.worst, status="guard", detail=f"{len(tokens)} tokens")
        return tokens

    def _sum(self, at: int, asked: tuple[Question, Completion, str] | Verdict, found: dict[Asked, Verdict]) -> Verdict:
        if isinstance(asked, Verdict):
            return asked
        weights = self._weights[asked[2]]
        return add_up((part, weights[part], found[at, part]) for part in self._models if part in weights)


def _verdict(score: float) -> Verdict:
    return Verdict(total=score) if math.isfinite(score) else Verdict.abstain("nan")


def packed(texts: dict[int, list[int]], tokens: int) -> Iterator[Iterable[int]]:
    """Texts in groups of at most `tokens` with padding, shortest first; a longer text is a group alone."""
    group: list[int] = []
    for at in sorted(texts, key=lambda at: len(texts[at])):
        if group and (len(group) + 1) * len(texts[at]) > tokens:
            yield group
            group = []
        group.append(at)
    if group:
        yield group
