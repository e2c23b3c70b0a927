"""What a completion proposes: search/replace edits, a unified diff, or the text for a hole.

The edit format is Agentless's (arXiv 2407.01489, sec. 3.2), after Aider: under a line `### path` blocks of
`<<<<<<< SEARCH`, `=======`, `>>>>>>> REPLACE`, in code fences or not. Stricter than theirs in one thing: the searched
text has to stand in the file exactly once, or nobody knows which place is meant.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from typing import NamedTuple

from r1async.answers import extract_answer
from r1async.swe.instance import Hole
from r1async.swe.tree import FILE, LINK, Entry, Tree, put

_FILE = re.compile(r"#{1,6}[ \t]+`?([^\s`]+)`?[ \t]*")
_SEARCH, _BETWEEN, _REPLACE = (re.compile(mark) for mark in (r"<{5,9} SEARCH\s*", r"={5,9}\s*", r">{5,9} REPLACE\s*"))
_DIFF_FENCE = re.compile(r"```(?:diff|patch)[ \t]*\n(.*?)(?:^```|\Z)", re.S | re.M)
_DIFF_START = re.compile(r"^(?:diff --git |--- )", re.M)


class Edit(NamedTuple):
    """Text of a file and what takes its place; without `search` the file is new."""

    path: str
    search: str
    replace: str


class EditError(ValueError):
    """Edits that cannot be read or do not fit the repository; the message says which and why."""


def parse_edits(text: str) -> list[Edit]:
    """The search/replace blocks of a completion, in order; empty if there is none.

    Raises:
        EditError: a block without a file, without its middle, or cut off.
    """
    edits: list[Edit] = []
    path, part = "", ""
    search: list[str] = []
    replace: list[str] = []
    for line in text.split("\n"):
        bare = line.rstrip("\r")
        if not part:
            if (heading := _FILE.fullmatch(bare)) is not None:
                path = heading[1]
            elif _SEARCH.fullmatch(bare):
                if not path:
                    raise EditError("a SEARCH block without a line `### path` before it")
                part, search, replace = "search", [], []
        elif part == "search" and _BETWEEN.fullmatch(bare):
            part = "replace"
        elif part == "replace" and _REPLACE.fullmatch(bare):
            edits.append(Edit(_checked(path), _joined(search), _joined(replace)))
            part = ""
        else:
            (search if part == "search" else replace).append(line)
    if part:
        raise EditError(f"a block for {path} that does not end")
    return edits


def _joined(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _checked(path: str) -> str:
    clean = posixpath.normpath(path)
    if clean.startswith(("/", "../")) or clean in (".", "..") or ".git" in clean.split("/"):
        raise EditError(f"{path}: must be a file of the repository")
    return clean


def apply_edits(tree: Tree, edits: Sequence[Edit]) -> dict[str, Entry]:
    """The tree after edits, one after another.

    Raises:
        EditError: a file that is not there, is no text or exists already; text that does not stand in it exactly once.
    """
    changed = dict(tree)
    for edit in edits:
        entry = changed.get(edit.path)
        if not edit.search:
            if entry is not None and entry.data:
                raise EditError(f"{edit.path}: exists, so an edit needs something to search for")
            put(changed, edit.path, Entry(FILE, edit.replace.encode("utf-8", "replace")))
            continue
        if entry is None or entry.mode == LINK:
            raise EditError(f"{edit.path}: no such file")
        changed[edit.path] = entry._replace(data=_replaced(entry.data, edit))
    return changed


def _replaced(data: bytes, edit: Edit) -> bytes:
    search, replace = edit.search.encode("utf-8", "replace"), edit.replace.encode("utf-8", "replace")
    if not data.endswith(b"\n") and data.endswith(search[:-1]) and data.count(search) == 0:
        search, replace = search[:-1], replace.removesuffix(b"\n")  # a last line without a line break
    # At the beginning of lines only: a block is whole lines.
    places = [at for at in _places(data, search) if at == 0 or data[at - 1 : at] == b"\n"]
    if len(places) != 1:
        raise EditError(f"{edit.path}: the text searched for stands in it {len(places)} times: {edit.search[:200]!r}")
    return data[: places[0]] + replace + data[places[0] + len(search) :]


def _places(data: bytes, search: bytes) -> list[int]:
    found, at = [], data.find(search)
    while at >= 0:
        found.append(at)
        at = data.find(search, at + 1)
    return found


def find_diff(text: str) -> str:
    """The last fenced diff of a completion, or everything from the first line of one; empty if there is none."""
    if fenced := _DIFF_FENCE.findall(text):
        return fenced[-1]
    start = _DIFF_START.search(text)
    return text[start.start() :] if start is not None else ""


def fill(tree: Tree, hole: Hole, text: str) -> dict[str, Entry]:
    """The tree with a completion's answer in the instance's hole.

    Raises:
        EditError: there is no answer, or more than a line of it.
    """
    answer = extract_answer(text)
    if answer is None or "\n" in answer or len(answer) > MAX_FILL_CHARS:
        raise EditError("no answer of one line")
    entry = tree.get(hole.path)
    if entry is None or entry.data.count(hole.before.encode()) != 1:
        raise EditError(f"{hole.path}: the hole of the instance is not in it exactly once")
    after = hole.after.replace("{answer}", answer).encode("utf-8", "replace")
    return {**tree, hole.path: entry._replace(data=entry.data.replace(hole.before.encode(), after))}


MAX_FILL_CHARS = 200
