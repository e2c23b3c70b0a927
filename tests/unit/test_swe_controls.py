"""Which expectation of a test is changed, and what becomes of the text."""

from __future__ import annotations

import ast
import subprocess
import sys
from textwrap import dedent

import pytest
from r1async.swe.controls import TestFile as Source
from r1async.swe.controls import count_sites, evenly, plan
from r1async.swe.names import Where, function_of, places

HEAD = "import pytest\nimport unittest\n"


def changed(body: str, number: int = 0, name: str = "test_it") -> str:
    source = HEAD + dedent(body)
    found = Source(source.encode(), seed=3)
    sites = found.sites((name,))
    text = found.changed([sites[number]]).decode()
    ast.parse(text)
    return text.removeprefix(HEAD)


def verdicts(before: str, after: str) -> tuple[bool, bool]:
    """Whether test_it() passes in each."""

    def passes(body: str) -> bool:
        code = f"{HEAD}{dedent(body)}\ntest_it()\n"
        return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0

    return passes(before), passes(after)


@pytest.mark.parametrize(
    "body",
    [
        "def test_it():\n    assert 1 + 2 == 3\n",
        "def test_it():\n    assert 3 == 1 + 2\n",
        "def test_it():\n    assert sorted([2, 1]) == [1, 2]\n",
        "def test_it():\n    assert dict(a=1) == {'a': 1}\n",
        "def test_it():\n    assert list() == []\n",
        "def test_it():\n    assert dict() == {}\n",
        "def test_it():\n    assert str('a') == 'a'\n",
        "def test_it():\n    assert str(12) == '12'\n",
        "def test_it():\n    assert bytes(1) == b'\\x00'\n",
        "def test_it():\n    assert abs(-1.5) == pytest.approx(1.5)\n",
        "def test_it():\n    assert bool(1) == True\n",
        "def test_it():\n    assert dict().get(1) == None\n",
        "def test_it():\n    assert dict().get(1) is None\n",
        "def test_it():\n    assert -abs(3) == -3\n",
        "def test_it():\n    assert 'b' in 'abc'\n",
        "def test_it():\n    assert 'd' not in 'abc'\n",
        "def test_it():\n    assert len('abc') > 2\n",
        "def test_it():\n    assert len('abc') != 2\n",
        "def test_it():\n    assert isinstance(3, int)\n",
        "def test_it():\n    assert not list()\n",
        "def test_it():\n    assert abs(1) == 1 and abs(2) == 2\n",
        "def test_it():\n    expected = 3\n    assert 1 + 2 == expected\n",
        "def test_it():\n    for given, expected in [(1, 1), (-2, 2)]:\n        assert abs(given) == expected\n",
        "CASES = [(1, 1), (-2, 2)]\ndef test_it():\n    for a, b in CASES:\n        assert abs(a) == b\n",
        "def test_it():\n    with pytest.raises(KeyError):\n        {}[1]\n",
        "def test_it():\n    unittest.TestCase().assertEqual(1 + 2, 3)\n",
        "def test_it():\n    unittest.TestCase().assertTrue(1 + 2 == 3)\n",
        "def test_it():\n    unittest.TestCase().assertIn(1, [1, 2])\n",
        "def test_it():\n    unittest.TestCase().assertIsNone(None)\n",
        "def test_it():\n    unittest.TestCase().assertFalse(0)\n",
        "def check(a, b):\n    assert a == b\ndef test_it():\n    check(1 + 2, 3)\n",
        "def test_it():\n    abs(1)\n",
        "def test_it():\n    for _ in range(2):\n        pass\n",
        "def test_it(): abs(1)\n",
    ],
)
def test_a_changed_test_fails(body: str) -> None:
    after = changed(body, -1)
    assert after != dedent(body)
    assert verdicts(body, after) == (True, False)


def test_only_a_literal_differs() -> None:
    body = "def test_it():\n    # why\n    assert f( x )  ==  [ 1, 'a' ] # so\n"
    after = changed(body)
    assert [a == b for a, b in zip(body.split("\n"), after.split("\n"), strict=True)] == [True, True, False, True]
    assert after.split("\n")[2].startswith("    assert f( x )  ==  [ ")
    assert after.split("\n")[2].endswith(" ] # so")


def test_every_comparison_inside_has_a_site_of_its_own() -> None:
    found = Source(b"def test_it():\n    assert a == 1 and b == 2\n", 0)
    assert len(found.sites(("test_it",))) == 3


def test_cases_of_a_table_are_changed_in_the_expected_column_alone() -> None:
    body = """
    @pytest.mark.parametrize(("given", "expected"), [(1, 10), (2, 20)])
    def test_it(given, expected):
        assert f(given) == expected
    """
    line = next(line for line in changed(body).splitlines() if "parametrize" in line)
    cases = ast.literal_eval(line.partition("), ")[2].rstrip(")"))
    assert [given for given, _ in cases] == [1, 2]
    assert all(new not in (10, 20) for _, new in cases)


def test_methods_are_found_by_their_class() -> None:
    found = Source(b"class A:\n    def test_it(self):\n        assert f() == 1\n", 0)
    assert len(found.sites(("A", "test_it"))) == 1
    assert found.sites(("B", "test_it")) == []
    assert found.sites(("test_it",)) == []


def test_what_cannot_be_parsed_has_no_sites() -> None:
    assert Source(b"def test_it(:\n", 0).sites(("test_it",)) == []
    assert count_sites({"a.py": b"\xff\xfe"}, [Where("a.py", ("test_it",))]) == 0


def test_a_plan_changes_each_function_once() -> None:
    files = {"t.py": b"def test_a():\n    assert f() == 1\ndef test_b():\n    assert f() == 2\n    assert g() == 3\n"}
    functions = {"t.py::test_a": [Where("t.py", ("test_a",))], "t.py::test_b": [Where("t.py", ("test_b",))]}
    planned = plan(files, functions, {"t.py::test_a": 0, "t.py::test_b": 1}, seed=1)
    lines = planned.files["t.py"].decode().split("\n")
    assert planned.functions == ["t.py::test_a", "t.py::test_b"]
    assert [a == b for a, b in zip(lines, files["t.py"].decode().split("\n"), strict=True)] == [
        *(True, False),
        *(True, True, False),
        True,
    ]


@pytest.mark.parametrize(("count", "most", "expected"), [(0, 3, []), (3, 3, [0, 1, 2]), (9, 3, [0, 4, 8]), (5, 1, [0])])
def test_sites_are_spread_evenly(count: int, most: int, expected: list[int]) -> None:
    assert evenly(count, most) == expected


@pytest.mark.parametrize(
    ("name", "function", "where"),
    [
        ("a/t.py::test_x[1-b]", "a/t.py::test_x", [Where("a/t.py", ("test_x",))]),
        ("t.py::A::test_x", "t.py::A::test_x", [Where("t.py", ("A", "test_x"))]),
        (
            "a.t.A.test_x",
            "a.t.A.test_x",
            [*(Where("a.py", ("t", "A", "test_x")), Where("a/t.py", ("A", "test_x"))), Where("a/t/A.py", ("test_x",))],
        ),
        ("test_x (a.A)", "test_x (a.A)", [Where("a.py", ("A", "test_x")), Where("a/A.py", ("test_x",))]),
    ],
)
def test_names_of_tests(name: str, function: str, where: list[Where]) -> None:
    assert function_of(name) == function
    assert places(name) == where
