"""Rollouts of several turns: the policy writes, an environment answers, the policy goes on, under one lease.

When the engine ends a turn, the rollout is not finished: the turn goes to its environment (in a thread: a command may
take a minute), and what that says becomes tokens of the rollout that nobody sampled. They carry the behavior logprob
`OBSERVED`, which no sampled token can have, so the learner leaves them out of the loss. The engine then takes the
rollout again with all its tokens, as it takes one that another generator began.

Takes: requests, the engine's reports, answers of environments. Gives: requests for the engine, reports for the buffer.
Waits for nothing; the generator's inbox gets an `Observed` for each answer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from r1async.generator.engine import Progress, Request
from r1async.types import OBSERVED, FinishReason, PolicyVersion, Step, VersionRun

log = logging.getLogger(__name__)


class Environment(Protocol):
    """The other side of one rollout. Used by one thread at a time."""

    def step(self, text: str) -> Step:
        """Answer a turn.

        Args:
            text: what the policy wrote since the last observation, without its end-of-turn token.

        Raises:
            RuntimeError: the environment failed, not the policy.
        """
        ...

    def close(self) -> None:
        """End it; more than once is fine."""
        ...


class Words(Protocol):
    """Tokens to text and back."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of a turn, without the token that ended it."""
        ...

    def ends_turn(self, token_id: int) -> bool:
        """Whether the engine stops at this token."""
        ...

    def encode(self, observation: str) -> Sequence[int]:
        """The tokens that stand between two turns: the observation, and what the model's chat format puts around it."""
        ...


@dataclass(frozen=True, slots=True)
class Observed:
    """An environment has answered; put into the generator's inbox."""

    id: int
    step: Step | None
    """None: it failed."""
    resumed_at: int | None = None
    """Of a rollout that another generator began and that is in the middle of a turn: where that one begins."""


@dataclass(slots=True)
class _Talk:
    request: Request
    environment: Environment | None
    """None: not opened yet."""
    token_ids: list[int]
    """Of the completion, observations included."""
    begun: int
    """Where the current turn begins in them."""


class Turns:
    """All rollouts of one generator that have an environment.

    Args:
        open_environment: for a prompt, by its tokens; may take seconds, raises RuntimeError where there is none.
        words: the model's.
        put: into the generator's inbox, from any thread.
        threads: environments that work at a time.
    """

    def __init__(
        self,
        open_environment: Callable[[NDArray[np.int32]], Environment],
        words: Words,
        put: Callable[[object], None],
        threads: int,
    ) -> None:
        self._open, self._words, self._put = open_environment, words, put
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="environment")
        self._talks: dict[int, _Talk] = {}
        self._waiting: set[int] = set()
        self._ready: list[Request] = []

    @property
    def held(self) -> int:
        """Rollouts that the engine does not have, and will have again."""
        return len(self._waiting) + len(self._ready)

    def begin(self, requests: Sequence[Request]) -> list[Request]:
        """Takes leases; gives those that the engine may start with. One with tokens has to be replayed first."""
        fresh = []
        for request in requests:
            self._talks[request.id] = _Talk(request, None, [int(each) for each in request.resume_ids], 0)
            if len(request.resume_ids):
                self._ask(request.id, self._replay)
            else:
                fresh.append(request)
        return fresh

    def take(self, reports: Sequence[Progress]) -> list[Progress]:
        """The engine's reports as the buffer is to have them: the end of a turn is not the end of a rollout."""
        passed = []
        for report in reports:
            talk = self._talks.get(report.id)
            if talk is None:
                passed.append(report)
                continue
            talk.token_ids += [int(each) for each in report.token_ids]
            if report.finish == "stop":
                report = replace(report, finish=None)
                self._ask(report.id, self._answer)
            elif report.finish == "length":
                self.drop([report.id])
            passed.append(report)
        return passed

    def answered(self, observed: Observed, version: PolicyVersion) -> Progress | None:
        """An answer as tokens of its rollout; the rollout is ready for the engine again, or finished.

        Args:
            version: that the tokens are booked under; nobody sampled them, so any will do that is not too old.

        Returns:
            What to report; None for a rollout that is gone, or was only replayed.
        """
        talk = self._talks.get(observed.id)
        if talk is None:
            return None
        assert observed.step is not None, "failures are dropped by the generator"
        self._waiting.discard(observed.id)
        if observed.resumed_at is not None:
            self._ready.append(talk.request)
            talk.begun = observed.resumed_at
            return None
        left = talk.request.sampling.max_tokens - len(talk.token_ids)
        token_ids = list(self._words.encode(observed.step.observation))[:left]
        talk.token_ids += token_ids
        talk.begun = len(talk.token_ids)
        finish: FinishReason | None = "stop" if observed.step.done else None
        if len(talk.token_ids) >= talk.request.sampling.max_tokens:
            finish = "length"
        if finish is None:
            self._ready.append(replace(talk.request, resume_ids=np.asarray(talk.token_ids, np.int32)))
        else:
            self.drop([observed.id])
        return _observation(observed.id, token_ids, version, finish)

    def ready(self, free: int) -> list[Request]:
        """At most `free` rollouts for the engine to go on with."""
        given, self._ready = self._ready[:free], self._ready[free:]
        return given

    def drop(self, ids: Iterable[int]) -> None:
        """Rollouts that are over, or ours no longer."""
        gone = set(ids)
        for id_ in gone:
            talk = self._talks.pop(id_, None)
            self._waiting.discard(id_)
            if talk is not None and talk.environment is not None:
                # In the thread that works on it, if one does: after that.
                self._threads.submit(talk.environment.close)
        self._ready = [request for request in self._ready if request.id not in gone]

    def close(self) -> None:
        """End all environments."""
        self.drop(list(self._talks))
        self._threads.shutdown()

    def _ask(self, id_: int, work: Callable[[_Talk], Observed]) -> None:
        self._waiting.add(id_)
        self._threads.submit(self._work, self._talks[id_], work)

    def _work(self, talk: _Talk, work: Callable[[_Talk], Observed]) -> None:
        if talk.request.id not in self._talks:
            return  # dropped while it waited for a thread; what was open is closed by `drop`
        try:
            if talk.environment is None:
                talk.environment = self._open(talk.request.prompt_ids)
            observed = work(talk)
        except Exception as error:  # noqa: BLE001 - the last frame of a thread's work: the rollout is given back for it
            log.error("the environment of rollout %d failed: %s: %s", talk.request.rollout, type(error).__name__, error)
            observed = Observed(talk.request.id, None)
        if talk.request.id not in self._talks and talk.environment is not None:
            talk.environment.close()  # dropped meanwhile
        self._put(observed)

    def _answer(self, talk: _Talk) -> Observed:
        assert talk.environment is not None
        text = self._words.decode(talk.token_ids[talk.begun :])
        return Observed(talk.request.id, talk.environment.step(text))

    def _replay(self, talk: _Talk) -> Observed:
        """Show a fresh environment the turns that another generator's had, up to the one that is unfinished.

        Raises:
            RuntimeError: it answers otherwise than the first one did, so the rollout cannot go on in it.
        """
        assert talk.environment is not None
        ids, at = talk.token_ids, 0
        while (end := next((i for i in range(at, len(ids)) if self._words.ends_turn(ids[i])), None)) is not None:
            step = talk.environment.step(self._words.decode(ids[at : end + 1]))
            if end + 1 == len(ids):
                return Observed(talk.request.id, step)  # the first one died before it answered
            said = list(self._words.encode(step.observation))
            if step.done or ids[end + 1 : end + 1 + len(said)] != said:
                raise RuntimeError("the environment does not answer as it did before")
            at = end + 1 + len(said)
        return Observed(talk.request.id, Step("", False), resumed_at=at)


def _observation(id_: int, token_ids: Sequence[int], version: PolicyVersion, finish: FinishReason | None) -> Progress:
    return Progress(
        id=id_,
        token_ids=np.asarray(token_ids, np.int32),
        logprobs=np.full(len(token_ids), OBSERVED, np.float32),
        runs=(VersionRun(version=version, count=len(token_ids)),) if token_ids else (),
        finish=finish,
    )
