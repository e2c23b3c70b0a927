"""`r1async recipe` and `r1async make` on the command line. Imports nothing slow."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from r1async.config import ConfigError

RECIPE_HELP = """Run the stages of a recipe that are not done yet. Each is an ordinary job; its outputs are keyed by
the hash of its settings and inputs (docs/recipes.md).

  r1async recipe configs/r1_demo.yaml
  r1async recipe configs/r1_demo.yaml seed=1 zero.steps=60
  r1async recipe configs/r1_demo.yaml --dry-run

Nothing runs twice, and a changed setting runs again what depends on it. The same command goes on after Ctrl-C or a
kill, inside a stage too. recipes/<name>/<stage> is the newest output of a stage; what it printed is in logs/ there.

exit codes: 0 done, 2 a mistake in the recipe or in a stage's settings, 130 ended by Ctrl-C (143: by SIGTERM) with its
state saved, otherwise that of the stage that failed"""

MAKE_HELP = """Call a Python function that makes data or a report, as a recipe does: function(FOLDER, **settings).

  r1async make r1async.recipes.miniature.world:world out/world settings.yaml"""

AddCommand = Callable[[str, str, str, Callable[[argparse.Namespace], int]], argparse.ArgumentParser]


def register(add: AddCommand) -> None:
    """Adds the two commands to the command line's.

    Args:
        add: makes a command without words of its own from name, help, description and what it runs.
    """
    recipe = add("recipe", "run the stages of a recipe that are not done", RECIPE_HELP, _recipe)
    recipe.add_argument("config", type=Path, metavar="RECIPE", help="YAML file of stages")
    recipe.add_argument("overrides", nargs="*", metavar="key=value", help="seed=N, name=NAME, STAGE.setting=value")
    recipe.add_argument("--dry-run", action="store_true", help="print the plan, and what of it is done, and end")
    recipe.add_argument("--from", dest="first", default="", metavar="STAGE", help="this one and what depends on it")
    recipe.add_argument("--to", dest="last", default="", metavar="STAGE", help="this one and what it needs")
    recipe.add_argument("--only", default="", metavar="STAGE", help="this one alone")
    recipe.add_argument("--jobs", type=_positive, default=1, metavar="N", help="stages at a time (default 1)")
    recipe.add_argument("--again", action="store_true", help="run the selected stages even if they are done")
    make = add("make", "call a function that makes data, as a recipe does", MAKE_HELP, _make)
    make.add_argument("target", metavar="MODULE:FUNCTION")
    make.add_argument("folder", type=Path, metavar="FOLDER", help="where it writes; made if need be")
    make.add_argument("settings", type=Path, nargs="?", metavar="SETTINGS", help="YAML file of its arguments")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, got {text!r}")
    return int(text)


def _recipe(options: argparse.Namespace) -> int:
    from r1async.recipes.runner import Selection, recipe

    selection = Selection(first=options.first, last=options.last, only=options.only, again=options.again)
    return recipe(options.config, options.overrides, selection, parallel=options.jobs, dry_run=options.dry_run)


def _make(options: argparse.Namespace) -> int:
    from r1async.recipes.make import make

    if options.overrides:
        raise ConfigError(f"make: unknown argument {options.overrides[0]!r}")
    make(options.target, options.folder, options.settings)
    return 0
