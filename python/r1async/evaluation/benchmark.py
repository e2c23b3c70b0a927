"""A benchmark with its problems, as the run's model is asked them: rows from a file or a hub, prompts as tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np

from r1async.benchmarks import FOLDER, SAMPLE, Benchmark, domain_name, load_benchmark, with_protocol
from r1async.config import Config, ConfigError
from r1async.evaluation.rows import Problem, RowError, read_problem
from r1async.tasks import PromptError
from r1async.tasks.file import read_any
from r1async.tasks.swe import SweRows
from r1async.tasks.templates import apply_template, question_text
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
        return _ask_swe(config, benchmark)
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


def _ask_swe(config: Config, benchmark: Benchmark) -> Asked:
    """Instances, each asked in one shot with the files that matter, from repositories that are on this machine."""
    setting, swe = f"eval.data.{benchmark.name}", config.reward.swe
    data = config.eval.data.get(benchmark.name, "")
    if data in ("", SAMPLE):
        raise ConfigError(
            f"{setting}: must be a JSONL file of instances, and reward.swe.repos the folder of their repositories, "
            f"got {data or 'nothing'}; `r1async swe samples DIR` makes three, `r1async swe check FILE` examines them"
        )
    tokenizer = load_tokenizer(Path(config.model.path))
    budget = config.eval.protocol.max_prompt_tokens
    rows = SweRows(Path(data), swe.repos, swe.cache, tokenizer, config.data.template, budget)
    count = min(len(rows), config.eval.protocol.problems or len(rows))
    try:
        found = [rows[i] for i in range(count)]
    except PromptError as error:
        raise ConfigError(f"{benchmark.name}: {error}") from error
    problems = [
        Problem(id=row.extra["instance_id"], fields={"question": question_text(row.question)}, extra=row.extra)
        for row in found
    ]
    return Asked(benchmark=benchmark, problems=problems, prompts=_prompts(config, benchmark, problems), data=data)


def read_table(benchmark: Benchmark, data: str) -> tuple[Sequence[Mapping[str, object]], str]:
    """A benchmark's rows, and where they are from: a file, the sample, or the hub.

    Raises:
        ConfigError: they cannot be had.
    """
    if data == SAMPLE:
        path = FOLDER / "samples" / f"{benchmark.name}.jsonl"
        if not path.is_file():
            raise ConfigError(f"eval.data.{benchmark.name}: no sample comes with it; name a file")
        return _rows_of(path, f"eval.data.{benchmark.name}"), f"sample of r1async ({path.name})"
    if data:
        return _rows_of(Path(data), f"eval.data.{benchmark.name}"), data
    return _from_hub(benchmark)


def _rows_of(path: Path, setting: str) -> Sequence[Mapping[str, object]]:
    rows = read_any(path, lambda row, _: row, lambda _: None, held_out=True, setting=setting)
    return [rows[i] for i in range(len(rows))]


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
        extra = {**problem.extra, config.reward.domain_key: domain_name(benchmark.grader)}
        made.append(
            Prompt(ordinal=i, text=text, answer=problem.answer, token_ids=np.asarray(ids, dtype=np.int32), extra=extra)
        )
    return made
