"""The tie of vLLM's processes to the generator, with processes of our own in their place."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from r1async.generator import vllm_owner

DEATH_S = 30.0
OWNER = """
import multiprocessing, os, sys
from r1async.generator import vllm_owner
from tests.unit.test_vllm_owner import engine

if __name__ == "__main__":
    os.environ.update(vllm_owner.environment())
    multiprocessing.get_context("spawn").Process(target=engine).start()
"""


def engine() -> None:
    multiprocessing.get_context("spawn").Process(target=worker).start()


def worker() -> None:
    assert vllm_owner.end_with_owner()
    print(os.getppid(), os.getpid(), flush=True)
    signal.pause()


@contextmanager
def owner() -> Iterator[tuple[subprocess.Popen, list[psutil.Process]]]:
    """A process that started an engine's, that started a worker's."""
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        others: list[psutil.Process] = []
        try:
            readable, _, _ = select.select([process.stdout], [], [], DEATH_S)
            assert readable, "the worker did not start"
            others = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
            assert len(others) == 2
            yield process, others
        finally:
            for other in [process, *others]:
                if other.is_running() if isinstance(other, psutil.Process) else other.poll() is None:
                    other.kill()


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal and /proc are Linux's")
SHIMMED = """
import multiprocessing, pathlib, signal, sys
from r1async.generator import vllm_owner
from tests.unit.test_vllm_owner import says_its_pid

if __name__ == "__main__":
    with vllm_owner.children_die_with_thread(pathlib.Path(sys.argv[1])):
        spawn = multiprocessing.get_context("spawn")
        runs = spawn.Event()
        spawn.Process(target=says_its_pid, args=(runs,)).start()
        assert runs.wait(30)
    signal.pause()
"""


def says_its_pid(runs) -> None:
    print(os.getpid(), flush=True)
    runs.set()
    signal.pause()


@LINUX
def test_a_child_that_watches_nobody_dies_with_its_parent(tmp_path: Path):
    with subprocess.Popen([sys.executable, "-c", SHIMMED, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            readable, _, _ = select.select([process.stdout], [], [], DEATH_S)
            assert readable, "the child did not start"
            child = psutil.Process(int(process.stdout.readline()))
            assert child.ppid() == process.pid
        finally:
            process.kill()
    _, alive = psutil.wait_procs([child], timeout=DEATH_S)
    for left in alive:
        left.kill()
    assert not alive


@LINUX
def test_a_child_whose_parent_is_gone_before_it_could_ask_ends_itself():
    shim = subprocess.run([sys.executable, vllm_owner.__file__, "1", "-c", "print('alive')"], capture_output=True)
    assert shim.returncode == -signal.SIGKILL
    assert shim.stdout == b""


@LINUX
def test_engine_and_worker_die_with_a_killed_owner():
    with owner() as (process, others):
        os.kill(process.pid, signal.SIGKILL)
        process.wait(DEATH_S)
        _, alive = psutil.wait_procs(others, timeout=DEATH_S)
        assert not alive


def test_a_process_with_the_owners_number_is_not_the_owner(monkeypatch):
    """As when the owner died while the worker was starting and another process got its pid."""
    ended: list[int] = []
    monkeypatch.setattr(vllm_owner, "end", ended.append)
    vllm_owner._watch(os.getpid(), "1", [11, None, 12])
    assert ended == [11, 12]


def test_without_an_owner_nothing_is_tied(monkeypatch):
    monkeypatch.delenv(vllm_owner.ENVIRONMENT, raising=False)
    assert not vllm_owner.end_with_owner()


def test_start_time_is_of_a_living_process():
    assert vllm_owner.start_time(os.getpid()) == vllm_owner.environment()[vllm_owner.ENVIRONMENT].split(":")[1]
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(DEATH_S)
    assert vllm_owner.start_time(gone.pid) is None
