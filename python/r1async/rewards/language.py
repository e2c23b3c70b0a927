r"""Language consistency: the share of words in the chain of thought that are of the target language (DeepSeek-R1).

The unit is a word: a run of letters of one alphabet (apostrophes within), a Korean eojeol, one Han character, one
kana. One-letter words in Latin or Greek are variables and no words. Mathematics, code and addresses are stripped. A
script tells most languages apart; where several share one, each sentence is identified (see `identify`).

A word in a row of `ROW` words that stood there before is not counted for the target, so that no padding raises the
share; and a thought of which more than half is such repetition loses in proportion.

Source: DeepSeek-R1 (arXiv 2501.12948), 2.3.2. docs/rewards.md has examples.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from r1async.rewards.words import Script, Words, repeated_words, words_of

ROW = 8
"""Words in a row; honest thoughts seldom say eight the same twice, a restated problem apart."""
HAN_HEADING = 6
"""So many Han characters in a sentence without kana still may be Japanese: a heading, a term."""
MIN_LETTERS = 24
"""A sentence with fewer is identified together with the next."""

SCRIPTS: dict[str, Script] = {
    "en": Script.LATIN,
    "fr": Script.LATIN,
    "de": Script.LATIN,
    "es": Script.LATIN,
    "ru": Script.CYRILLIC,
    "ar": Script.ARABIC,
    "hi": Script.DEVANAGARI,
    "ko": Script.HANGUL,
    "zh": Script.HAN,
    "ja": Script.KANA,
}
"""Target languages by ISO 639-1 code, and the script that their words are in; Japanese has Han besides."""
SHARED = frozenset((Script.LATIN, Script.CYRILLIC, Script.ARABIC, Script.DEVANAGARI))
"""Scripts of more than one language."""

Identify = Callable[[str, Script], str]
"""Language code of a text in a script, or "" if it is not to be told."""


class Consistency(NamedTuple):
    score: float | None
    """`share` less what repetition costs; None for a thought without words."""
    share: float | None
    repeated: float
    """Share of words that lie in a row that stood there before."""
    words: int


def target_of(code: str) -> str:
    """``en`` of ``en``, ``EN`` or ``en-US``.

    Raises:
        ValueError: not one of `SCRIPTS`.
    """
    language = re.split(r"[-_]", code.strip().lower(), maxsplit=1)[0]
    if language not in SCRIPTS:
        raise ValueError(f"target language must be one of {', '.join(SCRIPTS)}, got {code!r}")
    return language


def consistency(thought: str, target: str, identify: Identify | None = None) -> Consistency:
    """How far a chain of thought is in its target language.

    Args:
        target: as from `target_of`.
        identify: tells languages of one script apart; None goes by script alone.
    """
    text = stripped(thought)
    words = words_of(text)
    counted = (words.length > 1) | ((words.script != Script.LATIN) & (words.script != Script.GREEK))
    total = int(counted.sum())
    if not total:
        return Consistency(None, None, 0.0, 0)
    ours = _in_script(words, target) & counted
    if identify is not None and SCRIPTS[target] in SHARED:
        ours &= np.isin(words.sentence, _foreign_sentences(text, words, target, identify), invert=True)
    again = repeated_words(words.key, ROW)
    fresh = int((ours & ~again).sum())
    foreign = total - int(ours.sum())
    repeated = float((again & counted).sum()) / total
    share = fresh / (fresh + foreign) if fresh + foreign else 1.0
    return Consistency(share * min(1.0, 2.0 * (1.0 - repeated)), share, repeated, total)


def _in_script(words: Words, target: str) -> NDArray[np.bool_]:
    ours = words.script == SCRIPTS[target]
    if target not in ("zh", "ja"):
        return ours
    sentences = int(words.sentence[-1]) + 1
    has_kana = np.bincount(words.sentence, words.script == Script.KANA, sentences) > 0
    num_han = np.bincount(words.sentence, words.script == Script.HAN, sentences)
    is_han = words.script == Script.HAN
    if target == "zh":
        return is_han & ~has_kana[words.sentence]
    return ours | (is_han & (has_kana | (num_han <= HAN_HEADING))[words.sentence])


def _foreign_sentences(text: str, words: Words, target: str, identify: Identify) -> NDArray[np.int64]:
    """Numbers of the sentences that are in another language of the target's script."""
    script = SCRIPTS[target]
    mine = words.script == script
    if not mine.any():
        return np.zeros(0, np.int64)
    letters = np.bincount(words.sentence[mine], words.length[mine], len(words.ends) + 1).astype(int)
    bounds = [0, *(int(end) + 1 for end in words.ends), len(text)]
    foreign: list[int] = []
    group: list[int] = []
    held, label = 0, target
    for number in np.flatnonzero(letters):
        group.append(int(number))
        held += letters[number]
        if held >= MIN_LETTERS:
            label = identify(" ".join(text[bounds[n] : bounds[n + 1]] for n in group), script) or target
            foreign += group if label != target else []
            group, held = [], 0
    # What is left is too short to be told; it goes with what was before it.
    foreign += group if label != target else []
    return np.array(foreign, np.int64)


_END = "\\end{"
"""The name of what it ends is left for the other commands."""
_BLOCKS = (("```", "```"), ("~~~", "~~~"), ("\\begin{", _END), ("$$", "$$"), ("\\[", "\\]"), ("\\(", "\\)"))
_CODE = ("```", "~~~")
_SPANS = re.compile(r"\$[^$\n]*\$|`[^`\n]*`|<[/|]?[a-zA-Z|][^<>\n]*>|\\[a-zA-Z]+\*?(?:\s?\{[^{}]*\})*")
"""These end in their line or are none: a lone dollar is money. No letter is looked at twice."""
_BACKSLASHES = re.compile(r"\\{3,}")
_ADDRESS = re.compile(r"(?:https?|ftp)://[^\s<>\"'）)\]。，]*|\bwww\.[^\s<>\"'）)\]。，]*")


def stripped(text: str) -> str:
    r"""A text without code, mathematics, LaTeX commands, tags and addresses. Linear in the text."""
    for opener, closer in _BLOCKS:
        text = _without(text, opener, closer)
    if "://" in text or "www." in text:
        text = _ADDRESS.sub(" ", text)
    if "\\\\\\" in text:
        text = _BACKSLASHES.sub(r"\\\\", text)  # each would be looked at as the begin of a command
    return _SPANS.sub(" ", text)


def _without(text: str, opener: str, closer: str) -> str:
    """A text without its blocks from opener to closer. Code that is not closed goes to the end, mathematics is none."""
    place = text.find(opener)
    if place < 0:
        return text
    kept, start = [], 0
    while place >= 0:
        end = text.find(closer, place + len(opener))
        if end < 0 and opener not in _CODE:
            break
        kept.append(text[start:place])
        start = len(text) if end < 0 else end + (0 if closer == _END else len(closer))
        place = text.find(opener, start)
    kept.append(text[start:])
    return " ".join(kept)
