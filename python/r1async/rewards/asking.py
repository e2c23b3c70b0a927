"""The worker of a pool that asks endpoints: it waits for many answers at a time and reports each as it comes.

Takes: batches of rollouts from a pipe. Gives: results. Waits for: the pipe, answers; each answer has a deadline of its
own in its endpoint. Woken by: either.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import IO, Protocol, Self

from r1async.config import RewardConfig
from r1async.reward_pools import Pool
from r1async.rewards.compose import add_up
from r1async.rewards.judge import Judge
from r1async.rewards.remote_model import RemoteModel
from r1async.rewards.worker import WireJob, asked_of, read_batch, result_of, write_frame
from r1async.tasks.meta import Question
from r1async.types import Completion, Verdict

log = logging.getLogger(__name__)


class Asks(Protocol):
    """A part of a reward that asks somebody else."""

    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    async def grade(self, question: Question, completion: Completion) -> Verdict: ...


PARTS: Mapping[str, Callable[[RewardConfig], Asks]] = {
    "judge": Judge,
    "helpfulness": lambda reward: RemoteModel("helpfulness", reward),
    "harmlessness": lambda reward: RemoteModel("harmlessness", reward),
}
"""Parts by name. A new one is one entry here, and its pool in `config_rewards.POOL_OF`."""


class AskingWorker:
    """Asks for many rollouts at a time.

    Raises:
        ConfigError: a part that cannot be set up.
    """

    def __init__(self, outgoing: IO[bytes], reward: RewardConfig, pool: Pool) -> None:
        self._outgoing, self._weights = outgoing, pool.weights
        names = dict.fromkeys(name for parts in pool.weights.values() for name in parts)
        self._parts = {name: PARTS[name](reward) for name in names}

    def serve(self, incoming: IO[bytes]) -> None:
        """Until the pipe ends: the scorer is gone, or has no more for us."""
        try:
            asyncio.run(self._serve(incoming))
        except* EOFError:
            pass

    async def _serve(self, incoming: IO[bytes]) -> None:
        async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
            for part in self._parts.values():
                await stack.enter_async_context(part)
            while True:
                for job in await asyncio.to_thread(read_batch, incoming):
                    tasks.create_task(self._report(job))

    async def _report(self, job: WireJob) -> None:
        start = time.monotonic()
        # An exception here would end the task group, and with it the requests of all other rollouts, for good.
        try:
            asked = asked_of(job)
            verdict = asked if isinstance(asked, Verdict) else await self._grade(*asked)
        except Exception:  # whatever a part raises, one rollout's failure is not the others'
            log.exception("a rollout abstains")
            verdict = Verdict.abstain("error")
        write_frame(self._outgoing, [result_of(job[0], verdict, time.monotonic() - start)])

    async def _grade(self, question: Question, completion: Completion, domain: str) -> Verdict:
        weights = self._weights[domain]
        verdicts = await asyncio.gather(*(self._parts[name].grade(question, completion) for name in weights))
        parts = zip(weights.items(), verdicts, strict=True)
        return add_up((name, weight, verdict) for (name, weight), verdict in parts)
