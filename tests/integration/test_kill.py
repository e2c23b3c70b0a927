"""A real run with every role a process, and what happens when each of them is killed.

The model is tiny and random: it learns nothing, but every message, checkpoint and restart is real.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest
import zmq
from r1async._core import journal_audit
from r1async.config import load_config
from r1async.wire import unpack

from tests.tiny_models import save_tiny

STEPS = 24
pytestmark = pytest.mark.timeout(900)

WAIT_S = 240.0
"""For one thing to happen; importing torch and transformers takes each role seconds on a busy machine."""


class Run:
    """`r1async run` in a process of its own, watched over the buffer's events."""

    program: tuple[str, ...] = ("-m", "r1async", "run")
    wait_s = WAIT_S

    def __init__(self, root: Path, model: Path, *overrides: str) -> None:
        settings = {
            "name": "kill", "runs_dir": root, "model.path": model, "data.task": "chain-mod", "steps": STEPS,
            "sampling.max_tokens": 16, "data.max_prompt_tokens": 32, "generator.slots": 32, "generator.eval_slots": 16,
            "group.group_size": 4, "group.lease_s": 5, "learner.groups_per_step": 4, "learner.checkpoint_every": 4,
            "learner.lr": 1e-4, "eval.prompts": 8, "buffer.peer_deadline_s": 4, "monitor.terminal": "plain",
            "monitor.interval_s": 0.2, "monitor.tensorboard": "false", "data.template": "none",
        }  # fmt: skip
        arguments = [*(f"{key}={value}" for key, value in settings.items()), *overrides]
        self.config_path = root / "config.yaml"
        self.config_path.write_text("{}\n")
        self.config = load_config(self.config_path, arguments)
        self.run_dir = self.config.run_dir
        self._context = zmq.Context()
        self._events = self._context.socket(zmq.SUB)
        self._events.subscribe(b"")
        self._events.connect(self.config.endpoint("events"))
        self.process = subprocess.Popen(
            [sys.executable, *self.program, str(self.config_path), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._ended = os.pidfd_open(self.process.pid)

    def close(self) -> None:
        """After a failed test the launcher is killed, and its roles with it; the fixtures see to it that they are."""
        self.process.kill()
        self.process.communicate()
        os.close(self._ended)
        self._context.destroy(linger=0)

    def end(self) -> tuple[int, str]:
        """Exit code and all that was printed."""
        printed, _ = self.process.communicate(timeout=self.wait_s)
        return self.process.returncode, printed

    def await_step(self, number: int) -> None:
        """Until an optimizer step with at least this number is done."""
        self._await(f"step {number}", lambda header: header["t"] == "step" and header["step"] >= number)

    def _await(self, what: str, happened) -> None:
        poller = zmq.Poller()
        poller.register(self._events, zmq.POLLIN)
        poller.register(self._ended, zmq.POLLIN)
        deadline, last = time.monotonic() + self.wait_s, {}
        while (left := deadline - time.monotonic()) > 0:
            ready = dict(poller.poll(int(left * 1000) + 1))
            if self._events in ready:
                header = unpack(self._events.recv()).header
                if happened(header):
                    return
                last = header if header["t"] == "stats" else last
            elif self._ended in ready:
                pytest.fail(f"waited for {what}, but the run ended: {self.process.communicate()[0]}")
        pytest.fail(f"{what} did not happen within {self.wait_s:.0f} s; the buffer said last: {last}")

    def role(self, command: str) -> psutil.Process:
        """The newest process of the role that this command starts."""
        children = psutil.Process(self.process.pid).children()
        return next(child for child in reversed(children) if command in child.cmdline())

    def kill(self, command: str) -> None:
        self.role(command).send_signal(signal.SIGKILL)

    def read(self, name: str) -> Mapping:
        return json.loads((self.run_dir / name).read_text())

    def assert_complete(self) -> None:
        """All steps trained, and every prompt, rollout and token accounted for."""
        audit = self.read("audit.json")
        assert audit["balanced"], audit
        for account in ("prompts", "rollouts", "tokens"):
            books = audit[account]
            assert books["in"] == books["trained"] + sum(books["dropped"].values()) + books["live"], audit
        assert self.read("summary.json")["policy_version"] == STEPS
        assert audit["prompts"]["trained"] == STEPS * 4  # some without all members: a group may close early
        account = journal_audit(self.run_dir / "journal")
        assert account["balanced"], account["differences"]
        assert account["trained_twice"] == 0
        assert account["prompts"]["trained"] == STEPS * 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture
def started(run_root: Path, model: Path) -> Iterator:
    """Starts runs in one folder; they are ended with the test."""
    runs = []

    def start(*overrides: str) -> Run:
        runs.append(Run(run_root, model, *overrides))
        return runs[-1]

    yield start
    for run in runs:
        run.close()


def test_killed_generator_scorer_and_learner_cost_nothing_but_time(started):
    run = started()
    run.await_step(2)
    run.kill("generate")
    run.await_step(8)  # more than was sampled before the kill
    run.kill("score")
    run.await_step(14)
    run.kill("learn")
    code, printed = run.end()
    assert code == 0, printed
    for name in ("generator-0", "scorer-0", "learner"):
        assert f"{name} was killed by signal 9 (SIGKILL); starting it again (1 of 3)" in printed
    run.assert_complete()


def test_run_that_is_interrupted_while_it_still_imports_ends_at_once(started):
    run, deadline = started(), time.monotonic() + WAIT_S
    while not (run.run_dir / "logs" / "warm.log").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    run.process.send_signal(signal.SIGINT)
    code, printed = run.end()
    assert code == 130, printed
    assert "ended before anything was started" in printed
    assert not (run.run_dir / "journal").exists()


def test_interrupted_run_goes_on_where_it_was_saved(started):
    run = started()
    run.await_step(5)
    began = time.monotonic()
    run.process.send_signal(signal.SIGINT)
    code, printed = run.end()
    assert code == 130, printed
    assert "ended with its state saved" in printed
    assert time.monotonic() - began < 10.0  # 5 s, and a tiny model's checkpoint and report
    saved = max(int(path.name[5:]) for path in (run.run_dir / "checkpoints").glob("step-*"))
    assert saved >= 6
    again = started()
    code, printed = again.end()
    assert code == 0, printed
    assert f"resume: going on after step {saved} of {STEPS}" in printed
    again.assert_complete()


def test_killed_buffer_goes_on_from_its_journal(started):
    run = started()
    run.await_step(6)
    run.kill("buffer")
    run.await_step(9)
    run.kill("buffer")
    code, printed = run.end()
    assert code == 0, printed
    assert "buffer was killed by signal 9 (SIGKILL); starting it again (2 of 3)" in printed
    assert "learner was" not in printed
    assert "learner ended" not in printed  # its batches are in the new buffer's memory now, and it knows
    run.assert_complete()


def test_killed_tree_goes_on_where_it_was(started):
    run = started()
    run.await_step(6)
    roles = psutil.Process(run.process.pid).children(recursive=True)
    run.process.kill()
    for role in roles:
        with contextlib.suppress(psutil.NoSuchProcess):
            role.kill()
    run.process.wait(WAIT_S)
    psutil.wait_procs(roles, timeout=10.0)
    before = journal_audit(run.run_dir / "journal")
    assert before["balanced"], before["differences"]
    again = started("resume=true")
    code, printed = again.end()
    assert code == 0, printed
    again.assert_complete()
    after = journal_audit(run.run_dir / "journal")
    assert after["lives"] == before["lives"] + 1


def test_killed_launcher_leaves_no_process(started):
    run = started()
    run.await_step(1)
    roles = psutil.Process(run.process.pid).children(recursive=True)
    assert len(roles) >= 5
    run.process.kill()
    run.process.wait(WAIT_S)
    _, alive = psutil.wait_procs(roles, timeout=10.0)
    assert [process.cmdline() for process in alive] == []


@pytest.mark.parametrize(
    ("line", "message"),
    [('{"prompt": "1+1="}', "answer"), ("not json", "not JSON")],
)
def test_bad_line_of_the_data_is_named_and_nothing_is_trained(line, message, started, run_root):
    data = run_root / "data.jsonl"
    data.write_text('{"prompt": "1+2=", "answer": "3"}\n' + line + "\n")
    code, printed = started("data.task=file", f"data.path={data}").end()
    assert code == 2, printed
    mistake = next(text for text in printed.splitlines() if text.startswith("r1async: "))
    assert f"{data}:2: " in mistake
    assert message in mistake
    assert "Traceback" not in printed


def test_completions_beyond_the_models_context_are_refused_and_nothing_is_trained(started):
    code, printed = started("sampling.max_tokens=4065").end()  # after 32 of the prompt, where the model has 4096
    assert code == 2, printed
    mistakes = [text for text in printed.splitlines() if text.startswith("r1async: ")]
    assert len(mistakes) == 1
    assert "data.max_prompt_tokens=32 + sampling.max_tokens=4065 is 4097 tokens" in mistakes[0]
    assert "Traceback" not in printed


def test_unknown_reward_is_named_and_nothing_is_trained(started):
    code, printed = started("reward.weights={no_such_module:grade: 1.0}").end()
    assert code == 2, printed
    assert "no_such_module" in next(text for text in printed.splitlines() if text.startswith("r1async: "))
    assert "Traceback" not in printed
