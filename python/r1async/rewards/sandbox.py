"""Programs that nobody trusts, run behind walls: each in namespaces, a file system and limits of its own.

    with Sandbox() as sandbox:
        outcome = sandbox.run(Program(argv=("/bin/sh", "-c", "cat"), stdin=b"hello"))

``python -m r1async.rewards.sandbox`` shows which walls this machine gives. Linux only.

Takes: programs, one at a time. Gives: outcomes. Waits for: the zygote (`jail.zygote`), which has the deadline of the
program and is itself given up `GRACE_S` after it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import r1async
from r1async.rewards.jail import zygote
from r1async.rewards.jail.root import BOX

log = logging.getLogger(__name__)

MIB = 2**20
START_S = 30.0
"""For the zygote's start."""
GRACE_S = 15.0
"""Beyond a program's own deadline, for a machine that is busy, until the zygote is given up."""
WORK = f"{BOX}/work"
"""The working folder of programs."""

REQUIRED = ("processes", "identity", "rlimits", "namespaces", "root")
"""Layers without which nothing is run, unless `unsafe`."""
LAYERS: Mapping[str, str] = {
    "processes": "a PID namespace, killed as a whole at the wall-clock deadline",
    "identity": "a user without privileges here and outside, no_new_privs, empty environment, no inherited descriptor",
    "rlimits": "memory, CPU, file size, open files, processes, no core dumps",
    "namespaces": "user, network, mount, IPC and UTS namespaces",
    "root": "the system's folders read-only, a box of limited size, nothing else",
    "seccomp": "no network sockets, ptrace, mounts, new namespaces, uncounted memory",
    "landlock": "paths, sockets and signals once more, by another part of the kernel",
    "cgroup": "the kernel's own count of memory and processes; without it, memory is added up every 20 ms",
}
"""Every layer and what it is."""

# Interpreter start-up is part of each run: no site packages, no user folder, no .pyc files.
ENVIRONMENT: Mapping[str, str] = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": WORK,
    "TMPDIR": f"{BOX}/tmp",
    "LANG": "C.UTF-8",
    "TZ": "UTC",
    "PYTHONHASHSEED": "0",
}
"""All that a program finds in its environment, but for `Program.env`."""


class SandboxError(RuntimeError):
    """The sandbox failed, not the program: its verdict is unknown."""


class LayersMissingError(SandboxError):
    """The machine does not give what isolation needs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one run may use."""

    wall_s: float = 10.0
    """Seconds from start to end; then everything is killed."""
    cpu_s: float = 10.0
    """Seconds of processor time of each process."""
    memory_mib: int = 1024
    """Of each process, and of all of them together."""
    address_mib: int = 0
    """Address space of each process. 0: no limit of its own, for programs that reserve much and use little."""
    stack_mib: int = 8
    """Of the main thread; new threads reserve as much."""
    output_kib: int = 4096
    """Of standard output; more ends the run."""
    box_mib: int = 64
    """Of all files together; one of them may take it all."""
    processes: int = 64
    """And threads, at a time."""
    open_files: int = 128
    """Of each process. What sockets and pipes hold in the kernel counts as nobody's memory without a cgroup."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """One run."""

    argv: Sequence[str]
    """The first is a path."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Put into the working folder, executable."""
    stdin: bytes = b""
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to `ENVIRONMENT`."""
    cwd: str = ""
    """Empty: the working folder."""
    fetch: Sequence[str] = ()
    """Files of the working folder to bring back; those that do not exist, are no plain files or too large are left."""
    fetch_mib: int = 64
    """Of all fetched files together."""
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of a run."""

    status: Literal["ok", "runtime", "timeout", "memory", "output"]
    """ok: exit code 0. runtime: another, or a signal. The others: the limit that ended it."""
    exit_code: int | None
    """Negative: a signal's number. None: ended from outside."""
    stdout: bytes
    stderr: bytes
    """Its first 64 KiB."""
    files: Mapping[str, bytes]
    wall_s: float
    cpu_s: float
    """Of the program and the children it waited for; 0 if it was ended from outside."""
    memory_mib: float
    """The most that one process held, roughly."""


class Sandbox:
    """Runs programs, one at a time; safe to call from several threads, which then take turns.

    Args:
        read_only: folders and files that programs may read, besides the system's and this Python's own.
        at: more of them under other paths, {path in the sandbox: path here}.
        keep_mib: above 0, all runs share one box of this size, which ends with the sandbox: a session.
        cgroup: a folder of control groups that is ours to divide.
        unsafe: run programs with whatever layers there are.
        leave_out: layers not to set up, for tests.

    Raises:
        LayersMissingError: a required layer is not to be had, and `unsafe` is not set.
        SandboxError: the zygote did not start.
    """

    def __init__(
        self,
        *,
        read_only: Sequence[str] = (),
        at: Mapping[str, str] | None = None,
        keep_mib: int = 0,
        cgroup: str = "",
        unsafe: bool = False,
        leave_out: Sequence[str] = (),
    ) -> None:
        self._setup = zygote.Setup(
            read_only=[sys.base_prefix, *read_only, *([tempfile.gettempdir()] if "root" in leave_out else [])],
            at=dict(at or {}),
            # Nobody's: above the ranges of users, services and containers. One for each sandbox, so that limits on
            # a user's processes are its own on kernels that count them over all namespaces.
            uid=1_900_000_000 + os.getpid() % 2**22,
            keep_mib=keep_mib,
            leave_out=list(leave_out),
            cgroup=cgroup,
        )
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._told: Mapping[str, str] = {}
        self._cgroup = ""
        self._owner = os.getpid()
        self.layers: Mapping[str, str] = {}
        """Every layer, and why it is missing; empty for one that holds."""
        try:
            self.layers = self._probe()
            missing = {name: self.layers[name] for name in REQUIRED if self.layers[name]}
            if missing and not unsafe:
                raise LayersMissingError(
                    "programs cannot be isolated here: "
                    + "; ".join(f"no {name}: {why}" for name, why in missing.items())
                    + ". unsafe runs them all the same"
                )
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the zygote, and with it everything that runs."""
        with self._lock:
            self._stop()

    def run(self, program: Program) -> Outcome:
        """Run a program to its end, or to the end of what it may use.

        Raises:
            SandboxError: it could not be run, or nobody knows what became of it.
        """
        with self._lock:
            if self._owner != os.getpid():
                # A fork: the zygote answers the process that started it.
                self._channel, self._process, self._cgroup = None, None, ""
            if self._channel is None:
                self._start()
            try:
                return self._ask(program)
            except SandboxError:
                raise  # the zygote said so, and is ready for the next
            except (OSError, zygote.GoneError) as error:
                self._stop()
                raise SandboxError(f"the sandbox's process failed: {type(error).__name__}: {error}") from error
            except BaseException:
                # Interrupted: its answer is still to come, and must not be taken for the next program's.
                self._stop()
                raise

    def _ask(self, program: Program) -> Outcome:
        assert self._channel is not None
        limits = program.limits
        order = zygote.Order(
            argv=list(program.argv),
            env={**ENVIRONMENT, **program.env},
            cwd=program.cwd,
            files=[(name, len(data)) for name, data in program.files.items()],
            stdin=len(program.stdin),
            fetch=list(program.fetch),
            fetch_bytes=program.fetch_mib * MIB,
            limits=_in_bytes(limits),
        )
        self._channel.settimeout(limits.wall_s + GRACE_S)
        zygote.send(self._channel, {"run": order}, [*program.files.values(), program.stdin])
        header, blobs = zygote.receive(self._channel)
        if header["status"] == "error":
            raise SandboxError(str(header["detail"]))
        return _outcome(header, blobs, limits)

    def _start(self) -> None:
        self._owner = os.getpid()
        ours, theirs = socket.socketpair()
        folder = str(Path(r1async.__file__).parents[1])
        code = f"import sys; sys.path.append({folder!r}); from r1async.rewards.jail import zygote; zygote.main"
        # sys._base_executable: the interpreter itself, not a virtual environment's, whose folder programs do not see.
        self._process = subprocess.Popen(
            [base_python(), "-I", "-S", "-B", "-c", f"{code}({theirs.fileno()})"],
            env={},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()
        self._channel = ours
        ours.settimeout(START_S)
        try:
            zygote.send(ours, {"setup": self._setup})
            header, _ = zygote.receive(ours)
        except (OSError, zygote.GoneError) as error:
            self._stop()
            raise SandboxError(f"the sandbox's process did not start: {type(error).__name__}: {error}") from error
        assert isinstance(header["layers"], dict)
        self._told, self._cgroup = header["layers"], header["cgroup"]

    def _stop(self) -> None:
        if self._channel is not None:
            self._channel.close()
        if self._process is not None:
            try:
                self._process.wait(5.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._channel = self._process = None
        if self._cgroup:
            with contextlib.suppress(OSError):  # gone already, or somebody else's to clean up
                os.rmdir(self._cgroup)

    def _probe(self) -> dict[str, str]:
        """Which layers hold, as seen from inside; what the zygote says about a failure is the better reason."""
        limits = Limits(wall_s=START_S, cpu_s=7, memory_mib=512, address_mib=2048, processes=32, open_files=64)
        with tempfile.NamedTemporaryFile(prefix="r1async-canary-") as canary:
            facts = {
                "pid": os.getpid(),
                "canary": canary.name,
                "namespaces": {name: os.readlink(f"/proc/self/ns/{name}") for name in _NAMESPACES},
                "uid": os.getuid(),
                "cpu_s": limits.cpu_s,
                "data": limits.memory_mib * MIB,
            }
            argv = (base_python(), "-I", "-S", f"{WORK}/probe.py", json.dumps(facts))
            program = Program(argv=argv, files={"probe.py": _PROBE.encode()}, limits=limits)
            outcome = self.run(program)
        try:
            seen = json.loads(outcome.stdout)
        except ValueError as error:
            why = f"{outcome.status}, exit code {outcome.exit_code}: {outcome.stderr.decode(errors='replace')}"
            raise SandboxError(f"the probe of the sandbox failed: {why}") from error
        told = {name: self._told.get(name) or self._told.get("namespaces", "") for name in LAYERS}
        seen["cgroup"] = self._told["cgroup"]
        return {name: (told[name] or seen[name]) if seen[name] else "" for name in LAYERS}


def base_python() -> str:
    """This Python's interpreter outside of any virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)


def _in_bytes(limits: Limits) -> dict[str, float]:
    return {
        "wall_s": limits.wall_s,
        "cpu_s": limits.cpu_s,
        "memory_bytes": limits.memory_mib * MIB,
        "address_bytes": limits.address_mib * MIB,
        "stack_bytes": min(limits.stack_mib, limits.memory_mib) * MIB,
        "file_bytes": limits.box_mib * MIB,
        "box_bytes": limits.box_mib * MIB,
        "output_bytes": limits.output_kib * 2**10,
        "processes": limits.processes,
        "open_files": limits.open_files,
    }


_SIGXCPU, _SIGXFSZ, _SIGKILL = -24, -25, -9


def _outcome(header: Mapping[str, object], blobs: Sequence[bytes], limits: Limits) -> Outcome:
    stdout, stderr, *files = blobs
    code, cpu_s, memory = header.get("exit_code"), header.get("cpu_s", 0.0), header.get("memory_bytes", 0)
    names, wall_s = header["names"], header["wall_s"]
    assert isinstance(names, list)
    assert isinstance(wall_s, float)
    assert isinstance(cpu_s, float)
    assert isinstance(memory, int)
    assert code is None or isinstance(code, int)
    status = header["status"]
    if status in ("ok", "runtime"):
        # Processor time is measured here too: the kernel's own limit counts whole seconds.
        if cpu_s > limits.cpu_s or code == _SIGXCPU:
            status = "timeout"
        elif code == _SIGXFSZ:
            status = "output"
    assert status in ("ok", "runtime", "timeout", "memory", "output")
    return Outcome(
        status=status,
        exit_code=code,
        stdout=stdout,
        stderr=stderr,
        files=dict(zip(names, files, strict=True)),
        wall_s=wall_s,
        cpu_s=cpu_s,
        memory_mib=memory / MIB,
    )


_NAMESPACES = ("user", "pid", "net", "mnt", "ipc", "uts")

# Looks at effects, not at what somebody believes to have set up. Runs inside.
_PROBE = """
import json, os, resource, sys

facts = json.loads(sys.argv[1])
seen = {}

def check(name, *findings):
    seen[name] = "; ".join(text for bad, text in findings if bad)

def refused(action):
    try:
        action()
    except OSError:
        return True
    return False

def text(path):
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""

def status(name):
    found = [line.split()[1] for line in text("/proc/self/status").splitlines() if line.startswith(name + ":")]
    return found[0] if found else ""

def namespace(name):
    try:
        return os.readlink("/proc/self/ns/" + name)
    except OSError:
        return ""

def same(name):
    return namespace(name) == facts["namespaces"][name]

outside = text("/proc/self/uid_map").split()
open_files = [number for number in range(4, 64) if not refused(lambda: os.fstat(number))]
check("processes",
    (same("pid"), "the launcher's PID namespace"),
    (not refused(lambda: os.kill(facts["pid"], 0)) and os.getpid() > 99, "the launcher can be signalled"))
check("identity",
    (os.getuid() == 0, "runs as root"),
    (len(outside) > 1 and outside[1] == "0", "runs as root's user outside"),
    (int(status("CapEff") or "0", 16) != 0, "has capabilities"),
    (status("NoNewPrivs") == "0", "could gain privileges by exec"),
    (bool(open_files), f"open descriptors {open_files}"))
limit = lambda which: resource.getrlimit(which)[0]
check("rlimits",
    (limit(resource.RLIMIT_CPU) != facts["cpu_s"], "no CPU limit"),
    (limit(resource.RLIMIT_DATA) != facts["data"], "no memory limit"),
    (limit(resource.RLIMIT_NPROC) < 1 or limit(resource.RLIMIT_NPROC) > 99, "no process limit"),
    (limit(resource.RLIMIT_FSIZE) < 1, "no file size limit"),
    (limit(resource.RLIMIT_CORE) != 0, "core dumps"))
shared = [name for name in ("user", "net", "mnt", "ipc", "uts") if same(name)]
check("namespaces", (bool(shared), "shares " + ", ".join(shared) + " with the launcher"))
check("root",
    (os.path.exists(facts["canary"]), "the launcher's files can be seen"),
    (not refused(lambda: os.mkdir("/r1async-probe")), "the root folder can be written"))
check("seccomp", (not refused(lambda: os.memfd_create("probe")), "forbidden calls work"))
check("landlock", (not refused(lambda: os.open("/dev/zero", os.O_WRONLY)), "paths are not confined"))
print(json.dumps(seen))
"""


def show(layers: Mapping[str, str]) -> str:
    """A line for each layer."""
    needed = {name: " (required)" if name in REQUIRED else "" for name in LAYERS}
    return "\n".join(
        f"{'MISSING' if layers[name] else 'holds':8}{name:12}{what}{needed[name]}"
        + (f"\n{'':20}{layers[name]}" if layers[name] else "")
        for name, what in LAYERS.items()
    )


def main() -> int:
    """Print the layers that hold here; 1 if programs would be refused."""
    try:
        with Sandbox(unsafe=True) as sandbox:
            began = time.perf_counter()
            sandbox.run(Program(argv=("/bin/true",)))
            print(show(sandbox.layers))
            print(f"{'':8}{'one run':12}{(time.perf_counter() - began) * 1e3:.1f} ms")
            return int(any(sandbox.layers[name] for name in REQUIRED))
    except SandboxError as error:
        print(f"no sandbox: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
