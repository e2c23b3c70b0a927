"""Full disks: how one is told from other failures, and what it means for a role."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

EXIT_CODE = 4
"""Of a role that could not write: the launcher does not start it again, for it would fail again."""
LEFT_BYTES = 64 * 2**10
"""With less room than this a failure that names no reason is taken for a full disk: torch wraps some of them."""


def is_full(error: BaseException, folder: Path) -> bool:
    """Whether an error comes from a full disk (or a used-up quota).

    Args:
        error: with its causes.
        folder: on the disk in question; it exists.
    """
    numbers = {each.errno for each in _causes(error, set()) if isinstance(each, OSError)}
    if numbers & {errno.ENOSPC, errno.EDQUOT}:
        return True
    return shutil.disk_usage(folder).free < LEFT_BYTES


def full_error(folder: Path) -> OSError:
    """The error that says so."""
    return OSError(errno.ENOSPC, "no space left on the disk of", str(folder))


def _causes(error: BaseException | None, seen: set[int]) -> Iterator[BaseException]:
    if error is None or id(error) in seen:
        return
    seen.add(id(error))
    yield error
    yield from _causes(error.__cause__, seen)
    yield from _causes(error.__context__, seen)
