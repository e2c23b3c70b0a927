"""The sandbox: every layer is seen to hold or to be missing, and nothing is left of a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from r1async.rewards.sandbox import (
    LAYERS,
    REQUIRED,
    LayersMissingError,
    Limits,
    Program,
    Sandbox,
    SandboxError,
    base_python,
    show,
)

WAIT_S = 60.0
PATIENT = Limits(wall_s=30.0, cpu_s=20.0, memory_mib=512)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    try:
        sandbox = Sandbox()
    except LayersMissingError as error:
        pytest.skip(str(error))
    with sandbox:
        yield sandbox


def python(source: str, **fields) -> Program:
    fields.setdefault("limits", PATIENT)
    return Program(argv=(base_python(), "-S", "program.py"), files={"program.py": source.encode()}, **fields)


def shell(source: str, **fields) -> Program:
    fields.setdefault("limits", PATIENT)
    return Program(argv=("/bin/sh", "-c", source), **fields)


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def zygotes() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "r1async.rewards.jail" in " ".join(child.cmdline())]


def test_program_gets_its_input_and_gives_its_output(sandbox: Sandbox):
    outcome = sandbox.run(shell("cat; echo error >&2; exit 3", stdin=b"hello"))
    assert (outcome.status, outcome.exit_code) == ("runtime", 3)
    assert (outcome.stdout, outcome.stderr) == (b"hello", b"error\n")


def test_input_is_a_file_that_can_be_opened_by_name_too(sandbox: Sandbox):
    source = "import os, sys; print(open('/dev/stdin').read(), os.lseek(0, 0, 0), sys.stdin.read())"
    assert sandbox.run(python(source, stdin=b"x" * 200_000)).stdout == b"%s 0 %s\n" % ((b"x" * 200_000,) * 2)


def test_environment_is_empty_but_for_what_is_said(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("R1ASYNC_SECRET", "x")
    seen = sandbox.run(shell("env; pwd; id -u; hostname", env={"MORE": "1"})).stdout.decode().split("\n")
    assert {line.partition("=")[0] for line in seen if "=" in line} - {"PWD", "OLDPWD", "SHLVL", "_"} == {
        "PATH",
        "HOME",
        "TMPDIR",
        "LANG",
        "TZ",
        "PYTHONHASHSEED",
        "MORE",
    }
    assert seen[-4:] == ["/box/work", "1000", "sandbox", ""]


def test_runs_do_not_see_each_other(sandbox: Sandbox):
    sandbox.run(shell("echo 1 > /tmp/x; echo 2 > x; echo 3 > /dev/shm/x"))
    assert sandbox.run(shell("ls -A /tmp . /dev/shm/ /box/work; echo $(ls /proc | grep -c '^[0-9]')")).stdout.split()[
        -1
    ] in (b"4", b"5", b"6")
    assert b"x" not in sandbox.run(shell("ls -A /box/tmp /box/work /box/shm | grep -v :")).stdout


def test_session_keeps_its_box_from_run_to_run_and_loses_it_at_the_end(tmp_path: Path):
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "file").write_text("original")
    try:
        session = Sandbox(keep_mib=32, at={"/repository": str(tmp_path / "repository")})
    except LayersMissingError as error:
        pytest.skip(str(error))
    with session:
        assert session.run(shell("cp -r /repository . && echo changed > repository/file")).status == "ok"
        assert session.run(shell("cat repository/file", cwd="/box/work")).stdout == b"changed\n"
        assert session.run(shell("pwd; ls", cwd="/box/work/repository")).stdout == b"/box/work/repository\nfile\n"
        assert session.run(shell("echo x > /repository/file")).status == "runtime"
        assert session.run(shell("head -c 50m /dev/zero > large")).status == "runtime"
    assert (tmp_path / "repository" / "file").read_text() == "original"


def test_files_come_back_and_links_do_not(sandbox: Sandbox):
    source = "echo made > made; mkdir d; echo deep > d/e; ln -s made link; mkfifo pipe; head -c 3m /dev/zero > large"
    fetch = ("made", "d/e", "link", "pipe", "d", "large", "missing")
    outcome = sandbox.run(shell(source, fetch=fetch, fetch_mib=1))
    assert dict(outcome.files) == {"made": b"made\n", "d/e": b"deep\n"}


@pytest.mark.parametrize(
    ("source", "limits", "status"),
    [
        ("import time; time.sleep(99)", Limits(wall_s=0.5), "timeout"),
        ("while True: pass", Limits(wall_s=60.0, cpu_s=0.7), "timeout"),
        ("import time\nwhile time.process_time() < 0.6: pass", Limits(wall_s=60.0, cpu_s=0.5), "timeout"),
        ("import os; os.write(1, b'x' * 5000)", Limits(output_kib=4), "output"),
        ("import signal; signal.signal(25, 0); open('f', 'w').truncate(2**21)", Limits(box_mib=1), "output"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", Limits(), "runtime"),
    ],
)
def test_limit_that_ends_a_run_is_named(sandbox: Sandbox, source: str, limits: Limits, status: str):
    assert sandbox.run(python(source, limits=limits)).status == status


def test_memory_of_many_processes_is_added_up(sandbox: Sandbox):
    source = """
import os, time
for _ in range(6):
    if os.fork() == 0:
        data = b"x" * (100 * 2**20)
        time.sleep(60)
time.sleep(60)
"""
    outcome = sandbox.run(python(source, limits=Limits(wall_s=50.0, memory_mib=300)))
    assert outcome.status == "memory"


def test_program_that_is_not_there_is_the_graders_fault(sandbox: Sandbox):
    with pytest.raises(SandboxError, match="cannot start the program: FileNotFoundError"):
        sandbox.run(Program(argv=("/usr/bin/no-such-program",)))


def test_sandbox_goes_on_after_its_process_was_killed(sandbox: Sandbox):
    before = zygotes()
    with Sandbox() as other:
        for process in zygotes():
            if process not in before:
                process.kill()
        with pytest.raises(SandboxError, match="process failed"):
            other.run(shell("true"))
        assert other.run(shell("echo again")).stdout == b"again\n"


def test_answer_to_an_interrupted_caller_is_not_given_to_the_next(sandbox: Sandbox):
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with Sandbox() as other:
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(KeyboardInterrupt):
                other.run(shell("sleep 1; echo late"))
            assert other.run(shell("echo next")).stdout == b"next\n"
    finally:
        signal.signal(signal.SIGALRM, before)


def test_program_ends_with_the_process_that_watches_it(sandbox: Sandbox):
    marker, before, raised = f"86402.{os.getpid()}", zygotes(), []

    def running() -> bool:
        return any(marker in (each.info["cmdline"] or []) for each in psutil.process_iter(["cmdline"]))

    def run(other: Sandbox) -> None:
        try:
            other.run(shell(f"setsid sleep {marker} & exec sleep {marker}", limits=Limits(wall_s=999)))
        except SandboxError as error:
            raised.append(error)

    with Sandbox() as other:
        thread = threading.Thread(target=run, args=(other,))
        thread.start()
        until(running)
        for process in zygotes():
            if process not in before and process.ppid() == os.getpid():
                process.kill()
        until(lambda: not running())
        thread.join()
    assert raised


def test_every_layer_is_shown_and_holds(sandbox: Sandbox):
    assert list(sandbox.layers) == list(LAYERS)
    assert {name: why for name, why in sandbox.layers.items() if name in REQUIRED} == dict.fromkeys(REQUIRED, "")
    assert all(name in show(sandbox.layers) for name in LAYERS)


@pytest.mark.parametrize(
    ("left_out", "layer"),
    [
        ("processes", "processes"),
        ("rlimits", "rlimits"),
        ("network", "namespaces"),
        ("root", "root"),
        ("namespaces", "namespaces"),
        ("namespaces", "root"),
        ("seccomp", "seccomp"),
        ("landlock", "landlock"),
    ],
)
def test_layer_that_is_missing_is_noticed(sandbox: Sandbox, left_out: str, layer: str):
    if sandbox.layers[layer]:
        pytest.skip(f"no {layer} here anyway")
    with Sandbox(leave_out=(left_out,), unsafe=True) as lesser:
        assert lesser.layers[layer]
        assert "MISSING" in show(lesser.layers)
        assert lesser.run(shell("echo works")).stdout == b"works\n"
    if layer in REQUIRED:
        with pytest.raises(LayersMissingError, match=f"no {layer}: .*unsafe runs them all the same"):
            Sandbox(leave_out=(left_out,))


@pytest.mark.skipif(os.getuid() != 0, reason="only root has privileges to keep")
def test_privileges_that_stay_are_noticed(sandbox: Sandbox):
    with Sandbox(leave_out=("identity",), unsafe=True) as lesser:
        assert "runs as root" in lesser.layers["identity"]
    with pytest.raises(LayersMissingError, match="no identity: runs as root"):
        Sandbox(leave_out=("identity",))


def test_without_namespaces_what_a_program_started_still_ends_with_it():
    marker = f"86400.{os.getpid()}"
    with Sandbox(leave_out=("namespaces",), unsafe=True) as lesser:
        lesser.run(shell(f"setsid sleep {marker} & sleep 0.2"))
        lesser.run(shell(f"setsid sleep {marker} & sleep 99", limits=Limits(wall_s=0.5)))
    assert not [each for each in psutil.process_iter(["cmdline"]) if marker in (each.info["cmdline"] or [])]


HOLDER = """
import sys
from r1async.rewards.sandbox import *
sandbox = Sandbox()
print("ready", flush=True)
sandbox.run(Program(argv=("/bin/sh", "-c", "setsid sleep {marker} & sleep {marker}"), limits=Limits(wall_s=9999)))
"""


def test_nothing_outlives_a_grader_that_is_killed(sandbox: Sandbox):
    marker = f"86401.{os.getpid()}"
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER.format(marker=marker))], stdout=subprocess.PIPE
    )

    def running() -> list[psutil.Process]:
        found = [each for each in psutil.process_iter(["cmdline"]) if marker in (each.info["cmdline"] or [])]
        return [each for each in found if each.pid != holder.pid]

    until(lambda: len(running()) >= 2)
    below = psutil.Process(holder.pid).children(recursive=True)
    assert len(below) >= 4  # zygote, process 1, shell, sleep
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    until(lambda: not running() and not any(each.is_running() and each.status() != "zombie" for each in below))


def test_many_runs_leave_no_process_mount_or_file(sandbox: Sandbox):
    sandbox.run(shell("true"))
    mounts = Path("/proc/self/mountinfo").read_text()
    (zygote,) = [each for each in zygotes() if each.ppid() == os.getpid()]
    descriptors = zygote.num_fds()
    for number in range(40):
        limits = Limits(wall_s=0.05 if number % 4 == 0 else 20.0)
        sandbox.run(shell("setsid sleep 99 & echo x > /tmp/f; sleep 0.01", limits=limits))
    assert Path("/proc/self/mountinfo").read_text() == mounts
    assert not [name for name in os.listdir(tempfile.gettempdir()) if name.startswith("r1async-box-")]
    assert zygote.children(recursive=True) == []
    assert zygote.num_fds() == descriptors


def test_machine_without_user_namespaces_is_refused_and_says_why():
    code = "from r1async.rewards.sandbox import *\ntry: Sandbox()\nexcept LayersMissingError as e: print(e)"
    forbid = f"echo 0 > /proc/sys/user/max_user_namespaces && exec {sys.executable} -c '{code}'"
    said = subprocess.run(["unshare", "--user", "--map-root-user", "sh", "-c", forbid], capture_output=True, text=True)
    if "unshare" in said.stderr or "cannot create" in said.stderr:
        pytest.skip(said.stderr)
    assert "programs cannot be isolated here: no processes: [Errno 28] clone: No space left on device" in said.stdout


def test_control_group_limits_processes_where_there_is_one(sandbox: Sandbox):
    parent = next((each for each in map(Path, ("/sys/fs/cgroup/pids", "/sys/fs/cgroup")) if each.is_dir()), None)
    ours = parent / f"r1async-test-{os.getpid()}" if parent else Path("/nowhere")
    try:
        ours.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made: {error}")
    try:
        with Sandbox(cgroup=str(ours)) as limited:
            if limited.layers["cgroup"]:
                pytest.skip(limited.layers["cgroup"])
            (group,) = [each for each in ours.iterdir() if each.is_dir()]
            count = "for i in 1 2 3 4 5 6 7 8 9; do sleep 30 & done; echo done"
            outcome = limited.run(shell(count, limits=Limits(wall_s=30.0, processes=4)))
            assert (group / "pids.max").read_text() == "5\n"
            assert b"done" not in outcome.stdout
            assert limited.run(shell("echo fine")).stdout == b"fine\n"
            assert (group / "cgroup.procs").read_text() == ""
        assert not group.exists()
    finally:
        ours.rmdir()


def test_folder_that_is_no_control_group_is_a_missing_layer(sandbox: Sandbox, tmp_path: Path):
    assert "reward.code.cgroup" in sandbox.layers["cgroup"]
    with Sandbox(cgroup=str(tmp_path)) as limited:
        assert "neither memory nor pids" in limited.layers["cgroup"]
    assert os.listdir(tmp_path) == []
