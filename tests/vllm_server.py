"""Runs a command with the address of a vLLM server: `python -m tests.vllm_server pytest tests/engines --engine vllm`.

The server is started as docs/engines.md says and ends with the command, which gets `--engine-set vllm.url=...`.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from r1async.generator.vllm_names import BACKEND, EXTENSION

from tests.tiny_models import save_tiny

START_S = 300.0
END_S = 30.0
EXTRAS = (
    "--enable-scale-out",
    *("--logprobs-mode", "processed_logprobs"),
    *("--worker-extension-cls", EXTENSION),
    *("--weight-transfer-config", f'{{"backend": "{BACKEND}"}}'),
)
CPU = {
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


@contextmanager
def server(model: Path, log: Path, extras: Sequence[str], environment: Mapping[str, str]) -> Iterator[str]:
    """Its URL, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shape = ("--dtype", "float32", "--max-model-len", "490", "--max-num-seqs", "18")
    on_cpu = ("--enforce-eager", "--no-enable-chunked-prefill")
    memory = ("--kv-cache-memory-bytes", str(64 * 2**20))
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(model),
        *shape,
        *on_cpu,
        *memory,
        *extras,
    ]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, **CPU, **environment})
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(process, url, log)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(END_S)


def _wait(process: subprocess.Popen, url: str, log: Path) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}: {log.read_text()[-2000:]}")
        try:
            with urllib.request.urlopen(f"{url}/version", timeout=5):
                return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.5)
    raise RuntimeError(f"the server did not answer within {START_S:g} s: {log.read_text()[-2000:]}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        model = save_tiny(Path(folder, "model"), "qwen2", tied=True)
        with server(model, Path(folder, "log"), EXTRAS, {"VLLM_SERVER_DEV_MODE": "1"}) as url:
            code = subprocess.run([*sys.argv[1:], "--engine-set", f"vllm.url={url}"]).returncode
        if code:
            print(Path(folder, "log").read_text()[-4000:])
    sys.exit(code)
