"""A learner rank as a real process. Forked from a server that has imported torch once: that costs ten seconds."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.process import BaseProcess

from r1async.config import Config

EXIT_S = 60.0


@contextmanager
def learner_process(
    config: Config, rank: int = 0, environment: Mapping[str, str] | None = None
) -> Iterator[BaseProcess]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "r1async.learner.learner"])
    process = context.Process(target=_run, args=(config, rank, dict(environment or {})))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def exit_code(process: BaseProcess) -> int | None:
    """None if it has not ended in time."""
    process.join(EXIT_S)
    return process.exitcode


def _run(config: Config, rank: int, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    from r1async.learner.learner import main

    main(config, rank)
