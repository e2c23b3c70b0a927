"""Versions that the learner sends into engines: what is asked and answered, over real sockets, with an engine's end
that the test plays; and the learner's end of each engine's transfer, as far as it can be seen without a GPU.

The real SGLang takes weights so in tests/engines/test_direct.py, which also has what the real vLLM reads.
"""

from __future__ import annotations

import base64
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest
import torch
from r1async.inbox import Inbox
from r1async.types import PolicyVersion
from r1async.weights import publisher as publishing
from r1async.weights.direct import Direct, DirectError, Meeting, buckets, whole_tensors
from r1async.weights.direct_sender import DirectSender
from r1async.weights.direct_ways import (
    VllmNccl,
    VllmSparse,
    changed_values,
    handle_arguments,
    handle_fields,
    make_sender,
    pickled_handles,
)
from r1async.weights.manifest import Snapshot, TensorEntry, take_snapshot
from r1async.weights.package import encode
from r1async.weights.publisher import Publisher
from r1async.weights.receiver import Receiver, WeightsReady
from torch import Tensor

WAIT_S = 20.0
V0, V1, V2 = (PolicyVersion(1, number) for number in range(3))
WEIGHT = torch.tensor([[0.0, 1.0, -2.0], [0.5, 4.0, -0.0]], dtype=torch.bfloat16)


def taken(version: PolicyVersion, weight: Tensor = WEIGHT) -> Snapshot:
    return take_snapshot(version, {"w": weight, "b": torch.ones(2, dtype=torch.bfloat16)}, dtype="bfloat16")


@dataclass
class Played:
    """An engine's end that sends nothing anywhere."""

    prepared: list[tuple[PolicyVersion, PolicyVersion | None]] = field(default_factory=list)
    sent: int = 0
    closed: threading.Event = field(default_factory=threading.Event)
    hangs: bool = False
    """`send` comes back when somebody closes it."""
    fails: bool = False

    def prepare(self, snapshot: Snapshot, base: Snapshot | None) -> Meeting:
        self.prepared.append((snapshot.version, base and base.version))
        return Meeting({"where": 1} if len(self.prepared) == 1 else None, {})

    def send(self) -> None:
        if self.hangs:
            assert self.closed.wait(WAIT_S)
            raise RuntimeError("closed in the middle")
        if self.fails:
            raise RuntimeError("the engine is gone")
        self.sent += 1

    def close(self) -> None:
        self.closed.set()


class Links:
    """A learner and as many receivers as a test wants."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.endpoint = f"ipc://{folder}/w"
        self.ends: list[Played] = []
        self.next: Callable[[], Played] = Played
        self.sender: DirectSender
        self.made: list[dict[str, object]] = []

        def make(way: str, **settings: object) -> Played:
            self.made.append({"way": way, **settings})
            self.ends.append(self.next())
            return self.ends[-1]

        def sender(*args: object, **settings: object) -> DirectSender:
            self.sender = DirectSender(*args, **settings, make=make)  # pyright: ignore[reportArgumentType]
            return self.sender

        monkeypatch.setattr(publishing, "DirectSender", sender)
        self.learner = Publisher(
            self.endpoint, run="run", dtype="bfloat16", chunk_bytes=1024, deadline_s=WAIT_S, direct="127.0.0.1"
        )
        self.receivers: list[Receiver] = []

    def receiver(self, name: str = "g0") -> tuple[Receiver, Inbox]:
        inbox = Inbox()
        made = Receiver(self.endpoint, inbox, run="run", name=name, deadline_s=WAIT_S, direct=True)
        self.receivers.append(made)
        return made, inbox

    def publish(self, version: PolicyVersion) -> None:
        self.learner.publish(version, {"w": WEIGHT * (1 + version.number)})

    def close(self) -> None:
        for each in self.receivers:
            each.close()
        self.learner.close()


@pytest.fixture
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Links]:
    made = Links(tmp_path, monkeypatch)
    yield made
    made.close()


def next_of(inbox: Inbox) -> Direct | WeightsReady:
    found = inbox.get("weights", WAIT_S, lambda item: isinstance(item, Direct | WeightsReady))
    assert isinstance(found, Direct | WeightsReady)
    return found


def direct_of(inbox: Inbox) -> Direct:
    found = next_of(inbox)
    assert isinstance(found, Direct)
    return found


def ask(direct: Direct, base: PolicyVersion | None = None, *, fresh: bool = True) -> Meeting:
    return direct.ask("vllm-nccl", base=base, workers=2, device="cuda", fresh=fresh, deadline_s=WAIT_S)


def until(condition: Callable[[], bool]) -> None:
    ticker = threading.Event()
    for _ in range(int(WAIT_S / 0.01)):
        if condition():
            return
        ticker.wait(0.01)
    raise AssertionError("did not happen")


def test_the_first_version_is_fetched_and_the_others_are_left_to_the_engine(links: Links) -> None:
    receiver, inbox = links.receiver()
    links.publish(V0)
    first = next_of(inbox)
    assert isinstance(first, WeightsReady)
    receiver.installed(first)
    for version, base in ((V1, V0), (V2, V1)):
        links.publish(version)
        direct = direct_of(inbox)
        assert (direct.version, direct.tensors[0].name, direct.tensors[0].shape) == (version, "w", (2, 3))
        meeting = ask(direct, base, fresh=version == V1)
        assert meeting.join == ({"where": 1} if version == V1 else None)
        until(lambda version=version: links.ends[0].sent == version.number)
        receiver.installed_direct(direct, 0.5, 0.25)
    assert len(links.ends) == 1
    # What was sent last is what the engine has, also if the publisher has let go of it.
    assert links.ends[0].prepared == [(V1, None), (V2, V1)]
    (made,) = links.made
    assert (made["way"], made["address"], made["workers"], made["device"]) == ("vllm-nccl", "127.0.0.1", 2, "cuda")
    until(lambda: links.learner.acknowledged().get("g0", (V0, ""))[0] == V2)
    figures = links.learner.figures()
    assert (figures["push/pause_s"], figures["push/bytes"]) == (0.25, 12)
    assert receiver.stats()["directs"] == 2


def test_a_slow_engine_holds_up_neither_the_learner_nor_another_engine(links: Links) -> None:
    slow, slow_inbox = links.receiver("slow")
    quick, quick_inbox = links.receiver("quick")
    links.publish(V0)
    for receiver, inbox in ((slow, slow_inbox), (quick, quick_inbox)):
        ready = next_of(inbox)
        assert isinstance(ready, WeightsReady)
        receiver.installed(ready)
    links.publish(V1)
    links.next = lambda: Played(hangs=True)
    ask(direct_of(slow_inbox))
    links.next = Played
    direct = direct_of(quick_inbox)
    ask(direct)
    until(lambda: links.ends[1].sent == 1)
    quick.installed_direct(direct, 0.0, 0.0)
    links.publish(V2)
    assert direct_of(quick_inbox).version == V2
    assert links.learner.versions() == [V2]


def test_an_engine_that_asks_again_is_met_anew(links: Links) -> None:
    receiver, inbox = links.receiver()
    links.publish(V0)
    ready = next_of(inbox)
    assert isinstance(ready, WeightsReady)
    receiver.installed(ready)
    links.publish(V1)
    links.next = lambda: Played(hangs=True)
    direct = direct_of(inbox)
    ask(direct)
    links.next = Played
    assert ask(direct).join == {"where": 1}
    assert links.ends[0].closed.is_set()
    until(lambda: links.ends[1].sent == 1)
    assert links.sender.failed == 1


def test_what_cannot_be_sent_is_refused_and_can_be_fetched(links: Links) -> None:
    receiver, inbox = links.receiver()
    links.publish(V0)
    ready = next_of(inbox)
    assert isinstance(ready, WeightsReady)
    receiver.installed(ready)
    links.publish(V1)
    direct = direct_of(inbox)
    with pytest.raises(DirectError, match="no group with the engine yet"):
        ask(direct, fresh=False)
    links.publish(V2)
    with pytest.raises(DirectError, match=r"version 1@1 is gone; there is a newer one"):
        ask(direct)
    receiver.fetch_instead(direct)
    fetched = next_of(inbox)
    assert isinstance(fetched, WeightsReady)
    assert fetched.version == V2
    assert torch.equal(fetched.tensors["w"], WEIGHT * 3)
    receiver.installed(fetched)
    links.publish(PolicyVersion(1, 3))
    assert direct_of(inbox).version.number == 3


def test_after_a_failure_in_the_middle_the_group_is_made_anew(links: Links) -> None:
    receiver, inbox = links.receiver()
    links.publish(V0)
    ready = next_of(inbox)
    assert isinstance(ready, WeightsReady)
    receiver.installed(ready)
    links.publish(V1)
    links.next = lambda: Played(fails=True)
    direct = direct_of(inbox)
    ask(direct)
    until(lambda: links.sender.failed == 1)
    assert links.ends[0].closed.is_set()
    with pytest.raises(DirectError, match="no group"):
        ask(direct, fresh=False)


@pytest.mark.parametrize("change", [{"way": "vllm-rdma"}, {"workers": 0}, {"device": "tpu"}, {"version": 3}])
def test_a_malformed_question_is_an_error_and_nothing_is_begun(links: Links, change) -> None:
    receiver, inbox = links.receiver()
    links.publish(V0)
    ready = next_of(inbox)
    assert isinstance(ready, WeightsReady)
    receiver.installed(ready)
    links.publish(V1)
    asked = {"version": [1, 1], "way": "vllm-nccl", "base": None, "workers": 1, "device": "cuda", "fresh": True}
    answer = direct_of(inbox).send({**asked, **change}, 10.0)
    assert next(iter(change)) in str(answer["error"])
    assert links.ends == []


@pytest.mark.parametrize(
    ("way", "device", "says"),
    [
        ("vllm-nccl", "cpu", "moves weights between GPUs; the engine's are on its cpu"),
        ("vllm-ipc", "cpu", "moves weights between GPUs"),
        ("sglang-nccl", "cuda", "on a GPU, and the learner's rank 0 has none"),
    ],
)
def test_a_way_that_the_machines_do_not_have_is_refused(monkeypatch, way, device, says) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DirectError, match=says):
        make_sender(way, address="127.0.0.1", workers=1, device=device, timeout_s=1.0)


def test_changed_values_are_those_whose_bits_changed() -> None:
    """Index 3 moves by one unit in the last place, index 5 from -0 to 0; the bias does not change and is left out."""
    new = WEIGHT.clone()
    new.view(torch.int16)[1, 0] += 1
    new[1, 2] = 0.0
    ((entry, indices, values),) = changed_values(taken(V1, new), taken(V0))
    assert (entry.name, entry.dtype, entry.shape) == ("w", "bfloat16", (2, 3))
    assert indices.tolist() == [3, 5]
    assert indices.dtype == torch.int32
    assert values.tolist() == [0.50390625, 0.0]
    assert not values.signbit().any()
    assert changed_values(taken(V1), taken(V0)) == []


@pytest.mark.parametrize(
    ("weight", "says"),
    [
        (WEIGHT.where(WEIGHT != 4.0, torch.nan), "tensor 'w' has changes that vLLM's sparse patches cannot express"),
        (WEIGHT[:1], "has other tensors than"),
    ],
)
def test_a_change_that_a_patch_cannot_say_is_refused(weight: Tensor, says: str) -> None:
    with pytest.raises(DirectError, match=says):
        changed_values(taken(V1, weight), taken(V0))


class Group:
    """As vLLM's communicator, one end of it."""

    def __init__(self) -> None:
        self.heard: list[Tensor] = []
        self.destroyed = False

    def broadcast(self, tensor: Tensor, src: int, stream: object = None) -> None:
        assert src == 0
        self.heard.append(tensor.clone())

    def destroy(self) -> None:
        self.destroyed = True


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Group:
    """The two functions of vLLM's that the learner calls."""
    group = Group()

    def trainer_init(where: dict) -> Group:
        assert where.keys() == {"master_address", "master_port", "world_size"}
        return group

    def packed_nccl_broadcast_producer(iterator, group: Group, src: int, post_iter_func) -> None:
        for item in iterator:
            group.broadcast(post_iter_func(item), src=src)

    for path, functions in (("nccl_common", [trainer_init]), ("packed_tensor", [packed_nccl_broadcast_producer])):
        module = ModuleType(path)
        for function in functions:
            setattr(module, function.__name__, function)
        monkeypatch.setitem(sys.modules, f"vllm.distributed.weight_transfer.{path}", module)
    return group


def test_nccl_sends_every_tensor_in_the_manifests_order(vllm: Group) -> None:
    end = VllmNccl("127.0.0.1", 2, "cpu")
    first, second = taken(V0), taken(V1, WEIGHT * 2)
    meeting = end.prepare(first, None)
    assert meeting.join is not None
    assert {**meeting.join, "master_port": 0} == {
        "master_address": "127.0.0.1", "master_port": 0, "rank_offset": 1, "world_size": 3, "packed": True,
    }  # fmt: skip
    end.send()
    assert end.prepare(second, first) == Meeting(None, {})
    end.send()
    sent = [tensor for snapshot in (first, second) for tensor in snapshot.tensors().values()]
    assert all(torch.equal(got, wanted) for got, wanted in zip(vllm.heard, sent, strict=True))
    end.close()
    assert vllm.destroyed


def test_sparse_sends_indices_and_values_of_what_changed(vllm: Group) -> None:
    end = VllmSparse("127.0.0.1", 1, "cpu")
    with pytest.raises(DirectError, match="what the engine has is not here"):
        end.prepare(taken(V0), None)
    new = WEIGHT.clone()
    new[0, 1] = 8.0
    meeting = end.prepare(taken(V1, new), taken(V0))
    assert meeting.update == {"names": ["w"], "dtype_names": ["bfloat16"], "shapes": [[2, 3]], "num_updates_list": [1]}
    end.send()
    indices, values = vllm.heard
    assert (indices.tolist(), values.tolist()) == ([1], [8.0])


def test_handles_cross_our_sockets_as_plain_values() -> None:
    arguments = (
        Tensor, torch.Size([2, 3]), (3, 1), 0, torch.storage.TypedStorage, torch.bfloat16, 0, b"handle", 512, 0, False,
        b"counter", 0, b"event", True,
    )  # fmt: skip
    fields = handle_fields(arguments)
    assert fields == [[2, 3], [3, 1], 0, "bfloat16", 0, b"handle", 512, 0, False, b"counter", 0, b"event", True]
    assert handle_arguments(fields) == arguments
    sent = base64.b64decode(pickled_handles([{"GPU-1": fields}]))
    assert pickle.loads(sent) == [{"GPU-1": arguments}]  # noqa: S301  our own


@pytest.mark.parametrize("fields", [[], [[2], [1], 0, "complex128", *range(9)], [[2], [1], 0, "bfloat16", 1]])
def test_what_is_no_handle_is_refused(fields: list) -> None:
    with pytest.raises(DirectError, match="a shared tensor has"):
        handle_arguments(fields)


def test_buckets_are_runs_of_one_dtype_up_to_the_limit() -> None:
    """Four bf16 values are 8 bytes: two such tensors fill a bucket of 16; a larger one has its own; so has a dtype."""
    sizes = [("a", "bfloat16", 4), ("b", "bfloat16", 4), ("c", "bfloat16", 1), ("d", "bfloat16", 20), ("e", "int64", 1)]
    tensors = [TensorEntry(name, dtype, (size,), "") for name, dtype, size in sizes]
    assert [[each.name for each in bucket] for bucket in buckets(tensors, 16)] == [["a", "b"], ["c"], ["d"], ["e"]]


def test_rows_of_ranks_are_whole_tensors_for_an_engine() -> None:
    manifest = encode(taken(V0), None, run="run", chunk_bytes=1024, threads=1).manifest
    rows = [TensorEntry("w", "bfloat16", (2, 3), "h", first) for first in (0, 2, 4)]
    sharded = type(manifest)(
        run="run", version=V0, base=None, tensors=(*rows, TensorEntry("b", "bfloat16", (2,), "h")), parts=(), changed=0,
        hash="", chunk_bytes=1, chunk_crcs=manifest.chunk_crcs,
    )  # fmt: skip
    assert [(each.name, each.shape) for each in whole_tensors(sharded)] == [("w", (6, 3)), ("b", (2,))]
