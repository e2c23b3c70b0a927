"""A server that answers like SGLang's, word by word as a test wants it, for what the real one does not do on demand."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web

DEADLINE_S = 30.0
INFO = {
    "version": "0.5.23",
    "page_size": 1,
    "context_length": 256,
    "max_total_num_tokens": 4096,
    "max_running_requests": 4,
    "disable_overlap_schedule": True,
    "tokenizer_worker_num": 1,
    "sampling_mask_max_tokens": 4096,
    "dp_size": 1,
}


class PlayedSglang:
    """Listens on a free port of 127.0.0.1 until `close`.

    Args:
        info: changes to what /server_info says.
        answers: by path, status and body instead of the usual ones.
        generate: the events of a request, as JSON values or raw bytes, or something to wait for in between; None keeps
            the stream open and silent.
    """

    def __init__(
        self,
        *,
        info: Mapping[str, object] | None = None,
        answers: Mapping[str, tuple[int, object]] | None = None,
        generate: Callable[[Mapping[str, Any]], list[object] | None] | None = None,
    ) -> None:
        self.info = {**INFO, **(info or {})}
        self.answers = dict(answers or {})
        self.generate = generate
        self.label = "default"
        self.on_abort: Callable[[], object] = lambda: None
        self.calls: list[tuple[str, Any]] = []
        self.peers: list[object] = []
        """Client's end of the connection of each call."""
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(DEADLINE_S)

    def paths(self) -> list[str]:
        return [path for path, _ in self.calls]

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._ready.set()
        await self._over.wait()
        await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.text() or "null")
        self.calls.append((request.path, body))
        self.peers.append(request.get_extra_info("peername"))
        if request.path in self.answers:
            status, said = self.answers[request.path]
            return web.json_response(said, status=status)
        if request.path == "/abort_request":
            self.on_abort()
        match request.path:
            case "/generate" if self.generate is not None:
                return await self._stream(request, self.generate(body))
            case "/server_info":
                return web.json_response(self.info)
            case "/model_info":
                return web.json_response({"weight_version": self.label})
            case "/update_weights_from_disk":
                self.label = body["weight_version"]
                return web.json_response({"success": True, "message": "done"})
            case "/ready" | "/flush_cache" | "/abort_request" | "/pause_generation" | "/continue_generation":
                return web.Response(text="")
        return web.json_response({"detail": "Not Found"}, status=404)

    async def _stream(self, request: web.Request, events: list[object] | None) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if events is None:
            await self._over.wait()
            return response
        for event in events:
            if isinstance(event, threading.Event):
                assert await asyncio.to_thread(event.wait, DEADLINE_S)
                continue
            data = event if isinstance(event, bytes) else b"data: " + json.dumps(event).encode() + b"\n\n"
            await response.write(data)
        return response
