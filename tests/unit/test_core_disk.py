"""Answers that wait for the disk, while the buffer does not."""

import select
from pathlib import Path

from core_peers import Run, crew, settings, work
from r1async._core import Buffer
from r1async.wire import pack, unpack

DEADLINE_S = 60.0


def has_rung(bell: int, wait_s: float) -> bool:
    return bool(select.select([bell], [], [], wait_s)[0])


def test_a_batch_goes_out_when_the_disk_has_it_and_its_bell_says_when(tmp_path: Path):
    run = Run(journal=tmp_path)
    generator, scorer, learner = crew(run)
    work(generator, scorer)
    bell = run.buffer.disk_bell()
    assert bell is not None
    assert not has_rung(bell, 0.0), "what was waited for is heard of already"
    question = {"t": "next_batch", "epoch": learner.epoch, "step": 0, "part": 0, "rank": 0, "world": 1}
    run.buffer.handle("batches", learner.name.encode(), pack(question), run.now)
    heard = []
    while "batch" not in heard:
        outgoing = run.buffer.outgoing(wait=False)
        heard += [unpack(frame).type for socket, _, frame in outgoing if socket == "batches"]
        assert "batch" in heard or has_rung(bell, DEADLINE_S), "neither the batch nor the bell"
    assert heard == ["batch"]
    assert not has_rung(bell, 0.0)
    assert run.buffer.outgoing() == []


def test_without_a_journal_there_is_no_bell():
    assert Buffer(settings()).disk_bell() is None
