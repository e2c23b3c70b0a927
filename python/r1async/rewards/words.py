"""The words of a text by script, and which of them repeat earlier ones: arrays, so that 32k tokens take milliseconds.

A word is a run of letters of one alphabet, a Korean eojeol, one Han character or one kana. N: words of a text.
"""

from __future__ import annotations

import unicodedata
from enum import IntEnum
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Script(IntEnum):
    """What a character is; everything above SIGN is a letter."""

    SPACE = 0
    END = 1
    """Ends a sentence."""
    INVISIBLE = 2
    """Belongs to the word around it: combining marks, apostrophes, soft hyphens."""
    DIGIT = 3
    SIGN = 4
    LATIN = 5
    GREEK = 6
    CYRILLIC = 7
    ARABIC = 8
    DEVANAGARI = 9
    HANGUL = 10
    HAN = 11
    KANA = 12
    OTHER = 13


_BLOCKS: tuple[tuple[Script, str], ...] = (
    (Script.LATIN, "0041-005A 0061-007A 00C0-00D6 00D8-00F6 00F8-024F 1E00-1EFF FF21-FF3A FF41-FF5A"),
    (Script.GREEK, "0370-03FF 1F00-1FFF"),
    (Script.CYRILLIC, "0400-052F 1C80-1C8F A640-A69F"),
    (Script.ARABIC, "0610-061A 0620-065F 066E-06D3 06D5-06EF 06FA-06FF 0750-077F 08A0-08FF FB50-FDFB FE70-FEFC"),
    (Script.DEVANAGARI, "0900-0963 0971-097F A8E0-A8FF"),
    (Script.HANGUL, "1100-11FF 3130-318F A960-A97F AC00-D7FF"),
    (Script.HAN, "3005-3007 3400-4DBF 4E00-9FFF F900-FAFF 20000-323AF"),
    (Script.KANA, "3041-309F 30A1-30FA 30FC-30FF 31F0-31FF FF66-FF9F"),
    (Script.END, "000A 0021 002E 003F 003B 2026 3002 FF01 FF0E FF1B FF1F 061F 06D4 0964-0965"),
    # Letters that are signs: ª µ º, raised and lowered ones, ℝ and its like.
    (Script.SIGN, "00AA 00B5 00BA 02B0-02B8 2071 207F 2090-209C 2100-214F"),
    (Script.INVISIBLE, "0027 00AD 02BC 0300-036F 200B-200F 2018-2019 2060 FE00-FE0F FEFF"),
)
_SIZE = 0x32400
"""Code points from here on are signs."""


@cache
def _table() -> NDArray[np.uint8]:
    table = np.full(_SIZE, Script.SIGN, np.uint8)
    for code in range(0x10000):
        letter = chr(code)
        if letter.isalpha():
            table[code] = Script.OTHER
        elif letter.isspace() or unicodedata.category(letter) in ("Cc", "Zs"):
            table[code] = Script.SPACE
        elif letter.isdecimal():
            table[code] = Script.DIGIT
    for script, blocks in _BLOCKS:
        for block in blocks.split():
            first, _, last = block.partition("-")
            table[int(first, 16) : int(last or first, 16) + 1] = script
    return table


class Words(NamedTuple):
    """The words of a text, in their order, `(N,)` each."""

    script: NDArray[np.uint8]
    sentence: NDArray[np.int64]
    """Number of the sentence; a number may have no words."""
    length: NDArray[np.int64]
    """Letters."""
    key: NDArray[np.uint64]
    """The same for equal words."""
    ends: NDArray[np.int64]
    """Where the sentences of the text end, but the last; as long as there are such."""


def words_of(text: str, *, signs: bool = False) -> Words:
    """Splits a text; case does not matter.

    Args:
        signs: numbers and signs are words too, for what repeats in mathematics and code.
    """
    if text.isascii():
        codes = np.frombuffer(text.lower().encode(), dtype=np.uint8)
        kinds = _table()[codes]
    else:
        text = unicodedata.normalize("NFC", text)
        codes = np.frombuffer(text.lower().encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        kinds = _table()[np.minimum(codes, _SIZE - 1)]
    ends = np.flatnonzero(kinds == Script.END)
    seen = kinds != Script.INVISIBLE
    hidden = None if seen.all() else np.flatnonzero(seen)
    if hidden is not None:
        codes, kinds = codes[hidden], kinds[hidden]
    part = kinds > (Script.INVISIBLE if signs else Script.SIGN)
    begins = part.copy()
    begins[1:] &= (kinds[1:] != kinds[:-1]) | _ALONE[kinds[1:]]
    starts = np.flatnonzero(begins)
    if not len(starts):
        nothing = np.zeros(0, np.int64)
        return Words(nothing.astype(np.uint8), nothing, nothing, nothing.astype(np.uint64), ends)
    # A polynomial of the letters; the power of the place that it starts at is divided out again.
    powers, inverses = _powers(1 << max(10, len(codes).bit_length()))
    terms = powers[: len(codes)] * codes
    terms *= part
    key = _mixed(np.add.reduceat(terms, starts) * inverses[starts])
    length = np.add.reduceat(part, starts, dtype=np.int64)
    places = starts if hidden is None else hidden[starts]
    return Words(kinds[starts], np.searchsorted(ends, places), length, key, ends)


_ALONE = np.array([script in (Script.SIGN, Script.HAN, Script.KANA) for script in Script])
"""Every character of these is a word."""


@cache
def _powers(count: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Powers of an odd number modulo 2^64, and their inverses."""
    powers = np.full((2, count), 1, np.uint64)
    powers[0, 1:] = BASE
    powers[1, 1:] = pow(BASE, -1, 1 << 64)
    return tuple(np.cumprod(powers, axis=1, dtype=np.uint64))


BASE = 0x9E3779B97F4A7C15


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Well spread over 64 bits (the finaliser of splitmix64)."""
    values = (values + np.uint64(0x9E3779B97F4A7C15)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def windows_of(key: NDArray[np.uint64], size: int) -> NDArray[np.uint64]:
    """A key of each `size` words in a row, ``(max(0, N - size + 1),)``."""
    if len(key) < size:
        return key[:0]
    have = 1
    while have < size:
        # Two windows that overlap cover the wider one, so the width doubles.
        step = min(have, size - have)
        key = _mixed(key[: len(key) - step] * np.uint64(3) + key[step:])
        have += step
    return key


def repeats(key: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """True where an equal key came earlier."""
    count = len(key)
    places = np.arange(count, dtype=np.int32)
    slot = (key >> np.uint64(64 - TABLE_BITS)).astype(np.int32)
    first = np.empty(1 << TABLE_BITS, np.int32)
    first[slot[::-1]] = places[::-1]  # the last to be written stays: the first place
    mine = first[slot]
    known = key[mine] == key
    found = known & (mine != places)
    if not known.all():
        # Another key has the slot: few, and sorted out exactly.
        rest = np.flatnonzero(~known)
        _, earliest = np.unique(key[rest], return_index=True)
        found[rest] = True
        found[rest[earliest]] = False
    return found


TABLE_BITS = 19
"""Slots for keys: many more than a completion has words."""


def repeated_words(key: NDArray[np.uint64], size: int) -> NDArray[np.bool_]:
    """True for each word that lies in a row of `size` words which stood there before."""
    again = repeats(windows_of(key, size)).astype(np.int64)
    edges = np.zeros(len(key) + 1, np.int64)
    edges[: len(again)] += again
    edges[size : size + len(again)] -= again
    return np.cumsum(edges)[:-1] > 0


def repetition(text: str, size: int) -> float:
    """Share of rows of `size` words, numbers and signs that stood in the text before; 0 in a shorter text."""
    windows = windows_of(words_of(text, signs=True).key, size)
    return float(repeats(windows).mean()) if len(windows) else 0.0
