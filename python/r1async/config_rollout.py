"""Settings of rollouts of several turns, `rollout`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutConfig:
    tool: Literal["none", "shell"] = "none"
    """none: a completion is one turn. shell: a session on the repository of the row's `instance_id`; limits and files
    are those of `reward.swe`."""
    observation: str = "\n<observation>\n{observation}</observation>\n"
    """Text between two turns; {observation} becomes what the tool says. A chat model wants its own marks here."""
    environments: int = 8
    """Environments of one generator that work at a time; the others wait for their turn."""
