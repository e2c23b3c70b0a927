"""The sampling role: serves the checkpoint's weights, asks for completions at that version, and writes them down.

Takes: prompts. Gives: `evaluate` requests, files of graded completions. Waits for: completions. Woken by: a message.
It stands where a learner stands in training, without a model: the weights are read from the checkpoint's files and
published once, as version 0, and every request is pinned to it. Verdicts are never waited for: more prompts are asked
as soon as completions are *graded or not* fewer than `sample.ahead`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from r1async.client import Connected, Connection, greeting
from r1async.config import Config
from r1async.config_sample import SAMPLED, ahead_of
from r1async.evaluation.passes import Pass, PassPlan
from r1async.inbox import DeadlineExceeded, Inbox, Stopped, stop_on_signals
from r1async.keys import client_keys, server_keys
from r1async.learner.link import End, Link, connect_first
from r1async.models.loading import read_tensors
from r1async.monitor.metrics import MetricsWriter, run_started
from r1async.monitor.timeline import Timeline
from r1async.reward_pools import Router
from r1async.sample.filters import Graded
from r1async.sample.identity import open_parts
from r1async.sample.parts import Parts
from r1async.sample.prompts import Asked, open_asked
from r1async.tasks.tokenizer import Detokenizer
from r1async.types import PolicyVersion, Prompt, Sampling
from r1async.weights.publisher import Publisher
from r1async.wire import Message

log = logging.getLogger(__name__)

ROLE = "sampler"
REQUESTS_AHEAD = 8
"""Requests that `sample.ahead` is divided into."""
MAX_REQUESTS = 60
"""The buffer runs 64 evaluations of one evaluator at a time."""


def main(config: Config) -> None:
    """Sample until every prompt has its completions; returns early, in good order, on SIGTERM.

    Raises:
        ConfigError: data, checkpoint or a folder of completions that cannot be used.
        DeadlineExceeded: the buffer does not answer.
    """
    parts = open_parts(config)
    asked = open_asked(config)
    inbox = Inbox()
    timeline = Timeline(ROLE, config.run_dir / "metrics" / f"{ROLE}.jsonl", started=run_started(config.run_dir))
    try:
        with stop_on_signals(inbox), Sampler(config, asked, parts, inbox, timeline) as sampler:
            try:
                sampler.run()
            finally:
                sampler.flush()
    except Stopped:
        log.info("told to end; what was sampled is written down")
    finally:
        timeline.close()


@dataclass(slots=True)
class _Open:
    """A request under way: prompts of neighbouring numbers, and those that have not all their completions."""

    request: Pass
    numbers: list[int]
    left: dict[int, int]
    """Completions that a prompt of the request still lacks."""


class Sampler:
    """The loop: `ask, take, write`."""

    def __init__(self, config: Config, asked: Asked, parts: Parts, inbox: Inbox, timeline: Timeline) -> None:
        self._config, self._asked, self._parts = config, asked, parts
        self._inbox, self._timeline = inbox, timeline
        self._router = Router(config)
        self._detokenizer = Detokenizer(Path(config.model.path), config.sampling.stop)
        self._plan = PassPlan(
            name="sampled",
            samples=config.sample.samples,
            sampling=Sampling(
                temperature=config.sample.temperature, top_p=config.sample.top_p, top_k=0,
                max_tokens=config.sampling.max_tokens,
            ),
        )  # fmt: skip
        self._done = parts.done()
        self._ahead = ahead_of(config)
        self._open: dict[str, _Open] = {}
        self._rows: list[Graded] = []
        self._flushed_at = time.monotonic()
        self._stats = {"completions": 0.0, "tokens": 0.0, "prompts_done": float(len(self._done))}
        self._pin = PolicyVersion(0, 0)
        self._began_at = time.time()
        self._first_at, self._last_at = 0.0, 0.0
        """Unix times of this life's first and last completions."""

    def __enter__(self) -> Self:
        config = self._config
        self._writer = MetricsWriter(config.run_dir / "metrics" / "samples.jsonl", run_started(config.run_dir))
        self._publisher = Publisher(
            config.endpoint("weights"), run=config.name, dtype=config.model.dtype,
            chunk_bytes=config.weights.chunk_bytes, deadline_s=config.weights.deadline_s, window=config.weights.window,
            threads=config.weights.threads, directory=config.weights_directory, keys=server_keys(config, "weights"),
        )  # fmt: skip
        self._link = connect_first(config, step=0, stats=dict, inbox=Inbox())
        self._holder: threading.Thread | None = None
        self._buffer = Connection(
            config.endpoint("rollouts"),
            greeting("evaluator", ROLE, config.name),
            self._inbox,
            stats=self._figures,
            max_message_bytes=config.buffer.max_message_bytes,
            connect_deadline_s=config.buffer.connect_deadline_s,
            keys=client_keys(config, "rollouts", "evaluator"),
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._buffer.close()
        if self._holder is not None:
            self._link.inbox.stop()
            self._holder.join()
        self._link.close()
        self._publisher.close()
        self._writer.close()

    def run(self) -> None:
        """Until every prompt has its completions, or a reason why it is not asked."""
        self._publish()
        self._buffer.wait_connected(self._config.buffer.connect_deadline_s)
        numbers = self._runs()
        self._fill(numbers)
        while self._open:
            item = self._next_item()
            if isinstance(item, Connected):
                # The buffer forgets the evaluations of a peer that it lost; what is whole here is not asked again.
                self._open.clear()
                numbers = self._runs()
            elif isinstance(item, Message):
                self._take(item)
            self._fill(numbers)
            if len(self._rows) >= self._config.sample.part_rows or self._is_late():
                self.flush()
        self.flush()
        (self._config.run_dir / SAMPLED).write_text("{}\n")

    def flush(self) -> None:
        """Everything that came, on the disk."""
        self._flushed_at = time.monotonic()
        if not self._rows:
            return
        with self._timeline.busy("write"):
            self._parts.write(self._rows)
        times = {"began_at": self._began_at, "first_at": self._first_at, "last_at": self._last_at}
        self._writer.write("life", {**self._stats, "rows": len(self._rows), **times})
        self._rows = []

    def _publish(self) -> None:
        """The checkpoint as version 0 of this life, and its keeping while we live."""
        link = self._link
        self._pin = PolicyVersion(link.epoch, 0)
        with self._timeline.busy("publish"):
            digest = self._publisher.publish(self._pin, read_tensors(self._config.model.path), retain=True)
        link.published(self._pin, digest)
        link.ask_batch(0)
        end = link.wait_batch(0)
        assert end is End.FINISHED, f"a run of no steps has no batch to train, got {end}"
        link.finish()
        self._holder = threading.Thread(target=self._hold, args=(link,), name="learner's place", daemon=True)
        self._holder.start()

    def _hold(self, link: Link) -> None:
        """Answers the buffer in the learner's place until we close."""
        try:
            link.serve(3600.0)
        except BaseException as error:
            self._inbox.fail(error)
            raise

    def _runs(self) -> Iterator[list[tuple[int, Prompt]]]:
        """Prompts that are left, in requests of neighbours: the number of a completion says what its noise is."""
        size = max(1, self._ahead // (REQUESTS_AHEAD * self._plan.samples))
        run: list[tuple[int, Prompt]] = []
        for number in range(self._asked.total):
            prompt = None if number in self._done else self._asked.prompt(number)
            if isinstance(prompt, Prompt):
                run.append((number, prompt))
            if run and (len(run) == size or not isinstance(prompt, Prompt)):
                yield run
                run = []
        if run:
            yield run

    def _fill(self, runs: Iterator[list[tuple[int, Prompt]]]) -> None:
        """Ask until enough is under way."""
        waiting = sum(sum(each.left.values()) for each in self._open.values())
        while len(self._open) < MAX_REQUESTS and waiting < self._ahead:
            run = next(runs, None)
            if run is None:
                return
            samples = self._plan.samples
            prompts = [prompt for _, prompt in run]
            lines = [self._router.line(prompt.extra) for prompt in prompts]
            request = Pass(plan=self._plan, pin=self._pin, prompts=prompts, lines=lines)
            self._buffer.send(*request.begin(first=run[0][0] * samples))
            self._open[request.id] = _Open(
                request, [number for number, _ in run], dict.fromkeys(range(len(run)), samples)
            )
            waiting += len(run) * samples

    def _take(self, message: Message) -> None:
        header = message.header
        if message.type == "error":
            raise RuntimeError(f"the buffer refused {header.get('about')!r}: {header.get('message')}")
        if message.type != "evaluated" or header["id"] not in self._open:
            return
        opened = self._open[header["id"]]
        request = opened.request
        request.take(message)
        for prompt in sorted({item[0] for item in header["items"]}):
            whole = [request.answers.get((prompt, member)) for member in range(self._plan.samples)]
            opened.left[prompt] = sum(answer is None for answer in whole)
            if not opened.left[prompt]:
                self._file(opened.numbers[prompt], [request.answers.pop((prompt, m)) for m in range(len(whole))])
                del opened.left[prompt]
        if not opened.left:
            del self._open[header["id"]]

    def _file(self, number: int, answers: list) -> None:
        """All completions of a prompt."""
        texts = self._detokenizer.texts(
            [answer.tokens.tolist() for answer in answers], [answer.finish == "stop" for answer in answers]
        )
        self._last_at = time.time()
        self._first_at = self._first_at or self._last_at
        for member, (answer, text) in enumerate(zip(answers, texts, strict=True)):
            self._rows.append(
                Graded(
                    ordinal=number, member=member, text=text, tokens=len(answer.tokens), finish=answer.finish,
                    total=answer.total, parts=dict(answer.parts), status=answer.status,
                )
            )  # fmt: skip
            self._stats["completions"] += 1
            self._stats["tokens"] += len(answer.tokens)
        self._done.add(number)
        self._stats["prompts_done"] += 1

    def _next_item(self) -> object:
        """A missed deadline is said, and the wait goes on: verdicts take as long as they take, and the connection
        itself fails if the buffer is gone."""
        left = max(0.1, self._flushed_at + self._config.sample.part_s - time.monotonic())
        wait = f"completions of {len(self._open)} requests, {len(self._done)} of {self._asked.total} prompts done"
        try:
            with self._timeline.wait("samples"):
                return self._inbox.get(wait, left)
        except DeadlineExceeded:
            return None

    def _is_late(self) -> bool:
        return time.monotonic() - self._flushed_at >= self._config.sample.part_s

    def _figures(self) -> dict[str, float]:
        return {**self._timeline.stats(), **self._stats}
