"""The generator's loop: take what has arrived, install weights, step the engine, stream tokens.

Takes: leases, weight versions. Gives: chunks of tokens with behavior logprobs and the policy version of every token.
Waits for: leases, when the engine is idle. Woken by: its inbox; while the engine is busy it only looks into it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from r1async.client import Connected, Connection, greeting
from r1async.config import Config
from r1async.generator.engine import Engine, Progress, Request
from r1async.generator.held import Held, chunks_message, read_leases
from r1async.inbox import DeadlineExceeded, Inbox, Stopped, stop_on_signals
from r1async.keys import client_keys
from r1async.monitor.metrics import run_started
from r1async.monitor.timeline import Timeline
from r1async.types import PolicyVersion
from r1async.weights.receiver import Receiver, WeightsMissing, WeightsReady
from r1async.wire import Message

log = logging.getLogger(__name__)


def main(config: Config, index: int) -> None:
    """One generator's process: samples until SIGTERM or SIGINT, or until the run ends."""
    run(config, f"generator-{index}", lambda: make_engine(config), Inbox())


def make_engine(config: Config) -> Engine:
    """The engine that the settings name, without weights."""
    import torch

    from r1async.generator.torch_engine import TorchEngine
    from r1async.models.loading import check_context, load_config, load_tokenizer, stop_token_ids

    torch.set_num_threads(config.generator.threads)
    path, max_prompt, max_completion = config.model.path, config.data.max_prompt_tokens, config.sampling.max_tokens
    model = load_config(path)
    check_context(model, max_prompt, max_completion)
    match config.generator.engine:
        case "torch":
            return TorchEngine(
                model,
                seed=config.seed,
                slots=config.generator.slots,
                pinned_slots=config.generator.eval_slots,
                max_len=max_prompt + max_completion,
                stop_ids=stop_token_ids(path, load_tokenizer(path), config.sampling.stop),
                chunk_tokens=config.generator.chunk_tokens,
            )


def run(config: Config, name: str, make: Callable[[], Engine], inbox: Inbox) -> None:
    """Makes the engine, connects, and loops until the run ends or a signal comes.

    Raises:
        Refused: the buffer will not have us.
        DeadlineExceeded: buffer or learner did not come in time.
        EngineError: the engine cannot go on.
    """
    run_dir = config.run_dir
    timeline = Timeline(name, run_dir / "metrics" / f"{name}.jsonl", started=run_started(run_dir))
    try:
        with timeline.busy("load"):
            engine = make()
        figures = Figures(timeline)
        # Only now: until there is something to hand back, a signal may end the process where it stands.
        with (
            stop_on_signals(inbox),
            Connection(
                config.endpoint("rollouts"),
                greeting("generator", name, config.name),
                inbox,
                stats=figures.stats,
                max_message_bytes=config.buffer.max_message_bytes,
                connect_deadline_s=config.buffer.connect_deadline_s,
                keys=client_keys(config, "rollouts", "generator"),
            ) as buffer,
            Receiver(
                config.endpoint(config.weights_socket),
                inbox,
                run=config.name,
                name=name,
                deadline_s=config.weights.deadline_s,
                # A manifest or a chunk: a chunk's header is small, a manifest has a line for each tensor.
                max_message_bytes=max(config.buffer.max_message_bytes, 2 * config.weights.chunk_bytes),
                keys=client_keys(config, config.weights_socket, "generator"),
                threads=config.weights.threads,
                directory=config.weights_directory,
                stuck=lambda version, waited_s: buffer.tell_incident(
                    "weight_push",
                    "asked again",
                    f"no chunk of version {version} for {waited_s:.1f} s",
                    deadline_s=config.weights.deadline_s,
                    named_after_s=waited_s,
                ),
            ) as receiver,
        ):
            figures.receiver = receiver
            loop = Generator(engine, buffer, receiver, inbox, timeline, figures, stall_s=config.progress.limit_s)
            loop.run(config.buffer.connect_deadline_s)
        engine.close()
    finally:
        timeline.close()


class Figures:
    """What the heartbeat says; written by the loop, read by the connection's thread."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._last = (time.monotonic(), 0)
        self.receiver: Receiver | None = None
        self.tokens = 0
        """Sampled since the start."""
        self.rollouts = 0
        """Finished since the start."""
        self.slots_used = 0
        self.installs = 0
        self.version = PolicyVersion(0, -1)

    def stats(self) -> dict[str, float]:
        now, tokens = time.monotonic(), self.tokens
        (before, had), self._last = self._last, (now, tokens)
        return {
            **self._timeline.stats(),
            **(self.receiver.stats() if self.receiver else {}),
            "tokens": tokens,
            "tokens_per_s": (tokens - had) / max(now - before, 1e-3),
            "rollouts": self.rollouts,
            "slots_used": self.slots_used,
            "installs": self.installs,
            "epoch": self.version.epoch,
            "version": self.version.number,
        }


class Generator:
    """The loop over one engine.

    Args:
        engine: without weights yet.
        buffer: connected or connecting.
        receiver: of weights.
        inbox: that both of them fill.
        timeline: charged with what the loop does.
        figures: kept up to date for the heartbeat.
        stall_s: seconds of one wait after which the log says what is waited for.
    """

    def __init__(
        self,
        engine: Engine,
        buffer: Connection,
        receiver: Receiver,
        inbox: Inbox,
        timeline: Timeline,
        figures: Figures,
        *,
        stall_s: float,
    ) -> None:
        self._engine = engine
        self._buffer = buffer
        self._receiver = receiver
        self._inbox = inbox
        self._timeline = timeline
        self._figures = figures
        self._stall_s = stall_s
        self._held = Held()
        self._leases_seen = 0
        self._hash = ""
        """Of the installed weights."""
        self._parked: dict[PolicyVersion, list[Request]] = {}
        """Pinned leases whose version the engine does not hold yet, the oldest pin first."""
        self._fetching: PolicyVersion | None = None
        self._room_changed = False
        """The buffer has to be told how much is free."""
        self._over = False

    def run(self, start_deadline_s: float) -> None:
        """Samples until the run is over or a signal comes, then hands back what is unfinished."""
        try:
            self._begin(start_deadline_s)
            while not self._over:
                self._take(self._inbox.take() if self._engine.busy else self._wait())
                if self._engine.busy:
                    with self._timeline.busy("decode"):
                        reports = self._engine.step()
                    if reports:
                        self._stream(reports)
                if self._room_changed:
                    self._say_ready()
        except Stopped:
            log.info("asked to stop")
        self._leave()

    def _begin(self, deadline_s: float) -> None:
        with self._timeline.wait("buffer"):
            self._buffer.wait_connected(deadline_s)
        with self._timeline.wait("weights"):
            first = self._inbox.get("the first weights", deadline_s, lambda item: isinstance(item, WeightsReady))
        self._take([first])
        self._say_ready()

    def _wait(self) -> Sequence[object]:
        """The next item, with its name; past the deadline it is said aloud and waited for again."""
        name = f"weights of pinned version {self._fetching}" if self._fetching else "leases"
        with self._timeline.wait("pinned weights" if self._fetching else "leases"):
            while True:
                try:
                    return [self._inbox.get(name, self._stall_s)]
                except DeadlineExceeded as error:
                    log.warning("%s", error)

    def _take(self, items: Sequence[object]) -> None:
        for item in items:
            match item:
                case Message():
                    self._on_message(item)
                case WeightsReady(pinned=False):
                    self._install(item)
                case WeightsReady():
                    self._install_pinned(item)
                case WeightsMissing():
                    self._give_up_pin(item)
                case Connected(first=False):
                    self._say_again()
                case Connected():
                    pass
                case _:
                    raise TypeError(f"the inbox holds {type(item).__name__}, which a generator has no use for")

    def _on_message(self, message: Message) -> None:
        header = message.header
        match message.type:
            case "leases":
                self._lease(message)
            case "acks":
                self._acknowledge(header)
            case "error" if header.get("code") == "version":
                raise RuntimeError(f"the buffer refused our weights: {header.get('message')}")
            case "error":
                log.error("the buffer refused %s (%s): %s", *(header.get(key) for key in ("about", "code", "message")))
        self._over = self._over or header.get("state") == "stopping"

    def _lease(self, message: Message) -> None:
        requests = read_leases(message)
        self._leases_seen += len(requests)
        for request in requests:
            self._held.add(request)
            if request.pin is not None:
                self._parked.setdefault(request.pin, []).append(request)
        training = [request for request in requests if request.pin is None]
        if training:
            self._engine.submit(training)
        self._serve_pins()
        self._figures.slots_used = len(self._held)

    def _acknowledge(self, header: dict) -> None:
        again = self._held.acknowledge(header["items"])
        if again:
            self._buffer.send(*chunks_message(again))
        if header["lost"]:
            self._drop(header["lost"])
        self._figures.slots_used = len(self._held)

    def _drop(self, leases: Sequence[int]) -> None:
        """Leases that are ours no longer."""
        lost = set(leases)
        self._held.forget(lost)
        self._engine.abort(lost)
        self._parked = {
            pin: left for pin, requests in self._parked.items() if (left := [r for r in requests if r.id not in lost])
        }
        self._serve_pins()
        self._room_changed = True

    def _install(self, ready: WeightsReady) -> None:
        """Between two decode steps, so every token has one version; nothing is aborted."""
        with self._timeline.busy("install"):
            self._engine.install(ready.version, ready.tensors)
        self._receiver.installed(ready)
        self._hash, self._figures.version = ready.hash, ready.version
        self._figures.installs += 1
        self._serve_pins()
        self._room_changed = True

    def _install_pinned(self, ready: WeightsReady) -> None:
        self._fetching = None
        if ready.version in self._parked:  # or its leases were lost meanwhile
            with self._timeline.busy("install"):
                self._engine.install_pinned(ready.version, ready.tensors)
        self._receiver.installed(ready)
        self._serve_pins()

    def _give_up_pin(self, missing: WeightsMissing) -> None:
        """Without handing the leases back, or they would come again at once: the buffer takes them when they expire."""
        self._fetching = None
        requests = self._parked.pop(missing.version, [])
        self._held.forget(request.id for request in requests)
        log.error(
            "the learner has version %s no more (its newest is %s): leaving %d leases of its evaluation to expire",
            missing.version,
            missing.newest,
            len(requests),
        )
        self._serve_pins()
        self._room_changed = True

    def _serve_pins(self) -> None:
        """Submits parked leases whose version the engine holds, or can hold now; asks for the next one's weights."""
        engine = self._engine
        while self._parked and self._fetching is None:
            pin = next(iter(self._parked))
            if engine.pinned != pin:
                if engine.pinned_free < engine.pinned_capacity:
                    return  # another version's evaluation has to end first
                if engine.version != pin:
                    self._fetching = pin
                    self._receiver.fetch(pin)
                    return
                with self._timeline.busy("install"):
                    engine.install_pinned(pin, None)
            engine.submit(self._parked.pop(pin))

    def _stream(self, reports: Sequence[Progress]) -> None:
        with self._timeline.busy("stream"):
            pieces = [piece for report in reports if (piece := self._held.report(report)) is not None]
            finished = sum(report.finish is not None for report in reports)
            self._figures.tokens += sum(len(report.token_ids) for report in reports)
            self._figures.rollouts += finished
            if pieces:
                self._buffer.send(*chunks_message(pieces))
            if finished:
                self._serve_pins()
                self._room_changed = True

    def _say_ready(self) -> None:
        engine, version = self._engine, self._figures.version
        parked = sum(len(requests) for requests in self._parked.values())
        self._buffer.send(
            {
                "t": "ready",
                "free": engine.free,
                "eval_free": engine.pinned_free - parked,
                "capacity": engine.capacity,
                "leases_seen": self._leases_seen,
                "epoch": version.epoch,
                "version": version.number,
                "hash": self._hash,
            }
        )
        self._room_changed = False

    def _say_again(self) -> None:
        """A new session: claim what we hold, and count leases from zero."""
        self._leases_seen = 0
        self._buffer.send({"t": "announce", "items": self._held.claim()})
        self._room_changed = True

    def _leave(self) -> None:
        """The tokens sampled so far, then the leases they belong to: whoever takes them goes on from there."""
        pieces = [piece for report in self._engine.flush() if (piece := self._held.report(report)) is not None]
        if pieces:
            self._buffer.send(*chunks_message(pieces))
        leases = self._held.unfinished()
        if leases:
            self._buffer.send({"t": "release", "leases": leases})
