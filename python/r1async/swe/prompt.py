"""The single-shot prompt of a software-engineering rollout: the issue, the files that matter, the answer's format.

After Agentless's repair step (arXiv 2407.01489, sec. 3.2): no agent, no tools; the model reads the issue and some files
and answers with search/replace edits. Agentless asks a model which files matter; here they are ranked by words, so that
a prompt costs no model call and is always the same.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator

from r1async.swe.restore import is_protected
from r1async.swe.tree import LINK, Tree

TEMPLATE = """An issue was reported for this repository:
--- issue
{issue}
--- end of issue

These files of it may have to change:
--- files
{files}
--- end of files

Find what is wrong, then give edits that resolve the issue. Each edit names its file on a line of its own and has two \
parts: lines exactly as they stand in the file, enough of them to be found only once, and the lines that replace them.

### path/to/file.py
<<<<<<< SEARCH
lines as they are
=======
lines as they should be
>>>>>>> REPLACE

Indentation counts. Tests need not be written.
"""
"""The structure of Agentless's repair prompt, in our words."""

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]+")
_PARTS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
MAX_FILE_BYTES = 200_000
SOURCES = (
    ".py",
    ".pyx",
    ".js",
    ".ts",
    ".go",
    ".rs",
    ".java",
    ".c",
    ".h",
    ".cc",
    ".cpp",
    ".rb",
    ".php",
    ".toml",
    ".cfg",
)


def render_prompt(tree: Tree, issue: str, budget: int, count: Callable[[str], int]) -> str:
    """The prompt with as many of the best files as fit.

    Args:
        budget: units of `count` that the whole prompt may have.
        count: tokens of a text, or another measure of it.

    Raises:
        ValueError: the issue alone has more.
    """
    shown: list[str] = []
    left = budget - count(TEMPLATE.format(issue=issue, files=""))
    if left < 0:
        raise ValueError(f"the issue alone has {-left} more than the {budget} that a prompt may have")
    for path in rank(tree, issue):
        text = f"### {path}\n{tree[path].data.decode('utf-8', 'replace').rstrip()}\n"
        # One unit for the joint: what two texts count together may be more than the sum.
        size = count(text) + 1
        if size <= left:
            shown.append(text)
            left -= size
    return TEMPLATE.format(issue=issue.strip(), files="\n".join(shown).rstrip())


def rank(tree: Tree, issue: str) -> list[str]:
    """Source files by how much of the issue's rarer words they have, a path's own words counted thrice."""
    candidates = {path: Counter(_words(path, entry.data)) for path, entry in tree.items() if _is_source(path, entry)}
    spread = Counter(word for words in candidates.values() for word in words)
    asked = set(_pieces(issue))

    def score(path: str) -> float:
        words = candidates[path]
        length = 1 + math.log1p(sum(words.values()))
        return sum(
            math.log1p(words[word]) * math.log((1 + len(candidates)) / spread[word]) for word in asked & words.keys()
        ) / length + (100.0 if path in issue else 0.0)

    return sorted(candidates, key=lambda path: (-score(path), path))


def _is_source(path: str, entry: tuple[int, bytes]) -> bool:
    mode, data = entry
    return mode != LINK and path.endswith(SOURCES) and not is_protected(path) and len(data) <= MAX_FILE_BYTES


def _words(path: str, data: bytes) -> Iterator[str]:
    yield from _pieces(data.decode("utf-8", "replace"))
    for _ in range(3):
        yield from _pieces(path)


def _pieces(text: str) -> Iterator[str]:
    """Names and the words that they are made of."""
    for word in _WORD.findall(text):
        yield word.lower()
        parts = _PARTS.findall(word)
        if len(parts) > 1:
            yield from (part.lower() for part in parts)
