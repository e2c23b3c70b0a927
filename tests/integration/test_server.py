"""The buffer's sockets around the real Rust core."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zmq
from r1async import _core
from r1async._core import Receiver, journal_audit
from r1async.buffer.server import Server
from r1async.client import Connected, Connection, Refused, greeting
from r1async.config import (
    BufferConfig,
    Config,
    ConfigError,
    EndpointsConfig,
    GroupConfig,
    JournalConfig,
    LearnerConfig,
    MonitorConfig,
    SamplingConfig,
    StalenessConfig,
)
from r1async.inbox import Inbox
from r1async.monitor.metrics import read_metrics
from r1async.tasks import PromptError
from r1async.types import Prompt
from r1async.wire import Message, pack, unpack

WAIT_S = 60.0
G, B = 2, 2


class Source:
    """Prompt n is the tokens [n + 1, 7]; `total` of them, of which `bad` cannot be asked."""

    def __init__(self, total: int | None = None, bad: frozenset[int] = frozenset()) -> None:
        self.total = total
        self.fingerprint = "numbers"
        self.asked: list[int] = []
        self._bad = bad

    def prompt(self, ordinal: int) -> Prompt:
        self.asked.append(ordinal)
        if self.total is not None and ordinal >= self.total:
            raise IndexError(ordinal)
        if ordinal in self._bad:
            raise PromptError(f"row {ordinal} is too long")
        tokens = np.array([ordinal + 1, 7], np.int32)
        return Prompt(ordinal=ordinal, text=f"prompt {ordinal}", answer=str(ordinal), token_ids=tokens)

    def held_out(self, count: int) -> list[Prompt]:
        raise NotImplementedError("a buffer never asks for held-out prompts")


@pytest.fixture
def config(run_root: Path) -> Config:
    sockets = {name: f"ipc://{run_root}/{name}" for name in ("rollouts", "batches", "events", "weights")}
    return Config(
        name="run",
        runs_dir=str(run_root),
        steps=3,
        endpoints=EndpointsConfig(**sockets),
        group=GroupConfig(group_size=G),
        learner=LearnerConfig(groups_per_step=B),
        sampling=SamplingConfig(max_tokens=4),
        staleness=StalenessConfig(max_staleness=1),
        monitor=MonitorConfig(interval_s=0.05),
    )


class Serving:
    """A server in a thread."""

    def __init__(self, config: Config, source: Source | None = None) -> None:
        self.config = config
        self.source = source or Source()
        self.error: BaseException | None = None
        self._server = Server(config, self.source)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._server.run()
        except Exception as error:  # noqa: BLE001
            self.error = error  # every one of them is the test's to look at

    def stop(self) -> None:
        started = time.monotonic()
        self._server.stop()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error
        assert time.monotonic() - started < 1.0

    def messages(self) -> int:
        """Messages that have reached the core."""
        return self._server._buffer.stats()["messages"]

    def __enter__(self) -> Serving:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self.stop()
        elif self.error is not None:
            raise self.error


class Role:
    """A connected client with an inbox of its own."""

    def __init__(self, config: Config, role: str, name: str, **more: int) -> None:
        self.inbox = Inbox()
        endpoint = config.endpoint("batches" if role == "learner" else "rollouts")
        self.connection = Connection(endpoint, greeting(role, name, config.name, **more), self.inbox)

    def welcomed(self) -> Message:
        return self.connection.wait_connected(WAIT_S)

    def expect_connected(self) -> None:
        """The next session."""
        self.inbox.get("a session", WAIT_S, lambda item: isinstance(item, Connected))

    def send(self, header: dict, columns: dict | None = None) -> None:
        self.connection.send(header, columns)

    def expect(self, kind: str) -> Message:
        """The next message of this type; others stay."""
        item = self.inbox.get(kind, WAIT_S, lambda item: isinstance(item, Message) and item.type == kind)
        assert isinstance(item, Message)
        return item

    def __enter__(self) -> Role:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()


def generator(config: Config, name: str = "generator-0") -> Role:
    return Role(config, "generator", name)


def learner(config: Config, epoch: int = 1, step: int = 0) -> Role:
    return Role(config, "learner", "learner-0", rank=0, world=1, epoch=epoch, step=step)


def ready(role: Role, free: int, seen: int, version: int = 0, epoch: int = 1, digest: str = "h0") -> None:
    header = {"free": free, "eval_free": 0, "capacity": 8, "leases_seen": seen}
    role.send({"t": "ready", **header, "epoch": epoch, "version": version, "hash": digest})


def publish(role: Role, version: int, epoch: int = 1) -> None:
    role.send({"t": "published", "epoch": epoch, "version": version, "hash": f"h{version}"})
    role.expect("ok")


def finish_all(role: Role, leases: Message, version: int = 0, epoch: int = 1) -> None:
    """Three tokens for every lease of a message, the last a stop token."""
    items = [[item[0], 0, 3, "stop", [[epoch, version, 3]]] for item in leases.header["items"]]
    tokens = np.tile(np.array([4, 5, 2], np.int32), len(items))
    role.send({"t": "chunks", "items": items}, {"tokens": tokens, "logprobs": np.full(len(tokens), -0.5, np.float32)})
    assert sorted(role.expect("acks").header["items"]) == sorted([item[0], 3] for item in items)


def grade_all(role: Role, count: int, seen: int) -> int:
    """Verdicts for the next `count` rollouts, 1 and 0 in turn; leases seen by then."""
    graded = 0
    while graded < count:
        items = role.expect("score").header["items"]
        verdicts = [[item[0], float((graded + i) % 2), {"accuracy": 1.0}, "ok"] for i, item in enumerate(items)]
        graded += len(items)
        role.send({"t": "verdicts", "items": verdicts})
        role.expect("acks")
        role.send({"t": "ready", "free": 8, "leases_seen": seen + graded})
    return seen + graded


class Crew:
    """One generator, scorer and learner, played by the test."""

    def __init__(self, config: Config, epoch: int = 1, step: int = 0) -> None:
        self.epoch = epoch
        self.learner = learner(config, epoch, step)
        self.generator = generator(config)
        self.scorer = Role(config, "scorer", "scorer-0")
        self._leases_seen = self._scored = 0

    def start(self, version: int = 0) -> None:
        self.learner.welcomed()
        publish(self.learner, version, self.epoch)
        self.generator.welcomed()
        self.scorer.welcomed()
        self.scorer.send({"t": "ready", "free": 8, "leases_seen": 0})

    def train(self, step: int) -> Message:
        """One step: sample, grade, train, publish; the batch it trained."""
        self.learner.send({"t": "next_batch", "epoch": self.epoch, "step": step, "part": 0, "rank": 0, "world": 1})
        ready(self.generator, G * B, self._leases_seen, step, self.epoch, f"h{step}")
        done = 0
        while done < G * B:
            leases = self.generator.expect("leases")
            count = len(leases.header["items"])
            self._leases_seen, done = self._leases_seen + count, done + count
            finish_all(self.generator, leases, step, self.epoch)
            self._scored = grade_all(self.scorer, count, self._scored)
        batch = self.learner.expect("batch")
        self.learner.send({"t": "stepped", "epoch": self.epoch, "step": step, "metrics": {"loss": 0.5}})
        self.learner.expect("ok")
        publish(self.learner, step + 1, self.epoch)
        return batch

    def commit(self, steps: int) -> None:
        self.learner.send({"t": "committed", "epoch": self.epoch, "step": steps})
        assert self.learner.expect("committed_ok").header["step"] == steps

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        for role in (self.generator, self.scorer, self.learner):
            role.connection.close()


def audit(config: Config) -> dict:
    return json.loads((config.run_dir / "audit.json").read_text())


def test_roles_may_come_before_the_buffer_and_before_the_learner(config: Config) -> None:
    with generator(config) as first, Serving(config) as serving, learner(config) as last:
        welcome = first.welcomed().header
        assert (welcome["protocol"], welcome["group_size"], welcome["seed"]) == (1, G, 0)
        assert last.welcomed().header["steps"] == config.steps
        publish(last, 0)
        ready(first, 4, 0)
        leases = first.expect("leases")
        assert leases.header["seq"] == 4
        # Both members of a group together, under one prompt.
        assert [item[1:4] for item in leases.header["items"]] == [[0, 0, 0], [1, 0, 0], [2, 1, 1], [3, 1, 1]]
        assert leases.columns["prompt_tokens"].tolist() == [1, 7, 2, 7]
        assert serving.source.asked[:2] == [0, 1]


def test_a_run_of_three_steps_balances_and_leaves_its_files(config: Config) -> None:
    with Serving(config), Crew(config) as crew:
        crew.start()
        batches = [crew.train(step) for step in range(3)]
        crew.commit(3)
    assert [batch.header["step"] for batch in batches] == [0, 1, 2]
    assert batches[0].columns["rollouts"].tolist() == [0, 1, 2, 3]
    assert batches[0].columns["token_ids"].tolist() == [
        token for prompt in (1, 1, 2, 2) for token in (prompt, 7, 4, 5, 2)
    ]
    said = audit(config)
    assert said["balanced"]
    assert said["tokens"]["trained"] == 3 * G * B * 3
    account = journal_audit(config.run_dir / "journal")
    assert account["balanced"], account["differences"]
    assert (account["tokens"]["in"], account["tokens"]["trained"]) == (said["tokens"]["in"], said["tokens"]["trained"])
    lines = list(read_metrics(config.run_dir / "metrics" / "buffer.jsonl", "stats"))
    assert {"buffer", "peers", "waits"} <= lines[-1].keys()


def test_where_libzmq_is_hidden_messages_are_received_in_python(
    config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def hidden(module: str, socket: int) -> Receiver:
        assert module.endswith(".so")
        return Receiver(_core.__file__, socket)  # an extension that is not linked with libzmq

    monkeypatch.setattr("r1async.sockets.Receiver", hidden)
    serving = Serving(replace(config, steps=1))
    assert "messages are received in Python" in caplog.text
    assert "dlsym failed" in caplog.text
    with serving, Crew(config) as crew:
        crew.start()
        assert len(crew.train(0).columns["rollouts"]) == G * B
        hostile = crew.generator
        hostile.connection._send([b"not a message"], None, "rubbish")
        assert hostile.expect("error").header["code"] == "malformed"


def test_prompts_that_cannot_be_asked_are_left_out_and_the_end_is_the_end(config: Config) -> None:
    source = Source(total=5, bad=frozenset({1, 2}))
    with Serving(config, source), Crew(config) as crew:
        crew.start()
        batch = crew.train(0)
        assert sorted(set(batch.columns["token_ids"][::5].tolist())) == [1, 4]
        crew.commit(1)
    assert source.asked == [0, 1, 2, 3, 4, 5]


def test_the_whole_run_goes_on_with_all_that_the_journal_has(config: Config) -> None:
    with Serving(config), Crew(config) as crew:
        crew.start()
        crew.train(0)
        crew.commit(1)
        before = crew.train(1)  # stepped, never committed
    with Serving(config) as serving, Crew(config, epoch=2, step=1) as crew:
        crew.start(version=1)
        crew.learner.send({"t": "next_batch", "epoch": 2, "step": 1, "part": 0, "rank": 0, "world": 1})
        again = crew.learner.expect("batch")
        crew.learner.send({"t": "stepped", "epoch": 2, "step": 1, "metrics": {"loss": 0.5}})
        publish(crew.learner, 2, 2)
        crew.train(2)
        crew.commit(3)
        # Nothing is asked for again: the prompts are in the journal, and the batch is the one that was lost.
        assert serving.source.asked == []
        for name in ("rollouts", "token_ids", "behavior_logprobs", "advantages"):
            np.testing.assert_array_equal(again.columns[name], before.columns[name])
    assert audit(config)["balanced"]
    account = journal_audit(config.run_dir / "journal")
    assert (account["balanced"], account["trained_twice"], account["lives"]) == (True, 0, 2)


def test_a_buffer_that_was_killed_alone_is_taken_up_by_the_same_learner(config: Config) -> None:
    with Crew(config) as crew:
        with Serving(config):
            crew.start()
            crew.train(0)
            crew.learner.send({"t": "next_batch", "epoch": 1, "step": 1, "part": 0, "rank": 0, "world": 1})
            ready(crew.generator, G * B, 4, 1, 1, "h1")
            leases = crew.generator.expect("leases")
        with Serving(config):
            for role in (crew.learner, crew.generator, crew.scorer):
                role.expect_connected()
            # What a generator holds goes on under the lease it had.
            items = [[item[0], item[1], 0] for item in leases.header["items"]]
            crew.generator.send({"t": "announce", "items": items})
            acks = crew.generator.expect("acks").header
            assert (sorted(acks["items"]), acks["lost"]) == (sorted([item[0], 0] for item in items), [])
            finish_all(crew.generator, leases, 1)
            crew.scorer.send({"t": "ready", "free": 8, "leases_seen": 0})
            grade_all(crew.scorer, len(items), 0)
            crew.learner.send({"t": "next_batch", "epoch": 1, "step": 1, "part": 0, "rank": 0, "world": 1})
            assert crew.learner.expect("batch").header["step"] == 1
    assert journal_audit(config.run_dir / "journal")["balanced"]


def test_a_learner_ahead_of_the_journal_is_refused(config: Config) -> None:
    with (
        Serving(config),
        learner(config, epoch=2, step=40) as late,
        pytest.raises(Refused, match="the learner's checkpoint holds 40 steps, but only 0 were handed out"),
    ):
        late.welcomed()


@pytest.mark.parametrize(
    ("resume", "journal", "message"),
    [
        ("false", JournalConfig(), "resume: false, but .*/journal holds a journal"),
        ("auto", JournalConfig(durability="memory"), "journal.durability: memory, but .*/journal holds a journal"),
    ],
)
def test_a_journal_that_is_not_wanted_is_not_overwritten(
    config: Config, resume: str, journal: JournalConfig, message: str
) -> None:
    with Serving(config):
        pass
    other = replace(config, resume=resume, journal=journal)
    with pytest.raises(ConfigError, match=message):
        Server(other, Source())


def test_other_data_than_the_run_began_with_is_refused(config: Config) -> None:
    with Serving(config):
        pass
    source = Source()
    source.fingerprint = "letters"
    with pytest.raises(ConfigError, match='fingerprint was "numbers" when this run began, is "letters" now'):
        Server(config, source)


def test_a_learner_of_an_ended_epoch_is_told_the_newest(config: Config) -> None:
    with Serving(config), learner(config, epoch=3) as first:
        first.welcomed()
        with learner(config, epoch=3) as second, pytest.raises(Refused) as caught:
            second.welcomed()
    assert (caught.value.code, caught.value.seen) == ("epoch", 3)


@pytest.mark.parametrize(
    ("more", "code", "text"),
    [({"run": "other"}, "run", "other"), ({"protocol": 99}, "protocol", "99"), ({"role": "oracle"}, "", "oracle")],
)
def test_a_hello_that_cannot_be_right_is_refused(config: Config, more: dict, code: str, text: str) -> None:
    with Serving(config):
        context, socket = dealer(config.endpoint("rollouts"))
        socket.send(pack({**greeting("generator", "g", "run"), **more}))
        answer = receive(socket).header
        assert answer["t"] == "error"
        assert code in answer["code"]
        assert text in answer["message"]
        socket.close(linger=0)
        context.term()


def dealer(endpoint: str) -> tuple[zmq.Context, zmq.Socket]:
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.connect(endpoint)
    return context, socket


def receive(socket: zmq.Socket) -> Message:
    assert socket.poll(round(WAIT_S * 1000)), "no answer"
    return unpack(socket.recv())


def test_clients_of_a_restarted_buffer_say_hello_and_what_they_hold(config: Config) -> None:
    with generator(config) as role, learner(config) as rank:
        with Serving(config):
            role.welcomed()
            rank.welcomed()
            publish(rank, 0)
            ready(role, 2, 0)
            role.expect("leases")
        with Serving(config):
            again = role.inbox.get("the buffer", WAIT_S)
            assert isinstance(again, Connected)
            role.send({"t": "announce", "items": [[0, 0, 0]]})
            # The new buffer never lent it: without a journal it cannot know.
            assert role.expect("acks").header["lost"] == [0]


GARBAGE = [
    b"",
    b"R1A1",
    b"not a message at all",
    b"R1A1\xff\xff\xff\xff" + bytes(64),
    pack({"t": "no such type"}),
    pack({"t": "hello"}),
    pack({"t": "ready", "free": -1}),
    pack({"t": "chunks", "items": [[1, 0, 2**40, None, []]]}, {"tokens": np.zeros(1, np.int32)}),
    pack({"t": "batch", "x": [[[[[]]]]]}),
]


@pytest.mark.parametrize("name", ["rollouts", "batches"])
def test_hostile_bytes_cost_their_sender_an_error_and_nobody_else_anything(config: Config, name: str) -> None:
    endpoint = config.endpoints.rollouts if name == "rollouts" else config.endpoints.batches
    with Serving(config), Crew(config) as crew:
        context, hostile = dealer(endpoint)
        crew.start()
        for frame in GARBAGE:
            hostile.send(frame)
            assert receive(hostile).type == "error"
        hostile.send_multipart([b"", GARBAGE[4], b""])
        assert receive(hostile).type == "error"
        crew.train(0)
        crew.commit(1)
        hostile.close(linger=0)
        context.term()
    assert audit(config)["balanced"]


def test_a_message_over_the_cap_cuts_its_sender_only(config: Config) -> None:
    config = replace(config, buffer=BufferConfig(max_message_bytes=2**16))
    with Serving(config), Crew(config) as crew:
        context, hostile = dealer(config.endpoint("rollouts"))
        monitor = hostile.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        crew.start()
        hostile.send(bytes(2**17))
        assert monitor.poll(round(WAIT_S * 1000))
        crew.train(0)
        hostile.disable_monitor()
        monitor.close(linger=0)
        hostile.close(linger=0)
        context.term()


def test_a_peer_that_floods_and_never_reads_is_given_up_and_the_run_goes_on(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("r1async.buffer.server.SEND_HWM", 10)
    config = replace(config, buffer=BufferConfig(outbox=20))
    with Serving(config), Crew(config) as crew:
        context = zmq.Context()
        flood = context.socket(zmq.DEALER)
        flood.rcvhwm = 1
        flood.sndtimeo = round(WAIT_S * 1000)
        flood.connect(config.endpoint("rollouts"))
        flood.send(pack(greeting("scorer", "flood", "run")))
        crew.start()
        heartbeat = pack({"t": "heartbeat", "stats": {f"figure {i}": float(i) for i in range(50)}})
        for _ in range(20_000):
            flood.send(heartbeat)
        crew.train(0)
        crew.commit(1)
        stats = list(read_metrics(config.run_dir / "metrics" / "buffer.jsonl", "stats"))
        flood.close(linger=0)
        context.term()
    assert stats[-1]["buffer"]["peers_lost"] >= 1
    assert audit(config)["balanced"]


def test_an_address_in_use_is_named(config: Config, run_root: Path) -> None:
    context = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    endpoint = f"tcp://127.0.0.1:{port}"
    config = replace(config, endpoints=replace(config.endpoints, batches=endpoint))
    with pytest.raises(ConfigError, match=rf"endpoints\.batches: cannot bind {endpoint}: Address already in use"):
        Server(config, Source())
    socket.close(linger=0)
    context.term()


def test_events_carry_stats_for_whoever_listens(config: Config) -> None:
    context = zmq.Context()
    events = context.socket(zmq.SUB)
    events.subscribe(b"")
    events.connect(config.endpoint("events"))
    with Serving(config), generator(config) as role:
        role.welcomed()
        while (message := receive(events)).type != "stats" or not message.header["peers"]:
            pass
        assert [peer["name"] for peer in message.header["peers"]] == ["generator-0"]
        assert "no learner is connected" in [wait["text"] for wait in message.header["waits"]]
    events.close(linger=0)
    context.term()


PROCESS = """
import sys
from r1async.buffer.server import serve
from r1async.config import load_config
from tests.integration.test_server import Source
serve(load_config(None, sys.argv[1:]), Source())
"""


@pytest.fixture
def process(config: Config, run_root: Path) -> Iterator[subprocess.Popen[str]]:
    keys = [
        "name=run",
        f"runs_dir={run_root}",
        "steps=3",
        *(f"endpoints.{name}=ipc://{run_root}/{name}" for name in ("rollouts", "batches", "events", "weights")),
        f"group.group_size={G}",
        f"learner.groups_per_step={B}",
        "sampling.max_tokens=4",
        "staleness.max_staleness=1",
        "data.task=chain-mod",
        f"model.path={run_root}",
        "data.template=none",
    ]
    root = Path(__file__).parents[2]
    started = subprocess.Popen([sys.executable, "-c", PROCESS, *keys], cwd=root, stderr=subprocess.PIPE, text=True)
    yield started
    if started.poll() is None:
        started.kill()
        started.communicate()


def test_sigterm_ends_a_real_buffer_within_a_second_with_its_audit(
    config: Config, process: subprocess.Popen[str]
) -> None:
    with Crew(config) as crew:
        crew.start()
        crew.train(0)
        os.kill(process.pid, signal.SIGTERM)
        started = time.monotonic()
        _, said = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, said
    assert time.monotonic() - started < 2.0  # 1 s, and the interpreter's own end
    assert audit(config)["balanced"]


def test_a_killed_generators_leases_go_to_another(config: Config) -> None:
    config = replace(config, buffer=BufferConfig(peer_deadline_s=0.3))
    with Serving(config), learner(config) as rank, generator(config, "generator-1") as heir:
        rank.welcomed()
        publish(rank, 0)
        context, victim = dealer(config.endpoint("rollouts"))
        victim.send(pack(greeting("generator", "generator-0", "run")))
        assert receive(victim).type == "welcome"
        room = {"free": 4, "eval_free": 0, "capacity": 8, "leases_seen": 0}
        victim.send(pack({"t": "ready", **room, "epoch": 1, "version": 0, "hash": "h0"}))
        while (message := receive(victim)).type != "leases":
            pass
        taken = [item[1] for item in message.header["items"]]
        victim.close(linger=0)  # says no bye, as a killed process
        context.term()
        heir.welcomed()
        ready(heir, 8, 0)
        got: list[int] = []
        while not set(taken) <= set(got):
            got += [item[1] for item in heir.expect("leases").header["items"]]
        assert sorted(taken) == [0, 1, 2, 3]
