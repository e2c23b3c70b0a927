"""Benchmarks as data: a YAML file says which columns a public data set has, what is asked, who grades and how often.

`benchmarks/` holds those that come with r1async, `benchmarks/samples/` a dozen problems of our own for each, in the
data set's format. A file of your own has the same keys.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import yaml

from r1async.config import Config, ConfigError
from r1async.config_eval import ProtocolConfig
from r1async.evaluation.rows import FORMATS, Problem, RowError, read_problem
from r1async.tasks import PromptError
from r1async.tasks.file import open_table
from r1async.tasks.meta import GRADER_KEY
from r1async.tasks.templates import apply_template
from r1async.tasks.tokenizer import load_tokenizer
from r1async.types import Prompt, Sampling

FOLDER = Path(__file__).parent / "benchmarks"
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
    """How a row becomes a problem: one of `rows.FORMATS`."""
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A benchmark with its problems, ready to be sampled."""

    benchmark: Benchmark
    problems: Sequence[Problem]
    prompts: Sequence[Prompt]
    """One for each problem, in order."""
    data: str
    """Where the problems come from."""

    @property
    def digest(self) -> str:
        """Of everything that decides what is asked and how it is sampled: figures of one digest can be compared."""
        whole = hashlib.sha256()
        for problem, prompt in zip(self.problems, self.prompts, strict=True):
            row = [problem.id, prompt.token_ids.tolist(), prompt.answer, sorted(prompt.extra.items())]
            whole.update(json.dumps(row).encode())
        made = self.benchmark
        whole.update(json.dumps([made.grader, made.k, made.temperature, made.top_p, made.max_tokens]).encode())
        return whole.hexdigest()[:16]


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
    for key in ("columns", "hub"):
        if not isinstance(tree.get(key, {}), dict):
            raise ConfigError(f"{path}: {key} must be a table, got {tree[key]!r}")
    for key, low, high in (("k", 1, 65536), ("max_tokens", 1, 10**7), ("temperature", 0, 10), ("top_p", 1e-9, 1)):
        value = tree.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ConfigError(f"{path}: {key} must be {low} to {high}, got {value!r}")
    if tree["format"] not in FORMATS:
        raise ConfigError(f"{path}: format must be one of {', '.join(FORMATS)}, got {tree['format']!r}")
    if tree["grader"] not in (*_GRADERS, "swe"):
        raise ConfigError(f"{path}: grader must be one of {', '.join(_GRADERS)}, swe, got {tree['grader']!r}")
    return Benchmark(**tree)  # pyright: ignore[reportArgumentType]


_GRADERS = ("math", "choice", "code", "ifeval")


def with_protocol(benchmark: Benchmark, protocol: ProtocolConfig) -> Benchmark:
    """The benchmark with what the run's settings change about it."""
    return replace(
        benchmark,
        k=protocol.samples or benchmark.k,
        temperature=benchmark.temperature if protocol.temperature is None else protocol.temperature,
        top_p=benchmark.top_p if protocol.top_p is None else protocol.top_p,
        max_tokens=protocol.max_tokens or benchmark.max_tokens,
    )


def ask(config: Config, name: str) -> Asked:
    """A benchmark of `eval.benchmarks` with the prompts that the run's model is asked.

    Raises:
        ConfigError: its data cannot be had or read, a row is not of its format, or a prompt is too long.
    """
    protocol = config.eval.protocol
    benchmark = with_protocol(load_benchmark(name), protocol)
    if benchmark.grader == "swe":
        raise ConfigError(NO_SWE.format(name=benchmark.name))
    table, where = read_table(benchmark, config.eval.data.get(benchmark.name, ""))
    count = min(len(table), protocol.problems or len(table))
    problems = [_problem(benchmark, table[i], f"{where}, row {i + 1}", i, protocol.seed) for i in range(count)]
    if not problems:
        raise ConfigError(f"{where}: no problems")
    if len({problem.id for problem in problems}) < len(problems):
        problems = [replace(problem, id=f"{i}") for i, problem in enumerate(problems)]
    return Asked(benchmark=benchmark, problems=problems, prompts=_prompts(config, benchmark, problems), data=where)


NO_SWE = (
    "eval.benchmarks: {name} needs a rollout that writes patches and runs a repository's tests; "
    "grade its predictions with `r1async swe grade INSTANCES.jsonl PREDICTIONS.jsonl OUT.jsonl`"
)


def read_table(benchmark: Benchmark, data: str) -> tuple[Sequence[Mapping[str, object]], str]:
    """A benchmark's rows, and where they are from: a file, the sample, or the hub.

    Raises:
        ConfigError: they cannot be had.
    """
    if data == SAMPLE:
        path = FOLDER / "samples" / f"{benchmark.name}.jsonl"
        if not path.is_file():
            raise ConfigError(f"eval.data.{benchmark.name}: no sample comes with it; name a file")
        return open_table(path, f"eval.data.{benchmark.name}"), f"sample of r1async ({path.name})"
    if data:
        return open_table(Path(data), f"eval.data.{benchmark.name}"), data
    return _from_hub(benchmark)


def _from_hub(benchmark: Benchmark) -> tuple[Sequence[Mapping[str, object]], str]:
    choices = f"set eval.data.{benchmark.name}=FILE to its rows, or eval.data.{benchmark.name}=sample to a dozen of ours"
    if not benchmark.hub:
        raise ConfigError(f"eval.benchmarks: {benchmark.name} names no data set on a hub; {choices}")
    import datasets

    where = "/".join(str(benchmark.hub[key]) for key in ("path", "name", "split") if key in benchmark.hub)
    try:
        table = datasets.load_dataset(**dict(benchmark.hub))
    except Exception as error:
        # The library raises what its transport raises: a dozen classes of three packages.
        raise ConfigError(f"eval.benchmarks: {where} cannot be had ({type(error).__name__}: {error}); {choices}") from error
    if not isinstance(table, datasets.Dataset):
        raise ConfigError(f"eval.benchmarks: {where} has the splits {', '.join(map(str, table))}; hub.split names one")
    return table, f"hub: {where}"


def _problem(benchmark: Benchmark, row: Mapping[str, object], where: str, index: int, seed: int) -> Problem:
    try:
        return read_problem(benchmark.format, benchmark.columns, row, index=index, seed=seed)
    except RowError as error:
        raise ConfigError(f"{benchmark.name}: {where}: {error}") from error


def _prompts(config: Config, benchmark: Benchmark, problems: Sequence[Problem]) -> list[Prompt]:
    tokenizer = load_tokenizer(Path(config.model.path))
    most = config.eval.protocol.max_prompt_tokens
    made = []
    for i, problem in enumerate(problems):
        text = problem.fill(benchmark.prompt)
        try:
            ids = apply_template(config.data.template, text, tokenizer, prefill=config.reward.think_prefilled)
        except PromptError as error:
            raise ConfigError(f"{benchmark.name}, problem {problem.id}: {error}") from error
        if not 0 < len(ids) <= most:
            raise ConfigError(
                f"{benchmark.name}, problem {problem.id}: its prompt has {len(ids)} tokens, "
                f"eval.protocol.max_prompt_tokens allows 1 to {most}"
            )
        extra = {**problem.extra, GRADER_KEY: benchmark.grader}
        made.append(
            Prompt(
                ordinal=i, text=text, answer=problem.answer, token_ids=np.asarray(ids, dtype=np.int32), extra=extra
            )
        )
    return made
