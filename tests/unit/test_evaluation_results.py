"""From samples on disk to figures, a comparison and a page that can be read."""

import base64
import gzip
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from r1async.benchmarks import load_benchmark
from r1async.config import ConfigError
from r1async.evaluation.benchmark import Asked
from r1async.evaluation.compare import compare
from r1async.evaluation.compare import main as compare_main
from r1async.evaluation.page import write_page
from r1async.evaluation.result import about, folder_of, read_results, result_of, write_result
from r1async.evaluation.rows import Problem
from r1async.evaluation.samples import BenchmarkSample, SampleFile, read_samples
from r1async.evaluation.table import figure_cells, figures_of
from r1async.types import PolicyVersion, Prompt

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EVIL = "</script><script>document.title='owned'</script><b>bold</b> \u2028 \ud83d"


def asked_of(name: str = "math500", count: int = 2, k: int = 2, rating: float | None = None) -> Asked:
    benchmark = replace(load_benchmark(name), k=k)
    problems = [
        Problem(id=f"p{i}", fields={"question": f"What is {i} + {i}?"}, answer=str(2 * i), rating=rating)
        for i in range(count)
    ]
    prompts = [
        Prompt(ordinal=i, text=each.fields["question"], answer=each.answer, token_ids=np.array([1], np.int32))
        for i, each in enumerate(problems)
    ]
    return Asked(benchmark=benchmark, problems=problems, prompts=prompts, data="here")


def sample(problem: int, member: int, score: float | None, text: str = "", **changes) -> BenchmarkSample:
    fields = {"status": "ok", "truncated": False, "tokens": 10, **changes}
    return BenchmarkSample(problem=problem, member=member, score=score, text=text, **fields)


def write(folder: Path, asked: Asked, samples: Sequence[BenchmarkSample], version: int = 3) -> dict:
    told = about(asked, PolicyVersion(1, version), "hash", "models/m")
    with SampleFile(folder / f"{asked.benchmark.name}.jsonl", told) as file:
        file.add(samples)
    result = result_of(asked, told, samples)
    write_result(folder, result)
    return result


SAMPLES = [
    sample(0, 0, 1.0, r"\boxed{0}"),
    sample(0, 1, 0.0, r"\boxed{7}", status="wrong"),
    sample(1, 0, 0.0, r"\boxed{2} and on", status="truncated", truncated=True, tokens=30),
    sample(1, 1, None, EVIL, status="worker_lost"),
]


def test_figures_of_four_samples_by_hand(tmp_path):
    result = write(tmp_path, asked_of(), SAMPLES)
    assert result["accuracy"] == pytest.approx((1 / 2 + 0) / 2, abs=1e-12)
    assert result["truncated"] == 0.25
    assert result["mean_tokens"] == 15.0
    assert (result["asked"], result["problems"], result["abstained"], result["unfinished"]) == (2, 2, 1, 0.0)
    assert result["cons_at_k"] == pytest.approx(1 / 4, abs=1e-12)  # a tie, and a cut sample that does not vote
    assert result["statuses"] == {"ok": 1, "wrong": 1, "truncated": 1, "worker_lost": 1}
    assert result["by_problem"][1] == {"id": "p1", "samples": 1, "passed": 0, "abstained": 1, "truncated": 1}
    assert result["protocol"]["max_tokens"] == 32_768


def test_unfinished_samples_are_counted_and_in_no_figure(tmp_path):
    result = write(tmp_path, asked_of(), SAMPLES[:1])
    assert (result["unfinished"], result["accuracy"], result["problems"], result["asked"]) == (0.75, 1.0, 1, 2)


def test_programs_have_no_majority():
    samples = [sample(0, m, 1.0, "x") for m in range(2)]
    asked = asked_of("livecodebench", count=1)
    assert result_of(asked, about(asked, PolicyVersion(1, 0), "h", "m"), samples)["cons_at_k"] is None


def test_rating_is_given_where_all_problems_have_one():
    asked = asked_of("codeforces", count=2, k=1, rating=1400.0)
    told = about(asked, PolicyVersion(1, 0), "h", "m")
    result = result_of(asked, told, [sample(0, 0, 1.0), sample(1, 0, 0.0)])
    assert result["rating"] == pytest.approx(1400, abs=1e-6)
    assert result["percentile"] == pytest.approx(58.7 + (80.4 - 58.7) * (1400 - 1134) / (1444 - 1134), abs=1e-6)


def test_samples_of_an_interrupted_evaluation_are_kept_and_a_torn_line_is_not(tmp_path):
    asked = asked_of()
    told = about(asked, PolicyVersion(1, 3), "hash", "m")
    path = tmp_path / "s.jsonl"
    with SampleFile(path, told) as file:
        file.add(SAMPLES[:2])
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"problem": 1, "mem')
    with SampleFile(path, told) as file:
        assert sorted(file.samples) == [(0, 0), (0, 1)]
        file.add(SAMPLES[1:3])  # one of them is there already
    _, samples = read_samples(path)
    assert [(each.problem, each.member) for each in samples] == [(0, 0), (0, 1), (1, 0)]


@pytest.mark.parametrize("other", [{"hash": "other"}, {"digest": "other"}])
def test_samples_of_other_weights_or_other_problems_are_never_mixed_in(tmp_path, other):
    told = about(asked_of(), PolicyVersion(1, 3), "hash", "m")
    with SampleFile(tmp_path / "s.jsonl", told) as file:
        file.add(SAMPLES)
    with SampleFile(tmp_path / "s.jsonl", {**told, **other}) as file:
        assert not file.samples


def test_text_that_is_half_a_character_survives(tmp_path):
    write(tmp_path, asked_of(), SAMPLES)
    assert read_samples(tmp_path / "math500.jsonl")[1][3].text == EVIL


def results(passes: Sequence[tuple[int, int]], **changes) -> dict:
    asked = asked_of(count=len(passes), k=4)
    samples = [sample(i, m, float(m < right)) for i, (right, count) in enumerate(passes) for m in range(count)]
    return {**result_of(asked, about(asked, PolicyVersion(1, 0), "h", "m"), samples), **changes}


def test_paired_difference_by_hand():
    # shares 1/4, 2/4, 4/4 and 2/4, 2/4, 4/4: differences 1/4, 0, 0
    found = compare(results([(1, 4), (2, 4), (4, 4)]), results([(2, 4), (2, 4), (4, 4)]))
    assert found.difference == pytest.approx(1 / 12, abs=1e-12)
    assert found.stderr == pytest.approx(1 / 12, abs=1e-12)  # sd of 1/4, 0, 0 is 1/(4 sqrt 3), over sqrt 3
    variances = [1 / 4 * 3 / 4, 1 / 4, 0, 1 / 4, 1 / 4, 0]
    assert found.stderr_sampling == pytest.approx((sum(variances) / 3) ** 0.5 / 3, abs=1e-12)
    assert (found.better, found.worse, found.problems, found.left_out) == (1, 0, 3, 0)


def test_pairs_are_worth_more_than_two_means():
    """The problems' own spread falls out of the difference: here it is all there is."""
    a, b = results([(0, 4), (4, 4), (1, 4)]), results([(1, 4), (4, 4), (2, 4)])
    found = compare(a, b)
    assert found.stderr is not None
    assert found.stderr < (a["stderr"] ** 2 + b["stderr"] ** 2) ** 0.5 / 4


def test_problem_that_one_has_nothing_of_is_left_out_and_counted():
    found = compare(results([(1, 4), (2, 4)]), results([(1, 4), (0, 0)]))
    assert (found.problems, found.left_out, found.stderr) == (1, 1, None)


def test_other_problems_or_another_protocol_are_not_compared(tmp_path):
    a = results([(1, 4)])
    with pytest.raises(ConfigError, match="k is 4 in A and 8 in B"):
        compare(a, {**a, "digest": "x", "protocol": {**a["protocol"], "k": 8}})
    with pytest.raises(ConfigError, match="problems or their prompts differ"):
        compare(a, {**a, "digest": "x"})


def test_comparison_reads_run_folders_and_prints(tmp_path, capsys):
    for run, right in (("a", 1.0), ("b", 0.0)):
        write(folder_of(tmp_path / run, 3), asked_of(), [sample(0, 0, right), sample(1, 0, 0.0)])
    assert compare_main([str(tmp_path / "a"), str(tmp_path / "b"), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["difference"] == pytest.approx(-0.5, abs=1e-12)
    assert compare_main([str(tmp_path / "a"), str(tmp_path / "b" / "evaluations" / "v3")]) == 0
    assert "-50.0 %" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="no results"):
        read_results(tmp_path)


def test_table_leaves_out_what_nobody_has():
    first = results([(1, 4)])
    names = figures_of([first])
    assert "rating" not in names
    assert "not graded" not in names
    assert figure_cells(first, names)[:1] == ["25.0 %"]


def test_page_holds_every_sample_and_nothing_of_a_sample_is_markup(tmp_path):
    write(tmp_path, asked_of(), SAMPLES)
    page = write_page(tmp_path).read_text(encoding="utf-8")
    assert "http://" not in page
    assert "owned" not in page
    blocks = re.findall(r'<script type="application/octet-stream">([^<]*)</script>', page)
    problems = [json.loads(gzip.decompress(base64.b64decode(block))) for block in blocks]
    assert [[each["kind"] for each in problem["samples"]] for problem in problems] == [
        ["right", "wrong"],
        ["truncated", "abstained"],
    ]
    assert problems[1]["samples"][1]["text"] == EVIL
    assert problems[0]["prompt"] == "What is 0 + 0?"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_page_opens_in_a_browser_and_shows_what_is_asked_for(tmp_path):
    """The page's own script, driven as a reader would: all problems opened, then only wrong samples shown."""
    write(tmp_path, asked_of(), SAMPLES)
    page = write_page(tmp_path)
    driver = """<script>
      window.onerror = (message) => { document.title = "error " + message; };
      (async () => {
        for (const each of document.querySelectorAll("details")) { each.open = true; }
        for (let i = 0; i < 200 && document.querySelectorAll(".body pre").length < 8; i++) {
          await new Promise((done) => setTimeout(done, 10));
        }
        const texts = [...document.querySelectorAll(".body pre")].map((each) => each.textContent);
        document.querySelector('[data-show="wrong"]').click();
        const seen = [...document.querySelectorAll(".body pre[data-kind]")].filter((each) => !each.hidden);
        const problems = [...document.querySelectorAll("details")].filter((each) => !each.hidden);
        document.body.textContent = JSON.stringify({ texts, title: document.title,
          wrong: seen.map((each) => each.textContent), problems: problems.length });
      })();
    </script></body>"""
    driven = tmp_path / "driven.html"
    driven.write_text(page.read_text(encoding="utf-8").replace("</body>", driver), encoding="utf-8")
    assert CHROMIUM is not None
    dumped = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         "--virtual-time-budget=10000", "--dump-dom", driven.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
    body = re.search(r"<body>(.*)</body>", dumped, re.DOTALL)
    assert body is not None
    told = json.loads(
        body[1].replace("&lt;", "<").replace("&gt;", ">").replace("&nbsp;", "\u00a0").replace("&amp;", "&")
    )
    assert told["title"] == "Version 3 · r1async"
    assert told["wrong"] == [r"\boxed{7}"]
    assert told["problems"] == 1
    assert {r"\boxed{0}", r"\boxed{7}", r"\boxed{2} and on", "What is 1 + 1?"} <= set(told["texts"])
