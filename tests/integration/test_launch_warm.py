"""Roles that are forked from a process which has imported torch: nobody can tell them from others."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from r1async.launch import warm as warm_module
from r1async.launch.lifeline import Lifeline
from r1async.launch.supervise import Role, Signals, Supervisor
from r1async.launch.warm import READY_S, Warm, WarmError, usable

WAIT_S = 60.0

pytestmark = pytest.mark.skipif(not usable(), reason="roles are forked on Linux, from a torch for the CPU")


@pytest.fixture(scope="module")
def line() -> Iterator[Lifeline]:
    made = Lifeline()
    yield made
    made.close()


@pytest.fixture(scope="module")
def warm(line: Lifeline, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    with Warm(line, tmp_path_factory.mktemp("warm") / "warm.log") as made:
        ready, _, _ = select.select([made], [], [], READY_S)
        assert ready
        assert made.is_ready()
        yield made


@pytest.fixture
def supervisor(line: Lifeline, warm: Warm, tmp_path: Path) -> Iterator[Supervisor]:
    supervisor = Supervisor(line, tmp_path / "logs")
    supervisor.warm = warm
    yield supervisor
    supervisor.kill(supervisor.running)
    while supervisor.running:
        supervisor.reap()


@pytest.fixture(autouse=True)
def no_process_left(warm: Warm, tmp_path: Path) -> Iterator[None]:
    """Instead of the tests' own: the warm process stays for all tests here."""
    yield
    assert [child.pid for child in psutil.Process().children(recursive=True)] == [warm.pid]


def waiting(tmp_path: Path) -> Role:
    """A role that reads its config from a pipe which nobody writes."""
    pipe = tmp_path / "config.yaml"
    os.mkfifo(pipe)
    return Role(name="scorer-0", kind="scorer-0", arguments=("score", str(pipe)), environment={"OMP_NUM_THREADS": "3"})


def await_reaped(supervisor: Supervisor, signals: Signals) -> list[str]:
    deadline, ended = time.monotonic() + WAIT_S, []
    while supervisor.running:
        select.select([signals], [], [], deadline - time.monotonic())
        assert time.monotonic() < deadline
        signals.drain()
        ended += [str(each) for each in supervisor.reap()]
    return ended


def named(process: psutil.Process, *words: str) -> None:
    """Until the process has taken its name."""
    deadline = time.monotonic() + WAIT_S
    while process.cmdline()[-len(words) :] != list(words):
        assert time.monotonic() < deadline, process.cmdline()
        select.select([], [], [], 0.01)


def test_forked_role_is_our_child_with_a_group_a_name_and_a_log_of_its_own(supervisor, warm, tmp_path):
    role = waiting(tmp_path)
    with Signals() as signals:
        supervisor.start(role)
        (child,) = (each for each in psutil.Process().children() if each.pid != warm.pid)
        named(child, "-m", "r1async", *role.arguments)
        assert os.getpgid(child.pid) == child.pid
        assert child.cpu_times().user < 1.0  # torch and transformers take two and more
        supervisor.kill(["scorer-0"])
        assert await_reaped(supervisor, signals) == ["scorer-0 was killed by signal 9 (SIGKILL)"]


def test_exit_code_and_words_of_a_forked_role_are_told(supervisor, tmp_path):
    role = Role(name="buffer", kind="buffer", arguments=("buffer", f"{tmp_path}/nowhere.yaml"))
    with Signals() as signals:
        supervisor.start(role)
        assert await_reaped(supervisor, signals) == ["buffer ended with exit code 2"]
    assert supervisor.mistake(role) == f"config {tmp_path}/nowhere.yaml: no such file"


def test_what_an_ended_role_leaves_behind_is_reaped(supervisor, warm):
    """Its child has a group of its own, so it outlives the role; then it is ours."""
    leaves = 'setsid sh -c "sleep 0.2" & exit 3'
    with Signals() as signals:
        supervisor.start(Role(name="scorer-0", kind="scorer-0", program=("sh", "-c"), arguments=(leaves,)))
        assert await_reaped(supervisor, signals) == ["scorer-0 ended with exit code 3"]
        deadline = time.monotonic() + WAIT_S
        while len(psutil.Process().children()) > 1:
            assert time.monotonic() < deadline
            select.select([signals], [], [], 0.1)
            signals.drain()
            supervisor.reap()


def test_roles_start_by_themselves_when_the_warm_process_has_died(line, warm, tmp_path, caplog):
    supervisor = Supervisor(line, tmp_path / "logs")
    supervisor.warm = dead = Warm(line, tmp_path / "warm.log")
    os.kill(dead.pid, signal.SIGKILL)
    role = Role(name="buffer", kind="buffer", arguments=("buffer", f"{tmp_path}/nowhere.yaml"))
    with Signals() as signals:
        supervisor.start(role)
        assert supervisor.warm is None
        assert await_reaped(supervisor, signals) == ["buffer ended with exit code 2"]
    assert "roles are started by themselves from now on: the warm process" in caplog.text
    warm_module._adopt(True)  # closing the dead one ended that, and the module's own needs it


def test_a_role_that_is_forked_too_late_does_not_run_beside_its_substitute(line, warm, tmp_path, monkeypatch):
    role = waiting(tmp_path)
    with Warm(line, tmp_path / "warm.log") as slow:
        ready, _, _ = select.select([slow], [], [], READY_S)
        assert ready
        assert slow.is_ready()
        os.kill(slow.pid, signal.SIGSTOP)
        monkeypatch.setattr(warm_module, "FORK_S", 0.2)
        with pytest.raises(WarmError, match=r"did not answer within 0.2 s"):
            slow.fork(role.arguments, line.environment(), (1, 2))
        os.kill(slow.pid, signal.SIGCONT)
        ready, _, _ = select.select([slow], [], [], WAIT_S)
        assert ready  # it has told the number of what it forked
        late = [child for child in psutil.Process().children() if child.pid not in (slow.pid, warm.pid)]
        assert len(late) == 1
    assert not late[0].is_running()
    warm_module._adopt(True)  # closing it ended that, and the module's own needs it
