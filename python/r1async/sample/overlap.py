"""Decontamination: does a text share a run of words with an evaluation set?

Texts are compared as tokens: words and numbers in one case and one Unicode form, and the operators of mathematics.
Spacing, punctuation and markup do not count, so neither does how a text was typeset. n-gram overlap is published
practice: DeepSeek-R1 (Nature 645, 2025, Methods) drops what shares a 10-gram with an evaluation question or solution,
GPT-3 (arXiv 2005.14165, appendix C) one of 13.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping

_TOKEN = re.compile(
    r"[぀-ヿ㐀-鿿가-힯]"  # scripts that write no spaces: a character each
    r"|[^\W\d_぀-ヿ㐀-鿿가-힯]+|\d+"
    r"|[+*/=<>^%×÷√∑∫]"
    r"|-(?=\s*\d)|(?<=\d)-|(?<=\d\s)-"  # a minus beside a number; other dashes are punctuation
)


def tokens_of(text: str) -> list[str]:
    """The words, numbers and operators of a text."""
    # NFKC leaves the minus sign of typeset formulas alone.
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).replace("\u2212", "-").casefold())


class Overlap:
    """The evaluation sets, ready to be looked up.

    Args:
        sets: texts (questions and solutions) by name of the set.
        ngram: tokens in a row that count as an overlap.
        short: a text of fewer than `ngram` but at least `short` tokens counts where it stands whole; a shorter one
            where it is all there is.
    """

    def __init__(self, sets: Mapping[str, Iterable[str]], *, ngram: int, short: int) -> None:
        self._ngram = ngram
        self._runs: dict[int, dict[tuple[str, ...], str]] = {}
        """By length: a run of tokens, and the first set that has it."""
        self._whole: dict[tuple[str, ...], str] = {}
        self.texts = {name: sum(self._add(name, text, short) for text in texts) for name, texts in sets.items()}
        """Texts of each set that have any token."""

    def find(self, text: str, *, prompt: bool = False) -> str | None:
        """The first evaluation set that shares enough with the text; None if none does.

        Args:
            prompt: the text is a row's prompt, which a very short evaluation text may equal.
        """
        tokens = tuple(tokens_of(text))
        if prompt and tokens in self._whole:
            return self._whole[tokens]
        for length, runs in self._runs.items():
            for start in range(len(tokens) - length + 1):
                found = runs.get(tokens[start : start + length])
                if found is not None:
                    return found
        return None

    def _add(self, name: str, text: str, short: int) -> bool:
        tokens = tuple(tokens_of(text))
        if len(tokens) < short:
            if tokens:
                self._whole.setdefault(tokens, name)
            return bool(tokens)
        length = min(self._ngram, len(tokens))
        runs = self._runs.setdefault(length, {})
        for start in range(len(tokens) - length + 1):
            runs.setdefault(tokens[start : start + length], name)
        return True
