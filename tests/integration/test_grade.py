"""`r1async grade`: verdicts by real workers, in the order of the input, whatever the lines hold and whoever dies."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from r1async.cli import main

GRADERS = """
import ctypes, os
from pathlib import Path

ctypes.pythonapi.PyErr_CheckSignals.argtypes = []

def hang_in_c(prompt, completion):
    if "hang" in completion.text:
        with open(os.environ["GRADER_MARK"], "a") as mark:
            mark.write("x")
        ctypes.PyDLL(None).pause()  # holds the interpreter lock: no signal handler and no thread ends it
    return 1.0

def die(prompt, completion):
    if "die" in completion.text:
        os.kill(os.getpid(), 9)
    return float(prompt.extra["level"])
"""


@pytest.fixture(autouse=True)
def graders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "graders_of_lines.py").write_text(textwrap.dedent(GRADERS))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.setenv("GRADER_MARK", str(tmp_path / "mark"))


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def grade(tmp_path: Path, kind: str, *rows: object, options: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    source, target = write(tmp_path / "in.jsonl", *rows), tmp_path / "out.jsonl"
    assert main(["grade", kind, str(source), str(target), "--workers", "1", *options]) == 0
    return read(target)


def test_math_in_order_with_a_status_for_each_line(tmp_path: Path):
    rows = [
        {"id": "a", "completion": "so \\boxed{5}", "answer": "5"},
        {"id": "b", "completion": "so \\boxed{6}", "answer": "\\boxed{5}"},
        {"id": 3, "completion": "<answer>2\\sqrt{2}</answer>", "answer": "\\sqrt{8}"},
        {"id": "tower", "completion": "\\boxed{9^{9^{9^9}}}", "answer": "5"},
        {"id": "gold", "completion": "\\boxed{5}", "answer": "9^{9^{9^9}}"},
        {"id": "none", "completion": "\\boxed{5}"},
        {"id": "text", "completion": ["5"], "answer": "5"},
        "not json\n",
        "\n",
        {"id": "half", "completion": "\ud800 \\boxed{5}", "answer": 5},
        "[1, 2]\n",
        {"id": "cut", "completion": "\\boxed{5}", "answer": "5", "finish": "maybe"},
    ]
    found = grade(tmp_path, "math", *rows)
    assert [(line["id"], line["score"], line["status"]) for line in found] == [
        ("a", 1.0, "ok"),
        ("b", 0.0, "wrong"),
        (3, 1.0, "ok"),
        ("tower", 0.0, "guard"),
        ("gold", None, "ungradable"),
        ("none", None, "invalid"),
        ("text", None, "invalid"),
        (None, None, "invalid"),
        ("half", 1.0, "ok"),
        (None, None, "invalid"),
        ("cut", None, "invalid"),
    ]
    assert list(found[0]) == ["id", "score", "status", "parts", "elapsed_s", "detail", "line"]
    assert found[0]["parts"] == {"accuracy": 1.0}
    assert found[1]["detail"] == "answer: 6"
    assert found[5]["detail"] == "answer: is missing"


def test_format_and_language_by_line(tmp_path: Path):
    inside = "1</think><answer>5</answer>"
    found = grade(
        tmp_path,
        "format",
        {"id": 1, "completion": f"<think>{inside}"},
        {"id": 2, "completion": inside, "prefilled_open_tag": True},
        {"id": 3, "completion": inside},
    )
    assert [line["score"] for line in found] == [1.0, 1.0, 0.0]
    (tmp_path / "out.jsonl").unlink()
    found = grade(
        tmp_path,
        "language",
        {"id": 1, "completion": "<think>we add 因此</think>", "target_language": "en"},
        {"id": 2, "completion": "<think>we add 因此</think>", "target_language": "zh-CN"},
        {"id": 3, "completion": "<think>$x$</think>", "target_language": "en"},
        {"id": 4, "completion": "<think>we</think>", "target_language": "xx"},
        options=("reward.identify_sentences=false",),
    )
    assert [(line["score"], line["status"]) for line in found] == [
        (0.5, "ok"),
        (0.5, "ok"),
        (None, "no_words"),
        (None, "ungradable"),
    ]
    assert found[2]["parts"] == {"language": None}


def test_reward_of_a_file_adds_up_and_may_abstain_on_what_was_cut(tmp_path: Path):
    reward = tmp_path / "reward.yaml"
    reward.write_text(
        "weights: {accuracy: 1, overlong: 0.5}\noverlong_max: 100\noverlong_cache: 40\ntruncated: abstain\n"
    )
    five = {"completion": "\\boxed{5}", "answer": "5"}
    found = grade(
        tmp_path,
        str(reward),
        {"id": 1, "num_tokens": 80, **five},
        {"id": 2, "num_tokens": 100, "finish": "length", **five},
        {"id": 3, **five},
    )
    assert [(line["score"], line["status"]) for line in found] == [(0.75, "ok"), (None, "truncated"), (None, "invalid")]
    assert found[0]["parts"] == {"accuracy": 1.0, "overlong": -0.5}


def test_lines_that_hang_or_kill_their_worker_cost_only_themselves(tmp_path: Path):
    reward = tmp_path / "reward.yaml"
    reward.write_text("weights: {'graders_of_lines:hang_in_c': 1}\ndeadline_s: 0.5\nretries: 0\n")
    rows = [{"id": i, "completion": "hang" if i % 10 == 3 else f"fine {i}"} for i in range(40)]
    found = grade(tmp_path, str(reward), *rows)
    assert [line["id"] for line in found] == list(range(40))
    assert [line["status"] for line in found] == ["timeout" if i % 10 == 3 else "ok" for i in range(40)]
    # Lines that ask the same share what was found out: one of the four held a worker up to its deadline.
    assert (tmp_path / "mark").read_text() == "x"
    assert found[3]["elapsed_s"] >= 0.5

    (tmp_path / "out.jsonl").unlink()
    reward.write_text("weights: {'graders_of_lines:die': 1}\nretries: 0\n")
    rows = [{"id": i, "completion": "die" if i == 3 else "fine", "level": i} for i in range(8)]
    found = grade(tmp_path, str(reward), *rows)
    assert [line["score"] for line in found] == [None if i == 3 else float(i) for i in range(8)]
    assert found[3]["status"] == "worker_lost"


def test_a_killed_grade_goes_on_where_it_was(tmp_path: Path):
    """Killed in the middle, then a line torn: the rest is graded, nothing twice, and in order."""
    rows = [{"id": i, "completion": f"\\boxed{{{i % 7}}}", "answer": "5"} for i in range(600)]
    rows[300] = {"id": 300, "completion": "hang"}
    reward = tmp_path / "reward.yaml"
    reward.write_text("weights: {accuracy: 1, 'graders_of_lines:hang_in_c': 0}\ndeadline_s: 600\nequivalence: exact\n")
    rows[300]["answer"] = "5"
    source, target = write(tmp_path / "in.jsonl", *rows), tmp_path / "out.jsonl"
    command = ["grade", str(reward), str(source), str(target), "--workers", "1"]
    process = subprocess.Popen([sys.executable, "-c", f"from r1async.cli import main; main({command!r})"])
    while not (tmp_path / "mark").exists() or len(target.read_bytes().splitlines()) < 300:
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    with target.open("ab") as file:
        file.write(b'{"id": 300, "sco')
    assert main([*command, "reward.deadline_s=0.5", "reward.retries=0"]) == 0
    found = read(target)
    assert [line["id"] for line in found] == list(range(600))
    assert [line["score"] for line in found] == [0.0 if i == 300 else float(i % 7 == 5) for i in range(600)]
    before = target.read_bytes()
    assert main(command) == 0  # nothing is left to do
    assert target.read_bytes() == before


def test_ctrl_c_keeps_what_is_there(tmp_path: Path):
    rows = [{"id": i, "completion": "hang" if i == 9 else "fine"} for i in range(20)]
    reward = write(tmp_path / "reward.yaml", "weights: {'graders_of_lines:hang_in_c': 1}\ndeadline_s: 600\n")
    source, target = write(tmp_path / "in.jsonl", *rows), tmp_path / "out.jsonl"
    command = ["grade", str(reward), str(source), str(target), "--workers", "1"]
    # A shell's background jobs, and so perhaps these tests, ignore SIGINT, and hand that down.
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += f"from r1async.cli import main; sys.exit(main({command!r}))"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "mark").exists() or len(target.read_bytes().splitlines()) < 9:
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "the same command goes on" in errors
    assert [line["id"] for line in read(target)] == list(range(9))


def test_output_of_another_input_or_reward_is_not_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    five = {"completion": "\\boxed{5}", "answer": "5"}
    source = write(tmp_path / "in.jsonl", {"id": 1, **five}, {"id": 2, **five})
    target = tmp_path / "out.jsonl"
    line = {"id": 7, "score": 1.0, "status": "ok", "parts": {"accuracy": 1.0}, "elapsed_s": 0, "detail": ""}
    for kind, rows, complaint in [
        ("math", [line], "line 1 is not of this input"),
        ("format", [{**line, "id": 1}], "line 1 is of another reward"),
        ("math", [{**line, "id": 1, "line": "0" * 16}], "line 1 is of another content of the input"),
        ("math", ["no verdict\n", line], "line 1 is no verdict"),
        ("math", [{**line, "id": 1}, {**line, "id": 2}, {**line, "id": 3}], "line 3 is not of this input"),
    ]:
        write(target, *rows)
        before = target.read_bytes()
        assert main(["grade", kind, str(source), str(target)]) == 2
        assert complaint in capsys.readouterr().err
        assert target.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nothing", "in.jsonl", "out.jsonl"], "KIND: must be math, format, language"),
        (["math", "missing.jsonl", "out.jsonl"], "missing.jsonl: no such file"),
        (["math", "in.jsonl", "in.jsonl"], "OUT must be another file"),
        (["math", "in.jsonl", "out.jsonl", "reward.deadline_s=0"], "reward.deadline_s: must be above 0"),
        (["math", "in.jsonl", "out.jsonl", "reward.formt=think"], "reward.formt: unknown key"),
        (["language", "in.jsonl", "out.jsonl", "reward.target_language=xx"], "reward.target_language: must be one of"),
        (["over.yaml", "in.jsonl", "out.jsonl"], "reward.overlong_cache: 4096 tokens are more than the maximum of 10"),
    ],
)
def test_mistakes_are_named(
    arguments: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in.jsonl", {"id": 1, "completion": "", "answer": "5"})
    write(tmp_path / "over.yaml", "weights: {overlong: 1}\noverlong_max: 10\n")
    assert main(["grade", *arguments]) == 2
    assert complaint in capsys.readouterr().err
