"""`r1async recipe` as a person runs it: real processes, killed and started again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

NUMBER = 'make: "tests.recipe_steps:number", outputs: {out: number.txt}'
CHAIN = f"""
name: chain
stages:
  a: {{{NUMBER}, set: {{value: 1}}}}
  b: {{{NUMBER}, set: {{value: 2, plus: "${{a.out}}"}}}}
  c: {{{NUMBER}, set: {{value: 3, plus: "${{b.out}}"}}}}
"""
PROGRAM = [sys.executable, "-m", "r1async", "recipe"]


def recipe(tmp_path: Path, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    command = [*PROGRAM, str(path), f"folder={tmp_path / 'out'}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def calls(tmp_path: Path) -> list[str]:
    path = tmp_path / "out" / "chain" / "calls.txt"
    return path.read_text().split() if path.exists() else []


def number(tmp_path: Path, stage: str) -> int:
    return int((tmp_path / "out" / "chain" / stage / "number.txt").read_text())


def test_nothing_runs_twice_and_a_change_runs_what_depends_on_it(tmp_path):
    ended = recipe(tmp_path, CHAIN)
    assert ended.returncode == 0, ended.stderr
    assert number(tmp_path, "c") == 6
    assert calls(tmp_path) == ["a", "b", "c"]
    again = recipe(tmp_path, CHAIN)
    assert again.stdout.count("done earlier") == 3
    assert calls(tmp_path) == ["a", "b", "c"]
    assert recipe(tmp_path, CHAIN, "b.value=10").returncode == 0
    assert number(tmp_path, "c") == 14
    assert calls(tmp_path) == ["a", "b", "c", "b", "c"]
    record = json.loads((tmp_path / "out" / "chain" / "recipe.json").read_text())
    assert list(record["stages"]) == ["a", "b", "c"]


def test_the_plan_says_what_would_happen_and_does_nothing(tmp_path):
    assert recipe(tmp_path, CHAIN, "--to", "a").returncode == 0
    planned = recipe(tmp_path, CHAIN, "--dry-run", "--to", "b")
    lines = {line.split()[0]: line.split()[-1] for line in planned.stdout.splitlines()}
    assert (lines["a"], lines["b"], lines["c"]) == ("done", "runs", "selected")
    assert calls(tmp_path) == ["a"]


def test_what_is_not_selected_has_to_be_there(tmp_path):
    ended = recipe(tmp_path, CHAIN, "--only", "c")
    assert ended.returncode == 2
    assert "b: not done with these settings" in ended.stderr


def test_again_runs_the_selected_ones_anew(tmp_path):
    recipe(tmp_path, CHAIN)
    assert recipe(tmp_path, CHAIN, "--only", "b", "--again").returncode == 0
    assert calls(tmp_path) == ["a", "b", "c", "b"]


def test_a_stage_that_breaks_ends_the_recipe_and_is_tried_again(tmp_path):
    fixed = tmp_path / "fixed"
    text = CHAIN + (
        '  d: {make: "tests.recipe_steps:breaks", outputs: {out: number.txt}, '
        f'set: {{fixed: "{fixed}"}}}}\n  e: {{{NUMBER}, set: {{value: 1, plus: "${{d.out}}"}}}}\n'
    )
    ended = recipe(tmp_path, text)
    assert ended.returncode == 1
    assert "the disk of the oracle is full" in ended.stderr
    assert "the same command goes on from here" in ended.stderr
    fixed.touch()
    ended = recipe(tmp_path, text)
    assert ended.returncode == 0
    assert calls(tmp_path) == ["a", "b", "c", "e"]


def test_a_stage_that_makes_nothing_is_not_done(tmp_path):
    text = 'name: chain\nstages:\n  a: {make: "tests.recipe_steps:nothing", outputs: {out: x}}\n'
    ended = recipe(tmp_path, text)
    assert ended.returncode == 2
    assert "did not make out" in ended.stderr


def test_stages_that_do_not_need_each_other_run_side_by_side(tmp_path):
    """Each waits for a file that the other one's first steps leave: alone, neither would end."""
    text = "name: chain\nstages:\n"
    for name, other in (("a", "b"), ("b", "a")):
        until = f"{tmp_path}/out/chain/{other}-started"
        text += (
            f'  {name}: {{make: "tests.recipe_steps:meets", outputs: {{out: met.txt}}, '
            f'set: {{mine: "{tmp_path}/out/chain/{name}-started", theirs: "{until}"}}}}\n'
        )
    ended = recipe(tmp_path, text, "--jobs", "2")
    assert ended.returncode == 0, ended.stderr


def _slow(tmp_path: Path) -> tuple[str, Path]:
    until = tmp_path / "go"
    text = (
        'name: chain\nstages:\n  s: {make: "tests.recipe_steps:slow", outputs: {out: steps.txt}, '
        f'set: {{steps: 4, until: "{until}"}}}}\n'
    )
    return text, until


def _begin(tmp_path: Path, text: str) -> tuple[subprocess.Popen[str], psutil.Process]:
    """The recipe and its stage's process, which has made two steps and waits."""
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    command = [*PROGRAM, str(path), f"folder={tmp_path / 'out'}"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 60
    while not any(path.read_text() == "2" for path in (tmp_path / "out").glob("chain/s-*/steps.txt")):
        assert time.monotonic() < deadline, "the stage did not begin within 60 s"
        time.sleep(0.02)
    [child] = psutil.Process(running.pid).children()
    return running, child


def test_killed_it_leaves_nothing_behind_and_goes_on_within_the_stage(tmp_path):
    text, until = _slow(tmp_path)
    running, child = _begin(tmp_path, text)
    os.kill(running.pid, signal.SIGKILL)
    running.communicate(timeout=60)
    child.wait(timeout=30)
    until.touch()
    ended = recipe(tmp_path, text)
    assert ended.returncode == 0
    assert "goes on" in ended.stdout
    [log] = (tmp_path / "out" / "chain" / "logs").glob("s-*.log")
    assert "slow: steps 2 to 4" in log.read_text()


def test_ctrl_c_ends_it_with_its_state_saved(tmp_path):
    text, until = _slow(tmp_path)
    running, child = _begin(tmp_path, text)
    running.send_signal(signal.SIGINT)
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "the same command goes on from here" in output
    child.wait(timeout=30)
    until.touch()
    assert recipe(tmp_path, text).returncode == 0


def test_a_second_recipe_in_the_same_folder_is_refused(tmp_path):
    text, until = _slow(tmp_path)
    running, _ = _begin(tmp_path, text)
    other = recipe(tmp_path, text)
    assert other.returncode == 2
    assert "is in use by another r1async" in other.stderr
    until.touch()
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 0, output
