"""Which processes a run consists of."""

from __future__ import annotations

import socket
from pathlib import Path

from r1async.config import Config
from r1async.engines import engine_of, generator_python
from r1async.launch.supervise import Role

EVALUATOR_RESTARTS = 3

FEW_THREADS = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
"""A role computes with the threads that its setting says; the others' would compete for the same cores."""


def buffer_role(config: Config, config_path: Path) -> Role:
    """Restarted where a journal holds all that it held."""
    return Role(
        name="buffer",
        kind="buffer",
        arguments=("buffer", str(config_path)),
        environment=FEW_THREADS,
        restarts=0 if config.journal.durability == "memory" else config.buffer.restarts,
    )


def generator_roles(config: Config, config_path: Path) -> list[Role]:
    return [
        Role(
            name=f"generator-{index}",
            kind=f"generator-{index}",
            arguments=("generate", str(config_path), "--index", str(index)),
            program=(generator_python(config, index), "-m", "r1async"),
            environment=_threads(config.generator.threads),
            restarts=config.generator.restarts,
            warm=engine_of(config, index) == "torch",  # the others' packages start processes of their own
        )
        for index in range(config.generator.count)
    ]


def scorer_roles(config: Config, config_path: Path) -> list[Role]:
    return [
        Role(
            name=f"scorer-{index}",
            kind=f"scorer-{index}",
            arguments=("score", str(config_path), "--index", str(index)),
            environment=FEW_THREADS,
            restarts=config.scorer.restarts,
        )
        for index in range(config.scorer.count)
    ]


def learner_roles(config: Config, config_path: Path) -> list[Role]:
    """The ranks, with a fresh port for torch.distributed: the former life's may linger in TIME_WAIT."""
    port = free_port() if config.learner.ranks > 1 else 0
    return [
        Role(
            name=f"learner-{rank}" if rank else "learner",
            kind="learner",
            arguments=("learn", str(config_path), "--rank", str(rank)),
            environment=rank_environment(rank, config.learner.ranks, port, threads=config.learner.threads),
            restarts=config.learner.restarts,
        )
        for rank in range(config.learner.ranks)
    ]


def evaluator_role(config_path: Path) -> Role:
    return Role(
        name="evaluator",
        kind="evaluator",
        arguments=("eval", str(config_path)),
        environment=FEW_THREADS,
        restarts=EVALUATOR_RESTARTS,
    )


def _threads(count: int) -> dict[str, str]:
    return {**FEW_THREADS, "OMP_NUM_THREADS": str(count)}


def sampler_role(config_path: Path) -> Role:
    return Role(
        name="sampler",
        kind="sampler",
        arguments=("sample", str(config_path)),
        environment=FEW_THREADS,
        restarts=EVALUATOR_RESTARTS,
    )


def rank_environment(rank: int, world: int, port: int, *, threads: int) -> dict[str, str]:
    """What torch.distributed reads in a rank of this machine."""
    return {
        **_threads(threads),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
    }


def free_port() -> int:
    """A TCP port of loopback that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
