"""The end of rejection sampling: the data set and its card."""

from __future__ import annotations

import sys

from r1async.config import Config
from r1async.sample.card import make_card, write_card
from r1async.sample.identity import open_parts
from r1async.sample.prompts import open_asked
from r1async.sample.select import select


def finish(config: Config) -> int:
    """Select from the completions on disk; a selection that was made of the same settings is made again, the same.

    Returns:
        The exit code: 1 for a data set without rows, which nobody could read.
    """
    asked, parts = open_asked(config), open_parts(config)
    folder = config.run_dir / "data"
    account = select(config, asked, parts, folder)
    card = make_card(config, asked, account, folder)
    path = write_card(config.run_dir, card)
    if not card["rows"]:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in account.completions.most_common())
        print(f"r1async: no completion was kept ({reasons}); {path} says more", file=sys.stderr, flush=True)
        return 1
    if config.monitor.terminal != "quiet":
        told = card["completions"]
        print(f"data: {folder}, {card['rows']:,} rows; kept {told['kept']:,} of {told['sampled']:,} completions")
        print(f"card: {path}")
    return 0
