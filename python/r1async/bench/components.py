"""Parts of the data plane by themselves, each beside what it is compared with, in one process on one thread."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch

from r1async._core import advantages, parse_logprobs_json
from r1async.bench.consumers import tensors_of
from r1async.bench.driven import AT_ONCE, GENERATOR, LEARNER, SCORER, Driven
from r1async.bench.packing import Member, pack_numpy
from r1async.bench.peers import Pipeline, hand_written
from r1async.bench.workload import GROUP_SIZE, GROUPS_PER_BATCH, ROLLOUTS_PER_BATCH, Workload, check_columns
from r1async.learner.batch import batch_from_message
from r1async.wire import pack, unpack

Figures = dict[str, float]
TINY = Workload(prompt_tokens=4, mean_tokens=8.0, sigma=0.1, max_tokens=16)
"""Rollouts so small that only the books cost anything."""
LIVE_GROUPS = 10_000


def members_of(work: Workload, groups: Sequence[int]) -> list[Member]:
    """The rollouts of groups as arrays in memory, copied as they would come from a socket."""
    found = []
    for rollout in (group * GROUP_SIZE + member for group in groups for member in range(GROUP_SIZE)):
        tokens, logprobs = work.completion(rollout)
        versions, counts = [0], [len(tokens)]
        prompt = work.prompt(rollout // GROUP_SIZE)
        found.append(
            Member(rollout, prompt.copy(), tokens.copy(), logprobs.copy(), versions, counts, work.reward(rollout))
        )
    return found


def packing(work: Workload, repeats: int) -> Figures:
    """Statistics and packing of a batch that lies in memory, and what the learner's process does with its frame.

    The core's time is from `next_batch` to the frame in Python, plus the advantages of its groups: binding the batch
    in the ledger is in it. Numpy's is `pack_numpy` of the same rollouts; memcpy's, one copy of the same bytes. By hand:
    decoding, grouping and packing, for which a learner without a buffer process holds the GIL.
    """
    driven = Driven(work, groups=(repeats + 2) * GROUPS_PER_BATCH, steps=repeats + 2)
    driven.ready_groups((repeats + 2) * GROUPS_PER_BATCH)
    core, numpy, by_hand, learner, memcpy = [], [], [], [], []
    for _ in range(repeats + 2):
        seconds, frame = driven.next_batch()
        batch = batch_from_message(unpack(frame))
        rewards = batch.rewards.reshape(GROUPS_PER_BATCH, GROUP_SIZE)
        core.append(seconds + _seconds(lambda rewards=rewards: [advantages(each) for each in rewards]))
        learner.append(_seconds(lambda frame=frame: tensors_of(batch_from_message(unpack(frame)))))
        members = members_of(work, [int(each) for each in batch.groups[::GROUP_SIZE]])
        numpy.append(_seconds(lambda members=members: _to_torch(members)))
        messages = [
            hand_written(work, batch.rollouts[at : at + AT_ONCE].tolist())[0]
            for at in range(0, ROLLOUTS_PER_BATCH, AT_ONCE)
        ]
        by_hand.append(_seconds(lambda messages=messages: _by_hand(messages)))
        source = np.frombuffer(frame, np.uint8)
        target = np.empty_like(source)
        memcpy.append(_seconds(lambda source=source, target=target: np.copyto(target, source)))
        driven.stepped()
    del core[:2], numpy[:2], by_hand[:2], learner[:2], memcpy[:2]
    each = 1e6 / ROLLOUTS_PER_BATCH
    return {
        "core_us": median(core) * each,
        "numpy_us": median(numpy) * each,
        "memcpy_us": median(memcpy) * each,
        "learner_batch_ms": median(learner) * 1e3,
        "by_hand_batch_ms": median(by_hand) * 1e3,
    }


def _to_torch(members: Sequence[Member]) -> dict[str, torch.Tensor]:
    columns, _ = pack_numpy(members)
    return {name: torch.from_numpy(column) for name, column in columns.items()}


def _by_hand(messages: Sequence[bytes]) -> dict[str, torch.Tensor]:
    """All that the hand-written consumer does in the learner's process but receiving."""
    pipeline = Pipeline()
    return _to_torch([member for message in messages for member in pipeline.take(message)])


def sglang_answer(work: Workload, rollout: int) -> bytes:
    tokens, logprobs = work.completion(rollout)
    entries = [[logprob, token, None] for token, logprob in zip(tokens.tolist(), logprobs.tolist(), strict=True)]
    meta = {"id": f"{rollout:032x}", "finish_reason": {"type": "stop", "matched": 2}, "prompt_tokens": 128}
    return json.dumps({"text": "", "meta_info": {**meta, "output_token_logprobs": entries}}).encode()


def vllm_answer(work: Workload, rollout: int) -> bytes:
    tokens, logprobs = work.completion(rollout)
    names = [f"token_id:{token}" for token in tokens.tolist()]
    logprobs_of = {"text_offset": list(range(len(names))), "token_logprobs": logprobs.tolist(), "tokens": names}
    choice = {"index": 0, "text": "", "logprobs": {**logprobs_of, "top_logprobs": None}, "finish_reason": "stop"}
    return json.dumps({"id": "cmpl-0", "object": "text_completion", "choices": [choice]}).encode()


def engine_json(work: Workload, repeats: int) -> Figures:
    """JSON of engines to columns, microseconds a completion: `_core.parse_logprobs_json`, and orjson with numpy.

    Without orjson (it is no dependency of ours) the standard library's `json` is compared with, and named.
    """
    try:
        from orjson import loads
    except ImportError:
        loads, parser = json.loads, "json"
    else:
        parser = "orjson"

    def sglang(body: bytes) -> tuple[np.ndarray, np.ndarray]:
        entries = loads(body)["meta_info"]["output_token_logprobs"]
        logprobs, tokens, _ = zip(*entries, strict=True)
        return np.array(tokens, np.int32), np.array(logprobs, np.float32)

    def vllm(body: bytes) -> tuple[np.ndarray, np.ndarray]:
        logprobs = loads(body)["choices"][0]["logprobs"]
        tokens = np.fromiter((int(name[9:]) for name in logprobs["tokens"]), np.int32, len(logprobs["tokens"]))
        return tokens, np.array(logprobs["token_logprobs"], np.float32)

    found: Figures = {}
    rollouts = range(4 * GROUP_SIZE)
    shapes: tuple[tuple[Literal["sglang", "vllm"], Any, Any], ...] = (
        ("sglang", sglang_answer, sglang),
        ("vllm", vllm_answer, vllm),
    )
    for shape, write, read in shapes:
        bodies = [write(work, rollout) for rollout in rollouts]
        for body, rollout in zip(bodies, rollouts, strict=True):
            for columns in (parse_logprobs_json(body, shape), read(body)):
                for got, want in zip(columns, work.completion(rollout), strict=True):
                    assert np.array_equal(got, want), f"{shape} answer of rollout {rollout}"
        ours, theirs = [], []
        for _ in range(repeats):
            ours.append(
                _seconds(lambda bodies=bodies, shape=shape: [parse_logprobs_json(each, shape) for each in bodies])
            )
            theirs.append(_seconds(lambda bodies=bodies, read=read: [read(each) for each in bodies]))
        found[f"{shape}_us"] = median(ours) / len(bodies) * 1e6
        found[f"{shape}_{parser}_us"] = median(theirs) / len(bodies) * 1e6
    return found


def inserts(held: Sequence[int], repeats: int) -> Figures:
    """Microseconds to file one finished rollout, by rollouts held already: only the books, not the bytes, grow."""
    most = max(held) + repeats * AT_ONCE
    driven = Driven(TINY, groups=most // GROUP_SIZE + 1, steps=1)
    found, filed = {}, 0
    for count in sorted(held):
        while filed < count:
            driven.lease(min(count - filed, 512 * GROUP_SIZE))
            filed += len(driven.leased)
            driven.finish_all()
        driven.lease(repeats * AT_ONCE)
        leased, driven.leased = driven.leased, []
        frames = [driven.chunk_frame(leased[at : at + AT_ONCE]) for at in range(0, len(leased), AT_ONCE)]
        seconds = [
            _seconds(lambda frame=frame: driven.buffer.handle("rollouts", GENERATOR, frame, 0.0)) for frame in frames
        ]
        filed += len(leased)
        driven.collect()
        found[f"{count}"] = median(seconds) / AT_ONCE * 1e6
    return found


def next_batches(held: Sequence[int], repeats: int) -> Figures:
    """Microseconds from the question to the batch in Python, by rollouts that are ready to train."""
    most = max(held) // GROUP_SIZE + GROUPS_PER_BATCH
    driven = Driven(TINY, groups=most, steps=(repeats + 1) * len(held))
    found, ready = {}, 0
    for count in sorted(held):
        driven.ready_groups(count // GROUP_SIZE - ready)
        ready = count // GROUP_SIZE
        seconds = []
        for _ in range(repeats):
            seconds.append(driven.next_batch()[0])
            driven.stepped()
            driven.ready_groups(GROUPS_PER_BATCH)
        found[f"{count}"] = median(seconds) * 1e6
    return found


def last_verdicts(work: Workload, groups: int, repeats: int) -> Figures:
    """Milliseconds from the verdict that completes a batch to its frame, with `groups` groups live.

    Time passes as at 400 completions a second. The figures that are published every second count all that is held;
    they come after what waits to be sent, and are shown by themselves.
    """
    driven = Driven(work, groups=groups + GROUPS_PER_BATCH, steps=repeats + 1)
    driven.score_room((groups + 1) * GROUP_SIZE)
    driven.lease(groups * GROUP_SIZE)
    driven.finish_all()
    last: list[tuple[int, int]] = []
    milliseconds, figures = [], []
    for _ in range(repeats):
        last += _score_but_last(driven)
        batch, last = last[:GROUPS_PER_BATCH], last[GROUPS_PER_BATCH:]
        driven.deliver(SCORER, driven.verdict_frame(batch[:-1]))
        driven.deliver(LEARNER, driven.ask_frame())
        verdict = driven.verdict_frame(batch[-1:])
        driven.now += ROLLOUTS_PER_BATCH / 400
        began = time.thread_time()  # nothing in it waits: on an idle machine this is the time that passes
        driven.buffer.handle("rollouts", SCORER, verdict, driven.now)
        driven.buffer.tick(driven.now)
        outgoing = driven.buffer.outgoing()
        milliseconds.append((time.thread_time() - began) * 1e3)
        assert "batch" in {unpack(frame).type for _, peer, frame in outgoing if peer == LEARNER}
        began = time.thread_time()
        driven.buffer.tick(driven.now)  # as the server does when all is sent: figures, if they are due
        if any(name == "events" and kind == b"stats" for name, kind, _ in driven.buffer.outgoing()):
            figures.append((time.thread_time() - began) * 1e3)
        driven.stepped()
        driven.score_room(2 * ROLLOUTS_PER_BATCH)
        driven.lease(ROLLOUTS_PER_BATCH)
        driven.finish_all()
    return {
        "groups": groups,
        "p50_ms": float(np.quantile(milliseconds, 0.5)),
        "p99_ms": float(np.quantile(milliseconds, 0.99)),
        "figures_ms": float(np.median(figures)) if figures else 0.0,
    }


def _score_but_last(driven: Driven) -> list[tuple[int, int]]:
    """Verdicts for everything finished but the last member of each group, which is returned."""
    last = [each for each in driven.finished if each[1] % GROUP_SIZE == GROUP_SIZE - 1]
    driven.finished = [each for each in driven.finished if each[1] % GROUP_SIZE < GROUP_SIZE - 1]
    driven.score_all()
    return last


def memory(work: Workload, rollouts: int, chunk_tokens: int) -> Figures:
    """Resident memory that held rollouts add, over their payload; tokens come `chunk_tokens` at a time.

    In a process of its own: here there may be room left by what was measured before.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_memory, (work, rollouts, chunk_tokens))


def _memory(work: Workload, rollouts: int, chunk_tokens: int) -> Figures:
    driven = Driven(work, groups=rollouts // GROUP_SIZE, steps=1)
    work.completion(0)
    gc.collect()
    before, payload, filed = _resident(), 0, 0
    while filed < rollouts:
        driven.lease(min(rollouts - filed, 64 * GROUP_SIZE))
        leased, driven.leased = driven.leased, []
        filed += len(leased)
        payload += sum(8 * work.length(rollout) for _, rollout in leased)
        payload += 4 * work.prompt_tokens * len(leased) // GROUP_SIZE
        _stream(driven, work, leased, chunk_tokens)
    gc.collect()
    return {"payload_mb": payload / 1e6, "held_mb": (_resident() - before) / 1e6}


def _stream(driven: Driven, work: Workload, leased: Sequence[tuple[int, int]], chunk_tokens: int) -> None:
    """All rollouts a chunk further at a time, as an engine decodes them."""
    offset, open_ = 0, [(lease, *work.completion(rollout)) for lease, rollout in leased]
    while open_:
        items, tokens, logprobs = [], [], []
        for lease, ids, values in open_:
            part = slice(offset, offset + chunk_tokens)
            count, finish = len(ids[part]), "stop" if len(ids) <= offset + chunk_tokens else None
            items.append([lease, offset, count, finish, [[1, 0, count]]])
            tokens.append(ids[part])
            logprobs.append(values[part])
        columns = {"tokens": np.concatenate(tokens), "logprobs": np.concatenate(logprobs)}
        driven.deliver(GENERATOR, pack({"t": "chunks", "items": items}, columns))
        offset += chunk_tokens
        open_ = [each for each in open_ if len(each[1]) > offset]


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this thread: what others do on the machine is not in them."""
    began = time.thread_time()
    work()
    return time.thread_time() - began


def check_packing(work: Workload) -> None:
    """The numpy packing and the core's agree with the truth, column for column."""
    columns, rollouts = pack_numpy(members_of(work, range(GROUPS_PER_BATCH)))
    check_columns(work, columns, rollouts)
    driven = Driven(work, groups=GROUPS_PER_BATCH, steps=1)
    driven.ready_groups(GROUPS_PER_BATCH)
    batch = batch_from_message(unpack(driven.next_batch()[1]))
    tensors: Mapping[str, torch.Tensor] = tensors_of(batch)
    check_columns(work, {name: tensor.numpy() for name, tensor in tensors.items()}, batch.rollouts)
