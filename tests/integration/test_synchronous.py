"""At max_staleness = 0 the whole engine is a plain synchronous loop: same seed, same batches, same losses.

The reference below uses neither the buffer nor a socket: it draws the prompts in order, samples each group, grades it,
computes advantages with numpy, packs by hand and takes one optimizer step before it samples again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from r1async.config import Config, load_config
from r1async.generator.engine import Engine, Progress, Request
from r1async.generator.engines import make_engine
from r1async.learner.core import LearnerCore
from r1async.learner.loss import resolve_loss
from r1async.models.loading import load_model, state_tensors
from r1async.tasks.meta import Question
from r1async.tasks.source import open_source
from r1async.tasks.tokenizer import Detokenizer
from r1async.types import Batch, Completion, PolicyVersion, Prompt, Sampling

from tests.reward_functions import digit_share
from tests.tiny_models import save_tiny

STEPS, GROUPS, SIZE = 6, 3, 4
ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def config(run_root: Path) -> Config:
    model = save_tiny(run_root / "model")
    settings = {
        "name": "sync", "runs_dir": run_root, "model.path": model, "data.task": "chain-mod", "data.template": "none",
        "data.max_prompt_tokens": 32, "steps": STEPS, "sampling.max_tokens": 12, "generator.slots": 32,
        "generator.eval_slots": 8, "group.group_size": SIZE, "learner.groups_per_step": GROUPS, "learner.lr": 1e-3,
        "staleness.max_staleness": 0, "eval.prompts": 4, "eval.greedy": "false", "loss.kind": "dapo",
        "monitor.terminal": "plain", "monitor.tensorboard": "false", "seed": 3,
        "reward.weights": "{tests.reward_functions:digit_share: 1.0, accuracy: 0.0, format: 0.0}",
    }  # fmt: skip
    overrides = [f"{key}={value}" for key, value in settings.items()]
    path = run_root / "config.yaml"
    path.write_text("{}\n")
    printed = subprocess.run(
        [sys.executable, "-m", "r1async", "run", str(path), *overrides],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert printed.returncode == 0, printed.stdout + printed.stderr
    return load_config(path, overrides)


def steps_of(run_dir: Path) -> list[dict]:
    lines = map(json.loads, (run_dir / "metrics" / "learner.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "step"]


def test_losses_at_staleness_0_equal_those_of_a_plain_synchronous_loop(config: Config):
    got, want = steps_of(config.run_dir), list(reference(config))
    assert [line["step"] for line in got] == list(range(STEPS))
    assert [line["tokens"] for line in got] == [line["tokens"] for line in want]
    for name in ("reward/mean", "loss", "grad_norm", "entropy"):
        np.testing.assert_allclose([line[name] for line in got], [line[name] for line in want], atol=1e-6, err_msg=name)
    # What is compared is not nothing: rewards differ within groups, and the policy moves.
    assert min(line["grad_norm"] for line in want) > 1e-3
    assert all(line["staleness/max"] == 0 and line["mismatch/max"] < 1e-4 for line in got)


def reference(config: Config) -> Iterator[dict]:
    """Metrics of each step of the synchronous loop."""
    path = config.model.path
    source, detokenizer = open_source(config, Path(path)), Detokenizer(Path(path))
    engine = make_engine(config, "torch", "generator-0", Path(), lambda: None)
    loss = resolve_loss(config.loss, config.correction, config.sampling.max_tokens)
    core = LearnerCore(load_model(path), loss, config.learner, steps=config.steps)
    for step in range(STEPS):
        engine.install(PolicyVersion(1, step), state_tensors(core.model))
        prompts = [source.prompt(step * GROUPS + i) for i in range(GROUPS)]
        sampled = [sample(engine, prompt, step * GROUPS + i, config) for i, prompt in enumerate(prompts)]
        yield core.step(pack_by_hand(step, prompts, sampled, detokenizer))


def sample(engine: Engine, prompt: Prompt, group: int, config: Config) -> list[list[Progress]]:
    """One group, sampled alone: what else is in the batch makes no difference to a rollout's tokens."""
    sampling = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=config.sampling.max_tokens)
    requests = [
        Request(id=i, rollout=group * SIZE + i, prompt_ids=prompt.token_ids, sampling=sampling) for i in range(SIZE)
    ]
    engine.submit(requests)
    pieces: list[list[Progress]] = [[] for _ in requests]
    while engine.busy:
        for progress in engine.step():
            pieces[progress.id].append(progress)
    return pieces


def pack_by_hand(
    step: int, prompts: list[Prompt], sampled: list[list[list[Progress]]], detokenizer: Detokenizer
) -> Batch:
    rewards, rows, logprobs, truncated = [], [], [], []
    for prompt, group in zip(prompts, sampled, strict=True):
        for pieces in group:
            ids = np.concatenate([piece.token_ids for piece in pieces])
            rows.append(np.concatenate([prompt.token_ids, ids]))
            logprobs.append(np.concatenate([np.zeros(len(prompt.token_ids)), *(piece.logprobs for piece in pieces)]))
            truncated.append(pieces[-1].finish == "length")
            finish = pieces[-1].finish
            assert finish is not None
            (text,) = detokenizer.texts([ids.tolist()], [finish == "stop"])
            completion = Completion(text=text, num_tokens=len(ids), finish=finish)
            rewards.append(digit_share(Question(text=prompt.text, answer=prompt.answer), completion))
    by_group = np.asarray(rewards).reshape(GROUPS, SIZE)
    advantages = (by_group - by_group.mean(1, keepdims=True)) / (by_group.std(1, keepdims=True) + 1e-6)
    n = GROUPS * SIZE
    prompt_lens = np.repeat([len(prompt.token_ids) for prompt in prompts], SIZE).astype(np.int32)
    lengths = np.array([len(row) for row in rows], np.int32) - prompt_lens
    return Batch(
        step=step,
        epoch=1,
        part=0,
        last=True,
        token_ids=np.concatenate(rows).astype(np.int32),
        behavior_logprobs=np.concatenate(logprobs).astype(np.float32),
        cu_seqlens=np.concatenate([[0], np.cumsum(prompt_lens + lengths)]).astype(np.int32),
        prompt_lens=prompt_lens,
        advantages=advantages.ravel().astype(np.float32),
        rewards=np.asarray(rewards),
        groups=np.repeat(np.arange(GROUPS) + step * GROUPS, SIZE).astype(np.int64),
        rollouts=(np.arange(n) + step * n).astype(np.int64),
        finish_versions=np.full(n, step, np.int32),
        truncated=np.array(truncated, np.uint8),
        run_versions=np.full(n, step, np.int32),
        run_lengths=lengths,
        cu_runs=np.arange(n + 1, dtype=np.int32),
        over_age=np.zeros(n, np.uint8),
        parts={},
        micro_batches=((0, n),),
        total_rollouts=n,
        total_groups=GROUPS,
        total_completion_tokens=int(lengths.sum()),
        total_loss_tokens=int(lengths.sum()),
        temperature=1.0,
    )
