"""HTTP to an SGLang server, in a thread with a loop of its own.

aiohttp: it is maintained, parses in C, hands a stream's bytes on as they arrive, and keeps hundreds of streams in one
thread. (httpx's last release is of 2024, and it parses in Python.)
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncGenerator, Coroutine, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

import aiohttp

from r1async.generator.engine import EngineError
from r1async.generator.sglang_answers import DONE, EventStream, error_message

_CONNECT_S = 10.0
T = TypeVar("T")


class UnreachableError(EngineError):
    """No connection, or it broke."""


class SglangClient:
    """Coroutines of it run in its thread; `call` and `start` are for other threads.

    Args:
        url: of the server.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sglang-client", daemon=True)
        self._thread.start()
        self._session = self.call(self._open(), "opening a session", _CONNECT_S)

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Begins work in the client's thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def call(self, work: Coroutine[Any, Any, T], name: str, deadline_s: float) -> T:
        """Does work in the client's thread and waits for its end.

        Raises:
            EngineError: the deadline passed; the message has the name.
        """
        future = self.start(work)
        try:
            return future.result(deadline_s)
        except TimeoutError as error:
            if future.done():
                raise
            future.cancel()
            raise EngineError(f"SGLang at {self.url}: {name} took longer than {deadline_s:g} s") from error

    async def get(self, path: str, deadline_s: float) -> tuple[int, Any]:
        return await self._request("GET", path, None, deadline_s)

    async def post(self, path: str, body: Mapping[str, Any], deadline_s: float) -> tuple[int, Any]:
        """Status and answer: what its JSON says, or its text.

        Raises:
            UnreachableError: no answer.
            EngineError: none within the deadline.
        """
        return await self._request("POST", path, body, deadline_s)

    async def stream(self, body: Mapping[str, Any]) -> AsyncGenerator[bytes, None]:
        """Events of one request to /generate until the last. It has no deadline: a paused server says nothing.

        Raises:
            UnreachableError: the connection broke before the end.
            EngineError: the server refused.
        """
        data = {"data": json.dumps(body), "headers": {"Content-Type": "application/json"}}
        with _reaching(self.url, "/generate"):
            async with self._session.post(f"{self.url}/generate", **data) as response:
                if response.status != 200:
                    text = await response.text()
                    raise EngineError(f"SGLang refused a request ({response.status}): {_message(text)}")
                events = EventStream()
                async for data_read in response.content.iter_any():
                    for event in events.feed(data_read):
                        if event == DONE:
                            return
                        yield event
        raise UnreachableError(f"SGLang at {self.url} broke off an answer")

    def close(self) -> None:
        """Breaks off what is under way, and ends the thread."""
        try:
            self.call(self._close(), "closing the client", _CONNECT_S)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_CONNECT_S)
        self._loop.close()

    async def _open(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            # A connection each: the server closes idle ones when it likes, and a request that goes out on one at that
            # moment is lost without a word on whether it was done.
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
            trust_env=False,
        )

    async def _close(self) -> None:
        mine = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not mine]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._session.close()

    async def _request(
        self, method: str, path: str, body: Mapping[str, Any] | None, deadline_s: float
    ) -> tuple[int, Any]:
        timeout = aiohttp.ClientTimeout(total=deadline_s, sock_connect=_CONNECT_S)
        with _reaching(self.url, path):
            async with self._session.request(method, f"{self.url}{path}", json=body, timeout=timeout) as response:
                text = await response.text()
        try:
            return response.status, json.loads(text)
        except ValueError:
            return response.status, text  # some calls answer in words, some not at all


@contextlib.contextmanager
def _reaching(url: str, path: str):
    try:
        yield
    except TimeoutError as error:  # aiohttp's own are of this kind too
        raise EngineError(f"SGLang at {url}: {path} did not answer in time") from error
    except (aiohttp.ClientError, ConnectionError) as error:
        raise UnreachableError(f"SGLang at {url} cannot be reached ({path}): {error!r}") from error


def _message(text: str) -> str:
    try:
        return error_message(json.loads(text))
    except ValueError:
        return text[:500]
