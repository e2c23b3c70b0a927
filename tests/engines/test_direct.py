"""Weights that an engine takes from the learner itself, by its own transfer.

SGLang does it without a GPU too, over gloo. What needs NCCL or CUDA IPC is skipped by name where there is no GPU.
"""

# vLLM is in an environment of its own, which the checker does not look into.
# pyright: reportMissingImports=false

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from r1async.config import DirectMedium
from r1async.generator.engine import KVPolicy, TakesDirect
from r1async.generator.sglang_engine import SglangEngine
from r1async.generator.vllm_adapter import VllmAdapter
from r1async.generator.vllm_direct import update_info
from r1async.inbox import Inbox
from r1async.models.loading import state_tensors
from r1async.types import PolicyVersion
from r1async.weights.direct import Direct, DirectError, Meeting
from r1async.weights.direct_ways import VllmNccl, VllmSparse
from r1async.weights.manifest import take_snapshot
from r1async.weights.publisher import Publisher
from r1async.weights.receiver import Receiver, WeightsReady
from transformers import PreTrainedModel

from tests.engines.conftest import Served
from tests.engines.test_conformance import check_logprobs, prompts

WAIT_S = 120.0


class Link:
    """A learner's publisher and a generator's receiver, for the engine under test."""

    def __init__(self, folder: Path, served: Served) -> None:
        self.served = served
        self.endpoint = f"ipc://{folder}/weights"
        self.inbox = Inbox()
        self.publisher = self.learner(1)
        self.receiver = Receiver(
            self.endpoint, self.inbox, run="run", name="generator-0", deadline_s=WAIT_S, direct=True
        )
        self.number = 0

    def learner(self, epoch: int) -> Publisher:
        self.epoch = epoch
        return Publisher(
            self.endpoint, run="run", dtype="float32", chunk_bytes=2**20, deadline_s=WAIT_S, direct="127.0.0.1"
        )

    def publish(self, model: PreTrainedModel) -> PolicyVersion:
        self.served._number += 1
        version = PolicyVersion(self.epoch, self.served._number)
        self.publisher.publish(version, state_tensors(model))
        return version

    def take(self) -> Direct | WeightsReady:
        found = self.inbox.get("weights", WAIT_S, lambda item: isinstance(item, Direct | WeightsReady))
        assert isinstance(found, Direct | WeightsReady)
        return found

    def install(self) -> Direct | WeightsReady:
        """What has come, the way it has come."""
        found, engine = self.take(), self.served.engine
        if isinstance(found, WeightsReady):
            self.receiver.installed(found, engine.install(found.version, found.tensors))
        else:
            assert isinstance(engine, TakesDirect)
            self.receiver.installed_direct(found, 0.0, engine.install_direct(found))
        return found

    def close(self) -> None:
        self.receiver.close()
        self.publisher.close()


@pytest.fixture
def link(served: Served, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Link]:
    kind, medium = (str(request.config.getoption(option)) for option in ("--engine", "--medium"))
    if kind == "torch":
        pytest.skip("the embedded engine is in the generator's process: it takes weights from there")
    if kind == "vllm" and medium == "zmq":
        pytest.skip("--medium says which of vLLM's transfers: nccl, ipc or sparse_nccl; they need GPUs (make test-gpu)")
    if medium in ("nccl", "sparse_nccl") and kind == "vllm":
        if torch.cuda.device_count() < 2:
            pytest.skip("NCCL wants a GPU for the learner and another for the engine")
        torch.cuda.set_device(1)
    made = Link(tmp_path, served)
    engine = served.engine
    assert isinstance(engine, SglangEngine | VllmAdapter)
    engine._joined = False  # the test before had another learner
    yield made
    made.close()


def check_served(served: Served, model: PreTrainedModel) -> None:
    """Requests that come now are of these weights alone, whatever prefixes are about."""
    requests = served.requests(prompts(8, 24), max_tokens=16)
    outcomes = served.run(requests)
    for request in requests:
        check_logprobs(model, request, outcomes[request.id])


@pytest.mark.parametrize("policy", ["keep", "recompute", "abort"])
def test_the_learner_sends_weights_into_an_engine_that_samples(link: Link, served: Served, other, policy: KVPolicy):
    """The first version comes by the socket, the next ones past the generator, with 8 requests in flight."""
    served.policy(policy)
    first = link.publish(served.base)
    assert isinstance(link.install(), WeightsReady)
    second = link.publish(other)
    requests = served.requests(prompts(8, 24), max_tokens=80)
    outcomes = served.run(
        requests, when=lambda so_far: max(len(each.tokens) for each in so_far.values()) >= 8, then=link.install
    ).values()
    assert all(set(outcome.versions) <= {first, second} for outcome in outcomes)
    assert any(set(outcome.versions) == {first, second} for outcome in outcomes)
    check_served(served, other)
    figures = link.receiver.stats()
    assert (figures["directs"], figures["snapshots"], figures["deltas"]) == (1, 1, 0)
    assert link.publisher.acknowledged()["generator-0"][0] == second


def test_a_learner_that_came_back_is_met_again(link: Link, served: Served, other):
    link.publish(served.base)
    link.install()
    link.publish(other)
    assert isinstance(link.install(), Direct)
    link.publisher.close()
    link.publisher = link.learner(2)
    third = link.publish(served.base)
    refused = link.take()
    assert isinstance(refused, Direct)
    assert isinstance(served.engine, TakesDirect)
    with pytest.raises(DirectError, match="no group with the engine yet"):
        served.engine.install_direct(refused)
    link.receiver.fetch_instead(refused)
    assert isinstance(link.install(), WeightsReady)
    assert served.engine.version == third
    link.publish(other)
    assert isinstance(link.install(), Direct)
    check_served(served, other)


def test_a_version_that_is_gone_is_refused_and_nothing_has_changed(link: Link, served: Served, other):
    first = link.publish(served.base)
    link.install()
    link.publish(other)
    found = link.take()
    assert isinstance(found, Direct)
    assert isinstance(served.engine, TakesDirect)
    gone = replace(found, version=PolicyVersion(1, 10**6))
    with pytest.raises(DirectError, match="is gone"):
        served.engine.install_direct(gone)
    assert served.engine.version == first
    check_served(served, served.base)


def told(medium: DirectMedium, direct: Direct, meeting: Meeting) -> dict[str, object]:
    update = update_info(medium, direct, meeting)
    assert update is not None
    return dict(update)


def test_what_we_say_to_vllm_is_what_it_reads(request: pytest.FixtureRequest):
    """The messages of each transfer, in the classes and signatures of the vLLM that is installed."""
    if request.config.getoption("--engine") != "vllm":
        pytest.skip("of vLLM: --engine vllm")
    from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferInitInfo, IPCWeightTransferUpdateInfo
    from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo, trainer_init
    from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferUpdateInfo
    from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_producer
    from vllm.distributed.weight_transfer.sparse_nccl_engine import SparseNCCLWeightTransferUpdateInfo

    before, after = ({"w": torch.tensor([0.0, value, 2.0])} for value in (1.0, 1.5))
    base = take_snapshot(PolicyVersion(1, 0), before, dtype="float32")
    snapshot = take_snapshot(PolicyVersion(1, 1), after, dtype="float32")
    direct = Direct(snapshot.version, snapshot.hash, snapshot.entries, lambda asked, deadline_s: {})

    nccl = VllmNccl("127.0.0.1", 2, "cpu").prepare(snapshot, base)
    assert nccl.join is not None
    joined = NCCLWeightTransferInitInfo(**nccl.join)
    assert (joined.world_size, joined.rank_offset, joined.packed) == (3, 1, True)
    assert NCCLWeightTransferUpdateInfo(**told("nccl", direct, nccl)).shapes == [[3]]
    inspect.signature(trainer_init).bind({})
    inspect.signature(packed_nccl_broadcast_producer).bind(iterator=[], group=None, src=0, post_iter_func=None)

    sparse = VllmSparse("127.0.0.1", 2, "cpu").prepare(snapshot, base)
    assert not NCCLWeightTransferInitInfo(**dict(sparse.join or {})).packed
    assert SparseNCCLWeightTransferUpdateInfo(**told("sparse_nccl", direct, sparse)).num_updates_list == [1]

    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    try:
        fields = [[3], [1], 0, "float32", 0, b"handle", 512, 0, False, b"counter", 0, b"event", True]
        ipc = Meeting({"packed": False}, {"handles": [{"GPU-1": fields}]})
        opened = IPCWeightTransferUpdateInfo(**told("ipc", direct, ipc))
    finally:
        del os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"]
    assert opened.ipc_handles[0]["GPU-1"][5:8] == (torch.float32, 0, b"handle")
    assert not IPCWeightTransferInitInfo(**dict(ipc.join or {})).packed
