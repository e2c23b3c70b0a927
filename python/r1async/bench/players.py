"""The roles around the real buffer, played as cheaply as their side of the protocol allows.

Each function is a process of its own; all but the buffer's take a pipe that ends them when it does.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection as Pipe

import numpy as np

from r1async.bench.workload import GROUP_SIZE, GROUPS_PER_BATCH, VERSIONS_BACK, Workload
from r1async.client import Connected, Connection, greeting
from r1async.config import Config, load_config
from r1async.inbox import DeadlineExceeded, Inbox, Stopped, stop_on_signals
from r1async.types import Prompt
from r1async.wire import Message

WAIT_S = 60.0
SLOTS = 128
"""Rollouts of one generator under way: eight groups, whose members end in random order."""
SCORER_QUEUE = 256


def bench_config(folder: str, ports: Sequence[int], *, steps: int, max_tokens: int, more: Sequence[str] = ()) -> Config:
    """Settings of the buffer and its peers; `more` wins."""
    rollouts, batches, events = (f"tcp://127.0.0.1:{port}" for port in ports)
    return load_config(
        None,
        [
            f"runs_dir={folder}",
            "name=bench",
            f"steps={steps}",
            "data.path=bench",
            "model.path=bench",
            f"sampling.max_tokens={max_tokens}",
            f"group.group_size={GROUP_SIZE}",
            f"learner.groups_per_step={GROUPS_PER_BATCH}",
            f"learner.micro_batch_tokens={2**24}",
            f"staleness.max_staleness={2 * VERSIONS_BACK}",
            f"staleness.pacing={VERSIONS_BACK}",
            "staleness.waste_budget=1",
            "reward.weights={accuracy: 1}",
            f"endpoints.rollouts={rollouts}",
            f"endpoints.batches={batches}",
            f"endpoints.events={events}",
            *more,
        ],
    )


class _Source:
    """The workload's prompts, without end."""

    total = None
    fingerprint = "bench"

    def __init__(self, work: Workload) -> None:
        self._work = work

    def prompt(self, ordinal: int) -> Prompt:
        text = f"prompt {ordinal}"
        return Prompt(ordinal=ordinal, text=text, answer=str(ordinal), token_ids=self._work.prompt(ordinal))

    def held_out(self, count: int) -> Sequence[Prompt]:
        return [self.prompt(ordinal) for ordinal in range(count)]


def buffer(config: Config, work: Workload) -> None:
    """The real buffer, until SIGTERM."""
    from r1async.buffer.server import serve

    serve(config, _Source(work))


def generator(config: Config, work: Workload, index: int, per_message: int, rate: float | None, report: Pipe) -> None:
    """Finishes what it is lent, `per_message` rollouts a message, at `rate` a second or as fast as they are taken.

    At the end it reports (rollout, when it was sent) of all of them, for a paced run.
    """
    inbox = Inbox()
    with stop_on_signals(inbox):
        player = _Generator(config, work, index, inbox, per_message, rate)
        try:
            player.run()
        except Stopped:
            report.send(player.sent)
        finally:
            player.connection.close()


class _Generator:
    def __init__(
        self, config: Config, work: Workload, index: int, inbox: Inbox, per_message: int, rate: float | None
    ) -> None:
        self._work, self._inbox, self._per_message = work, inbox, per_message
        self._every_s = None if rate is None else per_message / rate
        self._random = random.Random(index)
        self._todo: list[tuple[int, int]] = []
        """(lease, rollout) of what is not sent."""
        self._held = 0
        """Leases whose end is not acknowledged."""
        self._seen = self._granted = 0
        self._weights = (-1, -1)
        self.sent: dict[int, float] = {}
        self.connection = Connection(
            config.endpoint("rollouts"),
            greeting("generator", f"generator-{index}", config.name),
            inbox,
            watch=("state", "published", "epoch"),
        )

    def run(self) -> None:
        due = 0.0
        while True:
            for item in self._arrivals(due):
                self._take(item)
            if self._todo and time.monotonic() >= due and len(self._todo) >= self._at_once():
                self._send()
                # From when it was due, so that a late message does not slow the pace; a first one starts it.
                if self._every_s is not None:
                    due = max(due, time.monotonic() - WAIT_S) + self._every_s if due else time.monotonic()

    def _at_once(self) -> int:
        """Rollouts that a message waits for, unless there will be no more before these are sent."""
        return min(self._per_message, self._held)

    def _arrivals(self, due: float) -> list[object]:
        wait_s = WAIT_S if len(self._todo) < max(1, self._at_once()) else max(0.0, due - time.monotonic())
        if wait_s == 0.0:
            return self._inbox.take()
        try:
            return [self._inbox.get("leases", wait_s), *self._inbox.take()]
        except DeadlineExceeded:
            return []

    def _take(self, item: object) -> None:
        if isinstance(item, Connected):
            self._ready()
            return
        assert isinstance(item, Message)
        header = item.header
        match header["t"]:
            case "leases":
                leases = header["items"]
                self._seen, self._held = header["seq"], self._held + len(leases)
                self._granted -= len(leases)
                self._todo += [(each[0], each[1]) for each in leases]
                self._random.shuffle(self._todo)
            case "acks":
                assert not header["lost"], "nothing is lost in a benchmark"
                self._held -= len(header["items"])
            case "error":
                raise RuntimeError(f"the buffer refused a message: {header['message']}")
        weights = (header["epoch"], header["published"])
        if weights != self._weights or SLOTS - self._held - self._granted >= SLOTS // 4:
            self._weights = weights
            self._ready()

    def _ready(self) -> None:
        epoch, version = self._weights
        if version < 0:
            return
        self._granted = SLOTS - self._held
        self.connection.send(
            {
                "t": "ready",
                "free": self._granted,
                "eval_free": 0,
                "capacity": SLOTS,
                "leases_seen": self._seen,
                "epoch": epoch,
                "version": version,
                "hash": f"version-{version}",
            }
        )

    def _send(self) -> None:
        work, (epoch, _) = self._work, self._weights
        now, taken = time.monotonic(), self._todo[-self._per_message :]
        del self._todo[-self._per_message :]
        completions = [work.completion(rollout) for _, rollout in taken]
        items = []
        for (lease, rollout), (tokens, _) in zip(taken, completions, strict=True):
            finish = "length" if len(tokens) == work.max_tokens else "stop"
            runs = [[epoch, version, count] for version, count in work.runs(rollout)]
            items.append([lease, 0, len(tokens), finish, runs])
            if self._every_s is not None:
                self.sent[rollout] = now
        columns = {
            "tokens": np.concatenate([tokens for tokens, _ in completions]),
            "logprobs": np.concatenate([logprobs for _, logprobs in completions]),
        }
        self.connection.send({"t": "chunks", "items": items}, columns)


def scorer(config: Config, work: Workload, note: bool, report: Pipe) -> None:
    """Answers at once what has arrived; with `note` it reports (rollout, when its verdict was sent) at the end."""
    inbox, sent = Inbox(), {}
    hello = greeting("scorer", "scorer-0", config.name)
    try:
        with stop_on_signals(inbox), Connection(config.endpoint("rollouts"), hello, inbox) as connection:
            seen = granted = 0
            while True:
                items = []
                for item in _everything(inbox, "rollouts to score"):
                    if isinstance(item, Message) and item.type == "score":
                        items += item.header["items"]
                        seen, granted = item.header["seq"], granted - len(item.header["items"])
                if items:
                    now = time.monotonic() if note else 0.0
                    rewards = [(lease, rollout, work.reward(rollout)) for lease, rollout, *_ in items]
                    graded = [[lease, reward, {"accuracy": reward}, "ok"] for lease, _, reward in rewards]
                    connection.send({"t": "verdicts", "items": graded})
                    if note:
                        sent.update((rollout, now) for _, rollout, _ in rewards)
                if granted <= SCORER_QUEUE // 2:
                    granted = SCORER_QUEUE
                    connection.send({"t": "ready", "free": granted, "leases_seen": seen})
    except Stopped:
        report.send(sent)


def _everything(inbox: Inbox, wait: str) -> list[object]:
    try:
        return [inbox.get(wait, WAIT_S), *inbox.take()]
    except DeadlineExceeded:
        return []
