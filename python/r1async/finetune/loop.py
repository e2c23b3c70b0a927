"""The loop of a fine-tuning rank: examples, step, checkpoint, export. Killed anywhere, the same command goes on.

Takes: a job. Gives: checkpoints, metrics, `model/`, summary.json, report.html. Waits for: the other ranks.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType

import torch
from transformers import PreTrainedModel

from r1async.files import write_json
from r1async.finetune.adapters import add_adapters, merged
from r1async.finetune.core import Finetuner
from r1async.finetune.job import Job, make_stores, open_stores
from r1async.finetune.objectives import Sequences
from r1async.finetune.plan import Plan, micro_batches
from r1async.finetune.progress import Progress
from r1async.finetune.store import Store
from r1async.learner.checkpoint import load_checkpoint, newest_checkpoint, prune, save_checkpoint
from r1async.learner.distributed import Ranks, whole_tensors
from r1async.learner.statistics import Metrics
from r1async.models.export import export_model
from r1async.models.forward import has_varlen_attention
from r1async.models.loading import DTYPES, state_tensors
from r1async.monitor.metrics import MetricsWriter, TensorBoard, run_started

log = logging.getLogger(__name__)

STOPPED = {signal.SIGINT: 130, signal.SIGTERM: 143}


class Loop:
    """One rank of a job in a run's folder that is ready for it."""

    def __init__(self, job: Job, ranks: Ranks, run_dir: Path) -> None:
        self.job, self.ranks, self.run_dir = job, ranks, run_dir
        config, train = job.config, job.config.train
        if ranks.first:
            make_stores(job, run_dir / "data")
        ranks.meet()
        self.trained, self.held_out = open_stores(job, run_dir / "data")
        data = config.data
        self.plan = Plan(
            examples=len(self.trained), batch_size=train.batch_size, epochs=train.epochs, max_steps=train.steps,
            seed=config.seed, shuffle=data.shuffle,
        )  # fmt: skip
        model = job.make_model(ranks.device)
        self.adapted = add_adapters(model, config.lora, config.seed) if config.lora.rank else None
        self._padded = job.width == 2 or not has_varlen_attention(model)
        self.core = Finetuner(model, job.objective, train, steps=self.plan.steps, ranks=ranks)
        self.checkpoints = run_dir / "checkpoints"
        self.saved = self._resume()
        started = run_started(run_dir)
        self.writer = MetricsWriter(run_dir / "metrics" / f"{job.kind}.jsonl", started) if ranks.first else None
        self.board = TensorBoard(run_dir / "tensorboard") if ranks.first and config.monitor.tensorboard else None
        self.progress = Progress(job.kind, self.plan.steps, config.monitor, shown=ranks.first)
        self._signal = 0

    def run(self) -> int:
        """Until all steps are done or a signal comes; the exit code."""
        with self._signals():
            if self.core.version == 0:
                self._look()
            while self.core.version < self.plan.steps:
                self._step()
                if stopped := self.ranks.most(self._signal):
                    self._save()
                    self.progress.say(f"stopped after step {self.core.version}; the same command goes on from there")
                    return STOPPED[signal.Signals(stopped)]
            if self.saved != self.core.version:
                self._save()
            self._export()
        return 0

    def close(self) -> None:
        self.progress.close()
        for each in (self.writer, self.board):
            if each is not None:
                each.close()

    def _resume(self) -> int:
        path = newest_checkpoint(self.checkpoints)
        (step,) = self.ranks.from_first([0 if path is None else int(path.name[5:])])
        if step:
            load_checkpoint(self.checkpoints / f"step-{step:06d}", self.core)
            log.info("going on from step %d", step)
        return step

    def _step(self) -> None:
        step, train = self.core.version, self.job.config.train
        began = time.perf_counter()
        examples = self.plan.examples_of(step)
        metrics = self.core.step(self._passes(self.trained, examples.tolist()))
        tokens = int(self.trained.lengths[examples].sum())
        seconds = time.perf_counter() - began
        self._write(
            "step",
            metrics | {"step": step, "epoch": (step + 1) / self.plan.steps_per_epoch, "examples": len(examples),
                       "tokens": tokens, "step_s": seconds, "tokens_per_s": tokens / seconds},
        )  # fmt: skip
        self.progress.step(step + 1, metrics["loss"], metrics["lr"], tokens, seconds)
        done = self.core.version
        last = done == self.plan.steps
        if done % train.checkpoint_every == 0 and not last:
            self._save()
        if last or (train.eval_every and done % train.eval_every == 0):
            self._look()

    def _look(self) -> None:
        """The held-out examples, where there are any; collective."""
        if not len(self.held_out):
            return
        sums, weight = dict[str, float](), 0.0
        size = self.job.config.train.batch_size
        for start in range(0, len(self.held_out), size):
            examples = list(range(start, min(start + size, len(self.held_out))))
            means, count = self.core.look(self._passes(self.held_out, examples))
            weight += count
            sums = {name: sums.get(name, 0.0) + value * count for name, value in means.items()}
        self._write("held_out", {"step": self.core.version} | {name: value / weight for name, value in sums.items()})
        told = ", ".join(f"{name} {value / weight:.4f}" for name, value in sums.items() if name != "reward")
        self.progress.say(f"held out, after {self.core.version} steps: {told}")

    def _passes(self, store: Store, examples: list[int]) -> list[Sequences]:
        """This rank's forward passes."""
        shares = micro_batches(
            examples, store.lengths, ranks=self.ranks.world, tokens=self.job.config.train.micro_batch_tokens,
            padded=self._padded,
        )  # fmt: skip
        return [[each for i in one for each in store.sequences(i)] for one in shares[self.ranks.rank]]

    def _save(self) -> None:
        save_checkpoint(self.checkpoints, self.core, epoch=1)
        self.saved = self.core.version
        if self.ranks.first:
            prune(self.checkpoints, self.job.config.train.keep_checkpoints, self.saved)

    def _export(self) -> None:
        """The model as a Hugging Face directory, adapters merged into it; collective."""
        job, model = self.job, self.core.model
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        tensors = {name: t for name, t in state_tensors(model).items() if self.adapted is None or name in trained}
        tensors = whole_tensors(tensors)
        if not self.ranks.first:
            return
        if self.adapted is not None:
            fresh = add_adapters(job.make_model(torch.device("cpu")), job.config.lora, job.config.seed)
            # A reward model's adapters say nothing without its head, which is no adapter.
            model = merged(fresh, tensors, self.run_dir / "adapter" if job.kind == "sft" else None)
            tensors = state_tensors(model)
        self._write_model(model, tensors)

    def _write_model(self, model: PreTrainedModel, tensors: Mapping[str, torch.Tensor]) -> None:
        dtype = DTYPES[self.job.config.model.dtype]
        folder = export_model(
            model, self.job.renderer.tokenizer, self.run_dir / "model", tensors=tensors, dtype=dtype,
            beside={"r1async.json": self.job.beside},
        )  # fmt: skip
        self.progress.say(f"model: {folder}")

    def _write(self, kind: str, fields: Metrics) -> None:
        if self.writer is not None:
            self.writer.write(kind, fields)
        if self.board is not None:
            step = int(fields["step"])
            self.board.scalars(step, {f"{kind}/{name}": value for name, value in fields.items() if name != "step"})

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """The first signal ends the run after the step under way and a checkpoint; another one at once."""

        def note(number: int, frame: FrameType | None) -> None:
            if self._signal:
                raise SystemExit(STOPPED[signal.Signals(number)])
            self._signal = number

        former = {number: signal.signal(number, note) for number in STOPPED}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)


def accounts(loop: Loop) -> dict[str, object]:
    """What became of the rows, for summary.json."""
    return {"trained": asdict(loop.trained.account), "held_out": asdict(loop.held_out.account)}


def write_outcome(run_dir: Path, outcome: str) -> None:
    write_json(run_dir / "outcome.json", {"outcome": outcome})
