"""The page of a recipe: all checkpoints on all benchmarks, and what they differ by."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from r1async.config import ConfigError
from r1async.recipes.report import report

PASSED = {"base": (0, 1, 2), "zero": (2, 2, 4), "sft": (4, 4, 4)}
"""Of four samples of each of three problems."""


def result(benchmark: str, passed: tuple[int, ...], **more: object) -> dict[str, object]:
    return {
        "benchmark": benchmark, "title": benchmark.upper(), "digest": "same", "asked": 3, "k": 4, "problems": 3,
        "protocol": {"k": 4}, "accuracy": sum(passed) / 12, "stderr": 0.1, "stderr_sampling": 0.05, "cons_at_k": 0.5,
        "truncated": 0.25, "mean_tokens": 12.0, "abstained": 0, "unfinished": 0.0,
        "by_problem": [{"id": str(i), "samples": 4, "passed": count} for i, count in enumerate(passed)], **more,
    }  # fmt: skip


def evaluated(tmp_path: Path, checkpoint: str, *results: dict[str, object]) -> str:
    folder = tmp_path / checkpoint
    (folder / "evaluations" / "v0").mkdir(parents=True)
    for each in results:
        (folder / "evaluations" / "v0" / f"{each['benchmark']}.json").write_text(json.dumps(each))
    return str(folder)


@pytest.fixture
def exams(tmp_path: Path) -> dict[str, str]:
    return {name: evaluated(tmp_path, name, result("sums", each)) for name, each in PASSED.items()}


def tables(folder: Path) -> list[list[list[str]]]:
    """Cells of every table of the page."""
    html = (folder / "report.html").read_text()
    return [
        [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", table)]
        for table in re.findall(r"<table>(.*?)</table>", html)
    ]


def test_every_checkpoint_has_its_figures_with_both_errors(tmp_path, exams):
    report(tmp_path, title="T", exams=exams)
    figures = tables(tmp_path)[0]
    assert figures[0][:5] == ["checkpoint", "pass@1", "± problems", "± sampling", "cons@k"]
    assert [row[0] for row in figures[1:]] == list(PASSED)
    named = dict(zip(figures[0], figures[1], strict=True))
    assert named == {
        "checkpoint": "base", "pass@1": "25.0 %", "± problems": "10.0 %", "± sampling": "5.0 %", "cons@k": "50.0 %",
        "k": "4", "problems": "3", "truncated": "25.0 %", "mean tokens": "12",
    }  # fmt: skip


def test_successive_checkpoints_are_compared_problem_by_problem(tmp_path, exams):
    report(tmp_path, title="T", exams=exams, compare=[["base", "sft"]])
    told = json.loads((tmp_path / "report.json").read_text())["differences"]
    assert [(each["from"], each["to"]) for each in told] == [("base", "zero"), ("zero", "sft"), ("base", "sft")]
    first = told[0]
    # 2/4, 1/4 and 2/4 more: a mean of 5/12, a deviation of 1/12 root 3 over problems, divided by root 3.
    assert first["difference"] == pytest.approx(5 / 12)
    assert first["stderr"] == pytest.approx(1 / 12)
    # Variances p(1-p)/3: base 0, 1/16, 1/12; zero 1/12, 1/12, 0.
    assert first["stderr_sampling"] == pytest.approx((1 / 16 + 3 / 12) ** 0.5 / 3)
    assert (first["better"], first["worse"]) == (3, 0)
    rows = tables(tmp_path)[1]
    assert rows[1][:3] == ["base → zero", "+41.7 %", "8.3 %"]
    assert [row[0] for row in rows[1:]] == ["base → zero", "zero → sft", "base → sft"]


def test_several_benchmarks_stand_side_by_side_and_one_that_was_not_asked_is_a_dash(tmp_path):
    exams = {
        "base": evaluated(tmp_path, "base", result("sums", (0, 1, 2))),
        "zero": evaluated(tmp_path, "zero", result("sums", (2, 2, 4)), result("facts", (1, 1, 1))),
    }
    report(tmp_path, title="T", exams=exams)
    assert tables(tmp_path)[0] == [
        ["checkpoint", "SUMS", "FACTS"],
        ["base", "25.0 % ± 10.0 %", "–"],
        ["zero", "66.7 % ± 10.0 %", "25.0 % ± 10.0 %"],
    ]
    told = json.loads((tmp_path / "report.json").read_text())
    assert set(told["exams"]) == {"sums", "facts"}
    assert "by_problem" not in told["exams"]["sums"]["base"]


def test_tables_of_examinations_come_together_also_those_of_runs(tmp_path, exams):
    run = tmp_path / "talk"
    run.mkdir()
    line = {"kind": "evaluation", "pass": "sampled", "version": 0, "accuracy": None, "reward": 0.75, "k": 4}
    (run / "evaluation.jsonl").write_text(json.dumps(line) + "\n")
    report(tmp_path, title="T", exams={"problems": exams, "talk": {"base": str(run)}})
    assert tables(tmp_path)[0][:2] == [["checkpoint", "SUMS", "talk"], ["base", "25.0 % ± 10.0 %", "reward 0.750"]]


def test_the_page_needs_no_network(tmp_path, exams):
    report(tmp_path, title="<T>", exams=exams)
    html = (tmp_path / "report.html").read_text()
    assert "<h1>&lt;T&gt;</h1>" in html
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", html)
    assert "http" not in html


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"compare": [["base", "nobody"]]}, "compare names 'nobody', and examined are base, zero, sft"),
        ({"compare": ["base"]}, "must be a list of pairs"),
        ({"curves": [{"title": "x"}]}, "must have title, and metric or evaluation"),
    ],
)
def test_mistakes_are_named(tmp_path, exams, arguments, says):
    with pytest.raises(ConfigError) as error:
        report(tmp_path, title="T", exams=exams, **arguments)
    assert says in str(error.value)


def test_folders_beside_tables_are_refused(tmp_path, exams):
    with pytest.raises(ConfigError, match="got both"):
        report(tmp_path, title="T", exams={"all": exams, "base": exams["base"]})


def test_checkpoints_that_were_asked_otherwise_are_not_compared(tmp_path):
    exams = {
        "base": evaluated(tmp_path, "base", result("sums", (0, 1, 2))),
        "zero": evaluated(tmp_path, "zero", result("sums", (2, 2, 4), digest="another", protocol={"k": 8})),
    }
    with pytest.raises(ConfigError, match="k is 4 in A and 8 in B"):
        report(tmp_path, title="T", exams=exams)
