"""Decontamination: planted overlaps are found however they are typeset, and nothing else is dropped."""

from __future__ import annotations

import random

import pytest
from r1async.sample.overlap import Overlap, tokens_of

QUESTIONS = [
    "Let $x$ and $y$ be real numbers such that $x + y = 7$ and $x y = 10$. Find the value of $x^2 + y^2$.",
    "A train leaves the station at 9:40 and travels at 80 km per hour; when does it reach the town 120 km away?",
    "How many positive integers less than 1000 are divisible by neither 5 nor 7?",
    "Compute the remainder when 2^100 is divided by 13, and justify every step of the argument.",
    "What is the area of a triangle with sides of length 13, 14 and 15?",
    "Write a function that returns the longest palindromic substring of a given string in linear time.",
    "一个袋子里有三个红球和五个白球,随机取出两个球,两个都是红球的概率是多少?",
    "Sei n eine natürliche Zahl; zeige, dass n^3 - n durch 6 teilbar ist für alle n.",
    "The sum of the first n odd numbers equals n squared; prove it by induction for every n.",
    "5-4-0-1*8-5+3*2-7=",
]
CLEAN = [
    "Let $a$ and $b$ be whole numbers such that $a + b = 9$ and $a b = 20$. Find $a - b$.",
    "A bus leaves the depot at 10:15 and drives at 60 km per hour; when is it in the village 90 km away?",
    "How many positive integers less than 500 are divisible by 3?",
    "What is the area of a rectangle with sides of length 3 and 4?",
    "6-4+0-1+8-5*3*2+8=",
    "5+4-0*1*8+5+3*2-7=",
    "一个盒子里有两个蓝球和四个黑球,随机取出一个球,它是蓝球的概率是多少?",
    "Hello!",
    "How are you today?",
]
"""About the same things in other words or numbers; none shares ten tokens in a row with a question above."""


def respaced(text: str) -> str:
    """Other spacing, between every word, number and sign."""
    return "  ".join(tokens_of(text))


def shouted(text: str) -> str:
    return text.upper()


def unpunctuated(text: str) -> str:
    return text.translate(str.maketrans("", "", ".,;:?!$"))


def embedded(text: str) -> str:
    return f'Here is a problem that my teacher gave me yesterday. "{text}" I could not solve it; can you?'


def dashed(text: str) -> str:
    return text.replace(" and ", " — and — ").replace("; ", " … ").replace(",", " ,")


DISGUISES = (respaced, shouted, unpunctuated, embedded, dashed)


def overlap(ngram: int = 10) -> Overlap:
    return Overlap({"exam": QUESTIONS[:5], "other": QUESTIONS[5:]}, ngram=ngram, short=6)


def test_twenty_planted_overlaps_are_found_and_nothing_else_is_dropped():
    """Two disguises of each of ten questions, among clean rows, in any order."""
    planted = [
        (DISGUISES[(i + turn) % 5](question), "exam" if i < 5 else "other")
        for i, question in enumerate(QUESTIONS)
        for turn in (0, 2)
    ]
    assert len(planted) == 20
    rows: list[tuple[str, str | None]] = [*planted, *((text, None) for text in CLEAN)]
    random.Random(0).shuffle(rows)
    found = overlap()
    assert [(text, found.find(text, prompt=True)) for text, _ in rows] == rows


@pytest.mark.parametrize("disguise", [*DISGUISES, lambda text: embedded(shouted(respaced(text)))])
def test_every_question_is_found_in_every_disguise(disguise):
    found = overlap()
    assert all(found.find(disguise(question)) for question in QUESTIONS)


def test_ten_tokens_are_an_overlap_and_nine_are_none():
    words = [f"w{chr(97 + i)}" for i in range(12)]
    found = Overlap({"set": [" ".join(words)]}, ngram=10, short=6)
    assert found.find("so " + " ".join(words[1:11])) == "set"
    assert found.find("so " + " ".join(words[1:10]) + " else " + " ".join(words[10:])) is None


def test_a_short_text_counts_whole_and_a_very_short_one_as_the_prompt_alone():
    found = Overlap({"set": ["What is seven times eight minus one", "2 + 3"]}, ngram=10, short=6)
    assert found.find("Tell me: what is seven times eight minus one? Thanks.") == "set"
    assert found.find("what is seven times eight") is None
    assert found.find("2+3", prompt=True) == "set"
    assert found.find("1 + 2 + 3 + 4", prompt=True) is None
    assert found.find("2 + 3") is None  # a completion that happens to say it


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("x^2+1=0", ["x", "^", "2", "+", "1", "=", "0"]),
        ("Well-known, isn't it?", ["well", "known", "isn", "t", "it"]),
        ("5-4 - 3", ["5", "-", "4", "-", "3"]),
        ("5\u22124 \u2212 3", ["5", "-", "4", "-", "3"]),  # the minus sign
        ("２ｘ", ["2", "x"]),  # full width
        ("三个 red球", ["三", "个", "red", "球"]),
        ("snake_case 10km", ["snake", "case", "10", "km"]),
    ],
)
def test_tokens(text, tokens):
    assert tokens_of(text) == tokens


def test_texts_of_each_set_are_counted():
    assert overlap().texts == {"exam": 5, "other": 5}
    assert Overlap({"empty": ["", "...", "a"]}, ngram=10, short=6).texts == {"empty": 1}
