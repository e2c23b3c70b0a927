"""Lifeline and supervision with real processes: nothing outlives its launcher, every end is noticed."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from r1async.launch.lifeline import Lifeline
from r1async.launch.supervise import Role, Signals, Supervisor

WAIT_S = 20.0

CHILD = """
import os, signal, subprocess, sys
from r1async.launch import lifeline
{before}
assert lifeline.arm()
worker = "import signal, sys; print('worker', flush=True); signal.pause()"
if {workers}:
    subprocess.Popen([sys.executable, "-c", worker, {folder!r}], stdout=sys.stdout)
print("armed", flush=True)
signal.pause()
"""

PARENT = """
import os, subprocess, sys, signal
from r1async.launch.lifeline import Lifeline
line = Lifeline()
child = subprocess.Popen(
    [sys.executable, "-c", {child!r}, {folder!r}],
    env={{**os.environ, **line.environment()}}, pass_fds=[line.read_end], process_group=0,
)
print(child.pid, flush=True)
signal.pause()
"""


def read_lines(process: subprocess.Popen[bytes], count: int) -> list[str]:
    """So many lines of the process's output, or a failure after `WAIT_S`."""
    assert process.stdout is not None
    lines, deadline = [], time.monotonic() + WAIT_S
    while len(lines) < count:
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"waited {WAIT_S} s for line {len(lines) + 1} of {count}, got {lines}"
        lines.append(process.stdout.readline().decode().strip())
    return lines


@contextmanager
def tree(folder: Path, *, before: str = "", workers: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    child = CHILD.format(before=before, workers=workers, folder=str(folder))
    program = PARENT.format(child=child, folder=str(folder))
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=WAIT_S)


@pytest.mark.parametrize(
    "before",
    [
        pytest.param("", id="both cords"),
        pytest.param("lifeline.die_with_parent = lambda parent: None", id="pipe alone"),
        pytest.param("lifeline._watch = lambda read_end: None", id="parent-death signal alone"),
    ],
)
def test_role_ends_when_its_launcher_is_killed(before, tmp_path):
    with tree(tmp_path, before=before) as parent:
        child = psutil.Process(int(next(line for line in read_lines(parent, 2) if line.isdecimal())))
        parent.kill()
        child.wait(WAIT_S)


def test_pipe_takes_the_roles_workers_along(tmp_path):
    before = "lifeline.die_with_parent = lambda parent: None"
    with tree(tmp_path, before=before, workers=True) as parent:
        lines = read_lines(parent, 3)
        child = psutil.Process(int(next(line for line in lines if line.isdecimal())))
        (worker,) = child.children()
        parent.kill()
        worker.wait(WAIT_S)
        child.wait(WAIT_S)


def test_role_whose_launcher_died_before_it_was_armed_ends_at_once(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(WAIT_S)
    line = Lifeline()
    program = f"from r1async.launch import lifeline; lifeline.die_with_parent({gone.pid}); print('survived')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=WAIT_S, check=False)
    line.close()
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, b"")


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    line = Lifeline()
    supervisor = Supervisor(line, tmp_path / "logs")
    yield supervisor
    supervisor.kill(supervisor.running)
    line.close()


def await_signal(signals: Signals) -> None:
    ready, _, _ = select.select([signals], [], [], WAIT_S)
    assert ready, f"no signal within {WAIT_S} s"
    signals.drain()


def test_end_of_a_role_wakes_the_launcher_and_a_mistake_is_quoted(supervisor, tmp_path):
    role = Role(name="buffer", kind="buffer", arguments=("buffer", f"{tmp_path}/nowhere.yaml"))
    with Signals() as signals:
        supervisor.start(role)
        await_signal(signals)
        (ended,) = supervisor.reap()
    assert str(ended) == "buffer ended with exit code 2"
    assert supervisor.mistake(role) == f"config {tmp_path}/nowhere.yaml: no such file"
    assert supervisor.running == {}


def test_killed_role_is_reported_with_its_signal(supervisor, tmp_path):
    # Reads its config from a pipe that nobody writes: it waits there until it is killed.
    pipe = tmp_path / "config.yaml"
    os.mkfifo(pipe)
    with Signals() as signals:
        supervisor.start(Role(name="scorer-0", kind="scorer-0", arguments=("score", str(pipe))))
        supervisor.kill(["scorer-0"])
        await_signal(signals)
        (ended,) = supervisor.reap()
    assert str(ended) == "scorer-0 was killed by signal 9 (SIGKILL)"


def test_requests_to_end_are_kept_in_order():
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        await_signal(signals)
        assert list(signals.requests) == [signal.SIGINT, signal.SIGTERM]
