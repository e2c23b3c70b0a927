"""What a role measures, on disk: one JSON object a line, and TensorBoard beside it.

A line has ``kind`` (what it is about), ``time`` (Unix seconds) and ``run_s`` (seconds since the run's folder was
first used). Every other key belongs to the writer: docs/metrics.md lists them. Files of several roles line up by
``time``; a reader skips a torn last line, which is all that a killed process can leave behind.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Jsonable = bool | int | float | str | None | list["Jsonable"] | dict[str, "Jsonable"]


def jsonable(value: object) -> Jsonable:
    """The value with numpy numbers as plain ones and NaN and infinities as None: JSON has no word for them.

    Raises:
        TypeError: something that is neither number, string, sequence nor mapping.
    """
    match value:
        case None | bool() | int() | str():
            return value
        case float() | np.floating():
            return float(value) if math.isfinite(value) else None
        case np.bool_() | np.integer():
            return value.item()
        case np.ndarray():
            return [jsonable(item) for item in value.tolist()]
        case Mapping():
            return {str(key): jsonable(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [jsonable(item) for item in value]
        case Path():
            return str(value)
        case _:
            raise TypeError(f"cannot write a {type(value).__name__} as JSON; give numbers, strings, lists or maps")


def run_started(run_dir: Path) -> float:
    """Unix time at which the run's folder was first used; the first role to ask writes it down for all."""
    path = run_dir / "started"
    if not path.exists():
        run_dir.mkdir(parents=True, exist_ok=True)
        mine = run_dir / f"started.{os.getpid()}.{threading.get_ident()}"
        mine.write_text(repr(time.time()))
        try:
            os.link(mine, path)  # atomic, and fails if another role was first
        except FileExistsError:
            pass
        finally:
            mine.unlink()
    return float(path.read_text())


class MetricsWriter:
    """Appends lines to one file; each is on its way to the disk before `write` returns.

    Args:
        path: the file, usually ``metrics/<role>.jsonl`` in the run's folder; made with its parents.
        started: Unix time that ``run_s`` counts from; now if None. `run_started` gives the run's.
        clock: Unix seconds.
    """

    def __init__(self, path: Path, started: float | None = None, clock: Callable[[], float] = time.time) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._clock = clock
        self._started = clock() if started is None else started
        self._file = path.open("ab", buffering=0)
        _end_torn_line(path, self._file.fileno())

    def write(self, kind: str, fields: Mapping[str, object]) -> None:
        now = self._clock()
        record = {"kind": kind, "time": round(now, 4), "run_s": round(now - self._started, 4), **fields}
        line = json.dumps(jsonable(record), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        self._file.write(line.encode() + b"\n")

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _end_torn_line(path: Path, descriptor: int) -> None:
    """A process killed while writing leaves half a line; what we append must not stick to it."""
    size = path.stat().st_size
    if not size:
        return
    with path.open("rb") as file:
        file.seek(size - 1)
        if file.read(1) != b"\n":
            os.write(descriptor, b"\n")


def read_metrics(path: Path, kind: str | None = None) -> Iterator[dict[str, Any]]:
    """The lines of one kind (of all, if None) in order; nothing if there is no file; torn lines are skipped."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue  # torn by a kill; see the module's docstring
            if isinstance(record, dict) and (kind is None or record.get("kind") == kind):
                yield record


class TensorBoard:
    """Scalars and texts by step for TensorBoard. Imported when made: it costs a second that other roles save."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: SummaryWriter = SummaryWriter(str(folder))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Values that are not finite are left out: TensorBoard would draw them as zero."""
        for name, value in values.items():
            if math.isfinite(value):
                self._writer.add_scalar(name, value, step)

    def text(self, step: int, name: str, text: str) -> None:
        self._writer.add_text(name, text, step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
