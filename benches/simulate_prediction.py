"""Does `r1async simulate --from RUN` predict real runs? `python benches/simulate_prediction.py`.

Runs the demo at max_staleness 0, 1 and 4 and with a slow scorer, fits the model on the run at 1 and predicts the
others. Speed is steps a second between the first steps and the last `pacing + 1`; repeats are interleaved.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from r1async.config import Config, load_config
from r1async.monitor.rundata import load_run
from r1async.simulate import fit
from r1async.simulate.model import simulated
from r1async.simulate.observe import observe

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
FITTED_ON = "bound 1"


def run(folder: Path, case: str, repeat: int, steps: int) -> Path:
    """One real run's folder."""
    name = f"{case.replace(' ', '_')}-{repeat}"
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


def predicted(fitted: Path, case: str, steps: int) -> tuple[float, float]:
    """The same from the model of another run."""
    observed = observe(fitted)
    overrides = [*fit.overrides(observed), f"steps={steps}", *CASES[case]]
    if case == "slow scorer" and fitted.name.startswith(FITTED_ON.replace(" ", "_")):
        (usual_s,) = observed.verdicts_s
        overrides.append(f"simulate.verdicts_s=[{usual_s + SLOW_S}]")
    outcome = simulated(load_config("configs/demo.yaml", overrides))
    return outcome["steps_per_s"], outcome["staleness"]["mean"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/prediction"), help="where the runs lie")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--reuse", action="store_true", help="take the runs that are there")
    parser.add_argument(
        "--own", action="store_true", help="fit each case on itself: on a busy machine, the model alone"
    )
    options = parser.parse_args()
    folder, repeats, steps = options.folder.resolve(), options.repeats, options.steps
    if not options.reuse:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "slow_grader.py").write_text(SLOW_GRADER)
        for repeat in range(repeats):
            for case in CASES:
                run(folder, case, repeat, steps)
    rows = []
    for case in CASES:
        config = load_config("configs/demo.yaml", [f"steps={steps}", *CASES[case]])
        for repeat in range(repeats):
            real = measured(folder / f"{case.replace(' ', '_')}-{repeat}", config)
            fitted = case if options.own else FITTED_ON
            model = predicted(folder / f"{fitted.replace(' ', '_')}-{repeat}", case, steps)
            rows.append((case, real, model))
    print("| case | steps/s, real | predicted | ratio | staleness, real | predicted |\n|---|---|---|---|---|---|")
    for case in CASES:
        of_case = [(real, model) for name, real, model in rows if name == case]
        real_s, model_s = (statistics.median(pair[side][0] for pair in of_case) for side in (0, 1))
        real_age, model_age = (statistics.median(pair[side][1] for pair in of_case) for side in (0, 1))
        ratios = [model[0] / real[0] for real, model in of_case]
        shown = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})"
        print(f"| {case} | {real_s:.2f} | {model_s:.2f} | {shown} | {real_age:.2f} | {model_age:.2f} |")
    (folder / "prediction.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
