"""chain-mod: six digits, five operators, strictly left to right, each step modulo 10.

``5-4-0-1*8-5=`` has the running values 5, 1, 1, 0, 0, 5, so the answer is 5 and a full completion is
``<think>5,1,1,0,0,5</think><answer>5</answer>``. Small enough that a laptop teaches it in a minute, and it cannot
be answered without the thought: a model of 100,000 parameters that answers at once is right one time in four.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from r1async.tasks import PromptError
from r1async.tasks.file import Row, Rows
from r1async.tasks.templates import question_text
from r1async.tasks.tokenizer import PromptTokenizer
from r1async.types import Prompt

OPERATORS = "+-*"
NUM_OPERATORS = 5
HELD_OUT_OF_256 = 26
"""A problem is held out if the first byte of its md5 is below this: 10.2 % of them, the same ones in every run."""

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>")
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
CHARACTERS = "0123456789+-*=%,; ?()abcdxy"
VOCABULARY = (*SPECIAL_TOKENS, *TAGS, *CHARACTERS)
"""34 tokens, their ids in this order; a tag is one token."""

PAD, BOS, EOS = 0, 1, 2

_IDS = {token: i for i, token in enumerate(VOCABULARY)}
_PIECES = re.compile("|".join((*TAGS, ".")))

COLD_START_SEED, STYLE_SEED, DEV_SEED, TRAIN_SEED = 1, 77, 999_983, 5000
"""Added to the run's seed, so that the streams of one run never coincide."""
EVAL_SEED = 10_001
"""Not added to anything: every run is examined on the same problems."""

DIRECT_SHARE = 0.40
"""Demonstrations that answer without a thought: what is left for reinforcement learning to find out."""
MALFORMED_SHARE = 0.15

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_BLOCK = 1024
"""Problems between two saved generator states: random access costs at most this many draws."""


class Problem(NamedTuple):
    text: str
    values: tuple[int, ...]
    """Running values, the first digit included."""

    @property
    def answer(self) -> str:
        return str(self.values[-1])

    @property
    def trace(self) -> str:
        return ",".join(map(str, self.values))


def draw(rng: random.Random) -> Problem:
    """One problem, from the split it happens to fall into."""
    value = rng.randrange(10)
    text, values = str(value), [value]
    for _ in range(NUM_OPERATORS):
        operator, digit = rng.choice(OPERATORS), rng.randrange(10)
        value = {"+": value + digit, "-": value - digit, "*": value * digit}[operator] % 10
        text += f"{operator}{digit}"
        values.append(value)
    return Problem(f"{text}=", tuple(values))


def is_held_out(text: str) -> bool:
    return hashlib.md5(text.encode(), usedforsecurity=False).digest()[0] < HELD_OUT_OF_256


def _is_slow(text: str, share: float) -> bool:
    """By another byte of the problem than `is_held_out` looks at, so that both splits have the same share."""
    return hashlib.md5(text.encode(), usedforsecurity=False).digest()[1] < 256 * share


def problems(rng: random.Random, *, held_out: bool) -> Iterator[Problem]:
    """An endless stream of one split: problems of the other are drawn and thrown away."""
    while True:
        problem = draw(rng)
        if is_held_out(problem.text) == held_out:
            yield problem


def demonstrations(seed: int) -> Iterator[tuple[str, str]]:
    """Prompts and completions to imitate: 45 % in full, 40 % without a thought, 15 % broken in one of three ways."""
    style = random.Random(seed + STYLE_SEED)
    for problem in problems(random.Random(seed + COLD_START_SEED), held_out=False):
        yield problem.text, _demonstration(problem, style)


def _demonstration(problem: Problem, style: random.Random) -> str:
    u = style.random()
    answer = f"<answer>{problem.answer}</answer>"
    if u < DIRECT_SHARE:
        return answer
    if u < DIRECT_SHARE + MALFORMED_SHARE:
        return style.choice(
            (f"<think>{problem.trace}{answer}", f"<think>{problem.trace}</think>{problem.answer}", problem.trace)
        )
    return f"<think>{problem.trace}</think>{answer}"


def encode(text: str) -> list[int]:
    """What the task's tokenizer makes of a text, without special tokens; a hundred times cheaper than asking it."""
    return [_IDS[piece] for piece in _PIECES.findall(text)]


def build_tokenizer() -> Tokenizer:
    """The task's tokenizer: tags and characters."""
    return word_tokenizer(_IDS, _PIECES.pattern)


def word_tokenizer(ids: Mapping[str, int], pieces: str) -> Tokenizer:
    """One token a word, for vocabularies that begin with `SPECIAL_TOKENS`; a foreign character is an error, no <unk>.

    Args:
        ids: of every token.
        pieces: pattern that finds one token at a time.
    """
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel(dict(ids), unk_token="<unk>"))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pieces), behavior="isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def hf_tokenizer(tokenizer: Tokenizer | None = None) -> PreTrainedTokenizerFast:
    """A word tokenizer for a model directory; the task's if none is given."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer or build_tokenizer(), pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )


class ChainModSource:
    """The endless seeded stream of training problems; the held-out ones are the same in every run.

    Args:
        slow_share: of problems that belong to the source `slow`.
        slow_rows: take the place of these in the training stream; a column `source` names another source.
        slow_digest: of the file they are from.
    """

    def __init__(
        self,
        *,
        seed: int,
        tokenizer: PromptTokenizer,
        slow_share: float = 0.0,
        slow_rows: Rows[Row] | None = None,
        slow_digest: str = "",
    ) -> None:
        self._tokenizer, self._slow_share = tokenizer, slow_share
        self._slow_rows, self._slow_digest = slow_rows, slow_digest
        self._states = [random.Random(seed + TRAIN_SEED).getstate()]
        # Two blocks: the one being admitted and the one that groups dropped for age are asked from again.
        self._block = lru_cache(maxsize=2)(self._draw_block)

    @property
    def total(self) -> int | None:
        return None

    @property
    def fingerprint(self) -> str:
        return f"chain-mod, {self._slow_share:g} of {self._slow_digest}" if self._slow_digest else "chain-mod"

    def prompt(self, ordinal: int) -> Prompt:
        if ordinal < 0:
            raise IndexError(f"ordinals begin at 0, got {ordinal}")
        block, place = divmod(ordinal, _BLOCK)
        while len(self._states) <= block:
            self._block(len(self._states) - 1)
        problem = self._block(block)[place]
        if self._slow_rows is not None and _is_slow(problem.text, self._slow_share):
            return self._of_row(ordinal, self._slow_rows[ordinal % len(self._slow_rows)])
        return self._as_prompt(ordinal, problem)

    def held_out(self, count: int) -> Sequence[Prompt]:
        stream = problems(random.Random(EVAL_SEED), held_out=True)
        return [self._as_prompt(i, problem) for i, problem in enumerate(islice(stream, count))]

    def _draw_block(self, block: int) -> list[Problem]:
        rng = random.Random()
        rng.setstate(self._states[block])
        drawn = list(islice(problems(rng, held_out=False), _BLOCK))
        if block == len(self._states) - 1:
            self._states.append(rng.getstate())
        return drawn

    def _of_row(self, ordinal: int, row: Row) -> Prompt:
        text = question_text(row.question)
        source = row.extra.get("source", "slow")
        return Prompt(
            ordinal=ordinal,
            text=text,
            answer=row.answer,
            token_ids=np.asarray(self._encoded(text), dtype=np.int32),
            extra={**row.extra, "source": source},
            source=source,
        )

    def _encoded(self, text: str) -> list[int]:
        try:
            return self._tokenizer.encode(text)
        except Exception as error:
            raise PromptError(
                f"chain-mod prompt {text!r}: the model's tokenizer cannot encode it ({error}); "
                "use a model made by the cold start, or another task"
            ) from error

    def _as_prompt(self, ordinal: int, problem: Problem) -> Prompt:
        ids = self._encoded(problem.text)
        source = "slow" if _is_slow(problem.text, self._slow_share) else ""
        return Prompt(
            ordinal=ordinal,
            text=problem.text,
            answer=problem.answer,
            token_ids=np.asarray(ids, dtype=np.int32),
            extra={"source": source} if source else {},
            source=source,
        )
