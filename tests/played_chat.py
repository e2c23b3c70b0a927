"""A server that answers POST requests as a test wants it: a text as an OpenAI-compatible chat completion."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web

DEADLINE_S = 30.0

Answer = Callable[[Mapping[str, Any]], object]
"""Of a request's body: a text as the model's answer; a `web.Response` as it is; an Event to be waited for and then
broken off; None for silence until `close`."""


class PlayedChat:
    """Listens on a free port of 127.0.0.1 until `close`.

    Args:
        answer: called in the server's thread, once for each request.
        usage: token counts told with each answer; None tells none.
    """

    def __init__(self, answer: Answer, *, usage: Mapping[str, int] | None = None) -> None:
        self._answer, self._usage = answer, usage
        self.requests: list[Any] = []
        """Bodies, in the order in which they came."""
        self.headers: list[Mapping[str, str]] = []
        self.most_at_once = 0
        self._now = 0
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(DEADLINE_S)

    def __enter__(self) -> PlayedChat:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/{path:.*}", self._complete)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.root = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self.url = f"{self.root}/v1"
        self._ready.set()
        await self._over.wait()
        await runner.cleanup()

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.text())
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            said = self._answer(body)
            if isinstance(said, threading.Event):
                assert await asyncio.to_thread(said.wait, DEADLINE_S)
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            if said is None:
                await self._over.wait()
            else:
                # Lets others arrive, so that what is asked at once is seen to be.
                await asyncio.sleep(0.01)
        finally:
            self._now -= 1
        if isinstance(said, web.StreamResponse):
            return said
        return web.json_response(chat_completion(str(said), self._usage))


def chat_completion(text: str | None, usage: Mapping[str, int] | None = None) -> dict[str, object]:
    """A whole answer in OpenAI's shape."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"object": "chat.completion", "choices": [choice], **({"usage": dict(usage)} if usage else {})}
