"""The learner: trains batches, publishes weights, saves checkpoints.

Takes: batches. Gives: weight versions, steps, commits. Waits for: a batch; at the end, for the run to end.
Woken by: a message or a signal.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import torch

from r1async.config import Config, ConfigError
from r1async.inbox import Inbox, Stopped, stop_on_signals
from r1async.keys import server_keys
from r1async.learner.checkpoint import load_checkpoint, newest_checkpoint, prune, save_checkpoint
from r1async.learner.convergence import CONVERGED, Convergence, trained_steps
from r1async.learner.core import LearnerCore
from r1async.learner.distributed import Ranks, held_rows, join_ranks, leave_ranks, whole_tensors
from r1async.learner.link import End, Link, connect_first
from r1async.learner.loss import resolve_loss
from r1async.learner.publishing import PublishThread
from r1async.learner.statistics import Metrics
from r1async.models.export import export_model
from r1async.models.loading import (
    DTYPES,
    check_context,
    load_config,
    load_model,
    load_tokenizer,
    state_tensors,
)
from r1async.monitor.metrics import MetricsWriter, TensorBoard, run_started
from r1async.monitor.timeline import Timeline
from r1async.types import Batch, PolicyVersion
from r1async.weights.publisher import Publisher
from r1async.weights.shards import rank_publisher

log = logging.getLogger(__name__)

COLLECTIVE_SLACK_S = 120.0
"""Seconds beyond the wait for a batch that a rank waits for the others: one may get its share that much later."""


def main(config: Config, rank: int = 0) -> None:
    """One rank, until the run ends or a signal comes.

    Ranks meet where MASTER_ADDR and MASTER_PORT say; LOCAL_RANK picks the GPU.
    """
    torch.set_num_threads(config.learner.threads)
    ranks = join_ranks(
        rank,
        config.learner.ranks,
        local_rank=int(os.environ.get("LOCAL_RANK", rank)),
        timeout_s=config.learner.batch_deadline_s + COLLECTIVE_SLACK_S,
    )
    try:
        with Learner(config, ranks) as learner:
            learner.run()
    finally:
        leave_ranks(ranks)


class Learner:
    """One rank of the learner: a `LearnerCore` between the buffer and the weights' receivers."""

    def __init__(self, config: Config, ranks: Ranks) -> None:
        self.config = config
        self.ranks = ranks
        self.inbox = Inbox()
        name = "learner" if ranks.first else f"learner-{ranks.rank}"
        path = config.run_dir / "metrics" / f"{name}.jsonl"
        started = run_started(config.run_dir)
        self.timeline = Timeline(name, path, started=started)
        self.writer = MetricsWriter(path, started) if ranks.first else None
        self.board = TensorBoard(config.run_dir / "tensorboard") if ranks.first and config.monitor.tensorboard else None
        self.checkpoints = config.run_dir / "checkpoints"
        self.trained_tokens = 0
        self._published = -1
        self._waited_before = 0.0
        self.link: Link | None = None
        self.publisher: Publisher | None = None
        self.publishing: PublishThread | None = None
        with self.timeline.busy("load"):
            self.core = self._make_core()
            self.saved_steps = self._resume()
            self.convergence = Convergence(config.learner.converge, trained_steps(path, self.saved_steps))

    def run(self) -> None:
        """Connect, train, and end as the run or a signal wants it; a second signal ends it at once."""
        try:
            with stop_on_signals(self.inbox):
                self._run()
        except Stopped:
            log.warning(
                "stopped at version %d; the newest checkpoint has %d steps", self.core.version, self.saved_steps
            )

    def _run(self) -> None:
        link = self._connect()
        self._publish(link)
        link.ask_batch(self.core.version)
        while not isinstance(batch := self._next_batch(link), End):
            self._train(link, batch)
        if batch is End.FINISHED:
            self._finish(link)
        else:
            self._stop(link)

    def _make_core(self) -> LearnerCore:
        config = self.config
        check_context(load_config(config.model.path), config.data.max_prompt_tokens, config.sampling.max_tokens)
        model = load_model(config.model.path, attention=config.model.attention, device=self.ranks.device)
        return LearnerCore(
            model,
            resolve_loss(config.loss, config.correction, config.sampling.max_tokens),
            config.learner,
            steps=config.steps,
            publish_every=config.weights.publish_every,
            ranks=self.ranks,
            timeline=self.timeline,
        )

    def _resume(self) -> int:
        """Steps in the checkpoint that the core now goes on from; rank 0 says which.

        Raises:
            ConfigError: a checkpoint with resume=false, none with resume=true. On every rank: none waits for another.
        """
        path = newest_checkpoint(self.checkpoints)
        (step,) = self.ranks.from_first([-1 if path is None else int(path.name[5:])])
        if step < 0:
            if self.config.resume == "true":
                raise ConfigError(
                    f"resume: true, but {self.checkpoints} holds no whole checkpoint; set resume=auto to start from "
                    "step 0"
                )
            return 0
        if self.config.resume == "false":
            raise ConfigError(
                f"resume: false, but {self.checkpoints} holds a checkpoint of {step} steps; set name=OTHER, "
                "resume=auto, or remove the run's folder"
            )
        load_checkpoint(self.checkpoints / f"step-{step:06d}", self.core)
        log.info("going on from step %d", step)
        return step

    def _connect(self) -> Link:
        """Rank 0 first: it opens the epoch that the others name."""
        epoch = 0
        if self.ranks.first:
            config = self.config
            self.publisher = Publisher(
                config.endpoint("weights"), run=config.name, dtype=config.model.dtype,
                chunk_bytes=config.weights.chunk_bytes, deadline_s=config.weights.deadline_s,
                window=config.weights.window, threads=config.weights.threads,
                directory=config.weights_directory, keys=server_keys(config, "weights"),
                direct=None if config.direct_medium is None else config.weights.direct_address,
            )  # fmt: skip
            self.link = connect_first(config, step=self.saved_steps, stats=self._stats, inbox=self.inbox)
            epoch = self.link.epoch
        (epoch,) = self.ranks.from_first([epoch])
        if self.link is None:
            self.link = Link(
                self.config, self.inbox, rank=self.ranks.rank, epoch=epoch, step=self.saved_steps, stats=self._stats
            )
            self.link.connect()
        self.publishing = self._make_publishing(self.link)
        return self.link

    def _make_publishing(self, link: Link) -> PublishThread:
        weights = self.config.weights
        publisher = rank_publisher(
            self.publisher, self.ranks.publishing, self.ranks.rank, self.ranks.world,
            dtype=self.config.model.dtype, threads=weights.threads, deltas=weights.window > 0,
        )  # fmt: skip
        report = link.published if self.ranks.first else None
        return PublishThread(publisher, report, self.inbox.fail, deadline_s=weights.deadline_s)

    def _next_batch(self, link: Link) -> Batch | End:
        """This rank's share, or the same end on every rank: a rank that goes on alone would hang in a collective."""
        with self.timeline.wait("batch"):
            got = link.wait_batch(self.core.version)
            verdict = {End.STOPPED: 2, End.FINISHED: 1}[got] if isinstance(got, End) else 0
            agreed = self.ranks.most(verdict)
        return got if agreed == 0 else (End.FINISHED if agreed == 1 else End.STOPPED)

    def _train(self, link: Link, batch: Batch) -> None:
        """One part of a batch, and with the last one the step."""
        before = self.timeline.stats()
        self.core.accumulate(batch)
        self.trained_tokens += len(batch.token_ids) - int(batch.prompt_lens.sum())
        if not batch.last:
            link.ask_batch(batch.step, batch.part + 1)
            return
        metrics = self.core.update()
        metrics |= {"epoch": link.epoch, "wait_s": self._waited(before)}
        version = self.core.version
        if self.ranks.first:
            metrics[CONVERGED] = self.convergence.observe(metrics)
        link.stepped(batch.step, metrics if self.ranks.first else None)
        if version % self.config.weights.publish_every == 0 or version == self.config.steps:
            self._publish(link)
        if version % self.config.learner.checkpoint_every == 0:
            self._save(link)
        after = self.timeline.stats()
        metrics |= {f"{name}_s": _grown(before, after, f"busy_s:{name}") for name in ("publish", "checkpoint")}
        if self.publisher is not None:
            metrics |= self.publisher.figures()
        self._write(batch.step, metrics)

    def _publish(self, link: Link) -> None:
        """Hand this rank's weights to its publishing thread."""
        with self.timeline.busy("publish"):
            assert self.publishing is not None
            version = PolicyVersion(link.epoch, self.core.version)
            rows = held_rows(self.core.model, self.ranks)
            self.publishing.publish(version, rows, retain=self._evaluated(version.number))
            self.core.published()
        self._published = version.number

    def _evaluated(self, version: int) -> bool:
        """Evaluations pin the start, every `eval.every` versions, and the end; these are kept until released."""
        every = self.config.eval.every
        return version in (0, self.config.steps) or (every > 0 and version % every == 0)

    def _save(self, link: Link) -> None:
        """Checkpoint the core's version and tell the buffer; collective. The buffer's answer is not waited for."""
        with self.timeline.busy("checkpoint"):
            save_checkpoint(self.checkpoints, self.core, link.epoch)
            self.saved_steps = self.core.version
            if self.ranks.first:
                link.committed(self.core.version)
                prune(self.checkpoints, self.config.learner.keep_checkpoints, link.committed_steps)

    def _finish(self, link: Link) -> None:
        """The run's steps are done: publish, save and export the final version, then serve it until the end."""
        if self._published != self.core.version:
            self._publish(link)
        if self.saved_steps != self.core.version:
            self._save(link)
        with self.timeline.busy("export"):
            self._export()
        if self.ranks.first:
            assert self.publishing is not None
            assert self.publisher is not None
            self.publishing.wait_idle()
            self.publisher.retain(PolicyVersion(link.epoch, self.core.version))
            link.wait_committed(self.core.version)
            link.finish()
        with self.timeline.wait("end of the run"):
            link.serve(self.config.progress.limit_s)

    def _export(self) -> None:
        """The model as a Hugging Face directory, in the dtype that generators served; collective."""
        tensors = whole_tensors(state_tensors(self.core.model))
        if self.ranks.first:
            tokenizer = load_tokenizer(self.config.model.path)
            dtype = DTYPES[self.config.model.dtype]
            export_model(self.core.model, tokenizer, self.config.run_dir / "model", tensors=tensors, dtype=dtype)

    def _stop(self, link: Link) -> None:
        """A signal: one checkpoint, so that nothing trained is lost."""
        if self.saved_steps != self.core.version:
            self._save(link)
        if self.ranks.first:
            link.wait_committed(self.saved_steps, deadline_s=4.0)

    def _write(self, step: int, metrics: Metrics) -> None:
        if self.writer is None:
            return
        with self.timeline.busy("metrics"):
            self.writer.write("step", {**metrics, "staleness/histogram": self.core.staleness})
            if self.publisher is not None and self._published == self.core.version:
                self.writer.write("push", self.publisher.report())
            if self.board is not None:
                self.board.scalars(step, metrics)

    def _stats(self) -> Mapping[str, float]:
        """Called in the connection's thread."""
        return {**self.timeline.stats(), "tokens": self.trained_tokens, "version": self.core.version}

    def _waited(self, before: Mapping[str, float]) -> float:
        """Seconds spent waiting for the batch that is being trained."""
        total = before.get("wait_s:batch", 0.0)
        waited, self._waited_before = total - self._waited_before, total
        return waited

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Also says bye: leaving cleanly frees what the buffer keeps for us at once."""
        if self.publishing is not None:
            self.publishing.close()
        if self.link is not None:
            self.link.close()
        if self.publisher is not None:
            self.publisher.close()
        self.timeline.close()
        if self.writer is not None:
            self.writer.close()
        if self.board is not None:
            self.board.close()


def _grown(before: Mapping[str, float], after: Mapping[str, float], name: str) -> float:
    return after.get(name, 0.0) - before.get(name, 0.0)
