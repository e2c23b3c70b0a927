"""Weight versions from a learner to receivers over real sockets."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import zmq
from r1async.inbox import DeadlineExceeded, Inbox
from r1async.types import PolicyVersion
from r1async.weights.manifest import Manifest, take_snapshot
from r1async.weights.package import Package, encode
from r1async.weights.publisher import Publisher
from r1async.weights.receiver import Receiver, WeightsMissing, WeightsReady
from r1async.weights.zmq_receiver import PublisherError
from r1async.wire import Message, pack, unpack

WAIT_S = 60.0
CHUNK = 1024
COST = {"bytes": 0, "sync_s": 0.0, "pause_s": 0.0}


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/weights"


@pytest.fixture(autouse=True)
def no_threads_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    # pyzmq starts one collector of sent buffers for the whole process.
    left = {thread for thread in threading.enumerate() if "GarbageCollector" not in type(thread).__name__}
    assert left <= before


def weights(value: float) -> dict[str, torch.Tensor]:
    return {"a.weight": torch.full((30, 40), value), "b.bias": torch.arange(7) + value, "steps": torch.tensor(3)}


def publisher(endpoint: str) -> Publisher:
    return Publisher(endpoint, run="run", dtype="float32", chunk_bytes=CHUNK, deadline_s=WAIT_S)


def receiver(endpoint: str, inbox: Inbox, name: str = "generator-0", deadline_s: float = WAIT_S) -> Receiver:
    return Receiver(endpoint, inbox, run="run", name=name, deadline_s=deadline_s)


def ready(inbox: Inbox) -> WeightsReady:
    item = inbox.get("weights", WAIT_S)
    assert isinstance(item, WeightsReady)
    return item


def test_receiver_started_first_gets_every_version_it_is_quick_enough_for(endpoint: str) -> None:
    inbox = Inbox()
    with receiver(endpoint, inbox) as there, publisher(endpoint) as learner:
        for number in range(3):
            version = PolicyVersion(1, number)
            digest = learner.publish(version, weights(number))
            got = ready(inbox)
            assert (got.version, got.hash, got.pinned) == (version, digest, False)
            assert torch.equal(got.tensors["a.weight"], torch.full((30, 40), float(number)))
            assert torch.equal(got.tensors["steps"], torch.tensor(3))
            there.installed(got)


def test_late_joiner_gets_the_newest_only(endpoint: str) -> None:
    inbox = Inbox()
    with publisher(endpoint) as learner:
        for number in range(4):
            learner.publish(PolicyVersion(1, number), weights(number))
        assert learner.versions() == [PolicyVersion(1, 3)]
        with receiver(endpoint, inbox):
            assert ready(inbox).version == PolicyVersion(1, 3)
            with pytest.raises(DeadlineExceeded, match=r"newer weights; weights ipc://.*: connected"):
                inbox.get("newer weights", 0.1)


def test_the_learner_may_change_its_tensors_as_soon_as_publish_returns(endpoint: str) -> None:
    inbox = Inbox()
    tensors = weights(1.0)
    with publisher(endpoint) as learner:
        learner.publish(PolicyVersion(1, 0), tensors)
        tensors["a.weight"].zero_()
        with receiver(endpoint, inbox):
            assert torch.equal(ready(inbox).tensors["a.weight"], torch.ones(30, 40))


def test_acknowledged_names_version_and_hash(endpoint: str) -> None:
    inboxes = [Inbox(), Inbox()]
    with (
        publisher(endpoint) as learner,
        receiver(endpoint, inboxes[0], "generator-0") as first,
        receiver(endpoint, inboxes[1], "generator-1") as second,
    ):
        digest = learner.publish(PolicyVersion(1, 0), weights(0))
        first.installed(ready(inboxes[0]))
        second.installed(ready(inboxes[1]))
        learner.publish(PolicyVersion(1, 1), weights(1))
        # The newer version was asked for after the acknowledgement, on the same connection.
        for inbox in inboxes:
            assert ready(inbox).version == PolicyVersion(1, 1)
        assert learner.acknowledged() == {
            name: (PolicyVersion(1, 0), digest) for name in ("generator-0", "generator-1")
        }


def test_pinned_version_is_kept_fetched_and_released(endpoint: str) -> None:
    inbox = Inbox()
    pin = PolicyVersion(1, 0)
    with publisher(endpoint) as learner, receiver(endpoint, inbox) as there:
        digest = learner.publish(pin, weights(0), retain=True)
        there.installed(ready(inbox))
        learner.publish(PolicyVersion(1, 1), weights(1))
        there.installed(ready(inbox))
        there.fetch(pin)
        got = ready(inbox)
        assert (got.version, got.hash, got.pinned) == (pin, digest, True)
        assert torch.equal(got.tensors["a.weight"], torch.zeros(30, 40))
        there.installed(got)
        there.release(pin)
        there.fetch(pin)
        assert inbox.get("the pin", WAIT_S) == WeightsMissing(pin, PolicyVersion(1, 1))
        assert learner.versions() == [PolicyVersion(1, 1)]


def test_versions_that_no_evaluation_releases_are_bounded(endpoint: str, caplog: pytest.LogCaptureFixture) -> None:
    def numbers() -> list[int]:
        return [version.number for version in learner.versions()]

    inbox = Inbox()
    with publisher(endpoint) as learner:
        for number in range(0, 8, 2):
            learner.publish(PolicyVersion(1, number), weights(number), retain=True)
        assert numbers() == [0, 2, 4, 6]
        with receiver(endpoint, inbox) as there:
            there.installed(ready(inbox))
            there.fetch(PolicyVersion(1, 2))
            got = ready(inbox)
            there.installed(got)  # read, not released: the evaluation goes on
            for number in range(8, 20, 2):
                learner.publish(PolicyVersion(1, number), weights(number), retain=True)
                there.installed(ready(inbox))
            assert {0, 2, 14, 16, 18} <= set(numbers())
            there.fetch(PolicyVersion(1, 4))
            assert inbox.get("the pin", WAIT_S) == WeightsMissing(PolicyVersion(1, 4), PolicyVersion(1, 18))
            there.release(PolicyVersion(1, 2))
            there.fetch(PolicyVersion(1, 2))
            assert inbox.get("the pin", WAIT_S) == WeightsMissing(PolicyVersion(1, 2), PolicyVersion(1, 18))
            assert {0, 14, 16, 18} <= set(numbers())
            assert 2 not in numbers()
    dropped = [record.getMessage() for record in caplog.records if "dropped" in record.getMessage()]
    assert sum("version 4@1 is dropped" in text for text in dropped) == 1
    assert not any("version 2@1" in text or "version 0@1" in text for text in dropped)


def test_only_a_reader_of_the_run_acknowledges_and_releases_what_it_asked_for(endpoint: str) -> None:
    context = zmq.Context()
    peer = context.socket(zmq.DEALER)
    peer.linger = 0
    peer.connect(endpoint)

    def answer(header: dict) -> tuple[str, str]:
        peer.send(pack(header))
        assert peer.poll(round(WAIT_S * 1000))
        said = unpack(peer.recv()).header
        return said["t"], said.get("about", "")

    pin = PolicyVersion(1, 0)
    release = {"t": "release", "pin": list(pin)}
    ack = {"t": "ack", "name": "peer", "hash": "h", "version": list(pin), "pinned": False, **COST}
    want = {"t": "want", "run": "run", "name": "peer", "have": None, "pin": None}
    with publisher(endpoint) as learner:
        learner.publish(pin, weights(0), retain=True)
        learner.publish(PolicyVersion(1, 1), weights(1))
        assert answer(release) == ("error", "release")
        assert answer(ack) == ("error", "ack")
        assert answer({**want, "run": "other", "pin": list(pin)}) == ("error", "want")
        assert answer(release) == ("error", "release")
        assert answer({**want, "name": "n" * 257}) == ("error", "want")
        assert answer(want)[0] == "manifest"
        assert answer(release) == ("error", "release")  # a reader, but not of that version
        assert answer({**ack, "name": "another"}) == ("error", "ack")
        assert learner.acknowledged() == {}
        assert pin in learner.versions()
        assert answer({**want, "pin": list(pin)})[0] == "manifest"
        peer.send(pack(ack))
        assert answer(release) == ("released", "")
        assert learner.acknowledged() == {"peer": (pin, "h")}
        assert learner.versions() == [PolicyVersion(1, 1)]
    peer.close()
    context.term()


def test_names_of_acknowledgements_are_bounded(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("r1async.weights.zmq_sender.MAX_READERS", 3)
    context = zmq.Context()
    peer = context.socket(zmq.DEALER)
    peer.linger = 0
    peer.connect(endpoint)
    with publisher(endpoint) as learner:
        learner.publish(PolicyVersion(1, 0), weights(0))
        for number in range(6):
            peer.send(pack({"t": "look", "run": "run", "name": f"n{number}", "pin": [1, 0]}))
            peer.send(pack({"t": "ack", "name": f"n{number}", "hash": "h", "version": [1, 0], "pinned": False, **COST}))
        for _ in range(6):
            assert unpack(peer.recv()).type == "held"
        peer.send(pack({"t": "release", "pin": [1, 0]}))
        assert unpack(peer.recv()).type == "released"
        assert list(learner.acknowledged()) == ["n3", "n4", "n5"]
    peer.close()
    context.term()


def test_versions_only_grow_and_an_epoch_beats_a_number(endpoint: str) -> None:
    with publisher(endpoint) as learner:
        learner.publish(PolicyVersion(1, 5), weights(0))
        with pytest.raises(ValueError, match="5@1 cannot follow 5@1"):
            learner.publish(PolicyVersion(1, 5), weights(0))
        learner.publish(PolicyVersion(2, 3), weights(0))
        assert learner.versions() == [PolicyVersion(2, 3)]


def test_a_dead_learners_versions_are_never_taken(endpoint: str) -> None:
    inbox = Inbox()
    with receiver(endpoint, inbox, deadline_s=0.1) as there:
        with publisher(endpoint) as learner:
            learner.publish(PolicyVersion(2, 3), weights(3))
            there.installed(ready(inbox))
        with publisher(endpoint) as zombie:
            zombie.publish(PolicyVersion(1, 9), weights(9))
            there.fetch(PolicyVersion(1, 9))
            assert inbox.get("the pin", WAIT_S) == WeightsMissing(PolicyVersion(1, 9), None)
            assert there.stats()["versions_fenced"] >= 1
        with publisher(endpoint) as learner:
            learner.publish(PolicyVersion(3, 4), weights(4))
            assert ready(inbox).version == PolicyVersion(3, 4)


def test_another_runs_publisher_refuses_with_the_names(endpoint: str) -> None:
    inbox = Inbox()
    with (
        publisher(endpoint),
        Receiver(endpoint, inbox, run="other", name="generator-0", deadline_s=WAIT_S),
        pytest.raises(PublisherError, match=r"this is run 'run', not 'other'; check endpoints\.weights"),
    ):
        inbox.get("weights", WAIT_S)


class FakePublisher:
    """A ROUTER that the test drives: it can send what a real publisher never would."""

    def __init__(self, endpoint: str, package: Package) -> None:
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.ROUTER)
        self.socket.bind(endpoint)
        self.package = package
        self.peer = b""

    def receive(self) -> Message:
        assert self.socket.poll(round(WAIT_S * 1000)), "the receiver sent nothing"
        self.peer, frame = self.socket.recv_multipart()
        return unpack(frame)

    def want(self) -> Message:
        """The receiver's first word; it repeats it once the handshake is over, if it had spoken before."""
        message = self.receive()
        while self.socket.poll(100):
            message = self.receive()
        return message

    def send_manifest(self) -> None:
        header = {**self.package.manifest.header(), "pinned": False}
        self.send(header, {"chunk_crcs": self.package.manifest.chunk_crcs})

    def send_chunk(self, index: int, change: Callable[[np.ndarray], np.ndarray] = lambda data: data) -> None:
        header = {"t": "chunk", "version": list(self.package.manifest.version), "pinned": False, "index": index}
        self.send(header, {"data": change(self.package.chunk(index))})

    def send(self, header: dict, columns: dict | None = None) -> None:
        self.socket.send_multipart([self.peer, pack(header, columns)])

    def __enter__(self) -> FakePublisher:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close(linger=0)
        self._context.term()


def numbers(seed: int = 0) -> torch.Tensor:
    """Values that no codec makes smaller."""
    return torch.randint(-(2**31), 2**31, (30, 30), dtype=torch.int32, generator=torch.Generator().manual_seed(seed))


def snapshot(number: int = 0) -> Package:
    """A version of four chunks."""
    taken = take_snapshot(PolicyVersion(1, number), {"a.weight": numbers(number)}, dtype="float32")
    return encode(taken, None, run="run", chunk_bytes=CHUNK, threads=1)


def flip(data: np.ndarray) -> np.ndarray:
    changed = data.copy()
    changed[17] ^= 1
    return changed


def test_a_corrupted_chunk_is_asked_for_again_and_counted(endpoint: str) -> None:
    inbox = Inbox()
    with FakePublisher(endpoint, snapshot()) as fake, receiver(endpoint, inbox) as there:
        assert fake.want().header["have"] is None
        fake.send_manifest()
        asked: list[int] = []
        changes = iter([flip, lambda data: data[:-1]])  # the first with a wrong bit, the second too short
        while len(set(asked)) < fake.package.manifest.num_chunks or asked.count(0) < 2 or asked.count(1) < 2:
            for index in fake.receive().header["indexes"]:
                asked.append(index)
                fake.send_chunk(index, next(changes, lambda data: data))
        assert [index for index in set(asked) if asked.count(index) > 1] == [0, 1]
        assert torch.equal(ready(inbox).tensors["a.weight"], numbers())
        assert there.stats()["chunks_corrupted"] == 2


def test_a_publisher_that_stops_in_the_middle_is_asked_again_from_the_manifest(endpoint: str) -> None:
    inbox = Inbox()
    with FakePublisher(endpoint, snapshot()) as fake, receiver(endpoint, inbox, deadline_s=0.2) as there:
        assert fake.want().type == "want"
        fake.send_manifest()
        assert fake.receive().header["indexes"] == [0, 1, 2, 3]
        while (message := fake.receive()).type != "want":
            assert message.type == "chunks"
        assert there.stats()["transfers_restarted"] >= 1
        assert inbox.take() == []


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"R1A1garbage",
        pack({"t": "manifest"}),
        pack({**snapshot().manifest.header(), "total_bytes": 2**60, "pinned": False}),
        pack({"t": "chunk", "version": [1, 0], "index": 10**9}, {"data": np.zeros(4, np.uint8)}),
        pack({"t": "no such type"}),
    ],
)
def test_bytes_that_no_publisher_sends_disturb_nothing(endpoint: str, frame: bytes) -> None:
    inbox = Inbox()
    with FakePublisher(endpoint, snapshot()) as fake, receiver(endpoint, inbox):
        fake.want()
        fake.socket.send_multipart([fake.peer, frame])
        fake.socket.send_multipart([fake.peer, b"two", frame])
        fake.send_manifest()
        while not inbox_has(inbox, 0.0):
            message = fake.receive()
            if message.type == "want":  # a receiver that was sent nonsense may ask anew
                fake.send_manifest()
                continue
            for index in message.header["indexes"]:
                fake.send_chunk(index)
            if fake.package.manifest.num_chunks - 1 in message.header["indexes"]:
                break
        assert ready(inbox).version == PolicyVersion(1, 0)


def inbox_has(inbox: Inbox, seconds: float) -> bool:
    try:
        inbox.put(inbox.get("weights", seconds))
    except DeadlineExceeded:
        return False
    return True


HOSTILE = [
    b"",
    b"not a message",
    pack({"t": "unknown"}),
    pack({"t": "want", "run": "run", "have": "x"}),
    pack({"t": "chunks", "version": [1, 0], "indexes": [-1]}),
    pack({"t": "chunks", "version": [1, 0], "indexes": list(range(65))}),
    pack({"t": "chunks", "version": [1, 0], "indexes": 7}),
    pack({"t": "ack", "version": None}),
    pack({"t": "release", "pin": [1]}),
]


def test_hostile_bytes_cost_their_sender_an_error_and_nobody_else_anything(endpoint: str) -> None:
    inbox = Inbox()
    context = zmq.Context()
    hostile = context.socket(zmq.DEALER)
    hostile.linger = 0
    hostile.connect(endpoint)
    with publisher(endpoint) as learner, receiver(endpoint, inbox) as there:
        learner.publish(PolicyVersion(1, 0), weights(0))
        for frame in HOSTILE:
            hostile.send(frame)
            assert hostile.poll(round(WAIT_S * 1000))
            answer = unpack(hostile.recv()).header
            assert (answer["t"], answer["code"]) == ("error", "malformed")
        hostile.send_multipart([b"", HOSTILE[2]])
        assert unpack(hostile.recv()).type == "error"
        hostile.send(bytes(2**17))  # over the cap: ZeroMQ cuts the connection
        there.installed(ready(inbox))
        learner.publish(PolicyVersion(1, 1), weights(1))
        assert ready(inbox).version == PolicyVersion(1, 1)
    hostile.close()
    context.term()


def test_a_flood_of_questions_by_a_peer_that_never_reads_is_bounded(endpoint: str) -> None:
    inbox = Inbox()
    context = zmq.Context()
    flood = context.socket(zmq.DEALER)
    flood.linger = 0
    flood.rcvhwm = 1
    flood.sndtimeo = 20_000
    big = {"w": torch.zeros(1024, 1024)}
    with Publisher(endpoint, run="run", dtype="float32", chunk_bytes=2**20, deadline_s=10.0) as learner:
        learner.publish(PolicyVersion(1, 0), big)
        flood.connect(endpoint)
        for _ in range(500):  # 500 x 4 x 1 MB, if it were all kept
            flood.send(pack({"t": "chunks", "version": [1, 0], "pinned": False, "indexes": [0, 1, 2, 3]}))
        with receiver(endpoint, inbox):
            assert ready(inbox).version == PolicyVersion(1, 0)
    peak_kb = int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0])
    assert peak_kb < 1_500_000
    flood.close()
    context.term()


PUBLISHER_PROCESS = """
import sys, torch
from r1async.types import PolicyVersion
from r1async.weights.publisher import Publisher
endpoint, epoch, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
learner = Publisher(endpoint, run="run", dtype="float32", chunk_bytes=32768, deadline_s=10.0)
noise = torch.randint(-2**31, 2**31, (4096, 4096), dtype=torch.int32, generator=torch.Generator().manual_seed(number))
learner.publish(PolicyVersion(epoch, number), {"w": noise})
print("published", flush=True)
sys.stdin.read()
"""


def publisher_process(endpoint: str, epoch: int, number: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PUBLISHER_PROCESS, endpoint, str(epoch), str(number)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "published\n"
    return process


def test_a_publisher_killed_in_the_middle_leaves_the_last_complete_version(endpoint: str) -> None:
    begun = threading.Event()

    class Watched(Receiver):
        def accepts(self, manifest: Manifest) -> bool:
            if manifest.version == PolicyVersion(1, 1):
                begun.set()
            return super().accepts(manifest)

    inbox = Inbox()
    with Watched(endpoint, inbox, run="run", name="generator-0", deadline_s=WAIT_S) as there:
        with publisher(endpoint) as learner:
            learner.publish(PolicyVersion(1, 0), weights(0))
            there.installed(ready(inbox))
        victim = publisher_process(endpoint, 1, 1)  # 64 MB in 2,048 chunks: it does not get far
        assert begun.wait(WAIT_S)
        os.kill(victim.pid, signal.SIGKILL)
        victim.communicate()
        assert inbox.take() == []
        heir = publisher_process(endpoint, 2, 1)
        got = ready(inbox)
        assert got.version == PolicyVersion(2, 1)
        assert got.tensors["w"].shape == (4096, 4096)
        assert there.stats()["transfers_restarted"] >= 1
        heir.communicate("")
        assert heir.returncode == 0
