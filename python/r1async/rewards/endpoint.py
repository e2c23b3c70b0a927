"""Asks an OpenAI-compatible server (hosted, or a local vLLM or SGLang): retries, a deadline, tokens and cost.

    with ChatClient(settings) as client:
        for reply in client.ask([[{"role": "user", "content": "Is 5 prime?"}]]):
            ...  # a Reply, or the EndpointError that says why there is none

`ChatEndpoint` is the same for who has an event loop of its own.

Spoken with aiohttp, which two engines speak with already, and not with the package `openai`: one POST is all that is
needed, and its body has to be bounded, each try counted and all of them held to one deadline, which that package
leaves to its caller; it would bring httpx and pydantic into every reward worker.

Source of the wire shape: platform.openai.com/docs/api-reference/chat.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Self, TypeVar

import aiohttp

from r1async.checks_rewards import endpoint_problems
from r1async.config import ConfigError
from r1async.config_endpoint import EndpointConfig

log = logging.getLogger(__name__)

T = TypeVar("T")
Chat = Sequence[Mapping[str, str]]
"""Messages with `role` and `content`."""

FIRST_PAUSE_S = 0.5
"""Before the second try at most; doubled before each further one."""
LONGEST_PAUSE_S = 30.0
MAX_ANSWER_BYTES = 4 * 2**20
AGAIN = frozenset((408, 409, 425, 429))
"""Statuses besides 5xx after which the same request may fare better."""
LOG_FIRST, LOG_EVERY = 3, 100
"""Failures are logged the first times, then once in so many: a server that is down fails for every rollout."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model answered."""

    text: str
    """Content of the first choice, without a reasoning field; empty if there is none."""
    finish: str
    """`stop`, `length` or what else the server says."""
    prompt_tokens: int | None
    """As the server counted; None if it does not tell."""
    completion_tokens: int | None
    cost: float
    """In the currency of the configured prices; 0 for tokens that were not told."""
    tries: int
    """Requests that it took."""
    elapsed_s: float
    """From the question on: turns, requests and pauses."""


class EndpointError(RuntimeError):
    """No answer: every try failed, the deadline came, or the server refuses the request as such.

    Attributes:
        refused: the server will say the same again (400, 401, 404, …), so settings or request are to blame.
        tries: requests made.
    """

    def __init__(self, message: str, *, refused: bool = False, tries: int = 0) -> None:
        super().__init__(message)
        self.refused, self.tries = refused, tries


class BadAnswerError(Exception):
    """An answer that cannot be read: the request is tried again.

    Attributes:
        refused: trying again is of no use.
        pause_s: seconds that the server asks to wait.
    """

    def __init__(self, message: str, *, refused: bool = False, pause_s: float = 0.0) -> None:
        super().__init__(message)
        self.refused, self.pause_s = refused, pause_s


class JsonEndpoint:
    """One address that takes and gives JSON, inside of an event loop. Use with ``async with``.

    Args:
        url: the whole address.
        key: sent as a bearer token; empty: none.
        concurrency: requests in flight at most; more wait their turn.
        tries: requests for one answer at most.
        request_s: seconds that one request may take.
        pause_s: before the second try, at most.
    """

    def __init__(
        self, url: str, *, key: str, concurrency: int, tries: int, request_s: float, pause_s: float = FIRST_PAUSE_S
    ) -> None:
        self._url, self._tries, self._request_s, self._pause_s = url, tries, request_s, pause_s
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._concurrency = concurrency
        self._places = asyncio.Semaphore(concurrency)
        self._session: aiohttp.ClientSession | None = None
        self.counts: Counter[str] = Counter()
        """`requests`, `failed_requests`, `retries`, `answers`, `failed` (questions without an answer)."""

    async def __aenter__(self) -> Self:
        # The semaphore bounds what is in flight; aiohttp's own pool of 100 would add a second, silent bound.
        connector = aiohttp.TCPConnector(limit=self._concurrency)
        self._session = aiohttp.ClientSession(connector=connector, headers=self._headers)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()

    async def ask(self, body: Mapping[str, object], read: Callable[[object], T], deadline_s: float) -> tuple[T, int]:
        """What `read` makes of the answer, and how many requests it took.

        Args:
            read: raises `BadAnswerError` for an answer that makes no sense.
            deadline_s: seconds from the first request, pauses included.

        Raises:
            EndpointError: there is none after all tries, or in time, or the server refuses the request as such.
        """
        async with self._places:
            return await self._ask(json.dumps(body).encode(), read, time.monotonic() + deadline_s)

    async def _ask(self, request: bytes, read: Callable[[object], T], until: float) -> tuple[T, int]:
        pause_s = self._pause_s
        for tries in itertools.count(1):
            self.counts["requests"] += 1
            try:
                answer = read(await self._post(request, min(self._request_s, max(0.001, until - time.monotonic()))))
                self.counts["answers"] += 1
                return answer, tries
            except BadAnswerError as error:
                self._log(f"{self._url}, try {tries} of {self._tries}: {error}")
                # Jitter, or all that failed together come back together.
                wait_s = max(error.pause_s, random.uniform(0.5, 1.0) * pause_s)
                if error.refused or tries >= self._tries or time.monotonic() + wait_s >= until:
                    self.counts["failed"] += 1
                    raise EndpointError(f"{self._url}: {error}", refused=error.refused, tries=tries) from error
            self.counts["retries"] += 1
            await asyncio.sleep(wait_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        raise AssertionError("the last try returns or raises")

    def _log(self, what: str) -> None:
        self.counts["failed_requests"] += 1
        count = self.counts["failed_requests"]
        if count <= LOG_FIRST or count % LOG_EVERY == 0:
            log.warning("%s (%d failed requests so far)", what, count)

    async def _post(self, request: bytes, seconds: float) -> object:
        assert self._session is not None, "used inside of its `async with`"
        headers = {"Content-Type": "application/json"}
        timeout = aiohttp.ClientTimeout(total=seconds)
        try:
            # No redirects: a key must not follow one to another host.
            async with self._session.post(
                self._url, data=request, headers=headers, timeout=timeout, allow_redirects=False
            ) as response:
                body = await _read(response)
                if response.status != 200:
                    again = response.status in AGAIN or response.status >= 500
                    text = body.decode(errors="replace").strip()
                    raise BadAnswerError(
                        f"status {response.status}: {text:.300}",
                        refused=not again,
                        pause_s=min(_retry_after(response.headers.get("Retry-After")), LONGEST_PAUSE_S),
                    )
        except TimeoutError as error:
            raise BadAnswerError(f"no answer to a request within {seconds:.1f} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise BadAnswerError(f"{type(error).__name__}: {error}") from error
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise BadAnswerError(f"the answer is no JSON: {body[:200]!r}") from error


class ChatEndpoint:
    """One chat model of one server, inside of an event loop. Use with ``async with``.

    Args:
        settings: address, model, limits.
        pause_s: before the second try, at most.

    Raises:
        ConfigError: an address, a field or a key that cannot work; the message names it.
    """

    def __init__(self, settings: EndpointConfig, *, pause_s: float = FIRST_PAUSE_S) -> None:
        if problems := endpoint_problems(settings, "endpoint"):
            raise ConfigError("\n".join(problems))
        self._settings = settings
        self._server = JsonEndpoint(
            settings.url.rstrip("/") + "/chat/completions",
            key=key_of(settings.key_env, "endpoint.key_env"),
            concurrency=settings.concurrency,
            tries=settings.tries,
            request_s=settings.request_s,
            pause_s=pause_s,
        )
        self._body = {"model": settings.model, **_sampling(settings), **body_fields(settings.body)}
        self._told: Counter[str] = Counter()
        self.cost = 0.0
        """Of all replies so far, in the currency of the prices."""

    async def __aenter__(self) -> Self:
        await self._server.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._server.__aexit__(kind, error, trace)

    @property
    def counts(self) -> Counter[str]:
        """Those of `JsonEndpoint`, and `prompt_tokens`, `completion_tokens`, `without_usage` (replies whose tokens the
        server did not tell)."""
        return self._server.counts + self._told

    async def ask(self, chat: Chat, *, deadline_s: float | None = None) -> Reply:
        """The model's answer to `chat`, after as many tries as the settings and the deadline allow.

        Args:
            deadline_s: instead of the settings', seconds from the first request.

        Raises:
            EndpointError: there is none.
        """
        body = {**self._body, "messages": list(chat)}
        started = time.monotonic()
        deadline_s = self._settings.deadline_s if deadline_s is None else deadline_s
        (choice, answer), tries = await self._server.ask(body, _choice_of, deadline_s)
        return self._reply(choice, answer, tries, time.monotonic() - started)

    def _reply(self, choice: tuple[str, str], answer: object, tries: int, elapsed_s: float) -> Reply:
        prompt_tokens, completion_tokens = _usage(answer, "prompt_tokens"), _usage(answer, "completion_tokens")
        prices = self._settings.prompt_price, self._settings.completion_price
        cost = ((prompt_tokens or 0) * prices[0] + (completion_tokens or 0) * prices[1]) / 1e6
        self._told["prompt_tokens"] += prompt_tokens or 0
        self._told["completion_tokens"] += completion_tokens or 0
        self._told["without_usage"] += prompt_tokens is None or completion_tokens is None
        self.cost += cost
        return Reply(*choice, prompt_tokens, completion_tokens, cost, tries, elapsed_s)


class ChatClient:
    """A `ChatEndpoint` for who has no event loop: it keeps one, and its connections, until it is closed."""

    def __init__(self, settings: EndpointConfig, *, pause_s: float = FIRST_PAUSE_S) -> None:
        self._runner = asyncio.Runner()
        try:
            self._endpoint = ChatEndpoint(settings, pause_s=pause_s)
            self._runner.run(self._endpoint.__aenter__())
        except BaseException:
            self._runner.close()
            raise

    def __enter__(self) -> ChatClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._runner.run(self._endpoint.__aexit__(None, None, None))
        self._runner.close()

    @property
    def counts(self) -> Mapping[str, int]:
        """Requests, answers, tokens so far: `ChatEndpoint.counts`."""
        return self._endpoint.counts

    @property
    def cost(self) -> float:
        """Of all replies so far, in the currency of the prices."""
        return self._endpoint.cost

    def ask(
        self,
        chats: Sequence[Chat],
        *,
        deadline_s: float | None = None,
        answered: Callable[[int, Reply | EndpointError], None] | None = None,
    ) -> list[Reply | EndpointError]:
        """Answers to `chats`, in their order; `concurrency` of them are asked at a time.

        Args:
            deadline_s: of each answer, instead of the settings'.
            answered: called with a chat's index and its answer as soon as it is there.
        """

        async def one(index: int, chat: Chat) -> Reply | EndpointError:
            try:
                reply: Reply | EndpointError = await self._endpoint.ask(chat, deadline_s=deadline_s)
            except EndpointError as error:
                reply = error
            if answered is not None:
                answered(index, reply)
            return reply

        async def every() -> list[Reply | EndpointError]:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(index, chat)) for index, chat in enumerate(chats)]
            return [task.result() for task in tasks]

        return self._runner.run(every())


def key_of(variable: str, setting: str) -> str:
    """The key that an environment variable holds; empty if none is named.

    Raises:
        ConfigError: the environment has no such variable.
    """
    value = os.environ.get(variable, "").strip() if variable else ""
    if variable and not value:
        raise ConfigError(f"{setting}: the environment has no {variable}, or it is empty")
    return value


def _sampling(settings: EndpointConfig) -> dict[str, object]:
    fields: dict[str, object] = {}
    if settings.temperature >= 0:
        fields["temperature"] = settings.temperature
    if settings.max_tokens:
        fields["max_tokens"] = settings.max_tokens
    return fields


def body_fields(words: Sequence[str]) -> dict[str, object]:
    """Further fields of a request, from name=value words."""
    fields: dict[str, object] = {}
    for word in words:
        name, _, value = word.partition("=")
        try:
            fields[name] = json.loads(value)
        except ValueError:
            fields[name] = value  # plain text, as in reasoning_effort=low
    return fields


async def _read(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for part in response.content.iter_any():
        body += part
        if len(body) > MAX_ANSWER_BYTES:
            raise BadAnswerError(f"the answer has more than {MAX_ANSWER_BYTES} bytes")
    return bytes(body)


def _retry_after(header: str | None) -> float:
    """Seconds that a server asks for: a number of them, or a date."""
    if not header:
        return 0.0
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        at = parsedate_to_datetime(header)
    except ValueError:
        return 0.0
    return max(0.0, (at - datetime.now(at.tzinfo or UTC)).total_seconds()) if at.tzinfo else 0.0


def _choice_of(answer: object) -> tuple[tuple[str, str], object]:
    """Text and finish of the first choice, and the answer that it is of."""
    if isinstance(answer, dict) and isinstance(choices := answer.get("choices"), list) and choices:
        first = choices[0]
        if isinstance(first, dict) and isinstance(message := first.get("message"), dict):
            content = message.get("content")
            if content is None or isinstance(content, str):
                return (content or "", str(first.get("finish_reason") or "")), answer
    raise BadAnswerError(f"the answer has no choices[0].message.content: {answer!s:.200}")


def _usage(answer: object, name: str) -> int | None:
    usage = answer.get("usage") if isinstance(answer, dict) else None
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
