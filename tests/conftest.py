"""What every test gets: one thread, a short temporary folder for sockets, and nothing left running."""

from __future__ import annotations

import os

# Before torch or numpy read it: tests run many processes, and small matrices gain nothing from a second thread.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

END_S = 3.0
"""Seconds a process that a test has ended may take to go away."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--engine", default="torch", help="the engine that tests/engines examines: torch, vllm, sglang")
    parser.addoption("--medium", default="zmq", help="weights.medium of that engine; of vLLM nccl, ipc, sparse_nccl")
    parser.addoption("--engine-set", action="append", default=[], help="settings under generator., as vllm.url=...")


@pytest.fixture(autouse=True)
def no_process_left(tmp_path: Path) -> Iterator[None]:
    """Fails a test that leaves a process behind: a child of ours, or one that names the test's folder."""
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    yield
    _fail_if_left([process for process in processes_of(tmp_path) if process.pid not in before])


def _fail_if_left(left: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(left, timeout=END_S)
    said = [_describe(process) for process in alive]
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=END_S)
    if said:
        pytest.fail(f"left {len(said)} processes behind: {'; '.join(said)}")


def processes_of(folder: Path) -> list[psutil.Process]:
    """Our children and theirs, and every process with the folder on its command line; helpers of Python left out."""
    found = {process.pid: process for process in psutil.Process().children(recursive=True)}
    for process in psutil.process_iter(["cmdline"]):
        if process.pid != os.getpid() and any(str(folder) in part for part in process.info["cmdline"] or []):
            found[process.pid] = process
    return [process for process in found.values() if not is_helper(process)]


def is_helper(process: psutil.Process) -> bool:
    """multiprocessing's own processes live as long as the test session, by design."""
    try:
        command = " ".join(process.cmdline())
        return "multiprocessing.resource_tracker" in command or "multiprocessing.forkserver" in command
    except psutil.Error:
        return True  # gone while we looked


def _describe(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {' '.join(process.cmdline())}"
    except psutil.Error:
        return f"{process.pid} (ended while we looked)"


@pytest.fixture
def run_root() -> Iterator[Path]:
    """A folder for runs whose path is short: a Unix socket's has 107 bytes at most."""
    folder = Path(tempfile.mkdtemp(prefix="r1a-"))
    yield folder
    _fail_if_left(processes_of(folder))
    shutil.rmtree(folder)


@pytest.fixture
def short_ipc(run_root: Path) -> str:
    """An ipc endpoint of the test's own."""
    return f"ipc://{run_root}/socket"
