"""SGLang over HTTP as an engine: a server of our own, or one that somebody else started.

Each request is one stream. The server labels a chunk with the version that its front end knows when the chunk comes by,
and says with the last one which tokens were sampled under which version. Only that word is final. A label is late by
what queues before the front end: the one of before an install is right, since nothing is sampled while weights change,
and a new one may stand on tokens of before. Such tokens are in doubt, and held back. When there are many of them in a
request, it is cut: ended, which brings the final word on them, and put in again on the KV that it has left in the
prefix cache.

A request may so take several streams ("parts"), also where the server ends what we did not want ended; nobody notices.

Threads: the generator's loop calls the engine; everything about streams runs in the client's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from r1async.generator.elsewhere import Elsewhere
from r1async.generator.engine import EngineError, EngineSpec, KVPolicy, Request
from r1async.generator.flights import Flight
from r1async.generator.sglang_answers import Chunk, Labels, error_message, read_chunk
from r1async.generator.sglang_client import SglangClient, UnreachableError
from r1async.generator.sglang_facts import Facts, read_facts
from r1async.generator.sglang_ride import Ride
from r1async.generator.sglang_server import SglangServer
from r1async.generator.sglang_weights import Load, from_directory, from_learner
from r1async.generator.staging import Staging
from r1async.models.loading import DTYPES
from r1async.types import FinishReason, PolicyVersion, Sampling, VersionRun
from r1async.weights.direct import Direct, DirectError, buckets
from r1async.weights.direct_ways import GROUP

log = logging.getLogger(__name__)

_PAUSES: Mapping[KVPolicy, str] = {"keep": "in_place", "recompute": "retract", "abort": "abort"}
_READY_EVERY_S = 0.2
_CALL_S = 30.0
"""For calls that only ask."""
_ABORTS = 5
"""Times that the server is told to end a request before we give that up. It forgets a call that comes before the
request has, and one for a request that it holds at the door."""
_TAKE_OUT_S = 0.1
"""Between two such times when an install waits for it; what is left then ends in the pause."""
_BARREN = 20
"""Times that a request may be ended on the server before it has sampled anything."""
_DOUBT_TOKENS = 64
_STREAM_TOKENS = 16
"""Tokens of a chunk at most: the last few are lost when a request is handed back unfinished."""
_SPARE = 8
"""Tokens of context that SGLang keeps for itself."""


class SglangEngine(Elsewhere):
    """An `Engine` that computes in an SGLang server.

    Args:
        spec: what every engine in another process is made with.
        url: of a server that runs already; empty starts one.
        python: interpreter of SGLang's environment; for a server of our own.
        args: more words of its command line.

    Raises:
        EngineVersionError: a server of a version that is not supported.
        EngineError: the server did not start, or was started in a way that we cannot work with.
    """

    def __init__(self, spec: EngineSpec, *, url: str, python: str | None, args: Sequence[str]) -> None:
        super().__init__(spec)
        self._staging = Staging(spec.model_path, spec.scratch, DTYPES[spec.dtype])
        self._stop_ids = frozenset(spec.stop_ids)
        self._closed = False
        self._labels = Labels()
        self._label = self._key = ""
        # Keys are this life's own: on a server that somebody else runs, prefixes of a former life may lie about.
        self._life, self._installs = uuid.uuid4().hex, 0
        self._joined = False
        """Whether the server is in a group with the learner."""
        self._stale: set[str] = set()
        """Keys under which the server may hold prefixes that other weights than the present ones computed."""
        self.doubt_tokens = max(_DOUBT_TOKENS, spec.chunk_tokens)
        """Tokens of one request whose version is in doubt, after which it is cut."""
        self.cuts = 0
        self.stale_prefixes = 0
        """Requests begun again because the server gave them a prefix that older weights had computed."""
        self._rides: dict[int, Ride] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._heard = time.monotonic()
        self._paused = False
        self._server: SglangServer | None = None
        self._client: SglangClient | None = None
        try:
            if not url:
                assert python is not None
                self._server = SglangServer(spec, python, args, self._on_server_end)
                url = self._server.url
            self._client = SglangClient(url)
            self._client.call(self._begin(), "start", spec.start_deadline_s)
            self._check_policy()
        except BaseException:
            self.close()
            raise

    @property
    def block_tokens(self) -> int:
        return self._facts.block_tokens

    def describe(self) -> str:
        version = self._facts.version if hasattr(self, "_facts") else "(starting)"
        return f"SGLang {version} at {self._http.url}" + (f" (process {self._server.pid})" if self._server else "")

    def submit(self, requests: Sequence[Request]) -> None:
        """See `Engine`. A request pinned to the version served is like one that is not pinned."""
        self._admit(requests)
        self._http.call(self._take_off([request.id for request in requests]), "submitting", _CALL_S)

    def abort(self, ids: Iterable[int]) -> None:
        dropped = self._flights.forget(ids)
        if dropped:
            self._http.call(self._let_go(dropped), "aborting", _CALL_S)

    def install(self, version: PolicyVersion, tensors: Mapping[str, Tensor]) -> float:
        """See `Engine`. Weights are checked and written before anything is paused."""
        self._check_policy()
        self._check_weights(version, tensors)
        directory = self._staging.write(tensors)
        try:
            paused_s = self._http.call(
                self._swap(version, from_directory(self._tell, str(directory))),
                f"installing version {version}",
                3 * self._spec.stall_deadline_s,
            )
        except EngineError as error:
            # What it serves now, nobody knows.
            self._flights.fail(error)
            raise
        self._version = version
        self._staging.keep_only(directory)
        return paused_s

    def install_direct(self, direct: Direct) -> float:
        """See `TakesDirect`: `update_weights_from_distributed`, a bucket of tensors at a time."""
        self._check_policy()
        self._check_shapes(direct)
        limit_s, fresh = self._spec.stall_deadline_s, not self._joined
        self._joined = False  # until it has gone well
        meeting = direct.ask(
            "sglang-nccl", base=self._version, workers=self._facts.workers, device=self._facts.device, fresh=fresh,
            deadline_s=limit_s,
        )  # fmt: skip
        if meeting.join is not None:
            self._http.call(self._join(meeting.join), "joining the learner's group", 2 * limit_s)
        load = from_learner(self._tell, list(buckets(direct.tensors)), session=self._facts.sessions)
        try:
            paused_s = self._http.call(self._swap(direct.version, load), f"installing {direct.version}", 3 * limit_s)
        except EngineError as error:
            # What it serves now, nobody knows.
            self._flights.fail(error)
            raise
        self._version, self._joined = direct.version, True
        return paused_s

    def install_pinned(self, version: PolicyVersion, tensors: Mapping[str, Tensor] | None) -> None:
        """Refused: an SGLang server holds one set of weights.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{self.describe()} serves one set of weights, {self._version}: it cannot pin {version}")

    def close(self) -> None:
        self._closed = True
        if self._client is not None:
            self._client.close()
        if self._server is not None:
            self._server.close()

    @property
    def _http(self) -> SglangClient:
        assert self._client is not None
        return self._client

    def _check(self, request: Request) -> None:
        super()._check(request)
        sampling = request.sampling
        if _filters(sampling) and self._candidates(sampling) > self._facts.mask_tokens:
            raise ValueError(
                f"request {request.id}: SGLang reports logprobs after top-k and top-p for at most "
                f"{self._facts.mask_tokens} candidates: set top_k to 1 ... {self._facts.mask_tokens}, "
                f"got top_k={sampling.top_k}, top_p={sampling.top_p}"
            )

    def _check_policy(self) -> None:
        if self.kv_policy == "keep" and self._facts.overlap:
            raise EngineError(
                f"{self.describe()} runs with overlap, where a step in flight at a pause is labelled with the version "
                "that comes after it: start it with --disable-overlap-schedule, or set generator.kv_policy=recompute"
            )

    def _candidates(self, sampling: Sampling) -> int:
        return sampling.top_k or self._spec.vocabulary

    # What follows runs in the client's thread, but for _on_server_end, which runs in any.

    def _on_server_end(self, account: str) -> None:
        if not self._closed:
            self._flights.fail(EngineError(f"the SGLang server of {self._spec.name} is gone: {account}"))

    async def _begin(self) -> None:
        await self._wait_ready()
        self._facts = await self._ask_facts()
        self._check_facts()
        self._flights.capacity = min(self._spec.slots, self._facts.running or self._spec.slots)
        self._gate = asyncio.Event()
        self._gate.set()
        # A life of ours that was killed while it installed weights has left somebody else's server paused.
        await self._control("/continue_generation", {"torch_empty_cache": False}, _CALL_S)
        self._begin_task(self._watch())

    async def _wait_ready(self) -> None:
        """Until the server takes requests; whoever calls has the deadline."""
        path = "/ready"
        while True:
            if self._server is not None and not self._server.alive:
                raise EngineError(f"the SGLang server of {self._spec.name} did not start: {self._server.account()}")
            with contextlib.suppress(UnreachableError):  # not listening yet
                status, _ = await self._http.get(path, self._spec.start_deadline_s)
                if status == 200:
                    return
                if status == 404:  # before 0.5.20
                    path = "/health"
            await asyncio.sleep(_READY_EVERY_S)

    async def _ask_facts(self) -> Facts:
        status, info = await self._http.get("/server_info", _CALL_S)
        if status == 404:
            status, info = await self._http.get("/get_server_info", _CALL_S)
        if status != 200 or not isinstance(info, Mapping) or "version" not in info:
            raise EngineError(f"{self._http.url} does not answer as an SGLang server: {status} {str(info)[:200]}")
        return read_facts(self._http.url, info)

    def _check_facts(self) -> None:
        wanted = self._spec.max_len + _SPARE
        if self._facts.context < wanted:
            raise EngineError(
                f"{self.describe()} has room for {self._facts.context} tokens of a request, {wanted} are needed "
                f"({self._spec.max_len} and {_SPARE} of its own): start it with --context-length {wanted} and as many "
                "--max-total-tokens at least"
            )

    async def _watch(self) -> None:
        """Fails the engine when it has requests and says nothing."""
        deadline_s = self._spec.stall_deadline_s
        while True:
            silent_s = time.monotonic() - self._heard if self._rides and not self._paused else 0.0
            if silent_s >= deadline_s:
                told = f"; {self._server.account()}" if self._server else ""
                raise EngineError(
                    f"{self.describe()} has {len(self._rides)} requests and sampled nothing for {silent_s:.0f} s "
                    f"(generator.stall_deadline_s={deadline_s:g}){told}"
                )
            await asyncio.sleep(deadline_s - silent_s)

    def _begin_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)  # the loop itself does not keep it alive
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._flights.fail(error)

    async def _take_off(self, ids: Sequence[int]) -> None:
        if not self._rides:
            self._heard = time.monotonic()
        for request_id in ids:
            flight = self._flights.get(request_id)
            assert flight is not None
            ride = self._rides[request_id] = Ride(request_id, flight)
            ride.task = self._begin_task(self._fly(ride))

    async def _let_go(self, ids: Sequence[int]) -> None:
        for request_id in ids:
            ride = self._rides.pop(request_id, None)
            if ride is not None:
                ride.gone = True
                self._begin_task(self._end(ride))

    async def _end(self, ride: Ride, every_s: float = 1.0) -> None:
        """Has the server end a part, and cuts the connection of one that it does not and nobody wants."""
        rid = ride.rid
        for _ in range(_ABORTS if rid else 0):
            if ride.ended.is_set() or ride.rid != rid:
                return
            await self._control("/abort_request", {"rid": rid}, self._spec.stall_deadline_s)
            with contextlib.suppress(TimeoutError):  # told again
                await asyncio.wait_for(ride.ended.wait(), every_s)
        if ride.gone and ride.task is not None:
            ride.task.cancel()

    async def _fly(self, ride: Ride) -> None:
        try:
            again = True
            while again and not ride.gone:
                await self._gate.wait()
                again = await self._part(ride)
        except UnreachableError as error:
            await self._explain(error)
        finally:
            ride.ended.set()
            if self._rides.get(ride.id) is ride:
                del self._rides[ride.id]

    async def _explain(self, error: UnreachableError) -> None:
        """A broken connection is the first sign of a server's end; the second says more."""
        if self._server is not None:
            ended = await asyncio.to_thread(self._server.wait_end, 5.0)
            raise EngineError(f"{error}; {self._server.account()}") from (None if ended else error)
        raise error

    async def _part(self, ride: Ride) -> bool:
        """One stream to its end; whether the rest of the request has to be put in again."""
        if ride.gone:
            return False
        # What has tokens goes on with its own KV, which is under the key of its first part unless it was flushed.
        ride.begin(ride.key if ride.flight.token_ids else self._key, self._label)
        again = True
        try:
            async with contextlib.aclosing(self._http.stream(self._body(ride))) as events:
                async for event in events:
                    self._heard = time.monotonic()
                    again = self._take(ride, read_chunk(event))
        finally:
            ride.ended.set()
        ride.barren = 0 if ride.got else ride.barren + 1
        if again and ride.barren > _BARREN and not ride.gone:
            raise EngineError(
                f"{self.describe()} ended request {ride.id} {ride.barren} times before its first token; does somebody "
                "else abort requests there?"
            )
        return again and not ride.gone

    def _body(self, ride: Ride) -> dict[str, Any]:
        sampling = ride.flight.request.sampling
        params = {
            "max_new_tokens": ride.flight.left,
            "temperature": 0.0 if sampling.greedy else sampling.temperature,
            "stop_token_ids": list(self._spec.stop_ids),
            "stream_interval": min(self._spec.chunk_tokens, _STREAM_TOKENS),
        }
        body = {
            "input_ids": ride.flight.context,
            "rid": ride.rid,
            "extra_key": ride.key,
            "stream": True,
            "return_logprob": True,
            "sampling_params": params,
        }
        if _filters(sampling):
            params |= {"top_p": sampling.top_p, "top_k": self._candidates(sampling)}
            body["return_sampling_mask"] = True
        return body

    def _take(self, ride: Ride, chunk: Chunk) -> bool:
        """One chunk; whether the request would have to be put in again if the stream ended here."""
        tokens, logprobs = chunk.after(ride.got)
        if ride.got == 0 and tokens and self._is_stale(ride, chunk):
            ride.void = True
            self.stale_prefixes += 1
            self._begin_task(self._end(ride))
        ride.got = chunk.total
        if ride.gone or ride.void:
            return True
        version = self._labels.version(chunk.label)
        certain = version if chunk.label == ride.posted else None
        if chunk.finish is None:
            self._flights.extend(ride.id, tokens, logprobs, certain)
            ride.doubtful += len(tokens) if certain is None else 0
            if ride.doubtful >= self.doubt_tokens and not ride.cut:
                ride.cut = True
                self.cuts += 1
                self._begin_task(self._end(ride))
            return True
        runs = self._spans(ride, chunk)
        finish = self._finish(ride.flight, chunk, tokens)
        if finish is not None:
            self._flights.extend(ride.id, tokens, logprobs, certain, finish, runs)
            return False
        self._flights.extend(ride.id, tokens, logprobs, certain)
        self._flights.settle(ride.id, runs)
        ride.runs = runs
        return True

    def _is_stale(self, ride: Ride, chunk: Chunk) -> bool:
        """Whether the request was posted before the weights changed, begun after, and given a prefix from before.

        One that has tokens is meant to have it.
        """
        begun = len(ride.flight.token_ids) > 0
        return not begun and ride.key in self._stale and chunk.label != ride.posted and chunk.cached > 0

    def _spans(self, ride: Ride, chunk: Chunk) -> list[VersionRun]:
        """Versions of all the request's tokens, those of the parts before included."""
        if chunk.spans is None:
            raise EngineError(f"{self.describe()} does not say the versions of a request's tokens (weight_versions)")
        runs = self._labels.runs(chunk.spans)
        said = sum(run.count for run in runs)
        if said != chunk.total:
            raise EngineError(
                f"{self.describe()} sampled {chunk.total} tokens of a request and says the version of {said}"
            )
        return [*ride.runs, *runs]

    def _finish(self, flight: Flight, chunk: Chunk, tokens: Sequence[int]) -> FinishReason | None:
        """Why the request ends with these tokens; None if it goes on: the server ended it, and we did not ask to."""
        assert chunk.finish is not None
        left = flight.left - len(tokens)
        last = tokens[-1] if tokens else flight.token_ids[-1] if flight.token_ids else None
        # Whatever else ended it at the same token: the server looks at lengths and aborts first.
        if last in self._stop_ids:
            return "stop"
        if left <= 0:
            return "length"
        if chunk.finish.kind == "length":
            raise EngineError(
                f"{self.describe()} ended request {flight.request.id} {left} tokens before its limit: a request has "
                f"room for {self._facts.context} tokens there; start it with a longer --context-length"
            )
        # Put out by somebody, or stopped by an end-of-sequence token of the server's that is none of ours.
        return None

    async def _swap(self, version: PolicyVersion, load: Load) -> float:
        """Pauses, has the weights loaded, goes on.

        Returns:
            Seconds from the wish to pause to the answer that generation goes on.
        """
        label, policy = self._labels.add(version), self.kv_policy
        deadline_s = self._spec.stall_deadline_s
        started = time.monotonic()
        self._paused = True
        try:
            if policy == "abort":
                self._gate.clear()
                await self._take_out()
            try:
                await self._control("/pause_generation", {"mode": _PAUSES[policy]}, deadline_s)
                await self._change(label, load, policy)
            finally:
                # Whatever went wrong: everybody's requests hang until this is said.
                await self._control("/continue_generation", {"torch_empty_cache": False}, deadline_s)
            paused_s = time.monotonic() - started
        finally:
            self._heard = time.monotonic()
            self._paused = False
            self._gate.set()
        served = await self._served_label()
        if served != label:
            raise EngineError(f"{self.describe()} took version {version} and says that it serves {served!r}")
        return paused_s

    async def _change(self, label: str, load: Load, policy: KVPolicy) -> None:
        # In place with a flush changes the weights, fails to flush, and is called a failure as a whole.
        flush = policy != "keep"
        if not flush and self._label:
            self._stale.add(self._key)
        await load(label, flush)
        if flush:
            self._stale.clear()
        self._installs += 1
        self._label, self._key = label, f"{self._life}-{self._installs}"

    async def _join(self, join: Mapping[str, object]) -> None:
        """
        Raises:
            DirectError: it does not come about; nothing has changed.
        """
        try:
            # Of a learner that is gone, or of a life of ours that is: SGLang refuses the same name twice.
            await self._http.post("/destroy_weights_update_group", {"group_name": GROUP}, self._spec.stall_deadline_s)
            await self._tell("/init_weights_update_group", join)
        except EngineError as error:
            raise DirectError(str(error)) from error

    async def _tell(self, path: str, body: Mapping[str, object]) -> None:
        await self._control(path, body, self._spec.stall_deadline_s)

    async def _take_out(self) -> None:
        """Has the server end our requests. Its own way, in the pause, looks once a second whether all have ended."""
        await asyncio.gather(*(self._end(ride, _TAKE_OUT_S) for ride in list(self._rides.values())))

    async def _served_label(self) -> str:
        status, info = await self._http.get("/model_info", _CALL_S)
        if status != 200 or "weight_version" not in info:  # 0.5.19 and 0.5.20
            status, info = await self._http.get("/get_weight_version", _CALL_S)
        if status != 200:
            raise EngineError(f"{self.describe()} does not say which weights it serves: {status} {error_message(info)}")
        return str(info["weight_version"])

    async def _control(self, path: str, body: Mapping[str, Any], deadline_s: float) -> None:
        """Raises:
        EngineError: the server says no.
        """
        status, answer = await self._http.post(path, body, deadline_s)
        if status != 200 or (isinstance(answer, Mapping) and answer.get("success") is False):
            said = answer.get("message", error_message(answer)) if isinstance(answer, Mapping) else answer
            raise EngineError(f"{self.describe()} refused {path} ({status}): {said}")


def _filters(sampling: Sampling) -> bool:
    """Whether the distribution sampled from is not that of the logits."""
    return not sampling.greedy and (sampling.top_p < 1 or sampling.top_k > 0)
