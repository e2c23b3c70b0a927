"""What a patch may not decide: the tests, and everything that tells a test runner what to do.

After the model's patch every protected path is what the base commit with the test patch has there, or nothing. A patch
that adds tests of its own, as a good one does, loses them here and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from typing import NamedTuple

from r1async.swe.tree import LINK, Entry, Tree, changed, leads_outside, put

TEST_FOLDERS = frozenset(("test", "tests", "e2e", "testing"))
"""As SWE-bench tells a test patch from a patch."""
INFRASTRUCTURE = frozenset(
    (
        *("conftest.py", "pytest.ini", ".pytest.ini", "pytest.toml", ".pytest.toml", "tox.ini", "setup.cfg"),
        *("pyproject.toml", ".coveragerc", "sitecustomize.py", "usercustomize.py", "tests.py", "runtests.py"),
        *("pytest.py", ".gitattributes", ".gitmodules"),
    )
)
"""Names of files, anywhere, that a test runner or an interpreter reads on its own."""
_PATTERNS = ("test_*.py", "*_test.py", "*.pth", "*.pyc", "*.pyo", "*.egg-link")
_FOLDER_PATTERNS = ("__pycache__", "*.egg-info", "*.dist-info", ".git")
_TOOLS = frozenset(("pytest", "_pytest", "pluggy", "unittest", "coverage", "xdist"))
"""Packages that a patch could put in front of the test runner's own, unless they are what the repository holds."""


def is_protected(path: str) -> bool:
    """Whether a path belongs to tests or their settings by its name."""
    *folders, name = path.split("/")
    return (
        name in INFRASTRUCTURE
        or any(fnmatch(name, pattern) for pattern in (*_PATTERNS, *_FOLDER_PATTERNS))
        or any(folder in TEST_FOLDERS for folder in (*folders, name))
        or any(fnmatch(folder, pattern) for folder in folders for pattern in _FOLDER_PATTERNS)
    )


class Restored(NamedTuple):
    tree: dict[str, Entry]
    undone: Sequence[str]
    """Paths where the patch had something else, in order."""


def restore(patched: Tree, trusted: Tree, *, test_files: Iterable[str], allowed: Iterable[str]) -> Restored:
    """The patched tree with tests and their settings as they should be.

    Args:
        patched: after the model's patch.
        trusted: the base commit with the test patch.
        test_files: paths that the test patch touches, protected whatever they are called.
        allowed: paths (of the reference patch) and patterns that a patch may change, whatever they are called, unless
            the test patch touches them.
    """
    tests, patterns = frozenset(test_files), tuple(allowed)
    tools = _TOOLS - {folder for path in trusted for folder in path.split("/")[:-1]}

    def protected(path: str) -> bool:
        if path in tests:
            return True
        if any(path == each or fnmatch(path, each) for each in patterns):
            return False
        return is_protected(path) or any(part.removesuffix(".py") in tools for part in path.split("/"))

    tree: dict[str, Entry] = {}
    for path, entry in patched.items():
        if not protected(path) and not _escapes(path, entry, trusted):
            tree[path] = entry
    # Last: a file or link of the patch that stands where a test's folder belongs gives way.
    for path, entry in trusted.items():
        if protected(path):
            put(tree, path, entry)
    return Restored(tree, [path for path in changed(patched, tree) if path not in tests])


def _escapes(path: str, entry: Entry, trusted: Tree) -> bool:
    """A link out of the repository that is not the repository's own."""
    if entry.mode != LINK or trusted.get(path) == entry:
        return False
    return leads_outside(path, entry.data.decode("utf-8", "surrogateescape"))
