"""Prompt sets of a recipe: those of several domains in one file, and the two ways to ask a base model for thoughts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import Any

from r1async.config import ConfigError
from r1async.config_sample import DecontaminateConfig
from r1async.files import replacing, write_json
from r1async.sample.overlap import Overlap
from r1async.sample.prompts import evaluation_sets
from r1async.tasks import PromptError
from r1async.tasks.file import RowError, Rows, question_of, read_any
from r1async.tasks.swe import SweRows
from r1async.tasks.templates import Template, question_text
from r1async.tasks.tokenizer import load_tokenizer

SWE = "swe"
"""Domain and source of software-engineering instances."""
QUESTION, RESPONSE = "## Question\n", "\n\n## Response\n"
"""Before a question and its response in a prompt that shows worked examples."""
Record = Mapping[str, Any]


def mixed_prompts(
    folder: Path,
    *,
    sources: Mapping[str, str],
    seed: int,
    prompt_key: str = "prompt",
    answer_key: str = "answer",
    instances: str = "",
    repos: str = "",
    cache: str = "",
    model: str = "",
    template: Template = "chat",
    max_prompt_tokens: int = 8192,
    against: Mapping[str, str] | None = None,
    keys: Sequence[str] = DecontaminateConfig().keys,
    ngram: int = DecontaminateConfig().ngram,
    short: int = DecontaminateConfig().short,
) -> None:
    """Writes `prompts.jsonl`, rows of all sources in one shuffled order, and `card.json`, how many of each there are.

    A row gets a column `domain` with its source's name, which `reward.domains` goes by, and keeps its others. A row
    without a reference gets an empty one.

    Args:
        folder: where they go.
        sources: by domain, a file or folder of prompts.
        seed: of the order.
        prompt_key: column of the prompt, in all sources.
        answer_key: column of the reference.
        instances: JSONL file of software-engineering instances to be asked too, in one shot; their domain is `swe`.
        repos: folder of their repositories.
        cache: of repositories that have to be fetched.
        model: whose tokenizer counts; needed with instances.
        template: of the prompts; its tokens count.
        max_prompt_tokens: of one prompt for an instance.
        against: evaluation sets by name; prompts that overlap with them are left out and counted.
        keys: their columns that count, as in `sample.decontaminate`.
        ngram: tokens in a row that are an overlap.
        short: an evaluation text of at least so many and fewer than `ngram` is one where it stands whole.

    Raises:
        ConfigError: a file that cannot be read, or a row without a prompt.
    """
    if SWE in sources and instances:
        raise ConfigError(f"mixed_prompts: sources.{SWE} and instances are of the same domain; name one of them")
    if instances and not model:
        raise ConfigError("mixed_prompts: instances need a model, whose tokens count; set model")
    tables = {domain: _records(domain, Path(path), prompt_key) for domain, path in sources.items()}
    sets = evaluation_sets(against or {}, tuple(keys), "against")
    overlap, counts = Overlap(sets, ngram=ngram, short=short), Counter[str]()
    order: list[tuple[str, int]] = []
    for domain, table in tables.items():
        for index in range(len(table)):
            found = overlap.find(question_text(table[index][prompt_key]), prompt=True)
            counts[domain if found is None else f"{domain}, in {found}"] += 1
            order += [(domain, index)] if found is None else []
    asked: list[Record] = []
    if instances:
        rows = SweRows(Path(instances), repos, cache, load_tokenizer(Path(model)), template, max_prompt_tokens)
        asked = list(_instances(rows, prompt_key, answer_key, counts))
        order += [(SWE, index) for index in range(len(asked))]
    Random(seed).shuffle(order)
    _write(
        folder / "prompts.jsonl",
        (
            asked[index] if domain == SWE and instances else _of_domain(domain, tables[domain][index], answer_key)
            for domain, index in order
        ),
    )
    write_json(folder / "card.json", {"rows": len(order), "domains": dict(counts)})
    print(f"prompts: {len(order):,}; {', '.join(f'{name} {count:,}' for name, count in counts.items())}", flush=True)


def cold_start_prompts(
    folder: Path,
    *,
    problems: str,
    demonstrations: str,
    count: int,
    seed: int,
    shots: int = 1,
    separator: str = "\n\n---\n\n",
    request: str = "\n\nThink it through in detail. Reflect on every step, and verify the result before you answer.",
    prompt_key: str = "prompt",
    answer_key: str = "answer",
) -> None:
    """Writes `shown.jsonl`, problems after worked examples, and `checked.jsonl`, problems with a request to reflect.

    Source: DeepSeek-R1 (arXiv 2501.12948), 2.3.1: few-shot prompting with a long chain of thought as an example, and
    direct prompts for detailed answers with reflection and verification. `cold_start_data` takes the question out again
    with `before: ["## Question\\\\n"]` and `after: ["\\\\n\\\\n## Response", REQUEST]`.

    Args:
        folder: where they go.
        problems: file of problems with their answers.
        demonstrations: file of rows with `prompt` and `completion`, each a problem worked out.
        count: problems of each kind.
        seed: of the choice of problems and demonstrations.
        shots: demonstrations before a problem.
        separator: behind each of them. The model's end-of-text token, as it is written, has a base model end its own
            response with it, where it would go on with another question.
        request: what follows a problem of the second kind.
        prompt_key: column of the problem.
        answer_key: column of its answer.

    Raises:
        ConfigError: a file that cannot be read, or a row without what it must have.
    """
    rows, shown = (
        _records("problems", Path(problems), prompt_key, answer_key),
        _demonstrations(Path(demonstrations), separator),
    )
    if shots > len(shown):
        raise ConfigError(f"cold_start_prompts: shots: {demonstrations} has {len(shown)} rows, wanted {shots}")
    rng = Random(seed)
    chosen = [rows[index] for index in rng.sample(range(len(rows)), min(count, len(rows)))]
    rng.shuffle(shown)
    examples = cycle(shown)
    kinds = {
        "shown": lambda text: "".join(islice(examples, shots)) + f"{QUESTION}{text}{RESPONSE}",
        "checked": lambda text: text + request,
    }
    for name, prompt in kinds.items():
        made = ({**row, prompt_key: prompt(question_text(row[prompt_key]))} for row in chosen)
        _write(folder / f"{name}.jsonl", made)
    print(f"cold start: {len(chosen):,} problems, after {shots} examples and with a request to reflect", flush=True)


def _demonstrations(path: Path, separator: str) -> list[str]:
    table = _records("demonstrations", path, "prompt", "completion")
    rows = (table[index] for index in range(len(table)))
    return [f"{QUESTION}{question_text(row['prompt'])}{RESPONSE}{row['completion']}{separator}" for row in rows]


def _records(name: str, path: Path, prompt_key: str, *others: str) -> Rows[Record]:
    """Rows as they are, each with a prompt in it."""

    def parse(row: Record, where: str) -> Record:
        for key in others:
            if row.get(key) is None:
                raise RowError(f"{where}: no {key!r}; the row has {', '.join(row) or 'nothing'}")
        question_of(row.get(prompt_key), f"{where}: {prompt_key!r}")
        return row

    return read_any(path, parse, lambda _: None, setting=name)


def _of_domain(domain: str, row: Record, answer_key: str) -> Record:
    answer = row.get(answer_key)
    return {**row, answer_key: "" if answer is None else answer, "domain": domain}


def _instances(rows: SweRows, prompt_key: str, answer_key: str, counts: Counter[str]) -> Iterable[Record]:
    """Those that can be asked; the others are counted `swe, not asked`."""
    for index in range(len(rows)):
        try:
            row = rows[index]
        except PromptError as error:
            counts[f"{SWE}, not asked"] += 1
            print(f"prompts: {error}", flush=True)
            continue
        counts[SWE] += 1
        yield {prompt_key: row.question, answer_key: "", "domain": SWE, **row.extra}


def _write(path: Path, rows: Iterable[Record]) -> None:
    with replacing(path) as file:
        for row in rows:
            # default=str: parquet columns may hold dates and decimals, which JSON does not know.
            file.write(json.dumps(row, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass") + b"\n")
