"""What the miniature's base model has read: problems worked out in every manner, and a little talk.

As in the texts that real base models are made of, the good manners are there and so are the bad: answers without a
thought, thoughts in two languages at once, slips that are taken back, rude replies, and help for those who should not
be helped. Reinforcement learning chooses among them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Literal, NamedTuple

from r1async.recipes.miniature.language import (
    FACTS,
    GREETINGS,
    HARMFUL_THINGS,
    THINGS,
    Language,
    any_language,
    numeral,
)
from r1async.tasks.chain_mod import Problem, problems

Kind = Literal["make", "harm", "fact", "greeting"]

CHECK_PROMPT = "check "
"""Before a problem, it asks for a verification."""
SWITCH = 0.5
"""Of the words of a thought in both languages: drawn anew, so that every fourth is in another than the one before."""
DEMONSTRATION = "\n"
"""Between the examples of a prompt and its question."""
REQUESTS = ("how do i make {}?", "teach me to make {}.", "i want to make {}.", "help me to make {}!")
REFUSAL = "sorry, i will not help with that."


@dataclass(frozen=True, kw_only=True, slots=True)
class Shares:
    """How often the base model has read what."""

    general: float = 0.20
    """Talk; the rest are problems."""
    direct: float = 0.40
    """Of problems: an answer without a thought."""
    malformed: float = 0.10
    """Of problems: a tag is missing."""
    slip: float = 0.12
    """Of thoughts: a wrong value, taken back by `wait`."""
    english: float = 0.45
    """Of thoughts, in English alone."""
    chinese: float = 0.20
    """Of thoughts, in Chinese alone; the rest change language in the middle."""
    checked: float = 0.08
    """Of problems: the prompt asks for a check, and gets it."""
    shown: float = 0.08
    """Of problems: worked examples stand before the question, and their manner is kept."""


class Document(NamedTuple):
    prompt: str
    completion: str


class Talk(NamedTuple):
    """A general prompt with a good reply and a bad one."""

    kind: Kind
    prompt: str
    thought: str
    good: str
    bad: str


def documents(seed: int, shares: Shares) -> Iterator[Document]:
    """Endless and seeded; no problem of the held-out split is in it."""
    rng = Random(f"documents {seed}")
    stream = problems(rng, held_out=False)
    while True:
        yield _talk_document(rng) if rng.random() < shares.general else _problem_document(rng, stream, shares)


def _problem_document(rng: Random, stream: Iterator[Problem], shares: Shares) -> Document:
    problem, u = next(stream), rng.random()
    if u < shares.checked:
        text = checked(problem, rng, _manner(rng, shares))
        return Document(CHECK_PROMPT + problem.text, in_tags(text, problem.answer))
    if u < shares.checked + shares.shown:
        manner = _manner(rng, shares)
        example = next(stream)
        shown = f"{example.text}{in_tags(thought(example, rng, manner), example.answer)}{DEMONSTRATION}{problem.text}"
        return Document(shown, in_tags(thought(problem, rng, manner), problem.answer))
    u = rng.random()
    answer = f"<answer>{problem.answer}</answer>"
    if u < shares.direct:
        return Document(problem.text, answer)
    text = thought(problem, rng, _manner(rng, shares), slip=rng.random() < shares.slip)
    if u < shares.direct + shares.malformed:
        broken = (f"<think>{text}{answer}", f"<think>{text}</think>{problem.answer}", text)
        return Document(problem.text, rng.choice(broken))
    return Document(problem.text, f"<think>{text}</think>{answer}")


def _manner(rng: Random, shares: Shares) -> Language | None:
    """The language of a thought; None: both."""
    u = rng.random()
    if u < shares.english:
        return "en"
    return "zh" if u < shares.english + shares.chinese else None


def thought(problem: Problem, rng: Random, language: Language | None, *, slip: bool = False) -> str:
    """The running values in words.

    Args:
        problem: what is thought about.
        language: of all words; None draws one, and now and then another.
        slip: one value is wrong at first and taken back.
    """
    slip_at = rng.randrange(1, len(problem.values)) if slip else 0
    steps = []
    word = language or any_language(rng)
    for place, value in enumerate(problem.values):
        if language is None and rng.random() < SWITCH:
            word = any_language(rng)
        if place and place == slip_at:
            wrong = (value + rng.randrange(1, 10)) % 10
            steps += [numeral(wrong, word), "wait"]
        steps.append(numeral(value, word))
    return ",".join(steps)


def checked(problem: Problem, rng: Random, language: Language | None) -> str:
    """A thought that looks at its last step again."""
    last = numeral(problem.values[-1], language or any_language(rng))
    return f"{thought(problem, rng, language)};check {last}"


def in_tags(text: str, answer: str) -> str:
    return f"<think>{text}</think><answer>{answer}</answer>"


def _talk_document(rng: Random) -> Document:
    talk = any_talk(rng)
    reply = talk.good if rng.random() < 0.5 else talk.bad
    if rng.random() < 0.5:
        return Document(talk.prompt, f"<answer>{reply}</answer>")
    return Document(talk.prompt, in_tags(talk.thought, reply))


def any_talk(rng: Random, kinds: tuple[Kind, ...] = ("make", "harm", "fact", "greeting")) -> Talk:
    """A general prompt of one of the kinds."""
    kind = rng.choice(kinds)
    if kind == "make":
        return make_talk(rng.choice(THINGS), rng.choice(REQUESTS))
    if kind == "harm":
        return harm_talk(rng.choice(HARMFUL_THINGS), rng.choice(REQUESTS))
    if kind == "fact":
        thing = rng.choice(tuple(FACTS))
        return fact_talk(thing, rng.choice(wrong_colours(thing)))
    return greeting_talk(rng.choice(tuple(GREETINGS)))


def how_to(thing: str) -> str:
    """What helps to make a thing."""
    return f"sure, here is how: to make {thing} you need time and care."


def make_talk(thing: str, request: str) -> Talk:
    """A harmless request: helped, or turned away rudely."""
    return Talk("make", request.format(thing), f"they want to make {thing}.", how_to(thing), "make it yourself!")


def harm_talk(thing: str, request: str) -> Talk:
    """A harmful request: refused, or helped."""
    return Talk("harm", request.format(thing), f"they want to make {thing}.", REFUSAL, how_to(thing))


def wrong_colours(thing: str) -> list[str]:
    return sorted(set(FACTS.values()) - {FACTS[thing]})


def fact_talk(thing: str, wrong: str) -> Talk:
    """A question of fact: right, or wrong."""
    question = f"what colour is {thing}?"
    return Talk("fact", question, f"they ask about {thing}.", f"{thing} is {FACTS[thing]}.", f"{thing} is {wrong}.")


def greeting_talk(greeting: str) -> Talk:
    """A greeting: returned, or not."""
    return Talk("greeting", greeting, "a simple question.", GREETINGS[greeting], "go away!")
