"""Instances, trees, edits, protected paths, logs and the prompt: what needs no sandbox."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from r1async.config_swe import SweConfig
from r1async.rewards import runners
from r1async.rewards.grading import Result
from r1async.swe.boxes import prefixes
from r1async.swe.check import CheckStore, rounds, survived
from r1async.swe.command import read_prediction
from r1async.swe.edits import Edit, EditError, apply_edits, fill, find_diff, parse_edits
from r1async.swe.instance import Hole, Instance, Unreadable, parse_instance, read_instances
from r1async.swe.prompt import rank, render_prompt
from r1async.swe.repository import Repositories, RepositoryError
from r1async.swe.restore import is_protected, restore
from r1async.swe.samples import SAMPLES, make_samples
from r1async.swe.testing import Report, read_pytest_log, read_unittest_log
from r1async.swe.tree import FILE, LINK, Entry, TreeTooLargeError, changed, from_tar, put, to_tar

ROW = {
    "instance_id": "a__b-1",
    "repo": "a/b",
    "base_commit": "0123456789abcdef",
    "patch": "x",
    "test_patch": "y",
    "problem_statement": "z",
    "FAIL_TO_PASS": '["t.py::test_a"]',
    "PASS_TO_PASS": ["t.py::test_b"],
}


def tree_of(**files: str) -> dict[str, Entry]:
    return {name.replace("__", "/") + ".py": Entry(FILE, text.encode()) for name, text in files.items()}


@pytest.mark.parametrize("needs", [prefixes, runners._prefixes])
def test_an_interpreter_without_a_folder_shows_the_box_nothing(needs) -> None:
    assert needs("python3") == []
    assert needs("/opt/venv/bin/python")[0] == "/opt/venv"


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        (["passed", "passed"], True),
        (["passed", "skipped"], True),
        (["xfailed", "passed"], True),
        (["passed", "failed"], False),
        (["skipped", "failed"], False),
        (["skipped"], False),
        ([], False),
    ],
)
def test_a_case_that_is_skipped_vouches_for_nothing(outcomes: list[str], expected: bool) -> None:
    report = Report(outcomes={f"t.py::f[{i}]": each for i, each in enumerate(outcomes)})
    assert survived(report, "t.py::f") == expected


def test_new_tests_and_known_ones_are_never_changed_in_the_same_run() -> None:
    instance = parse_instance({**ROW, "FAIL_TO_PASS": ["t.py::new[0]", "t.py::new[1]"], "PASS_TO_PASS": ["t.py::old"]})
    assert rounds(instance, {"t.py::new": [0, 3], "t.py::old": [1]}) == [
        {"t.py::new": 0},
        {"t.py::new": 3},
        {"t.py::old": 1},
    ]


@pytest.mark.parametrize(
    "more", [{"timeout_s": 7.0}, {"files_mib": 7}, {"processes": 7}, {"read_only": ("/opt",)}, {"unsafe": True}]
)
def test_a_check_is_not_remembered_for_other_limits(more: dict, tmp_path: Path) -> None:
    instance = parse_instance(ROW)
    assert CheckStore(tmp_path, SweConfig())._path(instance) != CheckStore(tmp_path, SweConfig(**more))._path(instance)


def test_lists_of_tests_may_be_json_texts() -> None:
    instance = parse_instance({**ROW, "environment": {"setup": ["make"], "timeout_s": 5}})
    assert instance.required == ("t.py::test_a", "t.py::test_b")
    assert instance.environment.setup == ("make",)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"repo": "../etc"}, "repo: must be owner/name"),
        ({"repo": "--upload-pack=x"}, "repo: must be owner/name"),
        ({"base_commit": "--help"}, "base_commit: must be"),
        ({"base_commit": "main"}, "base_commit: must be"),
        ({"FAIL_TO_PASS": []}, "FAIL_TO_PASS: must name at least one"),
        ({"FAIL_TO_PASS": "[1]"}, "FAIL_TO_PASS: must be a list"),
        ({"PASS_TO_PASS": "no"}, "PASS_TO_PASS: must be a list"),
        ({"patch": None}, "patch: must be a text"),
        ({"environment": {"pyhton": "x"}}, "environment.pyhton: is not known"),
        ({"environment": {"runner": "tox"}}, "environment.runner: must be one of"),
        ({"environment": {"runner": "command"}}, "environment.test_command"),
        ({"environment": {"setup": "make"}}, "environment.setup: must be a list"),
        ({"hole": {"path": "a", "before": "b", "after": "c"}}, "hole: must be"),
    ],
)
def test_a_bad_instance_names_its_field(change: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_instance({**ROW, **change})


def test_a_bad_line_is_not_the_end(tmp_path: Path) -> None:
    path = tmp_path / "i.jsonl"
    path.write_text(f"{json.dumps(ROW)}\nnot json\n[]\n{json.dumps({**ROW, 'base_commit': ''})}\n\n")
    found = list(read_instances(path))
    assert isinstance(found[0], Instance)
    assert [each.instance_id for each in found[1:] if isinstance(each, Unreadable)] == ["line 2", "line 3", "a__b-1"]


def test_a_tar_gives_back_its_tree() -> None:
    tree = {**tree_of(a="x", b__c="y"), "l": Entry(LINK, b"a.py")}
    assert from_tar(to_tar(tree), most_bytes=100) == tree
    assert to_tar(tree) == to_tar(dict(reversed(tree.items())))
    with pytest.raises(TreeTooLargeError):
        from_tar(to_tar(tree), most_bytes=1)


def test_a_hostile_tar_gives_nothing_outside() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in ("../up", "/etc/passwd", "a/../../up", "good/./file"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
        for kind, name in ((tarfile.CHRTYPE, "device"), (tarfile.FIFOTYPE, "pipe"), (tarfile.LNKTYPE, "hard")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/shadow"
            tar.addfile(info)
    assert list(from_tar(out.getvalue(), most_bytes=100)) == ["good/file"]


def test_a_file_takes_the_place_of_what_is_in_its_way() -> None:
    tree = {"tests": Entry(LINK, b"evil"), "a/b/c": Entry(FILE, b"")}
    put(tree, "tests/t.py", Entry(FILE, b"x"))
    put(tree, "a/b", Entry(FILE, b"y"))
    assert sorted(tree) == ["a/b", "tests/t.py"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("conftest.py", True),
        ("pkg/conftest.py", True),
        ("tests/data/x.json", True),
        ("pkg/test_x.py", True),
        ("pkg/x_test.py", True),
        ("setup.cfg", True),
        ("evil.pth", True),
        ("pkg/__pycache__/x.cpython-311.pyc", True),
        ("x.egg-info/entry_points.txt", True),
        ("tests", True),
        ("pkg/contest.py", False),
        ("pkg/latest/x.py", False),
        ("setup.py", False),
        ("pkg/testimony.py", False),
    ],
)
def test_protected_paths(path: str, expected: bool) -> None:
    assert is_protected(path) is expected


def test_restoring_undoes_what_belongs_to_tests() -> None:
    base = tree_of(pkg__a="old", tests__test_a="good", data__odd="given by the test patch")
    patched = {
        **tree_of(pkg__a="new", pkg__b="added", tests__test_a="evil", tests__mine="own", conftest="evil"),
        "out": Entry(LINK, b"../../etc"),
        "in": Entry(LINK, b"pkg/a.py"),
        "pytest/__init__.py": Entry(FILE, b"evil"),
    }
    restored = restore(patched, base, test_files=["data/odd.py"], allowed=[])
    assert restored.tree == {
        **tree_of(pkg__a="new", pkg__b="added", tests__test_a="good", data__odd="given by the test patch"),
        "in": Entry(LINK, b"pkg/a.py"),
    }
    assert restored.undone == ["conftest.py", "out", "pytest/__init__.py", "tests/mine.py", "tests/test_a.py"]


def test_a_repository_that_is_a_test_tool_can_be_mended() -> None:
    base = tree_of(src___pytest__a="old")
    patched = tree_of(src___pytest__a="new")
    assert restore(patched, base, test_files=[], allowed=[]).tree == patched


def test_what_the_reference_changes_may_be_changed() -> None:
    base, patched = tree_of(testing__tool="old"), tree_of(testing__tool="new")
    assert restore(patched, base, test_files=[], allowed=["testing/tool.py"]).tree == patched
    assert restore(patched, base, test_files=["testing/tool.py"], allowed=["testing/tool.py"]).tree == base


BLOCK = "### a.py\n```python\n<<<<<<< SEARCH\nold\n=======\nnew\nmore\n>>>>>>> REPLACE\n```\n"


def test_edits_are_read_and_applied() -> None:
    tree = tree_of(a="one\nold\ntwo\n")
    edits = parse_edits(f"I think so.\n{BLOCK}Done.")
    assert edits == [Edit("a.py", "old\n", "new\nmore\n")]
    assert apply_edits(tree, edits)["a.py"].data == b"one\nnew\nmore\ntwo\n"


def test_a_last_line_without_a_break_and_a_new_file() -> None:
    tree = apply_edits(tree_of(a="one\nold"), [Edit("a.py", "old\n", "new\n"), Edit("b/c.py", "", "x\n")])
    assert tree["a.py"].data == b"one\nnew"
    assert tree["b/c.py"].data == b"x\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<<<<<<< SEARCH\n=======\n>>>>>>> REPLACE", "without a line"),
        ("### a.py\n<<<<<<< SEARCH\nold\n", "does not end"),
        ("### a.py\n<<<<<<< SEARCH\nold\n=======\nnew\n", "does not end"),
        (BLOCK.replace("a.py", "../a.py"), "file of the repository"),
        (BLOCK.replace("a.py", "/etc/passwd"), "file of the repository"),
        (BLOCK.replace("a.py", "x/../.git/config"), "file of the repository"),
        (BLOCK.replace("a.py", "b.py"), "no such file"),
        (BLOCK.replace("old", "absent"), "stands in it 0 times"),
        (BLOCK.replace("old", "twice"), "stands in it 2 times"),
        ("### a.py\n<<<<<<< SEARCH\n=======\nnew\n>>>>>>> REPLACE", "exists"),
    ],
)
def test_edits_that_do_not_fit(text: str, said: str) -> None:
    with pytest.raises(EditError, match=said):
        apply_edits(tree_of(a="old\ntwice\nx\ntwice\n"), parse_edits(text))


def test_the_last_fenced_diff_counts() -> None:
    assert find_diff("```diff\n--- a\n```\nno:\n```diff\n--- b\n```\n") == "--- b\n"
    assert find_diff("Here:\ndiff --git a/x b/x\n--- a/x\n") == "diff --git a/x b/x\n--- a/x\n"
    assert find_diff("no patch") == ""


def test_a_hole_is_filled_with_the_last_answer() -> None:
    tree, hole = tree_of(a="x = 1\n"), Hole("a.py", "= 1", "= ({answer})")
    assert fill(tree, hole, "<answer>1</answer><answer>2</answer>")["a.py"].data == b"x = (2)\n"
    with pytest.raises(EditError, match="no answer"):
        fill(tree, hole, "2")


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.repo)
def test_holes_of_the_samples_fit(sample) -> None:
    assert sample.before[sample.hole["path"]].count(sample.hole["before"]) == 1


def test_logs_of_test_runners() -> None:
    log = "PASSED t.py::a\nFAILED t.py::b - assert 1\nSKIPPED [1] t.py:3: no\nXFAIL t.py::c - known\nPASSED t.py::b\n"
    assert read_pytest_log(log) == {
        "t.py::a": "passed",
        "t.py::b": "failed",
        "t.py:3: no": "skipped",
        "t.py::c": "xfailed",
    }
    log = "test_a (m.A) ... ok\ntest_b (m.A)\nSays what. ... FAIL\ntest_c (m.A) ... skipped 'no'\n"
    assert read_unittest_log(log) == {"test_a (m.A)": "passed", "test_b (m.A)": "failed", "test_c (m.A)": "skipped"}


def test_the_prompt_has_the_files_that_the_issue_is_about() -> None:
    tree = {
        **tree_of(pkg__parse="def parse_price(text): ...\n", pkg__other="x = 1\n", tests__test_parse="parse_price"),
        "big.py": Entry(FILE, b"#" * 10_000),
    }
    assert rank(tree, "parse_price loses cents")[0] == "pkg/parse.py"
    prompt = render_prompt(tree, "parse_price loses cents", 2000, len)
    assert len(prompt) <= 2000
    assert "### pkg/parse.py\ndef parse_price" in prompt
    assert "test_parse" not in prompt
    assert "####" not in prompt.replace("### ", "")
    with pytest.raises(ValueError, match="the issue alone"):
        render_prompt(tree, "long " * 1000, 2000, len)


def test_a_commit_is_read_without_its_future(tmp_path: Path) -> None:
    make_samples(tmp_path)
    row = json.loads((tmp_path / "instances.jsonl").read_text().splitlines()[0])
    where = Repositories(str(tmp_path / "repos"), tmp_path / "cache")
    tree = where.tree(row["repo"], row["base_commit"])
    assert b"low < merged" in tree["intervals/core.py"].data
    by_url = Repositories("", tmp_path / "cache").tree(f"file://{tmp_path}/repos/acme__intervals", row["base_commit"])
    assert changed(tree, by_url) == []
    with pytest.raises(RepositoryError, match="no repository at"):
        where.tree("acme/none", row["base_commit"])
    with pytest.raises(RepositoryError, match="failed"):
        where.tree(row["repo"], "0" * 40)


def test_predictions_are_read_in_swe_benchs_shape() -> None:
    read = read_prediction(b'{"instance_id": "a", "model_name_or_path": "m", "model_patch": null}')
    assert isinstance(read, tuple)
    line, more = read
    assert (line.id, line.text, more["model_name_or_path"]) == ("a", "", "m")
    for bad in (
        b"nope",
        b"[]",
        b'{"model_patch": ""}',
        b'{"instance_id": "a"}',
        b'{"instance_id": "a", "model_patch": 1}',
    ):
        result = read_prediction(bad)
        assert isinstance(result, Result)
        assert result.verdict is not None
        assert result.verdict.status == "invalid"
