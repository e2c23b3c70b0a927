"""A reward model behind HTTP: a chat goes there, a number comes back.

Wire shape: POST ``{"model": NAME, "messages": [{"role": "user", …}, {"role": "assistant", …}], …body}``. Answers of
vLLM's ``/classify`` (``data[0].probs``), ``/pooling`` (``data[0].data``) and of what gives ``data[0].score`` or
``score`` are read: one number, in as many brackets as it may come.
"""

from __future__ import annotations

import math
from types import TracebackType
from typing import Self

from r1async.config import RewardConfig
from r1async.config_rewards import RewardModelConfig
from r1async.reward_pools import ModelPart
from r1async.rewards.endpoint import BadAnswerError, EndpointError, JsonEndpoint, body_fields, key_of
from r1async.rewards.format import summary_of
from r1async.tasks.meta import Question
from r1async.types import Completion, Verdict


def model_config(part: ModelPart, reward: RewardConfig) -> RewardModelConfig:
    return reward.helpfulness if part == "helpfulness" else reward.harmlessness


def response_of(part: ModelPart, reward: RewardConfig, question: Question, completion: Completion) -> str:
    """What a reward model reads: `helpfulness` the final summary alone, `harmlessness` the whole response.

    Source: DeepSeek-R1 (arXiv 2501.12948), 2.3.4.
    """
    if part == "harmlessness":
        return completion.text
    prefilled = reward.prefilled(question.extra)
    return summary_of(completion.text, reward.format, think_prefilled=prefilled, special_token=reward.special_token)


class RemoteModel:
    """One part, inside of an event loop. Use with ``async with``."""

    def __init__(self, part: ModelPart, reward: RewardConfig, *, pause_s: float | None = None) -> None:
        self._part: ModelPart = part
        self._reward, settings = reward, model_config(part, reward)
        self._settings = settings
        self._endpoint = JsonEndpoint(
            settings.url,
            key=key_of(settings.key_env, f"reward.{part}.key_env"),
            concurrency=settings.concurrency,
            tries=settings.tries,
            request_s=settings.request_s,
            **({} if pause_s is None else {"pause_s": pause_s}),
        )
        self._body = {"model": settings.model, **body_fields(settings.body)}

    async def __aenter__(self) -> Self:
        await self._endpoint.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._endpoint.__aexit__(kind, error, trace)

    async def grade(self, question: Question, completion: Completion) -> Verdict:
        """The model's number, or an abstention `infra_error`."""
        response = response_of(self._part, self._reward, question, completion)
        if not response.strip():
            return Verdict(total=self._settings.worst, status="wrong", detail="nothing to score")
        if len(response) > self._settings.max_chars:
            return Verdict(total=self._settings.worst, status="guard", detail=f"{len(response)} characters")
        messages = [{"role": "user", "content": question.text}, {"role": "assistant", "content": response}]
        try:
            score, tries = await self._endpoint.ask(
                {**self._body, "messages": messages}, read_score, self._settings.deadline_s
            )
        except EndpointError as error:
            parts = {"requests": float(error.tries)}
            return Verdict(total=None, status="infra_error", parts=parts, detail=f"{error!s:.300}")
        return Verdict(total=score, parts={"requests": float(tries)})


def read_score(answer: object) -> float:
    """The one number of an answer.

    Raises:
        BadAnswerError: there is none, or there are several.
    """
    value = answer
    if isinstance(value, dict) and isinstance(data := value.get("data"), list) and len(data) == 1:
        value = data[0]
    if isinstance(value, dict):
        found = [value[name] for name in ("probs", "data", "score") if name in value]
        value = found[0] if len(found) == 1 else None
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadAnswerError(f"the answer has no single number in data[0].probs, .data or .score: {answer!s:.200}")
    return float(value)
