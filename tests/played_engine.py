"""An engine whose tokens are known beforehand, and which takes only as many steps as the test permits."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from r1async.generator.engine import KVPolicy, Progress, Request
from r1async.types import FinishReason, PolicyVersion, VersionRun
from torch import Tensor

FOREVER = 10**9


@dataclass
class _Row:
    request: Request
    count: int
    """Completion tokens, resumed ones included."""
    unreported: list[tuple[int, PolicyVersion]] = field(default_factory=list)


class PlayedEngine:
    """Token number n of rollout r is 1000 r + n, its logprob -n; each rollout ends at max_tokens."""

    def __init__(self, capacity: int = 4, pinned_capacity: int = 2, chunk_tokens: int = FOREVER) -> None:
        self.capacity, self.pinned_capacity = capacity, pinned_capacity
        self.kv_policy: KVPolicy = "keep"
        self.version: PolicyVersion | None = None
        self.pinned: PolicyVersion | None = None
        self.installed: dict[PolicyVersion, float] = {}
        """Versions seen, with the first value of tensor `w`."""
        self._chunk_tokens = chunk_tokens
        self._rows: dict[int, _Row] = {}
        self._lock = threading.Lock()
        self._permits = 0
        self.used_up = threading.Event()
        """Every permitted step is done."""

    def permit(self, steps: int) -> None:
        """From the test's thread. The generator looks again when its next message comes."""
        with self._lock:
            self._permits += steps
            self.used_up.clear()

    @property
    def free(self) -> int:
        return self.capacity - sum(row.request.pin is None or not self.pinned_capacity for row in self._rows.values())

    @property
    def pinned_free(self) -> int:
        return self.pinned_capacity and self.pinned_capacity - sum(
            row.request.pin is not None for row in self._rows.values()
        )

    @property
    def busy(self) -> bool:
        with self._lock:
            return bool(self._rows) and self._permits > 0

    @property
    def computes(self) -> bool:
        return True

    @property
    def block_tokens(self) -> int:
        return 0

    def describe(self) -> str:
        return "the played engine"

    def submit(self, requests: Sequence[Request]) -> None:
        for request in requests:
            assert request.id not in self._rows
            assert request.pin in (None, self.pinned if self.pinned_capacity else self.version)
            self._rows[request.id] = _Row(request, len(request.resume_ids))
        assert self.free >= 0
        assert self.pinned_free >= 0

    def abort(self, ids: Iterable[int]) -> None:
        for request_id in ids:
            self._rows.pop(request_id, None)

    def step(self) -> list[Progress]:
        reports = []
        for row in list(self._rows.values()):
            version = row.request.pin if row.request.pin and self.pinned_capacity else self.version
            assert version is not None
            row.unreported.append((row.count, version))
            row.count += 1
            finish: FinishReason | None = "length" if row.count >= row.request.sampling.max_tokens else None
            if finish or len(row.unreported) >= self._chunk_tokens:
                reports.append(self._report(row, finish))
            if finish:
                del self._rows[row.request.id]
        with self._lock:
            self._permits -= 1
            if not self._permits:
                self.used_up.set()
        return reports

    def flush(self) -> list[Progress]:
        return [self._report(row, None) for row in self._rows.values() if row.unreported]

    def install(self, version: PolicyVersion, tensors: Mapping[str, Tensor]) -> float:
        self.version = version
        self.installed[version] = float(tensors["w"].flatten()[0])
        return 0.0

    def install_pinned(self, version: PolicyVersion, tensors: Mapping[str, Tensor] | None) -> None:
        assert self.pinned_free == self.pinned_capacity
        assert tensors is not None or version == self.version
        if tensors is not None:
            self.installed[version] = float(tensors["w"].flatten()[0])
        self.pinned = version

    def close(self) -> None:
        self._rows.clear()

    @staticmethod
    def _report(row: _Row, finish: FinishReason | None) -> Progress:
        numbers = [number for number, _ in row.unreported]
        runs: list[VersionRun] = []
        for _, version in row.unreported:
            if runs and runs[-1].version == version:
                runs[-1] = VersionRun(version=version, count=runs[-1].count + 1)
            else:
                runs.append(VersionRun(version=version, count=1))
        row.unreported.clear()
        return Progress(
            id=row.request.id,
            token_ids=np.array(numbers, np.int32) + 1000 * row.request.rollout,
            logprobs=-np.array(numbers, np.float32),
            runs=tuple(runs),
            finish=finish,
        )
