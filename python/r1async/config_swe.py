"""Settings of software-engineering rewards and rollouts, `reward.swe`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class SweConfig:
    instances: str = ""
    """JSONL file of instances in SWE-bench's shape; a rollout's row names one by `instance_id`."""
    repos: str = ""
    """Folder that holds the repositories (owner/name, owner__name or name), or the URL that they lie below."""
    answer: Literal["edits", "diff", "replacement", "any"] = "any"
    """What a completion holds. edits: search/replace blocks. diff: a unified diff. replacement: the text that takes the
    place of the instance's `hole`. any: edits if there are, else a diff."""
    python: str = ""
    """Interpreter with pytest that runs the tests of instances that name none. Empty: this one."""
    read_only: tuple[str, ...] = ()
    """More folders that tests may read."""
    container: Literal["auto", "docker", "podman", "none"] = "auto"
    """What runs instances that name an image. auto: the one that answers. none: the sandbox, for these too."""
    timeout_s: float = 300.0
    """Seconds for one run of an instance's tests, where it does not say."""
    memory_mib: int = 2048
    """Memory of one run, where the instance does not say."""
    files_mib: int = 1024
    """All files of a run together, the repository included."""
    processes: int = 256
    """Processes and threads of a run at a time."""
    controls: int = 8
    """Runs of tests that must fail, for a patch that resolved its instance. 0: none; forged results are then believed.
    Each changes what another assertion expects."""
    control_passing: int = 16
    """PASS_TO_PASS tests that take part in the controls, besides all of FAIL_TO_PASS."""
    introspection: Literal["guard", "allow"] = "guard"
    """guard: a patch that resolves its instance but looks into the frames of its callers, into all objects or into raw
    memory, where the reference patch does not, scores 0. allow: controls alone decide."""
    gold_runs: int = 1
    """Times the reference patch has to resolve an instance before its first verdict."""
    max_patch_kib: int = 1024
    """A larger patch scores 0 with status `guard`."""
    cache: str = ""
    """Folder that remembers checked instances and fetched repositories. Empty: ~/.cache/r1async/swe."""
    deadline_s: float = 1800.0
    """Seconds for one verdict, the check of its instance before the first one included."""
    turns: int = 30
    """Commands of one session of the shell tool at most."""
    turn_s: float = 60.0
    """Seconds for one of them."""
    session_s: float = 900.0
    """Seconds for a session, from its start."""
    observation_chars: int = 8192
    """Of a command's output that the policy reads; from the middle of more, so much is left out."""
    cgroup: str = ""
    """Folder of control groups that may be divided, as reward.code.cgroup."""
    unsafe: bool = False
    """Run tests although this machine cannot isolate them."""
