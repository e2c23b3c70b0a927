"""Worker processes: killed at their deadline, replaced, and only the rollout that is to blame pays for it."""

import os
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from r1async.config import ConfigError, RewardConfig, ScorerConfig
from r1async.inbox import DeadlineExceeded, Inbox
from r1async.rewards.pool import Job, PoolError, Report, _Worker
from r1async.rewards.pools import Pools
from r1async.tasks.meta import Question, encode_meta
from r1async.types import Verdict

WAIT_S = 60.0

GRADERS = """
import ctypes, os, signal, sys, time
from pathlib import Path

ctypes.pythonapi.PyErr_CheckSignals.argtypes = []
MARK = Path(os.environ["GRADER_MARK"])

def hang_in_c(prompt, completion):
    # Holds the interpreter lock and never returns: no signal handler and no thread could end it.
    if "hang" in completion.text:
        MARK.open("a").write("x")
        ctypes.PyDLL(None).pause()
    return 1.0

def hang_once(prompt, completion):
    if "hang" in completion.text and not MARK.exists():
        MARK.touch()
        ctypes.PyDLL(None).pause()
    return 1.0

def die(prompt, completion):
    if "die" in completion.text:
        os.kill(os.getpid(), signal.SIGKILL)
    return 1.0

def noisy(prompt, completion):
    print("into the frames?")
    os.write(1, b"and this?")
    return 1.0 if sys.stdin.read() == "" else 0.0

def greedy(prompt, completion):
    return float(len(bytearray(8 * 2**30)))

def nan(prompt, completion):
    return float("nan")

def nan_once(prompt, completion):
    try:
        open(os.environ["FLAG"], "x").close()
    except FileExistsError:
        return 1.0
    return float("nan")

def exit(prompt, completion):
    sys.exit(3)
"""


class Driver:
    """Runs a pool the way the scorer does."""

    def __init__(self, settings: RewardConfig, workers: int = 1, memory_mb: int = 4096) -> None:
        self.inbox = Inbox()
        scorer = ScorerConfig(workers=workers, worker_memory_mb=memory_mb)
        self.pool = Pools(settings, scorer, self.inbox)
        self.verdicts: dict[int, Verdict] = {}
        self.settled_at: dict[int, float] = {}
        self.pool.start()
        self.until(lambda: self.pool.ready)

    @property
    def workers(self) -> list[_Worker]:
        return self.pool._pools["rules"]._workers

    def submit(self, *texts: str, answer: str = "5") -> None:
        meta = encode_meta(Question(text="?", answer=answer))
        first = len(self.verdicts) + self.pool.outstanding
        self.pool.submit([Job(first + i, meta, text, 1, "stop") for i, text in enumerate(texts)])

    def until(self, done: Callable[[], bool]) -> None:
        end = time.monotonic() + WAIT_S
        while not done():
            due = min(self.pool.next_deadline(), end) - time.monotonic()
            assert time.monotonic() < end, f"still {self.pool.outstanding} outstanding"
            settled = []
            try:
                report = self.inbox.get("a report", max(0.0, due))
                assert isinstance(report, Report)
                settled += self.pool.handle(report)
            except DeadlineExceeded:
                settled += self.pool.expire(time.monotonic())
            for key, verdict, _ in settled:
                assert key not in self.verdicts, "a rollout got two verdicts"
                self.verdicts[key] = verdict
                self.settled_at[key] = time.monotonic()

    def grade(self, *texts: str, answer: str = "5") -> list[Verdict]:
        first = len(self.verdicts)
        self.submit(*texts, answer=answer)
        self.until(lambda: self.pool.outstanding == 0)
        return [self.verdicts[first + i] for i in range(len(texts))]

    @property
    def processes(self) -> list[psutil.Process]:
        children = psutil.Process().children()
        return [child for child in children if "r1async.rewards.worker" in " ".join(child.cmdline())]


@pytest.fixture
def drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Driver]]:
    (tmp_path / "hostile_graders.py").write_text(textwrap.dedent(GRADERS))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.setenv("GRADER_MARK", str(tmp_path / "mark"))
    drivers: list[Driver] = []

    def start(function: str = "", workers: int = 1, memory_mb: int = 4096, **settings) -> Driver:
        weights = {f"hostile_graders:{function}": 1.0} if function else {"accuracy": 1.0, "format": 0.2}
        reward = RewardConfig(**{"weights": weights, "equivalence": "exact", **settings})
        drivers.append(Driver(reward, workers, memory_mb))
        return drivers[-1]

    yield start
    for driver in drivers:
        driver.pool.close()


def test_verdicts_come_back_for_the_rollouts_they_belong_to(drive):
    driver = drive(workers=2)
    verdicts = driver.grade(*(f"<think>x</think><answer>{i % 10}</answer>" for i in range(300)))
    assert [verdict.total for verdict in verdicts] == [1.2 if i % 10 == 5 else 0.2 for i in range(300)]
    assert verdicts[5].parts == {"accuracy": 1.0, "format": 1.0}


def test_algebra_is_done_in_the_worker_and_never_here(drive, monkeypatch: pytest.MonkeyPatch):
    # Another test of this process may have done algebra: what counts is that grading loads it no more.
    monkeypatch.delitem(sys.modules, "r1async.rewards.symbolic", raising=False)
    driver = drive(equivalence="symbolic")
    assert [v.total for v in driver.grade(r"\boxed{\sqrt{8}}", "<answer>3</answer>", answer=r"2\sqrt{2}")] == [1.0, 0.0]
    assert "r1async.rewards.symbolic" not in sys.modules


def test_hung_grader_is_killed_and_the_next_rollouts_are_graded(drive):
    driver = drive("hang_in_c", deadline_s=0.5, retries=0)
    before = {process.pid for process in driver.processes}
    good_before, hung, *good_after = driver.grade("good", "hang", "good", "good")
    assert good_before == Verdict(total=1.0, parts={"hostile_graders:hang_in_c": 1.0})
    assert hung == Verdict(total=0.0, parts={"hostile_graders:hang_in_c": 0.0}, status="timeout")
    assert [v.total for v in good_after] == [1.0, 1.0]
    after = {process.pid for process in driver.processes}
    assert len(after) == 1
    assert not before & after
    assert driver.pool.counts == {"timeout": 1}


def test_hung_grader_is_due_at_its_deadline_and_dead_once_that_has_passed(drive, tmp_path: Path):
    driver = drive("hang_in_c", deadline_s=600.0, retries=0)
    (worker,) = driver.workers
    driver.submit("hang")
    while not (tmp_path / "mark").exists():
        os.sched_yield()
    due = driver.pool.next_deadline()
    assert due == worker.progress_at + 600.0
    assert driver.pool.expire(due - 1e-3) == []
    (settled,) = driver.pool.expire(due)
    assert settled.verdict.status == "timeout"
    assert worker.process.wait(10) == -signal.SIGKILL


def test_hung_grader_gets_its_retries_each_on_another_worker(drive, tmp_path: Path):
    driver = drive("hang_in_c", deadline_s=0.5, retries=2)
    assert [(v.total, v.status) for v in driver.grade("hang")] == [(0.0, "timeout")]
    assert (tmp_path / "mark").read_text() == "xxx"
    assert driver.pool.counts == {"timeout": 3}


def test_timeout_scores_zero_in_every_part_so_that_nobody_takes_it_for_an_abstention(drive):
    weights = {"accuracy": 1.0, "format": 0.2, "hostile_graders:hang_in_c": 0.0}
    driver = drive(weights=weights, deadline_s=0.5, retries=0)
    assert driver.grade("hang") == [Verdict(total=0.0, parts=dict.fromkeys(weights, 0.0), status="timeout")]


def test_timeout_abstains_where_settings_say_so(drive):
    driver = drive("hang_in_c", deadline_s=0.5, retries=0, timeout_is="abstain")
    assert driver.grade("hang") == [Verdict(total=None, status="timeout")]


def test_grader_that_hung_once_is_asked_again(drive):
    assert [v.total for v in drive("hang_once", deadline_s=0.5).grade("hang", "good")] == [1.0, 1.0]


def test_a_hung_rollout_does_not_hold_up_another_worker(drive):
    driver = drive("hang_in_c", workers=2, deadline_s=1.5, retries=0)
    start = time.monotonic()
    driver.grade("hang", "good")
    assert driver.settled_at[1] - start < 1.0
    assert driver.settled_at[0] - start >= 1.5


def test_poison_that_kills_its_worker_abstains_and_spares_the_rest(drive):
    driver = drive("die", retries=1)
    verdicts = driver.grade("good", "die", *["good"] * 20)
    assert verdicts[1] == Verdict(total=None, status="worker_lost")
    assert all(v.total == 1.0 for i, v in enumerate(verdicts) if i != 1)
    assert driver.pool.counts == {"worker_lost": 2}


def test_grader_that_exits_is_a_lost_worker(drive):
    assert drive("exit", retries=0).grade("x") == [Verdict(total=None, status="worker_lost")]


def test_idle_worker_that_was_killed_is_replaced_and_nobody_is_blamed(drive):
    driver = drive(retries=0)
    process = driver.processes[0]
    process.send_signal(signal.SIGKILL)
    driver.workers[0].process.wait(10)
    assert [v.total for v in driver.grade("<answer>5</answer>")] == [1.0]


def test_busy_worker_that_was_killed_costs_a_try_and_no_verdict(drive, tmp_path: Path):
    driver = drive("hang_once", deadline_s=30.0, retries=1)
    driver.submit("hang", "good")
    (process,) = driver.processes
    while not (tmp_path / "mark").exists():
        os.sched_yield()
    process.send_signal(signal.SIGKILL)
    driver.until(lambda: driver.pool.outstanding == 0)
    assert [driver.verdicts[i].total for i in (0, 1)] == [1.0, 1.0]


def test_stopped_worker_is_killed_at_the_deadline_and_its_large_batch_graded_elsewhere(drive):
    driver = drive(deadline_s=1.0)
    driver.processes[0].send_signal(signal.SIGSTOP)
    # More than a pipe holds: the write must not block the scorer.
    verdicts = driver.grade(*["<answer>5</answer>" + "x" * 100_000] * 8)
    assert [v.total for v in verdicts] == [1.0] * 8


def test_grader_may_print_and_read_without_harm(drive, capfd: pytest.CaptureFixture[str]):
    assert [v.total for v in drive("noisy").grade("a", "b")] == [1.0, 1.0]
    assert "into the frames?" not in capfd.readouterr().out


def test_grader_that_wants_too_much_memory_abstains(drive):
    assert drive("greedy", memory_mb=2048).grade("x") == [Verdict(total=None, status="error")]


def test_nan_abstains_by_name(drive, capfd: pytest.CaptureFixture[str]):
    assert drive("nan").grade("x") == [Verdict(total=None, status="nan")]
    assert "reward hostile_graders:nan returned nan" in capfd.readouterr().err


def test_function_that_cannot_be_imported_ends_the_scorer_with_its_name(drive):
    with pytest.raises(ConfigError, match="hostile_graders:nope"):
        drive("nope")


def test_worker_that_dies_at_every_start_is_an_error_not_a_loop(drive, tmp_path: Path):
    (tmp_path / "deadly.py").write_text("import os; os._exit(7)")
    with pytest.raises(PoolError, match="it ended with status 7"):
        drive(weights={"deadly:f": 1.0})


def test_broken_meta_abstains(drive):
    driver = drive()
    driver.pool.submit([Job(0, b"not json", "<answer>5</answer>", 1, "stop")])
    driver.until(lambda: driver.pool.outstanding == 0)
    assert driver.verdicts[0] == Verdict(total=None, status="error")


@pytest.mark.parametrize(("retries", "total"), [(0, None), (1, 1.0)])
def test_a_verdict_that_its_grader_owes_is_asked_for_again(drive, tmp_path, monkeypatch, retries, total):
    monkeypatch.setenv("FLAG", str(tmp_path / "flag"))
    driver = drive("nan_once", retries=retries)
    driver.submit("x")
    driver.until(lambda: len(driver.verdicts) == 1)
    assert driver.verdicts[0].total == total
    assert driver.pool.counts["retried"] == retries


def test_workers_end_when_the_scorer_is_killed(tmp_path: Path):
    code = """
        import time
        from r1async.config import RewardConfig, ScorerConfig
        from r1async.inbox import Inbox
        from r1async.rewards.pools import Pools
        inbox = Inbox()
        pool = Pools(RewardConfig(equivalence="exact"), ScorerConfig(worker_memory_mb=0), inbox)
        pool.start()
        while not pool.ready:
            pool.handle(inbox.get("ready", 60))
        print(pool._pools["rules"]._workers[0].process.pid, flush=True)
        time.sleep(600)
    """
    import subprocess

    scorer = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    assert scorer.stdout is not None
    worker = psutil.Process(int(scorer.stdout.readline()))
    scorer.kill()
    scorer.wait(10)
    scorer.stdout.close()
    _, alive = psutil.wait_procs([worker], timeout=10)
    assert not alive
