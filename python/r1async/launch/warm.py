"""One process that has imported what the roles need, and becomes each of them by forking.

Importing torch and transformers costs seconds of CPU. A run needs them in the learner and in every generator, and
again whenever one of them is started again. So the launcher keeps a process that imports once and does nothing else:
told to, it forks, and what it forked goes on as `python -m r1async ARGUMENTS` would, memory of the imports shared.

A role is the launcher's own child all the same. The warm process forks twice and the process in between ends; the
kernel gives what is left without a parent to the next ancestor that has asked for that (`PR_SET_CHILD_SUBREAPER`), the
launcher. So ends, signals and parent-death signals are as with a role that was started by itself.

Forking is safe from one thread with no device open: that is looked at after the imports. Builds of torch for GPUs are
left out (their roles start by themselves), and so are engines other than the embedded one.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

import setproctitle

from r1async.launch import lifeline

IMPORTED = (
    "transformers.models.auto.modeling_auto",
    "r1async.cli",
    "r1async.buffer.server",
    "r1async.evaluation.evaluator",
    "r1async.generator.generator",
    "r1async.generator.torch_engine",
    "r1async.learner.learner",
    "r1async.rewards.scorer",
    "r1async.tasks.source",
)
"""What roles import; whatever else one of them needs, it imports itself."""
READY_S = 120.0
"""Seconds that the imports may take; then roles start by themselves."""
FORK_S = 60.0
"""Seconds that one fork may take."""
_PR_SET_CHILD_SUBREAPER = 36
_READY = b"ready"


class WarmError(RuntimeError):
    """The warm process cannot be used; roles have to start by themselves."""


@dataclass(frozen=True, slots=True)
class Forked:
    """A role's process, in the words of `subprocess.Popen`."""

    pid: int

    def wait(self) -> int:
        """Its exit code; -9 is killed by signal 9."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def usable() -> bool:
    """Whether roles can be forked here: on Linux, from a torch that knows no GPU."""
    found = find_spec("torch") if sys.platform == "linux" else None
    if found is None or found.origin is None:
        return False
    path = Path(found.origin).with_name("version.py")
    if not path.is_file():
        return False
    version = runpy.run_path(str(path))  # without importing torch
    return all(version.get(kind) is None for kind in ("cuda", "hip", "xpu"))


class Warm:
    """The launcher's side. The imports begin at once, and `fileno` is readable when they are done.

    Args:
        line: ties the warm process, and the roles, to this one.
        log: gets what the warm process says.
    """

    def __init__(self, line: lifeline.Lifeline, log: Path) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket, self._ready = ours, False
        _adopt(True)
        with theirs, log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "r1async.launch.warm", str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
                pass_fds=[theirs.fileno(), line.read_end],
                process_group=0,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def fileno(self) -> int:
        return self._socket.fileno()

    def is_ready(self) -> bool:
        """Whether roles can be forked; to be asked when `fileno` is readable.

        Raises:
            WarmError: never, for it has ended or found a reason against it (its log has it).
        """
        if not self._ready:
            self._ready = self._receive(0.0) == _READY
        return self._ready

    def fork(self, arguments: Sequence[str], environment: Mapping[str, str], outputs: tuple[int, int]) -> Forked:
        """`python -m r1async ARGUMENTS` as the leader of a process group of its own.

        Args:
            arguments: of the command line.
            environment: on top of ours.
            outputs: descriptors of its stdout and stderr.

        Raises:
            WarmError: it was not forked.
        """
        request = json.dumps({"arguments": list(arguments), "environment": dict(environment)}).encode()
        try:
            socket.send_fds(self._socket, [request], outputs)
        except OSError as error:
            raise WarmError(f"the warm process takes nothing: {error}") from error
        return Forked(int(self._receive(FORK_S)))

    def close(self) -> None:
        """Ends it; roles that it forked go on, but for one whose number came too late for `fork`."""
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(WarmError):
            while True:
                late = self._receive(0.0)
                if late != _READY:
                    os.killpg(int(late), signal.SIGKILL)
                    os.waitpid(int(late), 0)
        self._socket.close()
        _adopt(False)

    def _receive(self, timeout_s: float) -> bytes:
        if not select.select([self._socket], [], [], timeout_s)[0]:
            raise WarmError(f"the warm process did not answer within {timeout_s:g} s")
        try:
            answer = self._socket.recv(64)
        except OSError as error:
            raise WarmError(f"the warm process says nothing: {error}") from error
        if not answer:
            raise WarmError("the warm process has ended")
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _adopt(wanted: bool) -> None:
    """Whether this process becomes the parent of what its descendants leave behind."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def serve(channel: socket.socket) -> list[str] | None:
    """The warm process's loop.

    Returns:
        In what it forked: the arguments of the role that this process is from now on. In the warm process itself:
        None, when the launcher has closed its end.
    """
    _import_all()
    gc.collect()
    gc.freeze()  # or the first collection in every role would copy all pages that are shared
    channel.send(_READY)
    while True:
        request, files, _, _ = socket.recv_fds(channel, 2**16, 2)
        if not request:
            return None
        number_read, number_write = os.pipe()
        go_read, go_write = os.pipe()
        between = os.fork()
        if between:
            for file in (number_write, go_read, *files):
                os.close(file)
            with open(number_read, "rb") as number, open(go_write, "wb") as go:
                role = number.read()
                os.waitpid(between, 0)
                channel.send(role)  # only now is it the launcher's child
                go.write(b"1")
            continue
        role = os.fork()
        if role:
            os.setpgid(role, role)  # before anybody knows its number
            os.write(number_write, str(role).encode())
            os._exit(0)
        for file in (number_read, number_write, go_write):
            os.close(file)
        with open(go_read, "rb") as go:
            if not go.read():
                os._exit(1)  # nobody has been told of us
        wanted = json.loads(request)
        _become(channel, files, wanted["environment"])
        return wanted["arguments"]


def _import_all() -> None:
    """Raises:
    WarmError: a process that has imported all this cannot be forked safely.
    """
    for name in IMPORTED:
        __import__(name)
    threads = len(os.listdir("/proc/self/task"))
    devices = [path for path in _open_files() if path.startswith(("/dev/nvidia", "/dev/kfd", "/dev/dri"))]
    if threads != 1 or devices:
        raise WarmError(f"not to be forked: {threads} threads, devices {devices}")


def _open_files() -> list[str]:
    folder = Path("/proc/self/fd")
    return [os.readlink(path) for path in folder.iterdir() if path.is_symlink()]


def _become(channel: socket.socket, files: Sequence[int], environment: Mapping[str, str]) -> None:
    """What exec would have done: streams and environment."""
    channel.close()
    stdout, stderr = files
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    for file in files:
        os.close(file)
    os.environ.update(environment)


def _name(*arguments: str) -> None:
    """What `ps` shows. The first call finds out how much room there is: before the environment is changed."""
    setproctitle.setproctitle(" ".join([sys.executable, "-m", *arguments]))
    setproctitle.setthreadtitle("r1async")


def main() -> int:
    """The warm process, and every role that comes out of it."""
    channel, launcher = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    lifeline.die_with_parent(launcher)
    _name("r1async.launch.warm")
    arguments = serve(channel)
    if arguments is None:
        return 0
    sys.argv = ["r1async", *arguments]
    _name("r1async", *arguments)
    runpy.run_module("r1async", run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
