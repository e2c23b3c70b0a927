"""A benchmark with its problems, as the run's model is asked them: rows from a file or a hub, prompts as tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np

from r1async.benchmarks import FOLDER, SAMPLE, Benchmark, load_benchmark, with_protocol
from r1async.config import Config, ConfigError
from r1async.evaluation.rows import Problem, RowError, read_problem
from r1async.tasks import PromptError
from r1async.tasks.file import open_table
from r1async.tasks.meta import GRADER_KEY
from r1async.tasks.templates import apply_template
from r1async.tasks.tokenizer import load_tokenizer
from r1async.types import Prompt


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
        """Of everything that decides what is asked and how it is sampled: figures of one digest can be compared. Not of
        the tokens, which are the model's."""
        whole = hashlib.sha256()
        for problem, prompt in zip(self.problems, self.prompts, strict=True):
            row = [problem.id, prompt.text, prompt.answer, sorted(prompt.extra.items())]
            whole.update(json.dumps(row).encode())
        made = self.benchmark
        whole.update(json.dumps([made.grader, made.k, made.temperature, made.top_p, made.max_tokens]).encode())
        return whole.hexdigest()[:16]


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
    wanted = [i for i in range(len(table)) if _in_range(benchmark, table[i])]
    if not wanted:
        raise ConfigError(
            f"{benchmark.name}: {where} has {len(table)} rows, none of them within {dict(benchmark.only)}"
        )
    problems = [
        _problem(benchmark, table[i], f"{where}, row {i + 1}", i, protocol.seed)
        for i in wanted[: protocol.problems or None]
    ]
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
    choices = (
        f"set eval.data.{benchmark.name}=FILE to its rows, or eval.data.{benchmark.name}=sample to a dozen of ours"
    )
    if not benchmark.hub:
        raise ConfigError(f"eval.benchmarks: {benchmark.name} names no data set on a hub; {choices}")
    import datasets

    where = "/".join(str(benchmark.hub[key]) for key in ("path", "name", "split") if key in benchmark.hub)
    try:
        table = datasets.load_dataset(
            benchmark.hub["path"],
            benchmark.hub.get("name"),
            split=benchmark.hub.get("split"),
            revision=benchmark.hub.get("revision"),
        )
    except Exception as error:  # what its transport raises: a dozen classes of three packages
        raise ConfigError(
            f"eval.benchmarks: {where} cannot be had ({type(error).__name__}: {error}); {choices}"
        ) from error
    if not isinstance(table, datasets.Dataset):
        raise ConfigError(f"eval.benchmarks: {where} has the splits {', '.join(map(str, table))}; hub.split names one")
    return cast(Sequence[Mapping[str, object]], table), f"hub: {where}"


def _in_range(benchmark: Benchmark, row: Mapping[str, object]) -> bool:
    for column, (first, end) in benchmark.only.items():
        if column not in row:
            raise ConfigError(f"{benchmark.name}: no column {column!r}; the row has {', '.join(map(str, row))}")
        if not first <= str(row[column]) < end:
            return False
    return True


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
            Prompt(ordinal=i, text=text, answer=problem.answer, token_ids=np.asarray(ids, dtype=np.int32), extra=extra)
        )
    return made
