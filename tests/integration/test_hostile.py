"""Peers that mean harm, at a real buffer in a process of its own: what they cost, and whom."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import zmq
from r1async.client import greeting
from r1async.config import Config
from r1async.monitor.metrics import read_metrics
from r1async.wire import Message, pack

from tests.integration.test_server import (
    PROCESS,
    WAIT_S,
    B,
    Crew,
    G,
    config,
    finish_all,
    grade_all,
    publish,
    ready,
    receive,
)

__all__ = ["config"]

MAX_MESSAGE_BYTES = 2**20
GROWTH_BYTES = 48 * 2**20
"""What the buffer may grow by in a test that sends it several times as much."""
FLOOD_BYTES = 192 * 2**20


class Serving:
    """A buffer in a process of its own."""

    def __init__(self, keys: list[str], run_dir: Path) -> None:
        root = Path(__file__).parents[2]
        self._run_dir = run_dir
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROCESS, *keys], cwd=root, stderr=subprocess.PIPE, text=True
        )

    def resident(self) -> int:
        """Its memory, in bytes."""
        return psutil.Process(self._process.pid).memory_info().rss

    def stop(self) -> None:
        """Asks it to end, which it has to do in order."""
        if self._process.poll() is None:
            self._process.terminate()
        _, said = self._process.communicate(timeout=WAIT_S)
        assert self._process.returncode == 0, said
        assert json.loads((self._run_dir / "audit.json").read_text())["balanced"]

    def figures(self) -> dict:
        """The last it wrote, at its end: whatever it wrote before may be older than what a test did."""
        self.stop()
        return list(read_metrics(self._run_dir / "metrics" / "buffer.jsonl", "stats"))[-1]["buffer"]


@pytest.fixture
def serving(config: Config, run_root: Path) -> Iterator[Serving]:
    """The buffer of `config`, with a small cap on messages and on what waits for one peer."""
    keys = [
        "name=run", f"runs_dir={run_root}", "steps=3",
        *(f"endpoints.{name}=ipc://{run_root}/{name}" for name in ("rollouts", "batches", "events", "weights")),
        f"group.group_size={G}", f"learner.groups_per_step={B}", "sampling.max_tokens=4", "monitor.interval_s=0.05",
        "staleness.max_staleness=1", "data.task=chain-mod", f"model.path={run_root}", "data.template=none",
        f"buffer.max_message_bytes={MAX_MESSAGE_BYTES}", "buffer.outbox=64",
    ]  # fmt: skip
    started = Serving(keys, config.run_dir)
    yield started
    started.stop()


def train(crew: Crew, step: int, meanwhile: Callable[[Message], None]) -> None:
    """One step of an honest crew; `meanwhile` acts while its rollouts are on loan. All it sent arrives as sent."""
    crew.learner.send({"t": "next_batch", "epoch": 1, "step": step, "part": 0, "rank": 0, "world": 1})
    ready(crew.generator, G * B, step * G * B, step, 1, f"h{step}")
    leases = crew.generator.expect("leases")
    assert len(leases.header["items"]) == G * B
    meanwhile(leases)
    finish_all(crew.generator, leases, step)
    grade_all(crew.scorer, G * B, step * G * B)
    batch = crew.learner.expect("batch")
    tokens = batch.columns["token_ids"].reshape(G * B, 5)
    assert tokens[:, 1:].tolist() == [[7, 4, 5, 2]] * (G * B)
    assert batch.columns["rollouts"].tolist() == [item[1] for item in leases.header["items"]]
    assert set(batch.columns["behavior_logprobs"].tolist()) <= {0.0, -0.5}
    crew.learner.send({"t": "stepped", "epoch": 1, "step": step, "metrics": {}})
    crew.learner.expect("ok")
    publish(crew.learner, step + 1)


class Peer:
    """A DEALER that says what the test wants."""

    def __init__(self, config: Config, role: str | None = None, *, hwm: int = 1000) -> None:
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.rcvhwm = hwm
        self.socket.sndtimeo = round(WAIT_S * 1000)
        self.socket.connect(config.endpoint("rollouts"))
        if role is not None:
            self.socket.send(pack(greeting(role, f"hostile {role}", "run")))

    def ask(self, header: dict, columns: dict | None = None) -> Message:
        self.socket.send(pack(header, columns))
        return receive(self.socket)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self._context.term()


class RawPeer:
    """A stream of bytes that ZeroMQ takes for a DEALER until it says something else."""

    def __init__(self, config: Config) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(WAIT_S)
        self._socket.connect(config.endpoint("rollouts").removeprefix("ipc://"))
        self._socket.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48))
        properties = b"\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
        command = b"\x05READY" + properties
        self._socket.sendall(bytes([4, len(command)]) + command)
        answer = b""
        while not (b"READY" in answer and answer.endswith(b"Identity" + bytes(4))):
            part = self._socket.recv(4096)
            assert part, f"refused at the handshake, after {answer!r}"
            answer += part

    def frame(self, body: bytes, *, more: bool = False, claimed: int | None = None) -> None:
        """A frame; `claimed`: the length that it names, whatever follows."""
        length = len(body) if claimed is None else claimed
        self._socket.sendall(bytes([2 | more]) + struct.pack(">Q", length) + body)

    def read(self) -> bytes:
        """The next bytes that come."""
        return self._socket.recv(4096)

    def close(self) -> None:
        self._socket.close()

    def is_cut(self) -> bool:
        """Reads until the other side closes the connection."""
        try:
            while self._socket.recv(4096):
                pass
        except ConnectionResetError:
            pass
        except TimeoutError:
            return False
        return True

    def __enter__(self) -> RawPeer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def test_a_flood_that_is_never_read_back_stays_under_the_cap(config: Config, serving: Serving) -> None:
    stats = {f"figure {number:03} {'x' * 200}": float(number) for number in range(200)}
    heartbeat = pack({"t": "heartbeat", "stats": stats})

    def flood(_: Message) -> None:
        before = serving.resident()
        with Peer(config, "scorer", hwm=1) as hostile:
            for _sent in range(FLOOD_BYTES // len(heartbeat)):
                hostile.socket.send(heartbeat)
            assert serving.resident() - before < GROWTH_BYTES

    with Crew(config) as crew:
        crew.start()
        train(crew, 0, lambda _: None)
        train(crew, 1, flood)
    assert serving.figures()["peers_lost"] >= 1


def test_half_messages_and_giant_lengths_cost_their_sender_only(config: Config, serving: Serving) -> None:
    def harm(_: Message) -> None:
        before = serving.resident()
        halves = [RawPeer(config) for _ in range(20)]
        for half in halves:  # a first part, and a claim that is never kept
            half.frame(b"part", more=True)
            half.frame(b"", claimed=MAX_MESSAGE_BYTES)
        with RawPeer(config) as giant:
            giant.frame(b"", claimed=2**62)
            assert giant.is_cut()
        with RawPeer(config) as over:
            over.frame(b"", claimed=MAX_MESSAGE_BYTES + 1)
            assert over.is_cut()
        with Peer(config) as parts:
            parts.socket.send_multipart([b"part"] * 1000)
            assert receive(parts.socket).header["code"] == "malformed"
        assert serving.resident() - before < GROWTH_BYTES
        for half in halves:
            half.close()
        with RawPeer(config) as whole:  # what these peers say is read, until it breaks the rules
            whole.frame(b"not a message of ours")
            assert b"malformed" in whole.read()

    with Crew(config) as crew:
        crew.start()
        train(crew, 0, harm)
        train(crew, 1, lambda _: None)
    assert serving.figures()["errors"]["malformed"] >= 1


def test_a_thief_of_leases_and_a_replayed_message_change_nothing(config: Config, serving: Serving) -> None:
    seen: dict[str, int] = {}

    def steal(leases: Message) -> None:
        ids = [item[0] for item in leases.header["items"]]
        items = [[lease, 0, 2, "stop", [[1, 0, 2]]] for lease in ids]
        stolen = {"tokens": np.full(2 * len(ids), 9, np.int32), "logprobs": np.zeros(2 * len(ids), np.float32)}
        with Peer(config, "generator") as thief, Peer(config, "scorer") as forger:
            assert receive(thief.socket).type == receive(forger.socket).type == "welcome"
            assert thief.ask({"t": "chunks", "items": items}, stolen).header["lost"] == ids
            claims = [[item[0], item[1], 0] for item in leases.header["items"]]
            assert thief.ask({"t": "announce", "items": claims}).header["lost"] == ids
            assert thief.ask({"t": "release", "leases": ids}).type == "alive"
            verdicts = [[lease, 1.0, {}, "ok"] for lease in ids]
            assert forger.ask({"t": "verdicts", "items": verdicts}).header["lost"] == ids
            seen["lease"] = ids[0]

    def replay(_: Message) -> None:
        old = [[seen["lease"], 0, 3, "stop", [[1, 0, 3]]]]
        columns = {"tokens": np.array([4, 5, 2], np.int32), "logprobs": np.full(3, -0.5, np.float32)}
        with Peer(config, "generator") as stranger:
            assert receive(stranger.socket).type == "welcome"
            assert stranger.ask({"t": "chunks", "items": old}, columns).header["lost"] == [seen["lease"]]
        crew.generator.send({"t": "chunks", "items": old}, columns)
        assert crew.generator.expect("acks").header["lost"] == [seen["lease"]]
        crew.learner.send({"t": "stepped", "epoch": 1, "step": 0, "metrics": {}})
        assert crew.learner.expect("ok").header["step"] == 0

    with Crew(config) as crew:
        crew.start()
        train(crew, 0, steal)
        train(crew, 1, replay)
    figures = serving.figures()
    assert figures["late_chunks"] >= G * B + 2
    assert figures["late_verdicts"] >= G * B
    assert figures["tokens"] == 2 * G * B * 3
    assert figures["steps"] == 2
