"""The learner's end of both ways: batches as torch tensors. Only these processes import torch."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from multiprocessing.connection import Connection as Pipe

import numpy as np
import torch
import zmq
from numpy.typing import NDArray

from r1async.bench.packing import Member, pack_numpy
from r1async.bench.peers import QUEUED, Peer, Pipeline
from r1async.bench.workload import COLUMNS, ROLLOUTS_PER_BATCH, Workload, check_columns
from r1async.config import Config
from r1async.inbox import Inbox
from r1async.types import Batch, PolicyVersion

COMMIT_EVERY = 20
"""Steps between two commits; what is trained but not committed stays in the buffer's memory."""


def learner(config: Config, work: Workload, checked: int, warm: int, note: bool, report: Pipe) -> None:
    """Takes batches as torch tensors: `checked` are compared with the truth, all after `warm` are timed.

    Reports "begin" and "end" of what is timed, each with the time; then (when a batch came, its rollouts) of each.
    """
    from r1async.learner.link import Link  # with it comes transformers, which rivals need not wait for

    # Batches are read-only, which torch cannot say of a tensor and so warns about.
    warnings.simplefilter("ignore", UserWarning)
    inbox = Inbox()
    link = Link(config, inbox, rank=0, epoch=1, step=0, stats=dict)
    arrived: list[tuple[float, NDArray[np.int64]]] = []
    try:
        link.connect()
        link.published(PolicyVersion(1, 0), "version-0")
        link.ask_batch(0)
        for step in range(config.steps):
            batch = link.wait_batch(step)
            assert isinstance(batch, Batch), batch
            tensors = tensors_of(batch)
            if note:
                arrived.append((time.monotonic(), batch.rollouts))
            if step < checked:
                check_columns(work, {name: tensor.numpy() for name, tensor in tensors.items()}, batch.rollouts)
            if step == warm - 1:
                report.send(("begin", time.monotonic()))
            link.stepped(step, {})
            link.published(PolicyVersion(1, step + 1), f"version-{step + 1}")
            if (step + 1) % COMMIT_EVERY == 0:
                link.committed(step + 1)
        report.send(("end", time.monotonic()))
        report.send(("batches", arrived))
        report.recv()  # memory is read before anything is given back
    finally:
        link.close()


def tensors_of(batch: Batch) -> dict[str, torch.Tensor]:
    """The batch's columns as a learner's model code gets them: views of the received frame."""
    arrays = {
        "token_ids": batch.token_ids,
        "behavior_logprobs": batch.behavior_logprobs,
        "cu_seqlens": batch.cu_seqlens,
        "prompt_lens": batch.prompt_lens,
        "advantages": batch.advantages,
        "run_versions": batch.run_versions,
        "run_lengths": batch.run_lengths,
        "cu_runs": batch.cu_runs,
    }
    assert arrays.keys() == COLUMNS.keys()
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def consumer(
    endpoint: str,
    peer: Peer,
    work: Workload,
    steps: int,
    checked: int,
    warm: int,
    note: bool,
    per_message: int,
    report: Pipe,
) -> None:
    """`steps` batches through PULL; reports like `learner`."""
    context = zmq.Context()
    socket = context.socket(zmq.PULL)
    socket.rcvhwm = max(2, QUEUED // per_message)
    socket.bind(endpoint)
    batches = _packed(socket, work, checked) if peer == "msgpack" else _received(socket, per_message)
    arrived: list[tuple[float, NDArray[np.int64]]] = []
    for step, rollouts in zip(range(steps), batches, strict=False):
        if note:
            arrived.append((time.monotonic(), rollouts))
        if step == warm - 1:
            report.send(("begin", time.monotonic()))
    report.send(("end", time.monotonic()))
    report.send(("batches", arrived))
    report.recv()
    socket.close(linger=0)
    context.term()


def _received(socket: zmq.Socket, per_message: int) -> Iterator[NDArray[np.int64]]:
    """Every 128 completions, whosever they are; nobody looks into the frames."""
    nobody, got = np.zeros(0, np.int64), 0
    while True:
        socket.recv_multipart()
        got += per_message
        if got >= ROLLOUTS_PER_BATCH:
            got -= ROLLOUTS_PER_BATCH
            yield nobody


def _packed(socket: zmq.Socket, work: Workload, checked: int) -> Iterator[NDArray[np.int64]]:
    """The rollouts of one batch of tensors after the other; the first `checked` are compared with the truth."""
    pipeline, ready = Pipeline(), list[Member]()
    while True:
        ready += pipeline.take(socket.recv())
        while len(ready) >= ROLLOUTS_PER_BATCH:
            columns, rollouts = pack_numpy(ready[:ROLLOUTS_PER_BATCH])
            del ready[:ROLLOUTS_PER_BATCH]
            tensors = {name: torch.from_numpy(column) for name, column in columns.items()}
            if checked > 0:
                checked -= 1
                check_columns(work, {name: tensor.numpy() for name, tensor in tensors.items()}, rollouts)
            yield rollouts
