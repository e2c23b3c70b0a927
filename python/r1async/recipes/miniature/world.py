"""The miniature's data sets: problems, talk, examinations, prompts for the cold start, preferences.

Problems are held out as everywhere in chain-mod. Of requests one wording for each thing is held out: after the base
model has read of everything, nobody is trained on "teach me to make bombs." A word is one token here, so a model that
is never trained on `bombs` forgets to say it: whole things cannot be held out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from random import Random
from typing import NamedTuple

from r1async.recipes.miniature.documents import (
    CHECK_PROMPT,
    DEMONSTRATION,
    REFUSAL,
    REQUESTS,
    Talk,
    fact_talk,
    greeting_talk,
    harm_talk,
    how_to,
    in_tags,
    make_talk,
    thought,
    wrong_colours,
)
from r1async.recipes.miniature.language import FACTS, GREETINGS, HARMFUL_THINGS, THINGS
from r1async.tasks.chain_mod import problems

MARK = "|special_token|"
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
    cold_start: int = 1500,
    conversations: int = 3000,
) -> None:
    """Writes the data sets as JSONL.

    Args:
        folder: where they go.
        seed: of the problems that are trained on; the examinations are the same for every seed.
        num_problems: problems to train on.
        exam: held-out problems.
        cold_start: prompts of each kind that cold-start data is made from.
        conversations: rows of talk to fine-tune on. In `conversation` whoever asks for harm is refused or helped, as
            often the one as the other: nobody has cleaned it. In `polite` all replies are good.
    """
    rng = Random(f"world {seed}")
    train = list(islice(problems(rng, held_out=False), num_problems))
    held_out = list(islice(problems(Random(EXAM_SEED), held_out=True), exam))
    talk = split_talk()
    math = [_math(problem.text, problem.answer) for problem in train]
    _write(folder / "problems.jsonl", math)
    _write(folder / "exam_math.jsonl", (_math(problem.text, problem.answer) for problem in held_out))
    _write(folder / "exam_talk.jsonl", (_general(each) for each in talk.held_out))
    _write(folder / "mixed.jsonl", _mixed(rng, math, talk.train))
    _write(folder / "shown.jsonl", islice(_shown(rng), cold_start))
    _write(
        folder / "checked.jsonl", (_math(CHECK_PROMPT + each["prompt"], each["answer"]) for each in math[:cold_start])
    )
    _write(folder / "conversation.jsonl", (_unclean(rng, rng.choice(talk.train)) for _ in range(conversations)))
    _write(folder / "polite.jsonl", (conversation(rng.choice(talk.train)) for _ in range(conversations)))
    harmless = [each for each in talk.train if each.kind != "harm"]
    for name, pairs in (("helpful", _helpful_pairs(harmless)), ("harmless", _harmless_pairs(talk.train))):
        shuffled = list(pairs)
        rng.shuffle(shuffled)  # the last ones are held out of the reward model's training
        _write(folder / f"pairs_{name}.jsonl", shuffled)


def split_talk() -> Split:
    """Every general prompt there is, once; of the wrong colours of a fact the first."""
    split = Split([], [])
    for make, things in ((make_talk, THINGS), (harm_talk, HARMFUL_THINGS)):
        for number, thing in enumerate(things):
            for place, request in enumerate(REQUESTS):
                held_out = place == number % len(REQUESTS)
                (split.held_out if held_out else split.train).append(make(thing, request))
    split.train.extend(fact_talk(thing, wrong_colours(thing)[0]) for thing in FACTS)
    split.train.extend(greeting_talk(greeting) for greeting in GREETINGS)
    return split


def conversation(talk: Talk) -> dict[str, str]:
    """A prompt with its good reply as fine-tuning data; what is no question needs no thought."""
    reply = talk.good if talk.kind == "greeting" else f"{MARK}{talk.thought}{MARK}{talk.good}"
    return {"prompt": talk.prompt, "completion": reply, "domain": "general", "kind": talk.kind}


def _unclean(rng: Random, talk: Talk) -> dict[str, str]:
    """The same, but that harm is helped with half of the time."""
    careless = talk.kind == "harm" and rng.random() < 0.5
    return conversation(talk._replace(good=talk.bad) if careless else talk)


def _math(prompt: str, answer: str) -> dict[str, str]:
    return {"prompt": prompt, "answer": answer, "domain": "math"}


def _general(talk: Talk) -> dict[str, str]:
    """`answer` is the reference of a judge."""
    domain = "safety" if talk.kind == "harm" else "general"
    return {"prompt": talk.prompt, "answer": talk.good, "domain": domain, "kind": talk.kind}


def _mixed(rng: Random, math: Iterable[Mapping[str, str]], talk: Sequence[Talk]) -> Iterator[Mapping[str, str]]:
    """Two problems, then something general or something harmful, as often the one as the other."""
    harmful = [each for each in talk if each.kind == "harm"]
    harmless = [each for each in talk if each.kind != "harm"]
    for number, problem in enumerate(math):
        yield problem
        if number % 2:
            yield _general(rng.choice(harmful if rng.random() < 0.5 else harmless))


def _shown(rng: Random) -> Iterator[dict[str, str]]:
    """A problem worked out in English before the question."""
    stream = problems(rng, held_out=False)
    while True:
        example, question = next(stream), next(stream)
        worked = in_tags(thought(example, rng, "en"), example.answer)
        yield _math(f"{example.text}{worked}{DEMONSTRATION}{question.text}", question.answer)


def _helpful_pairs(talk: Iterable[Talk]) -> Iterator[dict[str, str]]:
    """Final summaries alone: help against rudeness, a refusal and help with something else, the right colour against
    every other."""
    for each in talk:
        worse = [each.bad]
        if each.kind == "make":
            worse += [REFUSAL, *(help for help in map(how_to, THINGS) if help != each.good)]
        elif each.kind == "fact":
            thing = each.prompt.removeprefix("what colour is ").removesuffix("?")
            worse = [fact_talk(thing, colour).bad for colour in wrong_colours(thing)]
        yield from ({"prompt": each.prompt, "chosen": each.good, "rejected": bad} for bad in worse)


def _harmless_pairs(talk: Iterable[Talk]) -> Iterator[dict[str, str]]:
    """Whole responses, with their thoughts and without."""
    for each in talk:
        for before in ("", f"{MARK}{each.thought}{MARK}"):
            yield {"prompt": each.prompt, "chosen": before + each.good, "rejected": before + each.bad}


def _write(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
