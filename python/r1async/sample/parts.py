"""Completions on disk as they come: parquet files that are whole or not there.

A prompt's completions are in one file, all of them or none: so what is there need not be sampled again, and what is not
will be, the same.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from r1async.config import ConfigError
from r1async.files import write_json
from r1async.sample.filters import Graded

SCHEMA = pa.schema(
    [
        ("ordinal", pa.int64()),
        ("member", pa.int32()),
        ("text", pa.string()),
        ("tokens", pa.int32()),
        ("finish", pa.string()),
        ("total", pa.float64()),
        ("parts", pa.string()),
        ("status", pa.string()),
    ]
)


class Parts:
    """The folder of a run's completions.

    Args:
        folder: made if it is not there; a JSON file beside it says what it is of.
        identity: what decides which completions are sampled; a folder of others is refused.

    Raises:
        ConfigError: the folder holds completions that other settings sampled.
    """

    def __init__(self, folder: Path, identity: dict[str, object]) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder.with_suffix(".json")
        if path.is_file():
            former = json.loads(path.read_text())
            wrong = [key for key in identity if former.get(key) != identity[key]]
            if wrong:
                told = "; ".join(f"{key} was {former.get(key)!r} and is {identity[key]!r}" for key in wrong)
                raise ConfigError(f"name: {folder} holds completions of other settings: {told}. Set name=OTHER")
        else:
            write_json(path, identity)
        for torn in folder.glob(".part-*"):
            torn.unlink()

    def done(self) -> set[int]:
        """Prompts whose completions are there."""
        return {
            ordinal
            for path in self._paths()
            for ordinal in pq.read_table(path, columns=["ordinal"])["ordinal"].unique().to_pylist()
        }

    def write(self, rows: Sequence[Graded]) -> Path:
        """One more file, whole and on the disk when this returns."""
        columns = {
            "ordinal": [row.ordinal for row in rows],
            "member": [row.member for row in rows],
            "text": [row.text for row in rows],
            "tokens": [row.tokens for row in rows],
            "finish": [row.finish for row in rows],
            "total": [row.total for row in rows],
            "parts": [json.dumps(dict(row.parts)) for row in rows],
            "status": [row.status for row in rows],
        }
        number = 1 + max((int(path.stem[5:]) for path in self._paths()), default=-1)
        path = self._folder / f"part-{number:06d}.parquet"
        write_parquet(path, pa.table(columns, SCHEMA))
        return path

    def rows(self) -> Iterator[list[Graded]]:
        """The completions of each prompt, in the order of the prompts, however they came.

        One column of numbers is held for all prompts; texts are read file by file where the order allows it.
        """
        paths = self._paths()
        where = sorted(
            (ordinal, index)
            for index, path in enumerate(paths)
            for ordinal in pq.read_table(path, columns=["ordinal"])["ordinal"].unique().to_pylist()
        )
        tables: dict[int, dict[int, list[Graded]]] = {}
        left = [sum(1 for _, index in where if index == each) for each in range(len(paths))]
        for ordinal, index in where:
            if index not in tables:
                tables[index] = _by_prompt(paths[index])
            yield sorted(tables[index][ordinal], key=lambda row: row.member)
            left[index] -= 1
            if not left[index]:
                del tables[index]

    def _paths(self) -> list[Path]:
        return sorted(self._folder.glob("part-*.parquet"))


def _by_prompt(path: Path) -> dict[int, list[Graded]]:
    found: dict[int, list[Graded]] = {}
    for row in pq.read_table(path).to_pylist():
        row["parts"] = json.loads(row["parts"])
        found.setdefault(row["ordinal"], []).append(Graded(**row))
    return found


def write_parquet(path: Path, table: pa.Table) -> None:
    """The file, whole and on the disk when this returns."""
    staging = path.with_name(f".{path.name}.tmp")
    with staging.open("wb") as file:
        pq.write_table(table, file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())
    staging.rename(path)
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
