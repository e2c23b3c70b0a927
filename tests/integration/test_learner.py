"""The learner as a real process, in front of a small buffer on a real socket."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from r1async.config import Config, ConfigError, load_config
from r1async.generator.engines import make_engine
from r1async.inbox import DeadlineExceeded, Inbox
from r1async.learner.checkpoint import checkpoints, read_marker, save_checkpoint
from r1async.learner.core import LearnerCore
from r1async.learner.distributed import Ranks
from r1async.learner.learner import Learner
from r1async.learner.link import LearnerError
from r1async.learner.loss import resolve_loss
from r1async.models.loading import ModelError, load_model, state_tensors
from r1async.monitor.metrics import read_metrics
from r1async.types import Batch
from r1async.weights.receiver import Receiver, WeightsReady
from torch import Tensor

from tests.fake_buffer import FakeBuffer
from tests.learner_batches import make_batch, take
from tests.learner_process import exit_code, learner_process
from tests.tiny_models import save_tiny

STEPS = 6
GROUPS, GROUP_SIZE = 3, 4


def batch_of(step: int) -> Batch:
    return make_batch(step=step, groups=GROUPS, group_size=GROUP_SIZE, max_staleness=2, over_age=1)


def whole(step: int, _rank: int) -> Batch:
    return batch_of(step)


def config_in(root: Path, *overrides: str) -> Config:
    model = root / "start"
    if not model.exists():
        save_tiny(model, hidden=32, mlp=48, scale=0.1)
    path = root / "config.yaml"
    path.write_text(
        f"""
name: run
runs_dir: {root}
steps: {STEPS}
model: {{path: {model}}}
data: {{task: chain-mod}}
sampling: {{max_tokens: 24}}
group: {{group_size: {GROUP_SIZE}}}
learner: {{groups_per_step: {GROUPS}, lr: 1.0e-3, checkpoint_every: 2, batch_deadline_s: 60}}
loss: {{kind: grpo, ref_refresh_steps: 3}}
endpoints: {{batches: 'ipc://{root}/b', weights: 'ipc://{root}/w'}}
monitor: {{tensorboard: false}}
"""
    )
    return load_config(path, list(overrides))


def core_here(config: Config) -> LearnerCore:
    loss = resolve_loss(config.loss, config.correction, config.sampling.max_tokens)
    return LearnerCore(load_model(config.model.path), loss, config.learner, steps=config.steps)


def expected_losses(config: Config) -> list[float]:
    """The same batches through one core in this process."""
    core = core_here(config)
    return [core.step(batch_of(step))["loss"] for step in range(STEPS)]


def run_here(config: Config) -> None:
    """The learner in this process, until the buffer's state says that the run ends."""
    with Learner(config, Ranks()) as here:
        here.run()


def steps_of(config: Config) -> list[dict]:
    return list(read_metrics(config.run_dir / "metrics" / "learner.jsonl", "step"))


def test_it_trains_publishes_commits_and_exports(run_root: Path):
    config = config_in(run_root, "monitor.tensorboard=true")
    with FakeBuffer(config.endpoint("batches"), whole, steps=STEPS, end=True) as buffer:
        run_here(config)
        heard = buffer.drain()
    lines = steps_of(config)
    assert [line["step"] for line in lines] == list(range(STEPS))
    assert [line["loss"] for line in lines] == pytest.approx(expected_losses(config), abs=1e-6)
    assert lines[0]["staleness/histogram"] == {"0": batch_of(0).total_loss_tokens}
    assert list(checkpoints(config.run_dir / "checkpoints")) == [4, 6]
    assert list((config.run_dir / "tensorboard").glob("events*"))
    exported = load_model(config.run_dir / "model")
    assert not torch.equal(next(exported.parameters()), next(load_model(config.model.path).parameters()))

    assert (heard[0]["t"], heard[0]["epoch"], heard[0]["step"]) == ("hello", 1, 0)
    assert heard[-1]["t"] == "bye"
    published = [header for header in heard if header["t"] == "published"]
    assert [header["version"] for header in published] == list(range(STEPS + 1))
    assert len({header["hash"] for header in published}) == STEPS + 1
    assert [header["step"] for header in heard if header["t"] == "stepped"] == list(range(STEPS))
    assert [header["step"] for header in heard if header["t"] == "committed"] == [2, 4, 6]
    assert [header["t"] for header in heard if header["t"] in ("committed", "finish", "bye")][-2:] == ["finish", "bye"]
    kinds = [(header["t"], header.get("version", header.get("step"))) for header in heard]
    assert all(kinds.index(("stepped", v - 1)) < kinds.index(("published", v)) for v in range(1, STEPS + 1))
    pushes = list(read_metrics(config.run_dir / "metrics" / "learner.jsonl", "push"))
    assert len(pushes) == STEPS
    assert all(push["receivers"] == {} and len(push["hash"]) == 32 for push in pushes)
    metrics = next(header for header in heard if header["t"] == "stepped")["metrics"]
    assert metrics["reward/mean"] == pytest.approx(float(batch_of(0).rewards.mean()))
    assert all(isinstance(value, int | float) for value in metrics.values())


def until(last: int):
    """Shares up to a step; then the ranks are kept waiting."""
    return lambda step, rank: None if step == last else whole(step, rank)


def test_a_signal_saves_one_checkpoint_and_the_next_life_goes_on(run_root: Path):
    config = config_in(run_root)
    endpoint = config.endpoint("batches")
    with FakeBuffer(endpoint, until(3), steps=STEPS) as buffer, learner_process(config) as process:
        buffer.wait_for("published", version=3)  # the step is done, and it waits for the next
        process.terminate()
        assert exit_code(process) == 0
        assert [(h["t"], h.get("step")) for h in buffer.drain()] == [("committed", 3), ("bye", None)]
    with FakeBuffer(endpoint, whole, steps=STEPS, seen=1, end=True) as buffer:
        run_here(config)
        hello = buffer.wait_for("hello")
        assert (hello["epoch"], hello["step"]) == (2, 3)
    lines = steps_of(config)
    assert [(line["step"], line["epoch"]) for line in lines] == [(s, 1 if s < 3 else 2) for s in range(STEPS)]
    assert [line["loss"] for line in lines] == pytest.approx(expected_losses(config), abs=1e-6)


def test_killed_it_goes_on_from_the_newest_whole_checkpoint(run_root: Path):
    config = config_in(run_root)
    endpoint = config.endpoint("batches")
    with FakeBuffer(endpoint, until(3), steps=STEPS) as buffer, learner_process(config) as process:
        buffer.wait_for("next_batch", step=3)
        process.kill()
        process.join()
    with FakeBuffer(endpoint, whole, steps=STEPS, seen=1, end=True) as buffer:
        run_here(config)
        hello = buffer.wait_for("hello")
        assert (hello["epoch"], hello["step"]) == (2, 2)
        assert buffer.wait_for("published")["version"] == 2
        assert buffer.wait_for("stepped")["step"] == 2
    losses = {line["step"]: line["loss"] for line in steps_of(config)}
    assert list(losses.values()) == pytest.approx(expected_losses(config), abs=1e-6)


def test_resume_is_kept_by_a_learner_started_by_hand(run_root: Path):
    with pytest.raises(ConfigError, match=r"resume: true, but .*/checkpoints holds no whole checkpoint"):
        Learner(config_in(run_root, "resume=true"), Ranks())
    save_checkpoint(run_root / "run" / "checkpoints", core_here(config_in(run_root)), epoch=1)
    with pytest.raises(ConfigError, match=r"resume: false, but .*/checkpoints holds a checkpoint of 0 steps"):
        Learner(config_in(run_root, "resume=false"), Ranks())
    with Learner(config_in(run_root, "resume=true"), Ranks()) as goes_on:
        assert goes_on.saved_steps == 0


def test_a_context_beyond_the_models_is_a_mistake_in_the_settings(run_root: Path):
    config = config_in(run_root, "sampling.max_tokens=3073")  # data.max_prompt_tokens is 1024, the model's limit 4096
    for make in (
        lambda: Learner(config, Ranks()),
        lambda: make_engine(config, "torch", "generator-0", Path(), lambda: None),
    ):
        with pytest.raises(ModelError, match=r"=1024 .*=3073 is 4097 tokens, .*max_position_embeddings=4096"):
            make()


def test_an_epoch_that_was_used_elsewhere_is_stepped_over(run_root: Path):
    config = config_in(run_root, "steps=1")
    with FakeBuffer(config.endpoint("batches"), whole, steps=1, seen=7, end=True) as buffer:
        run_here(config)
        assert buffer.wait_for("hello")["epoch"] == 1
        assert buffer.wait_for("hello")["epoch"] == 8
        assert buffer.wait_for("published")["epoch"] == 8
    assert (config.run_dir / "epoch").read_text() == "8\n"


def test_a_refusal_ends_it_with_the_buffers_words(run_root: Path):
    config = config_in(run_root)
    with (
        FakeBuffer(config.endpoint("batches"), whole, steps=STEPS, refuse=("stepped",)),
        pytest.raises(LearnerError, match="stepped is refused by this test"),
    ):
        run_here(config)


def test_another_number_of_steps_is_a_mistake_in_the_settings(run_root: Path):
    config = config_in(run_root)
    with (
        FakeBuffer(config.endpoint("batches"), whole, steps=STEPS + 1),
        pytest.raises(ConfigError, match="the buffer runs 7 steps, this learner 6"),
    ):
        run_here(config)


def test_a_batch_that_never_comes_is_named_with_the_buffers_reason(run_root: Path):
    config = config_in(run_root, "learner.batch_deadline_s=1.0")
    with (
        FakeBuffer(config.endpoint("batches"), until(0), steps=STEPS),
        pytest.raises(DeadlineExceeded, match=r"the batch of step 0 \(buffer: groups: 1 of 2 ready\)"),
    ):
        run_here(config)


def test_prompts_that_run_out_early_end_the_run_at_that_version(run_root: Path):
    """Version 2 has not been published when the buffer says that there is no third batch."""
    config = config_in(run_root, "weights.publish_every=3")
    with FakeBuffer(config.endpoint("batches"), whole, steps=STEPS, end=True, end_after=2) as buffer:
        run_here(config)
        heard = buffer.drain()
    assert [header["version"] for header in heard if header["t"] == "published"] == [0, 2]
    assert [header["step"] for header in heard if header["t"] == "committed"] == [2]


def shares(step: int, rank: int) -> Batch:
    """Two ranks' shares, unequal; in step 1 the second rank has an empty micro-batch, in step 2 no rollout at all."""
    batch, n = batch_of(step), GROUPS * GROUP_SIZE
    mine = {0: [[0, 3, 4, 8, 9], [1, 2, 5, 6, 7, 10, 11]], 1: [list(range(8)), [8, 9, 10, 11]], 2: [list(range(n)), []]}
    chosen = mine[step % 3][rank]
    if not chosen:
        return take(batch, [], [(0, 0), (0, 0)])
    half = len(chosen) // 2
    edges = (
        [(0, len(chosen)), (len(chosen), len(chosen))]
        if step % 3 == 1 and rank == 1
        else [(0, half), (half, len(chosen))]
    )
    return take(batch, chosen, edges)


def test_two_ranks_train_as_one_and_one_goes_on_from_their_checkpoint(run_root: Path):
    config = config_in(run_root)
    two = config_in(run_root, "learner.ranks=2")
    endpoint = config.endpoint("batches")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with (
        FakeBuffer(endpoint, shares, steps=STEPS) as buffer,
        learner_process(two, 0, meeting) as first,
        learner_process(two, 1, meeting) as second,
        Receiver(two.endpoint("weights"), inbox := Inbox(), run=two.name, name="engine", deadline_s=60.0) as receiver,
    ):
        served = receive_until(receiver, inbox, STEPS)
        buffer.wait_for("finish", deadline_s=200)
        for process in (first, second):
            process.terminate()
        assert [exit_code(process) for process in (first, second)] == [0, 0]
    lines, expected = steps_of(config), expected_losses(config)
    assert [line["loss"] for line in lines] == pytest.approx(expected, abs=1e-5)
    assert lines[2]["reward/mean"] == pytest.approx(float(batch_of(2).rewards.mean()))
    ages = np.bincount(_loss_ages(batch_of(1)))
    assert lines[1]["staleness/histogram"] == {str(age): count for age, count in enumerate(ages) if count}

    core = core_here(config)
    for step in range(STEPS):
        core.step(batch_of(step))
    exported = load_model(config.run_dir / "model")
    assert exported.config.architectures == ["Qwen2ForCausalLM"]
    for own, other in zip(core.model.parameters(), exported.parameters(), strict=True):
        torch.testing.assert_close(own.detach(), other.detach(), atol=1e-5, rtol=0)
    # Each rank has published its rows, and nobody gathered them: put together they are the model that was gathered.
    assert served.keys() == state_tensors(exported).keys()
    for name, tensor in state_tensors(exported).items():
        assert torch.equal(served[name], tensor), name

    folder = config.run_dir / "checkpoints"
    assert (read_marker(folder / "step-000004").world, read_marker(folder / "step-000004").reference) == (2, True)
    shutil.rmtree(folder / "step-000006")
    with FakeBuffer(endpoint, whole, steps=STEPS, seen=1, end=True):
        run_here(config)
    assert [line["loss"] for line in steps_of(config)[STEPS:]] == pytest.approx(expected[4:], abs=1e-5)


def receive_until(receiver: Receiver, inbox: Inbox, number: int) -> dict[str, Tensor]:
    """Every version that comes, until this one; all but the first as deltas."""
    while True:
        ready = inbox.get(f"version {number}", 200.0, lambda item: isinstance(item, WeightsReady))
        assert isinstance(ready, WeightsReady)
        receiver.installed(ready)
        if ready.version.number == number:
            assert receiver.stats()["snapshots"] == 1
            assert receiver.stats()["packages_refused"] == 0
            return {name: tensor.clone() for name, tensor in ready.tensors.items()}


def _loss_ages(batch: Batch) -> np.ndarray:
    return np.repeat(batch.step - batch.run_versions, batch.run_lengths)[
        np.repeat(batch.over_age == 0, batch.run_lengths)
    ]
