"""Base models of the miniature: small Qwen2 models that have read `documents`, stopped when they can think.

Stopped by a criterion and not after so many steps: from the same texts one initialisation can do the arithmetic after
600 steps and another after 1,000, and one in five never learns it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random

import torch
from transformers import Qwen2ForCausalLM

from r1async.answers import extract_answer
from r1async.config import ConfigError
from r1async.models.export import export_model
from r1async.recipes.cold_start import ATTEMPT_STRIDE, Demonstrations, greedy_tokens, imitate, pad, tiny_qwen2
from r1async.recipes.miniature.documents import Shares, documents
from r1async.recipes.miniature.language import BOS, EOS, VOCABULARY, decode, encode, hf_tokenizer
from r1async.tasks.chain_mod import Problem, problems

BATCH = 64
PARTS = (32, 24, 8)
"""Of a batch, shortest documents first: padded to the longest of all, it would be twice as many tokens."""
WARMUP = 20
DEV_SEED = 999_983
DEV_PROBLEMS = 200
MAX_NEW_TOKENS = 24
MAX_TOKENS = 192
"""Positions of the models: an example, a question and a thought fit twice."""


def base(
    folder: Path,
    *,
    seed: int,
    hidden: int = 64,
    heads: int = 2,
    target: float = 0.85,
    lr: float = 4e-3,
    max_steps: int = 1400,
    attempts: int = 3,
    look_every: int = 50,
) -> None:
    """Makes `model`, a Hugging Face directory, and `base.json` in the folder.

    Args:
        folder: where they go.
        seed: of initialisation and documents.
        hidden: width of the model; it has two layers.
        heads: of attention, with one head of keys and values.
        target: greedy accuracy of completions that begin with <think>, on problems of its own, that ends it.
        lr: of AdamW.
        max_steps: of one attempt, 64 documents each.
        attempts: initialisations to try.
        look_every: steps between two looks at the criterion. Arithmetic comes suddenly: from a third of the problems to
            nine of ten in 50 steps.

    Raises:
        ConfigError: no attempt reached the target.
    """
    torch.set_num_threads(1)
    began, best = time.process_time(), 0.0
    dev = list(islice(problems(Random(seed + DEV_SEED), held_out=False), DEV_PROBLEMS))
    for attempt in range(attempts):
        model = make_model(seed + attempt * ATTEMPT_STRIDE, hidden, heads)
        trained = imitate(
            model,
            batches(seed),
            partial(thinking_accuracy, model, dev),
            target=target,
            lr=lr,
            warmup_steps=WARMUP,
            max_steps=max_steps,
            look_every=look_every,
            report=lambda line: print(f"base: {line}", flush=True),
        )
        best = max(best, trained.accuracy)
        if trained.accuracy >= target:
            record = {
                "parameters": sum(each.numel() for each in trained.model.parameters()),
                "steps": trained.steps,
                "documents": trained.steps * BATCH,
                "thinking_accuracy": trained.accuracy,
                "attempt": attempt + 1,
                "cpu_s": round(time.process_time() - began, 1),
            }
            (folder / "base.json").write_text(json.dumps(record, indent=2) + "\n")
            export_model(trained.model, hf_tokenizer(), folder / "model")
            return
        print(f"base: initialisation {attempt + 1} got no further than {trained.accuracy:.3f}", flush=True)
    raise ConfigError(
        f"base: {best:.3f} at best in {attempts} attempts of {max_steps} steps, target={target} was not reached"
    )


def make_model(seed: int, hidden: int, heads: int) -> Qwen2ForCausalLM:
    """Freshly initialised."""
    return tiny_qwen2(seed, words=len(VOCABULARY), hidden=hidden, heads=heads, positions=MAX_TOKENS)


def batches(seed: int) -> Iterator[list[Demonstrations]]:
    """Documents by the batch, each in parts of similar length."""
    stream = documents(seed, Shares())
    while True:
        pairs = [([BOS, *encode(each.prompt)], [*encode(each.completion), EOS]) for each in islice(stream, BATCH)]
        by_length = iter(sorted(pairs, key=lambda pair: len(pair[0]) + len(pair[1])))
        yield [pad(list(islice(by_length, size))) for size in PARTS]


def thinking_accuracy(model: Qwen2ForCausalLM, of: Sequence[Problem]) -> float:
    """Share of problems answered correctly by the greedy completion that begins with <think>."""
    prompts = [[BOS, *encode(f"{problem.text}<think>")] for problem in of]
    texts = [decode(tokens) for tokens in greedy_tokens(model, prompts, MAX_NEW_TOKENS, EOS)]
    return sum(extract_answer(text) == problem.answer for text, problem in zip(texts, of, strict=True)) / len(of)
