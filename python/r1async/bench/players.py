"""The roles around the real buffer, played as cheaply as their side of the protocol allows.

Each function is a process of its own; all but the buffer's take a pipe that ends them when it does.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection as Pipe

import zmq
from numpy.typing import NDArray

from r1async.bench.workload import GROUP_SIZE, GROUPS_PER_BATCH, VERSIONS_BACK, Workload
from r1async.client import Connection, greeting
from r1async.config import Config, load_config
from r1async.inbox import DeadlineExceeded, Inbox, Stopped, stop_on_signals
from r1async.types import Prompt
from r1async.wire import Message, pack, unpack

WAIT_S = 60.0
NOBLOCK = int(zmq.NOBLOCK)
SLOTS = 128
"""Rollouts of one generator under way: eight groups, whose members end in random order."""
SCORER_QUEUE = 256
QUIET_S = 0.5
"""Without a word from the buffer; then a generator says that it is there, and sees whether it should stop."""
BURST = 8
"""Messages that are sent before a generator looks at what has come, unless it is paced."""


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
            "reward.from_generators=true",
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


def generator(
    config: Config, work: Workload, index: int, per_message: int, rate: float | None, grades: bool, report: Pipe
) -> None:
    """Finishes what it is lent, `per_message` rollouts a message, at `rate` a second or as fast as they are taken.

    At the end it reports (rollout, when it was sent) of all of them, for a paced run.

    Args:
        config: of the run.
        work: the rollouts.
        index: of this generator.
        per_message: rollouts of one message.
        rate: rollouts a second; None: as many as go.
        grades: it sends each rollout's verdict along; else a scorer is asked.
        report: see above.
    """
    inbox = Inbox()
    player = _Generator(config, work, index, inbox, per_message, rate, grades)
    with stop_on_signals(inbox):
        try:
            player.run()
        except Stopped:
            report.send(player.sent)
        finally:
            player.close()


class _Generator:
    """Speaks to the buffer through a socket of its own, as a peer's producer does: `client.Connection` has a thread
    that keeps the connection alive, which generators that send some messages a second do not notice."""

    def __init__(
        self,
        config: Config,
        work: Workload,
        index: int,
        inbox: Inbox,
        per_message: int,
        rate: float | None,
        grades: bool,
    ) -> None:
        self._work, self._inbox, self._per_message, self._grades = work, inbox, per_message, grades
        self._every_s = None if rate is None else per_message / rate
        self._random = random.Random(index)
        self._todo: list[tuple[int, int]] = []
        """(lease, rollout) of what is not sent."""
        self._held = 0
        """Leases whose end is not acknowledged."""
        self._seen = self._granted = 0
        self._weights = (-1, -1)
        self.sent: dict[int, float] = {}
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.connect(config.endpoint("rollouts"))
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._say(greeting("generator", f"generator-{index}", config.name))

    def run(self) -> None:
        due = 0.0
        while True:
            self._inbox.take()
            self._receive(due)
            if self._every_s is None:
                for _ in range(BURST):
                    if len(self._todo) >= self._at_once():
                        self._send()
            elif len(self._todo) >= self._at_once() and time.monotonic() >= due:
                self._send()
                # From when it was due, so that a late message does not slow the pace; a first one starts it.
                due = max(due, time.monotonic() - WAIT_S) + self._every_s if due else time.monotonic()

    def close(self) -> None:
        self._socket.close()
        self._context.term()

    def _say(self, header: dict[str, object], columns: Mapping[str, Sequence[NDArray]] | None = None) -> None:
        self._socket.send(pack(header, columns))

    def _at_once(self) -> int:
        """Rollouts that a message waits for, unless there will be no more before these are sent."""
        return max(1, min(self._per_message, self._held))

    def _receive(self, due: float) -> None:
        """Takes what has come; with nothing to send now it waits for more, but not past the next sending."""
        wait_s = QUIET_S if len(self._todo) < self._at_once() else min(QUIET_S, due - time.monotonic())
        if wait_s > 0.0 and not self._poller.poll(max(1, round(wait_s * 1000))):
            if wait_s == QUIET_S:
                self._say({"t": "heartbeat", "stats": {}})
            return
        while True:
            try:
                frame = self._socket.recv(NOBLOCK)
            except zmq.Again:
                return
            self._take(unpack(frame))

    def _take(self, message: Message) -> None:
        header = message.header
        match message.type:
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
        self._say(
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
        header: dict[str, object] = {"t": "chunks", "items": items}
        if self._grades:
            header["verdicts"] = [verdict(work, lease, rollout) for lease, rollout in taken]
        columns = {
            "tokens": [tokens for tokens, _ in completions],
            "logprobs": [logprobs for _, logprobs in completions],
        }
        self._say(header, columns)


def verdict(work: Workload, lease: int, rollout: int) -> list[object]:
    """An item of `verdicts`."""
    reward = work.reward(rollout)
    return [lease, reward, {"accuracy": reward}, "ok"]


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
                    graded = [verdict(work, lease, rollout) for lease, rollout, *_ in items]
                    connection.send({"t": "verdicts", "items": graded})
                    if note:
                        sent.update((rollout, now) for _, rollout, *_ in items)
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
