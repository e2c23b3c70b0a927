"""One benchmark at one version under way: what is asked of the buffer, slice by slice, and what has come back."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from r1async.evaluation.benchmark import Asked
from r1async.evaluation.samples import BenchmarkSample, SampleFile
from r1async.tasks.meta import encode_meta
from r1async.tasks.tokenizer import Detokenizer
from r1async.types import PolicyVersion
from r1async.wire import Message, WireError

MEMBERS = 16
"""Samples of a problem that are asked for together: they share a prefill, and come back when all of them are there."""
SLICE_ROLLOUTS = 1024
SLICE_BYTES = 16 * 2**20
"""A request holds at most so many completions, and the problems' own data: tests of programs take megabytes."""


class Slice(NamedTuple):
    """One request: some samples of some problems."""

    id: str
    places: tuple[tuple[int, tuple[int, ...]], ...]
    """Problem and members, of each prompt of the request."""


class Collecting:
    """Asks for what is missing, files what comes.

    Args:
        asked: the benchmark and its prompts.
        pin: the version that samples.
        file: has what an earlier life collected.
        detokenizer: the model's.
        lines: in which each problem's completions wait for a verdict.
    """

    def __init__(
        self, asked: Asked, pin: PolicyVersion, file: SampleFile, detokenizer: Detokenizer, lines: Sequence[str]
    ) -> None:
        self.asked, self.pin, self.file = asked, pin, file
        self._lines = lines
        self._detokenizer = detokenizer
        self._slices: dict[str, Slice] = {}
        """Under way, by id."""
        self._left: dict[str, int] = {}
        """Samples that each of them waits for."""
        self._plan = self._planned()
        self.sampled_tokens = 0

    @property
    def name(self) -> str:
        return self.asked.benchmark.name

    @property
    def missing(self) -> int:
        """Samples that have not come back, in this life or an earlier one."""
        return len(self.asked.prompts) * self.asked.benchmark.k - len(self.file.samples)

    @property
    def under_way(self) -> list[str]:
        """Ids of requests that are not complete."""
        return list(self._slices)

    def restart(self) -> None:
        """The buffer knows nothing of what was asked: ask again for what is missing."""
        self._slices.clear()
        self._left.clear()
        self._plan = self._planned()

    def next_request(self) -> tuple[dict[str, object], dict[str, NDArray[np.int32]]] | None:
        """The next `evaluate` message; None if everything has been asked for."""
        taken = next(self._plan, None)
        if taken is None:
            return None
        made = Slice(f"{self.pin}-{self.name}-{uuid.uuid4().hex[:8]}", taken)
        self._slices[made.id] = made
        self._left[made.id] = sum(len(members) for _, members in taken)
        prompts = [self.asked.prompts[problem] for problem, _ in taken]
        header: dict[str, object] = {
            "t": "evaluate",
            "id": made.id,
            "pin": list(self.pin),
            "samples": len(taken[0][1]),
            "sampling": asdict(self.asked.benchmark.sampling),
            "metas": [encode_meta(prompt) for prompt in prompts],
            "pools": [self._lines[problem] for problem, _ in taken],
        }
        return header, {
            "prompt_tokens": np.concatenate([prompt.token_ids for prompt in prompts]).astype(np.int32),
            "prompt_lens": np.array([len(prompt.token_ids) for prompt in prompts], np.int32),
        }

    def take(self, message: Message) -> bool:
        """File an `evaluated` message; whether its request is complete with it.

        Raises:
            WireError: the message contradicts itself or what was asked.
        """
        header, tokens, begin = message.header, message.columns["tokens"], 0
        asked = self._slices[header["id"]]
        rows: list[BenchmarkSample] = []
        completions: list[list[int]] = []
        for place, member, total, _parts, status, finish, count in header["items"]:
            if not (0 <= place < len(asked.places) and 0 <= member < len(asked.places[place][1])):
                raise WireError(f"evaluated {place}/{member} of {len(asked.places)} problems")
            if begin + count > len(tokens):
                raise WireError(f"evaluated: {count} tokens from {begin} of {len(tokens)}")
            problem, members = asked.places[place]
            completions.append(tokens[begin : begin + count].tolist())
            begin += count
            rows.append(
                BenchmarkSample(
                    problem=problem,
                    member=members[member],
                    # Wrong, whatever it says so far: so the protocols count (DeepSeek-R1, section 3).
                    score=0.0 if finish == "length" else total,
                    status="truncated" if finish == "length" else status,
                    truncated=finish == "length",
                    tokens=count,
                    text="",
                )
            )
        self.sampled_tokens += begin
        self.file.add(self._with_texts(rows, completions, [item[5] == "stop" for item in header["items"]]))
        self._left[asked.id] -= len(rows)
        if self._left[asked.id] > 0:
            return False
        del self._slices[asked.id], self._left[asked.id]
        return True

    def _with_texts(
        self, rows: list[BenchmarkSample], completions: list[list[int]], stopped: list[bool]
    ) -> list[BenchmarkSample]:
        texts = self._detokenizer.texts(completions, stopped) if rows else []
        return [replace(row, text=text) for row, text in zip(rows, texts, strict=True)]

    def _planned(self) -> Iterator[tuple[tuple[int, tuple[int, ...]], ...]]:
        """Slices of what is missing; the prompts of one want the same number of samples."""
        waiting: dict[int, list[tuple[int, tuple[int, ...]]]] = {}
        sizes: Counter[int] = Counter()
        for problem in range(len(self.asked.prompts)):
            left = [m for m in range(self.asked.benchmark.k) if (problem, m) not in self.file.samples]
            for begin in range(0, len(left), MEMBERS):
                part = tuple(left[begin : begin + MEMBERS])
                group = waiting.setdefault(len(part), [])
                group.append((problem, part))
                sizes[len(part)] += self._bytes(problem)
                if len(group) * len(part) >= SLICE_ROLLOUTS or sizes[len(part)] >= SLICE_BYTES:
                    yield tuple(waiting.pop(len(part)))
                    del sizes[len(part)]
        for group in waiting.values():
            yield tuple(group)

    def _bytes(self, problem: int) -> int:
        prompt = self.asked.prompts[problem]
        return sum(map(len, prompt.extra.values())) + len(prompt.text) + 4 * len(prompt.token_ids)
