"""Digests of a recipe's inputs.

Those of large ones are remembered by the size and time of their files: a model of 60 GB is not read at every look at
the plan.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

from r1async.files import write_json
from r1async.tasks.file import digest_of

LARGE = 2**28
"""Bytes from which an input is remembered."""
SETTLED_S = 2.0
"""A file that changed later than that ago may change again within the same tick of its clock."""


def digests(inputs: Mapping[str, Path], memory: Path, *, large: int = LARGE) -> dict[str, str]:
    """SHA-256 of each input's content, by name.

    Args:
        inputs: files and folders.
        memory: a JSON file of what was found before; written where something large was read.
        large: bytes from which an input is remembered.
    """
    known = json.loads(memory.read_text()) if memory.is_file() else {}
    found: dict[str, str] = {}
    fresh: dict[str, object] = {}
    for name, path in inputs.items():
        files = _files(path)
        if sum(size for _, size, _ in files) < large:
            found[name] = digest_of(path)
            continue
        entry, place = {"files": [list(each) for each in files]}, str(path.resolve())
        former = known.get(place)
        if isinstance(former, dict) and former.get("files") == entry["files"]:
            found[name] = str(former["sha256"])
            continue
        found[name] = digest_of(path)
        if all(time.time() - changed / 1e9 > SETTLED_S for _, _, changed in files) and _files(path) == files:
            fresh[place] = {**entry, "sha256": found[name]}
    if fresh:
        write_json(memory, {**known, **fresh})
    return found


def _files(path: Path) -> list[tuple[str, int, int]]:
    """Name, bytes and time of change of every file."""
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    return [(each.name if each == path else str(each.relative_to(path)), (s := each.stat()).st_size, s.st_mtime_ns)
            for each in files]  # fmt: skip
