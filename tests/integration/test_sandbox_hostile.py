"""Programs that attack the sandbox, and programs that want to be paid for nothing: neither works."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from r1async.config import CodeConfig
from r1async.rewards.code import CodeGrader
from r1async.rewards.languages import LANGUAGES, find_language
from r1async.rewards.runners import LocalRunner, Task
from r1async.rewards.sandbox import LayersMissingError, Sandbox

from tests import hostile_programs
from tests.conftest import is_helper
from tests.hostile_programs import (
    ATTACKS,
    CALL_CHEATS,
    JAVASCRIPT_CALL_CHEATS,
    NATIVE_CHEATS,
    OTHER_ATTACKS,
    READING_CHEATS,
)

SETTINGS = CodeConfig(
    time_limit_s=3.0, memory_limit_mib=256, compile_s=15.0, output_kib=256, files_mib=32, processes=32, deadline_s=6.0
)
STATUSES = {"ok", "wrong", "compile", "runtime", "timeout", "memory", "output", "guard"}
SQUARES = [["7\n", "49\nn = 7\n"], ["12\n", "144\nn = 12\n"]]


def needs(language: str) -> None:
    tool = LANGUAGES[language].tool
    if language != "python" and shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")


class World:
    """What programs must not touch."""

    def __init__(self, folder: Path) -> None:
        self.secret = folder / "secret"
        self.secret_word = f"secret{uuid.uuid4().hex}"
        self.secret.write_text(self.secret_word)
        self.marker = f"86400.{uuid.uuid4().int % 10**9}"
        self.abstract = f"r1async-{uuid.uuid4().hex}"
        self.victim = subprocess.Popen(["/usr/bin/sleep", "3600"])
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.unix = socket.socket(socket.AF_UNIX)
        self.unix.bind(f"\0{self.abstract}")
        self.unix.listen()
        for each in (self.listener, self.unix):
            each.setblocking(False)

    def fill(self, source: str) -> bytes:
        words = {
            "<secret>": str(self.secret),
            "<secret_word>": self.secret_word,
            "<tests>": hostile_programs.__file__,
            "<port>": str(self.listener.getsockname()[1]),
            "<abstract>": self.abstract,
            "<victim>": str(self.victim.pid),
            "<marker>": self.marker,
        }
        for word, value in words.items():
            source = source.replace(word, value)
        return source.encode()

    def untouched(self) -> None:
        assert self.secret.read_text() == self.secret_word
        assert os.listdir(self.secret.parent) == ["secret"]
        assert self.victim.poll() is None
        for each in (self.listener, self.unix):
            with pytest.raises(BlockingIOError):
                each.accept()
        assert not Path("/r1async-hostile").exists()
        assert not Path("/usr/bin/r1async-hostile").exists()
        # Everything the sandbox started is a child of a child of ours; what was orphaned has the marker in its words.
        for process in psutil.process_iter(["cmdline"]):
            assert self.marker not in (process.info["cmdline"] or []), "something outlived its run"
        # Helpers of multiprocessing that an earlier test began live as long as the session.
        started = [
            child
            for child in psutil.Process().children(recursive=True)
            if child.pid != self.victim.pid and not is_helper(child)
        ]
        zygotes = [child for child in started if "r1async.rewards.jail" in " ".join(child.cmdline())]
        assert len(zygotes) == len(started)

    def close(self) -> None:
        self.victim.kill()
        self.victim.wait()
        self.listener.close()
        self.unix.close()


@pytest.fixture(scope="module")
def isolated() -> None:
    try:
        Sandbox().close()
    except LayersMissingError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def world(isolated: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("world"))
    os.environ["R1ASYNC_SECRET"] = world.secret_word
    yield world
    del os.environ["R1ASYNC_SECRET"]
    world.close()


@pytest.fixture(scope="module")
def runner(world: World) -> Iterator[LocalRunner]:
    runner = LocalRunner(SETTINGS)
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def grader(world: World) -> Iterator[CodeGrader]:
    grader = CodeGrader(SETTINGS)
    yield grader
    grader.close()


def attack(name: str, world: World, runner: LocalRunner) -> None:
    language, source = ("python", ATTACKS[name]) if name in ATTACKS else OTHER_ATTACKS[name]
    needs(language)
    if "libc.syscall" in source and platform.machine() != "x86_64":
        pytest.skip("its system calls are numbered for x86-64")
    known = find_language(language)
    assert known is not None
    trial = runner.run(
        Task(language=known, source=world.fill(source), time_limit_s=3.0, memory_limit_mib=SETTINGS.memory_limit_mib)
    )
    assert "ESCAPED" not in trial.output.decode(errors="replace")
    assert world.secret_word not in trial.output.decode(errors="replace")
    assert trial.status in STATUSES
    world.untouched()


@pytest.mark.parametrize("name", [*ATTACKS, *OTHER_ATTACKS])
def test_attack_has_no_effect(name: str, world: World, runner: LocalRunner):
    attack(name, world, runner)


def test_sandbox_works_after_all_attacks(runner: LocalRunner):
    for _ in range(3):
        trial = runner.run(
            Task(language=LANGUAGES["python"], source=b"print(1)", time_limit_s=20.0, memory_limit_mib=256)
        )
        assert (trial.status, trial.output) == ("ok", b"1\n")


@pytest.mark.parametrize("name", READING_CHEATS)
def test_program_that_cheats_earns_nothing(name: str, world: World, grader: CodeGrader):
    problem = {"type": "stdin", "tests": SQUARES}
    graded = grader.grade({"completion": READING_CHEATS[name], "raw": True, "problem": problem, "language": "python"})
    assert graded.verdict.total == 0.0, graded
    assert graded.verdict.status in STATUSES - {"ok"}
    world.untouched()


@pytest.mark.parametrize("name", NATIVE_CHEATS)
def test_native_program_that_cheats_earns_nothing(name: str, world: World, grader: CodeGrader):
    needs("cpp")
    problem = {"type": "stdin", "tests": SQUARES}
    graded = grader.grade({"completion": NATIVE_CHEATS[name], "raw": True, "problem": problem, "language": "cpp"})
    assert graded.verdict.total == 0.0, graded
    assert graded.verdict.status in STATUSES - {"ok"}
    world.untouched()


@pytest.mark.parametrize("name", CALL_CHEATS)
def test_function_that_cheats_earns_nothing(name: str, world: World, grader: CodeGrader):
    problem = {"type": "call", "fn_name": "square", "tests": [[[7], 49], [[12], 144]]}
    graded = grader.grade({"completion": CALL_CHEATS[name], "raw": True, "problem": problem, "language": "python"})
    assert graded.verdict.total == 0.0, graded
    assert graded.verdict.status in STATUSES - {"ok"}
    world.untouched()


@pytest.mark.parametrize("name", JAVASCRIPT_CALL_CHEATS)
def test_function_that_cheats_in_javascript_earns_nothing(name: str, world: World, grader: CodeGrader):
    needs("javascript")
    problem = {"type": "call", "fn_name": "square", "tests": [[[7], 49], [[12], 144]]}
    item = {"completion": JAVASCRIPT_CALL_CHEATS[name], "raw": True, "problem": problem, "language": "js"}
    graded = grader.grade(item)
    assert graded.verdict.total == 0.0, graded
    assert graded.verdict.status in STATUSES - {"ok"}
    world.untouched()


def test_attacks_are_programs_that_could_work(world: World):
    """The secret can be read, and the listener reached, by who is not in the sandbox: the attacks aim at something."""
    read = subprocess.run([sys.executable, "-c", world.fill(ATTACKS["read_the_secret"])], capture_output=True)
    assert b"ESCAPED" in read.stdout
    sent = subprocess.run([sys.executable, "-c", world.fill(ATTACKS["send_a_datagram"])], capture_output=True)
    assert b"ESCAPED" in sent.stdout
