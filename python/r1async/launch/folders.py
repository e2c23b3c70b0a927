"""The run's folder: who may use it, what is in it from before, and where a resume goes on."""

from __future__ import annotations

import fcntl
import json
import os
import re
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from r1async.config import Config, ConfigError, has_journal, ipc_dir, load_config
from r1async.files import write_atomic, write_json
from r1async.settings import to_yaml

LIFE = (
    "config.yaml", "cold_start.yaml", "cold_start.json", "start_model", "started", "epoch", "logs", "metrics",
    "tensorboard", "checkpoints", "journal", "model", "evaluation.jsonl", "evaluations", "audit.json", "summary.json",
    "report.html",
)  # fmt: skip
"""What one life of a run leaves in its folder. A sweep's points may lie in there too, and stay."""

FIXED = (
    "seed", "group.group_size", "model.dtype", "data.task", "data.path", "data.prompt_key", "data.answer_key",
    "data.template", "data.epochs", "data.shuffle", "data.slow_share", "data.slow_path", "reward.think_prefilled",
)  # fmt: skip
"""Settings that a resumed run shares with its former life: the ledger's rollouts are numbered by them, and its prompts
are made by them."""

_STEP = re.compile(r"step-(\d+)")


@dataclass(frozen=True, slots=True)
class Start:
    """How a run begins: anew, or where its journal ends."""

    resumed: bool = False
    step: int = 0
    """Steps in the learner's newest whole checkpoint."""
    changed: tuple[str, ...] = ()
    """Settings that differ from the former life's, as sentences."""


class FolderLock:
    """Keeps a second launcher out of the folder; the kernel lets go when the process ends.

    Raises:
        ConfigError: another launcher runs there.
    """

    def __init__(self, run_dir: Path) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        self._file: TextIO = (run_dir / "lock").open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            owner = self._file.read().strip() or "unknown"
            self._file.close()
            raise ConfigError(
                f"name: {run_dir} is in use by another r1async (process {owner}); end it, or set name=OTHER"
            ) from None
        self._file.truncate(0)
        self._file.write(f"{os.getpid()}\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def prepare(config: Config) -> Start:
    """Decides between a fresh start and a resume, and clears the folder for the one chosen.

    Raises:
        ConfigError: a used folder with resume=false, nothing to resume with resume=true, or settings that a
            resumed run cannot change.
    """
    run_dir = config.run_dir
    if config.resume == "false" and is_used(run_dir):
        raise ConfigError(
            f"resume: false, but {run_dir} holds a run already; set name=OTHER, resume=auto, or remove it"
        )
    if is_used(run_dir) and has_journal(run_dir):
        return Start(True, newest_step(run_dir), _changes(config, config_path(run_dir)))
    if config.resume == "true":
        raise ConfigError(f"resume: true, but {run_dir} holds no journal; set resume=auto to start from step 0")
    if is_used(run_dir):
        _archive(run_dir)
    return Start()


def is_used(run_dir: Path) -> bool:
    return config_path(run_dir).exists()


def newest_step(run_dir: Path) -> int:
    """Steps in the learner's newest whole checkpoint; 0 if there is none."""
    folder = run_dir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return max((int(match[1]) for name in names if (match := _STEP.fullmatch(name))), default=0)


def _archive(run_dir: Path) -> None:
    """Moves a former life that kept no journal out of the way of the new one's figures."""
    target = _unused(run_dir / "attempts" / "1")
    target.mkdir(parents=True)
    for name in LIFE:
        if (run_dir / name).exists():
            (run_dir / name).rename(target / name)


def _unused(path: Path) -> Path:
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}.{number}")
    return candidate


def _changes(config: Config, former_path: Path) -> tuple[str, ...]:
    former = flat(load_config(former_path))
    now = flat(config)
    if config.cold_start.enabled:  # the former life's file names the model that its cold start made
        now["model.path"] = former["model.path"]
        now["cold_start.enabled"] = former["cold_start.enabled"]
    refused = [key for key in FIXED if now[key] != former[key]]
    if now["model.path"] != former["model.path"]:
        refused.append("model.path")
    if refused:
        raise ConfigError(
            "\n".join(
                f"{key}: a resumed run keeps {former[key]!r}, got {now[key]!r}; set name=OTHER for a new run"
                for key in refused
            )
        )
    return tuple(
        f"{key} was {former[key]!r}, is now {now[key]!r}" for key in now if now[key] != former[key] and key != "resume"
    )


def flat(config: Config) -> dict[str, object]:
    """Every setting under its full key."""
    from r1async.checks import value_of
    from r1async.settings import all_fields

    return {key: value_of(config, key) for key, _ in all_fields()}


def config_path(run_dir: Path) -> Path:
    """Where `write_config` writes."""
    return run_dir / "config.yaml"


def write_config(config: Config) -> None:
    """The settings that roles see, in the run's folder.

    `resume` is auto there: `prepare` has decided it for the whole run, and a learner that is started again within the
    run goes on from the run's own checkpoint, whatever the user wanted of the folder.
    """
    write_atomic(config_path(config.run_dir), to_yaml(replace(config, resume="auto")).encode())


def make_ipc_dir(config: Config) -> None:
    """Makes the folder of the run's ipc sockets; others on this machine may not enter it.

    Raises:
        ConfigError: the folder belongs to somebody else, who could sit between the roles.
    """
    folder = ipc_dir(config.run_dir)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode):
        raise ConfigError(f"endpoints: {folder} belongs to another user; set TMPDIR to a folder of your own")
    folder.chmod(0o700)


def remove_ipc_dir(config: Config) -> None:
    folder = ipc_dir(config.run_dir)
    if folder.is_dir():
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    kind: str
    """done, interrupted, failed, mistake or stalled."""
    exit_code: int
    message: str = ""

    @property
    def done(self) -> bool:
        return self.kind == "done"


def write_outcome(config: Config, outcome: Outcome) -> None:
    record = {
        "outcome": outcome.kind,
        "exit_code": outcome.exit_code,
        "message": outcome.message,
        "steps": config.steps,
    }
    write_json(config.run_dir / "outcome.json", record)


def is_done(config: Config) -> bool:
    """Whether the folder holds this very run, finished: same settings, all steps, evaluations and summary."""
    run_dir = config.run_dir
    outcome, summary, former = run_dir / "outcome.json", run_dir / "summary.json", config_path(run_dir)
    if not (outcome.is_file() and summary.is_file() and former.is_file()):
        return False
    if json.loads(outcome.read_text())["outcome"] != "done":
        return False
    ours, theirs = flat(config), flat(load_config(former))
    own_model = {"model.path", "cold_start.enabled"} if config.cold_start.enabled else set()
    harmless = own_model | {
        "resume",
        "security.keys",
        "monitor.terminal",
        "monitor.interval_s",
        "progress.limit_s",
        "progress.end_s",
    }
    return all(ours[key] == theirs[key] for key in ours if key not in harmless)
