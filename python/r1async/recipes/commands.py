"""The commands that may be a stage, and what each leaves in its folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


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


def _check_run(path: Path) -> None:
    from r1async.config import load_config

    load_config(path)


COMMANDS: Mapping[str, Command] = {
    each.name: each
    for each in (
        Command(name="make", takes_file=False),
        Command(
            name="run",
            outputs={
                "model": "model",
                "summary": "summary.json",
                "evaluation": "evaluation.jsonl",
                "metrics": "metrics",
                "report": "report.html",
                "folder": ".",
            },
            check=_check_run,
        ),
    )
}
