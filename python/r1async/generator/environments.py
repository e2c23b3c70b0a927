"""The environments that the settings ask for: which instance a prompt is, and a session of the shell on it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from r1async.config import Config
from r1async.generator.turns import Environment, Turns
from r1async.models.loading import load_tokenizer, stop_token_ids
from r1async.swe.grade import SweGrader
from r1async.swe.instance import Instance, read_instances
from r1async.tasks.source import instance_prompts
from r1async.tasks.tokenizer import Detokenizer, PromptTokenizer
from r1async.tasks.tokenizer import load_tokenizer as load_prompt_tokenizer


def make_turns(config: Config, put: Callable[[object], None]) -> Turns | None:
    """None where a completion is one turn.

    Raises:
        ConfigError: the data or the instances cannot be read.
    """
    if config.rollout.tool == "none":
        return None
    model = Path(config.model.path)
    words = _ModelWords(
        load_prompt_tokenizer(model),
        Detokenizer(model, config.sampling.stop),
        frozenset(stop_token_ids(config.model.path, load_tokenizer(config.model.path), config.sampling.stop)),
        config.rollout.observation,
    )
    return Turns(_Sessions(config, model).open, words, put, config.rollout.environments)


class _ModelWords:
    def __init__(
        self, tokenizer: PromptTokenizer, detokenizer: Detokenizer, ends: frozenset[int], observation: str
    ) -> None:
        self._tokenizer, self._detokenizer = tokenizer, detokenizer
        self._ends, self._observation = ends, observation

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._detokenizer.texts([token_ids], [True])[0]

    def ends_turn(self, token_id: int) -> bool:
        return token_id in self._ends

    def encode(self, observation: str) -> Sequence[int]:
        # Not str.format: the text may hold braces of its own.
        text = self._observation.replace("{observation}", observation)
        return self._tokenizer.encode(text, add_special_tokens=False)


class _Sessions:
    """Opens sessions from several threads."""

    def __init__(self, config: Config, model: Path) -> None:
        swe = config.resolved_reward.swe
        self._names = instance_prompts(config, model)
        found = (each for each in read_instances(Path(swe.instances)) if isinstance(each, Instance))
        self._instances: Mapping[str, Instance] = {each.instance_id: each for each in found}
        self._grader = SweGrader(swe)
        self._lock = threading.Lock()

    def open(self, prompt_ids: NDArray[np.int32]) -> Environment:
        """
        Raises:
            RuntimeError: the prompt belongs to no instance, or its repository or sandbox is not to be had.
        """
        instance = self._instances.get(self._names.get(prompt_ids.astype(np.int32).tobytes(), ""))
        if instance is None:
            raise RuntimeError("a prompt of no instance of reward.swe.instances")
        with self._lock:  # reading a repository fills caches that are not made for threads
            return self._grader.session(instance)
