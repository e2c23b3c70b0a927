"""A repository's files at one moment: paths and contents in memory, without history, links resolved or anything run.

Trees come out of boxes in which a patch was at work, so reading a tar believes nothing: what is no plain file or
symbolic link below the root is left out.
"""

from __future__ import annotations

import io
import posixpath
import tarfile
from collections.abc import Iterable, Mapping
from typing import NamedTuple

FILE, EXECUTABLE, LINK = 0o100644, 0o100755, 0o120000
"""Modes, as git has them."""


class Entry(NamedTuple):
    mode: int
    data: bytes
    """Of a link: its target."""


Tree = Mapping[str, Entry]
"""Path, relative with slashes, and what is there."""


class TreeTooLargeError(ValueError):
    """More than a tree may have."""


def to_tar(tree: Tree) -> bytes:
    """A tar whose bytes depend on the tree alone."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(tree):
            mode, data = tree[path]
            info = tarfile.TarInfo(path)
            info.mode = 0o755 if mode == EXECUTABLE else 0o644
            info.mtime = _MTIME
            if mode == LINK:
                info.type, info.linkname = tarfile.SYMTYPE, data.decode("utf-8", "surrogateescape")
                tar.addfile(info)
            else:
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


_MTIME = 1_000_000_000
"""Of every file: nothing in a tree shall say when it was made. Not 0, which zip files cannot hold."""


def from_tar(data: bytes, *, most_bytes: int) -> dict[str, Entry]:
    """The files of a tar that nobody trusts.

    Raises:
        TreeTooLargeError: its files have more bytes than that.
        ValueError: not a tar.
    """
    tree: dict[str, Entry] = {}
    total = 0
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                path = posixpath.normpath(member.name)
                if path.startswith(("/", "../")) or path in ("..", "."):
                    continue
                total += member.size
                if total > most_bytes:
                    raise TreeTooLargeError(f"a tree of more than {most_bytes} bytes")
                entry = _entry(tar, member, tree)
                if entry is not None:
                    tree[path] = entry
    except tarfile.TarError as error:
        raise ValueError(f"not a tar: {error}") from error
    return tree


def _entry(tar: tarfile.TarFile, member: tarfile.TarInfo, before: Tree) -> Entry | None:
    if member.issym():
        return Entry(LINK, member.linkname.encode("utf-8", "surrogateescape"))
    if member.islnk():  # the second name of a file
        return before.get(posixpath.normpath(member.linkname))
    if not member.isreg():
        return None
    file = tar.extractfile(member)
    assert file is not None, "a regular member has content"
    return Entry(EXECUTABLE if member.mode & 0o100 else FILE, file.read())


def leads_outside(path: str, target: str) -> bool:
    """Whether a symbolic link at `path` points out of the tree."""
    if target.startswith("/"):
        return True
    whole = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    return whole == ".." or whole.startswith("../")


def put(tree: dict[str, Entry], path: str, entry: Entry) -> None:
    """Set a file, and take away whatever stands where one of its folders, or something below it, has to be."""
    parts = path.split("/")
    for count in range(1, len(parts)):
        tree.pop("/".join(parts[:count]), None)
    below = f"{path}/"
    for other in [other for other in tree if other.startswith(below)]:
        del tree[other]
    tree[path] = entry


def changed(before: Tree, after: Tree) -> Iterable[str]:
    """Paths that are not the same in both."""
    return sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
