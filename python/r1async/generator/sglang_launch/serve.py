"""Starts an SGLang server that ends when whoever started it ends: `python serve.py PARENT ARGUMENTS...`.

Runs in SGLang's environment, where r1async is not installed. SGLang starts its workers with `spawn`, which imports this
file again in each of them, so what they need too stands at the top level.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_SERVER = "R1ASYNC_SGLANG_SERVER"
"""Pid of the server, for its workers."""


def die_with_parent() -> None:
    """Has the kernel kill this process when the thread that started it ends."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")


def begin_server(parent: int) -> None:
    """The server's own process: it ends with `parent`."""
    die_with_parent()
    if os.getppid() != parent:
        sys.exit(f"process {parent}, which wanted this server, is gone")
    os.environ[_SERVER] = str(os.getpid())


def begin_worker() -> None:
    """SGLang has its workers die with the server too, but only after their imports: it may be gone by then."""
    die_with_parent()
    server = int(os.environ[_SERVER])
    try:
        os.kill(server, 0)
    except ProcessLookupError:
        sys.exit(f"the server {server} is gone")


def declare_torchvision_operators() -> object:
    """torchvision describes operators that its library brings, and without CUDA's libraries that does not load.

    Returns:
        What has to be kept for as long as the operators are to be there.
    """
    import torch

    found = importlib.util.find_spec("torchvision")
    if found is not None and found.origin is not None:
        try:
            torch.ops.load_library(Path(found.origin).parent / "_C.so")
        except OSError:
            pass  # what the rest of this function is for
        else:
            return None
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


if __name__ == "__mp_main__":
    begin_worker()

if os.environ.get("SGLANG_USE_CPU_ENGINE") == "1":
    _operators = declare_torchvision_operators()

if __name__ == "__main__":
    begin_server(int(sys.argv[1]))
    # By name: this environment has SGLang, the one that r1async is developed in has not.
    arguments = importlib.import_module("sglang.srt.server_args").prepare_server_args(sys.argv[2:])
    importlib.import_module("sglang.srt.entrypoints.http_server").launch_server(arguments)
