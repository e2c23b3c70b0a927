"""Repositories as they stand on this machine: the files of one commit, read without a checkout and without history.

Blobs are read one by one (`ls-tree`, `cat-file`), so neither attributes, filters and hooks of the repository nor a
patch have a say in what comes out, and nothing of any other commit does.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Sequence
from pathlib import Path

from r1async.swe.instance import URL
from r1async.swe.tree import EXECUTABLE, FILE, LINK, Entry, Tree

GIT_S = 600.0
"""For one call of git, fetching included."""
_ENV = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ALLOW_PROTOCOL": "https:http:ssh:git:file",
    "GIT_NO_LAZY_FETCH": "1",
    "LC_ALL": "C.UTF-8",
}


class RepositoryError(RuntimeError):
    """A repository or a commit that cannot be had; the message says where it was looked for."""


class Repositories:
    """Where repositories are.

    Args:
        where: a folder that holds them as owner/name, owner__name or name (bare or not), or a URL they lie below.
        cache: folder for what is fetched from URLs.
    """

    def __init__(self, where: str, cache: Path) -> None:
        self._where, self._cache = where, cache

    def tree(self, repo: str, commit: str) -> Tree:
        """All files of a commit; submodules are empty folders, and so not there.

        Raises:
            RepositoryError: there is no such repository or commit, or git failed.
        """
        folder = self._folder(repo, commit)
        listing = _git(folder, "ls-tree", "-r", "-z", "--full-tree", f"{commit}^{{commit}}")
        found: list[tuple[int, str, str]] = []
        for line in listing.split(b"\0"):
            if not line:
                continue
            about, _, path = line.partition(b"\t")
            mode, kind, name = about.decode().split()
            if kind == "blob":
                found.append((int(mode, 8), name, path.decode("utf-8", "surrogateescape")))
        blobs = _blobs(folder, [name for _, name, _ in found])
        return {
            path: Entry(mode if mode in (FILE, EXECUTABLE, LINK) else FILE, data)
            for (mode, _, path), data in zip(found, blobs, strict=True)
        }

    def _folder(self, repo: str, commit: str) -> Path:
        if URL.fullmatch(repo):
            return self._fetched(repo, commit)
        if not self._where:
            raise RepositoryError(f"{repo}: where are the repositories? --repos, or reward.swe.repos")
        if URL.fullmatch(self._where):
            return self._fetched(f"{self._where.rstrip('/')}/{repo}", commit)
        root = Path(self._where)
        names = (repo, repo.replace("/", "__"), repo.rpartition("/")[2])
        places = [root / f"{name}{suffix}" for name in names for suffix in ("", ".git")]
        for place in places:
            if (place / ".git").exists() or (place / "objects").is_dir():
                return place
        raise RepositoryError(f"{repo}: no repository at {', '.join(map(str, places))}")

    def _fetched(self, url: str, commit: str) -> Path:
        """A bare repository with that commit; its history only where the server gives no single commit."""
        folder = self._cache / "repositories" / hashlib.sha256(url.encode()).hexdigest()[:24]
        if not (folder / "objects").is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            _git(folder, "init", "--quiet", "--bare")
        if _has(folder, commit):
            return folder
        try:
            _git(folder, "fetch", "--quiet", "--depth=1", "--no-tags", "--", url, commit)
        except RepositoryError:
            _git(folder, "fetch", "--quiet", "--no-tags", "--", url, "+refs/heads/*:refs/heads/*")
        if not _has(folder, commit):
            raise RepositoryError(f"{url}: has no commit {commit}")
        return folder


def _has(folder: Path, commit: str) -> bool:
    try:
        _git(folder, "cat-file", "-e", f"{commit}^{{commit}}")
    except RepositoryError:
        return False
    return True


def _git(folder: Path, *arguments: str, stdin: bytes = b"") -> bytes:
    command: Sequence[str] = ("git", "-c", "safe.directory=*", "-C", str(folder), *arguments)
    try:
        done = subprocess.run(command, input=stdin, env=_ENV, capture_output=True, timeout=GIT_S, check=False)
    except FileNotFoundError as error:
        raise RepositoryError("git is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise RepositoryError(f"git {arguments[0]} took longer than {GIT_S:g} s") from error
    if done.returncode:
        why = done.stderr.decode(errors="replace").strip()[-500:]
        raise RepositoryError(f"{folder}: git {arguments[0]} failed: {why}")
    return done.stdout


def _blobs(folder: Path, names: Sequence[str]) -> list[bytes]:
    data = _git(folder, "cat-file", "--batch", stdin="".join(f"{name}\n" for name in names).encode())
    blobs, at = [], 0
    for name in names:
        end = data.index(b"\n", at)
        header = data[at:end].split()
        if len(header) != 3 or header[1] != b"blob":
            raise RepositoryError(f"{folder}: blob {name} cannot be read: {data[at:end]!r}")
        size = int(header[2])
        blobs.append(data[end + 1 : end + 1 + size])
        at = end + size + 2
    return blobs
