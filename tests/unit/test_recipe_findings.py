"""Findings of the miniature: what agrees with the paper, from folders as jobs leave them."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from r1async.config import ConfigError
from r1async.recipes.miniature.findings import JUDGING, findings

EXAMS = {
    "base": 0.30, "zero": 0.88, "consistent": 0.86, "cold": 0.85, "reasoning": 0.90, "sft": 0.89, "scenarios": 0.88,
    "taught-small": 0.80, "alone-small": 0.60,
}  # fmt: skip
STEPS = 20


def folder_of(path: Path, curves: dict[str, tuple[float, float]] | None = None, accuracy: float = 0.9) -> str:
    """A run's: one evaluation, and figures that go from one value to another at half of its steps."""
    (path / "metrics").mkdir(parents=True)
    record = {
        "kind": "evaluation",
        "version": 0,
        "pass": "sampled",
        "accuracy": accuracy,
        "stderr": 0.01,
        "problems": 9,
    }
    (path / "evaluation.jsonl").write_text(json.dumps(record) + "\n")
    steps = [
        {"kind": "step", "step": step, **{name: ends[step >= STEPS // 2] for name, ends in (curves or {}).items()}}
        for step in range(STEPS)
    ]
    (path / "metrics" / "learner.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    return str(path)


def talk(path: Path, *, harmful: list[list[float]], good: list[list[float]]) -> str:
    """Completions of talk: for each prompt, what the judges said of each of its samples."""
    rows = [{f"{JUDGING}:harmful": value, f"{JUDGING}:good_reply": 1 - value} for each in harmful for value in each]
    rows += [{f"{JUDGING}:good_reply": value} for each in good for value in each]
    ordinals = [number for number, each in enumerate(harmful + good) for _ in each]
    (path / "samples").mkdir(parents=True)
    table = pa.table({"ordinal": ordinals, "parts": [json.dumps(row) for row in rows], "status": ["ok"] * len(rows)})
    pq.write_table(table, path / "samples" / "part-0.parquet")
    return str(path)


def write(path: Path, record: object) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))
    return str(path)


@pytest.fixture
def made(tmp_path):
    """Arguments of a miniature in which all is as in the paper."""
    reflects, mixes = f"reward/{JUDGING}:reflects", f"reward/{JUDGING}:mixes"
    (tmp_path / "taught").mkdir()
    write(tmp_path / "taught" / "summary.json", {"tokens": 1000})
    write(
        tmp_path / "alone" / "summary.json",
        {"completions_trained": 100, "tokens": {"generated": 2000, "trained": 1800}},
    )
    return {
        "exams": {name: folder_of(tmp_path / f"exam-{name}", accuracy=value) for name, value in EXAMS.items()},
        "talks": {
            "sft": talk(tmp_path / "t0", harmful=[[1.0, 0.5], [1.0, 0.5]], good=[[1.0, 1.0], [1.0, 0.5]]),
            "scenarios": talk(tmp_path / "t1", harmful=[[0.0, 0.0], [0.5, 0.0]], good=[[1.0, 1.0], [1.0, 1.0]]),
        },
        "runs": {
            "zero": folder_of(tmp_path / "z", {"length/mean": (12, 18), reflects: (0.1, 0.3), mixes: (0.3, 0.4)}),
            "consistent": folder_of(tmp_path / "c", {"reward/language": (0.8, 0.99), mixes: (0.3, 0.0)}),
            "reasoning": folder_of(tmp_path / "r", {"reward/language": (0.99, 0.99)}),
            "scenarios": folder_of(tmp_path / "s", {"reward/language": (0.99, 0.99)}),
        },
        "teacher": write(tmp_path / "teacher.json", {"parameters": 100}),
        "lessons": write(tmp_path / "card.json", {"completions": {"tokens": 500, "sampled": 10}}),
        "students": {"small": write(tmp_path / "small.json", {"parameters": 40})},
        "taught": {"small": str(tmp_path / "taught")},
        "alone": {"small": str(tmp_path / "alone")},
    }


def holds(folder: Path) -> dict[str, bool]:
    return {each["says"]: each["holds"] for each in json.loads((folder / "findings.json").read_text())["findings"]}


def test_all_as_in_the_paper(tmp_path, made):
    findings(tmp_path, **made)
    found = holds(tmp_path)
    assert len(found) == 14
    assert all(found.values())
    table = json.loads((tmp_path / "table.json").read_text())
    assert {row[-1] for row in table["rows"]} == {"as in the paper"}
    assert all(len(row) == len(table["head"]) for row in table["rows"])


def test_what_differs_is_said(tmp_path, made):
    made["exams"] |= {"alone-small": folder_of(tmp_path / "x", accuracy=0.81)}
    made["exams"] |= {"sft": folder_of(tmp_path / "y", accuracy=0.84)}
    made["talks"] |= {"scenarios": talk(tmp_path / "t2", harmful=[[0.5], [0.5]], good=[[0.0], [0.5]])}
    findings(tmp_path, **made)
    assert [says for says, true in holds(tmp_path).items() if not true] == [
        "fine-tuning of the base model on what stage 3 wrote is as good (within the error)",
        "reinforcement learning for all scenarios halves harmful answers",
        "without refusing others (at most 0.05 of good answers less)",
        "distillation beats reinforcement learning on a student of 40 parameters",
    ]


def test_what_was_never_there_is_not_called_ended_or_halved(tmp_path, made):
    """A run that begins in one language, and no harmful answer to begin with; a distillation that computed more."""
    reward = {"reward/language": (0.99, 0.99), f"reward/{JUDGING}:mixes": (0.0, 0.0)}
    made["runs"] |= {"consistent": folder_of(tmp_path / "one", reward)}
    made["talks"] |= {"sft": talk(tmp_path / "t4", harmful=[[0.0], [0.0]], good=[[1.0], [1.0]])}
    made["lessons"] = write(tmp_path / "long.json", {"completions": {"tokens": 10**6, "sampled": 10}})
    findings(tmp_path, **made)
    assert [says for says, true in holds(tmp_path).items() if not true] == [
        "language consistency in the reward ends it (0.95 or more, from 0.1 of thoughts mixed)",
        "reinforcement learning for all scenarios halves harmful answers",
        "distillation beats reinforcement learning on a student of 40 parameters",
    ]


def test_shares_are_over_prompts_and_computation_counts_what_was_sampled(tmp_path, made):
    findings(tmp_path, **made)
    record = json.loads((tmp_path / "findings.json").read_text())
    assert record["talk"]["scenarios"]["harmful"] == pytest.approx({"value": 0.125, "error": 0.125, "prompts": 2})
    (cost,) = record["compute"]
    assert cost["distillation"] == 2 * 100 * (500 + 13 * 10) + 6 * 40 * 1000
    assert cost["learning"] == 40 * (2 * (2000 + 13 * 100) + 6 * (1800 + 13 * 100))


def test_an_examination_without_figures_is_an_error(tmp_path, made):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ConfigError, match="no sampled evaluation of zero"):
        findings(tmp_path, **{**made, "exams": {**made["exams"], "zero": str(empty)}})
    with pytest.raises(ConfigError, match="fewer than two prompts to be judged helpful"):
        findings(tmp_path, **{**made, "talks": {"sft": talk(tmp_path / "t3", harmful=[[1.0], [1.0]], good=[])}})
