"""Samples of a benchmark on disk, as they come: an evaluation that was interrupted goes on with what it has.

The first line says what the samples are of: weights by their hash, problems and sampling by a digest. Samples of
anything else are another file's; a version never gets samples of two.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from r1async.config import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkSample:
    """One graded completion of a benchmark's problem."""

    problem: int
    """Its place in the benchmark."""
    member: int
    """Which of its samples."""
    score: float | None
    """None if the grader abstained."""
    status: str
    truncated: bool
    tokens: int
    text: str


class SampleFile:
    """The samples of one benchmark at one version.

    Args:
        path: the file; made with its folders.
        about: what they are samples of; must have `hash` and `digest`.
    """

    def __init__(self, path: Path, about: Mapping[str, object]) -> None:
        self.path = path
        self.samples: dict[tuple[int, int], BenchmarkSample] = {}
        """By problem and member."""
        path.parent.mkdir(parents=True, exist_ok=True)
        good = self._read(about) if path.is_file() else 0
        self._file = path.open("r+b" if good else "wb")
        self._file.truncate(good)
        self._file.seek(good)
        if not good:
            self._append(about)

    def _read(self, about: Mapping[str, object]) -> int:
        """Takes in what is there; returns its bytes, 0 if it is of something else. A torn last line is not counted."""
        good = 0
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines):
                try:
                    row = json.loads(line) if line.endswith(b"\n") else None
                except ValueError:
                    row = None
                if not isinstance(row, dict):
                    break
                if number == 0 and any(row.get(key) != about[key] for key in ("hash", "digest")):
                    return 0
                if number:
                    sample = BenchmarkSample(**row)
                    self.samples[sample.problem, sample.member] = sample
                good += len(line)
        return good

    def add(self, samples: Sequence[BenchmarkSample]) -> None:
        for sample in samples:
            if (sample.problem, sample.member) not in self.samples:
                self.samples[sample.problem, sample.member] = sample
                self._append(asdict(sample))
        self._file.flush()

    def _append(self, row: Mapping[str, object]) -> None:
        # A completion may hold half a character, which JSON can escape and UTF-8 cannot hold.
        self._file.write(json.dumps(row).encode() + b"\n")

    def close(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_samples(path: Path) -> tuple[dict[str, object], list[BenchmarkSample]]:
    """What a finished file is about, and its samples in order of problem and member.

    Raises:
        ConfigError: it is no file of samples.
    """
    with path.open("rb") as lines:
        try:
            rows = [json.loads(line) for line in lines if line.endswith(b"\n")]
            about, samples = rows[0], [BenchmarkSample(**row) for row in rows[1:]]
        except (ValueError, TypeError, IndexError) as error:
            raise ConfigError(f"{path}: not a file of samples: {error}") from error
    return about, sorted(samples, key=lambda each: (each.problem, each.member))
