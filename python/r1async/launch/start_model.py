"""Where the start checkpoint comes from: the user's folder, or the cold start's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from r1async.config import Config


def with_start_model(config: Config, checkpoint: Path) -> Config:
    """The settings that roles see: the model is there, however it came to be."""
    return replace(
        config,
        model=replace(config.model, path=str(checkpoint)),
        cold_start=replace(config.cold_start, enabled=False),
    )
