"""Settings of `r1async sample`: the table `sample` of a run's settings. What can be sampled again is not here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from r1async.config import Config


@dataclass(frozen=True, kw_only=True, slots=True)
class KeepConfig:
    parts: dict[str, float] = field(default_factory=lambda: {"accuracy": 1.0})
    """Parts of the reward that must reach so much where a verdict has them; a verdict with none of them is
    `not_graded`. A part of weight 0 in `reward.weights` is measured without being rewarded."""
    truncated: bool = False
    """Keep completions that were cut at `sampling.max_tokens`."""
    min_language: float = 0.0
    """Share of the target language in the thought (the part `language`); below it a completion is `mixed_language`."""
    max_paragraph_chars: int = 0
    """Characters of the longest paragraph; above it a completion has a `long_paragraph`. 0: no limit."""
    code_in_thought: bool = False
    """Keep completions with a code block in their thought."""
    per_prompt: int = 1
    """Completions of one prompt at most; the first that pass."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecontaminateConfig:
    against: dict[str, str] = field(default_factory=dict)
    """Evaluation sets by name: JSONL, parquet or a folder saved by `datasets`. The task's own held-out prompts are
    always among them."""
    keys: tuple[str, ...] = ("prompt", "question", "problem", "answer", "solution")
    """Columns of an evaluation set whose text counts; it must have at least one of them."""
    ngram: int = 10
    """Tokens in a row (words, numbers, operators) that a row and an evaluation text must not have in common."""
    short: int = 6
    """An evaluation text of fewer than `ngram` but at least so many tokens must not stand whole in a row; a still
    shorter one must not be the row's prompt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MixConfig:
    path: str = ""
    """Rows with a prompt and a completion (or conversations), as `r1async sft` reads them."""
    prompt_key: str = "prompt"
    """Column with the prompt."""
    completion_key: str = "completion"
    """Column with the completion."""
    messages_key: str = "messages"
    """Column with a whole conversation."""
    share: float = 1.0
    """Of all rows that are mixed in, relative to the other sources' shares."""
    thought: Literal["none", "sampled"] = "none"
    """sampled: a chain of thought is sampled from the model and put before the row's completion."""
    simple_words: int = 4
    """Prompts of at most so many words (greetings) get no thought."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleConfig:
    prompts: int = 0
    """Prompts to sample; 0: every row of `data.path` once."""
    samples: int = 4
    """k: completions of each prompt."""
    temperature: float = 1.0
    """Of sampling; the noise of each completion is a function of the seed, its prompt and its number."""
    top_p: float = 1.0
    """Of sampling."""
    ahead: int = 0
    """Completions asked for and not graded yet, at most. 0: eight times all generators' slots; slow verdicts
    want more."""
    part_rows: int = 4096
    """Completions after which a file is written; a kill loses no more than that, and samples the same again."""
    part_s: float = 30.0
    """Seconds after which one is written at the latest."""
    ratio: float = 3.0
    """Reasoning rows for each row that is mixed in (DeepSeek-R1: 600k to 200k). Too many of either are left out."""
    reasoning: int = 0
    """Reasoning rows at most; 0: all that pass."""
    thought_request: str = "Think step by step before you answer."
    """Put after a mixed-in prompt whose thought is sampled."""
    keep: KeepConfig = field(default_factory=KeepConfig)
    decontaminate: DecontaminateConfig = field(default_factory=DecontaminateConfig)
    mix: dict[str, MixConfig] = field(default_factory=dict)
    """Sources of rows that need no reasoning, by name: writing, facts, self-cognition, translation."""


SAMPLED = "sampled.json"
"""What the sampler leaves in the run's folder when nothing is left to sample."""
MAX_OPEN = 2**19
"""Completions that the buffer keeps for evaluations are bounded; half of that is ours."""


def sample_problems(config: Config) -> list[str]:
    """Why rejection sampling cannot work with these settings; looked at by `r1async sample` alone."""
    found, sample = [], config.sample
    measured = set(config.reward.weights).union(*(each.weights for each in config.reward.domains.values()))
    missing = sorted(set(sample.keep.parts) - measured)
    found += [
        f"sample.keep.parts.{part}: reward.weights has no such part; a weight of 0 measures it" for part in missing
    ]
    if sample.keep.min_language and "language" not in measured:
        found.append("sample.keep.min_language: needs the part language in reward.weights; a weight of 0 measures it")
    if config.data.task == "chain-mod" and not sample.prompts:
        found.append("sample.prompts: chain-mod has no end; set how many prompts to sample")
    found += [f"sample.mix.{name}.path: must be set" for name, mix in sample.mix.items() if not mix.path]
    found += [
        f"sample.mix.{name}.share: must be above 0, got {mix.share:g}"
        for name, mix in sample.mix.items()
        if not mix.share > 0
    ]
    for name in set(sample.mix) & {"reasoning", "held_out"}:
        found.append(f"sample.mix.{name}: this name is taken; give the source another")
    if sample.decontaminate.short > sample.decontaminate.ngram:
        found.append(
            f"sample.decontaminate.short: {sample.decontaminate.short} must be at most "
            f"sample.decontaminate.ngram={sample.decontaminate.ngram}"
        )
    return found


def ahead_of(config: Config) -> int:
    """Completions asked for and not graded yet, at most."""
    return min(MAX_OPEN, config.sample.ahead or 8 * config.generator.count * config.generator.slots)


def shares_of(mix: Mapping[str, MixConfig], rows: int) -> dict[str, int]:
    """How many of `rows` each source gives, by its share; they add up to `rows`."""
    whole = sum(each.share for each in mix.values())
    edges, passed = {}, 0.0
    for name, each in mix.items():
        before, passed = round(rows * passed / whole), passed + each.share
        edges[name] = round(rows * passed / whole) - before
    return edges
