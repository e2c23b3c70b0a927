"""What a generator holds: its leases, and the tokens that the buffer has not acknowledged. No sockets, no engine."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from r1async.generator.engine import Progress, Request
from r1async.types import PolicyVersion, Sampling
from r1async.wire import Message, WireError


class Piece(NamedTuple):
    """Consecutive tokens of one rollout, as they go to the buffer."""

    lease: int
    offset: int
    """Completion tokens before them, resumed ones included."""
    progress: Progress

    @property
    def end(self) -> int:
        return self.offset + len(self.progress.token_ids)


@dataclass(slots=True)
class _Rollout:
    rollout: int
    length: int
    """Completion tokens there are, resumed ones included."""
    pinned: bool
    """It belongs to an evaluation."""
    pieces: deque[Piece] = field(default_factory=deque)
    """Not acknowledged yet."""
    finished: bool = False
    claimed: bool = False
    """Announced after a reconnect: nothing is sent until the buffer says how much it has."""


class Held:
    """Leases by number. One is forgotten when the buffer has all of a finished rollout, or says that it is lost."""

    def __init__(self) -> None:
        self._rollouts: dict[int, _Rollout] = {}

    def __len__(self) -> int:
        return len(self._rollouts)

    def __contains__(self, lease: int) -> bool:
        return lease in self._rollouts

    def add(self, request: Request) -> None:
        """A lease came; its request's id is the lease."""
        self._rollouts[request.id] = _Rollout(request.rollout, len(request.resume_ids), request.pin is not None)

    def report(self, progress: Progress) -> Piece | None:
        """Keeps new tokens; what to send now, if anything: None if the lease is lost or a claim is unanswered."""
        held = self._rollouts.get(progress.id)
        if held is None:
            return None
        piece = Piece(progress.id, held.length, progress)
        held.pieces.append(piece)
        held.length = piece.end
        held.finished = progress.finish is not None
        return None if held.claimed else piece

    def acknowledge(self, items: Iterable[Sequence[int]]) -> list[Piece]:
        """The buffer has so many tokens of each (lease, length).

        Returns:
            What it must be sent again: what is past that, of leases whose claim is hereby granted.
        """
        again = []
        for lease, length in items:
            held = self._rollouts.get(lease)
            if held is None:
                continue
            while held.pieces and held.pieces[0].end <= length:
                held.pieces.popleft()
            if held.finished and not held.pieces:
                del self._rollouts[lease]
            elif held.claimed:
                held.claimed = False
                again += held.pieces
        return again

    def forget(self, leases: Iterable[int]) -> None:
        """Leases that are lost, or given back."""
        for lease in leases:
            self._rollouts.pop(lease, None)

    def claim(self) -> list[list[int]]:
        """All leases as `announce` items, after a reconnect."""
        for held in self._rollouts.values():
            held.claimed = True
        return [[lease, held.rollout, held.length] for lease, held in self._rollouts.items()]

    def unfinished(self, *, pinned: bool | None = None) -> list[int]:
        """Leases still being sampled; None: of training and evaluation alike."""
        return [
            lease
            for lease, held in self._rollouts.items()
            if not held.finished and (pinned is None or held.pinned == pinned)
        ]


def chunks_message(pieces: Sequence[Piece]) -> tuple[dict[str, object], dict[str, list[NDArray]]]:
    """Header and columns of one `chunks` message; a column is the pieces of it."""
    items = [
        [
            piece.lease,
            piece.offset,
            len(piece.progress.token_ids),
            piece.progress.finish,
            [[run.version.epoch, run.version.number, run.count] for run in piece.progress.runs],
        ]
        for piece in pieces
    ]
    columns: dict[str, list[NDArray]] = {
        "tokens": [piece.progress.token_ids for piece in pieces],
        "logprobs": [piece.progress.logprobs for piece in pieces],
    }
    return {"t": "chunks", "items": items}, columns


def read_leases(message: Message) -> list[Request]:
    """The requests of a `leases` message, in its order; their id is the lease.

    Raises:
        WireError: the message contradicts itself.
    """
    header, columns = message.header, message.columns
    try:
        samplings = [_sampling(item) for item in header["samplings"]]
        prompts = _split(columns["prompt_tokens"], columns["prompt_lens"])
        resume_ends = np.cumsum([0, *(item[5] for item in header["items"])])
        if resume_ends[-1] != len(columns["resume_tokens"]):
            raise WireError(f"leases name {resume_ends[-1]} resume tokens, there are {len(columns['resume_tokens'])}")
        return [
            Request(
                id=lease,
                rollout=rollout,
                prompt_ids=prompts[prompt],
                sampling=samplings[sampling],
                resume_ids=columns["resume_tokens"][resume_ends[i] : resume_ends[i + 1]],
                pin=None if pin is None else PolicyVersion(*pin),
            )
            for i, (lease, rollout, _group, prompt, sampling, _resumed, pin) in enumerate(header["items"])
        ]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise WireError(f"not a leases message: {type(error).__name__}: {error}") from error


def _split(tokens: NDArray[np.int32], lengths: NDArray[np.int32]) -> list[NDArray[np.int32]]:
    ends = np.cumsum(lengths)
    if int(ends[-1]) != len(tokens):
        raise WireError(f"prompts of {int(ends[-1])} tokens in a column of {len(tokens)}")
    return np.split(tokens, ends[:-1])


def _sampling(item: Mapping) -> Sampling:
    return Sampling(
        temperature=float(item["temperature"]),
        top_p=float(item["top_p"]),
        top_k=int(item["top_k"]),
        max_tokens=int(item["max_tokens"]),
        greedy=bool(item["greedy"]),
    )
