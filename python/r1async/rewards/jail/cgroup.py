"""A control group for the runs of one zygote: the kernel's own count of their memory and processes, where it gives one.

Folders of cgroup v2 and of a v1 hierarchy are alike as far as we need them; a limit whose file does not exist is left
to the other layers.

Source: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/pids.rst of Linux.
"""

from __future__ import annotations

import contextlib
import os

PREFIX = "r1async-"


class Cgroup:
    """A folder below one that is ours to divide.

    Args:
        parent: the folder; in cgroup v2 with memory and pids in its `cgroup.subtree_control`.
        name: of the new folder.

    Raises:
        OSError: it cannot be made, or has no limit that we know.
    """

    def __init__(self, parent: str, name: str) -> None:
        self.path = f"{parent}/{name}"
        os.mkdir(self.path)
        try:
            self._files = {
                file: os.open(f"{self.path}/{file}", os.O_RDWR | os.O_CLOEXEC)
                for file in ("cgroup.procs", "memory.max", "memory.swap.max", "memory.oom.group", "pids.max")
                if os.path.exists(f"{self.path}/{file}")
            }
            if not self._files.keys() & {"memory.max", "pids.max"}:
                raise OSError(f"{parent}: neither memory nor pids is switched on for its children")
            # Opened before privileges are dropped: what counts for moving a process is who opened the file.
            events = f"{self.path}/memory.events"
            self._events = os.open(events, os.O_RDONLY | os.O_CLOEXEC) if os.path.exists(events) else -1
        except BaseException:
            os.rmdir(self.path)
            raise
        self._ooms = self._oom_kills()

    def take(self, pid: int, memory_bytes: int, processes: int) -> None:
        """Limit the next run and move its first process in; what that starts is born there."""
        limits = {
            "memory.max": memory_bytes,
            "memory.swap.max": 0,
            "memory.oom.group": 1,
            # And process 1.
            "pids.max": processes + 1,
            "cgroup.procs": pid,
        }
        for file, value in limits.items():
            if file in self._files:
                os.pwrite(self._files[file], str(value).encode(), 0)

    def ran_out_of_memory(self) -> bool:
        """Whether the kernel killed somebody in there for memory since the last call."""
        before, self._ooms = self._ooms, self._oom_kills()
        return self._ooms > before

    def _oom_kills(self) -> int:
        if self._events < 0:
            return 0
        words = os.pread(self._events, 4096, 0).decode().split()
        return int(words[words.index("oom_kill") + 1]) if "oom_kill" in words else 0


def remove_stale(parent: str) -> None:
    """Folders whose zygote is gone: one that is killed cannot take its own away."""
    with contextlib.suppress(OSError):
        for name in os.listdir(parent):
            pid = name.removeprefix(PREFIX)
            if name.startswith(PREFIX) and pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
                with contextlib.suppress(OSError):
                    os.rmdir(f"{parent}/{name}")
