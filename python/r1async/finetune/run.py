"""From settings to a finished run folder: who may use it, whether it goes on, its ranks, and what is left."""

from __future__ import annotations

import json
import os
import select
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from r1async.config import ConfigError
from r1async.config_finetune import FinetuneConfig, RewardModelConfig, SftConfig
from r1async.files import write_atomic, write_json
from r1async.finetune.job import Job, keys, reward_model_job, sft_job
from r1async.finetune.loop import Loop, accounts, write_outcome
from r1async.finetune.report import summarize, write_report
from r1async.launch.folders import FolderLock
from r1async.launch.lifeline import Lifeline
from r1async.launch.roles import free_port, rank_environment
from r1async.launch.supervise import Role, Signals, Supervisor
from r1async.learner.checkpoint import newest_checkpoint
from r1async.learner.distributed import Ranks, join_ranks, leave_ranks
from r1async.settings import to_yaml
from r1async.tasks.file import digest_of

IDENTITY = "identity.json"
END_S = 60.0
"""Seconds that ranks get for their checkpoint after a signal; then they are killed."""


def finetune(config: SftConfig | RewardModelConfig, arguments: Sequence[str]) -> int:
    """Run a job in this process, or as one of its ranks, or start its ranks and see them through.

    Args:
        arguments: of the command line, with which ranks are started.

    Returns:
        The exit code: 0 done, 130 or 143 ended by a signal with its state saved.

    Raises:
        ConfigError: a mistake in settings, data or model; or a folder that holds another run.
    """
    if "RANK" not in os.environ and config.train.ranks > 1:
        with _Folder(config):
            return _start_ranks(config, arguments)
    torch.set_num_threads(config.train.threads)
    ranks = join_ranks(
        int(os.environ.get("RANK", "0")),
        int(os.environ.get("WORLD_SIZE", "1")),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        timeout_s=config.train.rank_deadline_s,
    )
    try:
        if ranks.world > 1:
            return _rank(config, ranks)
        with _Folder(config):
            return _rank(config, ranks)
    finally:
        leave_ranks(ranks)


class _Folder(FolderLock):
    """The run's folder, ours while the block lasts."""

    def __init__(self, config: FinetuneConfig) -> None:
        super().__init__(config.run_dir)

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        self.close()


def _rank(config: SftConfig | RewardModelConfig, ranks: Ranks) -> int:
    job = sft_job(config) if isinstance(config, SftConfig) else reward_model_job(config)
    identity = _identity(job)
    if ranks.first:
        _begin(job, identity)
    ranks.meet()
    if _is_done(config.run_dir):
        if ranks.first:
            print(f"{job.kind}: {config.run_dir} is done already: {config.run_dir / 'model'}", flush=True)
        return 0
    wall, cpu = time.perf_counter(), time.process_time()
    loop = Loop(job, ranks, config.run_dir)
    try:
        code = loop.run()
    finally:
        loop.close()
    if ranks.first and code == 0:
        spent = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
        _finish(loop, spent)
    return code


def _begin(job: Job, identity: dict[str, object]) -> None:
    """Refuses a folder that holds another run, then writes down what this one is."""
    run_dir, resume = job.config.run_dir, job.config.resume
    known = run_dir / IDENTITY
    if known.is_file():
        if resume == "false":
            raise ConfigError(f"resume: false, but {run_dir} holds a run already; set name=OTHER or remove it")
        former = json.loads(known.read_text())
        wrong = [key for key in identity if former.get(key) != identity[key]]
        if wrong:
            told = "; ".join(f"{key} was {former.get(key)!r} and is {identity[key]!r}" for key in wrong)
            raise ConfigError(f"name: {run_dir} holds another run: {told}. Set name=OTHER, or remove it")
    if resume == "true" and newest_checkpoint(run_dir / "checkpoints") is None:
        raise ConfigError(
            f"resume: true, but {run_dir} holds no whole checkpoint; set resume=auto to start from step 0"
        )
    write_json(known, identity)
    write_atomic(run_dir / "config.yaml", to_yaml(job.config).encode())


def _identity(job: Job) -> dict[str, object]:
    """What a run that goes on shares with its former life: all that decides which weights come out."""
    config = job.config
    model = Path(config.model.path)
    sizes = {path.name: path.stat().st_size for path in sorted(model.glob("*.safetensors"))}
    trained, held_out = keys(job)
    train = asdict(config.train)
    free = ("checkpoint_every", "keep_checkpoints", "eval_every", "rank_deadline_s", "threads", "ranks")
    return {
        "kind": job.kind, "data": trained, "held_out": held_out, "shuffle": config.data.shuffle, "seed": config.seed,
        "model.path": config.model.path, "model": {"config": digest_of(model / "config.json"), "weights": sizes},
        "dtype": config.model.dtype, "lora": {**asdict(config.lora), "targets": list(config.lora.targets)},
        **{f"train.{name}": list(v) if isinstance(v, tuple) else v for name, v in train.items() if name not in free},
    }  # fmt: skip


def _is_done(run_dir: Path) -> bool:
    path = run_dir / "outcome.json"
    return path.is_file() and json.loads(path.read_text())["outcome"] == "done"


def _finish(loop: Loop, spent: dict[str, float]) -> None:
    run_dir, job = loop.run_dir, loop.job
    summary = summarize(run_dir, job.kind) | {
        "name": job.config.name, "seed": job.config.seed, "steps": loop.plan.steps, "rows": accounts(loop),
        "data": job.config.data.path, "model": job.config.model.path, "weights_sha256": weights_hash(run_dir / "model"),
        **{key: round(value, 2) for key, value in spent.items()},
    }  # fmt: skip
    write_json(run_dir / "summary.json", summary)
    report = write_report(run_dir, summary, to_yaml(job.config))
    write_outcome(run_dir, "done")
    if job.config.monitor.terminal != "quiet":
        print(f"report: {report}   summary: {run_dir / 'summary.json'}", flush=True)


def weights_hash(model_dir: Path) -> str:
    """SHA-256 of the weights as written."""
    files = sorted(model_dir.glob("*.safetensors"))
    return digest_of(files[0]) if len(files) == 1 else digest_of(model_dir)


def _start_ranks(config: SftConfig | RewardModelConfig, arguments: Sequence[str]) -> int:
    """One process a rank on this machine; when one fails, all end."""
    world, port = config.train.ranks, free_port()
    roles = [
        Role(
            name=f"rank-{rank}", kind="rank", arguments=tuple(arguments),
            environment=rank_environment(rank, world, port, threads=config.train.threads),
        )
        for rank in range(world)
    ]  # fmt: skip
    lifeline = Lifeline()
    with Signals() as signals:
        supervisor = Supervisor(lifeline, config.run_dir / "logs")
        for role in roles:
            supervisor.start(role, own_output=role is not roles[0])
        try:
            return _see_through(supervisor, signals)
        finally:
            supervisor.kill(supervisor.running)
            lifeline.close()


def _see_through(supervisor: Supervisor, signals: Signals) -> int:
    """Until all ranks have ended: the first exit code that is not 0 is ours, and ends the others."""
    code, deadline = 0, None
    while supervisor.running:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        select.select([signals], [], [], left)
        signals.drain()
        if signals.requests:
            number = signals.requests.popleft()
            if deadline is not None:
                supervisor.kill(supervisor.running)
            supervisor.terminate(supervisor.running)
            code, deadline = code or 128 + number, deadline or time.monotonic() + END_S
        for each in supervisor.reap():
            if each.code and not code:
                print(f"r1async: {each}; its log: {supervisor.log(each.role)}", file=sys.stderr, flush=True)
                code = 2 if each.code == 2 else 1
            if each.code and deadline is None:
                # The others wait for it in a collective that will never end.
                supervisor.kill(supervisor.running)
        if deadline is not None and time.monotonic() >= deadline:
            supervisor.kill(supervisor.running)
    return code
