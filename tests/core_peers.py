"""A run in one process for tests of `r1async._core.Buffer`: peers without sockets, time by hand."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from r1async._core import Buffer, Settings
from r1async.wire import PROTOCOL, Message, pack, unpack

DEFAULTS: dict[str, Any] = {
    "run": "test",
    "seed": 7,
    "steps": 4,
    "group_size": 4,
    "min_group_size": 2,
    "groups_per_step": 2,
    "part_groups": 0,
    "max_staleness": 1,
    "pacing": 1,
    "mode": "fixed",
    "ess_floor": 0.5,
    "close_early": True,
    "windows": [],
    "publish_every": 1,
    "over_age": "mask",
    "retries": 1,
    "waste_budget": 0.05,
    "hold_deadline_s": 60.0,
    "baseline": "std",
    "std": "population",
    "eps": 1e-6,
    "pass_mark": 1.0,
    "zero_variance": "train",
    "oversample": 1.0,
    "max_refills": 64,
    "drop_truncated": False,
    "rollout_deadline_s": 600.0,
    "lease_s": 60.0,
    "group_deadline_s": 700.0,
    "scoring_deadline_s": 20.0,
    "slow_pools": [],
    "score_retries": 1,
    "max_attempts": 3,
    "max_tokens": 64,
    "temperature": 0.75,
    "incarnation": 0,
    "micro_batch_tokens": 4096,
    "peer_deadline_s": 20.0,
    "max_message_bytes": 1 << 20,
    "quarantine_after": 3,
    "filtered_batches": 4,
    "generators_grade": False,
    "interval_s": 1.0,
}


def settings(**changes: Any) -> Settings:
    return Settings(**{**DEFAULTS, **changes})


def prompt_of(ordinal: int) -> NDArray[np.int32]:
    return np.arange(ordinal + 1, ordinal + 4 + ordinal % 3, dtype=np.int32)


def completion_of(rollout: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Tokens and logprobs that follow from the rollout's number alone."""
    tokens = np.arange(3 + rollout % 5, dtype=np.int32) + 100 + rollout % 1000
    return tokens, (-tokens / 512).astype(np.float32)


class Run:
    """The buffer and what it has sent to whom. A peer is named `role-number`."""

    def __init__(self, *, prompts: int | None = None, journal: Path | None = None, **changes: Any) -> None:
        self.buffer = Buffer(settings(**changes)) if journal is None else open_journal(journal, **changes)
        self.prompts = prompts
        self.feeds = True
        """Prompts are brought as soon as they are wanted."""
        self.place_of: Callable[[int], tuple[int, int]] = lambda ordinal: (0, 0)
        """Source and scoring pool of each prompt."""
        self.now = self.buffer.now()
        self.inboxes: dict[str, deque[Message]] = defaultdict(deque)
        self.events: list[Message] = []
        self.frames: list[Any] = []

    def send(self, peer: str, header: Mapping[str, Any], columns: Mapping[str, NDArray] | None = None) -> None:
        self.send_bytes(peer, pack(header, columns))

    def send_bytes(self, peer: str, frame: Any, socket: Literal["rollouts", "batches"] | None = None) -> None:
        socket = socket or ("batches" if peer.startswith("learner") else "rollouts")
        self.buffer.handle(socket, peer.encode(), frame, self.now)
        self.pump()

    def tick(self, to: float) -> None:
        self.now = to
        self.buffer.tick(to)
        self.pump()

    def pump(self) -> None:
        """Collects what is sent, and brings the prompts that are wanted, until nothing happens any more."""
        while True:
            outgoing = self.buffer.outgoing()
            for socket, peer, frame in outgoing:
                self.frames.append(frame)
                if socket == "events":
                    self.events.append(unpack(frame))
                    assert peer == self.events[-1].type.encode()
                else:
                    self.inboxes[peer.decode()].append(unpack(frame))
            wanted = self.buffer.wanted_prompts() if self.feeds else []
            if not outgoing and not wanted:
                return
            for ordinal in wanted:
                if self.prompts is not None and ordinal >= self.prompts:
                    self.buffer.end_of_prompts(self.prompts)
                    break
                meta, place = b'{"answer": "%d"}' % ordinal, self.place_of(ordinal)
                self.buffer.admit(ordinal, prompt_of(ordinal), meta, self.now, *place)

    def take(self, peer: str, kind: str) -> Message:
        """The first message of this type; others stay."""
        inbox = self.inboxes[peer]
        for message in inbox:
            if message.type == kind:
                inbox.remove(message)
                return message
        raise AssertionError(f"{peer} has {[message.header for message in inbox]}, not {kind!r}")

    def take_all(self, peer: str, kind: str) -> list[Message]:
        taken = [message for message in self.inboxes[peer] if message.type == kind]
        self.inboxes[peer] = deque(message for message in self.inboxes[peer] if message.type != kind)
        return taken

    def hello(self, peer: str, **more: Any) -> Message:
        role = peer.split("-")[0]
        header = {"t": "hello", "protocol": PROTOCOL, "role": role, "name": peer, "run": "test", **more}
        self.send(peer, header)
        return self.take(peer, "welcome")

    def error(self, peer: str) -> dict[str, Any]:
        return self.take(peer, "error").header


class Generator:
    """Finishes every rollout it is lent as soon as it is told to."""

    def __init__(self, run: Run, name: str = "generator-0", slots: int = 64) -> None:
        self.run, self.name, self.slots = run, name, slots
        self.seen = 0
        self.version: tuple[int, int] = (1, 0)
        self.held: list[dict[str, Any]] = []
        run.hello(name)

    def ready(self, *, free: int | None = None, eval_free: int = 0) -> None:
        free = self.slots - len(self.held) if free is None else free
        epoch, version = self.version
        header = {"t": "ready", "free": free, "eval_free": eval_free, "capacity": self.slots}
        header |= {"leases_seen": self.seen, "epoch": epoch, "version": version, "hash": f"hash-{version}"}
        self.run.send(self.name, header)
        self.receive()

    def receive(self) -> None:
        for message in self.run.take_all(self.name, "leases"):
            items = message.header["items"]
            self.seen += len(items)
            assert message.header["seq"] == self.seen
            prompts = np.split(message.columns["prompt_tokens"], np.cumsum(message.columns["prompt_lens"])[:-1])
            resume = 0
            for lease, rollout, group, prompt, sampling, resume_len, pin in items:
                taken = message.columns["resume_tokens"][resume : resume + resume_len]
                resume += resume_len
                self.held.append(
                    {
                        "lease": lease,
                        "rollout": rollout,
                        "group": group,
                        "prompt": prompts[prompt],
                        "sampling": message.header["samplings"][sampling],
                        "resume": taken,
                        "pin": pin,
                    }
                )

    def finish(self, count: int | None = None) -> None:
        """Sends the rest of the first `count` rollouts held, all in one message."""
        count = len(self.held) if count is None else count
        done, self.held = self.held[:count], self.held[count:]
        if not done:
            return
        items, tokens, logprobs = [], [], []
        for it in done:
            all_tokens, all_logprobs = completion_of(it["rollout"])
            begin = len(it["resume"])
            version = it["pin"] or list(self.version)
            items.append([it["lease"], begin, len(all_tokens) - begin, "stop", [[*version, len(all_tokens) - begin]]])
            tokens.append(all_tokens[begin:])
            logprobs.append(all_logprobs[begin:])
        columns = {"tokens": np.concatenate(tokens), "logprobs": np.concatenate(logprobs)}
        self.run.send(self.name, {"t": "chunks", "items": items}, columns)


class Scorer:
    """Scores every rollout with 1 if its number is odd, else 0."""

    def __init__(self, run: Run, name: str = "scorer-0", slots: int = 256) -> None:
        self.run, self.name, self.slots = run, name, slots
        self.seen = 0
        self.held: list[tuple[int, int]] = []
        run.hello(name)

    def ready(self) -> None:
        header = {"t": "ready", "free": self.slots - len(self.held), "leases_seen": self.seen}
        self.run.send(self.name, header)
        self.receive()

    def receive(self) -> None:
        for message in self.run.take_all(self.name, "score"):
            end = 0
            for lease, rollout, _group, prompt, length, finish in message.header["items"]:
                begin, end = end, end + length
                np.testing.assert_array_equal(message.columns["tokens"][begin:end], completion_of(rollout)[0])
                assert finish == "stop"
                assert message.header["metas"][prompt].startswith(b"{")
                self.held.append((lease, rollout))
            self.seen += len(message.header["items"])
            assert message.header["seq"] == self.seen

    def score(self) -> None:
        self.receive()
        items = [[lease, float(rollout % 2), {"accuracy": rollout % 2}, "ok"] for lease, rollout in self.held]
        self.held = []
        if items:
            self.run.send(self.name, {"t": "verdicts", "items": items})
            self.ready()


class Learner:
    """One rank; rank 0 reports."""

    def __init__(
        self, run: Run, *, rank: int = 0, world: int = 1, epoch: int = 1, step: int = 0, name: str = "", **more: Any
    ) -> None:
        self.run, self.rank, self.world, self.epoch, self.step = run, rank, world, epoch, step
        self.name = name or f"learner-{epoch}-{rank}"
        self.welcome = run.hello(self.name, rank=rank, world=world, epoch=epoch, step=step, **more)

    def ask(self, part: int = 0, **more: Any) -> None:
        self.tell("next_batch", step=self.step, part=part, rank=self.rank, world=self.world, **more)

    def tell(self, kind: str, **more: Any) -> None:
        self.run.send(self.name, {"t": kind, "epoch": self.epoch, **more})

    def train(self) -> None:
        """Reports the step and publishes its version."""
        self.tell("stepped", step=self.step, metrics={"loss": 0.5})
        self.step += 1
        self.tell("published", version=self.step, hash=f"hash-{self.step}")

    def commit(self) -> None:
        self.tell("committed", step=self.step)
        assert self.run.take(self.name, "committed_ok").header["step"] == self.step


def open_journal(folder: Path, **changes: Any) -> Buffer:
    """A buffer kept in a journal that holds all."""
    return Buffer.journaled(
        settings(**changes),
        folder,
        data="numbers",
        sync=False,
        interval_s=0.01,
        sync_bytes=2**20,
        snapshot_bytes=2**26,
        keep_all=True,
    )


def crew(run: Run) -> tuple[Generator, Scorer, Learner]:
    """One of each, ready, with version 0 published."""
    learner = Learner(run)
    learner.tell("published", version=0, hash="hash-0")
    generator, scorer = Generator(run), Scorer(run)
    generator.ready()
    scorer.ready()
    return generator, scorer, learner


def work(generator: Generator, scorer: Scorer) -> None:
    """Everything that is lent is finished and scored, until nothing more is lent."""
    generator.receive()
    while generator.held:
        generator.finish()
        scorer.score()
        generator.ready()


def accounts(run: Run) -> dict[str, tuple[int, int, int, int]]:
    """(in, trained, dropped, live) of each account; the books must balance."""
    audit = run.buffer.audit()
    assert audit["balanced"], audit["difference"]
    return {
        name: (it["in"], it["trained"], sum(it["dropped"].values()), it["live"])
        for name, it in audit.items()
        if isinstance(it, dict)
    }


def evaluate(run: Run, name: str, **changes: Any) -> None:
    """Two prompts, two samples of each, at version 0."""
    header: dict[str, Any] = {"t": "evaluate", "id": "after", "pin": [1, 0], "samples": 2, "metas": [b"{}", b"{}"]}
    header["sampling"] = {"temperature": 0.6, "top_p": 0.95, "top_k": 0, "max_tokens": 32, "greedy": False}
    columns = {"prompt_tokens": np.array([1, 2, 3], np.int32), "prompt_lens": np.array([2, 1], np.int32)}
    run.send(name, header | changes, columns)
