"""A small process that is already inside the walls and starts one program after another in a box of its own.

Runs as ``python -I -S -c`` (see `r1async.rewards.sandbox`), with an empty environment and one socket. A fork from a
warm interpreter costs a quarter of starting one, which pays for the namespaces. Frames on the socket are a u32 length
of a JSON header, the header, and then the bytes whose lengths it names. In: what to isolate, once; then runs. Out: what
could be set up, once; then outcomes.

Processes: the zygote (outside the PID namespace, no privilege left) clones `_first`, process 1 of a run's namespaces,
which starts the program and watches it. When process 1 ends, however it ends, the kernel kills everything in there and
takes the mounts away. Process 1 ends with the zygote, and the zygote when its socket closes or its parent ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import resource
import select
import shutil
import signal
import socket
import stat
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, TypedDict

from r1async.rewards.jail import kernel, root
from r1async.rewards.jail.cgroup import PREFIX, Cgroup, remove_stale

INSIDE = 1000
"""User and group that programs see themselves as."""
STDERR_BYTES = 64 * 2**10
"""Kept of standard error; the rest is read and forgotten."""
_RUN_FLAGS = kernel.NEWUSER | kernel.NEWPID | kernel.NEWNS | kernel.NEWIPC | kernel.NEWCGROUP
_NOBODY = 65534
WATCH_S = 0.02
"""Between two looks at the memory of all processes of a run."""
_LENGTH = struct.Struct("<I")


class Setup(TypedDict):
    """What to isolate, once."""

    read_only: list[str]
    at: dict[str, str]
    uid: int
    """User outside, if the zygote starts as root."""
    keep_mib: int
    """Size of a box that all runs share; 0: each has a fresh one."""
    leave_out: list[str]
    """Layers not to set up, for tests of their probes."""
    cgroup: str
    """Folder of control groups that is ours to divide; empty: none."""


class Order(TypedDict):
    """One run."""

    argv: list[str]
    env: dict[str, str]
    cwd: str
    files: list[tuple[str, int]]
    """Name below the working folder, and length of what follows the header."""
    stdin: int
    """Length, after the files."""
    fetch: list[str]
    """Names of files to bring back."""
    fetch_bytes: int
    """Of all of them together."""
    limits: dict[str, float]
    """wall_s, cpu_s, memory_bytes, address_bytes, stack_bytes, file_bytes, box_bytes, output_bytes, processes,
    open_files."""


class Run(NamedTuple):
    """A run's files and input, with its order."""

    order: Order
    files: Mapping[str, bytes]
    stdin: bytes


class GoneError(Exception):
    """The parent closed its end."""


def main(descriptor: int) -> None:
    """Serve the parent until it ends."""
    channel = socket.socket(fileno=descriptor)
    channel.set_inheritable(False)
    parent = os.pidfd_open(os.getppid())
    with contextlib.suppress(GoneError):
        header, _ = receive(channel)
        setup: Setup = header["setup"]
        walls = Walls(setup)
        send(channel, {"layers": walls.layers, "cgroup": walls.cgroup})
        while True:
            _wait(channel, parent)
            header, blobs = receive(channel)
            send(channel, *walls.run(header["run"], blobs, channel, parent))
    os._exit(0)


def receive(channel: socket.socket) -> tuple[dict[str, Any], list[bytes]]:
    """A frame: its header, which the other end of the socket made as it should be, and the bytes after it."""
    (size,) = _LENGTH.unpack(_exactly(channel, _LENGTH.size))
    header = json.loads(_exactly(channel, size))
    return header, [_exactly(channel, length) for length in header.get("lengths", ())]


def send(channel: socket.socket, header: Mapping[str, object], blobs: Sequence[bytes] = ()) -> None:
    text = json.dumps({**header, "lengths": [len(blob) for blob in blobs]}).encode()
    channel.sendall(b"".join((_LENGTH.pack(len(text)), text, *blobs)))


def _exactly(channel: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        try:
            part = channel.recv(min(size - len(data), 2**20))
        except ConnectionError:
            part = b""
        if not part:
            raise GoneError
        data += part
    return bytes(data)


def _wait(channel: socket.socket, parent: int) -> None:
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    poll.register(parent, select.POLLIN)
    if any(descriptor == parent for descriptor, _ in poll.poll()):
        raise GoneError


class Walls:
    """What isolates programs, as far as the kernel lets it be set up."""

    def __init__(self, setup: Setup) -> None:
        self.layers: dict[str, str] = {}
        """Name, and why it is missing; empty for one that was set up."""
        self._left_out = frozenset(setup["leave_out"])
        self._keep = setup["keep_mib"] << 20
        self._seccomp = kernel.Seccomp()
        self._landlock_version = kernel.Landlock.version()
        self.uid, self.gid = os.getuid(), os.getgid()
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        os.umask(0o022)
        # A worker limits its own memory by the soft limit, which we inherit; runs have theirs.
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        self._cgroup: Cgroup | None = None
        self._try("cgroup", lambda: self._join_cgroup(setup["cgroup"]))
        self._extra = [*setup["read_only"], *setup["at"]]
        self._inside = self._try("namespaces", lambda: self._go_inside(setup))
        self._try("seccomp", lambda: None)
        self._try("landlock", lambda: _require(self._landlock_version > 0, "the kernel has no Landlock"))
        self._try("rlimits", lambda: None)

    def _try(self, name: str, step: Callable[[], None]) -> bool:
        if name in self._left_out:
            self.layers[name] = "left out"
            return False
        try:
            step()
        except OSError as error:
            self.layers[name] = str(error)
            return False
        self.layers[name] = ""
        return True

    def _join_cgroup(self, parent: str) -> None:
        _require(bool(parent), "no folder of control groups is given (reward.code.cgroup)")
        remove_stale(parent)
        self._cgroup = Cgroup(parent, f"{PREFIX}{os.getpid()}")

    def _has(self, name: str) -> bool:
        return not self.layers[name]

    def _go_inside(self, setup: Setup) -> None:
        """Own network, host name and file system, for all runs; then no privilege any more."""
        _try_clone(_RUN_FLAGS)
        ours = os.getuid()
        user = _existing((setup["uid"], _NOBODY)) if ours == 0 else ours
        flags = kernel.NEWNS | kernel.NEWNET | kernel.NEWUTS | kernel.NEWIPC
        if "network" in self._left_out:
            flags &= ~kernel.NEWNET
        if ours == 0:
            kernel.unshare(flags)
        else:
            group = os.getgid()
            kernel.unshare(flags | kernel.NEWUSER)
            _map_user(ours, group, ours, group)
        root.build(setup["read_only"], setup["at"])
        socket.sethostname("sandbox")
        if self._keep:
            kernel.mount("box", root.BOX, "tmpfs", kernel.NOSUID | kernel.NODEV, f"size={self._keep},mode=0777")
        if ours == 0 and "identity" not in self._left_out:
            _drop_root(user)
            self.uid = self.gid = user
            # Cleared by the change of user; without it our own /proc/self/uid_map belongs to root.
            kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
        if self._keep:
            _furnish(root.BOX)

    def run(
        self, order: Order, blobs: Sequence[bytes], channel: socket.socket, parent: int
    ) -> tuple[dict[str, object], Sequence[bytes]]:
        """One program, from its start until nothing is left of it."""
        names = [name for name, _ in order["files"]]
        run = Run(order, dict(zip(names, blobs, strict=False)), blobs[len(names)])
        folder = "" if self._inside else tempfile.mkdtemp(prefix="r1async-box-")
        watch = _Watch(order["limits"])
        try:
            began = time.monotonic()
            pid = self._start(run, watch, folder, (channel.fileno(), parent))
            try:
                watch.until_end(began, (channel.fileno(), parent))
            finally:
                self._end(pid, watch)
            if self._cgroup and self._cgroup.ran_out_of_memory():
                watch.status = "memory"
            return watch.outcome(time.monotonic() - began)
        except OSError as error:
            return {"status": "error", "detail": f"{type(error).__name__}: {error}"}, ()
        finally:
            watch.close()
            if folder:
                shutil.rmtree(folder, ignore_errors=True)

    def _start(self, run: Run, watch: _Watch, folder: str, ours: Sequence[int]) -> int:
        flags = _RUN_FLAGS
        if "processes" in self._left_out:
            flags &= ~kernel.NEWPID
        if "identity" in self._left_out:
            flags &= ~kernel.NEWUSER
        pid = kernel.clone(flags if self._inside else 0)
        if pid == 0:
            try:
                for descriptor in ours:
                    os.close(descriptor)
                watch.inside()
                _First(self, run, watch, folder, flags).live()
            except BaseException as error:  # noqa: BLE001 - the last frame of a process: nothing else reports it
                watch.tell({"status": "error", "detail": f"{type(error).__name__}: {error}"})
            finally:
                os._exit(1)
        try:
            if self._cgroup:
                limits = run.order["limits"]
                self._cgroup.take(pid, int(limits["memory_bytes"]), int(limits["processes"]))
            watch.outside(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        return pid

    def _end(self, pid: int, watch: _Watch) -> None:
        if not self._inside:
            # Process 1 is an ordinary process: it has to live to end what the program started.
            watch.hang_up()
            watch.wait_ended(2.0)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    def confine(self, folder: str) -> None:
        """The last steps before a program takes over the process."""
        if self._has("landlock"):
            shown = ["/"] if self._inside else [*root.SYSTEM, *root.DEVICES, "/etc", "/proc", *self._extra]
            # Not /dev/zero, though nobody could do harm with it: the probe sees by it that Landlock is at work.
            writable = [folder or root.BOX, "/dev/null"]
            kernel.Landlock(shown, writable).install(self._landlock_version)
        if "identity" not in self._left_out:
            kernel.drop_capabilities()
        if self._has("seccomp"):
            self._seccomp.install()

    def limit(self, limits: Mapping[str, float]) -> None:
        if self._has("rlimits"):
            _set_limits(limits)

    @property
    def cgroup(self) -> str:
        """The control group's folder, for the parent to take away; empty: none."""
        return self._cgroup.path if self._cgroup else ""

    @property
    def inside(self) -> bool:
        return self._inside

    @property
    def keeps_box(self) -> bool:
        return self._keep > 0


def _try_clone(flags: int) -> None:
    """Fails where runs would, while there is still a choice: in many containers user namespaces are switched off."""
    pid = kernel.clone(flags)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def _existing(users: Sequence[int]) -> int:
    """The first of the users that exists here: a user namespace around us may know but a few."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        ranges = [(int(first), int(count)) for first, _, count in map(str.split, file)]
    for user in users:
        if any(first <= user < first + count for first, count in ranges):
            return user
    raise OSError(f"none of the users {', '.join(map(str, users))} exists in this user namespace, only root")


def _drop_root(user: int) -> None:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def _require(holds: bool, why: str) -> None:
    if not holds:
        raise OSError(why)


def _map_user(user: int, group: int, inside_user: int, inside_group: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{inside_user} {user} 1")
    _write("/proc/self/gid_map", f"{inside_group} {group} 1")


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _furnish(box: str) -> None:
    for name in ("work", "tmp", "shm"):
        os.mkdir(f"{box}/{name}", 0o755)


def _set_limits(limits: Mapping[str, float]) -> None:
    def limit(which: int, value: float, hard: float | None = None) -> None:
        ceiling = resource.getrlimit(which)[1]
        wanted = [int(value), int(value if hard is None else hard)]
        if ceiling != resource.RLIM_INFINITY:
            wanted = [min(each, ceiling) for each in wanted]
        resource.setrlimit(which, (wanted[0], wanted[1]))

    # SIGXCPU can be caught; a second later SIGKILL cannot.
    cpu_s = -(-limits["cpu_s"] // 1)
    limit(resource.RLIMIT_CPU, cpu_s, cpu_s + 1)
    # DATA counts what can be written, AS also what is only reserved: engines that reserve gigabytes need the first.
    limit(resource.RLIMIT_DATA, limits["memory_bytes"])
    if limits["address_bytes"]:
        limit(resource.RLIMIT_AS, limits["address_bytes"])
    limit(resource.RLIMIT_STACK, limits["stack_bytes"])
    limit(resource.RLIMIT_FSIZE, limits["file_bytes"])
    limit(resource.RLIMIT_NOFILE, limits["open_files"])
    limit(resource.RLIMIT_NPROC, limits["processes"] + 1)
    limit(resource.RLIMIT_MEMLOCK, 0)
    limit(resource.RLIMIT_SIGPENDING, 1024)
    limit(resource.RLIMIT_CORE, 0)


class _Watch:
    """The pipes of a run, and what the zygote does with them until it ends."""

    def __init__(self, limits: Mapping[str, float]) -> None:
        self._limits = limits
        self._pipes = {name: os.pipe() for name in ("stdout", "stderr", "report")}
        self._cord, self._cord_end = os.pipe()
        """Process 1 waits for a byte before it starts anything, and ends when the other end closes."""
        self._read: dict[str, bytearray] = {name: bytearray() for name in self._pipes}
        self.status = ""
        """The limit that ended the run; empty: what process 1 reports."""
        self._ended = -1
        ends = (end for pair in self._pipes.values() for end in pair)
        self._open = {*ends, self._cord, self._cord_end}

    def _close(self, descriptor: int) -> None:
        self._open.remove(descriptor)
        os.close(descriptor)

    def inside(self) -> None:
        """In process 1: keep only its ends."""
        for read, _ in self._pipes.values():
            self._close(read)
        self._close(self._cord_end)

    def outside(self, pid: int) -> None:
        """In the zygote: keep only its ends, and let process 1 begin."""
        for _, write in self._pipes.values():
            self._close(write)
        self._close(self._cord)
        self._ended = os.pidfd_open(pid)
        self._open.add(self._ended)
        os.write(self._cord_end, b"g")

    @property
    def cord(self) -> int:
        return self._cord

    def end_of(self, name: str) -> int:
        return self._pipes[name][1]

    def tell(self, report: Mapping[str, object], blobs: Sequence[bytes] = ()) -> None:
        """In process 1: what became of the program."""
        text = json.dumps({**report, "lengths": [len(blob) for blob in blobs]}).encode()
        left = memoryview(b"".join((_LENGTH.pack(len(text)), text, *blobs)))
        while left:
            left = left[os.write(self._pipes["report"][1], left) :]

    def until_end(self, began: float, ours: Sequence[int]) -> None:
        """Read what comes, until every pipe has ended or a limit is reached.

        Raises:
            GoneError: the parent ended or sends something: nobody waits for this run any more.
        """
        open_pipes = {read: name for name, (read, _) in self._pipes.items()}
        poll = select.poll()
        for descriptor in (*open_pipes, *ours):
            poll.register(descriptor, select.POLLIN)
        due = began + self._limits["wall_s"]
        while open_pipes:
            left = due - time.monotonic()
            if left <= 0:
                self.status = "timeout"
                return
            for descriptor, _ in poll.poll(left * 1000 + 1):
                if descriptor in ours:
                    raise GoneError
                data = os.read(descriptor, 2**16)
                if not data:
                    poll.unregister(descriptor)
                    del open_pipes[descriptor]
                elif not self._take(open_pipes[descriptor], data):
                    self.status = "output"
                    return

    def _take(self, name: str, data: bytes) -> bool:
        """Keep it; False if it is more than a program may write."""
        kept = self._read[name]
        if name == "stderr":
            data = data[: max(0, STDERR_BYTES - len(kept))]
        kept += data
        return name == "report" or len(kept) <= self._limits["output_bytes"]

    def hang_up(self) -> None:
        self._close(self._cord_end)

    def wait_ended(self, seconds: float) -> None:
        poll = select.poll()
        poll.register(self._ended, select.POLLIN)
        poll.poll(seconds * 1000)

    def close(self) -> None:
        for descriptor in list(self._open):
            self._close(descriptor)

    def outcome(self, wall_s: float) -> tuple[dict[str, object], Sequence[bytes]]:
        streams = [bytes(self._read[name]) for name in ("stdout", "stderr")]
        report, files = _parsed(bytes(self._read["report"]))
        if self.status:
            report, files = {"status": self.status}, []
        names = report.pop("names", [])
        return {**report, "wall_s": wall_s, "names": names}, [*streams, *files]


def _parsed(report: bytes) -> tuple[dict[str, object], list[bytes]]:
    try:
        (size,) = _LENGTH.unpack_from(report)
        header = json.loads(report[_LENGTH.size : _LENGTH.size + size])
        at, files = _LENGTH.size + size, []
        for length in header.pop("lengths"):
            files.append(report[at : at + length])
            at += length
        return header, files
    except (struct.error, ValueError):
        # Nobody inside can end process 1, so the machine did: out of memory, most likely.
        return {"status": "error", "detail": "the first process of the sandbox ended without a report"}, []


class _First:
    """Process 1 of a run: sets up the rest, starts the program, watches it, and brings back what it left."""

    def __init__(self, walls: Walls, run: Run, watch: _Watch, folder: str, flags: int) -> None:
        self._walls, self._run, self._watch, self._flags = walls, run, watch, flags
        self._folder = folder
        self._limits = run.order["limits"]
        self._work = f"{folder or root.BOX}/work"
        self._alone = walls.inside and bool(flags & kernel.NEWPID)
        """In a PID namespace of its own, whose processes are all to be watched and to be ended."""

    def live(self) -> NoReturn:
        # Before the byte is read: a zygote that dies in between closes its end, and the read ends.
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL if self._walls.inside else 0)
        if os.read(self._watch.cord, 1) != b"g":
            os._exit(1)
        self._settle()
        stdin = os.memfd_create("stdin", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        _fill(stdin, self._run.stdin)
        # It counts as nobody's memory, so it must not grow.
        fcntl.fcntl(stdin, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
        failed, failing = os.pipe()
        program = os.fork()
        if program == 0:
            self._become(stdin, failing)
        os.close(failing)
        for name in ("stdout", "stderr"):
            os.close(self._watch.end_of(name))
        self._report(program, failed)
        os._exit(0)

    def _settle(self) -> None:
        if self._walls.inside:
            if self._flags & kernel.NEWUSER:
                _map_user(self._walls.uid, self._walls.gid, INSIDE, INSIDE)
            if not self._walls.keeps_box:
                size = int(self._limits["box_bytes"])
                box = f"size={size},nr_inodes={max(16384, size // 2**14)},mode=0755"
                kernel.mount("box", root.BOX, "tmpfs", kernel.NOSUID | kernel.NODEV, box)
                _furnish(root.BOX)
            self._own_proc()
        else:
            _furnish(self._folder)
        if not self._alone:
            kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        # A copy of the zygote's memory: nobody inside may read it.
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
        for name, data in self._run.files.items():
            path = f"{self._work}/{name}"
            os.makedirs(os.path.dirname(path), exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o755)
            _fill(descriptor, data)
            os.close(descriptor)

    def _own_proc(self) -> None:
        """Process numbers of this namespace; where the kernel will not have it (in many containers), none at all."""
        flags = kernel.NOSUID | kernel.NODEV | kernel.NOEXEC
        if not self._alone:
            return
        try:
            kernel.mount("proc", "/proc", "proc", flags, "subset=pid")
        except OSError:
            kernel.mount("none", "/proc", "tmpfs", flags | kernel.RDONLY, "size=4k")

    def _become(self, stdin: int, failing: int) -> NoReturn:
        try:
            os.setsid()
            os.chdir(self._run.order["cwd"] or self._work)
            ends = [stdin, *(self._watch.end_of(name) for name in ("stdout", "stderr"))]
            # Out of the way first: an end may have the number that another one is to get.
            high = [_move_up(descriptor) for descriptor in ends]
            told = _move_up(failing)
            for number, descriptor in enumerate(high):
                os.dup2(descriptor, number, inheritable=True)
            os.dup2(told, 3, inheritable=False)
            kernel.close_from(4)
            os.lseek(0, 0, os.SEEK_SET)
            argv, env = self._run.order["argv"], dict(self._run.order["env"])
            if self._folder:
                env.update(HOME=self._work, TMPDIR=f"{self._folder}/tmp")
                argv = [word.replace(f"{root.BOX}/work", self._work) for word in argv]
            for number in range(1, signal.NSIG):
                if number not in (signal.SIGKILL, signal.SIGSTOP) and signal.getsignal(number) == signal.SIG_IGN:
                    signal.signal(number, signal.SIG_DFL)
            self._walls.limit(self._limits)
            self._walls.confine(self._folder)
            os.execve(argv[0], argv, env)
        except BaseException as error:  # noqa: BLE001 - the last frame of a process: nothing else reports it
            # What the program itself makes impossible is its own fault: no memory for its data, no format of ours.
            own = isinstance(error, OSError) and error.errno in (errno.ENOMEM, errno.ENOEXEC)
            with contextlib.suppress(OSError):
                os.write(3, f"{'!' if own else '?'}{type(error).__name__}: {error}".encode())
        finally:
            os._exit(127)

    def _report(self, program: int, failed: int) -> None:
        why = os.read(failed, 4096)
        if why:
            os.waitpid(program, 0)
            status = "runtime" if why.startswith(b"!") else "error"
            detail = f"cannot start the program: {why[1:].decode(errors='replace')}"
            self._watch.tell({"status": status, "detail": detail, "exit_code": 126})
            return
        memory = self._until_end(program)
        status, usage = self._reap(program)
        code = os.waitstatus_to_exitcode(status)
        self._kill_all()
        names, blobs, left = [], [], self._run.order["fetch_bytes"]
        for name in self._run.order["fetch"]:
            if (data := _fetch(f"{self._work}/{name}", left)) is not None:
                names.append(name)
                blobs.append(data)
                left -= len(data)
        report = {
            "status": "memory" if memory > self._limits["memory_bytes"] else "ok" if code == 0 else "runtime",
            "exit_code": code,
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "memory_bytes": max(usage.ru_maxrss * 1024, memory),
            "names": names,
        }
        self._watch.tell(report, blobs)

    def _until_end(self, program: int) -> int:
        """Waits for the program or the zygote; gives the memory of all processes when it ends them for it, else 0."""
        ended, poll = os.pidfd_open(program), select.poll()
        poll.register(ended, select.POLLIN)
        poll.register(self._watch.cord, select.POLLIN)
        while True:
            for descriptor, _ in poll.poll(WATCH_S * 1000):
                if descriptor == self._watch.cord:
                    self._kill_all()
                    os._exit(0)
                return 0
            used = _memory_in_use() if self._alone else 0
            if used > self._limits["memory_bytes"]:
                os.kill(program, signal.SIGKILL)
                return used

    def _reap(self, program: int) -> tuple[int, resource.struct_rusage]:
        while True:
            pid, status, usage = os.wait4(-1, 0)
            if pid == program:
                return status, usage

    def _kill_all(self) -> None:
        """Everything the program started, before its files are read: nobody changes them meanwhile."""
        if self._alone:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                while True:
                    os.waitpid(-1, 0)
            return
        # Without a namespace: as long as somebody is left, they become our children one after another.
        with contextlib.suppress(ChildProcessError):
            while True:
                for child in _children():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child, signal.SIGKILL)
                os.waitpid(-1, 0)


def _children() -> list[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []


def _memory_in_use() -> int:
    """Bytes of all processes that this one sees but itself: their own pages, and shared memory once for each.

    One process alone is held by its limits; this holds the sum of many, where there is no cgroup to do it.
    """
    total = 0
    with contextlib.suppress(OSError):
        for entry in os.listdir("/proc"):
            if not entry.isdigit() or entry == "1":
                continue
            with contextlib.suppress(OSError), open(f"/proc/{entry}/status", "rb") as file:
                text = file.read()
                for name in (b"RssAnon:", b"RssShmem:"):
                    _, found, rest = text.partition(name)
                    if found:
                        total += int(rest.split(None, 1)[0]) * 1024
    return total


def _fill(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def _move_up(descriptor: int) -> int:
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)


def _fetch(path: str, most: int) -> bytes | None:
    """A regular file that the program left, if it is small enough; no link, no pipe that would make us wait."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(most + 1)
    finally:
        os.close(descriptor)
    return data if len(data) <= most else None


if __name__ == "__main__":
    main(int(sys.argv[1]))
