"""Short real runs in which a random process is killed at a random moment, and what is left of each.

    python benches/kill_runs.py [--runs 100] [--seed 0] [--jobs 1] [--json FILE]

Each run kills one role (buffer, generator, scorer, learner), two of them at once, or the whole tree, with SIGKILL, at a
random moment of a random step; a tree is started again by the same command. A run is good if it ends with exit code 0,
its journal balances, every prompt is trained or dropped for a reason and none twice, and no process is left. Some
undisturbed runs give the mean trained length to compare with. Exits 1 if any run was not good.

`resumes` has, of every life of the buffer but a run's first, the seconds from the opening of its journal to the first
lease and to the first optimizer step; of a tree also those from the command to that step. Lives that had nothing left
to lease or train have no such figure.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import msgpack
import psutil
import zmq

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from r1async._core import JournalEvents, journal_audit
from r1async.config import load_config
from r1async.wire import unpack

from tests.tiny_models import save_tiny

STEPS, GROUPS = 16, 4
ROLES = {"buffer": "buffer", "generator": "generate", "scorer": "score", "learner": "learn"}
"""Role and the command that starts it."""
DEADLINE_S = 600.0
"""For one run: more is a hang."""


@dataclass
class Result:
    """What became of one run."""

    seed: int
    killed: list[str]
    at_step: int = 0
    wall_s: float = 0.0
    faults: list[str] = field(default_factory=list)
    """Why it is not good; empty if it is."""
    mean_trained: float = 0.0
    """Tokens of a trained completion."""
    first_lease_s: list[float] = field(default_factory=list)
    """From the opening of the journal to the first lease, in each life of the buffer but the first."""
    first_step_s: list[float] = field(default_factory=list)
    """The same, to the first optimizer step."""
    command_to_step_s: list[float] = field(default_factory=list)
    """From the command that starts a killed tree again to its first optimizer step."""


class Run:
    """`r1async run` in a process of its own, watched over the buffer's events."""

    def __init__(self, root: Path, model: Path, seed: int) -> None:
        settings = {
            "name": f"seed-{seed}", "runs_dir": root, "model.path": model, "data.task": "chain-mod", "steps": STEPS,
            "seed": seed, "sampling.max_tokens": 24, "data.max_prompt_tokens": 32, "generator.slots": 24,
            "generator.eval_slots": 16, "group.group_size": 4, "group.lease_s": 5, "learner.groups_per_step": GROUPS,
            "learner.checkpoint_every": 4, "learner.lr": 1e-5, "eval.prompts": 4, "eval.greedy": "false",
            "buffer.peer_deadline_s": 4, "monitor.terminal": "plain", "monitor.interval_s": 0.2,
            "monitor.tensorboard": "false", "data.template": "none", "generator.chunk_tokens": 4,
        }  # fmt: skip
        self._arguments = [f"{key}={value}" for key, value in settings.items()]
        self._config_path = root / "empty.yaml"
        self._config_path.write_text("{}\n")
        self.config = load_config(self._config_path, self._arguments)
        self.run_dir = self.config.run_dir
        self.log = root / f"seed-{seed}.log"
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "r1async", "run", str(self._config_path), *self._arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def again(self) -> None:
        self.process = self._start()

    def await_step(self, number: int, deadline: float) -> bool:
        """Until a step with at least this number is done; False: the run ended, or the deadline passed, before."""
        context = zmq.Context()
        events = context.socket(zmq.SUB)
        events.subscribe(b"")
        events.connect(self.config.endpoint("events"))
        try:
            while time.monotonic() < deadline and self.process.poll() is None:
                if events.poll(500):
                    header = unpack(events.recv()).header
                    if header["t"] == "step" and header["step"] >= number:
                        return True
            return False
        finally:
            context.destroy(linger=0)

    def tree(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def kill(self, roles: Sequence[str]) -> None:
        children = self.tree()
        if "tree" in roles:
            self.process.kill()
            targets = children
        else:
            commands = {ROLES[role] for role in roles}
            targets = [child for child in children if commands & set(_cmdline(child))]
        for target in targets:
            with suppress(psutil.NoSuchProcess):
                target.send_signal(signal.SIGKILL)


def _cmdline(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return process.cmdline()
    return []


def plan(seed: int) -> tuple[list[str], int, float]:
    """Who is killed, at which step, and how many seconds after it."""
    rng = random.Random(seed)
    kind = rng.random()
    killed = ["tree"] if kind < 0.25 else rng.sample(sorted(ROLES), 2 if kind > 0.75 else 1)
    return killed, rng.randrange(STEPS - 2), rng.random() * 0.5


def kill_run(root: Path, model: Path, seed: int, *, disturbed: bool) -> Result:
    """One run, and what is left of it."""
    killed, at_step, after_s = plan(seed)
    result = Result(seed, killed if disturbed else [], at_step)
    began, deadline = time.monotonic(), time.monotonic() + DEADLINE_S
    run = Run(root, model, seed)
    seen = []
    if disturbed:
        if not run.await_step(at_step, deadline):
            result.faults.append(f"step {at_step} was never done")
        time.sleep(after_s)
        seen += run.tree()
        run.kill(killed)
        if "tree" in killed:
            run.process.wait()
            psutil.wait_procs(seen, timeout=10.0)
            run.again()
            commanded = time.monotonic()
            if run.await_step(0, deadline):
                result.command_to_step_s.append(time.monotonic() - commanded)
    while time.monotonic() < deadline:
        seen = list({process.pid: process for process in [*seen, *run.tree()]}.values())
        with suppress(subprocess.TimeoutExpired):
            run.process.wait(1.0)
        if run.process.poll() is not None:
            break
    if run.process.poll() is None:
        result.faults.append(f"it hung for {DEADLINE_S:.0f} s")
        run.kill(["tree"])
    elif run.process.returncode != 0:
        result.faults.append(f"exit code {run.process.returncode}")
    _, alive = psutil.wait_procs(seen, timeout=10.0)
    result.faults += [f"orphan: {' '.join(_cmdline(process))}" for process in alive]
    _judge(run, result)
    result.wall_s = time.monotonic() - began
    return result


def _judge(run: Run, result: Result) -> None:
    folder = run.run_dir / "journal"
    try:
        audit = journal_audit(folder)
    except (ValueError, OSError) as error:
        result.faults.append(f"journal: {error}")
        return
    result.faults += audit["differences"]
    prompts = audit["prompts"]
    if prompts["trained"] != STEPS * GROUPS or prompts["live"]:
        result.faults.append(f"prompts: {prompts}, of {STEPS * GROUPS} that {STEPS} steps train")
    if audit["trained_twice"]:
        result.faults.append(f"{audit['trained_twice']} groups trained twice")
    result.mean_trained = audit["mean_length"]["trained"] or 0.0
    _time_lives(folder, result)


def _time_lives(folder: Path, result: Result) -> None:
    """Seconds from each opening of the journal but the first to the first lease and to the first optimizer step."""
    firsts = {"leased": result.first_lease_s, "stepped": result.first_step_s}
    lives, opened, missing = 0, 0.0, set[str]()
    for at, event in _events(folder):
        what = event["what"]
        if what == "opened":
            lives, opened, missing = lives + 1, at, set(firsts)
        elif what in missing:
            missing.remove(what)
            if lives > 1:
                firsts[what].append(at - opened)


def _events(folder: Path) -> Iterator[tuple[float, Mapping]]:
    for at, packed in JournalEvents(folder):
        yield at, msgpack.unpackb(packed, strict_map_key=False)


def report(disturbed: Sequence[Result], undisturbed: Sequence[Result]) -> dict:
    """Figures over all runs."""
    good = [result for result in disturbed if not result.faults]
    calm = statistics.fmean(result.mean_trained for result in undisturbed) if undisturbed else None
    mean = statistics.fmean(result.mean_trained for result in disturbed)
    return {
        "runs": len(disturbed),
        "good": len(good),
        "faults": {result.seed: result.faults for result in [*disturbed, *undisturbed] if result.faults},
        "killed": {kind: sum(kind in result.killed for result in disturbed) for kind in [*ROLES, "tree"]},
        "resumes": {kind: _resumes([each for each in disturbed if kind in each.killed]) for kind in ("tree", "buffer")},
        "mean_trained": mean,
        "mean_trained_undisturbed": calm,
        "mean_trained_ratio": None if calm is None else mean / calm,
    }


def _resumes(results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """How fast runs were at work again."""
    return {
        "first_lease_s": _spread([second for each in results for second in each.first_lease_s]),
        "first_step_s": _spread([second for each in results for second in each.first_step_s]),
        "command_to_step_s": _spread([second for each in results for second in each.command_to_step_s]),
    }


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    """How many, their median and their maximum."""
    if not seconds:
        return {"count": 0}
    return {"count": len(seconds), "p50": round(statistics.median(seconds), 2), "max": round(max(seconds), 2)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100, help="disturbed runs")
    parser.add_argument("--undisturbed", type=int, default=5, help="runs to compare the mean trained length with")
    parser.add_argument("--seed", type=int, default=0, help="of the first run; the others follow")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--json", type=Path, help="file for all results")
    parser.add_argument("--keep", type=Path, help="folder for the runs, which then stay")
    options = parser.parse_args()
    root = options.keep or Path(tempfile.mkdtemp(prefix="r1k-"))
    root.mkdir(parents=True, exist_ok=True)
    model = save_tiny(root / "model")
    seeds = range(options.seed, options.seed + options.runs)
    with ThreadPoolExecutor(options.jobs) as pool:
        calm = [
            pool.submit(kill_run, root, model, 1_000_000 + seed, disturbed=False) for seed in range(options.undisturbed)
        ]
        futures = [pool.submit(kill_run, root, model, seed, disturbed=True) for seed in seeds]
        disturbed = []
        for number, future in enumerate(futures, start=1):
            result = future.result()
            disturbed.append(result)
            verdict = "good" if not result.faults else "; ".join(result.faults)
            print(
                f"[{number}/{len(futures)}] seed {result.seed}: {' and '.join(result.killed)} killed at step"
                f" {result.at_step}, {result.wall_s:.0f} s: {verdict}",
                flush=True,
            )
        undisturbed = [future.result() for future in calm]
    figures = report(disturbed, undisturbed)
    print(json.dumps(figures, indent=2))
    if options.json:
        every = [asdict(result) for result in [*disturbed, *undisturbed]]
        options.json.write_text(json.dumps({**figures, "results": every}, indent=2) + "\n")
    if options.keep is None and not figures["faults"]:
        shutil.rmtree(root)
    return 1 if figures["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
