"""The commands that may be a stage, and what each leaves in its folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from r1async.settings import Tree


def _by_settings(settings: Tree, folder: Path) -> tuple[str, ...]:
    return (f"runs_dir={folder.parent}", f"name={folder.name}")


def _by_options(settings: Tree, folder: Path) -> tuple[str, ...]:
    """An evaluation is of a model, whoever made it."""
    model = settings["model"]
    assert isinstance(model, dict), "the check has read it"
    return (f"model={model['path']}", "--out", str(folder))


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    name: str
    """As on the command line and as a stage's key."""
    outputs: Mapping[str, str] = field(default_factory=dict)
    """Name and place, in the job's folder, of what it makes."""
    takes_file: bool = True
    """Whether it takes a settings file; else a `module:function` with arguments."""
    check: Callable[[Path], None] = lambda path: None
    """Reads the job's settings; raises ConfigError for a mistake in them."""
    words: Callable[[Tree, Path], tuple[str, ...]] = _by_settings
    """What follows the settings file on the command line, from the settings and the job's folder."""


def _check_run(path: Path) -> None:
    from r1async.config import load_config

    load_config(path)


def _check_sample(path: Path) -> None:
    from r1async.config import ConfigError, load_config
    from r1async.config_sample import sample_problems

    if found := sample_problems(load_config(path)):
        raise ConfigError("\n".join(found))


def _check_eval(path: Path) -> None:
    from r1async.config import ConfigError, load_config
    from r1async.evaluation.standalone import NO_TRAINING

    if not load_config(path, NO_TRAINING).eval.benchmarks:
        raise ConfigError("eval.benchmarks: an eval stage needs one; held-out prompts alone are a run with steps: 0")


def _check_sft(path: Path) -> None:
    from r1async.config_finetune import sft_config

    sft_config(path, [])


def _check_reward_model(path: Path) -> None:
    from r1async.config_finetune import reward_model_config

    reward_model_config(path, [])


_TRAINED = {
    "folder": ".", "model": "model", "summary": "summary.json", "metrics": "metrics", "report": "report.html",
}  # fmt: skip

COMMANDS: Mapping[str, Command] = {
    each.name: each
    for each in (
        Command(name="make", takes_file=False),
        Command(name="run", outputs={**_TRAINED, "evaluation": "evaluation.jsonl"}, check=_check_run),
        Command(name="sft", outputs=_TRAINED, check=_check_sft),
        Command(name="reward-model", outputs=_TRAINED, check=_check_reward_model),
        Command(
            name="eval",
            outputs={"folder": ".", "results": "evaluations/v0", "page": "evaluations/v0/index.html"},
            check=_check_eval,
            words=_by_options,
        ),
        Command(name="sample", outputs={"folder": ".", "data": "data", "card": "card.json"}, check=_check_sample),
    )
}
