"""vLLM's processes end with the generator that started them, even if that is killed with -9.

vLLM's workers watch the process above them, but that one watches nobody. Both are started by vLLM, out of reach of
`launch.lifeline`, so the worker, where our extension runs, watches the generator for the two of them. A generator that
is gone before the worker is up is noticed when it comes up.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Sequence
from multiprocessing import parent_process

ENVIRONMENT = "R1ASYNC_ENGINE_OWNER"
"""`<pid>:<start time>` of the generator; vLLM hands its environment down to all processes it starts."""
_POLL_S = 0.5
"""Between two looks, on systems that do not tell of a process's end."""


def environment() -> dict[str, str]:
    """To be set before vLLM starts its processes: this process is the owner."""
    return {ENVIRONMENT: f"{os.getpid()}:{start_time(os.getpid())}"}


def end_with_owner() -> bool:
    """Ties this process and the one that started it to the owner; False if there is none. Returns at once."""
    cord = os.environ.get(ENVIRONMENT)
    if cord is None:
        return False
    pid, _, started = cord.partition(":")
    above, owner = parent_process(), int(pid)
    # With one GPU the worker is in the engine's process, and above that is the owner itself.
    ends = [process for process in (above.pid if above else None, os.getpid()) if process not in (None, owner)]
    threading.Thread(target=_watch, args=(owner, started, ends), name="r1async-owner", daemon=True).start()
    return True


def start_time(pid: int) -> str | None:
    """In clock ticks since boot, which tells a process from a later one of its number; "" where there is no /proc.

    Returns:
        None if there is no such process, or only its exit status is left.
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            # The second field is the command in brackets, which may hold spaces and brackets itself.
            state, *fields = file.read().rpartition(")")[2].split()
        return None if state in ("Z", "X") else fields[18]
    except (FileNotFoundError, ProcessLookupError):
        if os.path.isdir("/proc/self"):
            return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    return ""


def _watch(owner: int, started: str, ends: Sequence[int | None]) -> None:
    try:
        _wait_for_end(owner, started)
    finally:
        for process in ends:
            if process is not None:
                end(process)


def end(pid: int) -> None:
    """Kills a process that may be gone already."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _wait_for_end(owner: int, started: str) -> None:
    if not hasattr(os, "pidfd_open"):
        while start_time(owner) == started:
            time.sleep(_POLL_S)
        return
    try:
        handle = os.pidfd_open(owner)
    except ProcessLookupError:
        return
    try:
        if start_time(owner) == started:
            select.select([handle], [], [])  # readable once the process has ended
    finally:
        os.close(handle)
