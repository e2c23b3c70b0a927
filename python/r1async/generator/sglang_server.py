"""An SGLang server of our own: its command line, its start, its end. Its process tree ends when this process does."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import torch

from r1async.generator.engine import EngineError, EngineSpec
from r1async.models.loading import context_of, load_config

log = logging.getLogger(__name__)

_LAUNCH = Path(__file__).with_name("sglang_launch")
_MARGIN = 16
"""Tokens of context more than the longest request: SGLang keeps a few for itself and would cut completions short."""
_END_S = 20.0
"""Seconds that a server with a GPU may take to give its memory back; it looks for the wish every 5 s."""
_TRACKER_S = 5.0
"""Seconds that the server's helpers may take to clean up after it."""
_TAIL_BYTES = 3000
_SOCKET_FOLDER = 64
"""Bytes of a folder's path at most for SGLang's sockets in it: 107 of a Unix socket's path, less its own name."""


def has_gpu() -> bool:
    """Whether this machine has one that SGLang would use; CUDA_VISIBLE_DEVICES="" hides them."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return False
    return torch.cuda.is_available() or any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists()


def command_line(spec: EngineSpec, port: int, args: Sequence[str], *, gpu: bool) -> list[str]:
    """Words for SGLang's own parser, which takes the last where one is given twice: ``args`` win."""
    context = spec.max_len + _MARGIN
    words = [
        *("--model-path", str(spec.model_path)),
        *("--dtype", spec.dtype),
        *("--host", "127.0.0.1"),
        *("--port", str(port)),
        *("--context-length", str(context)),
        *("--max-running-requests", str(spec.slots)),
        # Two generators of one run must not sample the same noise.
        *("--random-seed", str((spec.seed + zlib.crc32(spec.name.encode())) & 0x7FFF_FFFF)),
        # Token ids in and out: no detokenizer between the scheduler and the front end.
        "--skip-tokenizer-init",
        "--incremental-streaming-output",
    ]
    if spec.kv_policy == "keep":
        # With overlap a step is in flight when the scheduler pauses, and its tokens are labelled with the new weights.
        words.append("--disable-overlap-schedule")
    if not gpu:
        words += [
            *("--device", "cpu"),
            *("--attention-backend", "torch_native"),
            *("--sampling-backend", "pytorch"),
            "--disable-cuda-graph",
            # Otherwise the scheduler takes a whole core while it has nothing to do.
            "--sleep-on-idle",
            # Every slot at its longest; the cache of prefixes lives in what they leave free.
            *("--max-total-tokens", str(max(4096, spec.slots * context))),
            *("--mem-fraction-static", "0.3"),
        ]
    return [*words, *args]


def environment(spec: EngineSpec, *, gpu: bool) -> dict[str, str]:
    changed = {**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    # It would report logprobs of another distribution than the one sampled from.
    changed.pop("SGLANG_RETURN_ORIGINAL_LOGPROB", None)
    # Its packages are its own; ours may be of other versions.
    changed.pop("PYTHONPATH", None)
    longest = context_of(load_config(spec.model_path))
    if longest is not None and spec.max_len + _MARGIN > longest:
        changed["SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN"] = "1"
    if not gpu:
        changed["SGLANG_USE_CPU_ENGINE"] = "1"
        changed["OMP_NUM_THREADS"] = str(spec.threads)
        changed["PYTHONPATH"] = str(_LAUNCH / "cpu")
        # Its sockets go with the folder; unless their names get longer than a socket's may be.
        if len(str(spec.scratch)) <= _SOCKET_FOLDER:
            changed["TMPDIR"] = str(spec.scratch)
    return changed


class SglangServer:
    """The process. Start it from a thread that stays: the kernel ends it with the thread that forked it.

    Args:
        spec: of the engine.
        python: interpreter of SGLang's environment.
        args: more words of its command line.
        ended: called in a thread of ours when the process ends without `close`, with what to say about it.
    """

    def __init__(self, spec: EngineSpec, python: str, args: Sequence[str], ended: Callable[[str], None]) -> None:
        gpu = has_gpu() and ("--device", "cpu") not in pairwise(args)
        self._log, self._ended, self._closing, self._gpu = spec.log, ended, False, gpu
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        words = [python, str(_LAUNCH / "serve.py"), str(os.getpid()), *command_line(spec, port, args, gpu=gpu)]
        with spec.log.open("ab") as output:
            output.write(f"--- {' '.join(words)}\n".encode())
            output.flush()
            self._offset = output.tell()
            try:
                self._process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=environment(spec, gpu=gpu),
                    process_group=0,
                )
            except OSError as error:
                raise EngineError(f"SGLang cannot be started with {python}: {error}") from error
        self._watcher = threading.Thread(target=self._watch, name="sglang-server", daemon=True)
        self._watcher.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def wait_end(self, timeout_s: float) -> bool:
        """Whether the process has ended, or does within the time."""
        self._watcher.join(timeout_s)
        return not self._watcher.is_alive()

    def account(self) -> str:
        """How the process ended, if it did, and the last it printed."""
        code = self._process.poll()
        if code is None:
            how = f"process {self.pid} is alive"
        elif code < 0:
            how = f"process {self.pid} was killed by signal {-code} ({signal.Signals(-code).name})"
        else:
            how = f"process {self.pid} ended with exit code {code}"
        return f"{how}; the end of {self._log}:\n{self.tail()}"

    def tail(self) -> str:
        """The end of what this life of the server has printed."""
        with self._log.open("rb") as output:
            size = output.seek(0, os.SEEK_END)
            output.seek(max(self._offset, size - _TAIL_BYTES))
            return output.read().decode(errors="replace").strip()

    def close(self) -> None:
        """Ends the server and all it started; on a CPU there is nothing that it would have to give back first."""
        self._closing = True
        if self._gpu:
            self._process.send_signal(signal.SIGTERM)
            if not self.wait_end(_END_S):
                log.warning("SGLang did not end within %g s and is killed: %s", _END_S, self.account())
        self._process.kill()
        self._watcher.join()

    def _watch(self) -> None:
        self._process.wait()
        self._end_group()
        if not self._closing:
            self._ended(self.account())

    def _end_group(self) -> None:
        """The workers end with the server. Python's resource tracker then removes what they left, if it is let."""
        deadline = time.monotonic() + _TRACKER_S
        while time.monotonic() < deadline:
            try:
                os.killpg(self.pid, 0)
            except ProcessLookupError:
                return  # all of them are gone
            time.sleep(0.02)
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return  # the last one went meanwhile


def _free_port() -> int:
    """Free now; the server's own error names it should somebody else take it first."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
