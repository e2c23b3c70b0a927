"""A generator to be killed: starts vLLM, prints the pids of its processes, and waits. `python -m tests.vllm_owner`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from r1async.config import load_config
from r1async.generator.engines import make_engine
from r1async.generator.vllm_engine import LocalVllm, VllmEngine


def main(model: str, folder: str) -> None:
    overrides = [
        f"model.path={model}",
        f"runs_dir={folder}",
        "data.task=chain-mod",
        "generator.engine=vllm",
        "generator.slots=2",
        "sampling.max_tokens=64",
    ]
    config = load_config(None, overrides)
    engine = make_engine(config, "vllm", "generator-0", Path(folder), lambda: None)
    assert isinstance(engine, VllmEngine)
    assert isinstance(engine._vllm, LocalVllm)
    print(*engine._vllm._processes, flush=True)
    signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
