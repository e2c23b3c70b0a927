"""`r1async swe`: check instances, grade predictions, make the sample repositories; by the workers that a run uses."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from r1async.config import ConfigError, RewardConfig, ScorerConfig
from r1async.settings import load_reward

if TYPE_CHECKING:
    from r1async.rewards.grading import Line, Result
    from r1async.swe.check import Check

HELP = """Software-engineering instances in SWE-bench's shape (docs/swe.md).

  r1async swe check INSTANCES.jsonl --repos DIR
  r1async swe grade INSTANCES.jsonl PREDICTIONS.jsonl OUT.jsonl --repos DIR
  r1async swe samples DIR

check finds out whether an instance is good for training: its reference patch resolves it n of n times, no patch does
not, and its tests can be made to fail. It prints a table and ends with 1 if one is not good. grade takes lines with
instance_id, model_name_or_path and model_patch; OUT gets a line for each, in the same order: id, score or null, status,
parts, elapsed_s, detail, line, model_name_or_path. Both go on where an interrupted one ended. samples writes three
small repositories with a bug each, their instances, and prompts for the demo.

exit codes: 0 done, 1 an instance is not good or workers cannot be started, 2 a mistake in the settings or files, 130
ended by a signal"""

GRADE_DEADLINE_S = 30.0
"""Of a worker beyond `reward.swe.deadline_s`."""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser], count: Callable[[str], int]) -> None:
    """Register the command.

    Args:
        count: reads a number from 1.
    """
    shape = argparse.RawDescriptionHelpFormatter
    swe = commands.add_parser(
        "swe", help="check and grade software-engineering tasks", description=HELP, formatter_class=shape
    )
    each = swe.add_subparsers(title="commands", required=True, metavar="COMMAND")
    check = each.add_parser(
        "check", help="is each instance good for training?", description=HELP, formatter_class=shape
    )
    check.set_defaults(command=check_instances)
    check.add_argument("instances", type=Path, metavar="INSTANCES", help="JSONL file of instances")
    check.add_argument("--out", type=Path, metavar="OUT", help="JSONL file of what is found; what it has is kept")
    check.add_argument("--runs", type=count, default=3, metavar="N", help="times the reference patch must pass (3)")
    grade = each.add_parser("grade", help="grade patches", description=HELP, formatter_class=shape)
    grade.set_defaults(command=grade_predictions)
    grade.add_argument("instances", type=Path, metavar="INSTANCES", help="JSONL file of instances")
    grade.add_argument("predictions", type=Path, metavar="PREDICTIONS", help="JSONL file of patches")
    grade.add_argument("target", type=Path, metavar="OUT", help="JSONL file of verdicts; what it has is kept")
    for parser in (check, grade):
        parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, as in reward.swe.timeout_s=60")
        parser.add_argument(
            "--repos", default="", metavar="DIR", help="folder of repositories, or the URL they lie below"
        )
        parser.add_argument("--workers", type=count, default=0, metavar="N", help="processes (default: processors)")
    samples = each.add_parser("samples", help="write the sample repositories", description=HELP, formatter_class=shape)
    samples.set_defaults(command=write_samples)
    samples.add_argument("folder", type=Path, metavar="DIR", help="a new folder")


def write_samples(options: argparse.Namespace) -> int:
    """`r1async swe samples`."""
    from r1async.swe.samples import make_samples

    _no_overrides(options)
    if options.folder.exists() and any(options.folder.iterdir()):
        raise ConfigError(f"{options.folder}: is there already; name a new folder")
    path = make_samples(options.folder)
    print(f"{path}: check them with\n  r1async swe check {path} --repos {options.folder / 'repos'}")
    return 0


def _no_overrides(options: argparse.Namespace) -> None:
    if options.overrides:
        raise ConfigError(f"{options.overrides[0]}: r1async swe samples takes no settings")


def _reward(options: argparse.Namespace, **fixed: object) -> tuple[RewardConfig, ScorerConfig]:
    """Instances and repositories as the command line names them; everything else as in a run."""
    named = [f"reward.swe.instances={json.dumps(str(options.instances))}"]
    if options.repos:
        named.append(f"reward.swe.repos={json.dumps(options.repos)}")
    named += [f"reward.swe.{name}={value}" for name, value in fixed.items()]
    reward, scorer = load_reward(None, [*named, *options.overrides], {"swe": 1.0})
    # A worker that is killed over an instance says nothing about the patch: unknown.
    return replace(reward, timeout_is="abstain", deadline_s=GRADE_DEADLINE_S), scorer


def grade_predictions(options: argparse.Namespace) -> int:
    """`r1async swe grade`."""
    from r1async.rewards.grading import Kind, grade_with
    from r1async.rewards.swe import load_instances

    reward, scorer = _reward(options)
    load_instances(reward.swe)  # a mistake here is one of the command line, not of every line
    how = Kind({"swe": 1.0}, reader=read_prediction, per_worker=1)
    return grade_with(
        how, reward, scorer, options.predictions, options.target, workers=options.workers, command="swe grade"
    )


def read_prediction(line: bytes) -> tuple[Line, Mapping[str, object]] | Result:
    """A prediction in SWE-bench's shape; a `model_patch` of null is no patch."""
    from r1async.rewards.grading import Line, clean, invalid
    from r1async.tasks.meta import Question

    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return invalid(None, f"not JSON: {error}")
    if not isinstance(row, dict):
        return invalid(None, f"must be an object, got {type(row).__name__}")
    name, patch = row.get("instance_id"), row.get("model_patch", row)
    if not isinstance(name, str):
        return invalid(None, f"instance_id: must be a text, got {type(name).__name__}")
    if patch is not None and not isinstance(patch, str):
        what = "is missing" if patch is row else f"must be a text or null, got {type(patch).__name__}"
        return invalid(name, f"model_patch: {what}")
    question = Question(text="", answer="", extra={"instance_id": clean(name), "task": "patch"})
    more = {"instance_id": name, "model_name_or_path": row.get("model_name_or_path")}
    return Line(name, question, clean(patch or ""), 0, "stop"), more


def check_instances(options: argparse.Namespace) -> int:
    """`r1async swe check`."""
    from r1async.rewards.grading import Kind, Line, grade_with
    from r1async.rewards.swe import load_instances
    from r1async.tasks.meta import Question

    def read(line: bytes) -> tuple[Line, Mapping[str, object]]:
        name = json.loads(line)["instance_id"]
        return Line(name, Question(text="", answer="", extra={"instance_id": name, "task": "check"}), "", 0, "stop"), {}

    reward, scorer = _reward(options, gold_runs=options.runs)
    names = list(load_instances(reward.swe))
    with tempfile.TemporaryDirectory(prefix="r1async-swe-") as folder:
        asked = Path(folder, "asked.jsonl")
        asked.write_text("".join(json.dumps({"instance_id": name}) + "\n" for name in names))
        target = options.out or Path(folder, "out.jsonl")
        how = Kind({"swe": 1.0}, reader=read, per_worker=1)
        code = grade_with(how, reward, scorer, asked, target, workers=options.workers, command="swe check")
        if code:
            return code
        rows = [json.loads(line) for line in target.read_text().splitlines()]
    print(table(rows, options.runs))
    return 0 if all(row["status"] == "ok" for row in rows) else 1


def table(rows: Sequence[Mapping[str, object]], runs: int) -> str:
    """A line for each instance, and the sum."""
    lines = [f"{'instance':40} {'status':13} {'gold':>7} {'controls':>8}  what"]
    for row in rows:
        check = _check_of(str(row["detail"]))
        gold = f"{check.gold_passes} of {check.gold_runs}"
        what = " ".join(check.detail.split())[:80]
        if check.uncontrolled:
            what = f"results of {len(check.uncontrolled)} tests have no control: {check.uncontrolled[0]}"
        controls = sum(map(len, check.controls.values()))
        lines.append(f"{row['id']!s:40} {row['status']!s:13} {gold:>7} {controls:>8}  {what}".rstrip())
    good = sum(row["status"] == "ok" for row in rows)
    return "\n".join([*lines, f"{good} of {len(rows)} instances are good ({runs} runs of the reference patch each)"])


def _check_of(detail: str) -> Check:
    """What a worker found out; where it could not, why."""
    from r1async.swe.check import Check

    try:
        return Check(**json.loads(detail))
    except (ValueError, TypeError):
        return Check(status="", detail=detail)
