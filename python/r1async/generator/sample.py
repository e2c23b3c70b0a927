"""One request as somebody sees it who asked an engine for it."""

from __future__ import annotations

from dataclasses import dataclass, field

from r1async.generator.engine import Progress, Request
from r1async.types import PolicyVersion


@dataclass(slots=True)
class Sample:
    """A request and what the engine has reported of it."""

    request: Request
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[PolicyVersion] = field(default_factory=list)
    finished: bool = False

    def take(self, progress: Progress) -> None:
        self.token_ids += progress.token_ids.tolist()
        self.logprobs += progress.logprobs.tolist()
        self.versions += [run.version for run in progress.runs for _ in range(run.count)]
        self.finished = progress.finish is not None
