"""The adapter against a vLLM of our own making: what it does when vLLM says something it should not, or nothing."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from r1async.engines import EngineVersionError
from r1async.generator import vllm_engine
from r1async.generator.engine import EngineError, EngineSpec, Request, WeightsError
from r1async.generator.staged_weights import Staged
from r1async.generator.vllm_adapter import VllmAdapter
from r1async.generator.vllm_calls import Delta, SamplingSettings, Span
from r1async.generator.vllm_engine import VllmEngine, parse_args
from r1async.generator.vllm_legs import seed_of
from r1async.models.loading import state_tensors
from r1async.types import PolicyVersion
from r1async.weights.direct import Direct, DirectError
from r1async.weights.manifest import TensorEntry

from tests.engine_runs import PLAIN, Outcome, engine_spec
from tests.tiny_models import save_tiny, tiny_model

WAIT_S = 30.0
V1, V2 = PolicyVersion(1, 1), PolicyVersion(1, 2)


@dataclass
class FakeVllm:
    """Samples token 7 as often as `allow` says. A test replaces what it wants to go wrong."""

    orders_outputs: bool = True
    label: str = ""
    paused: bool = False
    closed: bool = False
    calls: list[str] = field(default_factory=list)
    settings: dict[str, object] = field(
        default_factory=lambda: {
            "logprobs_mode": "processed_logprobs",
            "dtype": "float32",
            "max_model_len": 64,
            "max_num_seqs": 4,
            "enable_chunked_prefill": False,
            "enable_prefix_caching": True,
            "block_size": 16,
            "backend": "r1async",
            "device": "cpu",
        }
    )
    state: dict[str, object] = field(
        default_factory=lambda: {"pid": 1, "intact": True, "loaded": None, "staged": True, "refusal": None}
    )
    updates: list[Mapping[str, object] | None] = field(default_factory=list)
    salts: list[str] = field(default_factory=list)
    sampled: list[SamplingSettings] = field(default_factory=list)
    prompts: list[list[int]] = field(default_factory=list)
    allowed: asyncio.Semaphore | None = None
    aborted: set[str] = field(default_factory=set)
    change: Callable[[Delta], Delta] = lambda delta: delta

    async def start(self) -> None:
        self.allowed = asyncio.Semaphore(0)

    async def generate(
        self, key: str, prompt_ids: list[int], cache_salt: str, sampling: SamplingSettings
    ) -> AsyncIterator[Delta]:
        assert self.allowed is not None
        self.salts.append(cache_salt)
        self.sampled.append(sampling)
        self.prompts.append(prompt_ids)
        labels: list[str] = []
        while len(labels) < sampling.max_tokens:
            while self.paused or self.allowed.locked():
                if key in self.aborted:
                    yield self.change(Delta(token_ids=[], logprobs=[], finish="abort", spans=spans_of(labels)))
                    return
                await asyncio.sleep(0.001)
            await self.allowed.acquire()
            labels.append(self.label)
            last = len(labels) == sampling.max_tokens
            delta = Delta(
                token_ids=[7],
                logprobs=[-1.0],
                finish="length" if last else None,
                spans=spans_of(labels) if last else None,
            )
            yield self.change(delta)

    def allow(self, adapter: VllmAdapter, tokens: int) -> None:
        assert self.allowed is not None
        for _ in range(tokens):
            adapter._loop.call_soon_threadsafe(self.allowed.release)

    async def abort(self, keys: Sequence[str]) -> None:
        self.aborted |= set(keys)

    async def pause(self, mode: Literal["keep", "abort"]) -> None:
        self.calls.append(f"pause {mode}")
        self.paused = True

    async def drain(self) -> None:
        await asyncio.sleep(0)

    async def update(self, staged: Staged, label: str) -> None:
        assert staged.path.is_file()
        assert self.paused
        self.calls.append("update")
        self.label, self.state["loaded"] = label, str(staged.path)

    async def join(self, init: Mapping[str, object]) -> None:
        assert not self.paused
        self.calls.append(f"join {init['world_size']}")

    async def take(self, update: Mapping[str, object] | None, label: str) -> None:
        assert self.paused
        self.updates.append(update)
        self.calls.append("take")
        self.label = label

    async def recompute(self) -> None:
        self.calls.append("recompute")

    async def resume(self) -> None:
        self.calls.append("resume")
        self.paused = False

    async def workers(self, method: str, *args: str) -> list[dict]:
        return [self.settings if method == "r1async_settings" else dict(self.state)]

    def describe(self) -> str:
        return "a vLLM of paper"

    async def close(self) -> None:
        self.closed = True

    def kill(self) -> None:
        self.closed = True


def spans_of(labels: Sequence[str]) -> list[Span]:
    spans: list[Span] = []
    for i, label in enumerate(labels):
        if spans and spans[-1].label == label:
            spans[-1] = Span(label, spans[-1].start, i + 1)
        else:
            spans.append(Span(label, i, i + 1))
    return spans


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("vllm") / "model")


@pytest.fixture
def arrived() -> threading.Event:
    return threading.Event()


@pytest.fixture
def make(model_dir: Path, tmp_path: Path, arrived: threading.Event) -> Iterator[Callable[..., VllmAdapter]]:
    made: list[VllmAdapter] = []

    def make(vllm: FakeVllm, **settings: object) -> VllmAdapter:
        adapter = VllmAdapter(spec(model_dir, tmp_path, arrived, **settings), vllm)
        made.append(adapter)
        return adapter

    yield make
    for adapter in made:
        adapter.close()


def spec(model_dir: Path, folder: Path, arrived: threading.Event, **settings: object) -> EngineSpec:
    return engine_spec(model_dir, folder, arrived.set, WAIT_S, **settings)


def request(number: int, max_tokens: int = 6) -> Request:
    return Request(
        id=number,
        rollout=number,
        prompt_ids=np.array([5, 6, number], np.int32),
        sampling=replace(PLAIN, max_tokens=max_tokens),
    )


def collect(adapter: VllmAdapter, arrived: threading.Event, outcome: Outcome, tokens: int) -> None:
    """Until so many tokens of the one request are reported."""
    while len(outcome.tokens) < tokens:
        arrived.clear()
        reports = adapter.step()
        for progress in reports:
            outcome.take(progress)
        if not reports:
            assert arrived.wait(WAIT_S), "nothing more arrived"


def install(adapter: VllmAdapter, version: PolicyVersion) -> float:
    return adapter.install(version, state_tensors(tiny_model()))


def test_tokens_carry_the_version_at_their_arrival_and_no_salt_comes_twice(make, arrived):
    vllm = FakeVllm()
    adapter = make(vllm)
    install(adapter, V1)
    adapter.submit([request(1)])
    outcome = Outcome()
    vllm.allow(adapter, 2)
    collect(adapter, arrived, outcome, 2)
    install(adapter, V2)
    install(adapter, V2)
    vllm.allow(adapter, 4)
    collect(adapter, arrived, outcome, 6)
    assert outcome.versions == [V1, V1, V2, V2, V2, V2]
    assert outcome.finish == "length"
    adapter.submit([request(2)])
    vllm.allow(adapter, 6)
    collect(adapter, arrived, Outcome(), 6)
    assert len(set(vllm.salts)) == 2
    assert not vllm.paused


def test_where_outputs_are_not_ordered_tokens_wait_for_the_spans(make, arrived):
    vllm = FakeVllm(orders_outputs=False)
    adapter = make(vllm)
    install(adapter, V1)
    adapter.submit([request(1)])
    outcome = Outcome()
    vllm.allow(adapter, 2)
    collect(adapter, arrived, outcome, 2)
    before = outcome.reports
    install(adapter, V2)
    vllm.allow(adapter, 4)
    collect(adapter, arrived, outcome, 6)
    assert outcome.reports == before + 1
    assert outcome.versions == [V1, V1, V2, V2, V2, V2]


def test_abort_goes_on_with_the_tokens_and_the_budget_there_are(make, arrived):
    vllm = FakeVllm()
    adapter = make(vllm)
    adapter.kv_policy = "abort"
    install(adapter, V1)
    adapter.submit([request(1)])
    outcome = Outcome()
    vllm.allow(adapter, 2)
    collect(adapter, arrived, outcome, 2)
    install(adapter, V2)
    vllm.allow(adapter, 4)
    collect(adapter, arrived, outcome, 6)
    assert outcome.versions == [V1, V1, V2, V2, V2, V2]
    assert vllm.prompts == [[5, 6, 1], [5, 6, 1, 7, 7]]
    assert [settings.max_tokens for settings in vllm.sampled] == [6, 4]
    assert vllm.sampled[0].seed != vllm.sampled[1].seed
    assert vllm.calls == ["pause abort", "update", "resume"] * 2


def test_the_policy_may_change_between_installs(make):
    vllm = FakeVllm()
    adapter = make(vllm)
    install(adapter, V1)
    adapter.kv_policy = "recompute"
    install(adapter, V2)
    assert vllm.calls == ["pause keep", "update", "resume", "pause keep", "update", "recompute", "resume"]


def relabelled(delta: Delta) -> Delta:
    return delta if delta.spans is None else replace(delta, spans=[Span("9.1.x", 0, len(delta.spans) * 6)])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (relabelled, "taken for version 1@1, the engine says 9@1"),
        (lambda d: replace(d, spans=None), "do not fit its 6 tokens"),
        (lambda d: replace(d, spans=d.spans and [Span("default", 0, 6)]), "do not fit its 6 tokens"),
        (lambda d: replace(d, spans=d.spans and [Span("1.1.x", 0, 5)]), "do not fit its 6 tokens"),
        (lambda d: replace(d, logprobs=[math.nan]), "not finite"),
        (lambda d: replace(d, logprobs=[-9999.0]), "not finite"),
        (lambda d: replace(d, finish="stop", spans=[Span("1.1.x", 0, 1)]), "ended it with 'stop' after token 7"),
        (lambda d: replace(d, finish="length", spans=[Span("1.1.x", 0, 1)]), "5 tokens before its limit"),
        (lambda d: replace(d, finish="abort", spans=[Span("1.1.x", 0, 1)]), "ended it with 'abort'"),
    ],
    ids=["other version", "no spans", "no label", "short", "nan", "clamped", "stop", "length", "abort"],
)
def test_what_cannot_be_is_an_error(make, arrived, change, says):
    vllm = FakeVllm(change=change)
    adapter = make(vllm)
    install(adapter, V1)
    adapter.submit([request(1)])
    vllm.allow(adapter, 6)
    with pytest.raises(EngineError, match=says):
        collect(adapter, arrived, Outcome(), 100)


def test_a_failed_load_is_refused_and_the_requests_go_on(make, arrived):
    vllm = FakeVllm()
    adapter = make(vllm)
    install(adapter, V1)
    adapter.kv_policy = "abort"
    adapter.submit([request(1)])
    vllm.update = failing("no room")  # pyright: ignore[reportAttributeAccessIssue]  (one instance's)
    with pytest.raises(WeightsError, match="2@1 refused, 1@1 still served: no room"):
        install(adapter, V2)
    assert vllm.calls[-1] == "resume"
    vllm.allow(adapter, 6)
    outcome = Outcome()
    collect(adapter, arrived, outcome, 6)
    assert set(outcome.versions) == {V1}


def test_a_model_that_is_half_loaded_answers_nothing_more(make, tmp_path):
    vllm = FakeVllm()
    adapter = make(vllm)
    install(adapter, V1)
    vllm.update = failing("no room")  # pyright: ignore[reportAttributeAccessIssue]
    vllm.state["intact"] = False
    with pytest.raises(EngineError, match="failed in the middle of loading version 2@1") as caught:
        install(adapter, V2)
    assert not isinstance(caught.value, WeightsError)
    assert vllm.paused
    with pytest.raises(EngineError, match="answers nothing more"):
        adapter.step()
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_refusal_by_a_worker_comes_before_any_pause(make):
    vllm = FakeVllm()
    adapter = make(vllm)
    vllm.state["refusal"] = "tensor 'x' was changed on its way"
    with pytest.raises(WeightsError, match="'x' was changed"):
        install(adapter, V1)
    assert vllm.calls == []
    assert adapter.version is None


class Sends:
    """A learner that sends versions directly, as far as the adapter sees it."""

    def __init__(self, update: Mapping[str, object] | None = None) -> None:
        self.asked: list[Mapping[str, object]] = []
        self.update = update or {}

    def __call__(self, asked: Mapping[str, object], deadline_s: float) -> Mapping[str, object]:
        self.asked.append(asked)
        return {"join": {"world_size": 2} if asked["fresh"] else None, "update": self.update}

    def version(self, version: PolicyVersion, **shapes: tuple[int, ...]) -> Direct:
        wanted = {name: tuple(tensor.shape) for name, tensor in state_tensors(tiny_model()).items()}
        tensors = [TensorEntry(name, "float32", shape, "h") for name, shape in (wanted | shapes).items()]
        return Direct(version, "hash", tuple(tensors), self)


def taking(make, medium: str) -> tuple[FakeVllm, VllmAdapter]:
    vllm = FakeVllm()
    vllm.settings |= {"backend": medium, "device": "cuda"}
    adapter = make(vllm, direct=medium)
    install(adapter, V1)
    vllm.calls.clear()
    return vllm, adapter


def test_weights_that_the_learner_sends_change_in_flight(make, arrived):
    """The group is joined once, before any pause; tokens sampled after it carry the version."""
    vllm, adapter = taking(make, "nccl")
    learner = Sends()
    adapter.submit([request(1)])
    vllm.allow(adapter, 3)
    outcome = Outcome()
    collect(adapter, arrived, outcome, 3)
    assert adapter.install_direct(learner.version(V2)) >= 0
    vllm.allow(adapter, 3)
    collect(adapter, arrived, outcome, 6)
    assert outcome.versions == [V1] * 3 + [V2] * 3
    assert vllm.calls == ["join 2", "pause keep", "take", "resume"]
    adapter.install_direct(learner.version(PolicyVersion(1, 3)))
    assert [asked["fresh"] for asked in learner.asked] == [True, False]
    assert [asked["base"] for asked in learner.asked] == [[1, 1], [1, 2]]
    assert (learner.asked[0]["way"], learner.asked[0]["workers"]) == ("vllm-nccl", 1)
    update = vllm.updates[0]
    assert update is not None
    assert set(update) == {"names", "dtype_names", "shapes"}


def test_a_version_without_changes_is_only_labelled(make):
    vllm, adapter = taking(make, "sparse_nccl")
    adapter.install_direct(Sends({"names": []}).version(V2))
    assert (vllm.updates, adapter.version) == ([None], V2)


def test_what_the_learner_does_not_send_changes_nothing(make):
    vllm, adapter = taking(make, "nccl")

    def refuses(asked: Mapping[str, object], deadline_s: float) -> Mapping[str, object]:
        return {"error": "version 2@1 is gone"}

    with pytest.raises(DirectError, match="is gone"):
        adapter.install_direct(replace(Sends().version(V2), send=refuses))
    vllm.join = failing("no such host")  # pyright: ignore[reportAttributeAccessIssue]  (one instance's)
    with pytest.raises(DirectError, match="no such host"):
        adapter.install_direct(Sends().version(V2))
    with pytest.raises(WeightsError, match=r"has shape \(1, 2\), wanted"):
        adapter.install_direct(Sends().version(V2, **{"model.norm.weight": (1, 2)}))
    assert (vllm.calls, adapter.version) == ([], V1)
    install(adapter, V2)  # by the socket
    assert adapter.version == V2


def test_weights_that_break_off_in_the_middle_end_the_engine(make):
    vllm, adapter = taking(make, "nccl")
    vllm.take = failing("NCCL error")  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(EngineError, match="failed in the middle of loading version 2@1"):
        adapter.install_direct(Sends().version(V2))
    assert vllm.paused
    with pytest.raises(EngineError, match="answers nothing more"):
        adapter.step()


def test_a_transfer_between_gpus_is_refused_where_the_engine_has_none(make):
    vllm = FakeVllm()
    vllm.settings["backend"] = "nccl"
    with pytest.raises(EngineError, match=r"has device=cpu, want cuda \(weights.medium=nccl\)"):
        make(vllm, direct="nccl")


def test_silence_is_an_error_with_a_name(make, arrived):
    vllm = FakeVllm()
    adapter = make(vllm, stall_deadline_s=0.2)
    install(adapter, V1)
    adapter.submit([request(1), request(2)])
    with pytest.raises(EngineError, match=r"no token of 2 requests .* for 0\.2 s \(generator.stall_deadline_s\)"):
        collect(adapter, arrived, Outcome(), 1)


def test_a_call_that_does_not_return_is_an_error_with_a_name(make):
    vllm = FakeVllm()
    adapter = make(vllm, stall_deadline_s=0.2)

    async def forever(mode: str) -> None:
        await asyncio.Event().wait()

    vllm.pause = forever  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(EngineError, match=r"did not pause within 0\.2 s"):
        install(adapter, V1)


def test_a_start_that_takes_too_long_is_an_error_and_ends_what_began(make):
    vllm = FakeVllm()

    async def forever() -> None:
        await asyncio.Event().wait()

    vllm.start = forever  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(EngineError, match=r"did not start within 0\.2 s \(generator.start_deadline_s\)"):
        make(vllm, start_deadline_s=0.2)
    assert vllm.closed


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("logprobs_mode", "raw_logprobs", "logprobs_mode=raw_logprobs, want processed_logprobs"),
        ("max_model_len", 32, "max_model_len=32, want 64 or more"),
        ("max_num_seqs", 2, "max_num_seqs=2, want 4 or more"),
        ("dtype", "bfloat16", "dtype=bfloat16, want float32"),
        ("backend", "nccl", "backend=nccl, want r1async"),
    ],
)
def test_a_server_with_other_settings_is_refused(make, setting, value, says):
    vllm = FakeVllm()
    vllm.settings[setting] = value
    with pytest.raises(EngineError, match=says):
        make(vllm)


def test_an_id_that_comes_again_gets_none_of_the_tokens_of_its_first_time(make, arrived):
    vllm = FakeVllm()
    adapter = make(vllm)
    install(adapter, V1)
    adapter.submit([request(1, max_tokens=9)])
    vllm.allow(adapter, 2)
    collect(adapter, arrived, Outcome(), 2)
    adapter.abort([1, 99])
    assert adapter.free == adapter.capacity
    adapter.submit([request(1, max_tokens=3)])
    outcome = Outcome()
    vllm.allow(adapter, 12)
    collect(adapter, arrived, outcome, 3)
    assert outcome.finish == "length"
    assert not adapter.busy


def test_a_request_that_ends_while_it_is_aborted_is_no_error(make, arrived):
    """Its last tokens reach the event loop after the caller's word, and before the loop has heard it."""
    vllm = FakeVllm()
    adapter = make(vllm)
    install(adapter, V1)

    def change(delta: Delta) -> Delta:
        if delta.finish:
            caller = threading.Thread(target=adapter.abort, args=([1],))
            caller.start()
            caller.join(WAIT_S)
        return delta

    vllm.change = change
    adapter.submit([request(1, max_tokens=2)])
    vllm.allow(adapter, 1)
    collect(adapter, arrived, Outcome(), 1)
    vllm.allow(adapter, 1)
    while adapter._legs:
        time.sleep(0.001)
    vllm.change = lambda delta: delta
    outcome = Outcome()
    adapter.submit([request(2, max_tokens=2)])
    vllm.allow(adapter, 2)
    collect(adapter, arrived, outcome, 2)
    assert outcome.finish == "length"


@pytest.mark.parametrize("version", ["0.31.2", "0.33.0"])
def test_a_vllm_of_another_version_is_refused_before_it_is_imported(model_dir, tmp_path, monkeypatch, version):
    monkeypatch.setattr(vllm_engine, "vllm_version", lambda: version)
    with pytest.raises(EngineVersionError, match=rf"vllm {version} is not supported: want vllm<0.33,>=0.32"):
        VllmEngine(spec(model_dir, tmp_path, threading.Event()), ())


def test_arguments_are_read_as_yaml_and_ours_are_refused():
    assert parse_args(["gpu_memory_utilization=0.8", "--enforce-eager=true"]) == {
        "gpu_memory_utilization": 0.8,
        "enforce_eager": True,
    }
    with pytest.raises(ValueError, match=r"name=value each, got 'nonsense'"):
        parse_args(["nonsense"])
    with pytest.raises(ValueError, match=r"max_num_seqs is not for here: generator.slots decides it"):
        parse_args(["max_num_seqs=4"])


def test_seeds_differ_by_run_rollout_and_place():
    seeds = {seed_of(seed, rollout, place) for seed in range(3) for rollout in range(3) for place in range(3)}
    assert len(seeds) == 27
    assert all(0 <= seed < 2**62 for seed in seeds)


def failing(reason: str) -> Callable[..., object]:
    async def fail(*_: object) -> None:
        raise EngineError(reason)

    return fail
