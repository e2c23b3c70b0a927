"""Instances checked and predictions graded by real workers in the sandbox; containers through a stand-in."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from r1async.cli import main
from r1async.config_swe import SweConfig
from r1async.rewards.sandbox import SandboxError
from r1async.swe.boxes import Boxes
from r1async.swe.check import _of_gold, unresolved
from r1async.swe.grade import SweGrader
from r1async.swe.instance import Environment, parse_instance
from r1async.swe.samples import INTERVALS, diff_of, make_samples
from r1async.swe.testing import Report

Row = Mapping[str, object]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    make_samples(folder)
    return folder


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def swe(samples: Path, tmp_path: Path, *arguments: str | Path) -> int:
    where = ["--repos", str(samples / "repos"), "--workers", "2"]
    fixed = [f"reward.swe.cache={tmp_path}/cache", "reward.swe.container=none"]
    return main(["swe", *map(str, arguments), *where, *fixed])


def test_check_tells_good_instances_from_bad_ones(
    samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = rows_of(samples / "instances.jsonl")[0]
    environment = row["environment"]
    instances = [
        row,
        {**row, "instance_id": "wrong-gold", "patch": diff_of(INTERVALS.before, {"README.md": "x\n"})},
        {**row, "instance_id": "solved", "FAIL_TO_PASS": ["tests/test_core.py::test_gaps"], "PASS_TO_PASS": []},
        {**row, "instance_id": "no-patch", "patch": "nonsense"},
        {**row, "instance_id": "no-setup", "environment": {**environment, "setup": ["exit 3"]}},
        {**row, "instance_id": "no-repo", "repo": "acme/none"},
        {**row, "instance_id": "no-commit", "base_commit": "not hexadecimal"},
    ]
    path, out = write(tmp_path / "i.jsonl", instances), tmp_path / "out.jsonl"
    assert swe(samples, tmp_path, "check", path, "--runs", "2", "--out", out) == 1
    found = {each["id"]: each["status"] for each in rows_of(out)}
    assert found == {
        row["instance_id"]: "ok",
        "wrong-gold": "gold_fails",
        "solved": "empty_passes",
        "no-patch": "no_apply",
        "no-setup": "setup_fails",
        "no-repo": "infra_error",
        "no-commit": "ungradable",
    }
    table = capsys.readouterr().out
    assert "2 of 2        5" in table
    assert "1 of 7 instances are good" in table
    # Again: nothing is left to do, and the table is the same.
    assert swe(samples, tmp_path, "check", path, "--runs", "2", "--out", out) == 1
    assert capsys.readouterr().out == table


def test_predictions_are_graded_in_order_and_resumed(samples: Path, tmp_path: Path) -> None:
    instances = rows_of(samples / "instances.jsonl")
    good = [
        {"instance_id": row["instance_id"], "model_name_or_path": "m", "model_patch": row["patch"]} for row in instances
    ]
    lines = [good[2], "not json", {**good[0], "model_patch": None}, {**good[0], "instance_id": "nobody"}, good[0]]
    source, out = write(tmp_path / "p.jsonl", lines), tmp_path / "out.jsonl"
    assert swe(samples, tmp_path, "grade", samples / "instances.jsonl", source, out) == 0
    graded = rows_of(out)
    assert [row["score"] for row in graded] == [1.0, None, 0.0, None, 1.0]
    assert [row["status"] for row in graded] == ["ok", "invalid", "empty", "ungradable", "ok"]
    assert graded[0]["model_name_or_path"] == "m"
    whole = out.read_text()
    out.write_text("".join(whole.splitlines(keepends=True)[:3]) + '{"id": "torn')
    assert swe(samples, tmp_path, "grade", samples / "instances.jsonl", source, out) == 0
    again = rows_of(out)
    assert [row["score"] for row in again] == [1.0, None, 0.0, None, 1.0]


def test_a_patch_that_never_ends_is_timed_out_and_a_build_may_fail(samples: Path, tmp_path: Path) -> None:
    row = rows_of(samples / "instances.jsonl")[0]
    environment = {**row["environment"], "timeout_s": 5, "build": ["python3 -m compileall -q intervals"]}
    instance = parse_instance({**row, "environment": environment})
    grader = SweGrader(SweConfig(repos=str(samples / "repos"), cache=str(tmp_path), container="none", controls=1))
    try:
        core = INTERVALS.before["intervals/core.py"]
        endless = diff_of(
            INTERVALS.before, {"intervals/core.py": core.replace("    merged = []", "    while True: pass", 1)}
        )
        broken = diff_of(INTERVALS.before, {"intervals/core.py": "def merge(:\n"})
        assert grader.grade(instance, endless).verdict.status == "timeout"
        assert grader.grade(instance, broken).verdict.status == "compile"
        assert grader.grade(instance, row["patch"]).verdict.total == 1.0
    finally:
        grader.close()


def test_a_log_is_read_where_a_command_runs_the_tests(samples: Path, tmp_path: Path) -> None:
    row = rows_of(samples / "instances.jsonl")[0]
    command = f"{sys.executable} -m pytest -rA -p no:cacheprovider {{tests}}"
    environment = {"runner": "command", "test_command": command, "timeout_s": 60, "python": sys.executable}
    instance = parse_instance({**row, "environment": environment})
    grader = SweGrader(SweConfig(repos=str(samples / "repos"), cache=str(tmp_path), container="none", controls=1))
    try:
        assert grader.grade(instance, row["patch"]).verdict.total == 1.0
        readme = diff_of(INTERVALS.before, {"README.md": "Nothing.\n"})
        assert grader.grade(instance, readme).verdict.status == "wrong"
        forged = "import _pytest.python\n_pytest.python.Function.runtest = lambda self: None\n"
        core = forged + INTERVALS.before["intervals/core.py"]
        assert grader.grade(instance, diff_of(INTERVALS.before, {"intervals/core.py": core})).verdict.status == "guard"
    finally:
        grader.close()


def test_flaky_reference_patches_are_found() -> None:
    instance = parse_instance(
        {
            "instance_id": "a",
            "repo": "a/b",
            "base_commit": "abcdef0",
            "patch": "",
            "test_patch": "",
            "problem_statement": "",
            "FAIL_TO_PASS": ["t::a"],
            "PASS_TO_PASS": ["t::b"],
        }
    )
    good, bad = {"t::a": "passed", "t::b": "skipped"}, {"t::a": "passed", "t::b": "failed"}
    flaky = _of_gold(instance, [Report(outcomes=good), Report(outcomes=bad), Report(outcomes=good)])
    assert (flaky.status, flaky.gold_passes, flaky.gold_runs) == ("flaky", 2, 3)
    assert _of_gold(instance, [Report(outcomes=bad)]).status == "gold_fails"
    # Skipped is good enough in PASS_TO_PASS where it is skipped under the reference too, and nowhere else.
    assert unresolved(instance, Report(outcomes=good), good) == ""
    assert "skipped" in unresolved(instance, Report(outcomes=good), {"t::a": "passed", "t::b": "passed"})
    assert "skipped" in unresolved(
        instance, Report(outcomes={"t::a": "skipped", "t::b": "passed"}), {"t::a": "skipped"}
    )
    assert "missing" in unresolved(instance, Report(outcomes={}), {})
    assert "unfinished" in unresolved(instance, Report(outcomes=good, ended="unfinished"), good)


STAND_IN = """#!{python}
import os, subprocess, sys, tempfile
if sys.argv[1] == "info":
    sys.exit({info})
if sys.argv[1] == "run":
    image = sys.argv.index("an/image:1")
    options, command = sys.argv[2:image], sys.argv[image + 1:]
    assert "--network=none" in options and "--cap-drop=ALL" in options and "--interactive" in options, options
    env = dict(option[6:].split("=", 1) for option in options if option.startswith("--env="))
    with tempfile.TemporaryDirectory() as folder:
        command = [word.replace("/tmp/r1async", folder) for word in command]
        sys.exit(subprocess.run(command, env={{"PATH": {path!r}, "HOME": folder, **env}}).returncode)
"""


def stand_in(folder: Path, *, info: int) -> None:
    path = os.path.dirname(sys.executable) + ":/usr/local/bin:/usr/bin:/bin"
    file = folder / "docker"
    file.write_text(STAND_IN.format(python=sys.executable, info=info, path=path))
    file.chmod(0o755)


def test_an_image_runs_in_a_container(samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, info=0)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    row = rows_of(samples / "instances.jsonl")[0]
    instance = parse_instance({**row, "environment": {**row["environment"], "image": "an/image:1"}})
    grader = SweGrader(SweConfig(repos=str(samples / "repos"), cache=str(tmp_path / "cache"), controls=1))
    try:
        graded = grader.grade(instance, row["patch"])
        assert (graded.verdict.total, graded.controls) == (1.0, 2), graded
        assert grader.grade(instance, diff_of(INTERVALS.before, {"README.md": "x\n"})).verdict.status == "wrong"
    finally:
        grader.close()


def test_a_container_program_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, info=1)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxError, match="container=docker: docker info"):
        Boxes(SweConfig(container="docker"))
    with pytest.raises(SandboxError, match="container=podman: podman is not installed"):
        Boxes(SweConfig(container="podman"))
    with pytest.raises(SandboxError, match="image an/image:1: neither docker nor podman"):
        Boxes(SweConfig()).box(Environment(image="an/image:1"))
