"""The sockets in front of the rollout buffer.

Takes: messages of generators, scorers, the evaluator and learners; prompts. Gives: what `_core.Buffer` wants sent,
and files in the run's folder. Waits for: a message, or the buffer's next deadline. It decides nothing: every decision
is Rust's (`rust/r1async-core`).
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from pathlib import Path
from typing import Any, Literal

import zmq

from r1async._core import Buffer, Settings
from r1async.buffer.files import LedgerFiles, write_json
from r1async.buffer.outbox import RETRY_S, Outbox
from r1async.client import greeting
from r1async.config import Config
from r1async.inbox import stop_on_signals
from r1async.monitor.metrics import MetricsWriter, run_started
from r1async.monitor.timeline import Timeline
from r1async.sockets import bind, router
from r1async.tasks import PromptError, PromptSource
from r1async.tasks.meta import encode_meta
from r1async.wire import PROTOCOL, Message, WireError, pack, unpack

log = logging.getLogger(__name__)

SEND_HWM = 1000
"""Messages that ZeroMQ keeps for one peer; the outbox keeps `buffer.outbox` more."""
BURST = 256
"""Messages read from one socket before the buffer's answers are sent and the other socket is looked at."""
LINGER_MS = 300
"""For the last messages to leave, at the end."""
MAX_COUNT = 2**63 - 1
"""Largest integer of the wire (Rust's i64)."""
MAX_NAME_BYTES = 256
"""Of a peer's name; as in Rust's `messages.rs`."""

Socket = Literal["rollouts", "batches"]


def main(config: Config) -> None:
    """The buffer's process: serves until SIGTERM or SIGINT."""
    from r1async.tasks.source import open_source

    serve(config, open_source(config, Path(config.model.path)))


def serve(config: Config, source: PromptSource) -> None:
    """Serves one run until SIGTERM or SIGINT.

    Raises:
        ConfigError: an endpoint cannot be bound.
    """
    server = Server(config, source)
    with stop_on_signals(server):
        server.run()


class Server:
    """One run's buffer; binds when made.

    Args:
        config: the run's.
        source: prompts by ordinal.

    Raises:
        ConfigError: an endpoint cannot be bound, or the settings contradict one another.
    """

    def __init__(self, config: Config, source: PromptSource) -> None:
        self._config = config
        self._source = source
        self._buffer = Buffer(core_settings(config))
        self._ledger = LedgerFiles(config.run_dir / "ledger", keep=config.learner.keep_checkpoints + 1)
        self._begun = False
        """A learner has said from where the run goes on; before that no prompt is admitted."""
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self._context = zmq.Context()
        try:
            self._sockets: dict[Socket, zmq.Socket] = {
                "rollouts": self._bind("rollouts"),
                "batches": self._bind("batches"),
            }
            self._events = self._context.socket(zmq.PUB)
            self._events.linger = 0
            bind(self._events, config.endpoint("events"), "endpoints.events")
        except BaseException:
            self._context.destroy(linger=0)
            self._close_pipe()
            raise
        self._outboxes: dict[Socket, Outbox] = {
            name: Outbox(socket, config.buffer.outbox) for name, socket in self._sockets.items()
        }

    def stop(self) -> None:
        """End `run` soon. May be called from a signal handler or another thread."""
        if self._wake_write >= 0:
            os.write(self._wake_write, b"s")

    def run(self) -> None:
        """Serves until `stop`, then writes the audit and closes everything."""
        run_dir = self._config.run_dir
        started, path = run_started(run_dir), run_dir / "metrics" / "buffer.jsonl"
        self._timeline = Timeline("buffer", path, started=started)
        self._metrics = MetricsWriter(path, started)
        try:
            self._loop()
            self._buffer.stop(time.monotonic())
            self._settle()
            write_json(run_dir / "audit.json", self._buffer.audit())
            # However short the run was, its last figures are there to be looked at.
            last = {"buffer": self._buffer.stats(), "waits": self._buffer.waits(time.monotonic()), "peers": []}
            self._metrics.write("stats", last)
        finally:
            self._timeline.close()
            self._metrics.close()
            self._context.destroy(linger=LINGER_MS)
            self._close_pipe()

    def _bind(self, name: Socket) -> zmq.Socket:
        socket = router(self._context, max_message_bytes=self._config.buffer.max_message_bytes, sndhwm=SEND_HWM)
        bind(socket, self._config.endpoint(name), f"endpoints.{name}")
        return socket

    def _loop(self) -> None:
        poller = zmq.Poller()
        poller.register(self._wake_read, zmq.POLLIN)
        for socket in self._sockets.values():
            poller.register(socket, zmq.POLLIN)
        while True:
            with self._timeline.wait("messages"):
                ready = dict(poller.poll(self._timeout_ms()))
            if self._wake_read in ready:
                return
            with self._timeline.busy("messages"):
                for name, socket in self._sockets.items():
                    if socket in ready:
                        self._receive(name, socket)
                self._settle()

    def _timeout_ms(self) -> int | None:
        now = time.monotonic()
        due = [now + RETRY_S] if any(not outbox.empty for outbox in self._outboxes.values()) else []
        deadline = self._buffer.next_deadline()
        if deadline is not None:
            due.append(deadline)
        return max(0, int((min(due) - now) * 1000) + 1) if due else None

    def _receive(self, name: Socket, socket: zmq.Socket) -> None:
        for _ in range(BURST):
            try:
                parts = socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            peer = parts[0].bytes
            # Read-only, so that Rust may read it without the GIL; an empty one is answered as malformed.
            frame = parts[1].buffer.toreadonly() if len(parts) == 2 else memoryview(b"")
            now = time.monotonic()
            if not self._outboxes[name].empty and not self._outboxes[name].retry(peer):
                self._buffer.peer_lost(name, peer, now)
            if name == "batches" and not self._begun:
                answerable = self._begin(peer, frame)
                if answerable is None:
                    continue
                frame = answerable
            self._buffer.handle(name, peer, frame, now)

    def _settle(self) -> None:
        """Let time pass, give it what it wants, send what it has to say."""
        now = time.monotonic()
        self._buffer.tick(now)
        for name, outbox in self._outboxes.items():
            for peer in outbox.retry_all():
                self._buffer.peer_lost(name, peer, now)
        if self._begun:
            self._feed(now)
        self._commit(now)
        self._send(now)

    def _begin(self, peer: bytes, frame: memoryview) -> memoryview | None:
        """The first learner's hello says at which checkpoint the run goes on.

        Returns:
            What the buffer is to answer; None: the run cannot go on there, and the peer was told so.
        """
        try:
            message = unpack(frame)
        except WireError:
            return frame
        hello = _first_hello(message, self._config.name)
        if hello is None:
            return frame
        step = hello["step"]
        try:
            if step > 0:
                self._buffer.restore(self._ledger.read(step))
                log.info("goes on at step %d", step)
        except (FileNotFoundError, ValueError) as error:
            log.error("cannot go on at step %d: %s", step, error)
            header = {"t": "error", "code": "run", "message": str(error), "about": "hello", "state": "waiting"}
            unknown = {"epoch": 0, "version": -1, "published": -1}
            self._outboxes["batches"].send(peer, pack({**header, **unknown}))
            return None
        self._begun = True
        # Only what was checked: what else the frame holds cannot have the hello refused once the run has begun by it.
        return memoryview(pack(hello))

    def _feed(self, now: float) -> None:
        while ordinals := self._buffer.wanted_prompts():
            for ordinal in ordinals:
                if not self._admit(ordinal, now):
                    return

    def _admit(self, ordinal: int, now: float) -> bool:
        """False: the prompts are used up."""
        try:
            prompt = self._source.prompt(ordinal)
        except IndexError:
            self._buffer.end_of_prompts(ordinal)
            return False
        except PromptError as error:
            log.warning("prompt %d is left out: %s", ordinal, error)
            self._buffer.reject_prompt(ordinal, str(error))
            return True
        self._buffer.admit(ordinal, prompt.token_ids, encode_meta(prompt), now)
        return True

    def _commit(self, now: float) -> None:
        for step in self._buffer.commits():
            self._ledger.write(step, self._buffer.checkpoint())
            self._buffer.confirm_commit(step, now)
            write_json(self._config.run_dir / "audit.json", self._buffer.audit())

    def _send(self, now: float) -> None:
        # A lost peer's leases go to others at once: that is more to send.
        while outgoing := self._buffer.outgoing():
            for name, peer, frame in outgoing:
                if name == "rollouts" or name == "batches":
                    if not self._outboxes[name].send(peer, frame):
                        self._buffer.peer_lost(name, peer, now)
                else:
                    self._publish(frame)

    def _publish(self, frame: bytes) -> None:
        """Events; figures and incidents are kept in the run's folder as well, because events may be lost."""
        self._events.send(frame, zmq.NOBLOCK)
        message = unpack(frame)
        if message.type == "stats":
            self._metrics.write("stats", {key: value for key, value in message.header.items() if key != "t"})
        elif message.type == "incident":
            log.warning("%s: %s", message.header["incident"]["name"], message.header["incident"])
            self._metrics.write("incident", message.header["incident"])

    def _close_pipe(self) -> None:
        write_end, self._wake_write = self._wake_write, -1
        os.close(write_end)
        os.close(self._wake_read)


def _first_hello(message: Message, run: str) -> dict[str, Any] | None:
    """The checked fields of a rank 0 learner's hello to this run; None of anything that Rust would refuse.

    Everything that `LearnerHello::read` and `Hello::read` check: a hello that is refused must not begin the run.
    """
    match message.header:
        case {
            "t": "hello",
            "protocol": protocol,
            "role": "learner",
            "name": str(name),
            "run": named,
            "rank": rank,
            "world": world,
            "epoch": epoch,
            "step": step,
        }:
            counts = (
                _in_range(protocol, PROTOCOL, PROTOCOL)
                and _in_range(rank, 0, 0)
                and _in_range(world, 1, 2**16)
                and _in_range(epoch, 0, MAX_COUNT)
                and _in_range(step, 0, MAX_COUNT)
            )
            if counts and named == run and len(name.encode()) <= MAX_NAME_BYTES:
                return greeting("learner", name, run, rank=rank, world=world, epoch=epoch, step=step)
    return None


def _in_range(value: object, low: int, high: int) -> bool:
    # Not isinstance: true is an int to Python, and no integer on the wire.
    return type(value) is int and low <= value <= high


def core_settings(config: Config) -> Settings:
    """What the buffer decides by."""
    group, staleness, reward = config.group, config.staleness, config.reward
    return Settings(
        run=config.name,
        seed=config.seed,
        steps=config.steps,
        group_size=group.group_size,
        min_group_size=config.min_group_size,
        groups_per_step=config.learner.groups_per_step,
        max_staleness=staleness.max_staleness,
        pacing=config.pacing,
        publish_every=config.weights.publish_every,
        over_age=staleness.over_age,
        retries=staleness.retries,
        waste_budget=staleness.waste_budget,
        hold_deadline_s=staleness.hold_deadline_s,
        baseline=group.baseline,
        std=group.std,
        eps=group.eps,
        # A rollout passes when it has at least what a right answer alone is worth.
        pass_mark=reward.weights.get("accuracy", 1.0),
        zero_variance=group.zero_variance,
        oversample=group.oversample,
        max_refills=group.max_refills,
        drop_truncated=group.drop_truncated,
        rollout_deadline_s=group.rollout_deadline_s,
        lease_s=group.lease_s,
        group_deadline_s=config.group_deadline_s,
        scoring_deadline_s=config.scoring_deadline_s,
        score_retries=reward.retries,
        max_attempts=group.max_attempts,
        max_tokens=config.sampling.max_tokens,
        temperature=config.sampling.temperature,
        incarnation=secrets.randbelow(2**20),
        micro_batch_tokens=config.learner.micro_batch_tokens,
        peer_deadline_s=config.buffer.peer_deadline_s,
        max_message_bytes=config.buffer.max_message_bytes,
        interval_s=config.monitor.interval_s,
        quarantine_after=config.progress.quarantine_after,
        filtered_batches=config.progress.filtered_batches,
    )
