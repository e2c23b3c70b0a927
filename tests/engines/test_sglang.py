"""What is SGLang's own, against the real server: `make test-sglang`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from r1async.config import load_config
from r1async.engines import python_for
from r1async.generator.engine import EngineError, EngineSpec, KVPolicy, Request
from r1async.generator.sglang_engine import SglangEngine
from r1async.models.loading import state_tensors
from r1async.types import PolicyVersion
from transformers import DynamicCache, PreTrainedModel

from tests.engine_runs import EOS, Outcome, chosen, full_logprobs
from tests.engines.conftest import STEP_S, Served
from tests.engines.test_conformance import LONG, TOLERANCE, check_logprobs, prompts

INSTALLS = 6
"""Within one rollout."""


@pytest.fixture(autouse=True)
def _only_sglang(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--engine") != "sglang":
        pytest.skip("of SGLang: --engine sglang")


@pytest.fixture
def engine(served: Served) -> SglangEngine:
    assert isinstance(served.engine, SglangEngine)
    return served.engine


@contextmanager
def another(engine: SglangEngine, scratch: Path, **changes: object) -> Iterator[Served]:
    """A second engine on the first one's server, which for it is one that somebody else started."""
    arrived = threading.Event()
    spec: EngineSpec = replace(engine._spec, name="second", scratch=scratch, notify=arrived.set, **changes)
    second = SglangEngine(spec, url=engine._http.url, python=None, args=())
    try:
        yield Served(second, engine_model(engine), arrived)
    finally:
        second.close()


def engine_model(engine: SglangEngine) -> PreTrainedModel:
    from r1async.models.loading import load_model

    return load_model(engine._spec.model_path).eval()


def post(engine: SglangEngine, path: str, body: Mapping[str, object]) -> tuple[int, object]:
    """As somebody else would."""
    return engine._http.call(engine._http.post(path, body, 2 * STEP_S), path, 2 * STEP_S)


def step_until(served: Served, outcomes: dict[int, Outcome], condition: Callable[[], bool]) -> None:
    while not condition():
        for progress in served.step():
            outcomes.setdefault(progress.id, Outcome()).take(progress)


def kept_logprobs(models: Mapping[PolicyVersion, PreTrainedModel], request: Request, outcome: Outcome) -> torch.Tensor:
    """Each token under the weights of its version, on the KV that the steps before it have left."""
    cache, said = DynamicCache(), []
    context = torch.tensor([request.prompt_ids.tolist()])
    for token, version in zip(outcome.tokens, outcome.versions, strict=True):
        with torch.no_grad():
            logits = models[version](context, past_key_values=cache, use_cache=True).logits[0, -1]
        said.append(torch.log_softmax(logits, -1)[token])
        context = torch.tensor([[token]])
    return torch.stack(said)


def recomputed_logprobs(
    models: Mapping[PolicyVersion, PreTrainedModel], request: Request, outcome: Outcome
) -> torch.Tensor:
    """Each token under the weights of its version alone."""
    by_version = {
        version: chosen(full_logprobs(models[version], request.prompt_ids.tolist(), outcome.tokens), outcome.tokens)
        for version in set(outcome.versions)
    }
    return torch.stack([by_version[version][i] for i, version in enumerate(outcome.versions)])


@pytest.mark.parametrize(
    ("policy", "expected", "other_one"),
    [
        ("keep", kept_logprobs, recomputed_logprobs),
        ("recompute", recomputed_logprobs, kept_logprobs),
        ("abort", recomputed_logprobs, kept_logprobs),
    ],
)
def test_every_token_has_its_version_through_many_installs(
    served: Served, engine: SglangEngine, other, capsys, policy: KVPolicy, expected, other_one
):
    """16 requests in flight all the time, an install whenever the oldest of them has 12 tokens more."""
    served.policy(policy)
    engine.doubt_tokens = 8
    cuts = engine.cuts
    assert served.engine.version is not None
    models, order = {served.engine.version: served.base}, [served.engine.version]
    pauses: list[float] = []
    requests: dict[int, Request] = {}
    outcomes: dict[int, Outcome] = {}
    seed, since = 0, 0
    while len(order) <= INSTALLS or engine.busy:
        if len(order) <= INSTALLS and engine.free:
            seed += 1
            fresh = served.requests(prompts(engine.free, seed=seed), max_tokens=150)
            engine.submit(fresh)
            requests |= {request.id: request for request in fresh}
            outcomes |= {request.id: Outcome() for request in fresh}
        for progress in served.step():
            outcomes[progress.id].take(progress)
            since += len(progress.token_ids)
        if len(order) <= INSTALLS and since >= 16 * 12:
            since = 0
            model = (other, served.base)[len(order) % 2 == 0]
            number = len(models) + 1000 + {"keep": 0, "recompute": 100, "abort": 200}[policy]
            version = PolicyVersion(1, number)
            pauses.append(engine.install(version, state_tensors(model)))
            models[version] = model
            order.append(version)
    assert engine.cuts > cuts or policy == "abort", "nothing was in doubt for long"
    errors, foreign, spanning = [], [], 0
    for number, outcome in outcomes.items():
        changes = [v for i, v in enumerate(outcome.versions) if i == 0 or outcome.versions[i - 1] != v]
        places = [order.index(version) for version in changes]
        assert places == sorted(set(places)), "a version came back"
        spanning += len(changes) > 1
        told = torch.tensor(outcome.logprobs)
        errors.append((told - expected(models, requests[number], outcome)).abs())
        if len(changes) > 1:
            first = outcome.versions.count(changes[0])
            foreign.append((told - other_one(models, requests[number], outcome)).abs()[first:])
    error = torch.cat(errors)
    assert spanning >= 16
    assert max(len(set(outcome.versions)) for outcome in outcomes.values()) >= 3
    assert error.max() < TOLERANCE
    assert torch.cat(foreign).mean() > 100 * TOLERANCE
    with capsys.disabled():
        print(
            f"\nsglang {policy}: {len(outcomes)} rollouts, {spanning} of several versions, {len(error)} tokens, "
            f"{engine.cuts - cuts} cuts, "
            f"mismatch mean {error.mean():.1e} max {error.max():.1e}; pauses of {INSTALLS} installs, 16 in flight: "
            f"median {1e3 * float(np.median(pauses)):.1f} ms, max {1e3 * max(pauses):.1f} ms"
        )


def test_a_request_posted_before_an_install_and_begun_after_gets_no_prefix_from_before(
    served: Served, engine: SglangEngine, other
):
    """Where KV is kept, nothing is flushed: what the first request cached is still there for the third."""
    cached, busy, late = (
        *served.requests(prompts(1, LONG, seed=21), max_tokens=4),
        *served.requests(prompts(1, seed=22), max_tokens=150, temperature=0.05),
        *served.requests(prompts(1, LONG, seed=21), max_tokens=24),
    )
    outcomes: dict[int, Outcome] = {}
    engine.submit([busy])
    step_until(served, outcomes, lambda: busy.id in outcomes)
    engine.submit([cached])
    step_until(served, outcomes, lambda: cached.id in outcomes and outcomes[cached.id].finish is not None)
    assert outcomes[busy.id].finish is None, "it has to keep its KV through the install"
    before = engine.stale_prefixes
    assert post(engine, "/pause_generation", {"mode": "in_place"})[0] == 200
    engine.submit([late])
    version = served.install(other)
    step_until(served, outcomes, lambda: late.id in outcomes and outcomes[late.id].finish is not None)
    assert engine.stale_prefixes == before + 1
    assert set(outcomes[late.id].versions) == {version}
    check_logprobs(other, late, outcomes[late.id])


def test_a_group_shares_its_prompt(served: Served, engine: SglangEngine):
    first, *rest = served.requests(prompts(1, LONG, seed=23) * 8, max_tokens=4)
    served.run([first])
    seen: list[int] = []
    take = engine._take

    def spy(ride, chunk):
        seen.append(chunk.cached)
        return take(ride, chunk)

    engine._take = spy
    try:
        served.run(rest)
    finally:
        engine._take = take
    assert min(seen) >= LONG - engine.block_tokens


@pytest.mark.parametrize(("top_k", "top_p"), [(5, 1.0), (0, 0.6), (8, 0.8)])
def test_logprobs_are_those_after_top_k_and_top_p(served: Served, top_k, top_p):
    requests = served.requests(prompts(8, seed=24), max_tokens=32, top_k=top_k, top_p=top_p, temperature=0.8)
    outcomes = served.run(requests)
    for request in requests:
        outcome = outcomes[request.id]
        probs = torch.softmax(full_logprobs(served.base, request.prompt_ids.tolist(), outcome.tokens) / 0.8, -1)
        ordered, place = probs.sort(-1, descending=True)
        kept = ordered.cumsum(-1) - ordered <= top_p
        if top_k:
            # Of the k likeliest, top-p takes its share of what the whole distribution gave them, or of theirs alone.
            kept[:, top_k:] = False
        mask = torch.zeros_like(kept).scatter(-1, place, kept)
        expected = chosen((probs * mask / (probs * mask).sum(-1, keepdim=True)).log(), outcome.tokens)
        np.testing.assert_allclose(outcome.logprobs, expected.numpy(), rtol=0, atol=TOLERANCE)


def test_a_pin_to_the_version_served_is_an_ordinary_request(served: Served, engine: SglangEngine):
    assert engine.pinned_capacity == engine.pinned_free == 0
    request = replace(served.requests(prompts(1), max_tokens=8)[0], pin=engine.version)
    outcome = served.run([request])[request.id]
    assert set(outcome.versions) == {engine.version}
    with pytest.raises(ValueError, match="one set of weights"):
        engine.install_pinned(PolicyVersion(9, 9), None)


def test_a_server_of_somebody_else_serves(served: Served, engine: SglangEngine, other, tmp_path):
    with another(engine, tmp_path) as second:
        version = second.install(other)
        requests = second.requests(prompts(16, seed=25), max_tokens=24)
        for request_id, outcome in second.run(requests).items():
            assert set(outcome.versions) == {version}
            check_logprobs(other, requests[request_id - 1], outcome)
    # The first engine's next install is told from the second's, whose label it does not know.


def test_weights_that_somebody_else_installs_are_an_error(served: Served, engine: SglangEngine, other, tmp_path):
    with another(engine, tmp_path) as second:
        second.install(served.base)
        request = second.requests(prompts(1, seed=26), max_tokens=150, temperature=0.05)[0]
        second.engine.submit([request])
        outcomes: dict[int, Outcome] = {}
        step_until(second, outcomes, lambda: request.id in outcomes)
        engine.install(PolicyVersion(77, 1), state_tensors(other))
        with pytest.raises(EngineError, match=r"labelled '1@77', which we did not install"):
            step_until(second, outcomes, lambda: outcomes[request.id].finish is not None)
        assert second.engine.busy


def test_requests_in_the_servers_queue_are_aborted(served: Served, engine: SglangEngine, tmp_path):
    """32 requests on a server that runs 16: the second half waits, and is ended there."""
    with another(engine, tmp_path) as second:
        second.install(served.base)
        engine.install(PolicyVersion(78, 1), state_tensors(served.base))
        running = served.requests(prompts(16, seed=27), max_tokens=150, temperature=0.05)
        engine.submit(running)
        outcomes: dict[int, Outcome] = {}
        step_until(served, outcomes, lambda: len(outcomes) == 16)
        queued = second.requests(prompts(16, seed=28), max_tokens=150)
        second.engine.submit(queued)
        second.engine.abort([request.id for request in queued])
        assert not second.engine.busy
        step_until(served, outcomes, lambda: all(outcome.finish for outcome in outcomes.values()))
        assert second.engine.step() == []
        status, answer = post(engine, f"/flush_cache?timeout={STEP_S:g}", {})
        assert status == 200, f"something still runs: {answer}"


def test_an_abort_that_the_server_drops_leaves_the_engine_well(served: Served, engine: SglangEngine):
    """It forgets a call to end a request that its pause holds at the door."""
    request = served.requests(prompts(1, seed=29), max_tokens=150)[0]
    assert post(engine, "/pause_generation", {"mode": "in_place"})[0] == 200
    engine.submit([request])
    engine.abort([request.id])
    assert post(engine, "/continue_generation", {"torch_empty_cache": False})[0] == 200
    assert engine.free == engine.capacity
    outcomes = served.run(served.requests(prompts(16, seed=30), max_tokens=8))
    assert request.id not in outcomes
    assert engine.step() == []


def test_a_stop_of_the_servers_own_does_not_end_a_completion(served: Served, engine: SglangEngine, tmp_path):
    """The checkpoint's end-of-sequence token ends requests on the server, whatever we ask for."""
    with another(engine, tmp_path, stop_ids=(5,)) as second:
        second.install(served.base)
        requests = second.requests(prompts(16, seed=31), max_tokens=100)
        outcomes = second.run(requests)
        assert any(EOS in outcome.tokens[:-1] for outcome in outcomes.values())
        for request in requests:
            outcome = outcomes[request.id]
            assert outcome.finish == ("stop" if outcome.tokens[-1] == 5 else "length")
            assert 5 not in outcome.tokens[:-1]
            assert outcome.finish == "stop" or len(outcome.tokens) == 100
            check_logprobs(served.base, request, outcome)


def test_a_server_with_less_room_than_a_request_is_refused(engine: SglangEngine, tmp_path):
    longest = engine._facts.context
    with (
        pytest.raises(EngineError, match=rf"room for {longest} tokens of a request, {longest + 8} are needed"),
        another(engine, tmp_path, max_len=longest),
    ):
        pass


def test_the_server_refuses_an_id_in_use(served: Served, engine: SglangEngine):
    """In a stream it says so in an event, and the rid that is in use goes on."""
    request = served.requests(prompts(1, seed=32), max_tokens=150, temperature=0.05)[0]
    engine.submit([request])
    outcomes: dict[int, Outcome] = {}
    step_until(served, outcomes, lambda: request.id in outcomes)
    body = engine._body(engine._rides[request.id])

    async def ask() -> bytes:
        return b"".join([event async for event in engine._http.stream(body)])

    assert b"Duplicate request ID" in engine._http.call(ask(), "asking twice", STEP_S)
    status, answer = post(engine, "/generate", {**body, "stream": False})
    assert status == 400
    assert "Duplicate request ID" in str(answer)
    status, answer = post(engine, "/generate", {"input_ids": [5], "sampling_params": {"top_p": 2.0}})
    assert status == 400
    assert "top_p" in str(answer)
    step_until(served, outcomes, lambda: outcomes[request.id].finish is not None)


PARENT = """
    import sys, threading
    from pathlib import Path
    from r1async.generator.engine import EngineSpec
    from r1async.generator.sglang_engine import SglangEngine

    spec = EngineSpec(
        name="orphan", model_path=Path(sys.argv[1]), dtype="float32", seed=0, slots=4, max_len=64, stop_ids=(2,),
        vocabulary=34, chunk_tokens=1, kv_policy="keep", threads=1, scratch=Path(sys.argv[2]),
        log=Path(sys.argv[2], "log"), start_deadline_s=240.0, stall_deadline_s=60.0, notify=lambda: None,
    )
    engine = SglangEngine(spec, url="", python=sys.argv[3], args=())
    print(engine._server.pid, flush=True)
    sys.stdin.read()
"""


def test_a_server_ends_with_a_parent_that_is_killed(model_dir, tmp_path):
    python = python_for(load_config(None, [f"model.path={model_dir}", "data.task=chain-mod"]), "sglang")
    program = [sys.executable, "-c", textwrap.dedent(PARENT), str(model_dir), str(tmp_path), python]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        server = psutil.Process(int(parent.stdout.readline()))
        tree = [server, *server.children(recursive=True)]
        assert len(tree) >= 3, "server, scheduler, detokenizer"
        os.kill(parent.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(tree, timeout=STEP_S)
        assert not alive


def test_a_server_killed_in_flight_is_an_error_with_its_last_words(served: Served, engine: SglangEngine, tmp_path):
    arrived = threading.Event()
    spec = replace(
        engine._spec, name="victim", slots=4, scratch=tmp_path, log=tmp_path / "victim.log", notify=arrived.set
    )
    python = python_for(load_config(None, ["model.path=none", "data.task=chain-mod"]), "sglang")
    victim = SglangEngine(spec, url="", python=python, args=())
    try:
        seconds = Served(victim, served.base, arrived)
        seconds.install(served.base)
        request = seconds.requests(prompts(1), max_tokens=150, temperature=0.05)[0]
        victim.submit([request])
        outcomes: dict[int, Outcome] = {}
        step_until(seconds, outcomes, lambda: request.id in outcomes)
        assert victim._server is not None
        os.kill(victim._server.pid, signal.SIGKILL)
        with pytest.raises(EngineError, match=r"killed by signal 9 \(SIGKILL\); the end of .*victim.log:\n") as caught:
            step_until(seconds, outcomes, lambda: outcomes[request.id].finish is not None)
        assert "POST /generate" in str(caught.value)
        assert victim.busy, "a failure is there to be collected"
        with pytest.raises(EngineError):
            victim.install(PolicyVersion(1, 99), state_tensors(served.base))
    finally:
        victim.close()
