"""The tie of SGLang's workers to the server, before SGLang itself has a say: without SGLang."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from r1async.generator.sglang_launch import serve

WORKER = f"""
import runpy, signal
names = runpy.run_path({serve.__file__!r}, run_name="worker")
names["begin_worker"]()
print("begun", flush=True)
signal.pause()
"""
SERVER = f"""
import os, runpy, signal, subprocess, sys
names = runpy.run_path({serve.__file__!r}, run_name="server")
names["begin_server"](os.getppid())
worker = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True)
print(worker.pid, worker.stdout.readline(), flush=True)
signal.pause()
"""
DEADLINE_S = 30.0

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")


def test_a_worker_dies_with_a_killed_server():
    with subprocess.Popen([sys.executable, "-c", SERVER, WORKER], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            pid, begun = server.stdout.readline().split()
            assert begun == "begun"
            worker = psutil.Process(int(pid))
        finally:
            os.kill(server.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs([worker], timeout=DEADLINE_S)
    assert not alive


def test_a_worker_whose_server_is_gone_already_ends_itself():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(DEADLINE_S)
    while psutil.pid_exists(gone.pid):
        time.sleep(0.01)
    environment = {**os.environ, "R1ASYNC_SGLANG_SERVER": str(gone.pid)}
    ended = subprocess.run(
        [sys.executable, "-c", WORKER], env=environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert ended.returncode == 1
    assert f"the server {gone.pid} is gone" in ended.stderr
    assert ended.stdout == ""


def test_a_server_whose_generator_is_gone_already_ends_itself():
    ended = subprocess.run(
        [sys.executable, "-c", SERVER.replace("os.getppid()", "1"), WORKER],
        capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    assert "process 1, which wanted this server, is gone" in ended.stderr
