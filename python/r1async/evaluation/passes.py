"""One pass over the held-out problems at one version: what is asked of the buffer, and what has come back."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from r1async.config import Config
from r1async.evaluation.metrics import Sample, answer_of
from r1async.tasks.meta import encode_meta
from r1async.tasks.tokenizer import Detokenizer
from r1async.types import PolicyVersion, Prompt, Sampling
from r1async.wire import Message, WireError

PassName = Literal["sampled", "greedy"]

FULL_MARKS = 1.0 - 1e-6
"""A sample passes if the accuracy part of its reward is at least this."""
SHOWN = 8
"""Problems whose first completion is kept with its text, for the report."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PassPlan:
    """How a pass samples."""

    name: PassName
    samples: int
    sampling: Sampling


def plans(config: Config) -> tuple[PassPlan, ...]:
    """The passes of one evaluation."""
    max_tokens = config.sampling.max_tokens
    sampled = Sampling(
        temperature=config.eval.temperature, top_p=config.eval.top_p, top_k=0, max_tokens=max_tokens, greedy=False
    )
    made = [PassPlan(name="sampled", samples=config.eval.samples, sampling=sampled)]
    if config.eval.greedy:
        greedy = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=max_tokens, greedy=True)
        made.append(PassPlan(name="greedy", samples=1, sampling=greedy))
    return tuple(made)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One sample as the buffer sends it."""

    total: float | None
    parts: Mapping[str, float]
    status: str
    finish: str
    tokens: NDArray[np.int32]


@dataclass(kw_only=True, slots=True)
class Pass:
    """A pass under way. A new session of the connection starts it again under a new id."""

    plan: PassPlan
    pin: PolicyVersion
    prompts: Sequence[Prompt]
    lines: Sequence[str] = ()
    """The line in which each prompt's completions wait for a verdict; none: the first pool grades all."""
    id: str = ""
    answers: dict[tuple[int, int], Answer] = field(default_factory=dict)
    """By problem and member."""

    def begin(self, first: int | None = None) -> tuple[dict[str, object], dict[str, NDArray[np.int32]]]:
        """The `evaluate` message, for an evaluation without any answers yet.

        Args:
            first: number of its first completion, which keys the sampling noise; None: the buffer counts.
        """
        self.id = f"{self.pin}-{self.plan.name}-{uuid.uuid4().hex[:8]}"
        self.answers.clear()
        header: dict[str, object] = {
            "t": "evaluate",
            "id": self.id,
            "pin": list(self.pin),
            "samples": self.plan.samples,
            "sampling": asdict(self.plan.sampling),
            "metas": [encode_meta(prompt) for prompt in self.prompts],
            "pools": list(self.lines),
        }
        if first is not None:
            header["first"] = first
        tokens = [prompt.token_ids for prompt in self.prompts]
        return header, {
            "prompt_tokens": np.concatenate(tokens).astype(np.int32),
            "prompt_lens": np.array([len(each) for each in tokens], np.int32),
        }

    def take(self, message: Message) -> None:
        """File an `evaluated` message.

        Raises:
            WireError: the message contradicts itself or what was asked.
        """
        tokens, begin = message.columns["tokens"], 0
        for item in message.header["items"]:
            prompt, member, total, parts, status, finish, count = item
            if not (0 <= prompt < len(self.prompts) and 0 <= member < self.plan.samples):
                raise WireError(f"evaluated {prompt}/{member} of {len(self.prompts)} problems x {self.plan.samples}")
            if begin + count > len(tokens):
                raise WireError(f"evaluated: {count} tokens from {begin} of {len(tokens)}")
            answer = Answer(
                total=total, parts=parts, status=status, finish=finish or "", tokens=tokens[begin : begin + count]
            )
            self.answers[prompt, member] = answer
            begin += count

    @property
    def missing(self) -> int:
        """Samples that have not come back."""
        return len(self.prompts) * self.plan.samples - len(self.answers)

    @property
    def tokens(self) -> int:
        return sum(len(answer.tokens) for answer in self.answers.values())


def samples_of(done: Pass, detokenizer: Detokenizer) -> tuple[list[Sample], list[dict[str, object]]]:
    """Graded samples, and the first completions with their text."""
    keys = sorted(done.answers)
    answers = [done.answers[key] for key in keys]
    texts = detokenizer.texts(
        [answer.tokens.tolist() for answer in answers], [answer.finish == "stop" for answer in answers]
    )
    samples = [sample_of(*key, answer, text) for key, answer, text in zip(keys, answers, texts, strict=True)]
    shown = [
        _shown(done.prompts[sample.prompt], sample, text)
        for sample, text in zip(samples, texts, strict=True)
        if sample.prompt < SHOWN and sample.member == 0
    ]
    return samples, shown


def sample_of(prompt: int, member: int, answer: Answer, text: str) -> Sample:
    """A graded completion; whether it passed is unknown where there is no verdict or no accuracy part in it."""
    accuracy = answer.parts.get("accuracy")
    graded = answer.total is not None and accuracy is not None
    return Sample(
        prompt=prompt,
        member=member,
        passed=accuracy >= FULL_MARKS if graded and accuracy is not None else None,
        format=answer.parts.get("format"),
        reward=answer.total,
        answer=answer_of(text),
        tokens=len(answer.tokens),
        truncated=answer.finish == "length",
    )


def _shown(prompt: Prompt, sample: Sample, text: str) -> dict[str, object]:
    return {
        "prompt_index": sample.prompt,
        "prompt": prompt.text,
        "answer": prompt.answer,
        "completion": text,
        "passed": sample.passed,
        "reward": sample.reward,
        "tokens": sample.tokens,
        "truncated": sample.truncated,
    }
