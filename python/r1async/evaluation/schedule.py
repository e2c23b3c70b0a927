"""Which versions are evaluated, and when all of them have been. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from r1async.types import PolicyVersion


class Schedule:
    """Version 0, every `every`-th version, and the last one.

    A version belongs to the life of the learner (epoch) that made it: when a learner goes on from its checkpoint
    after a crash, later versions of the life before are forgotten and come again.

    Args:
        every: optimizer steps between two evaluations; 0: only the first and the last version.
        steps: the run's steps; the last version, unless the buffer names an earlier one because prompts ran out.
        settled: numbers of versions that an earlier life of this role has dealt with.
    """

    def __init__(self, every: int, steps: int, settled: Iterable[int] = ()) -> None:
        self._every = every
        self._steps = steps
        self._settled = set(settled)
        self._epoch = -1
        self._published = -1
        self._final: int | None = None

    def saw(self, epoch: int, published: int, final: int = -1) -> None:
        """Take in what a message's header says.

        Args:
            epoch: the learner's life.
            published: the newest version that generators can have; -1 before there is one.
            final: the run's last version; -1 while nobody knows.
        """
        if published < 0 or epoch < self._epoch:
            return
        if epoch > self._epoch:
            self._settled = {number for number in self._settled if number <= published}
            self._epoch, self._published, self._final = epoch, published, None
        self._published = max(self._published, published)
        if final >= 0:
            self._final = final
        elif self._published >= self._steps:
            self._final = self._steps

    @property
    def epoch(self) -> int:
        return self._epoch

    def next(self) -> PolicyVersion | None:
        """The lowest version that can be evaluated now; None if there is none."""
        due = [number for number in self._due() if number <= self._published and number not in self._settled]
        return PolicyVersion(self._epoch, min(due)) if due else None

    def settle(self, version: PolicyVersion) -> None:
        """The version has been evaluated, or never will be."""
        if version.epoch == self._epoch:
            self._settled.add(version.number)

    @property
    def complete(self) -> bool:
        """The last version is known, and it and all before it are settled."""
        return self._final is not None and self._final <= self._published and self.next() is None

    def describe(self) -> str:
        """What is being waited for, in words."""
        if self._published < 0:
            return "the first version"
        last = self._steps if self._final is None else self._final
        wanted = min([n for n in (*self._due(), last) if n not in self._settled], default=last)
        upcoming = [(self._published // self._every + 1) * self._every] if self._every else []
        wanted = min([wanted, *upcoming]) if wanted > self._published else wanted
        return f"version {wanted} (newest {self._published})"

    def _due(self) -> list[int]:
        due = {0}
        if self._every:
            due.update(range(0, self._published + 1, self._every))
        if self._final is not None:
            due = {number for number in due if number <= self._final} | {self._final}
        return sorted(due)


def settled_numbers(records: Iterable[Mapping[str, object]]) -> set[int]:
    """Versions that evaluation.jsonl has a last word on."""
    return {version for record in records if record.get("last") and isinstance(version := record.get("version"), int)}
