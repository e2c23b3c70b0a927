"""Ten faults in real runs: each is named with its ids within twice its deadline, and acted on.

Times are the run's own (`named_after_s` of an incident against its `deadline_s`), never the test's.
"""

from __future__ import annotations

import json
import selectors
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.integration.test_kill import Run
from tests.tiny_models import save_tiny

STEPS = 8
GROUPS, SIZE = 4, 4
pytestmark = pytest.mark.timeout(2400)


COMMON = {
    "steps": STEPS, "name": "stall", "generator.count": 2, "progress.limit_s": 20, "group.lease_s": 6,
    "eval.greedy": "false", "learner.checkpoint_every": 2,
    "reward.weights": "{tests.reward_functions:digit_share: 1.0}",
}  # fmt: skip


class FaultyRun(Run):
    """A run some of whose roles have a fault; see tests/faulty_roles.py."""

    program = ("-m", "tests.faulty_roles", "run")
    wait_s = 1500.0
    """Roles start again here, and on a busy machine importing torch alone takes minutes."""

    @property
    def incidents(self) -> list[dict]:
        lines = [
            json.loads(line)
            for name in ("buffer", "launcher")
            for line in (self.run_dir / "metrics" / f"{name}.jsonl").read_text().splitlines()
        ]
        return sorted((line for line in lines if line["kind"] == "incident"), key=lambda line: line["time"])

    def named(self, name: str) -> list[dict]:
        return [each for each in self.incidents if each["name"] == name]

    def assert_in_time(self, name: str) -> dict:
        """The fault was named before twice its deadline, a dead process's at once; returns the first incident."""
        found = self.named(name)
        assert found, (name, self.incidents)
        first = found[0]
        assert first["deadline_s"] > 0, first
        assert 0 < first["named_after_s"] < 2 * first["deadline_s"], first
        assert self.read("summary.json")["incidents"][f"{name}: {found[0]['act']}"] >= 1
        return found[0]

    def assert_done(self, steps: int = STEPS) -> None:
        """Exit code 0, every step trained, every account balanced."""
        code, printed = self.end()
        assert code == 0, printed
        self.assert_balanced()
        assert self.read("summary.json")["policy_version"] == steps

    def assert_balanced(self) -> None:
        audit = self.read("audit.json")
        assert audit["balanced"], audit
        for account in ("prompts", "rollouts", "tokens"):
            books = audit[account]
            assert books["in"] == books["trained"] + sum(books["dropped"].values()) + books["live"], audit

    def assert_stalled(self, name: str) -> Mapping:
        """Exit code 3 with the diagnosis on the screen, in stall.json and in the summary; returns it."""
        code, printed = self.end()
        assert code == 3, printed
        stall = self.read("stall.json")
        assert (stall["name"], stall["ended"]) == (name, True)
        assert f"r1async: {name}: {stall['text']}" in printed
        assert self.read("summary.json")["stall"]["text"] == stall["text"]
        assert list((self.run_dir / "checkpoints").glob("step-*"))
        return stall


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture
def flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What tells a fault that it has happened, or a reward function how to grade."""
    monkeypatch.setenv("FLAG", str(tmp_path / "flag"))
    return tmp_path / "flag"


@pytest.fixture
def started(run_root: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator:
    runs = []

    def start(*overrides: str, root: Path = run_root, **faults: str) -> FaultyRun:
        monkeypatch.setenv("FAULTS", json.dumps({name.replace("_", "-"): fault for name, fault in faults.items()}))
        common = (f"{key}={value}" for key, value in COMMON.items())
        runs.append(FaultyRun(root, model, *common, *overrides))
        return runs[-1]

    yield start
    for run in runs:
        run.close()


def test_lost_rollout_is_named_and_generated_again(started, flag):
    run = started("staleness.max_staleness=0", generator_0="drop_one")  # every step needs every rollout
    run.assert_done()
    incident = run.assert_in_time("lost_rollout")
    assert (incident["role"], incident["act"], incident["count"]) == ("generator-0", "requeued", 1)
    assert incident["groups"] == [incident["rollouts"][0] // SIZE]


def test_hung_worker_is_named_with_its_rollout_and_replaced(started, flag):
    run = started("reward.weights={tests.reward_functions:hangs_once: 1.0}", "reward.deadline_s=5")
    run.assert_done()
    incident = run.assert_in_time("hung_worker")
    assert (incident["role"], incident["act"]) == ("scorer-0", "tried on another worker")
    assert incident["groups"] == [incident["rollouts"][0] // SIZE]


def test_dead_generator_is_named_and_its_rollouts_are_generated_again(started):
    # If it holds nothing just then, the other one could do all the rest before the buffer gives it up.
    run = started("staleness.max_staleness=0", "reward.weights={tests.reward_functions:unhurried: 1.0}")
    run.await_step(1)
    run.kill("generate")
    run.assert_done()
    assert run.named("dead_role")[0]["act"].startswith("starting it again (1 of 3)")
    incident = run.assert_in_time("lost_peer")
    assert incident["role"] == run.named("dead_role")[0]["role"]


def test_frozen_generator_is_named_and_started_again(started):
    # A step has more rollouts than one generator has places, so the other cannot do all the rest without this one.
    run = started("staleness.max_staleness=0", "steps=200", "progress.role_s=5", "generator.slots=8")
    run.await_step(1)
    frozen = run.role("generate")
    frozen.send_signal(signal.SIGSTOP)
    run.assert_done(200)
    lost = run.assert_in_time("lost_peer")
    incident = run.assert_in_time("frozen_role")
    assert incident["role"] == lost["role"]
    assert incident["act"] == "started again"
    assert not frozen.is_running()


class Proxy:
    """Carries bytes between a client and a TCP endpoint; after `freeze` its connections of then stay open
    and carry nothing."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.target = probe.getsockname()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = "tcp://{}:{}".format(*self._listener.getsockname())
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        self._open: list[socket.socket] = []
        self.accepted = 0
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def freeze(self) -> None:
        self._wake.send(b"f")

    def close(self) -> None:
        self._wake.send(b"c")
        self._thread.join()
        for each in (self._listener, self._wake, self._woken, *self._open):
            each.close()
        self._selector.close()

    def _carry(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is self._woken:
                    if self._woken.recv(1) == b"c":
                        return
                    for each in self._open:
                        if each.fileno() in self._selector.get_map():
                            self._selector.unregister(each)
                else:
                    self._pass_on(key.fileobj, key.data)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        server = socket.create_connection(self.target)
        self.accepted += 1
        self._open += [client, server]
        self._selector.register(client, selectors.EVENT_READ, server)
        self._selector.register(server, selectors.EVENT_READ, client)

    def _pass_on(self, source, sink) -> None:
        data = source.recv(65536)
        if data:
            sink.sendall(data)
            return
        for each in (source, sink):
            self._selector.unregister(each)
            each.close()
            self._open.remove(each)


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    carrier = Proxy()
    monkeypatch.setenv("PROXY", carrier.endpoint)
    yield carrier
    carrier.close()


def test_half_open_socket_is_named_and_the_generator_comes_back(started, proxy):
    # The other generator could do all the rest before the buffer gives this one up, if nothing took its time.
    rewards = "reward.weights={tests.reward_functions:unhurried: 1.0}"
    run = started("endpoints.rollouts=tcp://{}:{}".format(*proxy.target), rewards, "steps=16", generator_0="proxied")
    run.await_step(1)
    before = proxy.accepted
    proxy.freeze()
    run.assert_done(16)
    incident = run.assert_in_time("lost_peer")
    assert incident["role"] == "generator-0"
    assert "half open" in incident["text"]
    assert proxy.accepted > before
    assert run.named("dead_role") == []


def test_failed_weight_push_is_named_and_a_fenced_generator_is_started_again(started, flag):
    run = started("generator.count=1", "weights.deadline_s=4", generator_0="stuck_push")
    run.assert_done()
    incident = run.assert_in_time("weight_push")
    assert (incident["role"], incident["act"]) == ("generator-0", "asked again")
    assert "no chunk of version" in incident["text"]
    fenced = run.assert_in_time("fenced")
    assert (fenced["role"], fenced["act"]) == ("generator-0", "started again")
    assert "leases need version" in fenced["text"]


def test_filters_that_take_everything_are_named_and_end_the_run_until_they_pass_something(started, flag):
    overrides = ("reward.weights={tests.reward_functions:flagged: 1.0}", "group.zero_variance=drop",
                 "group.max_refills=1000000", "progress.limit_s=8")  # fmt: skip
    run = started(*overrides)
    run.await_step(2)
    flag.touch()
    stall = run.assert_stalled("filters")
    incident = run.named("filtered_out")[0]
    assert 4 * GROUPS <= incident["count"] < 2 * 4 * GROUPS
    assert len(incident["groups"]) == 4 * GROUPS
    assert "zero_variance" in stall["text"]
    assert 8 <= stall["seconds"] < 16
    run.assert_balanced()
    flag.unlink()
    started(*overrides).assert_done()


def test_poison_prompt_is_quarantined_and_nothing_else_is(started, flag):
    run = started("steps=24", generator_0="poison", generator_1="poison")
    run.assert_done(24)
    (incident,) = run.named("poison_prompt")
    assert (incident["act"], incident["count"]) == ("quarantined", SIZE)
    (group,) = incident["groups"]
    assert run.read("audit.json")["rollouts"]["dropped"]["quarantined"] == SIZE
    assert run.read("summary.json")["quarantined"] == [
        {"prompt": incident["prompts"][0], "groups": [group], "why": f"prompt {incident['prompts'][0]}: generators"}
    ]
    assert len(run.named("dead_role")) == 3


def test_end_of_data_is_named_with_the_groups_in_flight_and_ends_the_run_well(started, flag, run_root):
    data = run_root / "data.jsonl"
    data.write_text("".join(f'{{"prompt": "{n}+{n}=", "answer": "{2 * n}"}}\n' for n in range(18)))
    files = ("data.task=file", f"data.path={data}", "data.epochs=1", "eval.prompts=4")
    # Whichever generator is there first forgets; and with no waste allowed, no group closes without the rollout.
    run = started(*files, "staleness.waste_budget=0", generator_0="drop_one", generator_1="drop_one")
    run.assert_done(4)
    (incident,) = run.named("end_of_data")
    assert incident["groups"]
    assert incident["groups"][-1] == 13
    assert run.assert_in_time("lost_rollout")
    assert run.read("audit.json")["prompts"]["live"] == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of 48 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "none", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_disk_is_named_and_the_run_goes_on_when_there_is_room(started, small_disk):
    run = started("steps=24", root=small_disk)
    run.await_step(6)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    code, printed = run.end()
    assert code == 3, printed
    assert "r1async: disk_full: " in printed
    assert f"could not write to {run.run_dir}" in printed
    filler.unlink()
    again = started("steps=24", root=small_disk)
    again.assert_done(24)
