"""System calls that Python does not have: namespaces, mounts, capabilities, seccomp, Landlock.

Linux on x86-64 and arm64. Every function raises OSError with the call's name.

Source: the man pages of the calls, linux/seccomp.h, linux/filter.h, linux/landlock.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterable, Sequence

NEWNS, NEWCGROUP, NEWUTS, NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
NEWUSER, NEWPID, NEWNET, NEWTIME = 0x10000000, 0x20000000, 0x40000000, 0x00000080
SIGCHLD = 17

RDONLY, NOSUID, NODEV, NOEXEC = 1, 2, 4, 8
REMOUNT, BIND, REC, PRIVATE = 32, 4096, 16384, 1 << 18
DETACH = 2

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 36, 38

ARM = platform.machine() == "aarch64"

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

_CLONE, _CAPSET, _PIVOT_ROOT, _SOCKET = (220, 91, 41, 198) if ARM else (56, 126, 155, 41)
_CLONE3, _MOUNT_SETATTR, _CLOSE_RANGE = 435, 442, 436
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446

# Name: (x86-64, arm64); None where a machine has no such call. What can leave the sandbox, look into other processes,
# change the machine, or take memory that no limit counts: files of memfd_create and segments of shmget belong to no
# process once they are unmapped, and no tmpfs has their size.
_DENIED: dict[str, tuple[int | None, int | None]] = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "userfaultfd": (323, 282),
    "fanotify_init": (300, 262),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "syslog": (103, 116),
    "personality": (135, 92),
    "iopl": (172, None),
    "ioperm": (173, None),
    "vhangup": (153, 58),
}


def _checked(name: str, result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def clone(flags: int) -> int:
    """fork() into new namespaces; 0 in the child. Only from a process with a single thread."""
    return _checked("clone", _libc.syscall(_CLONE, ctypes.c_ulong(flags | SIGCHLD), 0, 0, 0, 0))


def unshare(flags: int) -> None:
    _checked("unshare", _libc.unshare(flags))


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    what = f"mount {kind or source} on {target}"
    _checked(what, _libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()))


def unmount(target: str) -> None:
    _checked(f"umount {target}", _libc.umount2(target.encode(), DETACH))


def pivot_root(new: str, old: str) -> None:
    _checked("pivot_root", _libc.syscall(_PIVOT_ROOT, new.encode(), old.encode()))


def read_only(path: str) -> None:
    """Make a mount and all below it read-only, whatever flags they were mounted with (Linux 5.12)."""
    recursive, at_cwd, mount_attr_rdonly_nosuid = 0x8000, -100, 1 | 2
    attributes = struct.pack("QQQQ", mount_attr_rdonly_nosuid, 0, 0, 0)
    _checked("mount_setattr", _libc.syscall(_MOUNT_SETATTR, at_cwd, path.encode(), recursive, attributes, 32))


def prctl(option: int, value: int) -> None:
    _checked(f"prctl {option}", _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0))


def drop_capabilities() -> None:
    header, nothing = struct.pack("Ii", 0x20080522, 0), bytes(24)
    _checked("capset", _libc.syscall(_CAPSET, header, nothing))


def close_from(first: int) -> None:
    _checked("close_range", _libc.syscall(_CLOSE_RANGE, ctypes.c_uint(first), ctypes.c_uint(0xFFFFFFFF), 0))


class Seccomp:
    """A filter that fails the calls above, network sockets and new namespaces; built once, before any fork."""

    def __init__(self) -> None:
        program = b"".join(_filter())
        self._code = ctypes.create_string_buffer(program, len(program))
        # struct sock_fprog: the count, padding to the pointer's alignment, the pointer.
        self._header = ctypes.create_string_buffer(
            struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(self._code)), 16
        )

    def install(self) -> None:
        """Needs no_new_privs; holds for this process and all it starts, for ever."""
        _checked("seccomp", _libc.prctl(PR_SET_SECCOMP, ctypes.c_ulong(2), self._header, 0, 0))


def _filter() -> Iterable[bytes]:
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    number_at, arch_at, first_argument_at = 0, 4, 16
    allow, kill = 0x7FFF0000, 0x80000000
    af_unix, namespaces = 1, NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET | NEWTIME

    def op(code: int, k: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("HBBI", code, yes, no, k)

    def fail(number: int) -> bytes:
        return op(give, 0x00050000 | number)

    yield op(load, arch_at)
    yield op(equal, 0xC00000B7 if ARM else 0xC000003E, 1, 0)
    yield op(give, kill)  # another architecture's calls have other numbers
    yield op(load, number_at)
    if not ARM:
        yield op(at_least, 0x40000000, 0, 1)  # and so has x32
        yield op(give, kill)
    for numbers in _DENIED.values():
        if (number := numbers[ARM]) is not None:
            yield op(equal, number, 0, 1)
            yield fail(errno.EPERM)
    # A filter cannot read clone3's flags, which lie in memory; libraries fall back to clone.
    yield op(equal, _CLONE3, 0, 1)
    yield fail(errno.ENOSYS)
    yield op(equal, _CLONE, 0, 4)
    yield op(load, first_argument_at)
    yield op(any_bit, namespaces, 0, 1)
    yield fail(errno.EPERM)
    yield op(give, allow)
    yield op(equal, _SOCKET, 0, 4)
    yield op(load, first_argument_at)
    yield op(equal, af_unix, 1, 0)
    yield fail(errno.EACCES)
    yield op(give, allow)
    yield op(give, allow)


class Landlock:
    """Which paths a process may read and write, enforced without any privilege.

    Args:
        readable: folders and files to read and execute below.
        writable: folders and files where everything is allowed.
    """

    def __init__(self, readable: Sequence[str], writable: Sequence[str]) -> None:
        self._readable, self._writable = readable, writable

    @staticmethod
    def version() -> int:
        """The kernel's ABI; 0 without Landlock."""
        return max(0, _libc.syscall(_LANDLOCK_CREATE, None, 0, 1))

    def install(self, version: int) -> None:
        """Needs no_new_privs."""
        execute, write_file, read_file, read_dir, truncate, ioctl = 1, 2, 4, 8, 1 << 14, 1 << 15
        known = (1 << (13 if version < 2 else 14 if version < 3 else 15 if version < 5 else 16)) - 1
        tcp = 3 if version >= 4 else 0
        scopes = 3 if version >= 6 else 0  # abstract sockets and signals
        size = 8 if version < 4 else 16 if version < 6 else 24
        attributes = struct.pack("QQQ", known, tcp, scopes)
        ruleset = _checked("landlock_create_ruleset", _libc.syscall(_LANDLOCK_CREATE, attributes, size, 0))
        of_files = known & (execute | write_file | read_file | truncate | ioctl)
        for paths, allowed in ((self._readable, execute | read_file | read_dir), (self._writable, known)):
            for path in paths:
                self._allow(ruleset, path, allowed, of_files)
        _checked("landlock_restrict_self", _libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0))
        os.close(ruleset)

    @staticmethod
    def _allow(ruleset: int, path: str, allowed: int, of_files: int) -> None:
        try:
            folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        if not os.path.isdir(path):
            allowed &= of_files
        rule = struct.pack("=Qi", allowed, folder)
        _checked("landlock_add_rule", _libc.syscall(_LANDLOCK_ADD, ruleset, 1, rule, 0))
        os.close(folder)
