"""Settings of evaluation: which versions, which problems, how they are sampled."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class ProtocolConfig:
    """What differs from a benchmark's own protocol, for all of `eval.benchmarks`."""

    samples: int = 0
    """k completions a problem; 0: the benchmark's."""
    temperature: float | None = None
    """None: the benchmark's."""
    top_p: float | None = None
    """None: the benchmark's."""
    max_tokens: int = 0
    """Completion tokens at most; 0: the benchmark's (32,768 in R1's protocol). The model's context must hold them after
    `max_prompt_tokens`."""
    max_prompt_tokens: int = 4096
    """A benchmark with a longer prompt is refused."""
    problems: int = 0
    """The first so many problems of each benchmark; 0: all."""
    seed: int = 0
    """Shuffles the options of multiple choice, the same way for every version and run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    every: int = 0
    """Optimizer steps between two evaluations while training goes on; 0: only before and after."""
    prompts: int = 400
    """Held-out prompts of one evaluation; 0: benchmarks alone."""
    samples: int = 1
    """k completions per prompt for pass@1, pass@k and cons@k."""
    temperature: float = 0.6
    """Of the sampled evaluation (DeepSeek-R1, section 3)."""
    top_p: float = 0.95
    """Of the sampled evaluation (DeepSeek-R1, section 3)."""
    greedy: bool = True
    """Also decode each prompt once greedily."""
    deadline_s: float = 1800.0
    """Seconds an evaluation may take over the held-out prompts, or go on without a sample of a benchmark, before it is
    given up, by name. What it has of a benchmark is kept."""
    benchmarks: tuple[str, ...] = ()
    """Benchmarks of every evaluated version: names that come with r1async (aime2024, math500, gpqa_diamond,
    livecodebench, gsm8k, codeforces, swebench_verified, ifeval, mmlu, mmlu_pro), or YAML files of your own."""
    data: dict[str, str] = field(default_factory=dict)
    """Problems of a benchmark, by its name: a JSONL or parquet file, a folder of those or one saved by `datasets`, or
    `sample` for the dozen that come with r1async. Without: the hub, where there is one."""
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    generator: Literal["shared", "dedicated"] = "shared"
    """shared: every generator samples evaluations too, beside its training or in turn with it. dedicated: the last
    generator samples evaluations alone, and the others none."""
