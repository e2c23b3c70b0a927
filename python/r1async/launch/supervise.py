"""Processes and their ends. Nothing here polls: the kernel says when a child ends or a signal comes.

Takes: roles to start. Gives: their exits. Waits for: SIGCHLD, SIGINT, SIGTERM. Woken by: the signal wake-up descriptor.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

import zmq

from r1async.launch.lifeline import Lifeline
from r1async.launch.warm import Forked, Warm, WarmError

log = logging.getLogger(__name__)

TAIL_LINES = 15
"""Lines of a dead role's log that the error repeats."""
R1ASYNC = (sys.executable, "-m", "r1async")


@dataclass(frozen=True, kw_only=True, slots=True)
class Role:
    """One process of the run."""

    name: str
    """As in logs, messages and the live view: `generator-0`."""
    kind: str
    """Roles of one kind that cannot live without one another (learner ranks) die and start together."""
    arguments: tuple[str, ...]
    program: tuple[str, ...] = R1ASYNC
    environment: Mapping[str, str] = field(default_factory=dict)
    restarts: int = 0
    warm: bool = True
    """May be forked from a process that has imported torch; only if `program` is ours."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a role's process ended."""

    role: Role
    code: int
    """Exit status; -9 is killed by signal 9."""

    def __str__(self) -> str:
        if self.code < 0:
            return f"{self.role.name} was killed by signal {-self.code} ({signal.Signals(-self.code).name})"
        return f"{self.role.name} ended with exit code {self.code}"


class Signals:
    """Turns signals into bytes on `fileno()`, and counts the requests to end."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self.requests: deque[int] = deque()
        """SIGINT and SIGTERM that nobody has taken up yet, oldest first."""

    def __enter__(self) -> Self:
        self._former_descriptor = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._former = {
            number: signal.signal(number, handler)
            for number, handler in (
                (signal.SIGCHLD, _wake_only),
                (signal.SIGINT, self._request),
                (signal.SIGTERM, self._request),
            )
        }
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._former_descriptor)
        self._reader.close()
        self._writer.close()

    def fileno(self) -> int:
        return self._reader.fileno()

    def drain(self) -> None:
        """Takes the wake-up bytes; what they were for is in `requests` and in the children's states."""
        try:
            while self._reader.recv(4096):
                pass
        except BlockingIOError:
            pass

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requests.append(number)


def _wake_only(number: int, frame: FrameType | None) -> None:
    """A handler has to exist for the wake-up byte to be written."""


class Supervisor:
    """The running roles. Start them from the main thread: parent-death signals follow the thread that forked."""

    def __init__(self, lifeline: Lifeline, logs: Path) -> None:
        self._lifeline = lifeline
        self._logs = logs
        self._running: dict[str, tuple[Role, subprocess.Popen[bytes] | Forked]] = {}
        self._started: dict[str, float] = {}
        self.warm: Warm | None = None
        """Forks roles that may be; without it every role is started by itself."""
        logs.mkdir(parents=True, exist_ok=True)

    @property
    def running(self) -> dict[str, Role]:
        return {name: role for name, (role, _) in self._running.items()}

    def may_fork(self, role: Role) -> bool:
        """Whether the role may come out of a warm process, if there is one."""
        return role.warm and role.program == R1ASYNC

    def log(self, role: Role) -> Path:
        return self._logs / f"{role.name}.log"

    def start(self, role: Role, *, own_output: bool = True) -> None:
        """Starts the role's process as the leader of its own group, so that a kill takes what it started too.

        Args:
            role: what to start; it must not run yet.
            own_output: stdout and stderr go to the role's log; False leaves them on ours.
        """
        assert role.name not in self._running, f"{role.name} runs already"
        environment = {"PYTHONUNBUFFERED": "1", **role.environment, **self._lifeline.environment()}
        with self.log(role).open("ab") as log:
            started = datetime.now().astimezone().isoformat(timespec="seconds")
            log.write(f"--- {started} r1async {' '.join(role.arguments)}\n".encode())
            log.flush()
            outputs = (log.fileno(), log.fileno()) if own_output else (1, 2)
            process = self._fork(role, environment, outputs) or subprocess.Popen(
                [*role.program, *role.arguments],
                stdin=subprocess.DEVNULL,
                stdout=outputs[0],
                stderr=outputs[1],
                env={**os.environ, **environment},
                pass_fds=[self._lifeline.read_end],
                process_group=0,
            )
        self._running[role.name] = (role, process)
        self._started[role.name] = time.monotonic()

    def _fork(self, role: Role, environment: Mapping[str, str], outputs: tuple[int, int]) -> Forked | None:
        """The role out of the warm process; None if it has to be started by itself."""
        if self.warm is None or not self.may_fork(role):
            return None
        try:
            return self.warm.fork(role.arguments, environment, outputs)
        except WarmError as error:
            self.cool(error)
            return None

    def cool(self, error: WarmError) -> None:
        """Goes on without the warm process."""
        assert self.warm is not None
        log.warning("roles are started by themselves from now on: %s", error)
        self.warm.close()
        self.warm = None

    def reap(self) -> list[Exit]:
        """The roles that have ended since the last call. What they left in their process group is killed."""
        exits = []
        for name, (role, process) in list(self._running.items()):
            # Looked at without reaping: the zombie keeps its number from being given to another group.
            if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            _signal_group(process.pid, signal.SIGKILL)
            exits.append(Exit(role, process.wait()))
            del self._running[name]
        if self.warm is not None:
            self._bury(self.warm)
        return exits

    def _bury(self, warm: Warm) -> None:
        """Reaps what ended roles had left behind: with the warm process we are the parent of those."""
        ours = {warm.pid, *(process.pid for _, process in self._running.values())}
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                if ended.si_pid in ours:
                    return  # its own turn comes with the next `reap`: it has sent its signal
                os.waitpid(ended.si_pid, 0)

    def terminate(self, names: Iterable[str]) -> None:
        """Asks roles to end: SIGTERM, to the role and not to its workers, which it ends itself."""
        for name in names:
            if name in self._running:
                # Not Popen.send_signal: that reaps, and `reap` would miss the end. Until then the number is the role's.
                os.kill(self._running[name][1].pid, signal.SIGTERM)

    def kill(self, names: Iterable[str]) -> None:
        """Ends roles and all they started, now."""
        for name in names:
            if name in self._running:
                _signal_group(self._running[name][1].pid, signal.SIGKILL)

    def started(self, name: str) -> float:
        """When the role's process was started last, on the monotonic clock."""
        return self._started[name]

    def is_stopped(self, name: str) -> bool:
        """Whether somebody has stopped the role's process (SIGSTOP, a debugger)."""
        if name not in self._running:
            return False
        try:
            status = Path(f"/proc/{self._running[name][1].pid}/stat").read_text()
        except FileNotFoundError:
            return False  # no /proc here, or it ended
        # "pid (name) state …": a name may hold spaces and brackets.
        return status.rpartition(")")[2].split()[0] in "Tt"

    def go_on(self, name: str) -> None:
        """Lets a stopped process run again."""
        if name in self._running:
            os.kill(self._running[name][1].pid, signal.SIGCONT)

    def tail(self, role: Role) -> str:
        """The last lines of the role's log."""
        path = self.log(role)
        lines = path.read_text(errors="replace").splitlines()[-TAIL_LINES:] if path.is_file() else []
        return "\n".join(f"  {line}" for line in lines)

    def mistake(self, role: Role) -> str:
        """What a role that ended with exit code 2 said about the user's mistake."""
        text = self.log(role).read_text(errors="replace")
        _, found, message = text.rpartition("\nr1async: ")
        return message.strip() if found else self.tail(role).strip()


def end_interrupted(supervisor: Supervisor, signals: Signals, number: int, deadline_s: float) -> int:
    """Asks all to end and waits; a further request is passed on, and makes a run skip saving its state.

    Args:
        number: of the signal that asked.
        deadline_s: seconds to wait; what runs then is left to the caller's `kill`.

    Returns:
        The exit code that the shell gives such an end.
    """
    assert number in (signal.SIGINT, signal.SIGTERM)
    poller = zmq.Poller()
    poller.register(signals, zmq.POLLIN)
    supervisor.terminate(supervisor.running)
    deadline = time.monotonic() + deadline_s
    while supervisor.running and (left := deadline - time.monotonic()) > 0:
        poller.poll(int(left * 1000) + 1)
        signals.drain()
        if signals.requests:
            signals.requests.clear()
            supervisor.terminate(supervisor.running)
        supervisor.reap()
    return 128 + number


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it ended by itself meanwhile, which is what was wanted
        os.killpg(group, number)
