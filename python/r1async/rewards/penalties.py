"""Penalties by length: numbers from -1 to 0 that a reward adds by their weights."""

from __future__ import annotations


def overlong(num_tokens: int, *, longest: int, cache: int) -> float:
    """DAPO's soft overlong punishment.

    Args:
        num_tokens: of the completion.
        longest: L_max, tokens at which the punishment is full: as a rule those at which sampling ends.
        cache: L_cache, tokens before that over which it grows; above 0.

    Returns:
        0 up to ``longest - cache`` tokens, -1 from `longest` on, linear in between.

    Source: DAPO (arXiv 2503.14476), eq. 13.
    """
    return max(-1.0, min(0.0, (longest - cache - num_tokens) / cache))
