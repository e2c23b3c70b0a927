"""The cold start: a tiny model learns chain-mod's notation from demonstrations, until it can think but rarely does.

Reinforcement learning sharpens what a model sometimes gets right; it does not teach missing arithmetic. So training
stops at a criterion, the accuracy of greedy completions that are made to begin with <think>, and never at a number
of steps: a checkpoint from before that point stalls, whatever the rewards (docs/tasks.md has the figures).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.cache_utils import DynamicCache

from r1async.answers import extract_answer
from r1async.config import ColdStartConfig, Config, ConfigError
from r1async.models.export import export_model
from r1async.tasks import chain_mod

RECIPE = 1
"""Raised when the same settings and seed would give another model: it is part of the cache's key."""

DEV_PROBLEMS = 400
"""Problems the stop criterion is measured on: a standard error of 0.018 at 0.85."""
ATTEMPT_STRIDE = 1_000_003
"""Between the initialisation seeds of a run's attempts: far from any seed a person counts up to."""
MAX_NEW_TOKENS = 24
"""A full completion has 17."""

Report = Callable[[str], None]


class Result(NamedTuple):
    model: Qwen2ForCausalLM
    steps: int
    loss: float
    accuracy: float
    """Of greedy completions that begin with <think>, on the dev problems."""


class Demonstrations(NamedTuple):
    """One batch: B prompts with completions, right-padded to T tokens."""

    token_ids: Tensor
    """(B, T)"""
    loss_mask: Tensor
    """(B, T), True on completion tokens, the end-of-sequence token included."""


def main(config: Config) -> Path:
    """The start checkpoint of a run: from the cache if it was made before, else trained now.

    Raises:
        ConfigError: no attempt reached the accuracy within `cold_start.max_steps`.
    """
    return cold_start(config.cold_start, config.seed, threads=config.learner.threads, report=_say)


def cold_start(settings: ColdStartConfig, seed: int, *, threads: int, report: Report) -> Path:
    """Directory of a Hugging Face checkpoint with ``cold_start.json`` (how it came about) in it.

    Args:
        threads: of torch, while it trains.
        report: takes one line of progress at a time.

    Raises:
        ConfigError: no attempt reached the accuracy within `settings.max_steps`.
    """
    folder = Path(settings.cache_dir) / f"chain-mod-{cache_key(settings, seed)}"
    if (folder / "cold_start.json").is_file():
        report(f"cold start: taken from {folder}, made earlier from the same settings and seed")
        return folder
    torch.set_num_threads(threads)
    wall, cpu = time.perf_counter(), time.process_time()
    result = train(settings, seed, report)
    record = {
        "seed": seed,
        "steps": result.steps,
        "samples": result.steps * settings.batch_size,
        "accuracy": result.accuracy,
        "target_accuracy": settings.target_accuracy,
        "loss": result.loss,
        "wall_s": round(time.perf_counter() - wall, 2),
        "cpu_s": round(time.process_time() - cpu, 2),
        "threads": threads,
    }
    _save(result.model, record, folder)
    report(f"cold start: dev accuracy {result.accuracy:.3f} after {result.steps} steps, {record['wall_s']:.0f} s")
    return folder


def cache_key(settings: ColdStartConfig, seed: int) -> str:
    """Names everything that decides what the model will be."""
    deciding = asdict(replace(settings, cache_dir="", enabled=True))
    text = json.dumps({**deciding, "seed": seed, "recipe": RECIPE}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def make_model(seed: int) -> Qwen2ForCausalLM:
    """101,056 parameters, freshly initialised. Head size 32 is the smallest that serving engines take."""
    return tiny_qwen2(seed, words=len(chain_mod.VOCABULARY), hidden=64, heads=2, positions=128)


def tiny_qwen2(seed: int, *, words: int, hidden: int, heads: int, positions: int) -> Qwen2ForCausalLM:
    """Two layers with one head of keys and values, freshly initialised, for vocabularies as `chain_mod.word_tokenizer`
    wants them."""
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=words,
            hidden_size=hidden,
            num_hidden_layers=2,
            num_attention_heads=heads,
            num_key_value_heads=1,
            intermediate_size=3 * hidden,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            max_position_embeddings=positions,
            pad_token_id=chain_mod.PAD,
            bos_token_id=chain_mod.BOS,
            eos_token_id=chain_mod.EOS,
        )
    )


def train(settings: ColdStartConfig, seed: int, report: Report) -> Result:
    """Imitate demonstrations until the criterion holds; from another initialisation if one never gets there.

    Raises:
        ConfigError: none of `settings.attempts` does within `settings.max_steps`.
    """
    accuracy = 0.0
    for attempt in range(settings.attempts):
        result = _attempt(settings, seed, attempt, report)
        accuracy = max(accuracy, result.accuracy)
        if result.accuracy >= settings.target_accuracy:
            return result
        report(
            f"cold start: initialisation {attempt + 1} of {settings.attempts} got no further than dev accuracy"
            f" {result.accuracy:.3f} in {result.steps} steps"
        )
    raise ConfigError(
        f"cold_start.max_steps={settings.max_steps}: dev accuracy is {accuracy:.3f} at best in"
        f" {settings.attempts} attempts, cold_start.target_accuracy={settings.target_accuracy} was not reached;"
        " allow more steps or attempts, or try another seed"
    )


def _attempt(settings: ColdStartConfig, seed: int, attempt: int, report: Report) -> Result:
    """One initialisation, until the criterion holds or the steps are used up."""
    model = make_model(seed + attempt * ATTEMPT_STRIDE)
    dev = list(islice(chain_mod.problems(Random(seed + chain_mod.DEV_SEED), held_out=False), DEV_PROBLEMS))
    return imitate(
        model,
        ([batch] for batch in batches(seed, settings.batch_size)),
        lambda: thinking_accuracy(model, dev),
        target=settings.target_accuracy,
        lr=settings.lr,
        warmup_steps=settings.warmup_steps,
        max_steps=settings.max_steps,
        look_every=settings.eval_every,
        report=lambda line: report(f"cold start: {line}"),
    )


def imitate(
    model: Qwen2ForCausalLM,
    batches: Iterable[Sequence[Demonstrations]],
    accuracy_of: Callable[[], float],
    *,
    target: float,
    lr: float,
    warmup_steps: int,
    max_steps: int,
    look_every: int,
    report: Report,
) -> Result:
    """Trains the model until `accuracy_of` says `target` or more, or `max_steps` are used up.

    Args:
        batches: one a step, in parts, each padded to a length of its own.
        accuracy_of: looks at the model as it is; called every `look_every` steps and after the last.
        report: takes a line at each look.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    start, step, loss, accuracy = time.perf_counter(), 0, 0.0, 0.0
    for step, batch in enumerate(islice(batches, max_steps), start=1):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, step / max(1, warmup_steps))
        optimizer.zero_grad()
        loss = accumulate(model, batch)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % look_every == 0 or step == max_steps:
            accuracy = accuracy_of()
            report(
                f"step {step}, loss {loss:.3f}, dev accuracy {accuracy:.3f} of {target},"
                f" {time.perf_counter() - start:.0f} s"
            )
            if accuracy >= target:
                break
    return Result(model, step, loss, accuracy)


def batches(seed: int, batch_size: int) -> Iterator[Demonstrations]:
    """Demonstrations, endlessly."""
    stream = chain_mod.demonstrations(seed)
    while True:
        yield pad([_tokens(prompt, completion) for prompt, completion in islice(stream, batch_size)])


def _tokens(prompt: str, completion: str) -> tuple[list[int], list[int]]:
    return [chain_mod.BOS, *chain_mod.encode(prompt)], [*chain_mod.encode(completion), chain_mod.EOS]


def pad(pairs: Sequence[tuple[list[int], list[int]]]) -> Demonstrations:
    """Prompts and completions to imitate, one row each, filled up on the right."""
    T = max(len(prompt) + len(completion) for prompt, completion in pairs)
    ids, mask = [], []
    for prompt, completion in pairs:
        padding = T - len(prompt) - len(completion)
        ids.append(prompt + completion + [chain_mod.PAD] * padding)
        mask.append([False] * len(prompt) + [True] * len(completion) + [False] * padding)
    return Demonstrations(torch.tensor(ids), torch.tensor(mask))


def accumulate(model: Qwen2ForCausalLM, batch: Sequence[Demonstrations]) -> float:
    """Gradients of the mean loss over the completion tokens of all parts; returns that loss."""
    counts = [int(part.loss_mask.sum()) for part in batch]
    total = 0.0
    for part, count in zip(batch, counts, strict=True):
        loss = imitation_loss(model, part) * (count / sum(counts))
        loss.backward()
        total += loss.item()
    return total


def imitation_loss(model: Qwen2ForCausalLM, batch: Demonstrations) -> Tensor:
    """Mean cross-entropy over the completion tokens of the batch, in nats."""
    # Padding is on the right and attention is causal, so no mask is needed; the last token predicts nothing.
    hidden_BTD = model.model(input_ids=batch.token_ids[:, :-1], use_cache=False).last_hidden_state
    predicted_BT = batch.loss_mask[:, 1:]
    logits_NV = model.lm_head(hidden_BTD[predicted_BT])
    return cross_entropy(logits_NV, batch.token_ids[:, 1:][predicted_BT])


def thinking_accuracy(model: Qwen2ForCausalLM, problems: Sequence[chain_mod.Problem]) -> float:
    """Share of problems answered correctly by the greedy completion that begins with <think>."""
    thought = chain_mod.encode("<think>")
    texts = greedy_texts(model, [[chain_mod.BOS, *chain_mod.encode(problem.text), *thought] for problem in problems])
    right = sum(extract_answer(text) == problem.answer for text, problem in zip(texts, problems, strict=True))
    return right / len(problems)


def greedy_texts(model: Qwen2ForCausalLM, prompts: Sequence[Sequence[int]]) -> list[str]:
    """Greedy continuations of prompts of one length, up to the end-of-sequence token."""
    return [_text(tokens) for tokens in greedy_tokens(model, prompts, MAX_NEW_TOKENS, chain_mod.EOS)]


@torch.inference_mode()
def greedy_tokens(
    model: Qwen2ForCausalLM, prompts: Sequence[Sequence[int]], max_new_tokens: int, eos: int
) -> list[list[int]]:
    """The same in tokens, which may go on behind the end-of-sequence token."""
    cache = DynamicCache(config=model.config)
    next_B1 = torch.tensor(prompts)
    sampled: list[Tensor] = []
    ended_B = torch.zeros(len(prompts), dtype=torch.bool)
    while len(sampled) < max_new_tokens and not bool(ended_B.all()):
        hidden_BTD = model.model(input_ids=next_B1, past_key_values=cache, use_cache=True).last_hidden_state
        next_B1 = model.lm_head(hidden_BTD[:, -1]).argmax(-1, keepdim=True)
        sampled.append(next_B1)
        ended_B |= next_B1[:, 0] == eos
    return torch.cat(sampled, dim=1).tolist()


def _text(tokens: list[int]) -> str:
    end = tokens.index(chain_mod.EOS) if chain_mod.EOS in tokens else len(tokens)
    return "".join(chain_mod.VOCABULARY[token] for token in tokens[:end])


def _save(model: Qwen2ForCausalLM, record: dict[str, float], folder: Path) -> None:
    """Write the checkpoint beside its place and rename it there: whoever finds the folder finds all of it."""
    staging = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        export_model(model, chain_mod.hf_tokenizer(), staging)
        (staging / "cold_start.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        try:
            staging.rename(folder)
        except OSError:
            # Another process made the same checkpoint meanwhile; it is as good as ours.
            if not (folder / "cold_start.json").is_file():
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _say(line: str) -> None:
    print(line, file=sys.stdout, flush=True)
