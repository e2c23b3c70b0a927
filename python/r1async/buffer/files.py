"""What the buffer leaves in the run's folder, written so that a kill at any moment leaves the last whole file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from r1async.monitor.metrics import jsonable


def write_atomic(path: Path, data: bytes) -> None:
    """Replaces a file by a whole new one that is on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)  # half a file would only fill the disk further
        raise
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # or the new name may be lost with the power
    finally:
        os.close(folder)


def write_json(path: Path, value: Mapping[str, object]) -> None:
    write_atomic(path, (json.dumps(jsonable(value), indent=2) + "\n").encode())


class LedgerFiles:
    """`ledger/step-<steps>.bin`: the buffer's state at each checkpoint of the learner.

    Args:
        folder: made when first written to.
        keep: newest files that stay; the learner may go back to an older checkpoint if its newest is torn.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder = folder
        self._keep = keep

    def path(self, step: int) -> Path:
        return self._folder / f"step-{step:06d}.bin"

    def write(self, step: int, state: bytes) -> None:
        write_atomic(self.path(step), state)
        for old in sorted(self._folder.glob("step-*.bin"), key=_step)[: -self._keep]:
            old.unlink()

    def read(self, step: int) -> bytes:
        """The state at the checkpoint that holds `step` steps.

        Raises:
            FileNotFoundError: there is none; the text says what to do.
        """
        path = self.path(step)
        if not path.is_file():
            have = sorted(_step(file) for file in self._folder.glob("step-*.bin"))
            raise FileNotFoundError(
                f"the learner is at step {step}, but {path} is missing (there are steps {have}): start from a"
                " checkpoint that has its ledger file, or begin anew with resume=false in an empty folder"
            )
        return path.read_bytes()


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))
