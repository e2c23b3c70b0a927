"""Deltas over real sockets: what receivers download, what they refuse, what the learner is told."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from r1async import _core
from r1async.inbox import Inbox
from r1async.types import PolicyVersion
from r1async.weights.manifest import take_snapshot
from r1async.weights.package import Package, encode
from r1async.weights.publisher import Publisher
from r1async.weights.receiver import Receiver, WeightsReady

from tests.integration.test_weights import WAIT_S, FakePublisher, inbox_has, ready

CHUNK = 1024
BASE = torch.linspace(-1, 1, 20_000).to(torch.bfloat16)


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/weights"


def version(number: int) -> PolicyVersion:
    return PolicyVersion(1, number)


def weights(number: int) -> dict[str, torch.Tensor]:
    """Each version moves 20 more values by a quarter."""
    weight = BASE.clone()
    weight[: 20 * number] *= 1.25
    return {"weight": weight.reshape(100, 200), "bias": torch.full((3,), 0.5)}


def publisher(endpoint: str, window: int = 4) -> Publisher:
    return Publisher(endpoint, run="run", dtype="bfloat16", chunk_bytes=CHUNK, deadline_s=WAIT_S, window=window)


def receiver(endpoint: str, inbox: Inbox, name: str = "generator-0", deadline_s: float = WAIT_S) -> Receiver:
    return Receiver(endpoint, inbox, run="run", name=name, deadline_s=deadline_s)


def assert_is(got: WeightsReady, number: int) -> None:
    assert got.version.number == number
    for name, tensor in weights(number).items():
        assert torch.equal(got.tensors[name], tensor.to(torch.bfloat16))


def test_every_version_after_the_first_is_a_delta(endpoint: str) -> None:
    inbox = Inbox()
    with publisher(endpoint) as learner, receiver(endpoint, inbox) as there:
        for number in range(4):
            digest = learner.publish(version(number), weights(number))
            got = ready(inbox)
            assert_is(got, number)
            assert got.hash == digest
            there.installed(got, pause_s=0.25)
        stats = there.stats()
    assert (stats["snapshots"], stats["deltas"]) == (1, 3)
    assert stats["push_bytes"] < 100 < 0.6 * 40_000
    assert stats["push_density"] == pytest.approx(20 / 20_003)
    assert stats["push_pause_s"] == 0.25
    assert stats["packages_refused"] == stats["chunks_corrupted"] == 0


def test_tensors_stay_until_the_next_version_is_installed_and_their_memory_is_used_again(endpoint: str) -> None:
    inbox = Inbox()
    got: list[WeightsReady] = []
    with publisher(endpoint) as learner, receiver(endpoint, inbox) as there:
        for number in range(4):
            learner.publish(version(number), weights(number))
            got.append(ready(inbox))
            assert_is(got[-1], number)
            if number:
                assert_is(got[-2], number - 1)  # installed, and the next is ready: still what it was
            there.installed(got[-1])
    where = [each.tensors["weight"].data_ptr() for each in got]
    assert where[0] == where[2] != where[1] == where[3]


def test_receivers_of_three_speeds_each_get_one_whole_version_after_another(endpoint: str) -> None:
    """The learner publishes twelve versions, and waits for nobody but, at the end, for all to have the last."""
    every = {"quick": 1, "slow": 3, "slowest": 5}
    seen: dict[str, list[int]] = {name: [] for name in every}
    published = [threading.Event() for _ in range(12)]
    stats: dict[str, dict[str, float]] = {}

    def generate(name: str) -> None:
        inbox = Inbox()
        with receiver(endpoint, inbox, name) as there:
            while not seen[name] or seen[name][-1] < 11:
                got = ready(inbox)
                assert_is(got, got.version.number)
                seen[name].append(got.version.number)
                published[min(11, got.version.number + every[name])].wait(WAIT_S)  # so long it takes to install it
                there.installed(got)
            stats[name] = there.stats()

    with publisher(endpoint, window=12) as learner:
        generators = [threading.Thread(target=generate, args=(name,)) for name in every]
        for each in generators:
            each.start()
        for number in range(12):
            learner.publish(version(number), weights(number))
            published[number].set()
        for each in generators:
            each.join(WAIT_S)
    for name, numbers in seen.items():
        assert numbers == sorted(set(numbers))
        assert numbers[-1] == 11
        assert stats[name]["snapshots"] == 1, name
        assert stats[name]["deltas"] == len(numbers) - 1


def test_a_joiner_is_current_within_one_push(endpoint: str) -> None:
    inbox, late = Inbox(), Inbox()
    with publisher(endpoint) as learner, receiver(endpoint, inbox) as there:
        for number in range(3):
            learner.publish(version(number), weights(number))
            there.installed(ready(inbox))
        with receiver(endpoint, late, "generator-1") as joiner:
            got = ready(late)
            assert_is(got, 2)
            joiner.installed(got)
            learner.publish(version(3), weights(3))
            assert_is(ready(late), 3)
            assert joiner.stats()["deltas"] == 1


def test_who_fell_out_of_the_window_gets_the_version_whole(endpoint: str) -> None:
    inbox = Inbox()
    with publisher(endpoint, window=2) as learner, receiver(endpoint, inbox) as there:
        learner.publish(version(0), weights(0))
        first = ready(inbox)
        for number in range(1, 5):
            learner.publish(version(number), weights(number))
        there.installed(first)
        assert_is(ready(inbox), 4)
        assert there.stats()["snapshots"] == 2


def test_a_learner_that_came_back_is_taken_whole_under_its_new_epoch(endpoint: str) -> None:
    inbox = Inbox()
    with receiver(endpoint, inbox) as there:
        with publisher(endpoint) as learner:
            learner.publish(version(5), weights(5))
            there.installed(ready(inbox))
        with publisher(endpoint) as learner:
            learner.publish(PolicyVersion(2, 3), weights(3))
            got = ready(inbox)
            assert got.version == PolicyVersion(2, 3)
            assert_is(got, 3)
            there.installed(got)
            learner.publish(PolicyVersion(2, 4), weights(4))
            assert_is(ready(inbox), 4)
            assert (there.stats()["snapshots"], there.stats()["deltas"]) == (2, 1)


def test_a_pinned_version_comes_as_a_delta_from_what_is_installed(endpoint: str) -> None:
    inbox = Inbox()
    with publisher(endpoint) as learner, receiver(endpoint, inbox) as there:
        learner.publish(version(0), weights(0), retain=True)
        there.installed(ready(inbox))
        learner.publish(version(1), weights(1))
        newest = ready(inbox)
        there.installed(newest)
        there.fetch(version(0))
        pinned = ready(inbox)
        assert pinned.pinned
        assert_is(pinned, 0)
        assert_is(newest, 1)
        assert there.stats()["deltas"] == 2


def test_the_learner_is_told_what_each_push_cost(endpoint: str) -> None:
    inbox = Inbox()
    with publisher(endpoint) as learner, receiver(endpoint, inbox) as there:
        assert learner.figures() == {}
        for number in range(2):
            learner.publish(version(number), weights(number))
            there.installed(ready(inbox), pause_s=0.5)
        learner.publish(version(2), weights(2))
        ready(inbox)  # it asked after it had acknowledged
        figures = learner.figures()
        assert figures["push/density"] == pytest.approx(20 / 20_003)
        assert figures["push/delta_bytes"] < 100 < figures["push/full_bytes"]
        assert (figures["push/receivers"], figures["push/acks"], figures["push/lag"]) == (1, 1, 1)
        assert figures["push/pause_s"] == 0.5
        assert 0 <= figures["push/sync_s"] < WAIT_S
        assert figures["push/bytes"] < 100
        assert "push/acks" not in learner.figures()
        report = learner.report()
    assert report["version"] == [1, 2]
    assert isinstance(report["receivers"], dict)
    (told,) = report["receivers"].values()
    assert (told["version"], told["pause_s"]) == ([1, 1], 0.5)
    assert 0 < told["bytes"] < 100
    assert told["hash"] != report["hash"]


def damaged(number: int) -> Package:
    """A delta whose chunks are as its manifest says and that leads elsewhere than it says."""
    good = encode(
        take_snapshot(version(number), weights(number), dtype="bfloat16"),
        take_snapshot(version(number - 1), weights(number - 1), dtype="bfloat16"),
        run="run", chunk_bytes=CHUNK, threads=1,
    )  # fmt: skip
    data = good.data.copy()
    data[-1] ^= 1
    return Package(dataclasses.replace(good.manifest, chunk_crcs=np.array([_core.crc32c(data)], np.int64)), data)


def serve(fake: FakePublisher, package: Package) -> None:
    fake.package = package
    fake.send_manifest()
    while (asked := fake.receive()).type != "chunks":
        assert asked.type == "ack"  # what a relay's receivers say may come in between
    for index in asked.header["indexes"]:
        base = package.manifest.base and list(package.manifest.base.version)
        header = {"t": "chunk", "version": list(package.manifest.version), "base": base, "pinned": False}
        fake.send({**header, "index": index}, {"data": package.chunk(index)})


def whole(number: int) -> Package:
    snapshot = take_snapshot(version(number), weights(number), dtype="bfloat16")
    return encode(snapshot, None, run="run", chunk_bytes=2**20, threads=1)


def test_a_delta_that_leads_elsewhere_is_thrown_away_and_the_version_asked_for_whole(endpoint: str) -> None:
    inbox = Inbox()
    with FakePublisher(endpoint, whole(0)) as fake, receiver(endpoint, inbox) as there:
        fake.want()
        serve(fake, whole(0))
        got = ready(inbox)
        there.installed(got)
        assert fake.receive().type == "ack"
        asked = fake.receive().header
        assert (asked["have"], asked["base"]) == ([1, 0], [[1, 0], got.hash])
        serve(fake, damaged(1))
        asked = fake.receive().header
        assert (asked["t"], asked["have"], asked["base"]) == ("want", [1, 0], None)
        assert inbox.take() == []
        assert_is(got, 0)
        serve(fake, whole(1))
        assert_is(ready(inbox), 1)
        assert there.stats()["packages_refused"] == 1


def test_a_version_that_is_never_right_is_asked_for_at_deadlines_only(endpoint: str) -> None:
    inbox = Inbox()
    good = whole(0)
    data = good.data.copy()
    data[len(data) // 2] ^= 1
    bad = Package(dataclasses.replace(good.manifest, chunk_crcs=np.array([_core.crc32c(data)], np.int64)), data)
    with FakePublisher(endpoint, bad) as fake, receiver(endpoint, inbox, deadline_s=0.5) as there:
        for _ in range(2):
            assert fake.want().type == "want"
            serve(fake, bad)
            assert not fake.socket.poll(100)
        assert not inbox_has(inbox, 0.0)
        assert fake.want().type == "want"
        serve(fake, good)
        assert_is(ready(inbox), 0)
        assert there.stats()["packages_refused"] == 2


def test_a_delta_from_a_base_that_nobody_named_is_passed_over(endpoint: str) -> None:
    inbox = Inbox()
    with FakePublisher(endpoint, whole(0)) as fake, receiver(endpoint, inbox):
        fake.want()
        fake.package = damaged(1)
        fake.send_manifest()
        assert not fake.socket.poll(100)
        serve(fake, whole(1))
        assert_is(ready(inbox), 1)
