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
from r1async.reward_pools import FIRST
from r1async.rewards.pool import Job, Report, Settled
from r1async.rewards.pools import Pools, shown
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
    pools = Pools(config.resolved_reward, config.scorer, inbox, config.scorer.serve)
    detokenizer = _detokenizer(config.model.path, config.sampling.stop)
    scorer = Scorer(detokenizer, pools, inbox, timeline)
    connection = None
    try:
        with stop_on_signals(inbox):
            pools.start()
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
        pools.close()
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
        pools: Pools,
        inbox: Inbox,
        timeline: Timeline,
    ) -> None:
        self._detokenizer, self._pools, self._inbox, self._timeline = detokenizer, pools, inbox, timeline
        self._connection: Connection | None = None
        self._leases: dict[int, int | None] = {}
        """Lease of each job that has no verdict yet; None of one from before the session, whose verdict is dropped."""
        self._places: dict[int, tuple[int, int]] = {}
        """Group and rollout of each job."""
        self._slow: dict[int, int] = {}
        """Rollout of each job that a pool names as slow; those that none names any more are forgotten."""
        self._lines: dict[int, str] = {}
        """The line of each job, as the buffer sees it."""
        self._held: Counter[str] = Counter()
        """Jobs by line."""
        self._keys = count()
        self._leases_seen = 0
        self._credits: dict[str, int] = {}
        """Leases of each line that the buffer may still send, as far as it knows."""
        self._counts: Counter[str] = Counter()

    def run(self) -> None:
        """Until the inbox raises: a signal, or a failure that no retry can mend."""
        while True:
            arrivals = self._wait()
            with self._timeline.busy("score"):
                settled = [each for arrival in arrivals for each in self._take(arrival)]
                settled += self._pools.expire(time.monotonic())
                self._tell_faults()
                self._tell_alarms()
                self._send(settled)

    def stats(self) -> dict[str, float]:
        """Figures for the heartbeat; called in the connection's thread."""
        statuses = {f"status:{status}": float(number) for status, number in self._counts.copy().items()}
        counts = self._pools.counts
        return {
            **self._timeline.stats(),
            **statuses,
            "verdicts": float(sum(statuses.values())),
            "queued": float(len(self._leases)),
            "workers_timeout": float(counts["timeout"]),
            "workers_lost": float(counts["worker_lost"]),
            "retried": float(counts["retried"]),
            **shown(self._pools.figures, self._slow),
        }

    def _wait(self) -> list[object]:
        """Everything that has arrived, at least one thing unless a deadline comes first."""
        name = "verdicts" if self._leases else "rollouts"
        with self._timeline.wait(name):
            try:
                first = self._inbox.get(name, min(LOOK_S, max(0.0, self._pools.next_deadline() - time.monotonic())))
            except DeadlineExceeded:
                return []
        return [first, *self._inbox.take()]

    def _take(self, arrival: object) -> Sequence[Settled]:
        match arrival:
            case Report():
                return self._pools.handle(arrival)
            case Connected(connection=connection):
                self._connection, self._leases_seen, self._credits = connection, 0, {}
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
        line = message.header.get("pool", FIRST)
        self._credits[line] = self._credits.get(line, 0) - len(items)
        ends = np.cumsum([length for *_, length, _ in items])
        completions = [tokens[end - item[4] : end] for item, end in zip(items, ends, strict=True)]
        texts = self._texts(completions, [item[5] == "stop" for item in items])
        jobs, settled = [], []
        for (lease, rollout, group, prompt, length, finish), text in zip(items, texts, strict=True):
            key = next(self._keys)
            self._leases[key] = lease
            self._places[key] = (group, rollout)
            self._lines[key] = line
            self._held[line] += 1
            if text is None:
                settled.append(Settled(key, Verdict.abstain("error")))
            else:
                jobs.append(Job(key, message.header["metas"][prompt], text, length, finish))
        self._pools.submit(jobs)
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
        for fault in self._pools.take_faults():
            if self._connection is None or fault.key not in self._places:
                continue
            group, rollout = self._places[fault.key]
            name = "hung_worker" if fault.status == "timeout" else "lost_worker"
            self._connection.tell_incident(
                name,
                "tried on another worker" if fault.again else "gave the verdict that reward.timeout_is says",
                f"pool {fault.pool}: busy {fault.waited_s:.1f} s on group {group} (rollout {rollout})",
                deadline_s=fault.deadline_s,
                named_after_s=fault.waited_s,
                groups=[group],
                rollouts=[rollout],
            )

    def _tell_alarms(self) -> None:
        for pool, said in self._pools.take_alarms():
            if self._connection is not None:
                text = f"pool {pool}: {said}"
                self._connection.tell_incident("missing_verdicts", "told", text, deadline_s=0.0, named_after_s=0.0)

    def _send(self, settled: Sequence[Settled]) -> None:
        if settled and self._connection is not None:
            graded = [(self._leases.pop(key), verdict) for key, verdict, _ in settled]
            for key, *_ in settled:
                _, self._slow[key] = self._places.pop(key)
                self._held[self._lines.pop(key)] -= 1
            named = {key for figures in self._pools.figures.values() for _, key in figures.slowest}
            self._slow = {key: rollout for key, rollout in self._slow.items() if key in named}
            items = [
                [lease, verdict.total, dict(verdict.parts), verdict.status]
                for lease, verdict in graded
                if lease is not None
            ]
            self._counts.update("lost" if lease is None else verdict.status for lease, verdict in graded)
            if items:
                self._connection.send({"t": "verdicts", "items": items})
            if any(self._wants_more(name) for name in self._pools.lines):
                self._say_ready()

    def _wants_more(self, line: str) -> bool:
        """Whether half of what it granted is used up, and there is room."""
        credits = self._credits.get(line, 0)
        return credits <= self._pools.lines[line].queue // 2 and self._room(line) > credits

    def _room(self, line: str) -> int:
        return max(0, self._pools.lines[line].queue - self._held[line])

    def _say_ready(self) -> None:
        """Grant the buffer as many leases as there is room for."""
        assert self._connection is not None
        self._credits = {name: self._room(name) for name in self._pools.lines}
        others = [[name, free] for name, free in self._credits.items() if name != FIRST]
        free = self._credits.get(FIRST, 0)
        self._connection.send({"t": "ready", "free": free, "pools": others, "leases_seen": self._leases_seen})
