"""All roles on one machine: `r1async run`.

Takes: a Config. Gives: a run's folder and an exit code. Waits for: a child's end, a signal, an event of the buffer,
or the next deadline (stall watch, live view). Woken by: the signal descriptor or the events socket.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import zmq

from r1async import disk
from r1async.config import Config
from r1async.config_sample import SAMPLED
from r1async.engines import FENCED_EXIT_CODE
from r1async.evaluation.schedule import settled_numbers
from r1async.keys import client_keys
from r1async.launch.contract import Contract
from r1async.launch.folders import (
    FolderLock,
    Outcome,
    Start,
    config_path,
    is_done,
    make_ipc_dir,
    prepare,
    remove_ipc_dir,
    write_config,
    write_outcome,
)
from r1async.launch.lifeline import Lifeline
from r1async.launch.roles import (
    FEW_THREADS,
    buffer_role,
    evaluator_role,
    generator_roles,
    learner_roles,
    sampler_role,
    scorer_roles,
)
from r1async.launch.stall import Diagnosis, StallWatch, end_s
from r1async.launch.start_model import with_start_model
from r1async.launch.supervise import Exit, Role, Signals, Supervisor
from r1async.launch.warm import READY_S, Warm, WarmError, usable
from r1async.monitor.live import LiveView
from r1async.monitor.metrics import read_metrics, run_started
from r1async.monitor.summary import print_summary, write_summary
from r1async.settings import to_yaml
from r1async.wire import WireError, unpack

END_S = 5.0
"""Seconds a role has to end after SIGTERM when somebody waits at the terminal; then it is killed."""
UNHURRIED_END_S = 30.0
"""The same at the end of a run that ended by itself."""
CHECKPOINT_S = 300.0
"""Seconds on top of that for the learner's last checkpoint."""
BUFFER_END_S = 10.0
"""Seconds the buffer has to write its audit."""


def run(config: Config, *, sampling: bool = False) -> int:
    """Sees one run through; returns the exit code (`r1async run --help` lists them).

    Args:
        sampling: rejection sampling: one role samples in the place of learner and evaluator.

    Raises:
        ConfigError: the folder is in use, or cannot be used as `resume` says.
    """
    lock = FolderLock(config.run_dir)
    try:
        if config.resume != "false" and is_done(config):
            print(
                f"{config.run_dir} is done already: see {config.run_dir / 'summary.json'}; set name=OTHER to run again"
            )
            return 0
        start = prepare(config)
        for former in ("outcome.json", "stall.json", SAMPLED):
            (config.run_dir / former).unlink(missing_ok=True)
        make_ipc_dir(config)
        with Signals() as signals:
            try:
                outcome = Launcher(config, start, signals, sampling=sampling).run()
            finally:
                remove_ipc_dir(config)
        if outcome.message:
            print(f"r1async: {outcome.message}", file=sys.stderr, flush=True)
        try:
            write_outcome(config, outcome)
        except OSError as error:
            if not disk.is_full(error, config.run_dir):
                raise
        return outcome.exit_code
    finally:
        lock.close()


class Launcher:
    """One run's processes, from the first to the last."""

    def __init__(self, config: Config, start: Start, signals: Signals, *, sampling: bool = False) -> None:
        self._sampling = sampling
        self._config = config
        self._start = start
        self._signals = signals
        self._lifeline = Lifeline()
        self._supervisor = Supervisor(self._lifeline, config.run_dir / "logs")
        self._died: dict[str, int] = {}
        """Deaths by kind of role; at most its `restarts` are made good."""
        self._restarting: set[str] = set()
        """Kinds whose remaining processes are being killed so that all of them can start again."""
        self._finished: set[str] = set()
        """Roles that ended well."""
        self._fenced: set[str] = set()
        """Generators whose engine failed its proof; they stay away."""
        self._published, self._final = -1, -1
        """Newest version and the run's last one, as the newest event tells; -1: none yet, or not known."""
        self._heard = False
        """Whether any event told these two."""

    def run(self) -> Outcome:
        started = run_started(self._config.run_dir)
        if usable() and any(self._supervisor.may_fork(role) for role in self._roles()):
            try:
                self._supervisor.warm = Warm(self._lifeline, self._config.run_dir / "logs" / "warm.log")
            except OSError as error:
                print(f"r1async: roles are started by themselves: {error}", file=sys.stderr, flush=True)
        try:
            outcome = self._warm_up() or self._cold_start()
            if outcome is not None:
                return outcome
            write_config(self._config)
            outcome = self._train()
        finally:
            if self._supervisor.warm is not None:
                self._supervisor.warm.close()
            self._lifeline.close()
        if outcome.kind != "mistake":
            drawn = outcome.kind != "interrupted" and not self._sampling
            # Who pressed Ctrl-C waits for the prompt; drawing takes seconds, and the resumed run will do it.
            try:
                self._report(None if self._start.resumed else time.time() - started, draw=drawn)
            except OSError as error:
                if not disk.is_full(error, self._config.run_dir):
                    raise
                print(f"r1async: no room for the summary in {self._config.run_dir}", file=sys.stderr)
        return outcome

    def _warm_up(self) -> Outcome | None:
        """Waits until roles can be forked, or are to be started by themselves; an outcome if that ends the run."""
        warm, deadline = self._supervisor.warm, time.monotonic() + READY_S
        if warm is None:
            return None
        poller = zmq.Poller()
        poller.register(self._signals, zmq.POLLIN)
        poller.register(warm, zmq.POLLIN)
        while not self._signals.requests:
            ready = dict(poller.poll(max(0, math.ceil((deadline - time.monotonic()) * 1000))))
            self._signals.drain()
            if ready and warm.fileno() not in ready:
                continue
            try:
                if warm.is_ready():
                    return None
            except WarmError as error:
                self._supervisor.cool(error)
                return None
        number = self._signals.requests.popleft()
        return Outcome("interrupted", 128 + number, "ended before anything was started")

    def _cold_start(self) -> Outcome | None:
        """Makes the start model where the settings ask for it; an outcome if that ends the run."""
        config = self._config
        if not config.cold_start.enabled:
            return None
        wanted, result = config.run_dir / "cold_start.yaml", config.run_dir / "start_model"
        result.unlink(missing_ok=True)
        wanted.write_text(to_yaml(config))
        role = Role(
            name="cold-start",
            kind="cold-start",
            arguments=("cold-start", str(wanted), "--result", str(result)),
            environment={**FEW_THREADS, "OMP_NUM_THREADS": str(config.learner.threads)},
        )
        started = time.time()
        self._supervisor.start(role, own_output=config.monitor.terminal == "quiet")
        ended = self._await_cold_start()
        if isinstance(ended, Outcome):
            return ended
        if ended.code == 2:
            return Outcome("mistake", 2, "the cold start could not be made, see above")
        if ended.code != 0:
            return Outcome("failed", 1, f"{ended}; nothing was trained")
        checkpoint = Path(result.read_text())
        record = checkpoint / "cold_start.json"
        if record.is_file():
            cached = record.stat().st_mtime < started
            told = {**json.loads(record.read_text()), "cached": cached}
            (config.run_dir / "cold_start.json").write_text(json.dumps(told, indent=2) + "\n")
        self._config = with_start_model(config, checkpoint)
        return None

    def _await_cold_start(self) -> Exit | Outcome:
        poller = zmq.Poller()
        poller.register(self._signals, zmq.POLLIN)
        while True:
            poller.poll()  # without a deadline of its own: the cold start has `cold_start.max_steps`
            self._signals.drain()
            for each in self._supervisor.reap():
                return each
            if self._signals.requests:
                number = self._signals.requests.popleft()
                self._supervisor.kill(self._supervisor.running)
                return Outcome("interrupted", 128 + number, "ended during the cold start; nothing was trained")

    def _train(self) -> Outcome:
        """Starts the roles and sees them through to an outcome; none of them runs afterwards."""
        context = zmq.Context()
        events = context.socket(zmq.SUB)
        events.setsockopt(zmq.LINGER, 0)
        events.subscribe(b"")
        keys = client_keys(self._config, "events", "launcher")
        if keys is not None:
            keys.protect(events)
        events.connect(self._config.endpoint("events"))
        view = LiveView(self._config)
        try:
            self._say_start(view)
            for role in self._roles():
                self._supervisor.start(role)
            outcome = self._watch(events, view)
            return self._shut_down(outcome, events, view)
        finally:
            # Whatever went wrong above, nothing stays behind.
            self._supervisor.kill(self._supervisor.running)
            view.close()
            context.destroy(linger=0)

    def _roles(self) -> list[Role]:
        config, path = self._config, config_path(self._config.run_dir)
        pools = [*generator_roles(config, path), *scorer_roles(config, path)]
        if self._sampling:
            return [buffer_role(config, path), *pools, sampler_role(path)]
        # The learner first: the weights that everybody waits for are its.
        return [buffer_role(config, path), *learner_roles(config, path), *pools, evaluator_role(path)]

    def _say_start(self, view: LiveView) -> None:
        if self._start.resumed:
            view.note(f"resume: going on after step {self._start.step} of {self._config.steps}")
        for change in self._start.changed:
            view.note(f"resume: {change}")

    def _watch(self, events: zmq.Socket[bytes], view: LiveView) -> Outcome:
        """The loop of a healthy run: returns how it should end."""
        config, now = self._config, time.monotonic()
        watch = StallWatch(config.progress.limit_s, now, end_s(config))
        self._contract = contract = Contract(config, self._supervisor, watch, view.note, now)
        try:
            while True:
                self._wait(events, min(watch.deadline, contract.deadline, time.monotonic() + view.interval_s))
                now = time.monotonic()
                exits = self._supervisor.reap()
                # After the reaping: what the run said before a role ended decides what its end means.
                self._hear(events, view, watch, now)
                for each in exits:
                    watch.moved(now)
                    contract.ended(each.role.name)
                    outcome = self._on_exit(each, view)
                    if outcome is not None:
                        return outcome
                if self._signals.requests:
                    return self._interrupted(view)
                self._supervisor.kill(contract.overdue(now))
                outcome = self._done() or self._standstill(watch, now)
                if outcome is not None:
                    return outcome
                view.refresh(now)
        finally:
            contract.close()

    def _hear(self, events: zmq.Socket[bytes], view: LiveView, watch: StallWatch, now: float) -> None:
        for header in self._received(events):
            view.event(header)
            self._note_versions(header)
            if header["t"] == "stats":
                if watch.saw(header, now):
                    self._contract.moved()
                self._contract.figures(header)
            elif header["t"] == "incident":
                self._contract.incident(header["incident"], now)
                if header["incident"]["name"] == "poison_prompt":
                    # The generators fell by it, and it is set aside: they may fall as often by another.
                    self._died = {kind: died for kind, died in self._died.items() if "generator" not in kind}

    def _standstill(self, watch: StallWatch, now: float) -> Outcome | None:
        """Says what blocks a run that stands still, acts, and ends it when nothing has helped."""
        contract, limit_s = self._contract, self._config.progress.limit_s
        filtered_s = watch.filtered_s()
        if filtered_s >= limit_s:
            return self._stalled(watch.diagnose(now), now)
        verdict = watch.check(now)
        if verdict == "fine":
            return None
        found, role = contract.stalled(now)
        if role is not None:
            self._supervisor.kill([role])
            return None
        return self._stalled(found, now) if verdict == "end" else None

    def _stalled(self, found: Diagnosis, now: float) -> Outcome:
        self._contract.write_stall(found, now, ended=True)
        return Outcome("stalled", 3, f"{found.name}: {found.text}; logs in {self._config.run_dir / 'logs'}")

    def _disk_full(self, ended: Exit) -> Outcome:
        run_dir = self._config.run_dir
        text = f"{ended.role.name} could not write to {run_dir}: its disk is full"
        found = Diagnosis(name="disk_full", text=text, role=ended.role.name)
        self._contract.write_stall(found, time.monotonic(), ended=True)
        return Outcome("stalled", 3, f"disk_full: {text}; make room, then the same command goes on (resume=auto)")

    def _wait(self, events: zmq.Socket[bytes], until: float) -> None:
        """Until a signal, a child's end, an event, or the deadline on the monotonic clock."""
        poller = zmq.Poller()
        poller.register(self._signals, zmq.POLLIN)
        poller.register(events, zmq.POLLIN)
        if not self._signals.requests:
            poller.poll(max(0, math.ceil((until - time.monotonic()) * 1000)))
        self._signals.drain()

    def _received(self, events: zmq.Socket[bytes]) -> Iterable[Mapping]:
        while True:
            try:
                frame = events.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                yield unpack(frame).header
            except WireError as error:
                print(
                    f"r1async: an event that is not ours at {self._config.endpoint('events')}: {error}", file=sys.stderr
                )

    def _note_versions(self, header: Mapping) -> None:
        published, final = header.get("published"), header.get("final")
        if isinstance(published, int) and isinstance(final, int):
            self._published, self._final, self._heard = published, final, True

    def _finished_well(self, ended: Exit) -> bool:
        """Whether exit code 0 means that the role's work is done: SIGTERM makes it end so at any time.

        A role that is started again because we missed an event finds nothing left to do and ends the same way.
        """
        if ended.code != 0:
            return False
        if ended.role.kind == "sampler":
            return (self._config.run_dir / SAMPLED).is_file()
        if ended.role.kind == "evaluator":
            return self._last_version_evaluated()
        return ended.role.kind == "learner" and self._final >= 0

    def _last_version_evaluated(self) -> bool:
        """The file decides. Events are hints, which may be lost, but a record of a version that the run has not made
        (again) yet is from before the learner went back to its checkpoint.
        """
        last = self._final if self._final >= 0 else self._config.steps
        if self._heard and self._published < last:
            return False
        return any(
            number >= last for number in settled_numbers(read_metrics(self._config.run_dir / "evaluation.jsonl"))
        )

    def _interrupted(self, view: LiveView) -> Outcome:
        number = self._signals.requests.popleft()
        view.note(f"{signal.Signals(number).name}: ending after one checkpoint (once more: without it)")
        return Outcome("interrupted", 128 + number, "")

    def _on_exit(self, ended: Exit, view: LiveView) -> Outcome | None:
        """What a role's end means for the run; None if it goes on."""
        role = ended.role
        if role.kind in self._restarting:
            self._start_again(role.kind)
            return None
        if ended.code == 2:
            return Outcome("mistake", 2, self._supervisor.mistake(role))
        if ended.code == disk.EXIT_CODE:
            return self._disk_full(ended)
        if ended.code == FENCED_EXIT_CODE:
            return self._on_fenced(role)
        if role.name in self._supervisor.running:
            return None  # ended at the same moment as another of its kind; all of them were started again
        if self._finished_well(ended):
            self._finished.add(role.name)
            return self._done()
        deaths = self._died[role.kind] = self._died.get(role.kind, 0) + 1
        log = self._supervisor.log(role)
        how = f"{ended} before the run was done" if ended.code == 0 else f"{ended}"
        if deaths > role.restarts:
            return Outcome(
                "failed",
                1,
                f"{how}, after {role.restarts} restarts; the end of {log}:\n{self._supervisor.tail(role)}",
            )
        again = f"starting it again ({deaths} of {role.restarts}), see {log}"
        self._contract.own("dead_role", again, how, role=role.name)
        self._restarting.add(role.kind)
        self._supervisor.kill(name for name, other in self._supervisor.running.items() if other.kind == role.kind)
        self._start_again(role.kind)
        return None

    def _on_fenced(self, role: Role) -> Outcome | None:
        """The run goes on with the other generators; without any it ends, for what it trained on cannot be trusted."""
        self._fenced.add(role.name)
        log, reason = self._supervisor.log(role), self._supervisor.mistake(role)
        self._contract.own("engine_fenced", f"not started again, see {log}", reason, role=role.name)
        if len(self._fenced) < self._config.generator.count:
            return None
        return Outcome("failed", 1, f"no generator is left: {reason}; see {log}, and `r1async doctor`")

    def _done(self) -> Outcome | None:
        """The run is done when the last version is evaluated, and saved and exported by the learner: one that dies
        before still has something to do. Without any event (all of them lost) the evaluator alone decides.
        """
        if "sampler" in self._finished:
            return Outcome("done", 0)
        saved = self._final >= 0 or not self._heard
        return Outcome("done", 0) if "evaluator" in self._finished and saved else None

    def _start_again(self, kind: str) -> None:
        """Starts all roles of the kind once none of them runs any more."""
        if all(role.kind != kind for role in self._supervisor.running.values()):
            self._restarting.discard(kind)
            for role in self._roles():
                if role.kind == kind:
                    self._finished.discard(role.name)
                    self._supervisor.start(role)

    def _shut_down(self, outcome: Outcome, events: zmq.Socket[bytes], view: LiveView) -> Outcome:
        """Ends all roles: first everyone but the buffer, which confirms the learner's last checkpoint, then it."""
        supervisor, now = self._supervisor, time.monotonic()
        running = {name: role.kind for name, role in supervisor.running.items() if name != "buffer"}
        end_s = END_S if outcome.kind == "interrupted" else UNHURRIED_END_S
        deadlines = {name: now + end_s + (CHECKPOINT_S if kind == "learner" else 0) for name, kind in running.items()}
        if "buffer" not in supervisor.running:
            supervisor.kill(running)  # nobody hears their last words
        supervisor.terminate(running)
        well = self._await_ends(deadlines, events, view)
        # A learner that was done and is being started again has nothing left to save.
        done = well | self._finished | (set(running) if outcome.kind == "done" and self._final >= 0 else set())
        saved = all(name in done for name, kind in running.items() if kind == "learner")
        supervisor.terminate(["buffer"])
        if "buffer" in supervisor.running:
            saved = "buffer" in self._await_ends({"buffer": time.monotonic() + BUFFER_END_S}, events, view) and saved
        if outcome.kind == "interrupted":
            how = "with its state saved" if saved else "without a last checkpoint"
            return Outcome("interrupted", outcome.exit_code, f"ended {how}; the same command goes on from there")
        if outcome.kind == "done" and not saved:
            return Outcome(
                "failed",
                1,
                f"training is done but was not saved; the same command goes on; see {self._config.run_dir / 'logs'}",
            )
        return outcome

    def _await_ends(self, deadlines: dict[str, float], events: zmq.Socket[bytes], view: LiveView) -> set[str]:
        """Waits for these roles to end; kills those past their deadline, and all of them on another Ctrl-C.

        Returns:
            The roles that ended well by themselves.
        """
        supervisor, well, killed = self._supervisor, set[str](), set[str]()
        while waiting := {name for name in deadlines if name in supervisor.running}:
            now = time.monotonic()
            late = {name for name in waiting - killed if now >= deadlines[name]}
            if self._signals.requests:
                self._signals.requests.clear()
                late = waiting - killed
            if late:
                view.note(f"killing {', '.join(sorted(late))}, which did not end yet")
                supervisor.kill(late)
                killed |= late
            # A killed process ends whatever it did; the deadline is for those that still may.
            until = min((deadlines[name] for name in waiting - killed), default=now + END_S)
            self._wait(events, until)
            for header in self._received(events):
                view.event(header)
            for each in supervisor.reap():
                # A role that is still starting has no handler for SIGTERM yet, and nothing to save.
                if each.code in (0, -signal.SIGTERM):
                    well.add(each.role.name)
                elif each.role.name not in killed and "buffer" in supervisor.running:
                    view.note(f"{each} while ending, see {supervisor.log(each.role)}")
                if each.role.kind == "buffer" and "buffer" not in deadlines:
                    supervisor.kill(waiting)
        return well

    def _report(self, wall_s: float | None, *, draw: bool) -> None:
        run_dir, written = self._config.run_dir, []
        summary = write_summary(run_dir, wall_s)
        if draw:
            from r1async.monitor.report import write_report  # brings matplotlib, which the roles need not wait for

            written.append(f"report: {write_report(run_dir)}")
        written.append(f"summary: {run_dir / 'summary.json'}")
        if self._config.monitor.terminal != "quiet" and not self._sampling:
            print_summary(summary)
            print("   ".join(written))
