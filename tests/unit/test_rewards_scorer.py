"""What the scorer says in a new session about rollouts of an earlier one, whose leases may be another's now."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
from r1async.client import Connected
from r1async.inbox import Stopped
from r1async.monitor.timeline import Timeline
from r1async.reward_pools import Line
from r1async.rewards.pool import Job, Report, Settled
from r1async.rewards.scorer import Scorer
from r1async.types import Verdict
from r1async.wire import Message


class Connection:
    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    def send(self, header: dict[str, Any]) -> None:
        self.sent.append(header)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [header for header in self.sent if header["t"] == kind]


class Inbox:
    """Gives what it has, one batch at a time, then ends the scorer."""

    def __init__(self, *batches: list[object]) -> None:
        self.batches = list(batches)

    def get(self, wait: str, deadline_s: float) -> object:
        if not self.batches:
            raise Stopped(wait)
        return self.batches[0].pop(0)

    def take(self) -> list[object]:
        return self.batches.pop(0)


class Pool:
    """Grades all it has at a report."""

    figures: ClassVar[dict[str, Any]] = {}
    lines: ClassVar[dict[str, Line]] = {"rules": Line("rules", 10.0, 1, 4)}

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def submit(self, jobs: Sequence[Job]) -> None:
        self.jobs += jobs

    def handle(self, report: Report) -> list[Settled]:
        jobs, self.jobs = self.jobs, []
        return [Settled(job.key, Verdict(total=float(job.num_tokens), parts={}, status="ok")) for job in jobs]

    def take_faults(self) -> list[object]:
        return []

    def take_alarms(self) -> list[object]:
        return []

    @property
    def counts(self) -> Counter[str]:
        return Counter()

    def expire(self, now: float) -> list[Settled]:
        return []

    def next_deadline(self) -> float:
        return float("inf")


class Detokenizer:
    def texts(self, completions: list[list[int]], stopped: Sequence[bool]) -> list[str]:
        return ["" for _ in completions]


def score(seq: int, *completions: tuple[int, int]) -> Message:
    """A message of (lease, length) pairs."""
    items = [[lease, lease, 0, 0, length, "stop"] for lease, length in completions]
    tokens = np.zeros(sum(length for _, length in completions), np.int32)
    return Message({"t": "score", "seq": seq, "items": items, "metas": [b""]}, {"tokens": tokens})


def session(connection: Any, number: int) -> Connected:
    return Connected(connection, number, Message({"t": "welcome"}, {}), first=number == 0)


def graded() -> Report:
    worker: Any = None
    return Report(worker)


def run(*batches: list[object]) -> Scorer:
    detokenizer: Any = Detokenizer()
    pool: Any = Pool()
    inbox: Any = Inbox(*batches)
    scorer = Scorer(detokenizer, pool, inbox, Timeline("scorer"))
    with pytest.raises(Stopped):
        scorer.run()
    return scorer


def test_verdicts_of_an_earlier_session_are_dropped_and_their_jobs_take_room_until_they_end():
    connection = Connection()
    run(
        [session(connection, 0)],
        [score(2, (7, 1), (8, 2))],
        [session(connection, 1)],
        [score(1, (7, 5))],  # the same lease, of a buffer that counts anew
        [graded()],
    )
    assert [header["items"] for header in connection.of("verdicts")] == [[[7, 5.0, {}, "ok"]]]
    assert [(it["free"], it["leases_seen"]) for it in connection.of("ready")] == [(4, 0), (2, 0), (4, 1)]


def test_no_message_is_sent_for_dropped_verdicts_alone():
    connection = Connection()
    scorer = run([session(connection, 0)], [score(1, (7, 1))], [session(connection, 1), graded()])
    assert connection.of("verdicts") == []
    assert scorer.stats()["queued"] == 0
