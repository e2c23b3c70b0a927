"""The rows of one batch: who sits in each, what it has sampled, and when it is finished.

Rows are filled from the bottom, and the forward pass takes the first ``width`` of them, so rows move down when
enough above them have left. Everything about a row is an entry of an array; a step touches no Python object a row.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from r1async.generator.decoder import UNIT, bucket
from r1async.generator.engine import Progress, Request
from r1async.generator.sampling import RowSettings, rollout_keys, uniforms
from r1async.types import FinishReason, PolicyVersion, VersionRun

_FINISH: tuple[FinishReason | None, ...] = (None, "length", "stop")


@dataclass(frozen=True, slots=True)
class Seat:
    """A request just placed: what has to be in the cache before it decodes."""

    row: int
    context: NDArray[np.int64]
    """Prompt and resumed tokens without the last one, which decoding takes as its first input."""


class Slots:
    """Bookkeeping of ``capacity`` requests in as many rows, rounded up to a whole width."""

    def __init__(self, capacity: int, seed: int) -> None:
        self.capacity = capacity
        self.rows = bucket(capacity)
        self._seed = seed
        self._row_of: dict[int, int] = {}
        self._begun_with: dict[int, tuple[NDArray[np.int64], int]] = {}
        """Prompt and resumed tokens of each request, and how many of them are resumed."""
        self._ids = np.zeros(self.rows, np.int64)
        self._live = np.zeros(self.rows, np.bool_)
        self.tokens = torch.zeros(self.rows, dtype=torch.int64)
        """Each row's next input. Shared with numpy, as is `positions`: writing one writes the other."""
        self.positions = torch.zeros(self.rows, dtype=torch.int64)
        self._tokens, self._positions = self.tokens.numpy(), self.positions.numpy()
        self._settings = RowSettings.empty(self.rows)
        self._plain = True
        """Whether all of `_settings` are; looked at every step, so kept."""
        self._counts = np.zeros(self.rows, np.int64)
        """Completion tokens of each row, resumed ones included."""
        self._limits = np.zeros(self.rows, np.int64)
        self._reported = np.zeros(self.rows, np.int64)
        self._history_tokens = np.zeros((self.rows, UNIT), np.int32)
        self._history_logprobs = np.zeros((self.rows, UNIT), np.float32)
        self._noise = np.zeros((self.rows, UNIT))
        """Of every token the row may yet sample: drawn once, because a step of few rows costs its calls."""
        self._history_versions = np.zeros((self.rows, UNIT), np.int32)
        """Index into `_versions`."""
        self._versions: list[PolicyVersion] = []

    def __len__(self) -> int:
        return len(self._row_of)

    def __contains__(self, request_id: int) -> bool:
        return request_id in self._row_of

    @property
    def free(self) -> int:
        return self.capacity - len(self._row_of)

    @property
    def width(self) -> int:
        """Rows a step has to compute."""
        return bucket(max(self._row_of.values()) + 1) if self._row_of else 0

    @property
    def columns(self) -> int:
        """Columns of the cache a step has to attend over."""
        return bucket(int(self._positions.max()) + 1)

    def settings(self, width: int) -> RowSettings | None:
        """Of the first ``width`` rows; None if all rows sample plainly."""
        return None if self._plain else self._settings[:width]

    def noise(self, width: int) -> NDArray[np.float64]:
        """One uniform number for the next token of each of the first ``width`` rows."""
        return self._noise[np.arange(width), self._counts[:width]]

    def place(self, requests: Sequence[Request]) -> list[Seat]:
        """Gives each request the lowest free row. The caller has checked them and that there is room."""
        if not requests:
            return []
        rows = np.flatnonzero(~self._live)[: len(requests)]
        longest = max(request.sampling.max_tokens for request in requests)
        self._reserve_history(longest)
        keys = rollout_keys(self._seed, np.array([request.rollout for request in requests], np.int64))
        self._noise[rows, :longest] = uniforms(keys[:, None], np.arange(longest)[None, :])
        seats = [self._place(int(row), request) for row, request in zip(rows, requests, strict=True)]
        self._plain = self._settings.plain
        return seats

    def _place(self, row: int, request: Request) -> Seat:
        context = np.concatenate([request.prompt_ids, request.resume_ids]).astype(np.int64)
        self._row_of[request.id] = row
        self._begun_with[request.id] = context, len(request.resume_ids)
        self._ids[row], self._live[row] = request.id, True
        self._tokens[row], self._positions[row] = context[-1], len(context) - 1
        self._settings.set(row, request.sampling)
        self._counts[row] = self._reported[row] = len(request.resume_ids)
        self._limits[row] = request.sampling.max_tokens
        return Seat(row, context[:-1])

    def seats(self) -> dict[int, Seat]:
        """Of every request as it stands, by id: for a cache that has to be filled again."""
        return {request_id: self._seat(request_id, row) for request_id, row in self._row_of.items()}

    def _seat(self, request_id: int, row: int) -> Seat:
        context, resumed = self._begun_with[request_id]
        sampled = self._history_tokens[row, resumed : self._counts[row]]
        return Seat(row, np.concatenate([context, sampled.astype(np.int64)])[:-1])

    def remove(self, request_id: int) -> int | None:
        """Empties the request's row and returns it; None if it has none."""
        row = self._row_of.pop(request_id, None)
        if row is not None:
            del self._begun_with[request_id]
            self._empty(np.array([row]))
        return row

    def _empty(self, rows: NDArray[np.int64]) -> None:
        # An empty row inside the width is computed too: it writes to column 0, which its next owner overwrites.
        self._live[rows] = False
        self._positions[rows] = self._tokens[rows] = self._counts[rows] = self._reported[rows] = 0
        if not self._plain:
            self._settings.clear(rows)
            self._plain = self._settings.plain

    def compact(self) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """Moves the highest rows down if that makes the width smaller; (from, to) for the cache to follow."""
        if not self._row_of or bucket(len(self._row_of)) >= self.width:
            return None
        low = bucket(len(self._row_of))
        source = np.flatnonzero(self._live[low:]) + low
        target = np.flatnonzero(~self._live[:low])[: len(source)]
        settings = self._settings
        columns = (
            self._ids, self._live, self._tokens, self._positions, self._noise, self._counts, self._limits,
            self._reported, self._history_tokens, self._history_logprobs, self._history_versions,
            settings.temperature, settings.top_p, settings.top_k, settings.greedy,
        )  # fmt: skip
        for column in columns:
            column[target] = column[source]
        for row, request_id in zip(target.tolist(), self._ids[target].tolist(), strict=True):
            self._row_of[request_id] = row
        self._empty(source)
        return source, target

    def append(
        self,
        tokens: NDArray[np.int64],
        logprobs: NDArray[np.float32],
        version: PolicyVersion,
        is_stop: NDArray[np.bool_],
        chunk_tokens: int,
    ) -> list[Progress]:
        """Takes one token for each live row below ``len(tokens)``; finished rows are reported and emptied.

        Returns:
            The reports of rows that are finished, by a stop token or at their limit, or have a chunk to report.
        """
        live = self._live[: len(tokens)].nonzero()[0]
        sampled, counts = tokens[live], self._counts[live]
        self._history_tokens[live, counts] = sampled
        self._history_logprobs[live, counts] = logprobs[live]
        self._history_versions[live, counts] = self._version_index(version)
        counts += 1
        self._tokens[live], self._counts[live] = sampled, counts
        self._positions[live] += 1
        stopped = is_stop[sampled]
        finished = stopped | (counts >= self._limits[live])
        due = finished | (counts - self._reported[live] >= chunk_tokens)
        if not due.any():
            return []
        # A stop token at the limit counts as stop.
        reasons = np.where(stopped, 2, finished)[due].tolist()
        reports = self._report(live[due], [_FINISH[reason] for reason in reasons])
        for progress in reports:
            if progress.finish is not None:
                del self._row_of[progress.id], self._begun_with[progress.id]
        self._empty(live[finished])
        return reports

    def flush(self) -> list[Progress]:
        """Reports every token nobody was told of."""
        rows = np.flatnonzero(self._live & (self._counts > self._reported))
        return self._report(rows, [None] * len(rows))

    def _report(self, rows: NDArray[np.int64], finishes: Sequence[FinishReason | None]) -> list[Progress]:
        spans = zip(rows.tolist(), self._reported[rows].tolist(), self._counts[rows].tolist(), strict=True)
        reports = [
            Progress(
                id=request_id,
                token_ids=self._history_tokens[row, start:end].copy(),
                logprobs=self._history_logprobs[row, start:end].copy(),
                runs=self._runs(self._history_versions[row, start:end]),
                finish=finish,
            )
            for (row, start, end), request_id, finish in zip(spans, self._ids[rows].tolist(), finishes, strict=True)
        ]
        self._reported[rows] = self._counts[rows]
        return reports

    def ids(self) -> list[int]:
        return list(self._row_of)

    def _runs(self, indices: NDArray[np.int32]) -> tuple[VersionRun, ...]:
        if indices[0] == indices[-1]:  # the index only ever rises
            return (VersionRun(version=self._versions[indices[0]], count=len(indices)),)
        bounds = [0, *(np.flatnonzero(np.diff(indices)) + 1).tolist(), len(indices)]
        return tuple(VersionRun(version=self._versions[indices[a]], count=b - a) for a, b in itertools.pairwise(bounds))

    def _version_index(self, version: PolicyVersion) -> int:
        if not self._versions or self._versions[-1] != version:
            self._versions.append(version)
        return len(self._versions) - 1

    def _reserve_history(self, tokens: int) -> None:
        more = bucket(tokens) - self._history_tokens.shape[1]
        if more > 0:
            self._history_tokens = np.pad(self._history_tokens, ((0, 0), (0, more)))
            self._history_logprobs = np.pad(self._history_logprobs, ((0, 0), (0, more)))
            self._history_versions = np.pad(self._history_versions, ((0, 0), (0, more)))
            self._noise = np.pad(self._noise, ((0, 0), (0, more)))
