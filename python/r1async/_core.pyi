"""The rollout buffer (Rust, `rust/r1async-py`): the ledger, its messages and packed batches. No sockets, no clock."""

from collections.abc import Iterator
from os import PathLike
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer as BytesLike

__all__ = [
    "Buffer",
    "JournalBatches",
    "JournalEvents",
    "Receiver",
    "Settings",
    "advantages",
    "crc32c",
    "group_statistics",
    "journal_audit",
    "parse_logprobs_json",
    "simulate",
    "weights_bounds",
    "weights_decode",
    "weights_encode",
    "weights_hashes",
    "weights_merge",
    "weights_xor_zstd",
    "weights_xor_zstd_decode",
]

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
        part_groups: int,
        max_staleness: int,
        pacing: int,
        mode: Literal["fixed", "adaptive"],
        ess_floor: float,
        close_early: bool,
        windows: list[tuple[str, int, float]],
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
        slow_pools: list[tuple[str, float, int]],
        max_attempts: int,
        max_tokens: int,
        temperature: float,
        incarnation: int,
        micro_batch_tokens: int,
        peer_deadline_s: float,
        max_message_bytes: int,
        interval_s: float,
        quarantine_after: int,
        filtered_batches: int,
        generators_grade: bool,
    ) -> Settings: ...

@final
class Receiver:
    """An open ROUTER of pyzmq, read without Python."""

    def __new__(cls, module: str | PathLike[str], socket: int) -> Receiver:
        """For `Buffer.receive`.

        Args:
            module: file of pyzmq's extension module, which is linked with the libzmq that the socket belongs to.
            socket: `zmq.Socket.underlying`. It must stay open while this is used, by one thread at a time.

        Raises:
            OSError: the module hides libzmq's calls, as one does that was built with libzmq inside.
            ValueError: no address.
        """

@final
class Buffer:
    """The buffer of one run. Nothing a message says raises; it is answered by an error message and counted.

    `now` is seconds on any clock that never goes back; deadlines come back on the same clock.
    """

    def __new__(cls, settings: Settings) -> Buffer:
        """Without a journal: it lives as long as its process."""
    @staticmethod
    def journaled(
        settings: Settings,
        folder: str | PathLike[str],
        *,
        data: str,
        sync: bool,
        interval_s: float,
        sync_bytes: int,
        snapshot_bytes: int,
        keep_all: bool,
    ) -> Buffer:
        """Kept in the journal in `folder`, going on from what is there.

        Args:
            settings: as for a buffer without a journal.
            folder: made if it is missing.
            data: fingerprint of the prompts.
            sync: an acknowledgement waits for the disk, not for the operating system alone.
            interval_s: seconds between two waits for the disk at most, otherwise.
            sync_bytes: bytes after which the disk is waited for at once, otherwise.
            snapshot_bytes: a snapshot is taken after so many bytes, or as many as the last one has.
            keep_all: the payload of groups that have ended stays.

        Raises:
            ValueError: the journal is damaged (the text names file and offset), or of another run or other data.
            OSError: the files cannot be made or read.
        """
    def recovery(self) -> dict[str, float] | None:
        """What a start found in the journal: events, torn (bytes), seconds; None: a new run, or no journal."""
    def now(self) -> float:
        """The time of the last call; of a journal, that of its last event: a clock goes on from there."""
    def journal_bytes(self) -> tuple[int, int] | None:
        """Bytes of the journal: (events, payload since the newest snapshot); None: there is none."""
    def disk_bell(self) -> int | None:
        """A descriptor that is readable when `outgoing` has more to send because the disk has come further; None: there
        is no journal."""
    def committed_steps(self) -> int:
        """Steps whose groups are trained: a checkpoint holds them."""
    def share_memory(self, machine: str, cap: int) -> None:
        """From now on learners that say they are on `machine` get their batches in memory that they map.

        Args:
            machine: `r1async.machine.machine_id()`.
            cap: bytes for each learner at most; what does not fit travels.

        Raises:
            OSError: the operating system has no such memory.
        """
    def handle(self, socket: Literal["rollouts", "batches"], peer: bytes, frame: BytesLike, now: float) -> None:
        """Files one message of `peer`. The frame is read in place; nothing of it is kept.

        `outgoing` and `tick` hand out what it made possible, once for all messages before. The GIL is released while a
        read-only frame is read (bytes, `memoryview.toreadonly()`), and held over one that Python code could write to
        meanwhile.

        Raises:
            ValueError: a socket that is neither.
        """
    def receive(self, socket: Literal["rollouts", "batches"], receiver: Receiver, now: float, at_most: int) -> int:
        """Reads messages that have come and files them like `handle`, without the GIL; one of several frames counts as
        empty.

        Returns:
            How many there were, at most `at_most`.

        Raises:
            OSError: libzmq refused: the socket was closed, or its context ended.
            ValueError: a socket that is neither.
        """
    def tick(self, now: float) -> None:
        """Lets deadlines pass; call it at `next_deadline()`, earlier does no harm."""
    def outgoing(self, *, wait: bool = True) -> list[tuple[str, bytes, bytes | memoryview]]:
        """(socket, peer, frame) of all messages to send now, in order; on "events" the peer is the event's type.

        A large frame is an array of the bytes where the core wrote them. Before it returns the journal has all that
        they say.

        Args:
            wait: for the disk, where a message may not be sent before what it says is there (`journal.durability`).
                Else that is left to a later call: `disk_bell` says when.

        Raises:
            OSError: the journal cannot be written; the messages are kept for the next call.
            RuntimeError: the disk has refused what was written before. Only a new start can tell what is there.
        """
    def next_deadline(self) -> float | None:
        """When `tick` has something to do next; None: not before another message."""
    def wanted_prompts(self) -> list[int]:
        """Ordinals to admit now, in order; each is named until it is admitted, rejected or past the end."""
    def admit(
        self, ordinal: int, token_ids: NDArray[np.int32], meta: bytes, now: float, source: int = 0, pool: int = 0
    ) -> None:
        """Opens a group for a prompt that was wanted. `meta` is what a scorer needs to know of it.

        Args:
            source: 0 for the main sources, or one above the place of its window in the settings.
            pool: 0 for the first scoring pool, or one above its place in `slow_pools`.

        Raises:
            ValueError: the ordinal is not wanted, the prompt has no tokens, or there is no such source or pool.
        """
    def reject_prompt(self, ordinal: int, reason: str) -> None:
        """Counts a wanted prompt that cannot be used (`invalid`), and goes on to the next."""
    def end_of_prompts(self, at_ordinal: int) -> None:
        """The source ends before `at_ordinal`."""
    def peer_lost(self, socket: Literal["rollouts", "batches"], peer: bytes, now: float) -> None:
        """A peer that cannot be sent to: it is gone, and its leases are lost."""
    def audit(self) -> dict[str, Any]:
        """Prompts, rollouts and tokens: in = trained + dropped by reason + live, and whether that is so."""
    def stats(self) -> dict[str, Any]:
        """Figures to show; docs/protocol.md names them."""
    def waits(self, now: float) -> list[dict[str, Any]]:
        """What the run waits for, the most important first; docs/protocol.md names the fields."""
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

def parse_logprobs_json(body: bytes, shape: Literal["sglang", "vllm"]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Token ids and logprobs of the one completion in an engine's answer; the GIL is released meanwhile.

    Args:
        body: of ``sglang``, the list ``[[logprob, id, text or null], ...]`` or the answer of ``/generate`` that holds
            it; of ``vllm``, a ``logprobs`` object or the answer with one choice, with ``token_ids``
            (``return_token_ids``) or tokens written as ``token_id:N`` (``return_tokens_as_token_ids``).
        shape: whose answer it is.

    Raises:
        ValueError: not JSON or not of the shape, an id that is none, a logprob that is not finite; names the byte.
    """

def journal_audit(folder: str | PathLike[str]) -> dict[str, Any]:
    """The account of a run from its journal alone.

    `prompts`, `rollouts` and `tokens` each have in, trained, dropped (by reason) and live; then trained_twice,
    balanced, differences, mean_length (tokens, by fate), length_ratio, lives, seconds, events, torn (bytes).

    Raises:
        ValueError: the journal is damaged, or was written by a build that decides otherwise.
        OSError: it cannot be read.
    """

@final
class JournalEvents(Iterator[tuple[float, bytes]]):
    """What happened, from the events of a run's journal: (seconds, msgpack of a map with `what`).

    Args:
        folder: the journal's.
        group: only what happened to this group, lives of the buffer and peers that joined; None: everything.

    Raises:
        ValueError: the journal is damaged.
        OSError: it cannot be read.
    """

    def __new__(cls, folder: str | PathLike[str], group: int | None = None) -> JournalEvents: ...
    def __iter__(self) -> JournalEvents: ...
    def __next__(self) -> tuple[float, bytes]: ...
    @property
    def group_size(self) -> int:
        """Rollouts of one prompt."""

@final
class JournalBatches(Iterator[tuple[int, int, int, bytes]]):
    """The batches of a run whose journal keeps all, again: (step, part, groups, frame for a learner of one rank).

    Raises:
        ValueError: the journal is damaged, does not keep all, or a batch comes out otherwise than it was handed out.
        OSError: it cannot be read.
    """

    def __new__(cls, folder: str | PathLike[str], temperature: float, micro_batch_tokens: int) -> JournalBatches: ...
    def __iter__(self) -> JournalBatches: ...
    def __next__(self) -> tuple[int, int, int, bytes]: ...

def simulate(settings: Settings, model: str) -> dict[str, Any]:
    """What a run of these settings comes to with the generators, scorers and learner that `model` describes.

    `model` is JSON with every field of `Model` in `rust/r1async-sim/src/model.rs`. The GIL is released.

    Raises:
        ValueError: not such JSON, or a number that cannot be.
        RuntimeError: the run comes to a stand-still; the text says what it waits for.
    """

def weights_encode(
    new: NDArray[np.uint8], base: NDArray[np.uint8] | None, layout: list[tuple[str, int, int]], threads: int
) -> list[tuple[str, NDArray[np.uint8], int]]:
    """Every tensor of a version in as few bytes as one of the codecs of rust/r1async-weights can make of it.

    Args:
        new: the version's bytes, one-dimensional and contiguous; nobody writes to it meanwhile.
        base: the bytes of the version that the receiver has, laid out alike; None: encoded by itself.
        layout: dtype, first byte and bytes of each tensor.
        threads: that work on it at most; the GIL is released.

    Returns:
        Of each tensor: codec (``same | raw | planes | ulp | ulp_planes``), encoded bytes, and how many values differ
        from the base (all without one).

    Raises:
        ValueError: a dtype that has no name, or a tensor beyond the array.
    """

def weights_decode(
    data: NDArray[np.uint8],
    layout: list[tuple[str, int, int]],
    places: list[tuple[str, int, int]],
    blob: NDArray[np.uint8],
    threads: int,
) -> list[str]:
    """Puts every encoded tensor into its place, and hashes what is then there.

    Args:
        data: holds the base if there is one, and gets the version; nobody reads it meanwhile.
        layout: as for `weights_encode`, in order and without overlap.
        places: of each tensor: codec, first byte in `blob`, bytes.
        blob: the encoded bytes, from whoever sent them.
        threads: that work on it at most; the GIL is released.

    Returns:
        Of each tensor xxh3-128 of its bytes, in hexadecimal.

    Raises:
        ValueError: bytes that no encoder made for this tensor; the text says what. `data` is then neither version.
    """

def crc32c(data: NDArray[np.uint8]) -> int:
    """CRC-32C (Castagnoli, as iSCSI and ext4 have it) of some bytes; the GIL is released."""

def weights_hashes(data: NDArray[np.uint8], layout: list[tuple[str, int, int]], threads: int) -> list[str]:
    """xxh3-128 of every tensor's bytes, in hexadecimal.

    Raises:
        ValueError: as `weights_encode`.
    """

def weights_merge(
    layout: list[tuple[str, int, int]],
    first: list[tuple[str, int, int]],
    first_blob: NDArray[np.uint8],
    second: list[tuple[str, int, int]],
    second_blob: NDArray[np.uint8],
    threads: int,
) -> list[tuple[str, NDArray[np.uint8], int]]:
    """Encodings that do what two do one after the other; the version that they apply to is not needed.

    Args:
        layout: as for `weights_encode`.
        first: codec, first byte in `first_blob` and bytes of each tensor; applied first.
        first_blob: its encoded bytes.
        second: the same of the one that follows.
        second_blob: its encoded bytes.
        threads: that work on it at most; the GIL is released.

    Returns:
        As `weights_encode`.

    Raises:
        ValueError: bytes that no encoder made for this tensor; the text says what.
    """

def weights_xor_zstd(
    new: NDArray[np.uint8], base: NDArray[np.uint8], layout: list[tuple[str, int, int]]
) -> list[NDArray[np.uint8]]:
    """What others send, for `r1async bench weights`: each tensor XOR its base, through zstd-1, on one thread.

    Raises:
        ValueError: as `weights_encode`.
    """

def weights_xor_zstd_decode(
    data: NDArray[np.uint8], layout: list[tuple[str, int, int]], payloads: list[NDArray[np.uint8]]
) -> None:
    """Inverse of `weights_xor_zstd`: `data` holds the base and gets the version.

    Raises:
        ValueError: as `weights_decode`.
    """

def weights_bounds(new: NDArray[np.uint8], base: NDArray[np.uint8], dtype: str) -> tuple[int, float]:
    """Bytes of a 32-bit index and the value for each changed value; and the entropy in bytes of places and differences
    if every value changes by itself, with one probability, by an amount of one distribution.

    Raises:
        ValueError: two arrays of different length, or of no whole number of values.
    """
