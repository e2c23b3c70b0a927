"""The scorer: takes finished rollouts from the buffer and gives verdicts.

Takes: `score` messages (completion tokens, the prompt's meta), as many as its credits allow. Gives: `verdicts`.
Waits for: one inbox, in which the buffer's messages and the workers' reports arrive; until the deadline of the
rollout that a worker is busy with. Woken by: a message, a report, that deadline, a signal.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from r1async.client import Connected, Connection, greeting
from r1async.config import Config, ConfigError
from r1async.inbox import DeadlineExceeded, Inbox, Stopped, stop_on_signals
from r1async.keys import client_keys
from r1async.monitor.metrics import run_started
from r1async.monitor.timeline import Timeline
from r1async.rewards.pool import Job, Report, Settled, WorkerPool
from r1async.tasks.tokenizer import Detokenizer, TokenizerError
from r1async.types import Verdict
from r1async.wire import Message

log = logging.getLogger(__name__)

LOOK_S = 60.0
"""Seconds after which an idle scorer looks up; nothing depends on it, but every wait has a deadline."""


def main(config: Config, index: int = 0) -> None:
    """Run one scorer until it is asked to end.

    Raises:
        ConfigError: the reward or the model's tokenizer cannot be set up.
    """
    name = f"scorer-{index}"
    inbox = Inbox()
    timeline = Timeline(name, config.run_dir / "metrics" / f"{name}.jsonl", started=run_started(config.run_dir))
    pool = WorkerPool(
        config.resolved_reward, workers=config.scorer.workers, memory_mb=config.scorer.worker_memory_mb, inbox=inbox
    )
    detokenizer = _detokenizer(config.model.path, config.sampling.stop)
    deadline_s = config.reward.verdict_deadline_s
    scorer = Scorer(detokenizer, pool, inbox, timeline, queue=config.scorer.queue, deadline_s=deadline_s)
    connection = None
    try:
        with stop_on_signals(inbox):
            pool.start()
            connection = Connection(
                config.endpoint("rollouts"),
                greeting("scorer", name, config.name),
                inbox,
                stats=scorer.stats,
                max_message_bytes=config.buffer.max_message_bytes,
                keys=client_keys(config, "rollouts", "scorer"),
            )
            scorer.run()
    except Stopped:
        log.info("%s: asked to end", name)
    finally:
        pool.close()
        if connection is not None:
            connection.close()
        timeline.close()


def _detokenizer(path: str, stop: Sequence[str]) -> Detokenizer:
    try:
        return Detokenizer(Path(path), stop)
    except TokenizerError as error:
        raise ConfigError(f"model.path: {error}") from error


class Scorer:
    """The loop: receive, detokenize, have graded, send."""

    def __init__(
        self,
        detokenizer: Detokenizer,
        pool: WorkerPool,
        inbox: Inbox,
        timeline: Timeline,
        *,
        queue: int,
        deadline_s: float,
    ) -> None:
        self._detokenizer, self._pool, self._inbox, self._timeline = detokenizer, pool, inbox, timeline
        self._queue = queue
        self._deadline_s = deadline_s
        self._connection: Connection | None = None
        self._leases: dict[int, int | None] = {}
        """Lease of each job that has no verdict yet; None of one from before the session, whose verdict is dropped."""
        self._places: dict[int, tuple[int, int]] = {}
        """Group and rollout of each job."""
        self._keys = count()
        self._leases_seen = 0
        self._credits = 0
        """Leases that the buffer may still send, as far as it knows."""
        self._counts: Counter[str] = Counter()

    def run(self) -> None:
        """Until the inbox raises: a signal, or a failure that no retry can mend."""
        while True:
            arrivals = self._wait()
            with self._timeline.busy("score"):
                settled = [each for arrival in arrivals for each in self._take(arrival)]
                settled += self._pool.expire(time.monotonic())
                self._tell_faults()
                self._send(settled)

    def stats(self) -> dict[str, float]:
        """Figures for the heartbeat; called in the connection's thread."""
        statuses = {f"status:{status}": float(number) for status, number in self._counts.copy().items()}
        return {
            **self._timeline.stats(),
            **statuses,
            "verdicts": float(sum(statuses.values())),
            "queued": float(len(self._leases)),
            "workers_timeout": float(self._pool.counts["timeout"]),
            "workers_lost": float(self._pool.counts["worker_lost"]),
        }

    def _wait(self) -> list[object]:
        """Everything that has arrived, at least one thing unless a deadline comes first."""
        name = "verdicts" if self._leases else "rollouts"
        with self._timeline.wait(name):
            try:
                first = self._inbox.get(name, min(LOOK_S, max(0.0, self._pool.next_deadline() - time.monotonic())))
            except DeadlineExceeded:
                return []
        return [first, *self._inbox.take()]

    def _take(self, arrival: object) -> Sequence[Settled]:
        match arrival:
            case Report():
                return self._pool.handle(arrival)
            case Connected(connection=connection):
                self._connection, self._leases_seen, self._credits = connection, 0, 0
                # The buffer has taken its leases back, or is another one: what is being graded only takes room.
                self._leases = dict.fromkeys(self._leases)
                self._say_ready()
            case Message(header={"t": "score"}):
                return self._accept(arrival)
            case Message(header={"t": "acks", "lost": [_, *_] as lost}):
                # Somebody else was faster, or the group is closed; the verdict is not wanted any more.
                self._counts["lost"] += len(lost)
            case Message(header={"t": "error"} as header):
                log.error("the buffer refused a message: %s: %s", header.get("code"), header.get("message"))
                self._counts["refused"] += 1
        return ()

    def _accept(self, message: Message) -> Sequence[Settled]:
        """File a `score` message's rollouts as jobs."""
        items, tokens = message.header["items"], message.columns["tokens"]
        self._leases_seen = message.header["seq"]
        self._credits -= len(items)
        ends = np.cumsum([length for *_, length, _ in items])
        completions = [tokens[end - item[4] : end] for item, end in zip(items, ends, strict=True)]
        texts = self._texts(completions, [item[5] == "stop" for item in items])
        jobs, settled = [], []
        for (lease, rollout, group, prompt, length, finish), text in zip(items, texts, strict=True):
            key = next(self._keys)
            self._leases[key] = lease
            self._places[key] = (group, rollout)
            if text is None:
                settled.append(Settled(key, Verdict.abstain("error")))
            else:
                jobs.append(Job(key, message.header["metas"][prompt], text, length, finish))
        self._pool.submit(jobs)
        return settled

    def _texts(self, completions: Sequence[NDArray[np.int32]], stopped: Sequence[bool]) -> list[str | None]:
        """Completions as text; None for one whose tokens are none of this vocabulary."""
        tokens = [completion.tolist() for completion in completions]
        try:
            return list(self._detokenizer.texts(tokens, stopped))
        except (OverflowError, ValueError, IndexError) as error:
            if len(tokens) == 1:
                log.error("a completion cannot be detokenized, it abstains: %s", error)
                return [None]
        pairs = zip(completions, stopped, strict=True)
        return [text for completion, stop in pairs for text in self._texts([completion], [stop])]

    def _tell_faults(self) -> None:
        for fault in self._pool.take_faults():
            if self._connection is None or fault.key not in self._places:
                continue
            group, rollout = self._places[fault.key]
            name = "hung_worker" if fault.status == "timeout" else "lost_worker"
            self._connection.tell_incident(
                name,
                "tried on another worker" if fault.again else "gave the verdict that reward.timeout_is says",
                f"busy {fault.waited_s:.1f} s on group {group} (rollout {rollout})",
                deadline_s=self._deadline_s,
                named_after_s=fault.waited_s,
                groups=[group],
                rollouts=[rollout],
            )

    def _send(self, settled: Sequence[Settled]) -> None:
        if settled and self._connection is not None:
            graded = [(self._leases.pop(key), verdict) for key, verdict, _ in settled]
            for key, *_ in settled:
                del self._places[key]
            items = [
                [lease, verdict.total, dict(verdict.parts), verdict.status]
                for lease, verdict in graded
                if lease is not None
            ]
            self._counts.update("lost" if lease is None else verdict.status for lease, verdict in graded)
            if items:
                self._connection.send({"t": "verdicts", "items": items})
            if self._credits <= self._queue // 2:
                self._say_ready()

    def _say_ready(self) -> None:
        """Grant the buffer as many leases as there is room for."""
        assert self._connection is not None
        self._credits = max(0, self._queue - len(self._leases))
        self._connection.send({"t": "ready", "free": self._credits, "leases_seen": self._leases_seen})
