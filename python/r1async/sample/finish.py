"""The end of rejection sampling: the data set and its card."""

from __future__ import annotations

from r1async.config import Config
from r1async.sample.card import make_card, write_card
from r1async.sample.prompts import open_asked
from r1async.sample.sampler import open_parts
from r1async.sample.select import select


def finish(config: Config) -> None:
    """Select from the completions on disk; a selection that was made of the same settings is made again, the same."""
    asked, parts = open_asked(config), open_parts(config)
    folder = config.run_dir / "data"
    account = select(config, asked, parts, folder)
    card = make_card(config, asked, account, folder)
    path = write_card(config.run_dir, card)
    if config.monitor.terminal != "quiet":
        told = card["completions"]
        print(f"data: {folder}, {card['rows']:,} rows; kept {told['kept']:,} of {told['sampled']:,} completions")
        print(f"card: {path}")
