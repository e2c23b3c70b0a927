"""A made-up run's folder, with figures whose sums one can check by hand."""

import json
import math
from pathlib import Path

import numpy as np
from r1async.monitor.metrics import MetricsWriter
from r1async.monitor.timeline import Timeline

START = 1_700_000_000.0


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def make_run(run_dir: Path, steps: int = 120) -> Path:
    """A run of `steps` steps of 128 completions at two seconds each."""
    run_dir.mkdir(parents=True)
    (run_dir / "started").write_text(repr(START))
    (run_dir / "config.yaml").write_text(
        f"name: {run_dir.name}\nseed: 3\nsteps: {steps}\nmodel: {{path: ''}}\ndata: {{task: chain-mod}}\n"
        "staleness: {max_staleness: 2}\n"
    )
    (run_dir / "cold_start.json").write_text(json.dumps({"steps": 700, "accuracy": 0.86, "wall_s": 38.0}))
    _learner(run_dir, steps)
    _evaluations(run_dir, steps)
    _timelines(run_dir, seconds=2.0 * steps)
    audit = {
        "prompts": {"in": 16 * steps + 20, "trained": 16 * steps, "dropped": {"stale": 4}, "live": 16},
        "rollouts": {"in": 128 * steps + 160, "trained": 128 * steps, "dropped": {"stale": 32}, "live": 128},
        "tokens": {"in": 2000 * steps + 700, "trained": 2000 * steps, "dropped": {"stale": 500}, "live": 200},
        "balanced": True,
        "trained_twice": 0,
    }
    (run_dir / "audit.json").write_text(json.dumps(audit))
    return run_dir


def _learner(run_dir: Path, steps: int) -> None:
    clock = Clock(START)
    noise = np.random.default_rng(0)
    with MetricsWriter(run_dir / "metrics" / "learner.jsonl", START, clock) as writer:
        for step in range(steps):
            clock.now = START + 2.0 * (step + 1)
            level = 1 - math.exp(-step / 25)
            accuracy = float(0.45 + 0.48 * level + 0.03 * noise.standard_normal())
            layout = float(0.42 + 0.56 * level + 0.02 * noise.standard_normal())
            writer.write(
                "step",
                {
                    "step": step,
                    "version": step + 1,
                    "epoch": 1,
                    "rollouts": 128,
                    "reward/mean": accuracy + 0.2 * layout,
                    "reward/accuracy": accuracy,
                    "reward/format": layout,
                    "length/mean": 11 + 6 * level + float(0.2 * noise.standard_normal()),
                    "truncated": 0.02 * (1 - level),
                    "staleness/histogram": {"0": 500, "1": 1000, "2": 500},
                    "is/ess": 0.93 + 0.02 * float(noise.standard_normal()),
                    "mismatch/mean": 2e-6 * float(1 + 0.2 * noise.random()),
                    "entropy": 0.5 * (1 - 0.7 * level),
                    "kl/behavior": 0.004 * float(1 + noise.random()),
                    "grad_norm": 0.6 * float(1 + 0.3 * noise.random()),
                    "skipped": None,
                },
            )


def _evaluations(run_dir: Path, steps: int) -> None:
    texts = {
        0: ("<answer>4</answer>", False, 0.0),
        1: ("<think>5,1,1,0,0,5</think><answer>5</answer>", True, 1.2),
    }
    with MetricsWriter(run_dir / "evaluation.jsonl", START, Clock(START)) as writer:
        for version in (0, steps // 2, steps):
            level = 1 - math.exp(-version / 25)
            for which, accuracy in (("sampled", 0.45 + 0.47 * level), ("greedy", 0.82 + 0.15 * level)):
                text, passed, reward = texts[int(version > 0)]
                shown = [
                    {
                        "prompt_index": i,
                        "prompt": f"5-4-0-1*8-{i}=",
                        "answer": "5",
                        "completion": text if i else "<script>alert('no')</script>",
                        "passed": passed,
                        "reward": reward,
                        "tokens": 17,
                        "truncated": False,
                    }
                    for i in range(5)
                ]
                record = {
                    "pass": which,
                    "version": version,
                    "epoch": 1,
                    "hash": f"{version:016x}",
                    "accuracy": accuracy,
                    "stderr": 0.02,
                    "format": 0.42 + 0.56 * level,
                    "pass_at_k": {"1": accuracy},
                    "cons_at_k": accuracy,
                    "k": 1,
                    "problems": 400,
                    "mean_tokens": 11 + 6 * level,
                    "samples_shown": shown,
                }
                writer.write("evaluation", record)


def _timelines(run_dir: Path, seconds: float) -> None:
    patterns = {
        "generator-0": [
            ("busy", "decode", 1.2),
            ("busy", "prefill", 0.2),
            ("wait", "leases", 0.5),
            ("busy", "weights", 0.1),
        ],
        "learner": [("busy", "train", 1.5), ("wait", "batch", 0.4), ("busy", "publish", 0.1)],
        "scorer-0": [("busy", "grade", 0.2), ("wait", "leases", 1.8)],
        "buffer": [("busy", "handle", 0.1), ("wait", "a message", 1.9)],
        "evaluator": [("wait", "a published version", 2.0)],
    }
    for name, pattern in patterns.items():
        clock, cpu = Clock(START), Clock(0.0)
        timeline = Timeline(name, run_dir / "metrics" / f"{name}.jsonl", started=START, clock=clock, cpu_clock=cpu)
        while clock.now < START + seconds - 1e-6:
            for kind, activity, share in pattern:
                with timeline.busy(activity) if kind == "busy" else timeline.wait(activity):
                    clock.now += share
                    cpu.now += share if kind == "busy" else 0.0
        timeline.close()
