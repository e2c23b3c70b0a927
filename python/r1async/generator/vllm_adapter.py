"""The `Engine` over a vLLM, in this process or behind HTTP: what is the same for both.

A thread with an asyncio loop of its own speaks to vLLM; the generator's loop calls the methods of `VllmAdapter` and
collects what has arrived (`Flights`). Each request of ours is one request of vLLM's, also in a group: `n` of vLLM is
taken apart into single requests by its front end and shares the prompt's KV by the prefix cache, exactly as requests do
that come one by one, but its members can neither be aborted nor seeded each for itself.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import TypeVar

from torch import Tensor

from r1async.generator.elsewhere import Elsewhere
from r1async.generator.engine import (
    EngineError,
    EngineSpec,
    KVPolicy,
    Request,
    WeightsError,
)
from r1async.generator.flights import runs_of
from r1async.generator.staged_weights import Staged, stage
from r1async.generator.vllm_calls import Delta, SamplingSettings, Vllm
from r1async.generator.vllm_direct import WAYS, update_info
from r1async.generator.vllm_legs import Leg, seed_of, versions_of
from r1async.generator.vllm_names import BACKEND
from r1async.types import FinishReason, PolicyVersion
from r1async.weights.direct import Direct, DirectError, Meeting

log = logging.getLogger(__name__)

_LOWEST_TEMPERATURE = 0.01
_CLAMPED = -9999.0
"""What vLLM's HTTP server makes of a logprob that is NaN or lower than this."""
_LOOK_S, _LONGEST_LOOK_S = 0.005, 0.25
"""Between two looks at whether the workers have verified a file, or all requests have ended."""
_WATCH_S = 1.0
_END_S = 10.0
"""Seconds that a start which failed may take to come back."""
T = TypeVar("T")


class VllmAdapter(Elsewhere):
    """An `Engine`. Keeps one weight set: a pinned request is taken only while its version is the one installed.

    Args:
        spec: what it is made with.
        vllm: not started yet.

    Raises:
        EngineError: vLLM did not start.
    """

    def __init__(self, spec: EngineSpec, vllm: Vllm) -> None:
        super().__init__(spec)
        self.prompt_tokens = 0
        """Of the requests that vLLM has begun to answer."""
        self.cached_tokens = 0
        """How many of those it took from its prefix cache."""
        self._vllm = vllm
        self._label = ""
        self._installs = 0
        self._life = secrets.token_hex(4)
        self._block_tokens = 0
        self._workers = 0
        self._joined = False
        """Whether vLLM's workers are in a group with the learner."""
        self._legs: dict[str, Leg] = {}
        """In vLLM, by key. The loop's alone."""
        self._keys: dict[int, str] = {}
        """Which leg's tokens a request takes. Under the lock, as a forgotten request's id may come again."""
        self._keys_lock = threading.Lock()
        self._number = 0
        self._arrived = time.monotonic()
        self._paused = False
        self._whole = True
        """Whether vLLM's model is one set of weights."""
        self._closed = False
        self._tasks: set[asyncio.Task] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run_loop, name=f"{spec.name}-vllm", daemon=True)
        self._thread.start()
        try:
            self._call("start", self._start(), spec.start_deadline_s, setting="generator.start_deadline_s")
        except BaseException:
            vllm.kill()
            asyncio.run_coroutine_threadsafe(self._give_up(), self._loop)
            # Its start has our output in its hand; what is raised here should be read where output belongs.
            self._thread.join(_END_S)
            raise
        self._loop.call_soon_threadsafe(self._watch)

    @property
    def block_tokens(self) -> int:
        return self._block_tokens

    def describe(self) -> str:
        return self._vllm.describe()

    def submit(self, requests: Sequence[Request]) -> None:
        """See `Engine`. Requests with a common prompt share its whole KV blocks; what is left is computed for each."""
        self._admit(requests)
        legs = [self._leg(request.id) for request in requests]
        self._loop.call_soon_threadsafe(self._begin, legs)

    def abort(self, ids: Iterable[int]) -> None:
        with self._keys_lock:
            keys = [self._keys.pop(request_id) for request_id in self._flights.forget(ids)]
        if keys:
            self._loop.call_soon_threadsafe(self._drop, keys)

    def install(self, version: PolicyVersion, tensors: Mapping[str, Tensor]) -> float:
        self._check_weights(version, tensors)
        self._installs += 1
        # Of this install alone: a version that comes twice (to a server that an earlier life of ours used, say) must
        # not find the KV of its first time, some of which may be that of the version after it.
        unique = f"{self._life}.{self._installs}"
        # A salt has no @ in vLLM's HTTP interface, so the version is not written as usual.
        label = f"{version.number}.{version.epoch}.{unique}"
        staged = stage(self._spec.scratch / f"{unique}.safetensors", tensors)
        try:
            # Each call of vLLM's in it has the deadline; the whole has it for as many as there are.
            deadline_s = 8 * self._spec.stall_deadline_s
            return self._call(f"install {version}", self._install(version, label, staged), deadline_s)
        finally:
            staged.path.unlink(missing_ok=True)

    def install_direct(self, direct: Direct) -> float:
        """See `TakesDirect`. The tensors are the manifest's, whose names and shapes are checked before."""
        medium = self._spec.direct
        assert medium is not None
        self._check_shapes(direct)
        limit_s, fresh = self._spec.stall_deadline_s, not self._joined
        self._joined = False  # until it has gone well
        meeting = direct.ask(
            WAYS[medium], base=self._version, workers=self._workers, device="cuda", fresh=fresh, deadline_s=limit_s
        )
        self._installs += 1
        label = f"{direct.version.number}.{direct.version.epoch}.{self._life}.{self._installs}"
        work = self._install_direct(direct.version, label, meeting, update_info(medium, direct, meeting))
        paused_s = self._call(f"install {direct.version}", work, 8 * limit_s)
        self._joined = True
        return paused_s

    def install_pinned(self, version: PolicyVersion, tensors: Mapping[str, Tensor] | None) -> None:
        """Nothing to do for the version that is installed.

        Raises:
            ValueError: any other: vLLM keeps one weight set.
        """
        if version != self._version:
            raise ValueError(
                f"{self.describe()} keeps one weight set and serves {self._version or 'none'}; cannot pin {version}"
            )

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            self._call("shut down", self._shut_down(), self._spec.stall_deadline_s)
        finally:
            self._vllm.kill()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(self._spec.stall_deadline_s)

    def _check(self, request: Request) -> None:
        super()._check(request)
        temperature = request.sampling.temperature
        if not request.sampling.greedy and temperature < _LOWEST_TEMPERATURE:
            # It would sample at 0.01 without a word to us, and the learner would divide by another number.
            raise ValueError(f"vLLM samples at no temperature below {_LOWEST_TEMPERATURE}, got {temperature}")

    def _leg(self, request_id: int, before: Sequence[PolicyVersion] = ()) -> Leg:
        flight = self._flights.get(request_id)
        assert flight is not None
        with self._keys_lock:
            self._number += 1
            key = f"{self._spec.name}-{request_id}-{self._number}"
            self._keys[request_id] = key
        return Leg(request_id, key, flight, before=list(before))

    def _call(self, what: str, work: Coroutine[object, object, T], limit_s: float, *, setting: str | None = None) -> T:
        """Runs in the loop, and waits. From here on down, methods run in the loop's thread."""
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(limit_s)
        except TimeoutError as error:
            if future.done():
                raise
            future.cancel()
            raise EngineError(
                f"{self._vllm.describe()} did not {what} within {limit_s:g} s "
                f"({setting or 'generator.stall_deadline_s'}); its log is {self._spec.log}"
            ) from error

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    async def _start(self) -> None:
        """
        Raises:
            EngineError: vLLM was started with other settings than we rely on.
        """
        await self._vllm.start()
        spec = self._spec
        answers = await self._vllm.workers("r1async_settings")
        self._workers = len(answers)
        for settings in answers:
            for name, fits, want in (
                ("logprobs_mode", settings["logprobs_mode"] == "processed_logprobs", "processed_logprobs"),
                ("dtype", settings["dtype"] == spec.dtype, spec.dtype),
                ("max_model_len", settings["max_model_len"] >= spec.max_len, f"{spec.max_len} or more"),
                ("backend", settings["backend"] == (spec.direct or BACKEND), spec.direct or BACKEND),
                ("device", spec.direct is None or settings["device"] == "cuda", f"cuda (weights.medium={spec.direct})"),
                ("max_num_seqs", settings["max_num_seqs"] >= spec.slots, f"{spec.slots} or more"),
                # vLLM winds a seeded request's random numbers back after a part of its prompt, which those of a CPU
                # cannot do: its worker would fall with the first prompt that a step has no room for.
                (
                    "enable_chunked_prefill",
                    settings["device"] != "cpu" or not settings["enable_chunked_prefill"],
                    "False (on a CPU)",
                ),
            ):
                if not fits:
                    raise EngineError(f"{self._vllm.describe()} has {name}={settings[name]}, want {want}")
            self._block_tokens = settings["block_size"] if settings["enable_prefix_caching"] else 0

    async def _give_up(self) -> None:
        try:
            await self._vllm.close()
        finally:
            self._loop.stop()

    def _begin(self, legs: Iterable[Leg]) -> None:
        if all(leg.dropped for leg in self._legs.values()):
            self._arrived = time.monotonic()
        for leg in legs:
            self._legs[leg.key] = leg
            self._spawn(self._serve(leg))

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None or self._closed:
            return
        if not isinstance(error, EngineError):
            named = EngineError(f"{self._vllm.describe()} failed: {error!r}; its log is {self._spec.log}")
            named.__cause__ = error
            error = named
        self._flights.fail(error)

    async def _serve(self, leg: Leg) -> None:
        """Streams one request of vLLM's, from its submission to its end."""
        flight, request = leg.flight, leg.flight.request
        context, sampling = flight.context, request.sampling
        settings = SamplingSettings(
            temperature=0.0 if sampling.greedy else sampling.temperature,
            top_p=1.0 if sampling.greedy else sampling.top_p,
            top_k=0 if sampling.greedy else sampling.top_k,
            max_tokens=flight.left,
            seed=seed_of(self._spec.seed, request.rollout, len(context) - len(request.prompt_ids)),
            stop_token_ids=self._spec.stop_ids,
        )
        first = True
        try:
            async for delta in self._vllm.generate(leg.key, context, self._label, settings):
                self._arrived = time.monotonic()
                if first:
                    self.prompt_tokens += len(context)
                    self.cached_tokens += delta.cached
                    first = False
                if leg.dropped:
                    # Said before vLLM knew of the request, perhaps, so it is said again.
                    await self._vllm.abort([leg.key])
                else:
                    self._take(leg, delta)
        finally:
            del self._legs[leg.key]
        # One that was aborted in the other thread is not wanted any more, though vLLM has not been told yet.
        with self._keys_lock:
            wanted = self._keys.get(leg.id) == leg.key
        if wanted and not leg.cut:
            raise EngineError(f"request {leg.id}: {self._vllm.describe()} closed its stream before its end")

    def _take(self, leg: Leg, delta: Delta) -> None:
        logprobs = delta.logprobs
        if not all(math.isfinite(logprob) and logprob > _CLAMPED for logprob in logprobs):
            raise EngineError(f"request {leg.id}: version {self._version} gives logprobs that are not finite")
        leg.tokens += len(delta.token_ids)
        runs = None if delta.finish is None else runs_of(leg.before + versions_of(leg, delta.spans))
        version = None if leg.uncertain else self._version
        with self._keys_lock:
            if self._keys.get(leg.id) != leg.key:
                return
            if delta.finish == "abort" and leg.cut:
                self._flights.extend(leg.id, delta.token_ids, logprobs, version)
                self._flights.settle(leg.id, runs or ())
                return
            finish = None if delta.finish is None else self._finish(leg, delta)
            if finish is not None:
                del self._keys[leg.id]
            self._flights.extend(leg.id, delta.token_ids, logprobs, version, finish, runs)

    def _finish(self, leg: Leg, delta: Delta) -> FinishReason:
        """Our word for the end, and whether vLLM had a reason to end there.

        Raises:
            EngineError: it had none.
        """
        last = delta.token_ids[-1] if delta.token_ids else None
        left = leg.flight.left - len(delta.token_ids)
        if delta.finish == "stop" and last in self._spec.stop_ids:
            return "stop"
        if delta.finish == "length" and left == 0:
            return "length"
        raise EngineError(
            f"request {leg.id}: vLLM ended it with {delta.finish!r} after token {last}, {left} tokens before its limit "
            f"(stop tokens are {list(self._spec.stop_ids)})"
        )

    def _drop(self, keys: Iterable[str]) -> None:
        known = [leg for key in keys if (leg := self._legs.get(key))]
        for leg in known:
            leg.dropped = True
        if known:
            self._spawn(self._vllm.abort([leg.key for leg in known]))

    async def _install(self, version: PolicyVersion, label: str, staged: Staged) -> float:
        await self._verify(version, staged)
        return await self._change(version, label, lambda: self._load(version, label, staged))

    async def _install_direct(
        self, version: PolicyVersion, label: str, meeting: Meeting, update: Mapping[str, object] | None
    ) -> float:
        if meeting.join is not None:
            try:
                await self._timed("join the learner's group", self._vllm.join(meeting.join))
            except EngineError as error:
                raise DirectError(str(error)) from error
        return await self._change(version, label, lambda: self._take_sent(version, label, update))

    async def _change(self, version: PolicyVersion, label: str, load: Callable[[], Awaitable[None]]) -> float:
        """Pauses, has the weights loaded, labels, goes on; seconds without a token."""
        policy = self.kv_policy
        began, self._paused = time.monotonic(), True
        cut = self._mark(policy)
        try:
            await self._timed("pause", self._vllm.pause("abort" if policy == "abort" else "keep"))
            if cut:
                await self._timed("end its requests", self._all_ended())
            await self._timed("hand over its tokens", self._vllm.drain())
            await load()
            self._version, self._label = version, label
            if policy == "recompute":
                await self._timed("drop its KV", self._vllm.recompute())
        finally:
            # A model that is neither the last set nor the new one must answer nothing.
            if self._whole:
                await self._timed("resume", self._vllm.resume())
                self._arrived, self._paused = time.monotonic(), False
                self._go_on(cut)
        return self._arrived - began

    def _mark(self, policy: KVPolicy) -> list[Leg]:
        """Prepares the requests for a pause; those that it ends and that have to go on after it."""
        for leg in self._legs.values():
            leg.uncertain = leg.uncertain or not self._vllm.orders_outputs
            leg.cut = policy == "abort" and not leg.dropped
        return [leg for leg in self._legs.values() if leg.cut]

    def _go_on(self, cut: Iterable[Leg]) -> None:
        """Puts requests in again with the tokens they have."""
        for leg in cut:
            if leg.key in self._legs:  # the pause failed before it ended this one
                leg.cut = False
            elif leg.flight.finish is None:
                self._begin([self._leg(leg.id, leg.flight.versions)])

    async def _all_ended(self) -> None:
        while self._legs:
            # Said again: a request may have been on its way when the pause began.
            await self._vllm.abort(list(self._legs))
            await asyncio.sleep(_LOOK_S)

    async def _load(self, version: PolicyVersion, label: str, staged: Staged) -> None:
        """
        Raises:
            WeightsError: the workers refused them, and have what they had.
            EngineError: some have not.
        """
        self._whole = False
        try:
            await self._timed("load the weights", self._vllm.update(staged, label))
        except EngineError as error:
            states = await self._timed("say what it has loaded", self._vllm.workers("r1async_state"))
            self._whole = all(state["intact"] and state["loaded"] != str(staged.path) for state in states)
            if self._whole:
                raise WeightsError(f"version {version} refused, {self._version} still served: {error}") from error
            raise self._broken(version) from error
        self._whole = True

    async def _take_sent(self, version: PolicyVersion, label: str, update: Mapping[str, object] | None) -> None:
        """
        Raises:
            EngineError: vLLM loads what comes as it comes, so after any error its model is nobody's.
        """
        self._whole = False
        try:
            await self._timed("take the weights", self._vllm.take(update, label))
        except EngineError as error:
            raise self._broken(version) from error
        self._whole = True

    def _broken(self, version: PolicyVersion) -> EngineError:
        broken = EngineError(
            f"{self._vllm.describe()} failed in the middle of loading version {version} and answers nothing more; "
            f"its log is {self._spec.log}"
        )
        self._flights.fail(broken)
        return broken

    async def _verify(self, version: PolicyVersion, staged: Staged) -> None:
        """Has every worker look through the file, while requests go on.

        Raises:
            WeightsError: a tensor is not what was handed in.
        """
        update = json.dumps({"path": str(staged.path), "hashes": dict(staged.hashes)})
        await self._timed("take the weights", self._vllm.workers("r1async_stage", update))
        await self._timed("verify the weights", self._verified(version))

    async def _verified(self, version: PolicyVersion) -> None:
        states, wait_s = await self._vllm.workers("r1async_state"), _LOOK_S
        while not all(state["staged"] for state in states):
            await asyncio.sleep(wait_s)
            # Each look is a call between two steps: fewer for a model that takes long.
            wait_s = min(2 * wait_s, _LONGEST_LOOK_S)
            states = await self._vllm.workers("r1async_state")
        for state in states:
            if state["refusal"] is not None:
                said = state["refusal"]
                raise WeightsError(f"version {version} refused, {self._version or 'none'} still served: {said}")

    async def _timed(self, what: str, work: Awaitable[T]) -> T:
        """Raises:
        EngineError: it took longer than `generator.stall_deadline_s`.
        """
        limit_s = self._spec.stall_deadline_s
        try:
            return await asyncio.wait_for(work, limit_s)
        except TimeoutError as error:
            raise EngineError(
                f"{self._vllm.describe()} did not {what} within {limit_s:g} s (generator.stall_deadline_s); "
                f"its log is {self._spec.log}"
            ) from error

    def _watch(self) -> None:
        if self._closed:
            return
        waiting = [leg.id for leg in self._legs.values() if not leg.dropped]
        limit_s = self._spec.stall_deadline_s
        if waiting and not self._paused and time.monotonic() - self._arrived > limit_s:
            self._flights.fail(
                EngineError(
                    f"{self._vllm.describe()} sampled no token of {len(waiting)} requests (the first is {waiting[0]}) "
                    f"for {limit_s:g} s (generator.stall_deadline_s); its log is {self._spec.log}"
                )
            )
            return
        self._loop.call_later(min(_WATCH_S, limit_s), self._watch)

    async def _shut_down(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._vllm.close()
