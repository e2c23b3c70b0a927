"""Weights through relays, and processes that die in the middle: nobody ever has a mixed version."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from r1async.inbox import Inbox
from r1async.types import PolicyVersion
from r1async.weights.manifest import Manifest
from r1async.weights.publisher import Publisher
from r1async.weights.receiver import Receiver, WeightsMissing
from r1async.weights.relay import Relay

from tests.integration.test_weights import WAIT_S, FakePublisher, ready
from tests.integration.test_weights_delta import assert_is, damaged, publisher, receiver, serve, version, weights, whole

CHUNK = 1024


@pytest.fixture
def above(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/weights"


@pytest.fixture
def below(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/relay"


def relay(above: str, below: str, inbox: Inbox, name: str = "relay", window: int = 4) -> Relay:
    return Relay(
        above, below, inbox, run="run", name=name, chunk_bytes=CHUNK, window=window, threads=1, deadline_s=WAIT_S
    )


def wait_for(what: Callable[[], bool]) -> None:
    """Until it holds; the test's own deadline ends what never does."""
    end = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_the_publisher_sends_once_and_is_told_of_every_engine(above: str, below: str) -> None:
    inboxes = {name: Inbox() for name in ("a", "b")}
    with (
        publisher(above) as learner,
        relay(above, below, Inbox()) as between,
        receiver(below, inboxes["a"], "a") as a,
        receiver(below, inboxes["b"], "b") as b,
    ):
        digest = ""
        for number in range(3):
            digest = learner.publish(version(number), weights(number))
            for there, inbox in ((a, inboxes["a"]), (b, inboxes["b"])):
                got = ready(inbox)
                assert_is(got, number)
                assert got.hash == digest
                there.installed(got)
        told = (version(2), digest)
        wait_for(lambda: learner.acknowledged() == {"relay": told, "relay/a": told, "relay/b": told})
        once = between.stats()["weights_bytes"]
        for there in (a, b):
            assert there.stats()["weights_bytes"] == once
            assert (there.stats()["snapshots"], there.stats()["deltas"]) == (1, 2)


def test_relays_form_a_tree(above: str, below: str) -> None:
    inbox = Inbox()
    middle = f"{below}-middle"
    with (
        publisher(above) as learner,
        relay(above, middle, Inbox(), "root"),
        relay(middle, below, Inbox(), "leaf"),
        receiver(below, inbox) as there,
    ):
        digest = ""
        for number in range(3):
            digest = learner.publish(version(number), weights(number))
            got = ready(inbox)
            assert_is(got, number)
            there.installed(got)
        wait_for(lambda: learner.acknowledged().get("root/leaf/generator-0") == (version(2), digest))
        assert there.stats()["deltas"] == 2


def test_a_relay_merges_for_who_skipped_versions(above: str, below: str) -> None:
    inbox = Inbox()
    with publisher(above) as learner, relay(above, below, Inbox()) as between, receiver(below, inbox) as there:
        learner.publish(version(0), weights(0))
        first = ready(inbox)
        for number in range(1, 4):
            learner.publish(version(number), weights(number))
            wait_for(lambda number=number: between.versions() == [version(number)])
        there.installed(first)
        assert_is(ready(inbox), 3)
        assert there.stats()["deltas"] == 1


def test_a_pinned_version_is_fetched_through_the_relay_and_a_missing_one_named(above: str, below: str) -> None:
    inbox = Inbox()
    with publisher(above) as learner:
        learner.publish(version(0), weights(0), retain=True)
        learner.publish(version(1), weights(1))
        learner.publish(version(2), weights(2))
        with relay(above, below, Inbox()), receiver(below, inbox) as there:
            there.installed(ready(inbox))
            for pin, wanted in ((0, None), (1, WeightsMissing(version(1), version(2)))):
                there.fetch(version(pin))
                if wanted is None:
                    got = ready(inbox)
                    assert got.pinned
                    assert_is(got, pin)
                else:
                    assert inbox.get("the pin", WAIT_S) == wanted


def test_a_relay_passes_on_nothing_that_it_could_not_verify(above: str, below: str) -> None:
    inbox = Inbox()
    with FakePublisher(above, whole(0)) as fake, relay(above, below, Inbox()) as between:
        fake.want()
        serve(fake, whole(0))
        with receiver(below, inbox) as there:
            assert fake.receive().type == "ack"
            there.installed(ready(inbox))
            assert fake.receive().type == "want"
            serve(fake, damaged(1))
            while (asked := fake.receive()).type != "want":
                assert asked.header["name"] == "relay/generator-0"
            assert asked.header["base"] is None
            assert inbox.take() == []
            serve(fake, whole(1))
            assert_is(ready(inbox), 1)
            assert between.stats()["packages_refused"] == 1
            assert there.stats()["packages_refused"] == 0


def test_a_dead_learners_versions_stop_at_the_relay(above: str, below: str) -> None:
    inbox = Inbox()
    with relay(above, below, Inbox()) as between, receiver(below, inbox) as there:
        with publisher(above) as learner:
            learner.publish(PolicyVersion(3, 1), weights(1))
            there.installed(ready(inbox))
        with publisher(above) as zombie:
            zombie.publish(PolicyVersion(2, 9), weights(9))
            there.fetch(PolicyVersion(2, 9))
            assert inbox.get("the pin", WAIT_S) == WeightsMissing(PolicyVersion(2, 9), PolicyVersion(3, 1))
            assert between.stats()["versions_fenced"] == 1
            assert between.versions() == [PolicyVersion(3, 1)]


NOISE = """
import sys, torch
from r1async.inbox import Inbox
from r1async.types import PolicyVersion
from r1async.weights.publisher import Publisher
from r1async.weights.receiver import Receiver
from r1async.weights.relay import Relay

def noise(seed):
    generator = torch.Generator().manual_seed(seed)
    return {"w": torch.randint(-2**31, 2**31, (2048, 2048), dtype=torch.int32, generator=generator)}
"""
PROCESSES = {
    "relay": """
above, below = sys.argv[1:]
served = Relay(above, below, Inbox(), run="run", name="relay", chunk_bytes=16384, window=4, threads=1, deadline_s=30.0)
print("started", flush=True)
sys.stdin.read()
served.close()
""",
    "receiver": """
(endpoint,) = sys.argv[1:]
inbox = Inbox()
class Told(Receiver):
    def accepts(self, manifest):
        print("begun", flush=True)
        return super().accepts(manifest)
with Told(endpoint, inbox, run="run", name="victim", deadline_s=30.0):
    inbox.get("weights", 30.0)
    sys.stdin.read()
""",
}


def process(kind: str, *arguments: str) -> subprocess.Popen[str]:
    """Returns once it has said its first word."""
    command = [sys.executable, "-c", NOISE + PROCESSES[kind], *arguments]
    started = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    assert started.stdout.readline()
    return started


def noise(seed: int) -> dict[str, torch.Tensor]:
    """16 MB that no codec makes smaller: a thousand chunks, in the middle of which one can die."""
    generator = torch.Generator().manual_seed(seed)
    return {"w": torch.randint(-(2**31), 2**31, (2048, 2048), dtype=torch.int32, generator=generator)}


def noisy_publisher(endpoint: str) -> Publisher:
    return Publisher(endpoint, run="run", dtype="float32", chunk_bytes=16384, deadline_s=WAIT_S, window=4)


def kill(victim: subprocess.Popen[str]) -> None:
    os.kill(victim.pid, signal.SIGKILL)
    victim.communicate()


def test_a_relay_killed_in_the_middle_is_followed_by_another(above: str, below: str) -> None:
    inbox, begun = Inbox(), threading.Event()

    class Watched(Receiver):
        def accepts(self, manifest: Manifest) -> bool:
            if manifest.version == version(1):
                begun.set()
            return super().accepts(manifest)

    with noisy_publisher(above) as learner:
        learner.publish(version(0), noise(0))
        first = process("relay", above, below)
        with Watched(below, inbox, run="run", name="generator-0", deadline_s=WAIT_S) as there:
            got = ready(inbox)
            there.installed(got)
            learner.publish(version(1), noise(1))
            assert begun.wait(WAIT_S)
            kill(first)
            assert inbox.take() == []
            assert torch.equal(got.tensors["w"], noise(0)["w"])
            second = process("relay", above, below)
            newest = ready(inbox)
            assert newest.version == version(1)
            assert torch.equal(newest.tensors["w"], noise(1)["w"])
            second.communicate("")
            assert second.returncode == 0


def test_a_receiver_killed_in_the_middle_holds_up_nobody(above: str) -> None:
    inbox = Inbox()
    with noisy_publisher(above) as learner:
        learner.publish(version(0), noise(0))
        victim = process("receiver", above)
        kill(victim)
        with Receiver(above, inbox, run="run", name="generator-0", deadline_s=WAIT_S) as there:
            for number in range(3):
                if number:
                    learner.publish(version(number), noise(number))
                got = ready(inbox)
                assert torch.equal(got.tensors["w"], noise(number)["w"])
                there.installed(got)
        assert learner.versions() == [version(2)]


def test_a_receiver_that_never_reads_does_not_hold_up_the_learner(above: str) -> None:
    """Stopped, not dead: its connection stays open and takes nothing."""
    with noisy_publisher(above) as learner:
        learner.publish(version(0), noise(0))
        victim = process("receiver", above)
        os.kill(victim.pid, signal.SIGSTOP)
        for number in range(1, 5):
            learner.publish(version(number), noise(number))
        assert learner.versions() == [version(4)]
        kill(victim)
