"""The generator's loop: take what has arrived, install weights, step the engine, stream tokens.

Takes: leases, weight versions. Gives: chunks of tokens with behavior logprobs and the policy version of every token.
Waits for: leases, when the engine is idle. Woken by: its inbox; while the engine is busy it only looks into it.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Sequence

from r1async.client import Connected, Connection, greeting
from r1async.config import Config
from r1async.engines import FENCED_EXIT_CODE, engine_of
from r1async.generator.canary import REQUESTS, Canary, EngineUntrusted, Verdict, refuse
from r1async.generator.engine import Engine, EngineError, Progress, TakesDirect
from r1async.generator.engines import evaluates, make_canary, make_engine, scratch_folder, trains
from r1async.generator.environments import make_turns
from r1async.generator.figures import Figures
from r1async.generator.held import Held, chunks_message, read_leases
from r1async.generator.pins import Claim, Pins, SecondSet
from r1async.generator.turns import Observed, Turns
from r1async.inbox import DeadlineExceeded, Inbox, Stopped, stop_on_signals
from r1async.keys import client_keys
from r1async.monitor.metrics import MetricsWriter, run_started
from r1async.monitor.timeline import Timeline
from r1async.types import PolicyVersion
from r1async.weights.direct import Direct, DirectError
from r1async.weights.receiver import Receiver, WeightsMissing, WeightsReady
from r1async.wire import Message

log = logging.getLogger(__name__)


def main(config: Config, index: int) -> int:
    """One generator's process: samples until SIGTERM or SIGINT, or until the run ends; returns its exit code."""
    name, kind, inbox = f"generator-{index}", engine_of(config, index), Inbox()
    with scratch_folder(config, name) as scratch:

        def make() -> tuple[Engine, Canary | None]:
            engine = make_engine(config, kind, name, scratch, lambda: inbox.put(Sampled()))
            return engine, make_canary(config, kind, inbox.put)

        try:
            run(
                config,
                name,
                make,
                inbox,
                offers_evaluation=evaluates(config, index),
                offers_training=trains(config, index),
            )
        except EngineUntrusted as error:
            print(f"r1async: {error}", file=sys.stderr, flush=True)
            return FENCED_EXIT_CODE
    return 0


def run(
    config: Config,
    name: str,
    make: Callable[[], tuple[Engine, Canary | None]],
    inbox: Inbox,
    *,
    offers_evaluation: bool = True,
    offers_training: bool = True,
) -> None:
    """Makes the engine, connects, and loops until the run ends or a signal comes.

    Raises:
        Refused: the buffer will not have us.
        DeadlineExceeded: buffer or learner did not come in time.
        EngineUntrusted: the engine does not serve what it was given.
        EngineError: the engine cannot go on.
    """
    run_dir = config.run_dir
    timeline = Timeline(name, run_dir / "metrics" / f"{name}.jsonl", started=run_started(run_dir))
    engine: Engine | None = None
    turns: Turns | None = None
    try:
        with timeline.busy("load"):
            engine, canary = make()
            if canary is not None and engine.capacity <= REQUESTS:
                raise EngineError(
                    f"{engine.describe()} takes {engine.capacity} requests at a time; want more than the {REQUESTS} "
                    "that canaries keep: give it more, or set generator.canary_every=0"
                )
            turns = make_turns(config, inbox.put)
        record = MetricsWriter(run_dir / "metrics" / f"{name}-engine.jsonl", started=run_started(run_dir))
        figures = Figures(timeline, engine.describe(), record)
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
                direct=config.direct_medium is not None and isinstance(engine, TakesDirect),
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
            loop = Generator(
                engine,
                buffer,
                receiver,
                inbox,
                timeline,
                figures,
                canary,
                turns,
                stall_s=config.progress.limit_s,
                offers_evaluation=offers_evaluation,
                offers_training=offers_training,
            )
            loop.run(config.buffer.connect_deadline_s)
    finally:
        if turns is not None:
            turns.close()
        if engine is not None:
            engine.close()
        timeline.close()


class Sampled:
    """The engine has something to collect."""


class Generator:
    """The loop over one engine.

    Args:
        engine: without weights yet.
        buffer: connected or connecting.
        receiver: of weights.
        inbox: that both of them fill, and an engine that computes elsewhere.
        timeline: charged with what the loop does.
        figures: kept up to date for the heartbeat.
        canary: proves the engine; None: it is trusted.
        turns: rollouts have environments; None: a completion is one turn.
        stall_s: seconds of one wait after which the log says what is waited for.
        offers_evaluation: whether it samples evaluations.
        offers_training: whether it samples for training.
    """

    def __init__(
        self,
        engine: Engine,
        buffer: Connection,
        receiver: Receiver,
        inbox: Inbox,
        timeline: Timeline,
        figures: Figures,
        canary: Canary | None = None,
        turns: Turns | None = None,
        *,
        stall_s: float,
        offers_evaluation: bool = True,
        offers_training: bool = True,
    ) -> None:
        self._offers_training = offers_training
        self._engine = engine
        self._buffer = buffer
        self._receiver = receiver
        self._inbox = inbox
        self._timeline = timeline
        self._figures = figures
        self._canary = canary
        self._turns = turns
        self._stall_s = stall_s
        self._held = Held()
        self._leases_seen = 0
        self._hash = ""
        """Of the installed weights."""
        self._pins: Pins
        if engine.pinned_capacity:
            self._pins = SecondSet(engine, receiver, timeline, offers=offers_evaluation)
        else:
            self._pins = Claim(engine, receiver, self._hand_back, self._install, offers=offers_evaluation)
        self._proving: PolicyVersion | None = None
        """Installed by the engine itself, and its tensors asked for."""
        self._proven = canary is None
        """Until then the buffer hears of no room, so there are no leases."""
        self._room_changed = False
        """The buffer has to be told how much is free."""
        self._over = False

    def run(self, start_deadline_s: float) -> None:
        """Samples until the run is over or a signal comes, then hands back what is unfinished."""
        try:
            self._begin(start_deadline_s)
            while not self._over:
                self._take(self._inbox.take() if self._computes() else self._wait())
                if self._engine.busy:
                    with self._timeline.busy("decode"):
                        reports = self._engine.step()
                    if reports:
                        self._stream(reports)
                if self._turns is not None:
                    self._engine.submit(self._turns.ready(self._engine.free))
                if self._room_changed and self._proven:
                    self._say_ready()
        except Stopped:
            log.info("asked to stop")
        except EngineUntrusted as error:
            self._fence(error)
            raise
        self._leave()

    def _computes(self) -> bool:
        """Whether the next `step` has something to do now."""
        return self._engine.computes and self._engine.busy

    def _begin(self, deadline_s: float) -> None:
        with self._timeline.wait("buffer"):
            self._buffer.wait_connected(deadline_s)
        with self._timeline.wait("weights"):
            first = self._inbox.get("the first weights", deadline_s, lambda item: isinstance(item, WeightsReady))
        self._take([first])
        if self._proven:
            self._say_ready()

    def _wait(self) -> Sequence[object]:
        """The next items, with the wait's name; past the deadline it is said aloud and waited for again."""
        fetching = self._pins.fetching
        if self._engine.busy:
            name, span = "tokens of the engine", self._timeline.busy("decode")
        elif not self._proven:
            name = "the proof of the engine"
            # Its weights have to come first where they are not here.
            span = self._timeline.busy("canary") if self._proving is None else self._timeline.wait("weights to prove")
        elif self._turns is not None and self._turns.held:
            name, span = f"{self._turns.held} environments", self._timeline.wait("environments")
        elif fetching:
            name, span = f"weights of pinned version {fetching}", self._timeline.wait("pinned weights")
        else:
            name, span = "leases", self._timeline.wait("leases")
        with span:
            while True:
                try:
                    return [self._inbox.get(name, self._stall_s), *self._inbox.take()]
                except DeadlineExceeded as error:
                    log.warning("%s", error)

    def _take(self, items: Sequence[object]) -> None:
        for item in items:
            match item:
                case Sampled():
                    pass  # the loop collects after this
                case Message():
                    self._on_message(item)
                case WeightsReady(pinned=False) | Direct():
                    if self._pins.newest(item):
                        self._install(item)
                case WeightsReady():
                    self._prove(item)
                    if item.version == self._pins.fetching:
                        claimed = self._pins.claimed
                        with self._timeline.busy("install"):
                            self._pins.arrived(item)
                        # A claim may end without an install: its leases were lost while the weights were on their way.
                        self._room_changed |= claimed and not self._pins.claimed
                case WeightsMissing():
                    self._on_missing(item)
                case Verdict():
                    self._on_verdict(item)
                case Observed():
                    self._on_observed(item)
                case Connected(first=False):
                    self._say_again()
                case Connected():
                    pass
                case _:
                    raise TypeError(f"the inbox holds {type(item).__name__}, which a generator has no use for")

    def _on_verdict(self, verdict: Verdict) -> None:
        assert self._canary is not None
        self._canary.judged()
        self._figures.proven(verdict)
        refuse(self._engine, verdict, self._canary.tolerance)
        if verdict.mismatch is None:
            self._canary.again()
            if not self._proven:
                # Of the version that overtook it: there may be no later one, and no room is offered before the proof.
                version = self._engine.version
                assert version is not None, "a canary follows an install"
                self._ask_proof(version)
            return
        self._proven = self._room_changed = True

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
        self._pins.add([request for request in requests if request.pin is not None])
        training = [request for request in requests if request.pin is None]
        if training and self._pins.claimed:
            # Granted before the buffer heard that there is no room for them any more.
            self._give_back([request.id for request in training])
        elif training:
            self._engine.submit(training if self._turns is None else self._turns.begin(training))
        self._pins.serve()
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
        if self._turns is not None:
            self._turns.drop(lost)
        self._pins.drop(lost)
        self._pins.serve()
        self._room_changed = True

    def _install(self, ready: WeightsReady | Direct) -> None:
        """Between two tokens of every request, so every token has one version; nothing is aborted."""
        if isinstance(ready, Direct):
            self._install_direct(ready)
            return
        with self._timeline.busy("install"):
            pause_s = self._engine.install(ready.version, ready.tensors)
        self._receiver.installed(ready, pause_s)
        self._hash = ready.hash
        self._figures.installed(ready.version, pause_s)
        if self._canary is not None:
            self._canary.installed(ready.version, ready.tensors, self._engine)
        self._pins.serve()
        self._room_changed = True

    def _install_direct(self, direct: Direct) -> None:
        """Weights that the engine takes from the learner itself."""
        assert isinstance(self._engine, TakesDirect)
        begun = time.monotonic()
        try:
            with self._timeline.busy("install"):
                pause_s = self._engine.install_direct(direct)
        except DirectError as error:
            log.warning("version %s does not come to %s directly: %s", direct.version, self._engine.describe(), error)
            self._receiver.fetch_instead(direct)
            return
        self._receiver.installed_direct(direct, time.monotonic() - begun, pause_s)
        self._hash = direct.hash
        self._figures.installed(direct.version, pause_s)
        if self._canary is not None and self._canary.wants(self._engine):
            self._ask_proof(direct.version)
        self._pins.serve()
        self._room_changed = True

    def _ask_proof(self, version: PolicyVersion) -> None:
        """Of weights that the engine has and whose tensors are not here."""
        self._proving = version
        self._receiver.fetch(version)

    def _prove(self, ready: WeightsReady) -> None:
        """The tensors of a version that the engine has, with their hashes: a canary can be scored by them."""
        if self._canary is None or ready.version != self._proving:
            return
        self._proving = None
        # Places of a claimed engine are the evaluation's, all of them.
        if self._engine.version == ready.version and not self._pins.claimed:
            self._canary.installed(ready.version, ready.tensors, self._engine)
        else:
            self._canary.again()

    def _on_missing(self, missing: WeightsMissing) -> None:
        if missing.version == self._proving:
            assert self._canary is not None
            self._proving = None
            self._canary.again()
        if missing.version == self._pins.fetching:
            self._give_up_pin(missing)

    def _give_up_pin(self, missing: WeightsMissing) -> None:
        """Without handing the leases back, or they would come again at once: the buffer takes them when they expire."""
        requests = self._pins.give_up(missing.version)
        self._held.forget(request.id for request in requests)
        log.error(
            "the learner has version %s no more (its newest is %s): leaving %d leases of its evaluation to expire",
            missing.version,
            missing.newest,
            len(requests),
        )
        self._pins.serve()
        self._room_changed = True

    def _hand_back(self) -> None:
        """All training rollouts with the tokens they have: the engine is claimed for an evaluation."""
        if self._canary is not None:
            self._canary.cancel(self._engine)
        self._stream(self._engine.flush())
        training = self._held.unfinished(pinned=False)
        self._engine.abort(training)
        self._give_back(training)
        self._room_changed = True

    def _on_observed(self, observed: Observed) -> None:
        """An environment has answered: its words are tokens of the rollout, and the engine goes on from there."""
        assert self._turns is not None
        if observed.step is None:
            # Another generator may have more luck; the buffer counts how often.
            self._give_back([observed.id])
            self._room_changed = True
            return
        report = self._turns.answered(observed, self._figures.version)
        if report is None:
            return
        self._figures.observation_tokens += len(report.token_ids)
        piece = self._held.report(report)
        if piece is not None:
            self._buffer.send(*chunks_message([piece]))
        if report.finish is not None:
            self._figures.rollouts += 1
            self._room_changed = True

    def _give_back(self, leases: Sequence[int]) -> None:
        self._held.forget(leases)
        if self._turns is not None:
            self._turns.drop(leases)
        if leases:
            self._buffer.send({"t": "release", "leases": list(leases)})

    def _stream(self, reports: Sequence[Progress]) -> None:
        with self._timeline.busy("stream"):
            reports = self._without_canaries(reports)
            if self._turns is not None:
                reports = self._turns.take(reports)
            pieces = [piece for report in reports if (piece := self._held.report(report)) is not None]
            finished = [report.id for report in reports if report.finish is not None]
            self._figures.tokens += sum(len(report.token_ids) for report in reports)
            self._figures.rollouts += len(finished)
            if pieces:
                self._buffer.send(*chunks_message(pieces))
        if finished:
            self._pins.drop(finished)
            self._pins.serve()
            self._room_changed = True

    def _without_canaries(self, reports: Sequence[Progress]) -> Sequence[Progress]:
        canary = self._canary
        return reports if canary is None else [report for report in reports if not canary.take(report)]

    def _say_ready(self) -> None:
        engine, version = self._engine, self._figures.version
        # With their environments: the engine will have them again.
        out = self._turns.held if self._turns is not None else 0
        kept, canaries = (self._canary.kept, REQUESTS) if self._canary is not None else (0, 0)
        self._buffer.send(
            {
                "t": "ready",
                "free": 0 if self._pins.claimed or not self._offers_training else max(engine.free - kept - out, 0),
                "eval_free": max(self._pins.room, 0),
                "capacity": engine.capacity - canaries,
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
        reports = self._without_canaries(self._engine.flush())
        pieces = [piece for report in reports if (piece := self._held.report(report)) is not None]
        if pieces:
            self._buffer.send(*chunks_message(pieces))
        self._give_back(self._held.unfinished())

    def _fence(self, error: EngineUntrusted) -> None:
        """The engine's word is worth nothing: what it has not reported yet stays here, its leases go back."""
        self._buffer.tell_incident("engine_fenced", "gets no leases", str(error), deadline_s=0.0, named_after_s=0.0)
        self._give_back(self._held.unfinished())
