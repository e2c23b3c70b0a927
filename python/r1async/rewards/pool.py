"""Worker processes that grade, each killed at a hard deadline and replaced.

Everything here runs in the scorer's main thread but `_write` and `_read`, two threads per worker, which move bytes
between the worker's pipes and the scorer's inbox. Takes: jobs. Gives: verdicts. Waits for: nothing; the scorer waits,
for reports in its inbox or for `next_deadline`.
"""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from queue import SimpleQueue
from typing import NamedTuple

from r1async.config import ConfigError, RewardConfig
from r1async.inbox import Inbox
from r1async.reward_pools import OTHERS, Pool
from r1async.rewards.worker import WireJob, read_frame, write_frame
from r1async.types import FinishReason, Verdict

log = logging.getLogger(__name__)

START_DEADLINE_S = 120.0
"""For a worker's imports; a custom reward may bring a large library."""
MAX_FAILED_STARTS = 3
RETRIED = frozenset(("infra_error", "error", "nan"))
"""Abstentions that another try may mend. A reference that cannot be read is the same everywhere."""
JOIN_S = 2.0
"""What a worker's thread gets to notice that its process was killed."""


@dataclass(slots=True)
class Job:
    key: int
    meta: bytes
    text: str
    num_tokens: int
    finish: FinishReason
    domain: str = OTHERS
    """Of its prompt, as `reward_pools.weights_of` names it."""
    tries: int = 0
    """Workers that were killed or lost over it."""
    given_at: float = 0.0
    """When a worker got it."""

    def on_wire(self) -> WireJob:
        return self.key, self.meta, self.text, self.num_tokens, self.finish, self.domain


class Settled(NamedTuple):
    """A job's verdict."""

    key: int
    verdict: Verdict
    elapsed_s: float = 0.0
    """That grading took in the worker."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A worker that a job took down."""

    key: int
    pool: str
    deadline_s: float
    status: str
    """`timeout` or `worker_lost`."""
    waited_s: float
    """Since its last sign of work."""
    again: bool
    """The job is tried on another worker."""


class PoolError(RuntimeError):
    """Workers cannot be started."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker's thread puts into the inbox."""

    worker: _Worker
    ready: bool = False
    failed: str = ""
    """The worker says that it cannot be configured like this."""
    results: Sequence[tuple[int, float | None, Mapping[str, float], str, float, str]] = ()
    """Key, total, parts, status, seconds, detail."""
    ended: int | None = None
    """Exit status; negative is a signal's number."""


class _Worker:
    """One process and the threads that talk to it."""

    def __init__(
        self, process: subprocess.Popen[bytes], settings: Mapping[str, object], inbox: Inbox, pool: Pool
    ) -> None:
        self.process = process
        self.ready = False
        self.pool = pool
        self.jobs: dict[int, Job] = {}
        """Given and not reported yet, in the order the worker takes them."""
        self.progress_at = time.monotonic()
        """Last sign of work. Written by the threads, so that a scorer that is busy itself kills nobody for it."""
        self._todo: SimpleQueue[Sequence[WireJob] | None] = SimpleQueue()
        self.threads = [
            threading.Thread(target=self._write, args=(settings,), daemon=True, name="to grader"),
            threading.Thread(target=self._read, args=(inbox,), daemon=True, name="grader"),
        ]
        for thread in self.threads:
            thread.start()

    @property
    def room(self) -> int:
        """Jobs that it may be given now. One that grades one at a time gets the next when it has done all."""
        if not self.ready:
            return 0
        if self.pool.asking == "one":
            return 0 if self.jobs else self.pool.at_once
        return self.pool.at_once - len(self.jobs)

    @property
    def due(self) -> float:
        """Monotonic time at which it is to be killed; infinite while it has nothing to do."""
        if not self.ready:
            return self.progress_at + START_DEADLINE_S
        if not self.jobs:
            return math.inf
        since = self.progress_at if self.pool.asking == "one" else self.culprit.given_at
        return since + self.pool.deadline_s

    @property
    def culprit(self) -> Job:
        """What it is busy with: the first it has, or of several at a time the one that it has had longest."""
        return next(iter(self.jobs.values()))

    def give(self, jobs: Sequence[Job]) -> None:
        now = time.monotonic()
        for job in jobs:
            job.given_at = now
            self.jobs[job.key] = job
        if self.pool.asking == "one":
            self.progress_at = now
        self._todo.put([job.on_wire() for job in jobs])

    def end(self) -> None:
        self.process.kill()
        self._todo.put(None)

    def _write(self, settings: Mapping[str, object]) -> None:
        assert self.process.stdin is not None
        try:
            with self.process.stdin as stdin:
                write_frame(stdin, settings)
                while (batch := self._todo.get()) is not None:
                    write_frame(stdin, batch)
                    self.progress_at = time.monotonic()
        except OSError:
            pass  # the process ended; whoever reads from it tells so

    def _read(self, inbox: Inbox) -> None:
        assert self.process.stdout is not None
        try:
            with self.process.stdout as stdout:
                match read_frame(stdout):
                    case {"failed": str(message)}:
                        inbox.put(Report(self, failed=message))
                    case _:
                        inbox.put(Report(self, ready=True))
                while True:
                    results = read_frame(stdout)
                    assert isinstance(results, list), "a worker that is ready writes lists of results"
                    self.progress_at = time.monotonic()
                    inbox.put(Report(self, results=results))
        except (EOFError, OSError):
            pass  # the process ended, by itself or by us; its status says which
        self._todo.put(None)
        inbox.put(Report(self, ended=self.process.wait()))


class WorkerPool:
    """Hands one pool's jobs to its workers and turns their reports into verdicts.

    Args:
        settings: the reward.
        pool: its workers, their deadline and retries, and what of the reward they grade.
        inbox: gets `Report`s, to be given to `handle`.
    """

    def __init__(self, settings: RewardConfig, pool: Pool, inbox: Inbox) -> None:
        self._pool, self._inbox = pool, inbox
        self._to_worker = {"reward": asdict(settings), "pool": asdict(pool)}
        self._workers: list[_Worker] = []
        self._queue: deque[Job] = deque()
        self._failed_starts = 0
        self.counts: Counter[str] = Counter()
        """Workers killed at a deadline (`timeout`) or lost (`worker_lost`); verdicts `retried` for other reasons."""
        self._faults: list[Fault] = []

    def start(self) -> None:
        """Start the workers. From the main thread: they end with the thread that started them."""
        while len(self._workers) < self._pool.workers:
            self._start_one()

    @property
    def ready(self) -> bool:
        """All workers have taken their settings."""
        return all(worker.ready for worker in self._workers)

    @property
    def outstanding(self) -> int:
        """Jobs without a verdict."""
        return len(self._queue) + sum(len(worker.jobs) for worker in self._workers)

    def submit(self, jobs: Iterable[Job]) -> None:
        self._queue.extend(jobs)
        self._dispatch()

    def handle(self, report: Report) -> list[Settled]:
        """What a report settles.

        Raises:
            ConfigError: the reward cannot be set up; the message is the worker's.
            PoolError: workers keep dying before they are ready.
        """
        worker = report.worker
        if worker not in self._workers:
            return []  # killed before; its jobs have moved on
        settled: list[Settled] = []
        if report.failed:
            raise ConfigError(report.failed)
        if report.ready:
            worker.ready, self._failed_starts = True, 0
        if report.ended is not None:
            settled = self._replace(worker, "worker_lost", _describe(report.ended))
        for key, total, parts, status, elapsed_s, detail in report.results:
            if (job := worker.jobs.pop(key, None)) is not None and not self._retry(job, total, status):
                verdict = Verdict(total=total, parts=parts, status=status, detail=detail)
                settled.append(Settled(key, verdict, elapsed_s))
        self._dispatch()
        return settled

    def take_faults(self) -> list[Fault]:
        """Workers that jobs took down since the last call."""
        faults, self._faults = self._faults, []
        return faults

    def next_deadline(self) -> float:
        """Monotonic time at which `expire` has something to do; infinite while nobody works."""
        return min(worker.due for worker in self._workers)

    def expire(self, now: float) -> list[Settled]:
        """Kill and replace workers that took too long over one rollout.

        Raises:
            PoolError: a worker was not ready in time.
        """
        settled: list[Settled] = []
        for worker in list(self._workers):
            if now >= worker.due:
                settled += self._replace(worker, "timeout", f"no verdict within {self._pool.deadline_s:g} s")
        self._dispatch()
        return settled

    def close(self) -> None:
        """Kill the workers: they hold nothing that cannot be graded again."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.end()
        for thread in [thread for worker in workers for thread in worker.threads]:
            thread.join(JOIN_S)

    def _start_one(self) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", "r1async.rewards.worker", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._workers.append(_Worker(process, self._to_worker, self._inbox, self._pool))

    def _dispatch(self) -> None:
        for worker in list(self._workers):
            if not self._queue or not worker.room:
                continue
            if not worker.jobs and (status := worker.process.poll()) is not None:
                # It died with nothing to do: no rollout is to blame.
                self._replace(worker, "worker_lost", _describe(status))
            else:
                size = min(worker.room, math.ceil(len(self._queue) / len(self._workers)))
                worker.give([self._queue.popleft() for _ in range(size)])

    def _replace(self, worker: _Worker, status: str, why: str) -> list[Settled]:
        """End a worker and start another. Its first job without a result is what it was busy with."""
        self._workers.remove(worker)
        worker.end()
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts >= MAX_FAILED_STARTS or status == "timeout":
                raise PoolError(f"a reward worker ended before it was ready: {why}; its log lines are above")
        self.counts[status] += 1
        self._start_one()
        if not worker.jobs:
            return []
        one, now = worker.pool.asking == "one", time.monotonic()
        culprit, *innocent = worker.jobs.values()
        self._queue.extendleft(reversed(innocent))
        return self._blame(culprit, status, why, now - (worker.progress_at if one else culprit.given_at))

    def _retry(self, job: Job, total: float | None, status: str) -> bool:
        """Whether the job is tried again: its grader failed, not what it graded."""
        if total is not None or status not in RETRIED or job.tries >= self._pool.retries:
            return False
        job.tries += 1
        self.counts["retried"] += 1
        self._queue.append(job)
        return True

    def _blame(self, job: Job, status: str, why: str, waited_s: float) -> list[Settled]:
        job.tries += 1
        again = job.tries <= self._pool.retries
        self._faults.append(Fault(job.key, self._pool.name, self._pool.deadline_s, status, waited_s, again))
        log.warning("grading took a worker down (%s), try %d%s", why, job.tries, ", trying again" if again else "")
        if again:
            # Last in the queue: what took one worker down shall not keep the others waiting.
            self._queue.append(job)
            return []
        if status == "timeout" and self._pool.timeout_is == "zero":
            # Zero in every part too: who reads a part (evaluation, the metrics) shall not take it for an abstention.
            parts = dict.fromkeys(self._pool.weights[job.domain], 0.0)
            verdict = Verdict(total=0.0, parts=parts, status="timeout", detail=why)
        else:
            verdict = Verdict(total=None, status=status, detail=why)
        return [Settled(job.key, verdict, waited_s)]


def _describe(status: int) -> str:
    return f"it was killed by signal {-status}" if status < 0 else f"it ended with status {status}"
