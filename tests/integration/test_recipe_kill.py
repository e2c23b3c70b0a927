"""A recipe whose processes are all killed inside every kind of stage, and the same command again each time."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from tests.tiny_models import save_tiny

pytestmark = pytest.mark.timeout(900)
WAIT_S = 300.0
PROBLEMS, K, STEPS = 40, 8, 6
SUMS = [{"prompt": f"{a}+{b}=", "answer": str((a + b) % 10)} for a in range(10) for b in range(10)]

COMMON = """
monitor: {terminal: plain, interval_s: 0.2, tensorboard: false}
"""
SFT = f"""
data: {{template: none, max_tokens: 32}}
train: {{batch_size: 8, epochs: 4, lr: 3.0e-3, micro_batch_tokens: 64, checkpoint_every: 4}}
{COMMON}"""
ROLES = f"""
data: {{task: file, template: none, max_prompt_tokens: 16, shuffle: false}}
sampling: {{max_tokens: 16}}
generator: {{slots: 16, eval_slots: 16}}
reward: {{weights: {{accuracy: 1.0}}, equivalence: exact}}
group: {{group_size: 4, lease_s: 5, rollout_deadline_s: 60}}
buffer: {{peer_deadline_s: 4}}
{COMMON}"""
SAMPLE = f"""
sample: {{samples: 4, part_rows: 16, ahead: 64, keep: {{parts: {{accuracy: 0.0}}, truncated: true, per_prompt: 2}}}}
{ROLES}"""
RUN = f"""
steps: {STEPS}
learner: {{groups_per_step: 2, lr: 1.0e-4, checkpoint_every: 1}}
eval: {{prompts: 4, greedy: false}}
{ROLES}"""
EXAM = f"eval: {{prompts: 0}}\n{ROLES}"
BENCHMARK = f"""
title: Sums
source: ours
format: plain
columns: {{question: prompt, answer: answer}}
prompt: "{{question}}"
grader: math
k: {K}
temperature: 1.0
top_p: 1.0
max_tokens: 16
"""
RECIPE = """
name: kill
inputs: {model: model, rows: rows.jsonl, sums: sums.jsonl, exam: exam.jsonl, benchmark: benchmark.yaml}
stages:
  tune: {sft: sft.yaml, set: {model.path: "${inputs.model}", data.path: "${inputs.rows}"}}
  harvest: {sample: sample.yaml, set: {model.path: "${tune.model}", data.path: "${inputs.sums}"}}
  learn: {run: run.yaml, set: {model.path: "${tune.model}", data.path: "${inputs.sums}"}}
  exam:
    eval: exam.yaml
    set:
      model.path: "${learn.model}"
      data.path: "${inputs.sums}"
      eval.benchmarks: ["${inputs.benchmark}"]
      eval.data: {benchmark: "${inputs.exam}"}
      eval.protocol: {max_prompt_tokens: 16}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    save_tiny(folder / "model", hidden=32, mlp=48)
    rows = [{"prompt": row["prompt"], "completion": f"<answer>{row['answer']}</answer>"} for row in SUMS]
    texts = {
        "recipe.yaml": RECIPE, "sft.yaml": SFT, "sample.yaml": SAMPLE, "run.yaml": RUN, "exam.yaml": EXAM,
        "benchmark.yaml": BENCHMARK, "rows.jsonl": lines(rows), "sums.jsonl": lines(SUMS),
        "exam.jsonl": lines(SUMS[:PROBLEMS]),
    }  # fmt: skip
    for name, text in texts.items():
        (folder / name).write_text(text)
    return folder / "recipe.yaml"


def lines(rows: list[dict[str, str]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def start(recipe: Path, out: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "r1async", "recipe", str(recipe), f"folder={out}", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def end(process: subprocess.Popen[str]) -> str:
    printed, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, printed
    return printed


def kill_inside(recipe: Path, out: Path, stage: str, begun: Callable[[Path], bool]) -> str:
    """Goes on with the recipe until it has begun something in the stage, and kills it there; returns what it said."""
    process = start(recipe, out)
    deadline = time.monotonic() + WAIT_S
    while not any(begun(folder) for folder in (out / "kill").glob(f"{stage}-*")):
        assert process.poll() is None, f"it ended before {stage} was to be killed:\n{end(process)}"
        assert time.monotonic() < deadline, f"{stage} did not begin within {WAIT_S:.0f} s"
        time.sleep(0.005)
    root = psutil.Process(process.pid)
    tree = [root, *root.children(recursive=True)]
    for each in tree:
        each.kill()
    printed, _ = process.communicate(timeout=WAIT_S)
    _, alive = psutil.wait_procs(tree, timeout=30)
    assert not alive
    assert not (out / "kill" / stage / "done.json").exists()
    return printed


def saved(folder: Path) -> bool:
    return any(folder.glob("checkpoints/step-*/*.json"))


def filed(folder: Path) -> bool:
    return any(folder.glob("samples/part-*.parquet"))


def answered(folder: Path) -> bool:
    path = folder / "evaluations" / "v0" / "benchmark.jsonl"
    return path.is_file() and path.read_bytes().count(b"\n") > 2


def record(out: Path, stage: str) -> dict:
    return json.loads((out / "kill" / stage / "done.json").read_text())


def test_killed_inside_every_stage_it_ends_with_the_same(recipe: Path, run_root: Path):
    calm, wild = run_root / "calm", run_root / "wild"
    end(start(recipe, calm, "--to", "harvest"))

    kill_inside(recipe, wild, "tune", saved)
    kill_inside(recipe, wild, "harvest", filed)
    kill_inside(recipe, wild, "learn", saved)
    printed = kill_inside(recipe, wild, "exam", answered)
    assert [line.split()[1] for line in printed.splitlines() if "done earlier" in line] == ["tune:", "harvest:"]
    assert "learn: goes on" in printed
    [before] = [path.read_bytes() for path in (wild / "kill").glob("exam-*/evaluations/v0/benchmark.jsonl")]
    printed = end(start(recipe, wild))
    assert printed.count("done earlier") == 3
    assert "exam: goes on" in printed

    # What is deterministic is the same, byte for byte.
    for stage, output in (("tune", "model"), ("harvest", "data")):
        one, other = (record(root, stage) for root in (calm, wild))
        assert one["key"] == other["key"]
        assert one["outputs"][output]["sha256"] == other["outputs"][output]["sha256"]
    completions = pq.read_table(wild / "kill" / "harvest" / "samples", columns=["ordinal", "member"]).to_pylist()
    assert len({(each["ordinal"], each["member"]) for each in completions}) == len(completions) == 4 * len(SUMS)

    # What is asynchronous has books that balance: every step once, nothing lost.
    audit = json.loads((wild / "kill" / "learn" / "audit.json").read_text())
    assert audit["balanced"], audit
    books = audit["rollouts"]
    assert books["in"] == books["trained"] + sum(books["dropped"].values())
    assert books["live"] == 0
    assert json.loads((wild / "kill" / "learn" / "summary.json").read_text())["steps"] == STEPS

    # And the evaluation keeps the samples that it had.
    folder = wild / "kill" / "exam" / "evaluations" / "v0"
    whole = before[: before.rindex(b"\n") + 1]
    assert (folder / "benchmark.jsonl").read_bytes().startswith(whole)
    result = json.loads((folder / "benchmark.json").read_text())
    assert (result["asked"], result["samples"], result["unfinished"]) == (PROBLEMS, PROBLEMS * K, 0.0)
    asked = [json.loads(line) for line in (folder / "benchmark.jsonl").read_text().splitlines()[1:]]
    assert len({(each["problem"], each["member"]) for each in asked}) == len(asked) == PROBLEMS * K
    assert json.loads((wild / "kill" / "exam" / "audit.json").read_text())["balanced"]

    printed = end(start(recipe, wild))
    assert printed.count("done earlier") == 4
