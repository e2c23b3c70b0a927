"""Ranges that settings are held to."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from `low` to `high`; `above` leaves `low` itself out."""

    low: float
    high: float = math.inf
    above: bool = False

    def holds(self, value: float) -> bool:
        return math.isfinite(value) and (value > self.low if self.above else value >= self.low) and value <= self.high

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"above {_number(self.low)}" if self.above else f"at least {_number(self.low)}"
        if self.above:
            return f"above {_number(self.low)} and at most {_number(self.high)}"
        return f"{_number(self.low)} to {_number(self.high)}"


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else f"{value:g}"


COUNT = Range(1, 1_000_000)
MAYBE = Range(0, 1_000_000_000)
SECONDS = Range(0, 30 * 86400, above=True)
SHARE = Range(0, 1)
POSITIVE = Range(0, above=True)
