"""A learner rank's side of the conversation with the buffer."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path

from r1async.client import Connected, Connection, Refused, greeting
from r1async.config import Config, ConfigError
from r1async.files import write_atomic
from r1async.inbox import DeadlineExceeded, Inbox, Stopped
from r1async.keys import client_keys
from r1async.learner.batch import batch_from_message, without_truncated
from r1async.learner.memory import BatchMemory
from r1async.machine import machine_id
from r1async.types import Batch, PolicyVersion
from r1async.wire import Message

log = logging.getLogger(__name__)

REPLY_S = 60.0
"""Seconds that the buffer may take to answer what needs no waiting for others."""


class LearnerError(RuntimeError):
    """The buffer refused something that this learner said: one of the two has a bug or lost state."""


class End(Enum):
    """Why there is no batch."""

    FINISHED = "finished"
    """All steps are done, or the prompts are used up."""
    STOPPED = "stopped"
    """A signal asked the role to end."""


class Link:
    """One rank's connection, what it has said last, and the wait for batches.

    Whatever is said may be said again: after a reconnect the buffer hears the last of everything once more.

    Args:
        config: of the run.
        inbox: that the connection fills.
        rank: of this process.
        epoch: this learner life.
        step: optimizer steps in the checkpoint it goes on from.
        stats: figures for the heartbeat.
    """

    def __init__(
        self,
        config: Config,
        inbox: Inbox,
        *,
        rank: int,
        epoch: int,
        step: int,
        stats: Callable[[], Mapping[str, float]],
    ) -> None:
        self.inbox = inbox
        self.epoch = epoch
        self.stopping = False
        """A signal came: finish what must be finished, wait for nothing new."""
        self.committed_steps = step
        """Steps of the newest checkpoint that the buffer has confirmed."""
        self.state = ""
        """The buffer's, as last heard."""
        self._rank, self._world = rank, config.learner.ranks
        self._batch_deadline_s = config.learner.batch_deadline_s
        self._batches, self._memory = config.learner.batches, BatchMemory()
        self._travels = False
        """The buffer's memory could not be mapped."""
        self._connect_deadline_s = config.buffer.connect_deadline_s
        # The publishing thread speaks too. What it says in a new session must follow what the main thread repeats
        # there ("published" after its "stepped"), so both speak in the session in which all has been repeated.
        self._speaking = threading.Lock()
        self._session = 0
        self._said: dict[str, dict[str, object]] = {}
        self._reason = "no word yet"
        self._run, self._steps = config.name, config.steps
        self._mask_truncated = config.reward.truncated == "mask"
        self._connection = Connection(
            config.endpoint("batches"),
            self._hello,
            inbox,
            stats=stats,
            # Nobody waits for these answers, so nobody is woken.
            quiet=lambda message: message.type == "ok" and message.header.get("about") in ("stepped", "published"),
            max_message_bytes=config.buffer.max_message_bytes,
            connect_deadline_s=config.buffer.connect_deadline_s,
            keys=client_keys(config, "batches", "learner"),
        )

    def connect(self) -> None:
        """Wait until the buffer welcomes this rank.

        Raises:
            Refused: the buffer will not have us; for code "epoch", `seen` says which is the newest.
            ConfigError: the buffer's run has another number of steps.
            Stopped: a signal came.
        """

        def answer(item: object) -> bool:
            return isinstance(item, Connected) or (isinstance(item, Message) and item.type == "error")

        item = self.inbox.get("the buffer's welcome", self._connect_deadline_s, answer)
        if isinstance(item, Message):
            raise LearnerError(f"the buffer refused this learner: {item.header.get('message')}")
        assert isinstance(item, Connected)
        self._session = item.session
        steps = item.welcome.header.get("steps")
        if steps != self._steps:
            raise ConfigError(f"steps: the buffer runs {steps} steps, this learner {self._steps}; give both one config")
        if self._batches == "shared_memory" and item.welcome.header.get("memory") is not True:
            raise ConfigError(
                "learner.batches: shared_memory, but the buffer is on another machine, in another container or of "
                "another user; set learner.batches=auto"
            )

    def ask_batch(self, step: int, part: int = 0) -> None:
        self._say(self._question(step, part))

    def stepped(self, step: int, metrics: Mapping[str, float] | None) -> None:
        """The optimizer step is done (metrics: rank 0's), and the next one's batch is asked for."""
        report = [] if metrics is None else [("stepped", {"step": step, "metrics": dict(metrics)})]
        self._say(*report, self._question(step + 1, 0))

    def _question(self, step: int, part: int) -> tuple[str, dict[str, object]]:
        fields: dict[str, object] = {"step": step, "part": part, "rank": self._rank, "world": self._world}
        if freed := self._memory.freed():
            fields["freed"] = freed
        if self._travels:
            fields["travels"] = True
        return "next_batch", fields

    def wait_batch(self, step: int, *, again: bool = False) -> Batch | End:
        """The part of the batch that `ask_batch` asked for.

        Raises:
            DeadlineExceeded: with what the buffer said it waits for.
        """
        types = ("batch", "finished")
        message = self._until(f"the batch of step {step}", self._batch_deadline_s, types, stoppable=True)
        if message is None:
            return End.STOPPED
        with self._speaking:
            part = self._said.pop("next_batch")["part"]
            assert isinstance(part, int)
        if message.type == "finished":
            return End.FINISHED
        if "memory" in message.header:
            try:
                message = self._memory.read(message.header["memory"])
            except OSError as error:
                return self._wait_without_memory(step, part, error, again=again)
        batch = batch_from_message(message)
        if self._mask_truncated:
            batch = without_truncated(batch)
        if (batch.step, batch.part, batch.epoch) != (step, part, self.epoch):
            asked = f"step {step}, part {part} of epoch {self.epoch}"
            raise LearnerError(f"asked for {asked}, got step {batch.step}, part {batch.part} of {batch.epoch}")
        return batch

    def _wait_without_memory(self, step: int, part: int, error: OSError, *, again: bool) -> Batch | End:
        """Once: the place may be of a session that is over. Twice: this batch is sent, and all after it."""
        if again:
            if self._batches == "shared_memory":
                raise LearnerError(
                    f"learner.batches: shared_memory, but the buffer's cannot be mapped: {error}"
                ) from error
            log.warning("batches are sent from now on, because the buffer's memory cannot be mapped: %s", error)
            self._travels = True
        self.ask_batch(step, part)
        return self.wait_batch(step, again=True)

    def published(self, version: PolicyVersion, digest: str) -> None:
        """Called in the publishing thread."""
        self._say(("published", {"version": version.number, "hash": digest}))

    def committed(self, step: int) -> None:
        self._say(("committed", {"step": step}))

    def wait_committed(self, step: int, deadline_s: float = REPLY_S) -> None:
        """Until the buffer has confirmed the checkpoint with `step` steps."""
        while self.committed_steps < step:
            self._until(f"the commit of {step} steps", deadline_s, ("committed_ok",))

    def finish(self) -> None:
        """Say that this learner is done; wait until the buffer knows."""
        self._say(("finish", {}))
        self._until("the end of the run to be noted", REPLY_S, ("ok",))

    def serve(self, say_s: float) -> None:
        """Until a signal, or the buffer stops. Evaluations have deadlines of their own, so every `say_s` seconds the
        wait is only said; the connection itself fails if the buffer is gone."""
        while not self.stopping and self.state != "stopping":
            try:
                self._until("the run's end", say_s, (), stoppable=True, once=True)
            except DeadlineExceeded as late:
                log.info("%s", late)

    def close(self) -> None:
        self._connection.close()

    def _hello(self) -> dict[str, object]:
        name = "learner" if self._rank == 0 else f"learner-{self._rank}"
        hello = greeting(
            "learner", name, self._run, rank=self._rank, world=self._world, epoch=self.epoch, step=self.committed_steps
        )
        if self._batches == "socket" or self._travels:
            return hello
        try:
            return hello | {"machine": machine_id()}
        except OSError as error:
            log.warning("batches are sent, because nothing here says which machine this is: %s", error)
            return hello

    def _say(self, *messages: tuple[str, Mapping[str, object]]) -> None:
        headers = [{"t": kind, "epoch": self.epoch, **fields} for kind, fields in messages]
        with self._speaking:
            self._said.update((str(header["t"]), header) for header in headers)
            self._connection.send_together(headers, session=self._session)

    def _say_again(self, session: int) -> None:
        with self._speaking:
            self._session = session
            if "next_batch" in self._said:
                self._said["next_batch"].pop("freed", None)  # of the former session's segments
            for kind in ("stepped", "published", "committed", "next_batch", "finish"):
                if kind in self._said:
                    self._connection.send(self._said[kind], session=session)

    def _until(
        self, wait: str, deadline_s: float, types: tuple[str, ...], *, stoppable: bool = False, once: bool = False
    ) -> Message | None:
        """The next message of these types; None once a signal asks to end, if `stoppable`, or after any if `once`."""
        start = time.monotonic()
        while not (stoppable and self.stopping):
            try:
                item = self.inbox.get(wait, deadline_s - (time.monotonic() - start))
            except Stopped:
                if self.stopping:
                    raise  # the second signal: at once
                self.stopping = True
                continue
            except DeadlineExceeded as error:
                named = f"{wait} (buffer: {self._reason})"
                raise DeadlineExceeded(named, error.waited_s, self.inbox.sources()) from None
            if isinstance(item, Connected):
                # Other segments from here on. What is looked at still keeps its map alive; its end is told to nobody.
                self._memory = BatchMemory()
                self._say_again(item.session)
            elif isinstance(item, Message):
                self._note(item)
                if item.type in types:
                    return item
            if once:
                return None
        return None

    def _note(self, message: Message) -> None:
        header = message.header
        self.state = str(header.get("state", self.state))
        match message.type:
            case "error":
                about, text = header.get("about"), header.get("message")
                raise LearnerError(f"the buffer refused {about!r} ({header.get('code')}): {text}")
            case "waiting":
                self._reason = str(header.get("reason"))
            case "committed_ok":
                self.committed_steps = max(self.committed_steps, int(header["step"]))


def connect_first(config: Config, *, step: int, stats: Callable[[], Mapping[str, float]], inbox: Inbox) -> Link:
    """Rank 0's link, in an epoch above any that this folder or the buffer has seen.

    Raises:
        Refused: the buffer will not have us, or another learner keeps taking the epoch.
    """
    epoch = next_epoch(config.run_dir)
    for attempt in range(3):
        write_epoch(config.run_dir, epoch)
        link = Link(config, inbox, rank=0, epoch=epoch, step=step, stats=stats)
        try:
            link.connect()
        except Refused as refused:
            link.close()
            if refused.code != "epoch" or refused.seen is None or attempt == 2:
                raise
            log.warning("epoch %d has been used; going on as %d", epoch, refused.seen + 1)
            epoch = refused.seen + 1
        except BaseException:
            link.close()
            raise
        else:
            return link
    raise AssertionError("the third refusal is raised")


def next_epoch(run_dir: Path) -> int:
    """One above the last epoch that a learner of this folder used; 1 is the first."""
    path = run_dir / "epoch"
    if not path.exists():
        return 1
    text = path.read_text().strip()
    if not text.isdecimal():
        raise ConfigError(f"{path} must hold the number of the last learner epoch, got {text!r}")
    return int(text) + 1


def write_epoch(run_dir: Path, epoch: int) -> None:
    """Written before the epoch is used, so that a killed learner never uses one twice."""
    write_atomic(run_dir / "epoch", f"{epoch}\n".encode())
