"""Batches that the buffer puts into memory which the learner maps."""

from __future__ import annotations

import gc
import mmap
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from core_peers import Generator, Learner, Run, Scorer, work
from numpy.typing import NDArray
from r1async.learner.batch import batch_from_message
from r1async.learner.memory import BatchMemory
from r1async.wire import Message, WireError, pack

HERE = "this machine"


def sharing(**changes: Any) -> Run:
    run = Run(**changes)
    run.buffer.share_memory(HERE, 1 << 24)
    return run


def trained(run: Run, learner: Learner, **asked: Any) -> Message:
    """The next `batch` message, its step reported."""
    learner.ask(**asked)
    message = run.take(learner.name, "batch")
    learner.train()
    return message


def crew(run: Run, **learner: Any) -> tuple[Generator, Scorer, Learner]:
    first = Learner(run, **learner)
    first.tell("published", version=0, hash="hash-0")
    generator, scorer = Generator(run), Scorer(run)
    scorer.ready()
    generator.ready()
    work(generator, scorer)
    return generator, scorer, first


def equal(one: Message, other: Message) -> bool:
    names = set(one.columns) | set(other.columns)
    return all(np.array_equal(one.columns[name], other.columns[name]) for name in names)


def test_a_batch_is_the_same_mapped_and_sent_to_a_later_life():
    run = sharing(steps=2)
    *_, learner = crew(run, machine=HERE)
    assert learner.welcome.header["memory"] is True
    memory = BatchMemory()
    message = trained(run, learner)
    assert not message.columns
    mapped = memory.read(message.header["memory"])
    after = Learner(run, epoch=2)
    assert after.welcome.header["memory"] is False
    sent = trained(run, after)
    assert sent.header["step"] == mapped.header["step"] == 0
    assert equal(mapped, sent)
    batch = batch_from_message(mapped)
    assert batch.rollouts.tolist() == list(range(8))
    assert not batch.token_ids.flags.writeable


def test_another_machine_gets_its_batch_sent():
    run = sharing(steps=1)
    *_, learner = crew(run, machine="another machine")
    assert learner.welcome.header["memory"] is False
    assert len(trained(run, learner).columns["rollouts"]) == 8


def test_who_cannot_map_it_says_so_and_is_sent_this_batch_and_the_next():
    run = sharing(steps=2)
    generator, scorer, learner = crew(run, machine=HERE)
    learner.ask()
    mapped = BatchMemory().read(run.take(learner.name, "batch").header["memory"])
    assert equal(mapped, trained(run, learner, travels=True))
    generator.ready()
    work(generator, scorer)
    assert "memory" not in trained(run, learner).header


def test_memory_is_written_again_only_when_no_array_looks_into_it():
    run = sharing(steps=4, max_staleness=3, pacing=3)
    generator, scorer, learner = crew(run, machine=HERE)
    memory, held, used = BatchMemory(), list[NDArray[np.int32]](), []
    for _ in range(4):
        message = trained(run, learner, freed=memory.freed())
        used.append(message.header["memory"][2])
        batch = batch_from_message(memory.read(message.header["memory"]))
        if not held:
            held += [batch.token_ids[1:], batch.token_ids[1:].copy()]
        del batch, message
        gc.collect()
        generator.ready()
        work(generator, scorer)
    assert used == [1, 2, 2, 2]
    assert np.array_equal(held[0], held[1])  # the view that outlived its batch is still that batch's
    assert memory.freed() == [2]
    held.clear()
    assert memory.freed() == [1]


def test_without_room_the_batch_is_sent():
    run = Run(steps=2)
    run.buffer.share_memory(HERE, 1000)
    *_, learner = crew(run, machine=HERE)
    assert learner.welcome.header["memory"] is True
    assert "memory" not in trained(run, learner).header


def test_a_connection_that_begins_again_gets_memory_of_its_own():
    run = sharing(steps=1)
    *_, learner = crew(run, machine=HERE)
    learner.ask()
    before = run.take(learner.name, "batch")
    memory = BatchMemory()
    mapped = memory.read(before.header["memory"])
    again = Learner(run, machine=HERE)  # the same peer on a new connection: what it had is not written to any more
    again.ask(freed=[before.header["memory"][2]])
    after = run.take(again.name, "batch")
    assert after.header["memory"][2] != before.header["memory"][2]
    assert equal(mapped, memory.read(after.header["memory"]))


@pytest.fixture
def place() -> Iterator[list[int]]:
    """A message in memory of this process, as the buffer names it."""
    frame = pack({"t": "batch"}, {"tokens": np.arange(5, dtype=np.int32)})
    descriptor = os.memfd_create("r1async-batch-1")
    os.truncate(descriptor, mmap.PAGESIZE)
    os.pwrite(descriptor, frame, 0)
    yield [os.getpid(), descriptor, 1, len(frame)]
    os.close(descriptor)


def test_places_that_cannot_be_read_say_why(place: list[int]):
    memory = BatchMemory()
    assert memory.read(place).columns["tokens"].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(WireError, match="8192 bytes in a segment of 4096"):
        memory.read([*place[:3], 8192])
    with pytest.raises(WireError, match=r"\[process, descriptor, segment, bytes\]"):
        memory.read("here")
    with pytest.raises(FileNotFoundError):
        memory.read([os.getpid(), 9999, 2, 8])
