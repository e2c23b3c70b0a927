"""What people would use instead: the same rollouts through pyzmq PUSH and PULL.

`frames` and `oneframe` only receive the bytes, which is the ceiling of any consumer in Python. `msgpack` is the
hand-written pipeline: headers in msgpack with arrays as bin, groups in a dict, numpy packing, torch tensors. Rewards
come with the rollouts there: nobody is asked for a verdict.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Iterator
from multiprocessing.connection import Connection as Pipe
from typing import Any, Literal

import msgpack
import numpy as np
import zmq

from r1async.bench.packing import Member
from r1async.bench.workload import GROUP_SIZE, Workload
from r1async.inbox import Inbox, Stopped, stop_on_signals

Peer = Literal["frames", "oneframe", "msgpack"]
PEERS: tuple[Peer, ...] = ("frames", "oneframe", "msgpack")
OPEN_GROUPS = 8
"""Groups of one producer under way, whose members end in random order."""
QUEUED = 512
"""Completions in ZeroMQ's queues, on each side of a connection."""


def producer(
    endpoint: str,
    peer: Peer,
    work: Workload,
    index: int,
    count: int,
    per_message: int,
    rate: float | None,
    report: Pipe,
) -> None:
    """Producer `index` of `count`: every `count`-th group, until SIGTERM; reports (rollout, when it was sent)."""
    context = zmq.Context()
    socket = context.socket(zmq.PUSH)
    socket.sndhwm, socket.linger = max(2, QUEUED // per_message), 0
    socket.connect(endpoint)
    encode = {"frames": _frames, "oneframe": _oneframe, "msgpack": hand_written}[peer]
    sent: dict[int, float] = {}
    due, every_s = time.monotonic(), 0.0 if rate is None else per_message / rate
    inbox = Inbox()
    try:
        with stop_on_signals(inbox):
            for rollouts in messages_of(index, count, per_message):
                if rate is not None:
                    time.sleep(max(0.0, due - time.monotonic()))
                    due += every_s
                    sent.update(dict.fromkeys(rollouts, time.monotonic()))
                _send(socket, encode(work, rollouts), inbox)
    except Stopped:
        report.send(sent)
    finally:
        socket.close()
        context.term()


def _send(socket: zmq.Socket, parts: list[bytes], inbox: Inbox) -> None:
    """Sends when there is room; a signal ends the wait."""
    while True:
        inbox.take()
        try:
            socket.send_multipart(parts, zmq.NOBLOCK, copy=True)
            return
        except zmq.Again:
            socket.poll(100, zmq.POLLOUT)


def messages_of(index: int, count: int, per_message: int) -> Iterator[list[int]]:
    """Rollouts of this producer's groups: as soon as a group is sent the next is begun, members in random order."""
    order = random.Random(index)
    group, todo, message = index, [], []
    while True:
        while len(todo) <= (OPEN_GROUPS - 1) * GROUP_SIZE:
            todo += range(group * GROUP_SIZE, (group + 1) * GROUP_SIZE)
            group += count
            order.shuffle(todo)
        message.append(todo.pop())
        if len(message) == per_message:
            yield message
            message = []


def _columns(work: Workload, rollouts: list[int]) -> tuple[list[list[Any]], list[bytes], list[bytes]]:
    """Header entries, and for each rollout the bytes of its ids (prompt first) and of its logprobs."""
    heads, ids, logprobs = [], [], []
    for rollout in rollouts:
        group = rollout // GROUP_SIZE
        prompt, (tokens, values) = work.prompt(group), work.completion(rollout)
        versions, counts = zip(*work.runs(rollout), strict=True)
        heads.append([group, rollout, len(prompt), len(tokens), versions, counts, work.reward(rollout)])
        ids.append(prompt.tobytes() + tokens.tobytes())
        logprobs.append(values.tobytes())
    return heads, ids, logprobs


def _frames(work: Workload, rollouts: list[int]) -> list[bytes]:
    heads, ids, logprobs = _columns(work, rollouts)
    return [msgpack.packb(heads) or b"", b"".join(ids), b"".join(logprobs)]


def _oneframe(work: Workload, rollouts: list[int]) -> list[bytes]:
    return [b"".join(_frames(work, rollouts))]


def hand_written(work: Workload, rollouts: list[int]) -> list[bytes]:
    """The message of the `msgpack` peer."""
    heads, ids, logprobs = _columns(work, rollouts)
    packed = msgpack.packb([[*head, *arrays] for head, *arrays in zip(heads, ids, logprobs, strict=True)])
    return [packed or b""]


class Pipeline:
    """The hand-written consumer up to whole groups; `pack_numpy` does the rest."""

    def __init__(self) -> None:
        self._groups: defaultdict[int, list[Member]] = defaultdict(list)

    def take(self, message: bytes) -> list[Member]:
        """The members of groups that this message completes."""
        complete: list[Member] = []
        for group, rollout, prompt_len, _, versions, counts, reward, ids, logprobs in msgpack.unpackb(message):
            tokens = np.frombuffer(ids, np.int32)
            values = np.frombuffer(logprobs, np.float32)
            members = self._groups[group]
            members.append(Member(rollout, tokens[:prompt_len], tokens[prompt_len:], values, versions, counts, reward))
            if len(members) == GROUP_SIZE:
                complete += self._groups.pop(group)
        return complete
