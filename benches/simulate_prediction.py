"""Does `r1async simulate --from RUN` predict real runs? `python benches/simulate_prediction.py`.

Runs the demo at max_staleness 0, 1 and 4 and with a slow scorer, fits the model on one of them and predicts all.
Speed is steps a second between the first steps and the last `pacing + 1`; repeats are interleaved. What other programs
take of the machine changes from run to run and nobody can know it beforehand: a second prediction has it as it was.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from r1async.config import Config, load_config
from r1async.monitor.rundata import load_run
from r1async.simulate import fit
from r1async.simulate.model import simulated
from r1async.simulate.observe import Observed, observe

SLOW_S = 0.008
"""Seconds that the slow grader sleeps: with one worker about twice as long as a step trains."""

SLOW_GRADER = f"""import time

def part(question, completion):
    time.sleep({SLOW_S})
    return 0.0
"""

CASES: Mapping[str, Sequence[str]] = {
    "bound 0": ("staleness.max_staleness=0",),
    "bound 1": ("staleness.max_staleness=1",),
    "bound 4": ("staleness.max_staleness=4",),
    "slow scorer": ("staleness.max_staleness=1", "reward.weights.slow_grader:part=0"),
}
SLOW_CASE = "slow scorer"


def run(folder: Path, case: str, repeat: int, steps: int) -> Path:
    """One real run's folder."""
    name = f"{case.replace(' ', '_')}-{repeat}"
    shutil.rmtree(folder / name, ignore_errors=True)
    common = [f"runs_dir={folder}", f"name={name}", f"steps={steps}", "eval.every=0", "eval.prompts=20"]
    command = [sys.executable, "-m", "r1async", "run", "configs/demo.yaml", *common, *CASES[case]]
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path}
    subprocess.run([*command, "monitor.terminal=quiet"], check=True, env=environment, stdout=subprocess.DEVNULL)
    return folder / name


def measured(run_dir: Path, config: Config) -> tuple[float, float]:
    """Steps a second and mean staleness of trained tokens, over the steps that a simulation measures."""
    steps = load_run(run_dir).steps
    first = max(config.staleness.max_staleness + 1, config.steps // 10) - 1
    last = config.steps - config.pacing - 2
    inside = steps[first + 1 : last + 1]
    staleness = sum(step["staleness/mean"] * step["loss_tokens"] for step in inside)
    tokens = sum(step["loss_tokens"] for step in inside)
    return (last - first) / (steps[last]["time"] - steps[first]["time"]), staleness / tokens


def predicted(fitted: Observed, case: str, steps: int, *, is_slow: bool) -> tuple[float, float]:
    """The same from the model of another run; `is_slow`: it had the slow grader, too."""
    overrides = [*fit.overrides(fitted), f"steps={steps}", *CASES[case]]
    if (case == SLOW_CASE) != is_slow:
        usual_s, _ = fit.grading_seconds(fitted.grading, fitted.workers)
        slower_s = SLOW_S if case == SLOW_CASE else -SLOW_S
        overrides.append(f"simulate.verdicts_s=[{max(0.0, statistics.fmean(usual_s) + slower_s)}]")
    outcome = simulated(load_config("configs/demo.yaml", overrides))
    return outcome["steps_per_s"], outcome["staleness"]["mean"]


@dataclass(frozen=True)
class Row:
    case: str
    real: tuple[float, float]
    """Steps a second, mean staleness."""
    model: tuple[float, float]
    at_its_load: tuple[float, float]
    """The model's, if other programs had wanted as much of the machine as they did during the real run."""


def rows_of(folder: Path, repeat: int, steps: int, fitted_on: str) -> list[Row]:
    """All cases of one repeat, from the model fitted on one of them."""

    def run_dir(case: str) -> Path:
        return folder / f"{case.replace(' ', '_')}-{repeat}"

    rows, fitted, is_slow = [], observe(run_dir(fitted_on)), fitted_on == SLOW_CASE
    for case in CASES:
        config = load_config("configs/demo.yaml", [f"steps={steps}", *CASES[case]])
        at_its_load = replace(fitted, other_load=observe(run_dir(case)).other_load)
        models = [predicted(each, case, steps, is_slow=is_slow) for each in (fitted, at_its_load)]
        rows.append(Row(case, measured(run_dir(case), config), *models))
    return rows


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Medians over repeats, their ratio, and the ratios of each repeat's prediction to its run."""
    yield "| case | steps/s, real | predicted | ratio | of each repeat | at its load | staleness, real | predicted |"
    yield "|---|---|---|---|---|---|---|---|"
    for case in CASES:
        of_case = [row for row in rows if row.case == case]
        speed, age = (statistics.median(row.real[figure] for row in of_case) for figure in (0, 1))
        model, model_age = (statistics.median(row.model[figure] for row in of_case) for figure in (0, 1))
        ratios = [
            [row.model[0] / row.real[0] for row in of_case],
            [row.at_its_load[0] / row.real[0] for row in of_case],
        ]
        shown = " | ".join(f"{statistics.median(each):.2f} ({min(each):.2f}..{max(each):.2f})" for each in ratios)
        yield f"| {case} | {speed:.2f} | {model:.2f} | {model / speed:.2f} | {shown} | {age:.2f} | {model_age:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/prediction"), help="where the runs lie")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--reuse", action="store_true", help="take the runs that are there")
    parser.add_argument("--fit", default="bound 1", choices=list(CASES), help="the run that the model is fitted on")
    options = parser.parse_args()
    folder, repeats, steps = options.folder.resolve(), options.repeats, options.steps
    if not options.reuse:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "slow_grader.py").write_text(SLOW_GRADER)
        for repeat in range(repeats):
            for case in CASES:
                run(folder, case, repeat, steps)
    rows = [row for repeat in range(repeats) for row in rows_of(folder, repeat, steps, options.fit)]
    print("\n".join(table(rows)))
    (folder / "prediction.json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
