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

import aiohttp

from r1async.config import ConfigError
from r1async.config_endpoint import EndpointConfig

log = logging.getLogger(__name__)

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
    """From the first request on, pauses included."""


class EndpointError(RuntimeError):
    """No answer: every try failed, the deadline came, or the server refuses the request as such.

    Attributes:
        refused: the server will say the same again (400, 401, 404, …), so settings or request are to blame.
        tries: requests made.
    """

    def __init__(self, message: str, *, refused: bool = False, tries: int = 0) -> None:
        super().__init__(message)
        self.refused, self.tries = refused, tries


class _TryError(Exception):
    """One request failed."""

    def __init__(self, message: str, *, refused: bool = False, pause_s: float = 0.0) -> None:
        super().__init__(message)
        self.refused, self.pause_s = refused, pause_s


class ChatEndpoint:
    """One server and model, inside of an event loop. Use with ``async with``.

    Args:
        settings: address, model, limits.
        pause_s: before the second try, at most.

    Raises:
        ConfigError: an address, a field or a key that cannot work; the message names it.
    """

    def __init__(self, settings: EndpointConfig, *, pause_s: float = FIRST_PAUSE_S) -> None:
        if problems := endpoint_problems(settings, "endpoint"):
            raise ConfigError("\n".join(problems))
        self._settings, self._pause_s = settings, pause_s
        self._url = settings.url.rstrip("/") + "/chat/completions"
        self._body = {"model": settings.model, **_sampling(settings), **_fields(settings.body)}
        self._headers = {"Authorization": f"Bearer {_key(settings)}"} if settings.key_env else {}
        self._places = asyncio.Semaphore(settings.concurrency)
        self._session: aiohttp.ClientSession | None = None
        self.counts: Counter[str] = Counter()
        """`requests`, `failed_requests`, `retries`, `replies`, `failed` (chats without an answer), `prompt_tokens`,
        `completion_tokens`, `without_usage` (replies whose tokens the server did not tell)."""
        self.cost = 0.0
        """Of all replies so far."""

    async def __aenter__(self) -> ChatEndpoint:
        # The semaphore bounds what is in flight; aiohttp's own pool of 100 would add a second, silent bound.
        connector = aiohttp.TCPConnector(limit=self._settings.concurrency)
        self._session = aiohttp.ClientSession(connector=connector, headers=self._headers)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()

    async def ask(self, chat: Chat, *, deadline_s: float | None = None) -> Reply:
        """The model's answer to `chat`, after as many tries as the settings and the deadline allow.

        Args:
            deadline_s: instead of the settings', seconds from the first request.

        Raises:
            EndpointError: there is none.
        """
        async with self._places:
            return await self._ask(chat, self._settings.deadline_s if deadline_s is None else deadline_s)

    async def _ask(self, chat: Chat, deadline_s: float) -> Reply:
        started, pause_s, most = time.monotonic(), self._pause_s, self._settings.tries
        until = started + deadline_s
        request = json.dumps({**self._body, "messages": list(chat)}).encode()
        for tries in itertools.count(1):
            self.counts["requests"] += 1
            try:
                answer = await self._post(request, min(self._settings.request_s, max(0.001, until - time.monotonic())))
                return self._reply(answer, tries, time.monotonic() - started)
            except _TryError as error:
                self._log(f"{self._url}, try {tries} of {most}: {error}")
                # Jitter, or all that failed together come back together.
                wait_s = max(error.pause_s, random.uniform(0.5, 1.0) * pause_s)
                if error.refused or tries >= most or time.monotonic() + wait_s >= until:
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
                    raise _TryError(
                        f"status {response.status}: {text:.300}",
                        refused=not again,
                        pause_s=min(_retry_after(response.headers.get("Retry-After")), LONGEST_PAUSE_S),
                    )
        except TimeoutError as error:
            raise _TryError(f"no answer to a request within {seconds:.1f} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise _TryError(f"{type(error).__name__}: {error}") from error
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise _TryError(f"the answer is no JSON: {body[:200]!r}") from error

    def _reply(self, answer: object, tries: int, elapsed_s: float) -> Reply:
        text, finish = _choice(answer)
        prompt_tokens, completion_tokens = _usage(answer, "prompt_tokens"), _usage(answer, "completion_tokens")
        prices = self._settings.prompt_price, self._settings.completion_price
        cost = ((prompt_tokens or 0) * prices[0] + (completion_tokens or 0) * prices[1]) / 1e6
        self.counts["replies"] += 1
        self.counts["prompt_tokens"] += prompt_tokens or 0
        self.counts["completion_tokens"] += completion_tokens or 0
        self.counts["without_usage"] += prompt_tokens is None or completion_tokens is None
        self.cost += cost
        return Reply(text, finish, prompt_tokens, completion_tokens, cost, tries, elapsed_s)


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
        """Requests, replies, tokens so far: `ChatEndpoint.counts`."""
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


def endpoint_problems(settings: EndpointConfig, key: str) -> list[str]:
    """Why an endpoint cannot work, as sentences that begin with the setting.

    Args:
        key: of `settings`: `reward.judge.endpoint`.
    """
    found = []
    if not settings.url.startswith(("http://", "https://")):
        found.append(f"{key}.url: must be http://HOST:PORT/v1 of an OpenAI-compatible server, got {settings.url!r}")
    if not settings.model:
        found.append(f"{key}.model: must name the model as the server knows it; it is empty")
    for word in settings.body:
        name, equals, _ = word.partition("=")
        if not equals or not name or name in ("messages", "model", "stream"):
            found.append(f"{key}.body: must be name=value of another field than messages, model, stream, got {word!r}")
    if settings.deadline_s < settings.request_s:
        found.append(f"{key}.deadline_s: {settings.deadline_s:g} is less than one request's {settings.request_s:g} s")
    return found


def _key(settings: EndpointConfig) -> str:
    value = os.environ.get(settings.key_env, "").strip()
    if not value:
        raise ConfigError(f"endpoint.key_env: the environment has no {settings.key_env}, or it is empty")
    return value


def _sampling(settings: EndpointConfig) -> dict[str, object]:
    fields: dict[str, object] = {}
    if settings.temperature >= 0:
        fields["temperature"] = settings.temperature
    if settings.max_tokens:
        fields["max_tokens"] = settings.max_tokens
    return fields


def _fields(words: Sequence[str]) -> dict[str, object]:
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
            raise _TryError(f"the answer has more than {MAX_ANSWER_BYTES} bytes")
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


def _choice(answer: object) -> tuple[str, str]:
    if isinstance(answer, dict) and isinstance(choices := answer.get("choices"), list) and choices:
        first = choices[0]
        if isinstance(first, dict) and isinstance(message := first.get("message"), dict):
            content = message.get("content")
            if content is None or isinstance(content, str):
                return content or "", str(first.get("finish_reason") or "")
    raise _TryError(f"the answer has no choices[0].message.content: {answer!s:.200}")


def _usage(answer: object, name: str) -> int | None:
    usage = answer.get("usage") if isinstance(answer, dict) else None
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
