"""Where commands on a repository run: this machine's sandbox, or a container. Each run has files of its own.

A run's input is a few files and standard input, its output is standard output: nothing is left from one to the next,
so what a patch does in one run it cannot tell the next one.
"""

from __future__ import annotations

import io
import logging
import os
import shutil
import subprocess
import sys
import tarfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from r1async.config_swe import SweConfig
from r1async.rewards.sandbox import ENVIRONMENT, Limits, Outcome, Program, Sandbox, SandboxError
from r1async.swe.instance import Environment

log = logging.getLogger(__name__)

MAX_TREE_MIB = 512
"""Of a repository's files together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One run of a shell script in an empty working folder."""

    script: str
    """Of /bin/sh; `files` lie in its working folder."""
    arguments: Sequence[str] = ()
    """$1, $2, …"""
    files: Mapping[str, bytes] = field(default_factory=dict)
    stdin: bytes = b""
    env: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float
    memory_mib: int
    output_mib: int = 16
    """Of standard output."""


class Box(Protocol):
    """Runs jobs one after another.

    Raises:
        SandboxError: the box failed, not the job.
    """

    def run(self, job: Job) -> Outcome: ...

    def close(self) -> None: ...


class SandboxBox:
    """This machine's sandbox with an interpreter and its packages, read-only.

    Raises:
        LayersMissingError: this machine cannot isolate programs, and `reward.swe.unsafe` is not set.
    """

    def __init__(self, settings: SweConfig, python: str) -> None:
        self._settings = settings
        self._sandbox = Sandbox(
            read_only=[*settings.read_only, *prefixes(python)], cgroup=settings.cgroup, unsafe=settings.unsafe
        )

    def run(self, job: Job) -> Outcome:
        program = Program(
            argv=("/bin/sh", "-c", job.script, "sh", *job.arguments),
            files=job.files,
            stdin=job.stdin,
            env=job.env,
            limits=Limits(
                wall_s=job.timeout_s,
                cpu_s=job.timeout_s,
                memory_mib=job.memory_mib,
                output_kib=job.output_mib * 1024,
                box_mib=self._settings.files_mib,
                processes=self._settings.processes,
                open_files=1024,
            ),
        )
        try:
            return self._sandbox.run(program)
        except SandboxError as error:
            log.warning("the sandbox failed, trying once more: %s", error)
        return self._sandbox.run(program)

    def close(self) -> None:
        self._sandbox.close()


class ContainerBox:
    """A fresh container of an image for each run: no network, no capabilities, limited memory and processes.

    Args:
        program: docker or podman, as found on PATH.
        image: has the repository's dependencies, sh, tar and git.
    """

    def __init__(self, settings: SweConfig, program: str, image: str) -> None:
        self._settings, self._program, self._image = settings, program, image

    def run(self, job: Job) -> Outcome:
        name = f"r1async-{uuid.uuid4().hex}"
        env = {**ENVIRONMENT, **job.env}
        # The image's own PATH leads to its interpreter; HOME and TMPDIR of the sandbox do not exist in it.
        words = [f"--env={key}={value}" for key, value in env.items() if key not in ("PATH", "HOME", "TMPDIR")]
        command = [
            self._program,
            "run",
            "--rm",
            "--interactive",
            f"--name={name}",
            "--network=none",
            "--cap-drop=ALL",
            "--security-opt=no-new-privileges",
            f"--memory={job.memory_mib}m",
            f"--pids-limit={self._settings.processes}",
            *words,
            self._image,
            *("/bin/sh", "-c", _UNPACK, "sh", job.script, *job.arguments),
        ]
        began = time.monotonic()
        try:
            done = subprocess.run(
                command,
                input=_bundle({**job.files, ".stdin": job.stdin}),
                capture_output=True,
                timeout=job.timeout_s + CONTAINER_START_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            subprocess.run([self._program, "kill", name], capture_output=True, timeout=CONTAINER_START_S, check=False)
            return _ended("timeout", None, b"", b"", time.monotonic() - began)
        wall_s = time.monotonic() - began
        if done.returncode in _CONTAINER_FAILED:
            why = done.stderr.decode(errors="replace").strip()[-300:]
            raise SandboxError(f"{self._program} run {self._image} failed ({done.returncode}): {why}")
        if len(done.stdout) > job.output_mib * 2**20:
            return _ended("output", done.returncode, b"", done.stderr, wall_s)
        status = "memory" if done.returncode == _OOM else "ok" if done.returncode == 0 else "runtime"
        return _ended(status, done.returncode, done.stdout, done.stderr, wall_s)

    def close(self) -> None:
        """Nothing outlives its run."""


CONTAINER_START_S = 60.0
_CONTAINER_FAILED = (125, 126, 127)
_OOM = 137
_UNPACK = """mkdir -p /tmp/r1async && cd /tmp/r1async && tar -xf - && exec 0<.stdin && rm .stdin
script=$1; shift
exec /bin/sh -c "$script" sh "$@" """


def _bundle(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o755
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def _ended(status: str, code: int | None, stdout: bytes, stderr: bytes, wall_s: float) -> Outcome:
    assert status in ("ok", "runtime", "timeout", "memory", "output")
    return Outcome(
        status=status,
        exit_code=code,
        stdout=stdout,
        stderr=stderr[: 64 * 2**10],
        files={},
        wall_s=wall_s,
        cpu_s=0.0,
        memory_mib=0.0,
    )


class Boxes:
    """The box that an environment asks for, kept for the next instance that asks for the same.

    Args:
        settings: `reward.swe`.

    Raises:
        SandboxError: `reward.swe.container` names a program that is not there or whose daemon does not answer.
    """

    def __init__(self, settings: SweConfig) -> None:
        self._settings = settings
        self._program = find_container(settings.container)
        self._boxes: dict[str, Box] = {}

    def box(self, environment: Environment) -> Box:
        """
        Raises:
            SandboxError: an image is wanted and there is nothing to run it; or no sandbox can be made.
        """
        if environment.image and self._settings.container != "none":
            if not self._program:
                raise SandboxError(
                    f"image {environment.image}: neither docker nor podman answers here;"
                    " reward.swe.container=none uses the sandbox and environment.python instead"
                )
            program, image = self._program, environment.image
            return self._boxes.setdefault(f"image {image}", ContainerBox(self._settings, program, image))
        python = self.python(environment)
        if python not in self._boxes:
            self._boxes[python] = SandboxBox(self._settings, python)
        return self._boxes[python]

    def python(self, environment: Environment) -> str:
        """The interpreter that runs an environment's tests."""
        if environment.image and self._settings.container != "none":
            return environment.python or "python"
        return environment.python or self._settings.python or default_python()

    def close(self) -> None:
        while self._boxes:
            self._boxes.popitem()[1].close()


def find_container(wanted: str) -> str:
    """The container program to use; empty: none.

    Raises:
        SandboxError: one is asked for by name and does not work.
    """
    if wanted == "none":
        return ""
    why = ""
    for name in ("docker", "podman") if wanted == "auto" else (wanted,):
        path = shutil.which(name)
        if path is None:
            why = f"{name} is not installed"
            continue
        try:
            # `info` asks the daemon; `--version` would not.
            done = subprocess.run([path, "info"], capture_output=True, timeout=CONTAINER_START_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            why = f"{name} info: {error}"
            continue
        if done.returncode == 0:
            return path
        why = f"{name} info: {done.stderr.decode(errors='replace').strip()[-200:]}"
    if wanted == "auto":
        return ""
    raise SandboxError(f"reward.swe.container={wanted}: {why}")


def default_python() -> str:
    """This one, with its packages, of its virtual environment if there is one."""
    return sys.executable


def prefixes(python: str) -> list[str]:
    """Folders that an interpreter needs: of its environment, and of the one that this was made from; a name without a
    folder is looked for on the box's own PATH."""
    if "/" not in python:
        return []
    path = Path(os.path.abspath(python))
    return [str(path.parent.parent), str(path.resolve().parent.parent)]


def search_path(python: str) -> str:
    """PATH with an interpreter's folder first."""
    folder = f"{os.path.dirname(os.path.abspath(python))}:" if "/" in python else ""
    return f"{folder}{ENVIRONMENT['PATH']}"
