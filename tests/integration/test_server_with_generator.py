"""The real generator loop on the real buffer: what they say to each other holds together."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from r1async.config import Config
from r1async.types import PolicyVersion
from r1async.weights.publisher import Publisher
from r1async.wire import Message

from tests.integration.test_generator import Running
from tests.integration.test_server import WAIT_S, B, G, Role, Serving, audit, grade_all, learner
from tests.integration.test_server import config as config  # the fixture
from tests.played_engine import PlayedEngine

PLENTY = 10**6


class Trainer:
    """A learner and a scorer played by the test, with a real publisher of weights."""

    def __init__(self, config: Config) -> None:
        self.rank = learner(config)
        self.scorer = Role(config, "scorer", "scorer-0")
        self._weights = Publisher(
            config.endpoint("weights"), run="run", dtype="float32", chunk_bytes=2**16, deadline_s=WAIT_S
        )
        self._scored = 0

    def start(self) -> None:
        self.rank.welcomed()
        self.publish(0)
        self.scorer.welcomed()
        self.scorer.send({"t": "ready", "free": 8, "leases_seen": 0})

    def publish(self, number: int) -> None:
        digest = self._weights.publish(PolicyVersion(1, number), {"w": torch.full((3,), float(number))})
        self.rank.send({"t": "published", "epoch": 1, "version": number, "hash": digest})
        self.rank.expect("ok")

    def train(self, step: int) -> Message:
        self.rank.send({"t": "next_batch", "epoch": 1, "step": step, "part": 0, "rank": 0, "world": 1})
        # What was sampled ahead may have been graded with the step before: no more than the run has is waited for.
        self._scored = grade_all(self.scorer, G * B * (step + 1) - self._scored, self._scored)
        batch = self.rank.expect("batch")
        self.rank.send({"t": "stepped", "epoch": 1, "step": step, "metrics": {}})
        self.rank.expect("ok")
        self.publish(step + 1)
        return batch

    def commit(self, steps: int) -> None:
        self.rank.send({"t": "committed", "epoch": 1, "step": steps})
        self.rank.expect("committed_ok")

    def close(self) -> None:
        for role in (self.rank, self.scorer):
            role.connection.close()
        self._weights.close()


@pytest.fixture
def trainer(config: Config) -> Iterator[Trainer]:
    played = Trainer(config)
    yield played
    played.close()


def completions(batch: Message) -> dict[int, list[int]]:
    """Completion tokens by rollout number; prompts have two tokens."""
    ends, tokens = batch.columns["cu_seqlens"].tolist(), batch.columns["token_ids"].tolist()
    rollouts = batch.columns["rollouts"].tolist()
    return {r: tokens[ends[i] + 2 : ends[i + 1]] for i, r in enumerate(rollouts)}


def sampled(rollout: int, count: int = 4) -> list[int]:
    return [1000 * rollout + n for n in range(count)]


def test_three_steps_train_what_was_sampled_under_the_versions_it_was_sampled_under(
    config: Config, trainer: Trainer
) -> None:
    engine = PlayedEngine(capacity=4, chunk_tokens=2)
    engine.permit(PLENTY)
    with Serving(config), Running(config, engine):
        trainer.start()
        batches = [trainer.train(step) for step in range(3)]
        trainer.commit(3)
    for step, batch in enumerate(batches):
        assert completions(batch) == {r: sampled(r) for r in range(step * G * B, (step + 1) * G * B)}
        staleness = step - batch.columns["run_versions"]
        assert staleness.min() >= 0
        assert staleness.max() <= config.staleness.max_staleness
    said = audit(config)
    assert said["balanced"]
    assert said["tokens"]["trained"] == 3 * G * B * 4


def test_a_stopped_generators_rollouts_go_on_where_it_left_them(config: Config, trainer: Trainer) -> None:
    first, heir = PlayedEngine(capacity=4), PlayedEngine(capacity=4)
    first.permit(2)
    heir.permit(PLENTY)
    with Serving(config):
        trainer.start()
        with Running(config, first):
            assert first.used_up.wait(WAIT_S)
        with Running(config, heir):
            batch = trainer.train(0)
            trainer.commit(1)
    assert completions(batch) == {r: sampled(r) for r in range(G * B)}
    # 2 of 4 tokens of each were sampled by the first, and none of them again.
    said = audit(config)
    assert said["balanced"]
    assert said["tokens"]["trained"] == G * B * 4
    assert said["tokens"]["dropped"] == {} or sum(said["tokens"]["dropped"].values()) == 0


def test_a_lost_connection_costs_nothing(config: Config, trainer: Trainer, run_root: Path) -> None:
    """The generator talks through a relay that is torn down in the middle of its rollouts."""
    engine = PlayedEngine(capacity=4, chunk_tokens=1)
    engine.permit(2)
    relayed = replace(config, endpoints=replace(config.endpoints, rollouts=f"ipc://{run_root}/relay"))
    with Serving(config):
        trainer.start()
        relay = Relay(run_root / "relay", run_root / "rollouts")
        with Running(relayed, engine) as generator:
            assert engine.used_up.wait(WAIT_S)
            relay.close()
            engine.permit(PLENTY)
            relay = Relay(run_root / "relay", run_root / "rollouts")
            batch = trainer.train(0)
            trainer.commit(1)
            assert generator.error is None
        relay.close()
    assert completions(batch) == {r: sampled(r) for r in range(G * B)}
    assert audit(config)["balanced"]


class Relay:
    """Unix socket to Unix socket, byte by byte, until closed: a network that can be cut."""

    def __init__(self, here: Path, there: Path) -> None:
        here.unlink(missing_ok=True)
        self._there = str(there)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(here))
        self._listener.listen()
        self._ends = [self._listener]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return  # closed
            far = socket.socket(socket.AF_UNIX)
            far.connect(self._there)
            self._ends += [near, far]
            for source, target in ((near, far), (far, near)):
                thread = threading.Thread(target=_copy, args=(source, target))
                self._threads.append(thread)
                thread.start()

    def close(self) -> None:
        for end in list(self._ends):
            with suppress(OSError):  # the other side was quicker
                end.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join(WAIT_S)
            assert not thread.is_alive()
        for end in self._ends:
            end.close()


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(2**16):
            target.sendall(data)
        target.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # cut
