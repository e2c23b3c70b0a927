"""Three small repositories with a bug each, as git repositories and instances: to try everything on, and for tests.

Their histories go on after the base commit: the solution is in them, and must not be found.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

Files = Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A repository, its bug and the tests that show it."""

    repo: str
    problem: str
    before: Files
    fixed: Files
    """Files of the reference patch."""
    tests: Files
    """Files of the test patch."""
    fail_to_pass: Sequence[str]
    pass_to_pass: Sequence[str]
    runner: str = "pytest"
    hole: Mapping[str, str] | None = None
    """Where a digit takes the place of the bug."""


INTERVALS = Sample(
    repo="acme/intervals",
    problem=(
        "merge() leaves intervals that only touch apart: merge([(1, 2), (2, 4)]) should give [(1, 4)], and gives both."
    ),
    before={
        "README.md": "# intervals\n\nClosed intervals of numbers.\n",
        "intervals/__init__.py": '"""Closed intervals of numbers."""\n\nfrom intervals.core import gaps, merge\n',
        "intervals/core.py": '''"""Merging intervals, and what lies between them."""


def merge(pairs):
    """Sorted intervals without overlap that cover the same numbers."""
    merged = []
    for low, high in sorted(pairs):
        if merged and low < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return merged


def gaps(pairs):
    """Open intervals between merged ones."""
    merged = merge(pairs)
    return [(a[1], b[0]) for a, b in zip(merged, merged[1:])]
''',
        "tests/test_core.py": """from intervals import gaps, merge


def test_overlap():
    assert merge([(1, 3), (2, 5)]) == [(1, 5)]


def test_apart():
    assert merge([(4, 5), (1, 2)]) == [(1, 2), (4, 5)]


def test_gaps():
    assert gaps([(1, 2), (4, 5), (9, 10)]) == [(2, 4), (5, 9)]
""",
    },
    fixed={
        "intervals/core.py": '''"""Merging intervals, and what lies between them."""


def merge(pairs):
    """Sorted intervals without overlap that cover the same numbers."""
    merged = []
    for low, high in sorted(pairs):
        if merged and low <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return merged


def gaps(pairs):
    """Open intervals between merged ones."""
    merged = merge(pairs)
    return [(a[1], b[0]) for a, b in zip(merged, merged[1:])]
'''
    },
    tests={
        "tests/test_touching.py": """import pytest

from intervals import gaps, merge


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [([(1, 2), (2, 4)], [(1, 4)]), ([(0, 0), (0, 1)], [(0, 1)]), ([(5, 7), (1, 5)], [(1, 7)])],
)
def test_touching(pairs, expected):
    assert merge(pairs) == expected


def test_no_empty_gap():
    assert gaps([(1, 2), (2, 4), (6, 7)]) == [(4, 6)]
"""
    },
    fail_to_pass=(
        "tests/test_touching.py::test_touching[pairs0-expected0]",
        "tests/test_touching.py::test_touching[pairs1-expected1]",
        "tests/test_touching.py::test_touching[pairs2-expected2]",
        "tests/test_touching.py::test_no_empty_gap",
    ),
    pass_to_pass=(
        "tests/test_core.py::test_overlap",
        "tests/test_core.py::test_apart",
        "tests/test_core.py::test_gaps",
    ),
    hole={"path": "intervals/core.py", "before": "low < merged[-1][1]:", "after": "low - ({answer}) < merged[-1][1]:"},
)

PRICES = Sample(
    repo="acme/prices",
    problem=(
        "parse_price('-1.50 EUR') should raise ValueError, as prices are not negative; and cents are lost: '0.29 EUR'"
        " is 29 cents and not 28."
    ),
    before={
        "setup.cfg": "[metadata]\nname = prices\n\n[tool:pytest]\ntestpaths = test\n",
        "src/prices/__init__.py": "from prices.parse import parse_price, total\n",
        "src/prices/parse.py": '''import re

_PRICE = re.compile(r"(-?\\d+)(?:\\.(\\d\\d))? ([A-Z]{3})")


def parse_price(text):
    """Cents and currency of a text such as '12.50 EUR'."""
    found = _PRICE.fullmatch(text)
    if found is None:
        raise ValueError(f"not a price: {text!r}")
    amount = float(found[1] + "." + (found[2] or "00"))
    return int(amount * 100), found[3]


def total(texts):
    """Sum of prices in one currency."""
    prices = [parse_price(text) for text in texts]
    currencies = {currency for _, currency in prices}
    if len(currencies) > 1:
        raise ValueError("several currencies")
    return sum(cents for cents, _ in prices)
''',
        "test/__init__.py": "",
        "test/helpers.py": """from prices import parse_price


def check_price(text, cents):
    got, currency = parse_price(text)
    assert got == cents
    assert currency == "EUR"
""",
        "test/test_parse.py": """import unittest

from prices import parse_price, total


class ParseTest(unittest.TestCase):
    def test_whole(self):
        self.assertEqual(parse_price("12 EUR"), (1200, "EUR"))

    def test_nonsense(self):
        with self.assertRaises(ValueError):
            parse_price("twelve")

    def test_currencies(self):
        with self.assertRaisesRegex(ValueError, "several"):
            total(["1 EUR", "1 USD"])
""",
    },
    fixed={
        "src/prices/parse.py": '''import re

_PRICE = re.compile(r"(\\d+)(?:\\.(\\d\\d))? ([A-Z]{3})")


def parse_price(text):
    """Cents and currency of a text such as '12.50 EUR'."""
    found = _PRICE.fullmatch(text)
    if found is None:
        raise ValueError(f"not a price: {text!r}")
    return int(found[1]) * 100 + int(found[2] or 0), found[3]


def total(texts):
    """Sum of prices in one currency."""
    prices = [parse_price(text) for text in texts]
    currencies = {currency for _, currency in prices}
    if len(currencies) > 1:
        raise ValueError("several currencies")
    return sum(cents for cents, _ in prices)
'''
    },
    tests={
        "test/test_cents.py": """import unittest

import pytest

from prices import parse_price, total
from test.helpers import check_price


def test_cents():
    check_price("0.29 EUR", 29)
    check_price("4.35 EUR", 435)


def test_negative():
    with pytest.raises(ValueError, match="price"):
        parse_price("-1.50 EUR")


class TotalTest(unittest.TestCase):
    def test_total(self):
        self.assertEqual(total(["0.29 EUR", "0.57 EUR"]), 86)
        self.assertTrue(total(["0 EUR"]) == 0)
"""
    },
    fail_to_pass=(
        "test/test_cents.py::test_cents",
        "test/test_cents.py::test_negative",
        "test/test_cents.py::TotalTest::test_total",
    ),
    pass_to_pass=(
        "test/test_parse.py::ParseTest::test_whole",
        "test/test_parse.py::ParseTest::test_nonsense",
        "test/test_parse.py::ParseTest::test_currencies",
    ),
    hole={
        "path": "src/prices/parse.py",
        "before": "    return int(amount * 100), found[3]\n",
        "after": "    if amount < 0:\n        raise ValueError('not a price')\n"
        "    return int(amount * 1000 + ({answer})) // 10, found[3]\n",
    },
)

SLUGS = Sample(
    repo="acme/slugs",
    problem="slugify() keeps the dashes at the ends: slugify('  Hello, World! ') should be 'hello-world'.",
    before={
        "slugs.py": '''"""Texts as parts of addresses."""

import re
import unicodedata


def slugify(text, longest=40):
    """Lower-case ASCII letters and digits, with single dashes between words."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^a-z0-9]+", "-", plain.lower())
    return slug[:longest]


def unique(text, taken):
    """A slug that is not taken yet: a number is added where it is."""
    slug, number = slugify(text), 1
    candidate = slug
    while candidate in taken:
        number += 1
        candidate = f"{slug}-{number}"
    return candidate
''',
        "tests/__init__.py": "",
        "tests/test_slugs.py": """import unittest

from slugs import slugify, unique


class SlugTest(unittest.TestCase):
    def test_words(self):
        self.assertEqual(slugify("One two"), "one-two")

    def test_accents(self):
        self.assertEqual(slugify("Café"), "cafe")

    def test_unique(self):
        self.assertEqual(unique("one", {"one", "one-2"}), "one-3")
""",
    },
    fixed={
        "slugs.py": '''"""Texts as parts of addresses."""

import re
import unicodedata


def slugify(text, longest=40):
    """Lower-case ASCII letters and digits, with single dashes between words."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")
    return slug[:longest].rstrip("-")


def unique(text, taken):
    """A slug that is not taken yet: a number is added where it is."""
    slug, number = slugify(text), 1
    candidate = slug
    while candidate in taken:
        number += 1
        candidate = f"{slug}-{number}"
    return candidate
'''
    },
    tests={
        "tests/test_ends.py": """import unittest

from slugs import slugify, unique


class EndsTest(unittest.TestCase):
    def test_ends(self):
        self.assertEqual(slugify("  Hello, World! "), "hello-world")
        self.assertFalse(slugify("(x)").startswith("-"))
        self.assertIn(slugify("?yes?"), ["yes", "no"])

    def test_cut(self):
        self.assertEqual(slugify("abc def", longest=4), "abc")
        self.assertEqual(unique("!one!", {"one"}), "one-2")
"""
    },
    fail_to_pass=("tests.test_ends.EndsTest.test_ends", "tests.test_ends.EndsTest.test_cut"),
    pass_to_pass=(
        "tests.test_slugs.SlugTest.test_words",
        "tests.test_slugs.SlugTest.test_accents",
        "tests.test_slugs.SlugTest.test_unique",
    ),
    runner="unittest",
    hole={
        "path": "slugs.py",
        "before": "    return slug[:longest]\n",
        "after": "    return slug.strip('-')[({answer}) : longest].rstrip('-')\n",
    },
)

SAMPLES = (INTERVALS, PRICES, SLUGS)


def make_samples(folder: Path) -> Path:
    """Write the repositories and `instances.jsonl`; returns that file's path.

    Args:
        folder: becomes `repos/owner__name`, `instances.jsonl`, and `prompts.jsonl` with a prompt for each that even the
            demo's tiny model can read; made if need be.
    """
    repos = folder / "repos"
    repos.mkdir(parents=True, exist_ok=True)
    path = folder / "instances.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for sample in SAMPLES:
            file.write(json.dumps(_make(sample, repos / sample.repo.replace("/", "__"))) + "\n")
    with (folder / "prompts.jsonl").open("w", encoding="utf-8") as file:
        for sample, letter in zip(SAMPLES, "abc", strict=True):
            row = {"prompt": f"{letter}=", "answer": "", "instance_id": _name(sample), "source": "swe", "domain": "swe"}
            file.write(json.dumps(row) + "\n")
    return path


def _name(sample: Sample) -> str:
    return f"{sample.repo.replace('/', '__')}-1"


def _make(sample: Sample, folder: Path) -> dict[str, object]:
    folder.mkdir()
    _git(folder, "init", "-q", "-b", "main")
    commit = _commit(folder, sample.before, "Begin")
    _commit(folder, sample.fixed, "Mend the bug")
    _commit(folder, sample.tests, "Test it")
    return {
        "instance_id": _name(sample),
        "repo": sample.repo,
        "base_commit": commit,
        "patch": diff_of(sample.before, sample.fixed),
        "test_patch": diff_of(sample.before, sample.tests),
        "problem_statement": sample.problem,
        "FAIL_TO_PASS": json.dumps(list(sample.fail_to_pass)),
        "PASS_TO_PASS": json.dumps(list(sample.pass_to_pass)),
        "version": "1.0",
        "hole": sample.hole,
        "environment": {"runner": sample.runner, "plugins": [], "timeout_s": 60},
    }


def diff_of(before: Files, changed: Mapping[str, str | bytes | None]) -> str:
    """A patch in git's format that writes some files, or removes those that are None."""
    with TemporaryDirectory(prefix="r1async-diff-") as temporary:
        folder = Path(temporary)
        _git(folder, "init", "-q")
        _write(folder, before)
        _git(folder, "add", "-A", "-f")
        _write(folder, changed)
        _git(folder, "add", "-f", "-N", "--ignore-removal", ".")
        return _git(folder, "diff", "--binary", "--no-ext-diff").decode("utf-8", "surrogateescape")


def _write(folder: Path, files: Mapping[str, str | bytes | None]) -> None:
    for name, content in files.items():
        path = folder / name
        if content is None:
            path.unlink()
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def _commit(folder: Path, files: Files, message: str) -> str:
    _write(folder, files)
    _git(folder, "add", "-A", "-f")
    _git(folder, "commit", "-q", "-m", message)
    return _git(folder, "rev-parse", "HEAD").decode().strip()


def _git(folder: Path, *arguments: str) -> bytes:
    who = {f"GIT_{role}_{what}": "r1async" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    when = {f"GIT_{role}_DATE": "2001-09-09T01:46:40Z" for role in ("AUTHOR", "COMMITTER")}
    quiet = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", "PATH": os.environ["PATH"]}
    return subprocess.run(
        ["git", "-C", str(folder), *arguments], env={**quiet, **who, **when}, check=True, capture_output=True
    ).stdout
