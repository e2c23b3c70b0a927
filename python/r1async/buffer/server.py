"""The sockets in front of the rollout buffer.

Takes: messages of generators, scorers, the evaluator and learners; prompts. Gives: what `_core.Buffer` wants sent,
its journal and the audit in the run's folder. Waits for: a message, or the buffer's next deadline; for room on the
disk. It decides nothing: every decision is Rust's (`rust/r1async-core`).
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import time
from pathlib import Path
from typing import Literal

import zmq

from r1async._core import Buffer, Settings
from r1async.buffer.outbox import RETRY_S, Outbox
from r1async.config import Config, ConfigError, has_journal, journal_dir
from r1async.disk import is_full
from r1async.files import write_json
from r1async.inbox import stop_on_signals
from r1async.keys import Gate, server_keys
from r1async.machine import machine_id
from r1async.monitor.metrics import MetricsWriter, run_started
from r1async.monitor.timeline import Timeline
from r1async.reward_pools import Router, lines_of, pools_of
from r1async.sockets import bind, receiver, router
from r1async.tasks import PromptError, PromptSource
from r1async.tasks.meta import encode_meta
from r1async.wire import Frame, unpack

log = logging.getLogger(__name__)

SEND_HWM = 1000
"""Messages that ZeroMQ keeps for one peer; the outbox keeps `buffer.outbox` more."""
BURST = 256
"""Messages read from one socket before the buffer's answers are sent and the other socket is looked at."""
GATHER_MS = 4
"""From answering a crowd to reading again, unless a learner says something. What comes meanwhile is answered
together: without it a crowd of senders has the buffer answer every second message by itself, and each of them is
woken for that."""
CROWD_PER_S = 2000.0
"""Messages a second that are a crowd. Fewer are read at once: to gather them saves little, and a batch would wait
for it."""
RATE_S = 0.02
"""Time that the rate of messages is a mean of."""
NOBLOCK = int(zmq.NOBLOCK)
LINGER_MS = 300
"""For the last messages to leave, at the end."""
FEED_BURST = 8192
"""Prompts brought before messages are read again: a source of which every row is quarantined never fills the buffer."""
DISK_RETRY_S = 1.0
"""Between two tries to write a journal that the disk has no room for."""

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
        self._sources = {name: place for place, name in enumerate(config.staleness.windows, start=1)}
        """Those with a window of their own, named after a source or after a scoring pool; all others are main."""
        self._router = Router(config)
        self._buffer = open_buffer(config, source.fingerprint)
        if config.learner.batches != "socket":
            share_memory(self._buffer, round(config.learner.shared_memory_mb * 2**20))
        self._clock_start = self._buffer.now() - time.monotonic()
        self._committed = self._buffer.committed_steps()
        self._hungry = False
        """More prompts are wanted than were brought at a time."""
        self._disk_error: OSError | None = None
        """Why the journal cannot be written; nothing is read or sent meanwhile."""
        self._disk_full_since = 0.0
        self._disk_bell = self._buffer.disk_bell()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self._context = zmq.Context()
        self._gate = Gate(self._context)
        try:
            self._sockets: dict[Socket, zmq.Socket] = {
                "batches": self._bind("batches"),  # a step's time is worth more than a chunk's
                "rollouts": self._bind("rollouts"),
            }
            self._events = self._context.socket(zmq.PUB)
            self._events.linger = 0
            self._gate.guard(self._events, "events", server_keys(config, "events"))
            bind(self._events, config.endpoint("events"), "endpoints.events")
        except BaseException:
            self._gate.close()
            self._context.destroy(linger=0)
            self._close_pipe()
            raise
        self._receivers = {name: receiver(socket) for name, socket in self._sockets.items()}
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
            self._buffer.stop(self._now())
            self._settle(wait=True)
            write_json(run_dir / "audit.json", self._buffer.audit())
            # However short the run was, its last figures are there to be looked at.
            last = {"buffer": self._buffer.stats(), "waits": self._buffer.waits(self._now()), "peers": []}
            self._metrics.write("stats", last)
        finally:
            self._timeline.close()
            self._metrics.close()
            self._gate.close()
            self._context.destroy(linger=LINGER_MS)
            self._close_pipe()

    def _bind(self, name: Socket) -> zmq.Socket:
        socket = router(self._context, max_message_bytes=self._config.buffer.max_message_bytes, sndhwm=SEND_HWM)
        self._gate.guard(socket, name, server_keys(self._config, name))
        bind(socket, self._config.endpoint(name), f"endpoints.{name}")
        return socket

    def _now(self) -> float:
        """Seconds on the run's own clock, which stands still while no buffer runs."""
        return self._clock_start + time.monotonic()

    def _loop(self) -> None:
        learners, everybody = zmq.Poller(), zmq.Poller()
        for poller in (learners, everybody):
            poller.register(self._wake_read, zmq.POLLIN)
            poller.register(self._sockets["batches"], zmq.POLLIN)
            if self._disk_bell is not None:
                poller.register(self._disk_bell, zmq.POLLIN)  # a batch may go out
        everybody.register(self._sockets["rollouts"], zmq.POLLIN)
        crowd = Crowd()
        self._settle()
        while True:
            if self._disk_error is not None:
                if self._wait_for_disk(self._disk_error):
                    return
                continue
            with self._timeline.wait("messages"):
                if crowd.is_there:
                    learners.poll(GATHER_MS)
                ready = dict(everybody.poll(self._timeout_ms()))
            if self._wake_read in ready:
                return
            with self._timeline.busy("messages"):
                said: list[tuple[Socket, zmq.Socket]] = [
                    (name, socket) for name, socket in self._sockets.items() if socket in ready
                ]
                crowd.came(sum(self._answer(name, socket) for name, socket in said), time.monotonic())
                if not said:
                    self._settle()

    def _wait_for_disk(self, error: OSError) -> bool:
        """Tries again to write the journal; True: the run ends.

        Raises:
            OSError: there was no room for `progress.limit_s`.
        """
        if time.monotonic() > self._disk_full_since + self._config.progress.limit_s:
            raise error
        with self._timeline.wait("disk"):
            poller = zmq.Poller()
            poller.register(self._wake_read, zmq.POLLIN)
            if poller.poll(round(DISK_RETRY_S * 1000)):
                return True
        self._send(self._now())
        return False

    def _timeout_ms(self) -> int | None:
        now = self._now()
        due = [now] if self._hungry else []
        due += [now + RETRY_S] if any(not outbox.empty for outbox in self._outboxes.values()) else []
        deadline = self._buffer.next_deadline()
        if deadline is not None:
            due.append(deadline)
        return max(0, int((min(due) - now) * 1000) + 1) if due else None

    def _answer(self, name: Socket, socket: zmq.Socket) -> int:
        """Reads what has come and says what follows from it; how many messages it was."""
        if self._disk_error is not None:
            return 0
        count = self._receive(name, socket)
        self._settle()
        return count

    def _receive(self, name: Socket, socket: zmq.Socket) -> int:
        receiver, outbox = self._receivers[name], self._outboxes[name]
        if receiver is None or not outbox.empty:
            return self._receive_in_python(name, socket)
        return self._buffer.receive(name, receiver, self._now(), BURST)

    def _receive_in_python(self, name: Socket, socket: zmq.Socket) -> int:
        """One message at a time: who says something is sent first what waits for it."""
        outbox, file = self._outboxes[name], self._buffer.handle
        for count in range(BURST):
            try:
                peer = socket.recv(NOBLOCK)
            except zmq.Again:
                return count
            part = socket.recv(copy=False)
            # Read-only, so that Rust may read it without the GIL; one of two is answered as malformed.
            frame = memoryview(b"") if part.more else part.buffer.toreadonly()
            while part.more:
                part = socket.recv(copy=False)
            now = self._now()
            if not outbox.empty and not outbox.retry(peer):
                self._buffer.peer_lost(name, peer, now)
            file(name, peer, frame, now)
        return BURST

    def _settle(self, *, wait: bool = False) -> None:
        """Let time pass, send what it has to say, give it what it wants: a batch does not wait for prompts.

        Args:
            wait: for what is to be on the disk first; else it is sent when the disk's bell rings.
        """
        now = self._now()
        self._buffer.tick(now)
        for name, outbox in self._outboxes.items():
            for peer in outbox.retry_all():
                self._buffer.peer_lost(name, peer, now)
        self._send(now, wait=wait)
        if self._disk_error is None and self._feed(now):
            self._send(now, wait=wait)

    def _feed(self, now: float) -> bool:
        """Brings the prompts that are wanted; whether there were any."""
        fed = 0
        while fed < FEED_BURST and (ordinals := self._buffer.wanted_prompts()):
            for ordinal in ordinals:
                if not self._admit(ordinal, now):
                    return True
            fed += len(ordinals)
        self._hungry = fed >= FEED_BURST
        return fed > 0

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
        line = self._router.line(prompt.extra)
        source = self._sources.get(prompt.source) or self._sources.get(line, 0)
        pool = self._router.lines.index(line)
        self._buffer.admit(ordinal, prompt.token_ids, encode_meta(prompt), now, source, pool)
        return True

    def _send(self, now: float, *, wait: bool = False) -> None:
        # A lost peer's leases go to others at once: that is more to send.
        while outgoing := self._outgoing(wait=wait):
            for name, peer, frame in outgoing:
                if name == "rollouts" or name == "batches":
                    if not self._outboxes[name].send(peer, frame):
                        self._buffer.peer_lost(name, peer, now)
                else:
                    self._publish(peer, frame)
        if self._disk_error is None and self._committed != self._buffer.committed_steps():
            self._committed = self._buffer.committed_steps()
            # Not waited for: the journal has it all, and generators and learners wait while we do.
            write_json(self._config.run_dir / "audit.json", self._buffer.audit(), synced=False)

    def _outgoing(self, *, wait: bool) -> list[tuple[str, bytes, Frame]]:
        """What the buffer wants sent, once the journal has it; nothing while the disk has no room for that."""
        try:
            outgoing = self._buffer.outgoing(wait=wait)
        except OSError as error:
            if not is_full(error, self._config.run_dir):
                raise
            if self._disk_error is None:
                log.error("the disk is full, the run waits %g s for room: %s", self._config.progress.limit_s, error)
                self._disk_full_since = time.monotonic()
            self._disk_error = error
            return []
        if self._disk_error is not None:
            log.info("the disk has room again")
            self._disk_error = None
        return outgoing

    def _publish(self, kind: bytes, frame: Frame) -> None:
        """Events; figures and incidents are kept in the run's folder as well, because events may be lost."""
        self._events.send(frame, zmq.NOBLOCK)
        if kind == b"stats":
            header = unpack(frame).header
            self._metrics.write("stats", {key: value for key, value in header.items() if key != "t"})
        elif kind == b"incident":
            incident = unpack(frame).header["incident"]
            log.warning("%s: %s", incident["name"], incident)
            self._metrics.write("incident", incident)

    def _close_pipe(self) -> None:
        write_end, self._wake_write = self._wake_write, -1
        os.close(write_end)
        os.close(self._wake_read)


class Crowd:
    """Whether so many messages come that it pays to answer them together: their rate, forgotten within `RATE_S`."""

    def __init__(self) -> None:
        self._per_s = 0.0
        self._at = 0.0

    @property
    def is_there(self) -> bool:
        return self._per_s > CROWD_PER_S

    def came(self, count: int, now: float) -> None:
        self._per_s = self._per_s * math.exp((self._at - now) / RATE_S) + count / RATE_S
        self._at = now


def open_buffer(config: Config, data: str) -> Buffer:
    """The run's buffer, in its journal if it has one, going on from what is there.

    Args:
        config: the run's.
        data: fingerprint of the prompts.

    Raises:
        ConfigError: `resume` rules it out, or the journal is damaged or belongs to another run.
    """
    journal, folder = config.journal, journal_dir(config.run_dir)
    is_there = has_journal(config.run_dir)
    if journal.durability == "memory":
        if is_there:
            raise ConfigError(f"journal.durability: memory, but {folder} holds a journal; keep it, or set name=OTHER")
        return Buffer(core_settings(config))
    if config.resume == "false" and is_there:
        raise ConfigError(f"resume: false, but {folder} holds a journal; set name=OTHER, or resume=auto")
    if config.resume == "true" and not is_there:
        raise ConfigError(f"resume: true, but {folder} holds no journal; set resume=auto to start from step 0")
    try:
        buffer = Buffer.journaled(
            core_settings(config),
            folder,
            data=data,
            sync=journal.durability == "sync",
            interval_s=journal.interval_ms / 1000,
            sync_bytes=round(journal.sync_mb * 2**20),
            snapshot_bytes=round(journal.snapshot_mb * 2**20),
            keep_all=journal.keep == "all",
        )
    except (ValueError, OSError) as error:
        raise ConfigError(f"journal: {error}") from error
    recovery = buffer.recovery()
    if recovery is not None:
        log.info("goes on from %s after %d steps: %s", folder, buffer.committed_steps(), recovery)
    return buffer


def share_memory(buffer: Buffer, cap: int) -> None:
    """Learners of this machine map their batches from now on, where there is such memory."""
    try:
        buffer.share_memory(machine_id(), cap)
    except OSError as error:
        log.warning("batches are sent, which costs more CPU than sharing memory: %s", error)


def core_settings(config: Config) -> Settings:
    """What the buffer decides by."""
    group, staleness, reward = config.group, config.staleness, config.resolved_reward
    rules, *slow = lines_of(pools_of(reward, config.scorer)).values()
    return Settings(
        run=config.name,
        seed=config.seed,
        steps=config.steps,
        group_size=group.group_size,
        min_group_size=config.min_group_size,
        groups_per_step=config.learner.groups_per_step,
        part_groups=config.learner.part_groups,
        max_staleness=staleness.max_staleness,
        pacing=config.pacing,
        mode=staleness.mode,
        ess_floor=staleness.ess_floor,
        close_early=staleness.close_early,
        windows=[(name, window.max_staleness, window.share) for name, window in staleness.windows.items()],
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
        drop_truncated=reward.truncated == "abstain",
        rollout_deadline_s=group.rollout_deadline_s,
        lease_s=group.lease_s,
        group_deadline_s=config.group_deadline_s,
        scoring_deadline_s=rules.deadline_s,
        score_retries=rules.retries,
        slow_pools=[(line.name, line.deadline_s, line.retries) for line in slow],
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
        generators_grade=config.reward.from_generators,
    )
