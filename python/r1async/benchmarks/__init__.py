"""Benchmarks as data: a YAML file says which columns a public data set has, what is asked, who grades and how often.

This folder holds those that come with r1async, `samples/` a dozen problems of our own for each, in the data set's
format. A file of your own has the same keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path

import yaml

from r1async.config import Config, ConfigError
from r1async.config_eval import ProtocolConfig
from r1async.config_rewards import DomainConfig
from r1async.types import Sampling

FORMATS = ("plain", "choices", "livecodebench", "codeforces", "ifeval", "swe")
"""How rows come: `evaluation/rows.py` reads them."""
GRADERS = ("math", "choice", "code", "ifeval", "swe")
"""Parts of a reward that know right from wrong by the row alone."""
HEADLINES = ("accuracy", "cons_at_k", "rating")
FOLDER = Path(__file__).parent
SAMPLE = "sample"
"""`eval.data.NAME=sample`: the problems that come with r1async."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """One benchmark, as its YAML file says."""

    name: str = ""
    """The file's name without .yaml."""
    title: str
    source: str
    """Paper and section of the protocol."""
    format: str
    """How a row becomes a problem: one of `FORMATS`."""
    columns: Mapping[str, object]
    """What the format needs, and the data set's column for it."""
    prompt: str
    """Template of what is asked; {question} and other names in braces are filled in."""
    grader: str
    """math, choice, code, ifeval or swe."""
    k: int
    """Samples a problem."""
    temperature: float = 0.6
    top_p: float = 0.95
    max_tokens: int = 32_768
    hub: Mapping[str, str] = field(default_factory=dict)
    """Arguments of `datasets.load_dataset`: path, name, split, revision."""
    only: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Rows whose column lies in a range of texts, from the first to below the second: dates, as a rule."""
    headline: str = "accuracy"
    """The figure that the benchmark is quoted by: accuracy (pass@1 over k), cons_at_k, or rating."""

    @property
    def sampling(self) -> Sampling:
        return Sampling(
            temperature=self.temperature or 1.0,
            top_p=self.top_p,
            top_k=0,
            max_tokens=self.max_tokens,
            greedy=self.temperature == 0,
        )


def names() -> list[str]:
    """Benchmarks that come with r1async."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


@lru_cache(maxsize=64)
def load_benchmark(name: str) -> Benchmark:
    """A benchmark by name, or by the path of its YAML file.

    Raises:
        ConfigError: there is none, or its file says something that cannot be; the message names the key.
    """
    path = FOLDER / f"{name}.yaml" if not name.endswith((".yaml", ".yml")) else Path(name)
    if not path.is_file():
        raise ConfigError(f"eval.benchmarks: no benchmark {name!r}; there are {', '.join(names())}, or a YAML file")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: must hold `key: value` lines, got {type(tree).__name__}")
    return _checked({**tree, "name": path.stem}, path)


def _checked(tree: dict[str, object], path: Path) -> Benchmark:
    known = {each.name for each in fields(Benchmark)}
    if unknown := sorted(set(tree) - known):
        raise ConfigError(f"{path}: unknown key {unknown[0]}; known: {', '.join(sorted(known - {'name'}))}")
    needed = ("title", "source", "format", "columns", "prompt", "grader", "k")
    if missing := [key for key in needed if key not in tree]:
        raise ConfigError(f"{path}: {missing[0]} is missing")
    for key in ("columns", "hub", "only"):
        if not isinstance(tree.get(key, {}), dict):
            raise ConfigError(f"{path}: {key} must be a table, got {tree[key]!r}")
    for key, low, high in (("k", 1, 65536), ("max_tokens", 1, 10**7), ("temperature", 0, 10), ("top_p", 1e-9, 1)):
        value = tree.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ConfigError(f"{path}: {key} must be {low} to {high}, got {value!r}")
    hub, only = tree.get("hub"), tree.get("only")
    if isinstance(hub, dict) and (set(hub) - {"path", "name", "split", "revision"} or "path" not in hub):
        raise ConfigError(f"{path}: hub must have path, and may have name, split and revision, got {hub!r}")
    for column, bounds in only.items() if isinstance(only, dict) else ():
        if not isinstance(bounds, list) or len(bounds) != 2:
            raise ConfigError(f"{path}: only.{column} must be [first, end], got {bounds!r}")
    if tree["format"] not in FORMATS:
        raise ConfigError(f"{path}: format must be one of {', '.join(FORMATS)}, got {tree['format']!r}")
    if tree["grader"] not in GRADERS:
        raise ConfigError(f"{path}: grader must be one of {', '.join(GRADERS)}, got {tree['grader']!r}")
    if tree.get("headline", "accuracy") not in HEADLINES:
        raise ConfigError(f"{path}: headline must be one of {', '.join(HEADLINES)}, got {tree['headline']!r}")
    return Benchmark(**tree)  # pyright: ignore[reportArgumentType]


def with_protocol(benchmark: Benchmark, protocol: ProtocolConfig) -> Benchmark:
    """The benchmark with what the run's settings change about it."""
    return replace(
        benchmark,
        k=protocol.samples or benchmark.k,
        temperature=benchmark.temperature if protocol.temperature is None else protocol.temperature,
        top_p=benchmark.top_p if protocol.top_p is None else protocol.top_p,
        max_tokens=protocol.max_tokens or benchmark.max_tokens,
    )


def longest_of(config: Config) -> int:
    """Tokens of the longest request that the run's benchmarks make, prompt included; 0 without benchmarks."""
    protocol = config.eval.protocol
    completions = [with_protocol(load_benchmark(name), protocol).max_tokens for name in config.eval.benchmarks]
    return protocol.max_prompt_tokens + max(completions) if completions else 0


def domain_name(grader: str) -> str:
    """The domain (`reward.domains`) of a grader's problems: its pool grades them, whatever the run is rewarded for."""
    return f"benchmark:{grader}"


def domains_of(benchmarks: Sequence[str]) -> dict[str, DomainConfig]:
    """A domain for each grader of these benchmarks."""
    graders = dict.fromkeys(load_benchmark(name).grader for name in benchmarks)
    return {domain_name(grader): DomainConfig(weights={grader: 1.0}) for grader in graders}


def instances_of(config: Config) -> str:
    """File of the instances that a benchmark's patches are graded by; "" if none is."""
    named = [config.eval.data.get(load_benchmark(name).name, "") for name in config.eval.benchmarks
             if load_benchmark(name).grader == "swe"]  # fmt: skip
    return named[0] if named else ""
