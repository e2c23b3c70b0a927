"""Embedded engine against `transformers` generate: tokens per CPU second on the demo's model, one thread.

    python benches/bench_engine.py [--json FILE] [--batches 32 128] [--repeats 7]

Both sample the same prompts at temperature 1 until a stop token or 24 tokens; what counts is tokens delivered, the
stop token included. Runs alternate, and the ratio is the median of the paired ratios, so that a busy machine
slows both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from r1async.generator.engine import Request
from r1async.generator.torch_engine import TorchEngine
from r1async.models.loading import state_tensors
from r1async.types import PolicyVersion, Sampling

from tests.tiny_models import generate, tiny_model

PROMPT_TOKENS, MAX_TOKENS, GROUP_SIZE, EOS, PAD = 13, 24, 8, 2, 0


def bench_engine(engine: TorchEngine, prompts: list[np.ndarray]) -> tuple[int, float]:
    """Tokens and CPU seconds of one batch, from submission to the last token."""
    sampling = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=MAX_TOKENS)
    started = time.process_time()
    engine.submit([Request(id=i, rollout=i, prompt_ids=p, sampling=sampling) for i, p in enumerate(prompts)])
    tokens = 0
    while engine.busy:
        tokens += sum(len(progress.token_ids) for progress in engine.step())
    return tokens, time.process_time() - started


@torch.inference_mode()
def bench_generate(model: PreTrainedModel, prompts: list[np.ndarray]) -> tuple[int, float]:
    """The same batch through `generate`; prompts are of one length, so there is no padding before them."""
    settings = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=MAX_TOKENS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    started = time.process_time()
    ids = torch.from_numpy(np.stack(prompts)).long()
    out = generate(model, ids, settings)
    completions = out[:, PROMPT_TOKENS:]
    ended = (completions == EOS).long().cumsum(-1)
    # Up to and with the first stop token; padding after it is not a token delivered.
    tokens = int(((ended == 0) | ((ended == 1) & (completions == EOS))).sum())
    return tokens, time.process_time() - started


def measure(batch: int, repeats: int) -> dict[str, float]:
    """Median tokens per CPU second of both, and of their paired ratios."""
    # A stop token of ordinary likelihood ends rollouts at different lengths, as in the demo.
    model = tiny_model("qwen2", tied=True, scale=0.05)
    engine = TorchEngine(model.config, seed=0, slots=batch, max_len=PROMPT_TOKENS + MAX_TOKENS, stop_ids=[EOS])
    engine.install(PolicyVersion(1, 0), state_tensors(model))
    rng = np.random.default_rng(0)
    distinct = [rng.integers(3, 34, PROMPT_TOKENS).astype(np.int32) for _ in range(batch // GROUP_SIZE)]
    prompts = [distinct[i // GROUP_SIZE] for i in range(batch)]
    bench_engine(engine, prompts)
    bench_generate(model, prompts)
    pairs = [(bench_engine(engine, prompts), bench_generate(model, prompts)) for _ in range(repeats)]
    speeds = [(tokens / cpu_s, other / other_s) for (tokens, cpu_s), (other, other_s) in pairs]
    return {
        "batch": batch,
        "engine_tokens_per_cpu_s": statistics.median(ours for ours, _ in speeds),
        "generate_tokens_per_cpu_s": statistics.median(theirs for _, theirs in speeds),
        "ratio": statistics.median(ours / theirs for ours, theirs in speeds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = [measure(batch, options.repeats) for batch in options.batches]
    print(f"{'batch':>6} {'engine tok/CPU s':>18} {'generate tok/CPU s':>20} {'ratio':>7}")
    for r in results:
        ours, theirs = r["engine_tokens_per_cpu_s"], r["generate_tokens_per_cpu_s"]
        print(f"{r['batch']:>6} {ours:>18,.0f} {theirs:>20,.0f} {r['ratio']:>7.2f}")
    if options.json:
        options.json.write_text(json.dumps({"bench": "engine", "threads": 1, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
