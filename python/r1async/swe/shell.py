"""A shell on an instance's repository, turn by turn: the environment of a rollout with a tool.

A session in the sandbox: its commands share one box, and nothing of it outlives the session. Each command is a shell of
its own (as in mini-SWE-agent): files stay, variables, the working folder and processes do not. Tests are run
afterwards, in boxes that the session never saw.
"""

from __future__ import annotations

import re
import time

from r1async.config_swe import SweConfig
from r1async.rewards.sandbox import WORK, Limits, Outcome, Program, Sandbox, SandboxError
from r1async.swe.boxes import prefixes, search_path
from r1async.swe.instance import Environment as Needs
from r1async.swe.tree import to_tar
from r1async.swe.workshop import GIT_ENV, Base
from r1async.types import Step

_FENCE = re.compile(r"```(?:bash|sh|shell)[ \t]*\n(.*?)^```", re.S | re.M)
SUBMIT = "submit"
"""A command that ends the session, as an answer without a command does."""
_UNPACK = """mkdir repo && tar -xf tree.tar -C repo && tar -xf git.tar -C repo && rm tree.tar git.tar && cd repo &&
git add -A -f . && { git diff --cached --quiet || git commit -q --no-verify -m setup; } && git rev-parse HEAD"""
# Against the commit that the session began with: a policy may have staged or committed what it did.
_DIFF = "git add -A . && git -c core.quotepath=off diff --cached --binary --no-ext-diff --no-color "
DIFF_S = 60.0


class ShellEnvironment:
    """A session on the files of an instance.

    Args:
        settings: `reward.swe`: memory, files, processes, turns and seconds.
        base: the instance before any patch.
        needs: its environment.
        python: interpreter that the policy's commands find first.

    Raises:
        SandboxError: no sandbox can be made here.
    """

    def __init__(self, settings: SweConfig, base: Base, needs: Needs, python: str) -> None:
        self._settings, self._needs, self._python = settings, needs, python
        self._turns = 0
        self._until = time.monotonic() + settings.session_s
        self._sandbox = Sandbox(
            read_only=[*settings.read_only, *prefixes(python)],
            keep_mib=settings.files_mib,
            cgroup=settings.cgroup,
            unsafe=settings.unsafe,
        )
        try:
            made = self._run(_UNPACK, DIFF_S, files={"tree.tar": to_tar(base.tree), "git.tar": base.git}, cwd="")
            if made.status != "ok":
                raise SandboxError(f"the repository cannot be unpacked: {made.stderr[-200:].decode(errors='replace')}")
            self._base = made.stdout.decode().strip()
        except BaseException:
            self.close()
            raise

    def step(self, text: str) -> Step:
        command = last_command(text)
        left_s = self._until - time.monotonic()
        if command is None or command.strip() == SUBMIT:
            return self._end("")
        if left_s <= 0:
            return self._end("The session's time is over.\n")
        self._turns += 1
        outcome = self._run(command, min(self._settings.turn_s, left_s))
        said = observed(outcome, self._settings.observation_chars)
        if self._turns >= self._settings.turns:
            return self._end(f"{said}That was the last of {self._settings.turns} turns.\n")
        return Step(said, False)

    def _end(self, said: str) -> Step:
        """The patch that the session amounts to is its last observation, where the reward finds it."""
        outcome = self._run(_DIFF + self._base, DIFF_S)
        diff = outcome.stdout.decode("utf-8", "replace") if outcome.status == "ok" else ""
        return Step(f"{said}```diff\n{diff}```\n", True)

    def _run(self, command: str, wall_s: float, *, files: dict[str, bytes] | None = None, cwd: str = "repo") -> Outcome:
        limits = Limits(
            wall_s=wall_s,
            cpu_s=wall_s,
            memory_mib=self._needs.memory_mib or self._settings.memory_mib,
            box_mib=self._settings.files_mib,
            output_kib=16 * 1024,
            processes=self._settings.processes,
            open_files=1024,
        )
        env = {**GIT_ENV, **self._needs.env, "PATH": search_path(self._python), "PYTHONDONTWRITEBYTECODE": "1"}
        program = Program(
            argv=("/bin/sh", "-c", command),
            files=files or {},
            cwd=f"{WORK}/{cwd}" if cwd else "",
            env=env,
            limits=limits,
        )
        return self._sandbox.run(program)

    def close(self) -> None:
        self._sandbox.close()


def last_command(text: str) -> str | None:
    """What stands in the last shell fence of a turn; None if there is none."""
    found = _FENCE.findall(text)
    return found[-1] if found else None


def observed(outcome: Outcome, most_chars: int) -> str:
    """What a command wrote and how it ended; of a long text its beginning and its end."""
    text = (outcome.stdout + outcome.stderr).decode("utf-8", "replace")
    if len(text) > most_chars:
        half = most_chars // 2
        text = f"{text[:half]}\n[{len(text) - 2 * half} characters left out]\n{text[-half:]}"
    ended = f"exit code {outcome.exit_code}" if outcome.status in ("ok", "runtime") else f"ended: {outcome.status}"
    joint = "" if not text or text.endswith("\n") else "\n"
    return f"{text}{joint}[{ended}]\n"
