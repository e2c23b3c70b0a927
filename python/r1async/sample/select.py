"""From completions on disk to the data set: what is kept, what is mixed in, and the account of the rest.

A function of the files and the settings: run again after a kill, or with other filters, it samples nothing.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pyarrow as pa

from r1async.config import Config
from r1async.config_sample import shares_of
from r1async.rewards.format import thought_of
from r1async.sample.filters import Graded, fingerprint, why_not
from r1async.sample.parts import Parts, write_parquet
from r1async.sample.prompts import Asked
from r1async.tasks.templates import Question, question_text
from r1async.types import Prompt

REASONING = "reasoning"
"""Source of rows whose prompt names none."""
FILE_ROWS = 65536
"""Rows of one file of the data set."""


@dataclass(kw_only=True)
class Account:
    """What became of prompts, completions and mixed-in rows."""

    prompts: Counter[str] = field(default_factory=Counter)
    completions: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    sources: dict[str, Counter[str]] = field(default_factory=dict)
    domains: dict[str, Counter[str]] = field(default_factory=dict)
    """Of `completions`, those of each domain's prompts."""

    def source(self, name: str) -> Counter[str]:
        return self.sources.setdefault(name, Counter())

    def completion(self, domain: str, reason: str, count: int = 1) -> None:
        """One more completion that is `kept`, or dropped for a reason."""
        self.completions[reason] += count
        self.domains.setdefault(domain, Counter())[reason] += count


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the data set."""

    prompt: Question
    completion: str
    source: str
    ordinal: int
    member: int
    """-1: not sampled."""


Kept = dict[tuple[int, int], str]
"""Prompt and member of each completion that stays, with the prompt's domain."""
NO_DOMAIN = "none"
"""Of prompts whose row names none, in the card."""


def select(config: Config, asked: Asked, parts: Parts, folder: Path) -> Account:
    """Writes the data set into `folder`, whole or not at all; what a former selection left there is replaced."""
    account = Account()
    kept = _keep(config, asked, parts, account)
    chosen, thoughts = _choose(config, asked, parts, kept, account)
    staging = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    _write(staging, _rows(config, asked, parts, kept, chosen, thoughts))
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)
    return account


def _keep(config: Config, asked: Asked, parts: Parts, account: Account) -> Kept:
    """The filters, prompt by prompt in their order: so the same whatever order completions came in."""
    keep, seen, kept = config.sample.keep, set[bytes](), Kept()
    whole = _of_the_task(asked, parts)
    for number in range(asked.main):
        prompt = asked.prompt(number)
        if isinstance(prompt, str):
            account.prompts[prompt] += 1
            continue
        account.prompts["sampled"] += 1
        # Those of prompts that are left out by now, though they were sampled, are passed over.
        found = next((each for each in whole if each[0].ordinal >= number), None)
        assert found is not None, "a prompt that is asked has its completions before anything is selected"
        assert found[0].ordinal == number, f"prompt {number} is not among the completions; {found[0].ordinal} is"
        mine, domain = 0, prompt.extra.get(config.reward.domain_key) or NO_DOMAIN
        for graded in found:
            account.tokens += graded.tokens
            reason = why_not(graded, keep, config.reward) or _seen_before(prompt, graded, asked, seen)
            if reason is None and mine == keep.per_prompt:
                reason = "enough_of_this_prompt"
            account.completion(domain, reason or "kept")
            if reason is None:
                mine += 1
                seen.add(fingerprint(prompt.text, graded.text))
                kept[number, graded.member] = domain
    return kept


def _of_the_task(asked: Asked, parts: Parts) -> Iterator[list[Graded]]:
    return (found for found in parts.rows() if found[0].ordinal < asked.main)


def _seen_before(prompt: Prompt, graded: Graded, asked: Asked, seen: set[bytes]) -> str | None:
    """In an evaluation set, or among the rows that are kept already."""
    found = asked.overlap.find(graded.text)
    if found is not None:
        return f"contaminated:{found}"
    return "duplicate" if fingerprint(prompt.text, graded.text) in seen else None


def _choose(
    config: Config, asked: Asked, parts: Parts, kept: Kept, account: Account
) -> tuple[list[int], Mapping[int, str]]:
    """Which mixed-in rows are taken (as numbers), with their thoughts; cuts `kept` to what is wanted."""
    rng, sample = Random(config.seed), config.sample
    clean: dict[str, list[int]] = {name: [] for name in sample.mix}
    for number, row in enumerate(asked.mixed, start=asked.main):
        text = question_text(row.prompt)
        found = asked.overlap.find(text, prompt=True) or asked.overlap.find(row.completion)
        counts = account.source(row.source)
        counts["rows"] += 1
        if found is None:
            clean[row.source].append(number)
        else:
            counts[f"contaminated:{found}"] += 1
    wanted = min(len(kept), sample.reasoning or len(kept))
    chosen: list[int] = []
    if clean:
        others = min(round(wanted / sample.ratio), sum(map(len, clean.values())))
        wanted = min(wanted, round(others * sample.ratio))
        for name, count in _fair(shares_of(sample.mix, others), clean).items():
            taken = sorted(rng.sample(clean[name], count))
            account.source(name)["taken"] = count
            account.source(name)["beyond_the_ratio"] = len(clean[name]) - count
            chosen += taken
    for each in rng.sample(sorted(kept), len(kept) - wanted):
        domain = kept.pop(each)
        account.completion(domain, "kept", -1)
        account.completion(domain, "beyond_the_ratio")
    thoughts = _thoughts(config, asked, parts, set(chosen))
    for number in chosen:
        row = asked.mixed[number - asked.main]
        missing = "thought_missing" if row.thinks else "without_thought"
        account.source(row.source)["with_thought" if number in thoughts else missing] += 1
    return chosen, thoughts


def _fair(shares: Mapping[str, int], clean: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """The shares, where a source that has too few rows gives way to those that have more."""
    taken = {name: min(count, len(clean[name])) for name, count in shares.items()}
    missing = sum(shares.values()) - sum(taken.values())
    for name, rows in clean.items():
        more = min(missing, len(rows) - taken[name])
        taken[name] += more
        missing -= more
    return taken


def _thoughts(config: Config, asked: Asked, parts: Parts, chosen: set[int]) -> dict[int, str]:
    """The first sampled thought of each of these rows that says something, ended, and is in no evaluation set."""
    reward = config.reward
    found: dict[int, str] = {}
    for completions in parts.rows():
        number = completions[0].ordinal
        if number not in chosen or not asked.mixed[number - asked.main].thinks:
            continue
        for graded in completions:
            thought = thought_of(
                graded.text, reward.format, think_prefilled=reward.think_prefilled, special_token=reward.special_token
            )
            if graded.finish != "stop" or not thought or thought == graded.text.strip():
                continue
            if asked.overlap.find(thought) is None:
                found[number] = thought
                break
    return found


def _rows(
    config: Config, asked: Asked, parts: Parts, kept: Kept, chosen: Sequence[int], thoughts: Mapping[int, str]
) -> Iterator[Row]:
    opening = _opening(config) if config.reward.think_prefilled else ""
    for completions in _of_the_task(asked, parts):
        for graded in completions:
            if (graded.ordinal, graded.member) in kept:
                prompt = asked.prompt(graded.ordinal)
                assert isinstance(prompt, Prompt), "what is kept was asked"
                yield Row(
                    _question(prompt), opening + graded.text, prompt.source or REASONING, graded.ordinal, graded.member
                )
    for number in chosen:
        row = asked.mixed[number - asked.main]
        thought = thoughts.get(number)
        completion = row.completion if thought is None else _thinking(config, thought, row.completion)
        yield Row(row.prompt, completion, row.source, number, -1)


def _opening(config: Config) -> str:
    return config.reward.special_token if config.reward.format == "special_token" else "<think>"


def _thinking(config: Config, thought: str, answer: str) -> str:
    """A thought before an answer, in the layout that the reward looks for."""
    if config.reward.format == "special_token":
        return f"{config.reward.special_token}{thought}{config.reward.special_token}{answer}"
    return f"<think>{thought}</think>" + (
        f"<answer>{answer}</answer>" if config.reward.format == "r1_zero" else f"\n\n{answer}"
    )


def _question(prompt: Prompt) -> Question:
    """As the row had it: text, or messages."""
    import json

    told = prompt.extra.get("messages")
    return prompt.text if told is None else json.loads(told)


def _write(folder: Path, rows: Iterator[Row]) -> None:
    pending: list[Row] = []
    number = 0
    for row in rows:
        pending.append(row)
        if len(pending) == FILE_ROWS:
            write_parquet(folder / f"train-{number:05d}.parquet", _table(pending))
            pending, number = [], number + 1
    if pending or not number:
        write_parquet(folder / f"train-{number:05d}.parquet", _table(pending))


def _table(rows: Sequence[Row]) -> pa.Table:
    """All prompts as messages, so that every file of every source has the same columns."""
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    schema = pa.schema(
        [
            ("prompt", pa.list_(message)), ("completion", pa.string()), ("source", pa.string()),
            ("ordinal", pa.int64()), ("member", pa.int32()),
        ]
    )  # fmt: skip
    prompts = [
        [{"role": "user", "content": row.prompt}] if isinstance(row.prompt, str) else [dict(m) for m in row.prompt]
        for row in rows
    ]
    columns = {
        "prompt": prompts, "completion": [row.completion for row in rows], "source": [row.source for row in rows],
        "ordinal": [row.ordinal for row in rows], "member": [row.member for row in rows],
    }  # fmt: skip
    return pa.table(columns, schema)


def data_hash(folder: Path) -> str:
    """SHA-256 of what the rows say, not of how parquet wrote it."""
    import pyarrow.parquet as pq

    whole = hashlib.sha256()
    for path in sorted(folder.glob("train-*.parquet")):
        for row in pq.read_table(path).to_pylist():
            whole.update(repr(row).encode())
    return whole.hexdigest()
