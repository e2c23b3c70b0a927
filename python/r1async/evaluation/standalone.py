"""`r1async eval CONFIG` without a run to join: evaluates a model directory, or the model of a run that is over.

That is a run of no steps with roles of its own: the learner publishes version 0 and has nothing to train, so the
version before training is the last one too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from r1async.config import Config, ConfigError, load_config
from r1async.evaluation.result import folder_of, read_results
from r1async.evaluation.table import print_results
from r1async.files import write_atomic
from r1async.launch.folders import is_used

MODEL = "model="
"""`r1async eval CONFIG model=DIR`: short for model.path, of a model that no run of this config made."""
NO_TRAINING = ("cold_start.enabled=false", "steps=0", "learner.schedule=constant", "learner.warmup_steps=0")
"""What makes a run of no steps of any settings."""
ASKED = "asked.txt"
"""Says what the folder of `--out` is an evaluation of."""


def offline_config(path: Path, overrides: Sequence[str], out: Path | None = None) -> Config | None:
    """The run of no steps that evaluates `model=DIR`; None if the command line names no model.

    Args:
        path: the settings.
        overrides: `key=value`, and `model=DIR`.
        out: the evaluation's folder; None: one in `runs_dir`, named after what is evaluated.

    Raises:
        ConfigError: the settings, no such model, or `out` holds something else.
    """
    named = [each.removeprefix(MODEL) for each in overrides if each.startswith(MODEL)]
    if not named:
        return None
    model = Path(named[-1])
    if not (model / "config.json").is_file():
        raise ConfigError(f"model: {model} has no config.json; give the folder of a Hugging Face causal LM")
    others = [each for each in overrides if not each.startswith(MODEL)]
    config = load_config(path, [*NO_TRAINING, *others, f"model.path={model}"])
    asked = _fingerprint(model, config)
    if out is None:
        return _patient(replace(config, name=f"{config.name}-eval-{model.resolve().name}-{asked}"))
    _claim(out, asked)
    return _patient(replace(config, runs_dir=str(out.parent), name=out.name))


def _claim(out: Path, asked: str) -> None:
    """Marks the folder as that of this evaluation: results of another would pass for this one's."""
    mark = out / ASKED
    former = mark.read_text().strip() if mark.is_file() else None
    if former is None and is_used(out):
        raise ConfigError(f"--out: {out} holds a run that is no evaluation of this kind; name another folder")
    if former not in (None, asked):
        raise ConfigError(
            f"--out: {out} holds an evaluation of other weights or other questions; remove it, or name another"
        )
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(mark, f"{asked}\n".encode())


def _fingerprint(model: Path, config: Config) -> str:
    """Of the weights as files, and of all that decides what is asked of them: another one is another folder, or an
    evaluation of something else would pass for done. Benchmarks and data of one's own count as files too."""
    named = [Path(each) for each in (*config.eval.benchmarks, *config.eval.data.values())]
    inside = [each for path in named if path.is_dir() for each in sorted(path.rglob("*"))]
    paths = [each for each in (*sorted(model.glob("*.safetensors")), *named, *inside) if each.is_file()]
    files = [(each.name, each.stat().st_size, each.stat().st_mtime_ns) for each in paths]
    asked = [asdict(config.eval), asdict(config.data), asdict(config.reward), config.sampling.max_tokens, config.seed]
    return hashlib.sha256(repr([files, asked]).encode()).hexdigest()[:8]


def finished_model(config: Config) -> Path | None:
    """The exported model of this config's run, if that run is over; None if it may still be going on or to come."""
    outcome, model = config.run_dir / "outcome.json", config.run_dir / "model"
    if not outcome.is_file() or not (model / "config.json").is_file():
        return None  # a launcher removes outcome.json when it begins, and writes it after summary.json
    return model if json.loads(outcome.read_text())["outcome"] == "done" else None


def evaluation_only(config: Config, model: Path) -> Config:
    """The run of no steps that evaluates `model`, in a folder beside the finished run's.

    The folder's name says which version it is of: a run that went on to more steps has another model in the same
    place, and an evaluation of the former one would pass for done. With benchmarks it also says what is asked: other
    ones, or another protocol, would find the version settled and show the former figures.
    """
    version: int = json.loads((config.run_dir / "summary.json").read_text())["policy_version"]
    asked = f"-{_fingerprint(model, config)}" if config.eval.benchmarks else ""
    return _patient(
        replace(
            config,
            name=f"{config.name}-eval-{version}{asked}",
            steps=0,
            resume="auto",
            model=replace(config.model, path=str(model)),
            cold_start=replace(config.cold_start, enabled=False),
            learner=replace(config.learner, schedule="constant", warmup_steps=0),
        )
    )


def _patient(config: Config) -> Config:
    """With nothing to train, a rollout may take as long as the evaluation: its deadline is for training's groups."""
    if not config.eval.benchmarks:
        return config
    group = replace(config.group, rollout_deadline_s=max(config.group.rollout_deadline_s, config.eval.deadline_s))
    return replace(config, group=group, eval=replace(config.eval, generator="shared"))


def evaluate_offline(config: Config) -> int:
    """Sees the evaluation through, prints its table; returns the exit code."""
    from r1async.launch.local import run

    code = run(config)
    folder = folder_of(config.run_dir, 0)
    if config.eval.benchmarks and any(folder.glob("*.json")):
        results = read_results(folder)
        print_results([results[name] for name in config.eval.benchmarks if name in results])
        print(f"samples to read: {folder / 'index.html'}; figures: {folder}/*.json")
    return code
