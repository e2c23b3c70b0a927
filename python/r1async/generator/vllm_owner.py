"""vLLM's processes end with the generator that started them, even if that is killed with -9.

vLLM starts an engine process, and that starts the workers; the workers watch the engine, and it watches nobody. Two
cords, because each has a hole that the other closes. The kernel's parent-death signal ends the engine from its first
instruction on: multiprocessing is given an interpreter that asks for it. It is Linux only, and not for the workers.
And a worker, where our extension runs, watches the generator for itself and for the engine.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import multiprocessing.spawn
import os
import select
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import parent_process, resource_tracker
from pathlib import Path

ENVIRONMENT = "R1ASYNC_ENGINE_OWNER"
"""`<pid>:<start time>` of the generator; vLLM hands its environment down to all processes it starts."""
_POLL_S = 0.5
"""Between two looks, on systems that do not tell of a process's end."""
_PR_SET_PDEATHSIG = 1


def environment() -> dict[str, str]:
    """To be set before vLLM starts its processes: this process is the owner."""
    return {ENVIRONMENT: f"{os.getpid()}:{start_time(os.getpid())}"}


@contextmanager
def children_die_with_thread(folder: Path) -> Iterator[None]:
    """What multiprocessing spawns in it is killed when the thread that spawned it ends, and so with this process.

    Args:
        folder: where a file may be executed, until the context ends: by then the children must run, for a shell opens
            it some time after a child was started.
    """
    if sys.platform != "linux":
        yield
        return
    # Of the whole process, for all its life: not one of those that are to die.
    resource_tracker.ensure_running()
    shim, before = folder / f"python-{os.getpid()}", multiprocessing.spawn.get_executable()
    words = (sys.executable, "-I", os.path.abspath(__file__), str(os.getpid()))
    shim.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    shim.chmod(0o700)
    multiprocessing.set_executable(str(shim))
    try:
        yield
    finally:
        multiprocessing.set_executable(before)
        shim.unlink()


def _become_interpreter(parent: int, words: Sequence[str]) -> None:
    """The shim's work: asks to die with the parent, and goes on as the interpreter that was meant."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it is gone already, and nobody will send the signal
        os.kill(os.getpid(), signal.SIGKILL)
    os.execv(sys.executable, [sys.executable, *words])


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


if __name__ == "__main__":
    _become_interpreter(int(sys.argv[1]), sys.argv[2:])
