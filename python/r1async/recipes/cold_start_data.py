"""Cold-start data from completions in R1-Zero's layout: readable thoughts, each with a summary.

Source: DeepSeek-R1 (arXiv 2501.12948), 2.3.1: outputs are kept where they are readable, and written as
|special_token|<reasoning_process>|special_token|<summary>.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

import pyarrow.dataset as ds

from r1async.answers import extract_answer, last_boxed, response_of
from r1async.files import write_json
from r1async.rewards.format import thought_of
from r1async.tasks.templates import question_text


class Kept(NamedTuple):
    prompt: str
    thought: str
    summary: str


def cold_start_data(
    folder: Path,
    *,
    sources: Mapping[str, str],
    seed: int,
    mark: str = "|special_token|",
    min_thought_words: int = 2,
    before: Sequence[str] = ("\n", "check "),
    after: Sequence[str] = (),
) -> None:
    """Writes `data.jsonl` (prompt, completion, source), shuffled, and `card.json`, what was left out and why.

    Args:
        folder: where they go.
        sources: folders of `r1async sample`, by name.
        seed: of the order.
        mark: before the reasoning and before the summary.
        min_thought_words: comma- or space-separated words that a thought must have.
        before: texts that a prompt's question comes after the last of: worked examples and requests are not kept.
        after: texts that it ends at.
    """
    rows: list[dict[str, str]] = []
    counts: dict[str, Counter[str]] = {}
    seen: set[str] = set()
    for name, path in sources.items():
        counts[name] = Counter()
        for prompt, completion in _rows(Path(path)):
            counts[name]["rows"] += 1
            kept = _readable(_bare(prompt, before, after), completion, min_thought_words)
            if isinstance(kept, str):
                counts[name][kept] += 1
            elif kept.prompt in seen:
                counts[name]["same prompt"] += 1
            else:
                seen.add(kept.prompt)
                counts[name]["kept"] += 1
                text = f"{mark}{kept.thought}{mark}{kept.summary}"
                rows.append({"prompt": kept.prompt, "completion": text, "source": name})
    Random(seed).shuffle(rows)
    with (folder / "data.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_json(folder / "card.json", {"rows": len(rows), "sources": counts})
    print(f"cold start: {len(rows)} rows; {', '.join(f'{name} {dict(c)}' for name, c in counts.items())}", flush=True)


def _rows(folder: Path) -> Iterator[tuple[str, str]]:
    for batch in ds.dataset(folder, format="parquet").to_batches(columns=["prompt", "completion"]):
        for prompt, completion in zip(batch["prompt"].to_pylist(), batch["completion"].to_pylist(), strict=True):
            yield question_text(prompt), completion


def _readable(prompt: str, completion: str, min_thought_words: int) -> Kept | str:
    """The parts of a readable completion, or why it is none."""
    thought, answer = thought_of(completion, "r1_zero"), extract_answer(completion)
    if answer is None or not answer.strip():
        return "no answer"
    if thought is None or len(thought.replace(",", " ").split()) < min_thought_words:
        return "no thought"
    said = response_of(completion)
    # R1-Zero answers in tags, as a rule with nothing but the answer.
    summary = said if last_boxed(said) is not None else f"\\boxed{{{answer.strip()}}}"
    return Kept(prompt, thought.strip(), summary)


def _bare(prompt: str, before: Sequence[str], after: Sequence[str]) -> str:
    for text in before:
        prompt = prompt.rpartition(text)[2]
    for text in after:
        prompt = prompt.partition(text)[0]
    return prompt.strip()
