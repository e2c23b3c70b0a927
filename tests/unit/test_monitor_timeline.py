"""Activities in bins: a clock that the test moves, so every number is exact."""

import json
import time

import pytest
from r1async.monitor.metrics import MetricsWriter, read_metrics
from r1async.monitor.timeline import Timeline


class Clock:
    def __init__(self, now: float = 100.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Lines:
    def __init__(self) -> None:
        self.records: list[dict] = []

    def write(self, kind, fields) -> None:
        self.records.append({"kind": kind, **fields})


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cpu() -> Clock:
    return Clock(0.0)


@pytest.fixture
def timeline(clock, cpu) -> Timeline:
    return Timeline("generator-0", bin_s=0.5, clock=clock, cpu_clock=cpu)


def test_busy_and_wait_add_up_by_activity(timeline, clock):
    for _ in range(3):
        with timeline.busy("decode"):
            clock.sleep(0.2)
        with timeline.wait("leases"):
            clock.sleep(0.1)
    clock.sleep(0.1)
    stats = timeline.stats()
    assert stats["busy_s"] == pytest.approx(0.6)
    assert stats["busy_s:decode"] == pytest.approx(0.6)
    assert stats["wait_s:leases"] == pytest.approx(0.3)
    assert stats["wall_s"] == pytest.approx(1.0)
    assert stats["busy_fraction"] == pytest.approx(0.6)


def test_inner_span_takes_its_time_out_of_the_outer_one(timeline, clock):
    with timeline.busy("step"):
        clock.sleep(1.0)
        with timeline.wait("weights"):
            clock.sleep(0.5)
        clock.sleep(0.25)
    stats = timeline.stats()
    assert stats["busy_s:step"] == pytest.approx(1.25)
    assert stats["wait_s:weights"] == pytest.approx(0.5)


def test_heartbeat_names_the_wait_it_is_in_and_for_how_long(timeline, clock):
    with timeline.wait("leases"):
        clock.sleep(2.0)
        assert timeline.waits_for == "leases"
        assert timeline.stats()["waiting:leases"] == pytest.approx(2.0)
    assert timeline.waits_for == ""
    assert not [name for name in timeline.stats() if name.startswith("waiting:")]


def test_span_over_a_boundary_is_split_between_bins(timeline, clock, cpu):
    lines = Lines()
    clock.sleep(0.3)
    with timeline.busy("decode"):
        clock.sleep(0.4)
        cpu.sleep(0.35)
    timeline.flush(lines)
    assert lines.records == [
        {
            "kind": "timeline",
            "role": "generator-0",
            "start": 100.0,
            "span_s": 0.5,
            "cpu_s": 0.35,
            "busy": {"decode": 0.2},
            "wait": {},
        }
    ]
    clock.sleep(0.3)
    timeline.flush(lines)
    assert lines.records[1]["busy"] == {"decode": 0.2}
    assert lines.records[1]["start"] == 100.5


def test_long_wait_is_one_long_bin_not_a_thousand(timeline, clock):
    lines = Lines()
    clock.sleep(0.25)
    with timeline.wait("batch"):
        clock.sleep(10.0)
    timeline.flush(lines)
    assert [(line["start"], line["span_s"], line["wait"]) for line in lines.records] == [
        (100.0, 0.5, {"batch": 0.25}),
        (100.5, 9.5, {"batch": 9.5}),
    ]


def test_close_writes_the_unfinished_bin_and_the_totals(timeline, clock):
    lines = Lines()
    with timeline.busy("grade"):
        clock.sleep(0.2)
    timeline.close(lines)
    assert lines.records[0]["span_s"] == 0.2
    assert lines.records[1]["kind"] == "timeline_totals"
    assert lines.records[1]["busy_s"] == pytest.approx(0.2)


def test_time_is_kept_when_the_body_raises(timeline, clock):
    def fail() -> None:
        with timeline.busy("decode"):
            clock.sleep(0.2)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert timeline.stats()["busy_s:decode"] == pytest.approx(0.2)
    assert timeline.waits_for == ""


def test_bins_reach_the_file_as_they_end(tmp_path, clock, cpu):
    path = tmp_path / "metrics" / "generator-0.jsonl"
    timeline = Timeline("generator-0", path, clock=clock, cpu_clock=cpu)
    with timeline.busy("decode"):
        clock.sleep(0.75)
    assert [line["busy"] for line in read_metrics(path, "timeline")] == [{"decode": 0.5}]
    timeline.close()
    assert [line["busy"] for line in read_metrics(path, "timeline")] == [{"decode": 0.5}, {"decode": 0.25}]


def test_a_span_costs_microseconds():
    timeline = Timeline("generator-0")
    best = min(_cpu_seconds_of_spans(timeline, 200) for _ in range(50)) / 200
    # 1.4 us on a quiet machine, twice that beside busy neighbours; a slip (a file, a lock, a copy) costs 10 times that.
    assert best < 8e-6


def _cpu_seconds_of_spans(timeline: Timeline, count: int) -> float:
    start = time.thread_time()
    for _ in range(count):
        with timeline.busy("decode"):
            pass
    return time.thread_time() - start


def test_line_has_kind_time_and_seconds_since_start(tmp_path):
    path = tmp_path / "learner.jsonl"
    with MetricsWriter(path, started=90.0, clock=Clock(100.5)) as writer:
        writer.write("step", {"step": 3, "loss": float("nan"), "parts": {"format": float("inf"), "ok": 1.0}})
    assert json.loads(path.read_text()) == {
        "kind": "step",
        "time": 100.5,
        "run_s": 10.5,
        "step": 3,
        "loss": None,
        "parts": {"format": None, "ok": 1.0},
    }


def test_torn_last_line_of_a_killed_process_spoils_nothing(tmp_path):
    path = tmp_path / "learner.jsonl"
    with MetricsWriter(path) as writer:
        writer.write("step", {"step": 0})
    with path.open("ab") as file:
        file.write(b'{"kind": "step", "st')
    with MetricsWriter(path) as writer:
        writer.write("step", {"step": 1})
    assert [line["step"] for line in read_metrics(path, "step")] == [0, 1]
