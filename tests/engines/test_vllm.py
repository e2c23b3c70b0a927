"""What is vLLM's own, against the real engine: `make test-vllm`. Also over HTTP (tests/vllm_server.py)."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from r1async.config import load_config
from r1async.generator import staged_weights, vllm_adapter
from r1async.generator.engine import EngineError, WeightsError
from r1async.generator.engines import make_engine
from r1async.generator.staged_weights import Staged
from r1async.generator.vllm_adapter import VllmAdapter
from r1async.generator.vllm_engine import VllmEngine
from r1async.models.loading import state_tensors
from r1async.types import PolicyVersion

from tests.engine_runs import EOS, Outcome, chosen, full_logprobs
from tests.engines.conftest import Served
from tests.engines.test_conformance import LONG, NORM, TOLERANCE, check_logprobs, prompts

START_S = 120.0
"""Seconds after which a vLLM that starts has certainly started a process, on a busy machine."""
DEATH_S = 30.0
"""Seconds that processes which were told to end may take on a busy machine."""


@pytest.fixture(autouse=True)
def _only_with_vllm(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--engine") != "vllm":
        pytest.skip("needs --engine vllm")


@pytest.fixture
def adapter(served: Served) -> VllmAdapter:
    assert isinstance(served.engine, VllmAdapter)
    return served.engine


@pytest.fixture
def local(adapter: VllmAdapter) -> VllmAdapter:
    if not isinstance(adapter, VllmEngine):
        pytest.skip("over HTTP there is no such call")
    return adapter


def errors_under(served: Served, model, seed: int) -> list[float]:
    """|logprob - recomputed| of every token of 8 completions."""
    requests = served.requests(prompts(8, seed=seed), max_tokens=24)
    errors = []
    for request, outcome in zip(requests, served.run(requests).values(), strict=True):
        expected = chosen(full_logprobs(model, request.prompt_ids.tolist(), outcome.tokens), outcome.tokens)
        errors += np.abs(np.array(outcome.logprobs) - expected.numpy()).tolist()
    return errors


def set_repack(adapter: VllmAdapter, repack: bool) -> None:
    from vllm.distributed.weight_transfer.base import (  # pyright: ignore[reportMissingImports]  (in .venv-vllm)
        WeightTransferInitRequest,
    )

    engine = adapter._vllm.engine  # pyright: ignore[reportAttributeAccessIssue]  (LocalVllm's)
    request = WeightTransferInitRequest(init_info={"repack_tied_head": repack})
    adapter._call("take its settings", engine.init_weight_transfer_engine(request), 60)


@pytest.fixture
def without_repacking(local: VllmAdapter) -> Iterator[None]:
    set_repack(local, False)
    yield
    set_repack(local, True)


@pytest.mark.usefixtures("without_repacking")
def test_without_our_fix_vllm_keeps_the_old_head(served: Served, other):
    """The bug is there, and the check that finds it finds it: `test_an_install_between_requests...` is with the fix."""
    served.install(other)
    errors = errors_under(served, other, seed=11)
    assert statistics.mean(errors) > 100 * TOLERANCE


def test_with_our_fix_the_head_is_the_new_one(served: Served, other):
    served.install(other)
    assert max(errors_under(served, other, seed=11)) < TOLERANCE


def all_begun(seen: Mapping[int, Outcome]) -> bool:
    return all(len(outcome.tokens) >= 3 or outcome.finish for outcome in seen.values())


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1  # of the last tensor in the file
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "says"),
    [(flip_a_bit, "was changed on its way"), (lambda path: path.unlink(), "cannot be read")],
    ids=["flipped bit", "no file"],
)
def test_weights_damaged_on_their_way_are_refused(served: Served, adapter, other, monkeypatch, damage, says):

    def damaged(path: Path, tensors) -> Staged:
        staged = staged_weights.stage(path, tensors)
        damage(path)
        return staged

    monkeypatch.setattr(vllm_adapter, "stage", damaged)
    version, running = adapter.version, served.requests(prompts(2, seed=12), max_tokens=150)
    refused: list[str] = []

    def install() -> None:
        with pytest.raises(WeightsError, match=says) as caught:
            served.install(other)
        refused.append(str(caught.value))

    outcomes = served.run(running, when=all_begun, then=install)
    assert damage is not flip_a_bit or NORM in refused[0], "the last tensor of the file, so the one that was hit"
    assert adapter.version == version
    assert list(adapter._spec.scratch.iterdir()) == []
    for request in running:
        check_logprobs(served.base, request, outcomes[request.id])
        assert set(outcomes[request.id].versions) == {version}


def test_a_failed_update_leaves_the_old_weights_served_and_not_paused(served: Served, adapter, other, monkeypatch):
    """It fails after the pause has begun, in the worker: what it is told to load is not what it has verified."""
    update = adapter._vllm.update

    async def another(staged: Staged, label: str) -> None:
        await update(replace(staged, hashes=dict.fromkeys(staged.hashes, "0" * 32)), label)

    monkeypatch.setattr(adapter._vllm, "update", another)
    version = adapter.version
    for policy in ("keep", "recompute", "abort"):
        served.policy(policy)
        running = served.requests(prompts(4, seed=13), max_tokens=100)

        def install() -> None:
            with pytest.raises(WeightsError, match="still served"):
                served.install(other)

        outcomes = served.run(running, when=all_begun, then=install)
        for request in running:
            check_logprobs(served.base, request, outcomes[request.id])
            assert set(outcomes[request.id].versions) == {version}
    monkeypatch.undo()
    served.install(other)
    assert max(errors_under(served, other, seed=14)) < TOLERANCE


def test_a_group_is_prefilled_once(served: Served, local: VllmAdapter):
    """Whole blocks of its prompt are: 2 of 128 tokens in a prompt of 300."""
    assert local.block_tokens == 128
    prompt_tokens, cached_tokens = local.prompt_tokens, local.cached_tokens
    served.run(served.requests(prompts(1, LONG, seed=15) * 8, max_tokens=4))
    assert local.prompt_tokens - prompt_tokens == 8 * LONG
    assert local.cached_tokens - cached_tokens == 7 * 256


def test_one_member_of_a_group_is_aborted(served: Served):
    engine = served.engine
    group = served.requests(prompts(1, LONG, seed=16) * 4, max_tokens=150)
    engine.submit(group)
    seen = {request.id: Outcome() for request in group}
    gone, *stay = seen
    while not all(outcome.tokens for outcome in seen.values()):
        for progress in served.step():
            seen[progress.id].take(progress)
    engine.abort([gone])
    tokens = len(seen[gone].tokens)
    while any(seen[i].finish is None for i in stay):
        for progress in served.step():
            seen[progress.id].take(progress)
    assert len(seen[gone].tokens) == tokens
    for request in group[1:]:
        check_logprobs(served.base, request, seen[request.id])


def test_every_token_has_the_version_that_sampled_it(served: Served, other, capsys):
    """16 requests and 6 installs of two models in turn, KV recomputed each time: the logprob of a token is then that of
    its version's model alone, whatever vLLM's labels say."""
    served.policy("recompute")
    models = {served.engine.version: served.base}
    requests = served.requests(prompts(16, seed=17), max_tokens=150)
    served.engine.submit(requests)
    outcomes = {request.id: Outcome() for request in requests}
    while any(outcome.finish is None for outcome in outcomes.values()):
        for progress in served.step():
            outcomes[progress.id].take(progress)
        longest = max(len(outcome.tokens) for outcome in outcomes.values())
        if longest >= 15 * len(models) and len(models) < 7 and any(o.finish is None for o in outcomes.values()):
            model = other if len(models) % 2 else served.base
            models[served.install(model)] = model
    assert len(models) >= 4
    errors, wrong = [], []
    for request in requests:
        outcome = outcomes[request.id]
        under = {
            id(model): chosen(full_logprobs(model, request.prompt_ids.tolist(), outcome.tokens), outcome.tokens)
            for model in (served.base, other)
        }
        for i, (version, logprob) in enumerate(zip(outcome.versions, outcome.logprobs, strict=True)):
            mine = models[version]
            errors.append(abs(logprob - float(under[id(mine)][i])))
            wrong.append(abs(logprob - float(under[id(other if mine is served.base else served.base)][i])))
    assert max(errors) < TOLERANCE
    assert statistics.mean(wrong) > 100 * TOLERANCE
    with capsys.disabled():
        print(
            f"\n{len(errors)} tokens of {len(models)} versions: mismatch mean {statistics.mean(errors):.1e}, "
            f"max {max(errors):.1e}; under the other model mean {statistics.mean(wrong):.2f}"
        )


def test_only_our_stop_tokens_end_a_completion(served: Served, adapter: VllmAdapter, monkeypatch):
    """Not the end-of-sequence token that the model's own configuration names."""
    other_stop = 9
    monkeypatch.setattr(adapter, "_spec", replace(adapter._spec, stop_ids=(other_stop,)))
    outcomes = served.run(served.requests(prompts(16, seed=18), max_tokens=150)).values()
    assert any(EOS in outcome.tokens for outcome in outcomes)
    assert any(outcome.finish == "stop" for outcome in outcomes)
    for outcome in outcomes:
        assert (outcome.finish == "stop") == (outcome.tokens[-1] == other_stop)
        assert other_stop not in outcome.tokens[:-1]


def test_a_pin_to_the_installed_version_is_taken_and_any_other_refused(served: Served):
    version = served.engine.version
    assert version is not None
    served.engine.install_pinned(version, None)
    (request,) = served.requests(prompts(1, seed=19), max_tokens=4)
    outcome = served.run([replace(request, pin=version)])[request.id]
    assert set(outcome.versions) == {version}
    with pytest.raises(ValueError, match="keeps one weight set"):
        served.engine.install_pinned(PolicyVersion(1, version.number + 1), None)


def test_a_temperature_that_vllm_would_change_is_refused(served: Served):
    with pytest.raises(ValueError, match=r"no temperature below 0\.01"):
        served.engine.submit(served.requests(prompts(1), temperature=0.005))


def test_the_same_rollout_is_sampled_the_same_twice(served: Served):
    first, second = served.requests(prompts(2, seed=20), max_tokens=40)
    outcomes = [served.run([replace(request, rollout=5, prompt_ids=first.prompt_ids)]) for request in (first, second)]
    assert outcomes[0][first.id].tokens == outcomes[1][second.id].tokens


def test_the_pause_beside_that_of_vllm_alone(served: Served, adapter: VllmAdapter, other, capsys):
    """A figure, not a limit: 16 requests in flight, median of 7, the tests' model. Both paused every request."""

    async def floor() -> float:
        vllm, began = adapter._vllm, time.monotonic()
        await vllm.pause("keep")
        await vllm.resume()
        return time.monotonic() - began

    requests = served.requests(prompts(16, seed=21), max_tokens=150)
    served.engine.submit(requests)
    outcomes = {request.id: Outcome() for request in requests}
    installs, floors = [], []
    models = [other, served.base]
    while any(outcome.finish is None for outcome in outcomes.values()):
        for progress in served.step():
            outcomes[progress.id].take(progress)
        if len(installs) < 7 and any(outcome.finish is None for outcome in outcomes.values()):
            floors.append(adapter._call("pause", floor(), 60))
            served._number += 1
            version = PolicyVersion(1, served._number)
            installs.append(served.engine.install(version, state_tensors(models[len(installs) % 2])))
    with capsys.disabled():
        print(
            f"\npause of an install: median {statistics.median(installs):.3f} s (lowest {min(installs):.3f}); "
            f"of pause and resume alone: {statistics.median(floors):.3f} s (lowest {min(floors):.3f})"
        )
    assert installs


@contextmanager
def generator(model_dir: Path, folder: Path) -> Iterator[subprocess.Popen]:
    """A process that makes a vLLM and prints the pids it started."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.vllm_owner", str(model_dir), str(folder)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def check_all_end(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=DEATH_S)
    for process in alive:
        process.kill()
    assert not alive


@pytest.mark.usefixtures("local")
def test_vllms_processes_die_with_a_killed_generator(model_dir: Path, tmp_path: Path):
    with generator(model_dir, tmp_path) as process:
        assert process.stdout is not None
        processes = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
        assert len(processes) >= 2, "the engine's process and a worker's"
        os.kill(process.pid, signal.SIGKILL)
    check_all_end(processes)


@pytest.mark.usefixtures("local")
def test_an_engine_that_is_starting_dies_with_a_killed_generator(model_dir: Path, tmp_path: Path):
    """Before there is a worker to watch for it."""
    with generator(model_dir, tmp_path) as process:
        until, engines = time.monotonic() + START_S, []
        while not engines:
            assert time.monotonic() < until, "no engine process appeared"
            time.sleep(0.05)
            engines = [
                child for child in psutil.Process(process.pid).children() if "spawn_main" in str(child.cmdline())
            ]
        os.kill(process.pid, signal.SIGKILL)
    check_all_end(engines)


@pytest.mark.usefixtures("local")
def test_a_start_past_its_deadline_ends_what_it_began(model_dir: Path, tmp_path: Path):
    config = load_config(
        None,
        [
            f"model.path={model_dir}",
            f"runs_dir={tmp_path}",
            "data.task=chain-mod",
            "generator.engine=vllm",
            "generator.start_deadline_s=2",
            "sampling.max_tokens=64",
        ],
    )
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(
        EngineError, match=r"did not start within 2 s \(generator.start_deadline_s\); its log is .*vllm"
    ):
        make_engine(config, "vllm", "generator-1", tmp_path, lambda: None)
    check_all_end(list(set(psutil.Process().children(recursive=True)) - before))
