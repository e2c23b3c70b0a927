"""`r1async sample` on the command line. Imports nothing slow."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from r1async.checks import missing_engines, missing_files
from r1async.config import Config, ConfigError, load_config
from r1async.config_sample import sample_problems
from r1async.settings import to_yaml

SAMPLE_HELP = """Rejection sampling: k completions of each prompt from a fixed checkpoint, graded, filtered, written
down as a data set that `r1async sft` reads.

  r1async sample configs/sample.yaml
  r1async sample configs/math.yaml model.path=DIR data.path=FILE.jsonl sample.samples=16

Generators and scorers are those of a run; nothing waits for verdicts. Killed anywhere, the same command goes on and
ends with the same rows. What it leaves is in runs/<name>/: data/ (parquet), card.md and card.json (what came from
where, why things were dropped), samples/ (every completion: other filters need no new ones). docs/sample.md says more.

exit codes: as `r1async run`"""

RunRole = Callable[[argparse.Namespace, Callable[[Config], int | None]], int]


def register(add: Callable[..., argparse.ArgumentParser], run_role: RunRole) -> None:
    """Adds the command to the command line's.

    Args:
        add: makes a command with CONFIG and key=value words from name, help, description and what it runs.
        run_role: runs a role's main under the conventions that all roles share.
    """
    parser = add(
        "sample",
        "rejection sampling: a data set from a checkpoint",
        SAMPLE_HELP,
        lambda options: _sample(options, run_role),
    )
    parser.add_argument("--dry-run", action="store_true", help="print the resolved settings and end")


def _sample(options: argparse.Namespace, run_role: RunRole) -> int:
    if options.launched:
        return run_role(options, _role)
    config = load_config(options.config, options.overrides)
    if options.dry_run:
        print(to_yaml(config))
        return 0
    found = sample_problems(config) or missing_files(config) + missing_engines(config)
    if config.cold_start.enabled:
        found.append("cold_start.enabled: rejection sampling takes a checkpoint that is there; set model.path=DIR")
    if found:
        raise ConfigError("\n".join(found))
    return sample(config)


def sample(config: Config) -> int:
    """Sample what is left, then select; the exit code."""
    from r1async.sample.prompts import sampling_config

    config = sampling_config(config)
    from r1async.launch.local import run

    code = run(config, sampling=True)
    if code:
        return code
    from r1async.sample.finish import finish

    return finish(config)


def _role(config: Config) -> None:
    from r1async.sample.sampler import main

    main(config)
