"""The words of the miniature: one token each, so that a model of 100,000 parameters need not learn to spell.

Running values of chain-mod are written in one of two languages, English number words or Chinese numerals. Words, not
digits: a digit belongs to no language, and language consistency (docs/rewards.md) counts words.
"""

from __future__ import annotations

import re
from random import Random
from typing import TYPE_CHECKING, Literal

from tokenizers import Tokenizer

from r1async.tasks import chain_mod

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Language = Literal["en", "zh"]

ENGLISH = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CHINESE = "零一二三四五六七八九"
NUMERALS: dict[Language, tuple[str, ...]] = {"en": ENGLISH, "zh": tuple(CHINESE)}

SPECIAL_TOKENS = chain_mod.SPECIAL_TOKENS
TAGS = ("<think>", "</think>", "<answer>", "</answer>", "|special_token|", "\\boxed{", "}")
CHARACTERS = tuple("0123456789+-*=,.;:?! \n")

REFLECTION = ("wait", "check")
"""Words that open a look back: `wait` a correction, `check` a verification."""

THINGS = (
    "bread", "soup", "tea", "cake", "kites", "boats", "chairs", "songs", "gardens", "lamps", "hats", "toys", "ropes",
    "shelves",
)  # fmt: skip
HARMFUL_THINGS = (
    "poison", "bombs", "traps", "viruses", "weapons", "forgeries", "explosives", "spyware", "malware", "toxins",
    "ambushes", "ransomware",
)  # fmt: skip
FACTS = {
    "grass": "green", "snow": "white", "blood": "red", "coal": "black", "gold": "yellow", "the sky": "blue",
    "milk": "white", "leaves": "green", "roses": "red", "the sea": "blue",
}  # fmt: skip
GREETINGS = {
    "hello": "hello! how can i help?", "good morning": "good morning! how can i help?", "thanks": "you are welcome!",
}  # fmt: skip

_GENERAL = (
    "how do i make", "teach me to make", "i want to make", "help me to make", "what colour is", "they ask about",
    "to make", "you need time and care",
    "here is how", "sure", "sorry", "i will not help with that", "make it yourself", "go away", "is",
    "a simple question", "they want to make",
)  # fmt: skip
"""Phrases of the general domain that are one token each."""

WORDS = (
    *ENGLISH, *CHINESE, *REFLECTION, *THINGS, *HARMFUL_THINGS, *FACTS, *sorted(set(FACTS.values())), *GREETINGS,
    *sorted({piece.strip() for text in GREETINGS.values() for piece in re.split(r"[!?]", text) if piece.strip()}
            - set(GREETINGS)),
    *_GENERAL,
)  # fmt: skip

VOCABULARY = tuple(dict.fromkeys((*SPECIAL_TOKENS, *TAGS, *CHARACTERS, *WORDS)))
PAD, BOS, EOS = chain_mod.PAD, chain_mod.BOS, chain_mod.EOS

IDS = {token: number for number, token in enumerate(VOCABULARY)}
_PIECES = re.compile("|".join(re.escape(token) for token in sorted(VOCABULARY[len(SPECIAL_TOKENS) :], key=len)[::-1]))


def encode(text: str) -> list[int]:
    """The text's tokens, longest words first.

    Raises:
        ValueError: the text has what is no word of the miniature.
    """
    pieces = _PIECES.findall(text)
    if "".join(pieces) != text:
        raise ValueError(f"not all of {text!r} is made of the miniature's words")
    return [IDS[piece] for piece in pieces]


def decode(tokens: list[int]) -> str:
    """The text of tokens, up to the end-of-sequence token."""
    end = tokens.index(EOS) if EOS in tokens else len(tokens)
    return "".join(VOCABULARY[token] for token in tokens[:end])


def numeral(value: int, language: Language) -> str:
    return NUMERALS[language][value]


def any_language(rng: Random) -> Language:
    return rng.choice(("en", "zh"))


def build_tokenizer() -> Tokenizer:
    """The miniature's tokenizer."""
    return chain_mod.word_tokenizer(IDS, _PIECES.pattern)


def hf_tokenizer() -> PreTrainedTokenizerFast:
    """The same for a model directory."""
    return chain_mod.hf_tokenizer(build_tokenizer())
