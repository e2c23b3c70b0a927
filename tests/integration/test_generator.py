"""The generator's loop between a played buffer, a played engine and a real publisher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from r1async.config import BufferConfig, Config, ProgressConfig
from r1async.generator.canary import Canary
from r1async.generator.generator import run
from r1async.inbox import DeadlineExceeded, Inbox
from r1async.types import PolicyVersion
from r1async.weights.publisher import Publisher
from r1async.wire import Message, WireError

from tests.played_buffer import WAIT_MS, Router
from tests.played_engine import PlayedEngine

V0, V1, V2 = (PolicyVersion(1, number) for number in range(3))


@pytest.fixture
def config(run_root: Path) -> Config:
    """Its ipc sockets are made in the test's own folder."""
    from r1async.config import EndpointsConfig

    return Config(
        name="run",
        runs_dir=str(run_root),
        endpoints=EndpointsConfig(rollouts=f"ipc://{run_root}/rollouts", weights=f"ipc://{run_root}/weights"),
        progress=ProgressConfig(limit_s=WAIT_MS / 1000),
        buffer=BufferConfig(connect_deadline_s=WAIT_MS / 1000),
    )


@pytest.fixture
def learner(config: Config) -> Iterator[Publisher]:
    with Publisher(
        config.endpoint("weights"), run="run", dtype="float32", chunk_bytes=2**16, deadline_s=10.0
    ) as publisher:
        yield publisher


@pytest.fixture
def buffer(config: Config) -> Iterator[Router]:
    router = Router(config.endpoint("rollouts"))
    yield router
    router.close()


class Running:
    """A generator in a thread, and what became of it."""

    def __init__(
        self,
        config: Config,
        engine: PlayedEngine,
        *,
        offers_evaluation: bool = True,
        offers_training: bool = True,
        canary: Canary | None = None,
    ) -> None:
        self.inbox = Inbox()
        self.error: BaseException | None = None
        offers = {"offers_evaluation": offers_evaluation, "offers_training": offers_training}
        self._thread = threading.Thread(target=self._run, args=(config, engine, canary), kwargs=offers)
        self._thread.start()

    def _run(
        self,
        config: Config,
        engine: PlayedEngine,
        canary: Canary | None,
        *,
        offers_evaluation: bool,
        offers_training: bool,
    ) -> None:
        try:
            make = lambda: (engine, canary)  # noqa: E731
            run(
                config,
                "generator-0",
                make,
                self.inbox,
                offers_evaluation=offers_evaluation,
                offers_training=offers_training,
            )
        except Exception as error:  # noqa: BLE001
            self.error = error  # every one of them is the test's to look at

    def join(self) -> None:
        self._thread.join(WAIT_MS / 1000)
        assert not self._thread.is_alive()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.inbox.stop()
        self.join()
        if kind is None and self.error is not None:
            raise self.error


def publish(learner: Publisher, version: PolicyVersion, *, retain: bool = False) -> str:
    return learner.publish(version, {"w": torch.full((3,), float(version.number))}, retain=retain)


def leases(
    *items: tuple[int, int],
    seq: int | None = None,
    max_tokens: int = 3,
    resume: int = 0,
    pin: PolicyVersion | None = None,
) -> tuple[dict, dict]:
    """A leases message: (lease, rollout) of one prompt each, `resume` tokens sampled before."""
    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_tokens": max_tokens, "greedy": False}
    header = {
        "t": "leases",
        "seq": len(items) if seq is None else seq,
        "samplings": [sampling],
        "items": [[lease, rollout, rollout // 8, 0, 0, resume, pin and list(pin)] for lease, rollout in items],
    }
    columns = {
        "prompt_tokens": np.array([5, 6], np.int32),
        "prompt_lens": np.array([2], np.int32),
        "resume_tokens": np.arange(resume * len(items), dtype=np.int32),
    }
    return header, columns


def wake(buffer: Router) -> None:
    buffer.send({"t": "acks", "items": [], "lost": []})


def steps(buffer: Router, engine: PlayedEngine, count: int, *, done: bool = False) -> None:
    """`done`: returns when they are, so that what comes from elsewhere comes after them."""
    engine.permit(count)
    wake(buffer)
    assert not done or engine.used_up.wait(WAIT_MS / 1000)


def start(buffer: Router) -> Message:
    buffer.welcome()
    return buffer.expect("ready")


def chunk(message: Message) -> list[tuple]:
    """(lease, offset, tokens, finish, runs) of each item."""
    assert message.type == "chunks"
    found, at = [], 0
    for lease, offset, count, finish, runs in message.header["items"]:
        tokens = message.columns["tokens"][at : at + count]
        assert message.columns["logprobs"][at : at + count].tolist() == [-(t % 1000) for t in tokens.tolist()]
        found.append((lease, offset, tokens.tolist(), finish, runs))
        at += count
    assert at == len(message.columns["tokens"])
    return found


def test_ready_says_what_is_installed_and_what_is_free(config: Config, buffer: Router, learner: Publisher) -> None:
    with Running(config, PlayedEngine(capacity=4, pinned_capacity=2)):
        digest = publish(learner, V0)
        assert start(buffer).header == {
            "t": "ready",
            "free": 4,
            "eval_free": 2,
            "capacity": 4,
            "leases_seen": 0,
            "epoch": 1,
            "version": 0,
            "hash": digest,
        }


def test_finished_rollouts_go_in_one_message_and_ready_follows(
    config: Config, buffer: Router, learner: Publisher
) -> None:
    publish(learner, V0)
    engine = PlayedEngine()
    with Running(config, engine):
        start(buffer)
        buffer.send(*leases((10, 1), (11, 2)))
        steps(buffer, engine, 3)
        assert chunk(buffer.expect("chunks")) == [
            (10, 0, [1000, 1001, 1002], "length", [[1, 0, 3]]),
            (11, 0, [2000, 2001, 2002], "length", [[1, 0, 3]]),
        ]
        ready = buffer.expect("ready").header
        assert (ready["free"], ready["leases_seen"]) == (4, 2)


def test_long_rollouts_are_streamed_in_chunks(config: Config, buffer: Router, learner: Publisher) -> None:
    publish(learner, V0)
    engine = PlayedEngine(chunk_tokens=2)
    with Running(config, engine):
        start(buffer)
        buffer.send(*leases((10, 1), max_tokens=5))
        steps(buffer, engine, 5)
        assert chunk(buffer.expect("chunks")) == [(10, 0, [1000, 1001], None, [[1, 0, 2]])]
        assert chunk(buffer.expect("chunks")) == [(10, 2, [1002, 1003], None, [[1, 0, 2]])]
        assert chunk(buffer.expect("chunks")) == [(10, 4, [1004], "length", [[1, 0, 1]])]


def test_a_resumed_rollout_goes_on_where_the_other_generator_left_it(
    config: Config, buffer: Router, learner: Publisher
) -> None:
    publish(learner, V0)
    engine = PlayedEngine()
    with Running(config, engine):
        start(buffer)
        buffer.send(*leases((10, 1), max_tokens=5, resume=3))
        steps(buffer, engine, 2)
        assert chunk(buffer.expect("chunks")) == [(10, 3, [1003, 1004], "length", [[1, 0, 2]])]


def test_weights_are_swapped_between_two_steps_and_every_token_says_which(
    config: Config, buffer: Router, learner: Publisher
) -> None:
    publish(learner, V0)
    engine = PlayedEngine()
    with Running(config, engine):
        start(buffer)
        buffer.send(*leases((10, 1), max_tokens=5))
        steps(buffer, engine, 2, done=True)
        digest = publish(learner, V1)
        ready = buffer.expect("ready").header
        assert (ready["version"], ready["hash"], ready["free"], ready["leases_seen"]) == (1, digest, 3, 1)
        steps(buffer, engine, 3)
        assert chunk(buffer.expect("chunks")) == [
            (10, 0, [1000, 1001, 1002, 1003, 1004], "length", [[1, 0, 2], [1, 1, 3]])
        ]
        assert engine.installed == {V0: 0.0, V1: 1.0}


def test_a_lost_lease_is_aborted_and_its_room_reported(config: Config, buffer: Router, learner: Publisher) -> None:
    publish(learner, V0)
    engine = PlayedEngine()
    with Running(config, engine):
        start(buffer)
        buffer.send(*leases((10, 1), (11, 2)))
        buffer.send({"t": "acks", "items": [], "lost": [10]})
        assert buffer.expect("ready").header["free"] == 3
        steps(buffer, engine, 3)
        assert chunk(buffer.expect("chunks")) == [(11, 0, [2000, 2001, 2002], "length", [[1, 0, 3]])]


def test_after_a_restart_of_the_buffer_leases_are_claimed_and_sent_from_where_it_stands(
    config: Config, learner: Publisher
) -> None:
    publish(learner, V0)
    engine = PlayedEngine(chunk_tokens=2)
    buffer = Router(config.endpoint("rollouts"))
    with Running(config, engine):
        start(buffer)
        buffer.send(*leases((10, 1), (11, 2), (12, 3), max_tokens=6))
        steps(buffer, engine, 4)
        assert [offset for _, offset, *_ in chunk(buffer.expect("chunks"))] == [0, 0, 0]
        assert [offset for _, offset, *_ in chunk(buffer.expect("chunks"))] == [2, 2, 2]
        buffer.send({"t": "acks", "items": [[10, 4], [11, 2], [12, 2]], "lost": []})
        buffer.close()
        buffer = Router(config.endpoint("rollouts"))
        buffer.welcome()
        assert buffer.expect("announce").header["items"] == [[10, 1, 4], [11, 2, 4], [12, 3, 4]]
        ready = buffer.expect("ready").header
        assert (ready["leases_seen"], ready["free"]) == (0, 1)
        # Sampled before the claim is answered: kept, for it may not be ours to send.
        steps(buffer, engine, 2)
        assert engine.used_up.wait(WAIT_MS / 1000)
        # It has all of 10, half of 11, and gave 12 to somebody else.
        buffer.send({"t": "acks", "items": [[10, 4], [11, 2]], "lost": [12]})
        sent = []
        while len(sent) < 3:
            message = buffer.receive()
            sent += chunk(message) if message.type == "chunks" else []
        assert sent == [
            (10, 4, [1004, 1005], "length", [[1, 0, 2]]),
            (11, 2, [2002, 2003], None, [[1, 0, 2]]),
            (11, 4, [2004, 2005], "length", [[1, 0, 2]]),
        ]
    buffer.close()


def test_pinned_leases_wait_for_their_version_while_training_goes_on(
    config: Config, buffer: Router, learner: Publisher
) -> None:
    publish(learner, V0, retain=True)
    publish(learner, V1)
    engine = PlayedEngine()
    with Running(config, engine):
        assert start(buffer).header["version"] == 1
        buffer.send(*leases((10, 1), (11, 2), pin=V0))
        buffer.send(*leases((12, 3), max_tokens=2, seq=3))
        steps(buffer, engine, 100)
        done: dict[int, tuple] = {}
        while len(done) < 3:
            message = buffer.receive()
            done |= {item[0]: item for item in chunk(message)} if message.type == "chunks" else {}
        assert done[10] == (10, 0, [1000, 1001, 1002], "length", [[1, 0, 3]])
        assert done[11] == (11, 0, [2000, 2001, 2002], "length", [[1, 0, 3]])
        assert done[12] == (12, 0, [3000, 3001], "length", [[1, 1, 2]])
        assert (engine.pinned, engine.version) == (V0, V1)


def test_the_installed_version_is_pinned_without_fetching_and_the_next_pin_waits_its_turn(
    config: Config, buffer: Router, learner: Publisher
) -> None:
    publish(learner, V0, retain=True)
    publish(learner, V1)
    engine = PlayedEngine()
    with Running(config, engine):
        start(buffer)
        buffer.send(*leases((10, 1), pin=V1))
        buffer.send(*leases((11, 2), pin=V0, seq=2))
        buffer.send({"t": "acks", "items": [], "lost": [99]})
        buffer.expect("ready")  # both leases are taken
        steps(buffer, engine, 3)
        assert chunk(buffer.expect("chunks")) == [(10, 0, [1000, 1001, 1002], "length", [[1, 1, 3]])]
        # One of two places is free; the other is for the lease that waits for its weights.
        assert buffer.expect("ready").header["eval_free"] == 1
        steps(buffer, engine, 3)  # it goes on when the weights are there
        assert chunk(buffer.expect("chunks")) == [(11, 0, [2000, 2001, 2002], "length", [[1, 0, 3]])]


def test_a_pin_that_the_learner_no_longer_has_is_said_and_left_to_expire(
    config: Config, buffer: Router, learner: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    publish(learner, V0)
    publish(learner, V1)
    engine = PlayedEngine()
    with Running(config, engine):
        start(buffer)
        buffer.send(*leases((10, 1), pin=V0))
        assert buffer.expect("ready").header["eval_free"] == 2
        buffer.send(*leases((11, 2), seq=2))
        steps(buffer, engine, 3)
        assert [item[0] for item in chunk(buffer.expect("chunks"))] == [11]
    assert "the learner has version 0@1 no more (its newest is 1@1)" in caplog.text


def test_a_run_that_is_stopping_ends_the_generator(config: Config, buffer: Router, learner: Publisher) -> None:
    publish(learner, V0)
    generator = Running(config, PlayedEngine())
    start(buffer)
    buffer.send({"t": "alive", "state": "stopping"})
    assert buffer.expect("bye")
    generator.join()
    assert generator.error is None


def test_stop_hands_back_the_tokens_and_the_leases(config: Config, buffer: Router, learner: Publisher) -> None:
    publish(learner, V0)
    engine = PlayedEngine()
    generator = Running(config, engine)
    start(buffer)
    buffer.send(*leases((10, 1), (11, 2), max_tokens=9))
    steps(buffer, engine, 2, done=True)
    publish(learner, V1)  # installed after both steps
    assert buffer.expect("ready").header["version"] == 1
    generator.inbox.stop()
    assert chunk(buffer.expect("chunks")) == [
        (10, 0, [1000, 1001], None, [[1, 0, 2]]),
        (11, 0, [2000, 2001], None, [[1, 0, 2]]),
    ]
    assert buffer.expect("release").header["leases"] == [10, 11]
    assert buffer.expect("bye")
    generator.join()
    assert generator.error is None


def test_leases_that_contradict_themselves_end_the_generator_with_the_reason(
    config: Config, buffer: Router, learner: Publisher
) -> None:
    publish(learner, V0)
    generator = Running(config, PlayedEngine())
    start(buffer)
    header, columns = leases((10, 1))
    buffer.send(header, {**columns, "resume_tokens": np.zeros(1, np.int32)})
    generator.join()
    assert isinstance(generator.error, WireError)
    assert "leases name 0 resume tokens, there are 1" in str(generator.error)


def test_without_a_learner_the_generator_fails_and_names_the_wait(config: Config, buffer: Router) -> None:
    from dataclasses import replace

    generator = Running(replace(config, buffer=BufferConfig(connect_deadline_s=0.3)), PlayedEngine())
    buffer.welcome()
    generator.join()
    assert isinstance(generator.error, DeadlineExceeded)
    assert "the first weights" in str(generator.error)
    assert f"weights {config.endpoint('weights')}: nobody answers" in str(generator.error)


PROCESS = """
import sys
from r1async.config import load_config
from r1async.generator.generator import main
main(load_config(None, sys.argv[1:]), 0)
"""


def test_sigterm_ends_a_real_generator_within_a_second(config: Config, run_root: Path) -> None:
    from r1async.models.export import export_model
    from r1async.models.loading import read_tensors

    from tests.tiny_models import tiny_model, tiny_tokenizer

    model = run_root / "model"
    export_model(tiny_model(), tiny_tokenizer(), model)
    keys = [
        "name=run",
        f"runs_dir={run_root}",
        f"model.path={model}",
        f"endpoints.rollouts={config.endpoint('rollouts')}",
        f"endpoints.weights={config.endpoint('weights')}",
        "data.task=chain-mod",
        "data.template=none",
        "data.max_prompt_tokens=16",
        "generator.slots=4",
        "sampling.max_tokens=900",
    ]
    process = subprocess.Popen([sys.executable, "-c", PROCESS, *keys], stderr=subprocess.PIPE, text=True)
    buffer = Router(config.endpoint("rollouts"))
    with Publisher(
        config.endpoint("weights"), run="run", dtype="float32", chunk_bytes=2**20, deadline_s=10.0
    ) as learner:
        learner.publish(V0, read_tensors(model))
        assert start(buffer).header["free"] == 4
        buffer.send(*leases((10, 1), max_tokens=900))
        count = buffer.expect("chunks").header["items"][0][2]
        os.kill(process.pid, signal.SIGTERM)
        started = time.monotonic()
        while (message := buffer.receive()).type == "chunks":
            assert message.header["items"][0][1] == count  # nothing left out, nothing twice
            count += message.header["items"][0][2]
        if message.type == "release":
            assert message.header["leases"] == [10]
        else:
            assert message.type == "ready"  # the signal came when the rollout had just ended
        buffer.expect("bye")
        assert time.monotonic() - started < 1.0
        _, said = process.communicate(timeout=WAIT_MS / 1000)
        assert process.returncode == 0, said
        assert (run_root / "run" / "metrics" / "generator-0.jsonl").stat().st_size > 0
    buffer.close()
