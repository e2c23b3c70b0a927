"""A vLLM server that somebody else started, over HTTP. docs/engines.md has the command that starts one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict
from typing import Literal

import aiohttp

from r1async.engines import check_version
from r1async.generator.engine import EngineError, EngineSpec
from r1async.generator.staged_weights import Staged
from r1async.generator.vllm_adapter import VllmAdapter
from r1async.generator.vllm_calls import Delta, SamplingSettings, Span
from r1async.generator.vllm_names import BACKEND, EXTENSION

# aiohttp comes with vLLM, in an environment of its own, which the checker does not look into.
# pyright: reportMissingImports=false

_CONNECT_S = 10.0
_RETRY_S = 0.5
_LINE_BYTES = 4 * 2**20
"""An event is a line, of some 100 bytes a token; a server that was busy says many tokens at once."""
_PREFIX = "generate-tokens-"
"""What the server puts before a request's id."""


class VllmServer(VllmAdapter):
    """An `Engine` over a server. It has to see `EngineSpec.scratch`: on the same machine, or in a shared folder.

    Args:
        spec: what it is made with.
        url: http://HOST:PORT.

    Raises:
        EngineVersionError: vLLM has a version that we do not know.
        EngineError: no server answers, or one that was started without what we need; says with what to start it.
    """

    def __init__(self, spec: EngineSpec, url: str) -> None:
        super().__init__(spec, HttpVllm(spec, url.rstrip("/")))


class HttpVllm:
    """A `Vllm` over a server's HTTP interface."""

    # A pause is answered on another connection than tokens come on, so which were sampled before it only spans tell.
    orders_outputs = False

    def __init__(self, spec: EngineSpec, url: str) -> None:
        self._spec = spec
        self._url = url
        self._version = "of a version not known yet"
        self._session: aiohttp.ClientSession | None = None

    def describe(self) -> str:
        return f"vLLM {self._version} at {self._url}"

    async def start(self) -> None:
        # No limits of its own: the adapter has a deadline for every call, and sees when streams fall silent.
        session = self._session = aiohttp.ClientSession(
            self._url,
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
            read_bufsize=_LINE_BYTES,
        )
        self._version = str((await self._first_answer(session))["version"])
        check_version("vllm", self._version)
        for path in ("/is_paused", "/weight_info"):
            async with session.get(path) as answer:
                if answer.status != 200:
                    raise self._unfit(f"has no {path}: it was started without VLLM_SERVER_DEV_MODE=1")
        # An empty body is refused where there is such a path, and not found where there is none.
        async with session.post("/inference/v1/generate", json={}) as answer:
            if answer.status == 404:
                raise self._unfit("has no /inference/v1/generate: it was started without --enable-scale-out")

    async def _first_answer(self, session: aiohttp.ClientSession) -> Mapping[str, object]:
        while True:
            try:
                async with session.get("/version", raise_for_status=True) as answer:
                    return await answer.json()
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(_RETRY_S)  # until generator.start_deadline_s; it may be starting
            except aiohttp.ClientResponseError as error:
                raise self._unfit(f"is no vLLM server: {error}") from error

    def _unfit(self, why: str) -> EngineError:
        backend = self._spec.direct or BACKEND
        return EngineError(
            f"{self.describe()} {why}; start it with: VLLM_SERVER_DEV_MODE=1 vllm serve {self._spec.model_path} "
            f"--enable-scale-out --logprobs-mode processed_logprobs --worker-extension-cls {EXTENSION} "
            f"""--weight-transfer-config '{{"backend": "{backend}"}}' --dtype {self._spec.dtype} """
            f"--max-model-len {self._spec.max_len} --max-num-seqs {self._spec.slots} (see docs/engines.md)"
        )

    async def generate(
        self, key: str, prompt_ids: list[int], cache_salt: str, sampling: SamplingSettings
    ) -> AsyncIterator[Delta]:
        body = {
            "request_id": key,
            "token_ids": prompt_ids,
            "cache_salt": cache_salt,
            "sampling_params": asdict(sampling),
            "stream": True,
        }
        try:
            async with self.session.post("/inference/v1/generate", json=body) as answer:
                if answer.status != 200:
                    said = await answer.text()
                    raise EngineError(f"{self.describe()} refused request {key}: {answer.status} {said[:500]}")
                async for line in answer.content:
                    data = line.removeprefix(b"data: ").strip()
                    if line.startswith(b"data: ") and data != b"[DONE]":
                        yield self._delta(key, json.loads(data))
        except aiohttp.ClientError as error:
            raise EngineError(f"{self.describe()} broke off request {key}: {error!r}") from error

    def _delta(self, key: str, event: Mapping) -> Delta:
        if "error" in event:
            raise EngineError(f"{self.describe()} failed at request {key}: {event['error']}")
        (choice,) = event["choices"]
        token_ids, spans = choice["token_ids"] or [], choice.get("weight_versions")
        content = (choice["logprobs"] or {}).get("content") or []
        if [entry["token_id"] for entry in content] != token_ids:
            raise EngineError(f"{self.describe()} gives logprobs of other tokens than it sampled for request {key}")
        return Delta(
            token_ids=token_ids,
            logprobs=[entry["logprob"] for entry in content],
            finish=choice["finish_reason"],
            spans=None if spans is None else [Span(span["version"], span["start"], span["end"]) for span in spans],
        )

    async def abort(self, keys: Sequence[str]) -> None:
        await self._post("/inference/v1/abort_requests", {"request_ids": [_PREFIX + key for key in keys]})

    async def pause(self, mode: Literal["keep", "abort"]) -> None:
        await self._post(f"/pause?mode={mode}&clear_cache={'true' if mode == 'abort' else 'false'}")

    async def drain(self) -> None:
        """Nothing: see `orders_outputs`."""

    async def update(self, staged: Staged, label: str) -> None:
        update = {"path": str(staged.path), "hashes": dict(staged.hashes)}
        if self._spec.direct is not None:  # vLLM's one backend is another than ours
            await self.workers("r1async_load", json.dumps(update))
            await self._post("/update_weight_version", {"new_version": label})
            return
        await self._post("/start_weight_update")
        await self._post("/update_weights", {"update_info": update})
        await self._post("/finish_weight_update", {"weight_version": label})

    async def join(self, init: Mapping[str, object]) -> None:
        await self._post("/init_weight_transfer_engine", {"init_info": dict(init)})

    async def take(self, update: Mapping[str, object] | None, label: str) -> None:
        await self._post("/start_weight_update")
        if update is not None:
            await self._post("/update_weights", {"update_info": dict(update)})
        await self._post("/finish_weight_update", {"weight_version": label})

    async def recompute(self) -> None:
        if not (await self._post("/reset_prefix_cache?reset_running_requests=true"))["success"]:
            raise EngineError(f"{self.describe()} kept the KV of its requests, and was told not to")

    async def resume(self) -> None:
        await self._post("/resume")

    async def workers(self, method: str, *args: str) -> list[dict]:
        status, text = await self._send("/collective_rpc", {"method": method, "args": list(args)})
        if status != 200:
            raise self._unfit(f"has not our worker extension or not our weight transfer ({method}: {status} {text})")
        return json.loads(text)["results"]

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def kill(self) -> None:
        """Nothing: the server is somebody else's."""

    @property
    def session(self) -> aiohttp.ClientSession:
        assert self._session is not None
        return self._session

    async def _post(self, path: str, body: Mapping | None = None) -> dict:
        status, text = await self._send(path, body)
        if status != 200:
            raise EngineError(f"{self.describe()} answered {path} with {status} {text[:500]}")
        return json.loads(text) if text else {}

    async def _send(self, path: str, body: Mapping | None) -> tuple[int, str]:
        try:
            async with self.session.post(path, json=body) as answer:
                return answer.status, await answer.text()
        except aiohttp.ClientError as error:
            raise EngineError(f"{self.describe()} does not answer {path}: {error!r}") from error
