"""Prompt sources: what is asked, in a seeded order, as the model's tokens.

Light to import: neither torch nor transformers nor datasets is loaded until a source needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from r1async.types import Prompt


class PromptError(ValueError):
    """A prompt that cannot be asked; the message names the row, what is wrong with it and what to do."""


class PromptSource(Protocol):
    """Prompts by ordinal: the same source under the same seed gives the same prompt for the same ordinal, always.

    So a run that resumes needs no more than the ordinals it had not finished.
    """

    @property
    def total(self) -> int | None:
        """Ordinals there are: rows x epochs. None if the source never ends."""
        ...

    @property
    def fingerprint(self) -> str:
        """Of all that decides which prompt is where, but the seed. A run goes on only with the data it began with."""
        ...

    def prompt(self, ordinal: int) -> Prompt:
        """The prompt at a place of the order.

        Raises:
            PromptError: this prompt cannot be asked (too long, unknown characters); others can.
            IndexError: `ordinal` is not below `total`.
        """
        ...

    def held_out(self, count: int) -> Sequence[Prompt]:
        """The first `count` prompts that are never trained, numbered from 0.

        Raises:
            PromptError: there are fewer, or one of them cannot be asked: an evaluation never shrinks silently.
        """
        ...
