"""Files in the run's folder, written so that a kill at any moment leaves the last whole one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from r1async.monitor.metrics import jsonable


def write_atomic(path: Path, data: bytes, *, synced: bool = True) -> None:
    """Replaces a file by a whole new one that is on the disk when this returns.

    Args:
        path: the file.
        data: what it holds.
        synced: False: does not wait for the disk. A kill still leaves a whole file, a power cut may leave none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            if synced:
                os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)  # half a file would only fill the disk further
        raise
    temporary.replace(path)
    if not synced:
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # or the new name may be lost with the power
    finally:
        os.close(folder)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write in pieces, which takes its name when all of them are written and on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    temporary.replace(path)


def write_json(path: Path, value: Mapping[str, object], *, synced: bool = True) -> None:
    """The same of a JSON object; numbers that JSON does not know become null."""
    text = json.dumps(jsonable(value), indent=2, ensure_ascii=False)
    write_atomic(path, f"{text}\n".encode(), synced=synced)
