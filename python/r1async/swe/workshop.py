"""Trees in the making, in a box: the single-commit clone, setup and build commands, patches.

Everything that reads a patch runs in the box; what comes back is a tar, of which `tree.from_tar` believes nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from r1async.config_swe import SweConfig
from r1async.rewards.sandbox import Outcome, SandboxError
from r1async.swe.boxes import MAX_TREE_MIB, Box, Boxes, Job, search_path
from r1async.swe.instance import Environment, Instance
from r1async.swe.repository import Repositories, RepositoryError
from r1async.swe.tree import Tree, TreeTooLargeError, from_tar, to_tar

KEPT = 4
"""Base trees kept in memory: members of a group come one after another."""
APPLY_S = 120.0
"""For the clone, and for applying one patch."""
MEMORY_MIB = 2048

# Names and dates are fixed, so the same tree is the same commit; nothing of the user's own settings is read.
GIT_ENV: Mapping[str, str] = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": "r1async",
    "GIT_AUTHOR_EMAIL": "r1async@localhost",
    "GIT_COMMITTER_NAME": "r1async",
    "GIT_COMMITTER_EMAIL": "r1async@localhost",
    "GIT_AUTHOR_DATE": "2001-09-09T01:46:40Z",
    "GIT_COMMITTER_DATE": "2001-09-09T01:46:40Z",
}

_CLONE = """set -e; exec 3>&1 1>&2
mkdir repo && tar -xf tree.tar -C repo && cd repo
git init -q -b base . && rm -rf .git/hooks && git add -A -f && git commit -q --no-verify --allow-empty -m base
git repack -adq && rm -rf .git/logs .git/COMMIT_EDITMSG
tar -cf - .git >&3"""

_UNPACK = "rm -rf repo; mkdir repo && tar -xf tree.tar -C repo && tar -xf git.tar -C repo"
_PACK = "tar --exclude=./.git -cf - ."

_COMMANDS = f"""exec 3>&1 1>&2
{_UNPACK} && rm tree.tar git.tar && cd repo || exit 98
for command in "$@"; do /bin/sh -c "$command" </dev/null || exit 97; done
{_PACK} >&3"""

# The ways of SWE-bench's harness, and --3way before the ones that guess; each begins with a clean tree.
_APPLY = f"""exec 3>&1 1>&2
fresh() {{ cd "$OLDPWD_"; {_UNPACK} && cd repo || exit 98; }}
OLDPWD_=$PWD
while :; do
fresh; how="git apply"; git apply --verbose ../model.patch && break
fresh; how="git apply --3way"; git apply --verbose --3way ../model.patch && break
fresh; how="git apply --reject"; git apply --verbose --reject ../model.patch && break
fresh; how="patch --fuzz=5"; patch --batch --no-backup-if-mismatch --fuzz=5 -p1 -i ../model.patch && break
exit {3}
done
printf '%s\\n' "$how" >&3
{_PACK} >&3"""
_NO_WAY = 3


class Base(NamedTuple):
    """An instance before any patch."""

    tree: Tree
    git: bytes
    """A tar of `.git` with that tree as its only commit."""


class Applied(NamedTuple):
    tree: Tree | None
    """None: the patch does not apply."""
    how: str
    """The command that took it, or what the last one said."""


class CommandError(RuntimeError):
    """A setup or build command failed; the message has its last words."""


class Workshop:
    """Makes trees.

    Args:
        settings: `reward.swe`.
    """

    def __init__(self, settings: SweConfig, repositories: Repositories, boxes: Boxes) -> None:
        self._settings, self._repositories, self._boxes = settings, repositories, boxes
        self._bases: OrderedDict[tuple[object, ...], Base] = OrderedDict()

    def base(self, instance: Instance) -> Base:
        """The instance's commit, set up.

        Raises:
            RepositoryError: it cannot be had.
            CommandError: a command of `environment.setup` failed.
            SandboxError: the box did.
        """
        environment = instance.environment
        python = self._boxes.python(environment)
        key = (instance.repo, instance.base_commit, environment.setup, environment.image, python)
        if key in self._bases:
            self._bases.move_to_end(key)
            return self._bases[key]
        tree = self._repositories.tree(instance.repo, instance.base_commit)
        size = sum(len(entry.data) for entry in tree.values())
        if size > MAX_TREE_MIB * 2**20:
            raise RepositoryError(f"{instance.repo}: has {size >> 20} MiB of files, at most {MAX_TREE_MIB} are handled")
        box = self._boxes.box(environment)
        base = Base(tree, self._clone(box, tree))
        if environment.setup:
            base = Base(self.run_commands(instance, base, tree, environment.setup), base.git)
        self._bases[key] = base
        if len(self._bases) > KEPT:
            self._bases.popitem(last=False)
        return base

    def _clone(self, box: Box, tree: Tree) -> bytes:
        outcome = box.run(_tree_job(_CLONE, {"tree.tar": to_tar(tree)}, APPLY_S))
        if outcome.status != "ok":
            raise SandboxError(f"git in the box failed: {_last_words(outcome)}")
        return outcome.stdout

    def apply(self, environment: Environment, base: Base, patch: str) -> Applied:
        """A patch on a base.

        Raises:
            SandboxError: the box failed.
        """
        files = {"tree.tar": to_tar(base.tree), "git.tar": base.git, "model.patch": _as_file(patch)}
        outcome = self._boxes.box(environment).run(_tree_job(_APPLY, files, APPLY_S))
        if outcome.status == "runtime" and outcome.exit_code == _NO_WAY:
            return Applied(None, f"does not apply: {_last_words(outcome)}")
        if outcome.status in ("timeout", "memory", "output"):
            return Applied(None, f"does not apply: {outcome.status}")
        if outcome.status != "ok":
            raise SandboxError(f"applying a patch failed: {_last_words(outcome)}")
        how, _, tar = outcome.stdout.partition(b"\n")
        try:
            return Applied(from_tar(tar, most_bytes=MAX_TREE_MIB * 2**20), how.decode())
        except TreeTooLargeError as error:
            return Applied(None, f"does not apply: {error}")

    def run_commands(self, instance: Instance, base: Base, tree: Tree, commands: Sequence[str]) -> Tree:
        """What commands make of a tree.

        Raises:
            CommandError: one ended with another exit code than 0, or not in time.
            SandboxError: the box failed.
        """
        environment = instance.environment
        job = Job(
            script=_COMMANDS,
            arguments=commands,
            files={"tree.tar": to_tar(tree), "git.tar": base.git},
            env={**environment.env, "PATH": search_path(self._boxes.python(environment))},
            timeout_s=environment.timeout_s or self._settings.timeout_s,
            memory_mib=environment.memory_mib or self._settings.memory_mib,
            output_mib=MAX_TREE_MIB,
        )
        outcome = self._boxes.box(environment).run(job)
        if outcome.status != "ok":
            raise CommandError(f"{outcome.status}: {_last_words(outcome)}")
        try:
            return from_tar(outcome.stdout, most_bytes=MAX_TREE_MIB * 2**20)
        except ValueError as error:
            raise CommandError(str(error)) from error


def _tree_job(script: str, files: Mapping[str, bytes], timeout_s: float) -> Job:
    return Job(
        script=script,
        files=files,
        env=GIT_ENV,
        timeout_s=timeout_s,
        memory_mib=MEMORY_MIB,
        output_mib=MAX_TREE_MIB,
    )


def _as_file(patch: str) -> bytes:
    """With the line break at its end that models forget and git insists on."""
    return (patch if patch.endswith("\n") else f"{patch}\n").encode("utf-8", "surrogateescape")


def _last_words(outcome: Outcome) -> str:
    text = outcome.stderr[-600:].decode(errors="replace").strip()
    return f"exit code {outcome.exit_code}: {text}" if text else f"{outcome.status}, exit code {outcome.exit_code}"
