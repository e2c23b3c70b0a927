"""The launcher's decisions, with stand-ins for the roles: small programs that end, hang or fail as told.

test_kill.py does the same to a real run; here each case takes a second.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest
from r1async.config import load_config
from r1async.launch.roles import buffer_role

WAIT_S = 120.0

DRIVER = """
import json, sys
from r1async.config import load_config
from r1async.launch import local
from r1async.launch.supervise import Role

programs = json.loads(sys.argv[1])

def roles(self):
    return [
        Role(name=name, kind=name.split("-")[0] if name.startswith("learner") else name,
             program=(sys.executable, "-c", program), arguments=(str(self._config.run_dir),), restarts=1)
        for name, program in programs.items()
    ]

local.Launcher._roles = roles
try:
    sys.exit(local.run(load_config(None, sys.argv[2:])))
except ValueError as error:
    sys.exit(f"r1async: {error}")
"""

START = """
import pathlib, signal, sys
from r1async.launch import lifeline
lifeline.arm()
folder = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
"""

WAITS = START + "signal.pause()"
"""A role in good health: ends well when asked to."""
DONE = (
    START
    + '(folder / \'evaluation.jsonl\').open(\'a\').write(\'{"kind": "evaluation", "version": 3, "last": true}\\n\')'
)
"""An evaluator that has evaluated the last version."""
ENDS_ONCE = START + "ended = folder / 'ended'\nif not ended.exists(): ended.touch(); sys.exit(0)\n"
"""Told to end with SIGTERM in its first life."""
FAILS = START + "print('engine on fire', flush=True); sys.exit(7)"
MISTAKEN = START + "print('\\nr1async: data.path: line 3 has no answer', flush=True); sys.exit(2)"
UP = "role is up\n"
HEALTHY = {"buffer": WAITS, "learner-0": WAITS, "generator-0": WAITS, "scorer-0": WAITS, "evaluator": WAITS}
SAVES = (
    START.replace("sys.exit(0)", "((folder / 'saved').touch(), sys.exit(0))")
    + "print('role is up', flush=True); (folder / 'up').touch(); signal.pause()"
)
ONCE_SAVER_IS_UP = START + "import time\nwhile not (folder / 'up').exists(): time.sleep(0.02)\n"
"""Before that a learner that is told to end has nothing to save and no handler that would."""
TELLS = (
    START
    + """
import itertools, time, zmq
from r1async.config import load_config
from r1async.wire import pack
events = zmq.Context().socket(zmq.XPUB)
events.bind(load_config(folder / "config.yaml").endpoint("events"))
events.recv()  # somebody subscribes
for moves in itertools.count():
    header = {"t": "stats", "version": moves, "published": PUBLISHED, "final": FINAL, "peers": [], "waits": []}
    events.send(pack(header))
    time.sleep(0.02)
    if moves == 10:
        (folder / "told").touch()
"""
)
"""A buffer that says which version is the newest and which the last."""
ONCE_TOLD = START + "import time\nwhile not (folder / 'told').exists(): time.sleep(0.02)\n"
"""A role that goes on when the launcher has heard the buffer."""
READY = START + "(folder / 'ready').mkdir(exist_ok=True); print('role is up', flush=True); "


class Run:
    """A launcher in a process of its own."""

    def __init__(self, folder: Path, programs: Mapping[str, str], *overrides: str) -> None:
        (folder / "model").mkdir(exist_ok=True)
        (folder / "model" / "config.json").write_text("{}")
        self.run_dir = folder / "run"
        settings = [
            "data.task=chain-mod",
            f"model.path={folder}/model",
            f"runs_dir={folder}",
            "monitor.terminal=quiet",
            "steps=3",
        ]
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, json.dumps(dict(programs)), *settings, *overrides],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def end(self) -> tuple[int, str]:
        """Exit code and all that was printed."""
        try:
            printed, _ = self.process.communicate(timeout=WAIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            pytest.fail(f"the launcher did not end within {WAIT_S} s; it said:\n{self.process.communicate()[0]}")
        return self.process.returncode, printed

    def await_line(self, name: str, line: str, times: int = 1) -> None:
        """Until a role's log holds the line so many times. The roles are not our children, so only their files tell."""
        log, deadline = self.run_dir / "logs" / f"{name}.log", time.monotonic() + WAIT_S
        while not (log.exists() and log.read_text().count(line) >= times):
            assert time.monotonic() < deadline, f"{name} did not say {line!r} within {WAIT_S} s"
            assert self.process.poll() is None, f"the launcher ended: {self.process.communicate()[0]}"
            select.select([], [], [], 0.02)

    @property
    def outcome(self) -> str:
        return json.loads((self.run_dir / "outcome.json").read_text())["outcome"]


def test_run_is_done_when_the_evaluator_is_and_the_learner_saves_last(tmp_path):
    evaluator = ONCE_SAVER_IS_UP + DONE.removeprefix(START)
    run = Run(tmp_path, {**HEALTHY, "learner-0": SAVES, "evaluator": evaluator})
    code, printed = run.end()
    assert code == 0, printed
    assert run.outcome == "done"
    assert (run.run_dir / "saved").exists()
    assert (run.run_dir / "summary.json").exists()
    assert (run.run_dir / "report.html").exists()


def test_done_run_is_not_run_again(tmp_path):
    Run(tmp_path, {**HEALTHY, "evaluator": DONE}).end()
    code, printed = Run(tmp_path, {**HEALTHY, "evaluator": FAILS}).end()
    assert code == 0
    assert "is done already" in printed


def tells(published: int, final: int) -> str:
    return TELLS.replace("PUBLISHED", str(published)).replace("FINAL", str(final))


def test_evaluator_that_was_told_to_end_is_started_again(tmp_path):
    code, printed = Run(tmp_path, {**HEALTHY, "evaluator": ENDS_ONCE + DONE}).end()
    assert code == 0, printed
    assert "evaluator ended with exit code 0 before the run was done; starting it again (1 of 1)" in printed


def test_evaluation_from_before_the_learner_went_back_does_not_end_the_run(tmp_path):
    run = Run(tmp_path, {**HEALTHY, "buffer": tells(1, -1), "evaluator": ONCE_TOLD + DONE})
    code, printed = run.end()
    assert (code, run.outcome) == (1, "failed")
    assert "evaluator ended with exit code 0 before the run was done, after 1 restarts" in printed


def test_run_that_ended_early_is_done_with_its_last_version(tmp_path):
    early = DONE.replace("3", "2")
    run = Run(tmp_path, {**HEALTHY, "buffer": tells(2, 2), "evaluator": ONCE_TOLD + early})
    code, printed = run.end()
    assert (code, run.outcome) == (0, "done"), printed
    assert "starting it again" not in printed


def test_learner_that_was_told_to_end_is_started_again(tmp_path):
    run = Run(tmp_path, {**HEALTHY, "learner-0": ENDS_ONCE + "print('role is up', flush=True); signal.pause()"})
    run.await_line("learner-0", UP)
    run.process.send_signal(signal.SIGTERM)
    code, printed = run.end()
    assert code == 143
    assert "learner-0 ended with exit code 0 before the run was done; starting it again (1 of 1)" in printed


def test_learner_that_ends_after_the_last_version_is_not_started_again(tmp_path):
    later = ONCE_TOLD + "time.sleep(1.0)\n" + DONE
    run = Run(tmp_path, {**HEALTHY, "buffer": tells(3, 3), "learner-0": ONCE_TOLD, "evaluator": later})
    code, printed = run.end()
    assert (code, run.outcome) == (0, "done"), printed
    assert "starting it again" not in printed


def test_role_that_keeps_dying_ends_the_run_with_the_end_of_its_log(tmp_path):
    run = Run(tmp_path, {**HEALTHY, "generator-0": FAILS})
    code, printed = run.end()
    assert code == 1
    assert run.outcome == "failed"
    assert "generator-0 ended with exit code 7; starting it again (1 of 1)" in printed
    assert "generator-0 ended with exit code 7, after 1 restarts" in printed
    assert "engine on fire" in printed


def test_users_mistake_ends_the_run_at_once_in_the_roles_words(tmp_path):
    run = Run(tmp_path, {**HEALTHY, "buffer": MISTAKEN})
    code, printed = run.end()
    assert (code, run.outcome) == (2, "mistake")
    assert printed == "r1async: data.path: line 3 has no answer\n"


def test_death_of_the_buffer_is_made_good_by_its_journal_so_often(tmp_path):
    run = Run(tmp_path, {**HEALTHY, "buffer": FAILS, "learner-0": SAVES}, "buffer.restarts=1")
    code, printed = run.end()
    assert (code, run.outcome) == (1, "failed")
    assert "buffer ended with exit code 7; starting it again (1 of 1)" in printed
    assert "buffer ended with exit code 7, after 1 restarts" in printed


@pytest.mark.parametrize(("durability", "restarts"), [("group", 3), ("sync", 3), ("memory", 0)])
def test_a_buffer_is_started_again_where_it_has_a_journal(durability, restarts):
    config = load_config(None, ["data.task=chain-mod", "cold_start.enabled=true", f"journal.durability={durability}"])
    assert buffer_role(config, Path("config.yaml")).restarts == restarts


def test_learner_ranks_die_and_start_together(tmp_path):
    dies_once = READY + "died = folder / 'died'\nif not died.exists(): died.touch(); sys.exit(9)\nsignal.pause()"
    run = Run(tmp_path, {**HEALTHY, "learner-0": READY + "signal.pause()", "learner-1": dies_once}, "learner.ranks=2")
    run.await_line("learner-1", UP, times=2)
    run.await_line("learner-0", "--- ", times=2)  # the line that each life begins with
    run.process.send_signal(signal.SIGTERM)
    assert run.end()[0] == 143


def test_interruption_saves_once_and_tells_how_to_go_on(tmp_path):
    run = Run(tmp_path, {**HEALTHY, "learner-0": SAVES, "scorer-0": READY + "signal.pause()"})
    run.await_line("scorer-0", UP)
    run.await_line("learner-0", UP)
    run.process.send_signal(signal.SIGINT)
    code, printed = run.end()
    assert (code, run.outcome) == (130, "interrupted")
    assert (run.run_dir / "saved").exists()
    assert "ended with its state saved; the same command goes on from there" in printed


def test_second_interruption_does_not_wait_for_the_checkpoint(tmp_path):
    hangs = (
        START
        + "signal.signal(signal.SIGTERM, lambda *_: print('saving', flush=True)); print('role is up', flush=True)\n"
    )
    run = Run(tmp_path, {**HEALTHY, "learner-0": hangs + "while True: signal.pause()"})
    run.await_line("learner-0", UP)
    run.process.send_signal(signal.SIGINT)
    run.await_line("learner-0", "saving")
    began = time.monotonic()
    run.process.send_signal(signal.SIGINT)
    code, printed = run.end()
    assert code == 130
    assert time.monotonic() - began < 5.0
    assert "without a last checkpoint" in printed


def test_role_that_does_not_end_is_killed_after_its_deadline(tmp_path):
    deaf = START + "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('role is up', flush=True); signal.pause()"
    run = Run(tmp_path, {**HEALTHY, "scorer-0": deaf})
    run.await_line("scorer-0", UP)
    began = time.monotonic()
    run.process.send_signal(signal.SIGTERM)
    code, printed = run.end()
    assert code == 143
    assert 4.9 < time.monotonic() - began < 10
    assert "killing scorer-0" in printed


def test_standstill_is_said_and_then_ends_the_run(tmp_path):
    waits = ["buffer.connect_", "group.rollout_", "reward.", "staleness.hold_", "weights."]
    short = [f"{each}deadline_s=0.2" for each in waits]
    run = Run(tmp_path, {**HEALTHY, "learner-0": SAVES}, "progress.limit_s=0.5", "group.lease_s=0.1", *short)
    code, printed = run.end()
    assert (code, run.outcome) == (3, "stalled")
    assert "nothing moved for" in printed
    assert "no word from the buffer" in printed
    assert (run.run_dir / "saved").exists()


def test_role_that_cannot_write_ends_the_run_by_the_name_of_a_full_disk(tmp_path):
    run = Run(tmp_path, {**HEALTHY, "learner-0": READY + "sys.exit(4)"})
    code, printed = run.end()
    assert (code, run.outcome) == (3, "stalled")
    assert f"disk_full: learner-0 could not write to {run.run_dir}" in printed
    assert "starting it again" not in printed
    stall = json.loads((run.run_dir / "stall.json").read_text())
    assert (stall["name"], stall["role"], stall["ended"]) == ("disk_full", "learner-0", True)


def test_stopped_role_is_named_and_started_again_when_the_buffer_has_lost_it(tmp_path):
    stops = (
        "\nif not (folder / 'stopped').exists(): (folder / 'stopped').touch(); signal.raise_signal(signal.SIGSTOP)\n"
    )
    stops_once = READY + stops
    loses = TELLS.split("for moves")[0].replace("TELLS", "") + (
        "while not (folder / 'stopped').exists(): time.sleep(0.02)\n"
        "lost = {'name': 'lost_peer', 'act': 'its work is requeued', 'role': 'generator-0', 'named_after_s': 0.0}\n"
        "while True:\n"
        "    if not (folder / 'told').exists(): events.send(pack({'t': 'incident', 'incident': lost}))\n"
        "    (folder / 'told').touch()\n"
        "    time.sleep(0.02)\n"
    )
    run = Run(tmp_path, {**HEALTHY, "buffer": loses, "generator-0": stops_once + "signal.pause()"})
    run.await_line("generator-0", "--- ", times=2)
    run.process.send_signal(signal.SIGTERM)
    code, printed = run.end()
    assert code == 143
    assert "frozen_role: generator-0 is stopped by a signal" in printed
    incidents = [json.loads(line) for line in (run.run_dir / "metrics" / "launcher.jsonl").read_text().splitlines()]
    assert [each["name"] for each in incidents] == ["frozen_role", "dead_role"]


def test_role_that_is_still_loading_is_not_taken_for_its_former_life(tmp_path):
    loses = TELLS.split("for moves")[0] + (
        "lost = {'name': 'lost_peer', 'act': 'its work is requeued', 'role': 'generator-0', 'named_after_s': 1e4}\n"
        "events.send(pack({'t': 'incident', 'incident': lost}))\n"
        "time.sleep(2.0); (folder / 'told').touch(); signal.pause()\n"
    )
    evaluator = ONCE_TOLD + DONE.removeprefix(START)
    run = Run(tmp_path, {**HEALTHY, "buffer": loses, "evaluator": evaluator}, "progress.role_s=0.1")
    code, printed = run.end()
    assert code == 0, printed
    assert "lost_peer" in printed
    assert "lost_role" not in printed


def test_second_launcher_in_the_folder_is_refused(tmp_path):
    first = Run(tmp_path, {**HEALTHY, "buffer": READY + "signal.pause()"})
    first.await_line("buffer", UP)
    code, printed = Run(tmp_path, HEALTHY).end()
    assert code == 1
    assert f"in use by another r1async (process {first.process.pid})" in printed
    first.process.send_signal(signal.SIGTERM)
    first.end()


def test_no_role_outlives_a_killed_launcher(tmp_path):
    run = Run(tmp_path, dict.fromkeys(HEALTHY, READY + "signal.pause()"))
    for name in HEALTHY:
        run.await_line(name, UP)
    roles = psutil.Process(run.process.pid).children(recursive=True)
    assert len(roles) == len(HEALTHY)
    os.kill(run.process.pid, signal.SIGKILL)
    run.end()
    _, alive = psutil.wait_procs(roles, timeout=WAIT_S)
    assert alive == []
