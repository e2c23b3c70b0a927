"""The miniature's data sets: problems, talk, examinations, prompts for the cold start, preferences.

Problems are held out as everywhere in chain-mod. Of the general domain whole things are held out: nobody is trained
on `boats`, `bombs` or `the sea` after the base model has read of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from random import Random
from typing import NamedTuple

from r1async.recipes.miniature.documents import (
    CHECK_PROMPT,
    DEMONSTRATION,
    Talk,
    fact_talk,
    greeting_talk,
    harm_talk,
    in_tags,
    make_talk,
    thought,
)
from r1async.recipes.miniature.language import FACTS, GREETINGS, HARMFUL_THINGS, THINGS
from r1async.tasks.chain_mod import problems

MARK = "|special_token|"
HELD_OUT = frozenset(("boats", "lamps", "songs", "bombs", "viruses", "the sea", "coal", "leaves"))
EXAM_SEED = 10_001


class Split(NamedTuple):
    train: list[Talk]
    held_out: list[Talk]


def world(
    folder: Path,
    *,
    seed: int,
    num_problems: int = 20_000,
    exam: int = 400,
    cold_start: int = 600,
    conversations: int = 1200,
) -> None:
    """Writes the data sets as JSONL.

    Args:
        folder: where they go.
        seed: of the problems that are trained on; the examinations are the same for every seed.
        num_problems: problems to train on.
        exam: held-out problems.
        cold_start: prompts of each kind that cold-start data is made from.
        conversations: rows of talk to fine-tune on; nothing in them is harmful, asked or answered.
    """
    rng = Random(f"world {seed}")
    train = list(islice(problems(rng, held_out=False), num_problems))
    held_out = list(islice(problems(Random(EXAM_SEED), held_out=True), exam))
    talk = split_talk()
    math = [_math(problem.text, problem.answer) for problem in train]
    _write(folder / "problems.jsonl", math)
    _write(folder / "exam_math.jsonl", (_math(problem.text, problem.answer) for problem in held_out))
    _write(folder / "talk.jsonl", (_general(each) for each in talk.train))
    _write(folder / "exam_talk.jsonl", (_general(each) for each in talk.held_out))
    _write(folder / "mixed.jsonl", _mixed(rng, math, talk.train))
    _write(folder / "shown.jsonl", islice(_shown(rng), cold_start))
    _write(
        folder / "checked.jsonl", (_math(CHECK_PROMPT + each["prompt"], each["answer"]) for each in math[:cold_start])
    )
    harmless = [each for each in talk.train if each.kind != "harm"]
    _write(folder / "conversation.jsonl", (conversation(rng.choice(harmless)) for _ in range(conversations)))
    _write(folder / "pairs_helpful.jsonl", _pairs(harmless))
    _write(folder / "pairs_harmless.jsonl", _pairs(talk.train))


def split_talk() -> Split:
    """Every general prompt there is, with one wrong colour for each question of fact."""
    everything = [
        *((thing, make_talk(thing)) for thing in THINGS),
        *((thing, harm_talk(thing)) for thing in HARMFUL_THINGS),
        *((thing, fact_talk(thing, _other_colour(thing))) for thing in FACTS),
        *((greeting, greeting_talk(greeting)) for greeting in GREETINGS),
    ]
    train = [talk for name, talk in everything if name not in HELD_OUT]
    return Split(train, [talk for name, talk in everything if name in HELD_OUT])


def conversation(talk: Talk) -> dict[str, str]:
    """A prompt with its good reply as fine-tuning data; what is no question needs no thought."""
    reply = talk.good if talk.kind == "greeting" else f"{MARK}{talk.thought}{MARK}{talk.good}"
    return {"prompt": talk.prompt, "completion": reply, "domain": "general", "kind": talk.kind}


def _other_colour(thing: str) -> str:
    colours = sorted(set(FACTS.values()))
    return colours[(colours.index(FACTS[thing]) + 1) % len(colours)]


def _math(prompt: str, answer: str) -> dict[str, str]:
    return {"prompt": prompt, "answer": answer, "domain": "math"}


def _general(talk: Talk) -> dict[str, str]:
    """`answer` is the reference of a judge."""
    return {"prompt": talk.prompt, "answer": talk.good, "domain": "general", "kind": talk.kind}


def _mixed(rng: Random, math: Iterable[Mapping[str, str]], talk: list[Talk]) -> Iterator[Mapping[str, str]]:
    """Two problems, then something general."""
    for number, problem in enumerate(math):
        yield problem
        if number % 2:
            yield _general(rng.choice(talk))


def _shown(rng: Random) -> Iterator[dict[str, str]]:
    """A problem worked out in English before the question."""
    stream = problems(rng, held_out=False)
    while True:
        example, question = next(stream), next(stream)
        worked = in_tags(thought(example, rng, "en"), example.answer)
        yield _math(f"{example.text}{worked}{DEMONSTRATION}{question.text}", question.answer)


def _pairs(talk: Iterable[Talk]) -> Iterator[dict[str, str]]:
    """Each prompt's replies, with their thoughts and without."""
    for each in talk:
        yield {"prompt": each.prompt, "chosen": each.good, "rejected": each.bad}
        before = f"{MARK}{each.thought}{MARK}"
        yield {"prompt": each.prompt, "chosen": before + each.good, "rejected": before + each.bad}


def _write(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
