"""The rollout buffer (Rust, `rust/r1async-py`): the ledger, its messages and packed batches. No sockets, no clock."""

from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer as BytesLike

__all__ = ["Buffer", "Settings", "advantages", "group_statistics", "simulate"]

@final
class Settings:
    """Every number the buffer decides by; times in seconds. Names and meanings are those of `r1async.config`.

    Raises:
        ValueError: a number that is out of range or contradicts another; the text names the setting.
    """

    def __new__(
        cls,
        *,
        run: str,
        seed: int,
        steps: int,
        group_size: int,
        min_group_size: int,
        groups_per_step: int,
        max_staleness: int,
        pacing: int,
        publish_every: int,
        over_age: Literal["mask", "drop", "train"],
        retries: int,
        waste_budget: float,
        hold_deadline_s: float,
        baseline: Literal["std", "mean", "leave_one_out", "none"],
        std: Literal["population", "sample"],
        eps: float,
        pass_mark: float,
        zero_variance: Literal["train", "drop"],
        oversample: float,
        max_refills: int,
        drop_truncated: bool,
        rollout_deadline_s: float,
        lease_s: float,
        group_deadline_s: float,
        scoring_deadline_s: float,
        score_retries: int,
        max_attempts: int,
        max_tokens: int,
        temperature: float,
        incarnation: int,
        micro_batch_tokens: int,
        peer_deadline_s: float,
        max_message_bytes: int,
        interval_s: float,
    ) -> Settings: ...

@final
class Buffer:
    """The buffer of one run. Nothing a message says raises; it is answered by an error message and counted.

    `now` is seconds on any clock that never goes back; deadlines come back on the same clock.
    """

    def __new__(cls, settings: Settings) -> Buffer: ...
    def handle(self, socket: Literal["rollouts", "batches"], peer: bytes, frame: BytesLike, now: float) -> None:
        """Files one message of `peer`. The frame is read in place; nothing of it is kept.

        The GIL is released while a read-only frame is read (bytes, `memoryview.toreadonly()`), and held over one
        that Python code could write to meanwhile.

        Raises:
            ValueError: a socket that is neither.
        """
    def tick(self, now: float) -> None:
        """Lets deadlines pass; call it at `next_deadline()`, earlier does no harm."""
    def outgoing(self) -> list[tuple[str, bytes, bytes]]:
        """(socket, peer, frame) of all messages to send now, in order; on "events" the peer is empty."""
    def next_deadline(self) -> float | None:
        """When `tick` has something to do next; None: not before another message."""
    def wanted_prompts(self) -> list[int]:
        """Ordinals to admit now, in order; each is named until it is admitted, rejected or past the end."""
    def admit(self, ordinal: int, token_ids: NDArray[np.int32], meta: bytes, now: float) -> None:
        """Opens a group for a prompt that was wanted. `meta` is what a scorer needs to know of it.

        Raises:
            ValueError: the ordinal is not wanted, or the prompt has no tokens.
        """
    def reject_prompt(self, ordinal: int, reason: str) -> None:
        """Counts a wanted prompt that cannot be used (`invalid`), and goes on to the next."""
    def end_of_prompts(self, at_ordinal: int) -> None:
        """The source ends before `at_ordinal`."""
    def peer_lost(self, socket: Literal["rollouts", "batches"], peer: bytes, now: float) -> None:
        """A peer that cannot be sent to: it is gone, and its leases are lost."""
    def commits(self) -> list[int]:
        """Steps whose `committed` waits for `confirm_commit`: write `checkpoint()` first."""
    def confirm_commit(self, step: int, now: float) -> None:
        """The checkpoint of `step` is on disk: the learner may know.

        Raises:
            ValueError: no commit of that step waits.
        """
    def checkpoint(self) -> bytes:
        """What a restart of the whole run needs."""
    def restore(self, state: bytes) -> None:
        """Goes on from a `checkpoint()`; before the first prompt and the learner's hello. Peers stay known.

        Raises:
            ValueError: not a checkpoint, one of other settings, or prompts were admitted already.
        """
    def audit(self) -> dict[str, Any]:
        """Prompts, rollouts and tokens: in = trained + dropped by reason + live, and whether that is so."""
    def stats(self) -> dict[str, Any]:
        """Figures to show; docs/protocol.md names them."""
    def waits(self, now: float) -> list[str]:
        """What the run waits for, in words, the most important first."""
    def stop(self, now: float) -> None:
        """Leases nothing more and lets the learner's next question end it."""

def group_statistics(
    rewards: NDArray[np.float64], std: Literal["population", "sample"] = "population", pass_mark: float = 1.0
) -> dict[str, float] | None:
    """count, mean, std, min, max and pass_rate of finite rewards; None of no rewards."""

def advantages(
    rewards: NDArray[np.float64],
    baseline: Literal["std", "mean", "leave_one_out", "none"] = "std",
    std: Literal["population", "sample"] = "population",
    eps: float = 1e-6,
) -> NDArray[np.float64]:
    """The advantage of each reward of one group."""

def simulate(settings: Settings, model: str) -> dict[str, Any]:
    """What a run of these settings comes to with the generators, scorers and learner that `model` describes.

    `model` is JSON with every field of `Model` in `rust/r1async-sim/src/model.rs`. The GIL is released.

    Raises:
        ValueError: not such JSON, or a number that cannot be.
        RuntimeError: the run comes to a stand-still; the text says what it waits for.
    """
