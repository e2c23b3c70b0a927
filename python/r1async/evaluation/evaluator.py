"""The evaluation role: scores pinned versions on held-out problems while training goes on.

Takes: what the buffer says about versions, evaluated samples. Gives: `evaluate` requests, lines of
evaluation.jsonl. Waits for: a version to evaluate, the learner's word that it keeps it, samples. Woken by: a message.
The learner never waits for it; it ends by itself when the run's last version is evaluated.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from r1async.client import Connected, Connection, greeting
from r1async.config import Config
from r1async.evaluation.benchmark import Asked, ask
from r1async.evaluation.collecting import Collecting
from r1async.evaluation.metrics import EvalMetrics, evaluate
from r1async.evaluation.page import write_page
from r1async.evaluation.passes import Pass, plans, samples_of
from r1async.evaluation.result import Record, about, folder_of, result_of, write_result
from r1async.evaluation.samples import SampleFile
from r1async.evaluation.schedule import Schedule, settled_numbers
from r1async.evaluation.side import SideSockets, WeightsReply
from r1async.inbox import DeadlineExceeded, Inbox, Stopped, stop_on_signals
from r1async.keys import client_keys
from r1async.monitor.metrics import MetricsWriter, read_metrics, run_started
from r1async.monitor.timeline import Timeline
from r1async.reward_pools import Router
from r1async.tasks.source import open_source
from r1async.tasks.tokenizer import Detokenizer
from r1async.types import PolicyVersion, Prompt
from r1async.wire import Message

log = logging.getLogger(__name__)

ROLE = "evaluator"
WATCHED = ("state", "epoch", "published", "final")
"""Header fields that the schedule lives on: every answered heartbeat repeats them, so no lost event matters."""


REQUESTS = 2
"""Requests of benchmarks under way at a time."""


class GivenUp(RuntimeError):  # noqa: N818
    """A version that cannot be evaluated; the text says why."""


class LifeEnded(Exception):  # noqa: N818
    """The learner began a new life; versions of the former one are gone."""


def main(config: Config) -> None:
    """Evaluate until the run's last version has been; returns early, in good order, on SIGTERM.

    Raises:
        ConfigError: the held-out problems cannot be read.
        DeadlineExceeded: the buffer does not answer.
        GivenUp: at the end, if some version could not be evaluated in time.
    """
    model_dir = Path(config.model.path)
    # Before anything waits for us: a benchmark that cannot be had is a mistake in the settings.
    benchmarks = [ask(config, name) for name in config.eval.benchmarks]
    prompts = open_source(config, model_dir).held_out(config.eval.prompts) if config.eval.prompts else []
    metrics = config.run_dir / "metrics" / f"{ROLE}.jsonl"
    timeline = Timeline(ROLE, metrics, started=run_started(config.run_dir))
    inbox = Inbox()
    evaluator = Evaluator(config, prompts, benchmarks, Detokenizer(model_dir, config.sampling.stop), inbox, timeline)
    try:
        with stop_on_signals(inbox), evaluator:
            evaluator.run()
    except Stopped:
        log.info("told to end while waiting for %s; samples of benchmarks are kept", evaluator.schedule.describe())
    finally:
        timeline.close()


class Evaluator:
    """The loop: `next version, keep it, ask, collect, write, let it go`."""

    def __init__(
        self,
        config: Config,
        prompts: Sequence[Prompt],
        benchmarks: Sequence[Asked],
        detokenizer: Detokenizer,
        inbox: Inbox,
        timeline: Timeline,
    ) -> None:
        self._config = config
        self._prompts = prompts
        self._benchmarks = benchmarks
        self._router = Router(config)
        self._lines = [self._router.line(prompt.extra) for prompt in prompts]
        self._detokenizer = detokenizer
        self._inbox = inbox
        self._timeline = timeline
        self._path = config.run_dir / "evaluation.jsonl"
        self._stats: dict[str, float] = {"evaluations": 0.0, "tokens": 0.0}
        self._given_up: list[str] = []
        self.schedule = Schedule(config.eval.every, config.steps, settled_numbers(read_metrics(self._path)))

    def __enter__(self) -> Evaluator:
        config = self._config
        self._writer = MetricsWriter(self._path, run_started(config.run_dir))
        self._side = SideSockets(
            config.endpoint("events"),
            config.endpoint("weights"),
            self._inbox,
            run=config.name,
            max_message_bytes=config.buffer.max_message_bytes,
            events_keys=client_keys(config, "events", "evaluator"),
            weights_keys=client_keys(config, "weights", "evaluator"),
        )
        self._buffer = Connection(
            config.endpoint("rollouts"),
            greeting(ROLE, ROLE, config.name),
            self._inbox,
            stats=lambda: {**self._timeline.stats(), **self._stats},
            watch=WATCHED,
            max_message_bytes=config.buffer.max_message_bytes,
            connect_deadline_s=config.buffer.connect_deadline_s,
            keys=client_keys(config, "rollouts", "evaluator"),
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._buffer.close()
        self._side.close()
        self._writer.close()

    def run(self) -> None:
        """Until the schedule is complete."""
        while not self.schedule.complete:
            version = self.schedule.next()
            if version is None:
                self._wait_for_version()
            else:
                self._deal_with(version)
        if self._given_up:
            raise GivenUp("; ".join(self._given_up))

    def _wait_for_version(self) -> None:
        """Training takes as long as it takes: a missed deadline is said, and the wait goes on. The connection
        itself fails if the buffer is gone."""
        try:
            self._next_item("a version", f"{self.schedule.describe()} to evaluate", self._config.progress.limit_s)
        except DeadlineExceeded as late:
            log.info("%s", late)

    def _deal_with(self, version: PolicyVersion) -> None:
        try:
            self._evaluate(version)
        except LifeEnded:
            log.warning("evaluation of version %s ended with the learner's life; see what its next one brings", version)
            return
        except GivenUp as reason:
            log.error("%s", reason)
            self._given_up.append(str(reason))
            # A run of no steps that evaluates benchmarks is started again to go on with its samples; a training run's
            # version is gone.
            again = bool(self._benchmarks) and self._config.steps == 0
            self._writer.write(
                "evaluation_given_up",
                {"version": version.number, "epoch": version.epoch, "reason": str(reason), "last": not again},
            )
        self.schedule.settle(version)
        self._side.release(version)

    def _evaluate(self, version: PolicyVersion) -> None:
        """The held-out prompts and all benchmarks of one version, written down.

        Raises:
            GivenUp: it cannot be evaluated, or not in time.
            LifeEnded: the learner that made it is gone.
        """
        digest = self._keep(version)
        if self._prompts:
            self._evaluate_held_out(version, digest)
        if self._benchmarks:
            self._evaluate_benchmarks(version, digest)
        self._stats["evaluations"] += 1

    def _evaluate_held_out(self, version: PolicyVersion, digest: str) -> None:
        began = time.monotonic()
        passes = [
            Pass(plan=plan, pin=version, prompts=self._prompts, lines=self._lines) for plan in plans(self._config)
        ]
        for each in passes:
            self._buffer.send(*each.begin())
        self._collect(passes, began + self._config.eval.deadline_s)
        with self._timeline.busy("metrics"):
            for each in passes:
                last = each is passes[-1] and not self._benchmarks
                self._write(each, digest, time.monotonic() - began, last=last)

    def _evaluate_benchmarks(self, version: PolicyVersion, digest: str) -> None:
        """One after another in one stream of requests, so that the tail of one overlaps the head of the next."""
        folder = folder_of(self._config.run_dir, version.number)
        described = [about(asked, version, digest, self._config.model.path) for asked in self._benchmarks]
        files = [
            SampleFile(folder / f"{asked.benchmark.name}.jsonl", told)
            for asked, told in zip(self._benchmarks, described, strict=True)
        ]
        runs = [
            Collecting(
                asked, version, file, self._detokenizer, [self._router.line(each.extra) for each in asked.prompts]
            )
            for asked, file in zip(self._benchmarks, files, strict=True)
        ]
        try:
            self._collect_benchmarks(runs)
        finally:
            for file in files:
                file.close()
            # What there is of one that was given up has its figures too, and says how much of it is missing.
            results = [self._result(run, told) for run, told in zip(runs, described, strict=True) if run.file.samples]
            for result in results:
                write_result(folder, result)
            if results:
                write_page(folder)
        for result in results:
            self._writer.write("benchmark", {**_in_short(result), "last": result is results[-1]})
            log.info("version %s, %s: %s", version, result["benchmark"], _in_words(result))

    def _result(self, run: Collecting, told: Record) -> Record:
        with self._timeline.busy("metrics"):
            return result_of(run.asked, told, list(run.file.samples.values()))

    def _collect_benchmarks(self, runs: Sequence[Collecting]) -> None:
        """Keep requests under way until every benchmark has all of its samples."""
        version = runs[0].pin
        self._fill(runs)
        while missing := sum(run.missing for run in runs):
            owners = {name: run for run in runs for name in run.under_way}
            try:
                item = self._next_item(
                    "samples", f"{missing} samples of benchmarks at version {version}", self._config.eval.deadline_s
                )
                match item:
                    case Connected():  # the buffer forgot us, and what we asked
                        for run in runs:
                            run.restart()
                        self._fill(runs)
                    case Message(header={"t": "evaluated", "id": str(name)}) if name in owners:
                        before = owners[name].sampled_tokens
                        if owners[name].take(item):
                            self._fill(runs)
                        self._stats["tokens"] += owners[name].sampled_tokens - before
                    case Message(header={"t": "error", "about": "evaluate"}):
                        raise GivenUp(
                            f"the buffer refused a benchmark of version {version}: {item.header.get('message')}"
                        )
                    case _:
                        pass
                self._still(version)
            except DeadlineExceeded as late:
                self._cancel(list(owners))
                raise GivenUp(f"benchmarks of version {version}: no sample within eval.deadline_s: {late}") from late
            except (GivenUp, LifeEnded, Stopped):
                self._cancel(list(owners))
                raise

    def _fill(self, runs: Sequence[Collecting]) -> None:
        """Two requests at a time: while the longest completions of one end, the other keeps generators busy."""
        for run in runs:
            while sum(len(each.under_way) for each in runs) < REQUESTS and (request := run.next_request()):
                self._buffer.send(*request)

    def _keep(self, version: PolicyVersion) -> str:
        """The version's hash, once the learner says that it keeps the version for us."""
        self._side.want(version)
        wait = f"the learner to confirm that it keeps version {version}"
        end = time.monotonic() + self._config.weights.deadline_s
        while True:
            item = self._next_item("learner", wait, end - time.monotonic())
            if not isinstance(item, WeightsReply):
                self._still(version)
                continue
            header = item.message.header
            match header:
                case {"t": "held", "version": list(pin), "hash": str(digest)} if tuple(pin) == version:
                    return digest
                case {"t": "missing", "version": list(pin)} if tuple(pin) == version:
                    raise GivenUp(f"version {version} cannot be evaluated: the learner no longer has it")
                case {"t": "error"} if header.get("about") != "release":
                    raise GivenUp(f"version {version} cannot be evaluated: {header.get('message')}")
                case _:  # an answer to something asked before
                    continue

    def _collect(self, passes: Sequence[Pass], deadline: float) -> None:
        """Take in samples until both passes have all of theirs."""
        by_id = {each.id: each for each in passes}
        while missing := sum(each.missing for each in passes):
            version = passes[0].pin
            try:
                item = self._next_item(
                    "samples", f"{missing} samples of version {version}", deadline - time.monotonic()
                )
            except DeadlineExceeded as late:
                self._cancel([each.id for each in passes])
                raise GivenUp(f"evaluation of version {version} missed eval.deadline_s: {late}") from late
            match item:
                case Connected():  # the buffer forgot us, and what we asked
                    for each in passes:
                        self._buffer.send(*each.begin())
                    by_id = {each.id: each for each in passes}
                case Message(header={"t": "evaluated", "id": str(name)}) if name in by_id:
                    by_id[name].take(item)
                case Message(header={"t": "error", "about": "evaluate"}):
                    self._cancel([each.id for each in passes])
                    raise GivenUp(f"the buffer refused to evaluate version {version}: {item.header.get('message')}")
                case _:
                    pass
            if self.schedule.epoch != version.epoch:
                self._cancel([each.id for each in passes])
                raise LifeEnded

    def _cancel(self, ids: Sequence[str]) -> None:
        for each in ids:
            self._buffer.send({"t": "cancel_evaluation", "id": each})

    def _still(self, version: PolicyVersion) -> None:
        if self.schedule.epoch != version.epoch:
            raise LifeEnded

    def _next_item(self, activity: str, wait: str, deadline_s: float) -> object:
        """The next item, after the schedule has read its header.

        Args:
            activity: the wait's kind, for the time line.
            wait: the wait itself, with its numbers, for the text of a missed deadline.
        """
        with self._timeline.wait(activity):
            item = self._inbox.get(wait, max(0.0, deadline_s))
        message = item.welcome if isinstance(item, Connected) else item
        if isinstance(message, Message):
            header = message.header
            epoch, published = header.get("epoch"), header.get("published")
            if isinstance(epoch, int) and isinstance(published, int):
                self.schedule.saw(epoch, published, header.get("final", -1))
        return item

    def _write(self, done: Pass, digest: str, wall_s: float, *, last: bool) -> None:
        samples, shown = samples_of(done, self._detokenizer)
        metrics = evaluate(samples, done.plan.samples)
        self._writer.write(
            "evaluation",
            {
                "pass": done.plan.name,
                "version": done.pin.number,
                "epoch": done.pin.epoch,
                "hash": digest,
                **metrics.as_record(),
                "wall_s": round(wall_s, 3),
                "samples_shown": shown,
                "last": last,
            },
        )
        self._stats["tokens"] += done.tokens
        self._publish(done, metrics)

    def _publish(self, done: Pass, metrics: EvalMetrics) -> None:
        """For the live view: the newest sampled accuracy, in the next heartbeat."""
        if done.plan.name == "sampled" and metrics.accuracy is not None:
            self._stats["accuracy"] = metrics.accuracy
            self._stats["accuracy_version"] = float(done.pin.number)
        log.info(
            "version %s, %s: accuracy %s over %d problems, %d abstained",
            done.pin,
            done.plan.name,
            "unknown" if metrics.accuracy is None else f"{metrics.accuracy:.4f}",
            metrics.problems,
            metrics.abstained,
        )


def _in_short(result: Record) -> Record:
    """For evaluation.jsonl: the figures without the problems, which the result's own file has."""
    return {key: value for key, value in result.items() if key not in ("by_problem", "kind")}


def _in_words(result: Record) -> str:
    figures = ", ".join(
        f"{name} {value:.4f}"
        for name in ("accuracy", "cons_at_k", "rating", "truncated")
        if isinstance(value := result.get(name), float)
    )
    return f"{figures or 'nothing graded'} over {result['problems']} problems, {result['abstained']} abstained"
