"""The buffer's core without sockets, filled and asked by hand: what a call costs when much is held."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from r1async._core import Buffer
from r1async.bench.players import bench_config
from r1async.bench.workload import GROUP_SIZE, GROUPS_PER_BATCH, Workload
from r1async.buffer.server import core_settings
from r1async.client import greeting
from r1async.wire import Frame, Message, pack, unpack

GENERATOR, SCORER, LEARNER = b"generator", b"scorer", b"learner"
AT_ONCE = 16
"""Rollouts of one message."""


class Driven:
    """A buffer with one peer of each role, whose `groups` fit into its pacing.

    Args:
        work: the rollouts.
        groups: groups that may be under way or ready at a time.
        steps: of the run.
    """

    def __init__(self, work: Workload, *, groups: int, steps: int) -> None:
        # Steps take their places along: those are free when a version is installed, and none is here.
        windows = groups // GROUPS_PER_BATCH + 2 + steps
        more = (f"staleness.pacing={windows}", f"staleness.max_staleness={windows}")
        config = bench_config("", (1, 2, 3), steps=windows, max_tokens=work.max_tokens, more=more)
        self.buffer, self.now = Buffer(core_settings(config)), 0.0
        self._work, self._seen, self._step = work, {GENERATOR: 0, SCORER: 0}, 0
        self.leased: list[tuple[int, int]] = []
        """(lease, rollout) that wait for their tokens."""
        self.finished: list[tuple[int, int]] = []
        """(lease, rollout) that wait for their verdict."""
        self._admit()
        self.say(LEARNER, greeting("learner", "learner", "bench", rank=0, world=1, epoch=1, step=0))
        self.say(LEARNER, {"t": "published", "epoch": 1, "version": 0, "hash": "zero"})
        for peer in (GENERATOR, SCORER):
            self.say(peer, greeting(peer.decode(), peer.decode(), "bench"))

    def say(self, peer: bytes, header: dict[str, object], columns: dict[str, NDArray] | None = None) -> list[Message]:
        return self.deliver(peer, pack(header, columns))

    def deliver(self, peer: bytes, frame: bytes) -> list[Message]:
        """Files a message, brings prompts, notes leases; the learner's messages are answered."""
        self.buffer.handle("batches" if peer == LEARNER else "rollouts", peer, frame, self.now)
        return self.collect()

    def collect(self) -> list[Message]:
        answers: list[Message] = []
        while outgoing := self.buffer.outgoing():
            for _, peer, frame in outgoing:
                message = unpack(frame)
                if message.type in ("leases", "score"):
                    self._seen[bytes(peer)] = message.header["seq"]
                    waiting = self.leased if message.type == "leases" else self.finished
                    waiting += [(each[0], each[1]) for each in message.header["items"]]
                assert message.type != "error", message.header
                if peer == LEARNER:
                    answers.append(message)
            self._admit()
        return answers

    def lease(self, rollouts: int) -> None:
        """Has a generator take rollouts, whole groups."""
        weights = {"epoch": 1, "version": 0, "hash": "zero"}
        room = {"free": rollouts, "eval_free": 0, "capacity": rollouts, "leases_seen": self._seen[GENERATOR]}
        self.say(GENERATOR, {"t": "ready", **room, **weights})

    def score_room(self, rollouts: int) -> None:
        self.say(SCORER, {"t": "ready", "free": rollouts, "leases_seen": self._seen[SCORER]})

    def chunk_frame(self, leases: Sequence[tuple[int, int]]) -> bytes:
        """Whole completions of one version."""
        completions = [self._work.completion(rollout) for _, rollout in leases]
        items = [
            [lease, 0, len(tokens), "stop", [[1, 0, len(tokens)]]]
            for (lease, _), (tokens, _) in zip(leases, completions, strict=True)
        ]
        tokens, logprobs = (np.concatenate(columns) for columns in zip(*completions, strict=True))
        return pack({"t": "chunks", "items": items}, {"tokens": tokens, "logprobs": logprobs})

    def verdict_frame(self, leases: Sequence[tuple[int, int]]) -> bytes:
        work = self._work
        items = [[lease, work.reward(rollout), {"accuracy": work.reward(rollout)}, "ok"] for lease, rollout in leases]
        return pack({"t": "verdicts", "items": items})

    def finish_all(self) -> None:
        """Tokens for everything leased, 16 rollouts a message."""
        leased, self.leased = self.leased, []
        for place in range(0, len(leased), AT_ONCE):
            self.deliver(GENERATOR, self.chunk_frame(leased[place : place + AT_ONCE]))

    def score_all(self) -> None:
        while self.finished:
            finished, self.finished = self.finished[:1024], self.finished[1024:]
            self.deliver(SCORER, self.verdict_frame(finished))

    def ready_groups(self, groups: int) -> None:
        """Has that many groups generated and scored."""
        rollouts = groups * GROUP_SIZE
        while rollouts > 0:
            at_once = min(rollouts, 512 * GROUP_SIZE)
            self.score_room(at_once)
            self.lease(at_once)
            assert len(self.leased) == at_once, f"{len(self.leased)} rollouts leased, want {at_once}"
            self.finish_all()
            self.score_all()
            rollouts -= at_once

    def ask_frame(self) -> bytes:
        return pack({"t": "next_batch", "epoch": 1, "step": self._step, "part": 0, "rank": 0, "world": 1})

    def stepped(self) -> None:
        """The batch asked for is trained and safe."""
        self.say(LEARNER, {"t": "stepped", "epoch": 1, "step": self._step, "metrics": {}})
        self._step += 1
        self.say(LEARNER, {"t": "committed", "epoch": 1, "step": self._step})

    def next_batch(self) -> tuple[float, Frame]:
        """CPU seconds from the question to the batch's frame in Python, and the frame."""
        question = self.ask_frame()
        began = time.thread_time()
        self.buffer.handle("batches", LEARNER, question, self.now)
        outgoing = self.buffer.outgoing()
        seconds = time.thread_time() - began
        (frame,) = (frame for _, peer, frame in outgoing if peer == LEARNER)
        return seconds, frame

    def _admit(self) -> None:
        while ordinals := self.buffer.wanted_prompts():
            for ordinal in ordinals:
                self.buffer.admit(ordinal, self._work.prompt(ordinal), b"{}", self.now)
