"""No process outlives its launcher, even if that is killed with -9.

Two cords, because each has a hole that the other closes. The kernel's parent-death signal ends a role that holds the
interpreter lock in a long call; it is Linux only and follows the *thread* that forked, so roles are started from the
launcher's main thread. The pipe works everywhere: the launcher holds the only write end, every role blocks in a read
of the other, and end-of-file means that the launcher is gone.

A role sets its cords itself, first thing in `__main__`: a `preexec_fn` would run Python between fork and exec, where
a lock held by another thread deadlocks it. A launcher that dies before that is noticed by comparing parents after.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Mapping

ENVIRONMENT = "R1ASYNC_LIFELINE"
"""`<read end of the pipe>:<pid of the launcher>`, for roles that a launcher starts."""

JOB = "R1ASYNC_JOB"
"""Set for a job that is tied to its launcher and otherwise as if a person had typed its command: a recipe's stage."""

_PR_SET_PDEATHSIG = 1


class Lifeline:
    """The launcher's end: closed by the kernel when the launcher ends, however it ends."""

    def __init__(self) -> None:
        self.read_end, self._write_end = os.pipe()

    def environment(self) -> Mapping[str, str]:
        return {ENVIRONMENT: f"{self.read_end}:{os.getpid()}"}

    def close(self) -> None:
        os.close(self.read_end)
        os.close(self._write_end)


def arm() -> bool:
    """Ties this process to the launcher that started it; whether it is a role of that launcher's."""
    cord, job = os.environ.pop(ENVIRONMENT, None), os.environ.pop(JOB, None)
    if cord is None:
        return False
    read_end, parent = (int(part) for part in cord.split(":"))
    os.set_inheritable(read_end, False)
    die_with_parent(parent)
    threading.Thread(target=_watch, args=(read_end,), name="lifeline", daemon=True).start()
    return job is None


def die_with_parent(parent: int) -> None:
    """Has the kernel kill this process when the thread of `parent` that started it ends.

    Args:
        parent: pid that started this process; if it is gone already, this process ends at once.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        end_group()


def _watch(read_end: int) -> None:
    # Nobody writes: the read returns only at end-of-file.
    os.read(read_end, 1)
    end_group()


def end_group() -> None:
    """Kills this process and, if it leads a process group, everything it started there."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
