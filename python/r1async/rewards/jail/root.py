"""The file system that programs see: the system's own folders read-only, an empty box, and nothing else.

Built once, in a mount namespace of its own, before the first program: each run inherits it and adds a box of its own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from r1async.rewards.jail import kernel

BOX = "/box"
"""The only place that can be written: `work` (the working folder), `tmp`, `shm`; a tmpfs of limited size."""

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_FILES = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime", "/etc/ssl/openssl.cnf")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_LINKS = {
    "/tmp": f"{BOX}/tmp",
    "/var/tmp": f"{BOX}/tmp",
    "/dev/shm": f"{BOX}/shm",
    "/dev/fd": "/proc/self/fd",
    "/dev/stdin": "/proc/self/fd/0",
    "/dev/stdout": "/proc/self/fd/1",
    "/dev/stderr": "/proc/self/fd/2",
}
_TEXTS = {
    "/etc/passwd": "sandbox:x:1000:1000::/box/work:/bin/sh\n",
    "/etc/group": "sandbox:x:1000:\n",
    "/etc/hosts": "127.0.0.1 localhost\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}


def build(extra: Sequence[str], at: Mapping[str, str]) -> None:
    """Make this mount namespace's root a small tree; what the launcher saw is gone after it.

    Args:
        extra: more folders and files to show, read-only, under their own paths.
        at: and some under other paths, {path in the sandbox: path outside}.

    Raises:
        OSError: the kernel refused a step, or a path of `extra` or `at` does not exist.
    """
    kernel.mount("none", "/", flags=kernel.REC | kernel.PRIVATE)
    # Covered in this namespace alone; a folder that is always there and that nobody wants to show.
    new = "/sys"
    sources = {path: os.open(path, os.O_PATH) for path in {*_shown(extra), *at.values()}}
    kernel.mount("sandbox", new, "tmpfs", kernel.NOSUID, "size=1m,mode=0755")
    for path in (BOX, "/proc", "/etc", "/dev", "/var", "/root", "/home"):
        os.makedirs(new + path, mode=0o755, exist_ok=True)
    for path in SYSTEM:
        if os.path.islink(path):
            os.symlink(os.readlink(path), new + path)
    for path in _shown(extra):
        _bind(sources[path], new + path, path in DEVICES)
    for path, outside in at.items():
        _bind(sources[outside], new + path, False)
    for path, target in _LINKS.items():
        if os.path.lexists(new + path):
            continue  # the user shows something there
        os.symlink(target, new + path)
    for path, text in _TEXTS.items():
        with open(new + path, "w", encoding="utf-8") as file:
            file.write(text)
    # Proc of the launcher's PID namespace: the kernel lets a run mount its own only where one is to be seen already.
    kernel.mount("/proc", f"{new}/proc", flags=kernel.BIND | kernel.REC)
    for descriptor in sources.values():
        os.close(descriptor)
    _enter(new)


def _shown(extra: Sequence[str]) -> list[str]:
    """What exists of the system, without what another path holds already; a folder before what lies in it."""
    system = [path for path in (*SYSTEM, *_FILES, *DEVICES) if os.path.exists(path) and not os.path.islink(path)]
    shown: list[str] = []
    for path in (*system, *sorted({os.path.normpath(path) for path in extra})):
        if not any(path == other or path.startswith(f"{other}/") for other in shown):
            shown.append(path)
    return shown


def _bind(source: int, target: str, device: bool) -> None:
    path = f"/proc/self/fd/{source}"
    if os.path.isdir(path):
        os.makedirs(target, mode=0o755, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    kernel.mount(path, target, flags=kernel.BIND | kernel.REC)
    if not device:
        kernel.read_only(target)


def _enter(new: str) -> None:
    os.chdir(new)
    # Old root under new root, both at ".": then the old one is taken away, and no folder was needed for it.
    kernel.pivot_root(".", ".")
    kernel.unmount(".")
    os.chdir("/")
    kernel.mount("none", "/", flags=kernel.REMOUNT | kernel.BIND | kernel.RDONLY | kernel.NOSUID)
