"""`r1async eval CONFIG` of a run that is over: evaluates its exported model with roles of its own.

That is a run of no steps: the learner publishes version 0 and has nothing to train, so the version before training is
the last one too.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from r1async.config import Config


def finished_model(config: Config) -> Path | None:
    """The exported model of this config's run, if that run is over; None if it may still be going on or to come."""
    outcome, model = config.run_dir / "outcome.json", config.run_dir / "model"
    if not outcome.is_file() or not (model / "config.json").is_file():
        return None  # a launcher removes outcome.json when it begins, and writes it after summary.json
    return model if json.loads(outcome.read_text())["outcome"] == "done" else None


def evaluation_only(config: Config, model: Path) -> Config:
    """The run of no steps that evaluates `model`, in a folder beside the finished run's.

    The folder's name says which version it is of: a run that went on to more steps has another model in the same
    place, and an evaluation of the former one would pass for done.
    """
    version: int = json.loads((config.run_dir / "summary.json").read_text())["policy_version"]
    return replace(
        config,
        name=f"{config.name}-eval-{version}",
        steps=0,
        resume="auto",
        model=replace(config.model, path=str(model)),
        cold_start=replace(config.cold_start, enabled=False),
        learner=replace(config.learner, schedule="constant", warmup_steps=0),
    )
