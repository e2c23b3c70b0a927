"""`r1async run configs/math.yaml model.path=DIR data.path=FILE`, and the same run with every role started by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import datasets
import pytest

from tests.tiny_models import Architecture, save_tiny

MATH = Path(__file__).parents[2] / "configs" / "math.yaml"
ROWS = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(5) for b in range(5)]
SMALL = (
    "steps=2", "sampling.max_tokens=12", "data.max_prompt_tokens=700", "generator.slots=16", "generator.eval_slots=16",
    "group.group_size=4", "learner.groups_per_step=2", "learner.warmup_steps=0", "eval.prompts=4", "eval.samples=2",
    "scorer.workers=1", "monitor.terminal=plain", "monitor.tensorboard=false",
)  # fmt: skip
WAIT_S = 280.0
pytestmark = pytest.mark.timeout(600)


def settings(root: Path, model: Path, data: Path, *more: str) -> list[str]:
    return [str(MATH), "name=own", f"runs_dir={root}", f"model.path={model}", f"data.path={data}", *SMALL, *more]


def write_jsonl(folder: Path) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def write_parquet(folder: Path) -> Path:
    path = folder / "data.parquet"
    datasets.Dataset.from_list(ROWS).to_parquet(path)
    return path


def assert_trained(run_dir: Path) -> None:
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["steps"] == summary["policy_version"] == 2
    assert summary["completions_trained"] == 2 * 2 * 4
    assert summary["audit"]["balanced"]
    assert set(summary["after"]["pass_at_k"]) == {"1", "2"}
    assert (run_dir / "report.html").is_file()
    assert (run_dir / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("architecture", "tied", "write"), [("qwen2", True, write_jsonl), ("llama", False, write_parquet)]
)
def test_own_model_and_data_train(architecture: Architecture, tied: bool, write, run_root: Path):
    model = save_tiny(run_root / "model", architecture, tied=tied)
    ran = subprocess.run(
        [sys.executable, "-m", "r1async", "run", *settings(run_root, model, write(run_root))],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert_trained(run_root / "own")


def test_roles_started_by_hand_in_any_order_train_too(run_root: Path):
    model, data = save_tiny(run_root / "model", "llama"), write_jsonl(run_root)
    arguments = settings(run_root, model, data)
    order: Sequence[str] = ("eval", "generate", "score", "learn", "buffer")
    roles = {}
    try:
        for role in order:
            log = (run_root / f"{role}.log").open("w")
            roles[role] = subprocess.Popen(
                [sys.executable, "-m", "r1async", role, *arguments], stdout=log, stderr=subprocess.STDOUT
            )
            log.close()
        assert roles["eval"].wait(WAIT_S) == 0, (run_root / "eval.log").read_text()
        for role in ("learn", "generate", "score", "buffer"):
            roles[role].terminate()
            assert roles[role].wait(60) == 0, (run_root / f"{role}.log").read_text()
    finally:
        for process in roles.values():
            process.kill()
            process.wait()
    audit = json.loads((run_root / "own" / "audit.json").read_text())
    assert audit["balanced"]
    assert audit["rollouts"]["trained"] == 2 * 2 * 4
    evaluated = [json.loads(line) for line in (run_root / "own" / "evaluation.jsonl").read_text().splitlines()]
    assert {each["version"] for each in evaluated} >= {0, 2}
