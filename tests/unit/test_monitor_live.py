"""The live view: what the messages of a run make it say."""

import io
from typing import Literal

import pytest
from r1async.config import Config, MonitorConfig
from r1async.monitor.live import LiveView, Rate, resolve_mode
from rich.console import Console


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def peer(name: str, waits_for: str = "", **stats: float) -> dict:
    named = {key.replace("__", ":"): value for key, value in stats.items()}
    return {"name": name, "role": name.split("-")[0], "stats": named, "silent_s": 0.1, "waits_for": waits_for}


def stats(*peers: dict, waits: tuple[str, ...] = (), audit: dict | None = None) -> dict:
    return {
        "t": "stats",
        "peers": list(peers),
        "waits": [{"name": "groups", "text": text} for text in waits],
        "audit": audit,
        "published": 3,
    }


def step(number: int, **metrics: float) -> dict:
    named = {key.replace("__", "/"): value for key, value in metrics.items()}
    return {"t": "step", "step": number, "metrics": named, "published": number}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def view(clock):
    made: list[LiveView] = []

    def make(terminal: Literal["live", "plain", "quiet"] = "plain", **console) -> LiveView:
        config = Config(name="demo", steps=120, monitor=MonitorConfig(terminal=terminal))
        out = Console(file=io.StringIO(), width=140, **console)
        made.append(LiveView(config, out, clock))
        return made[-1]

    yield make
    for each in made:
        each.close()


def said(view: LiveView) -> str:
    assert isinstance(view._console.file, io.StringIO)
    return view._console.file.getvalue()


def test_line_says_step_reward_accuracy_staleness_rates_waits_and_time_left(view, clock):
    live = view()
    live.event(step(9, reward__mean=0.7, staleness__mean=1.0, staleness__p95=2, staleness__max=2))
    live.event(stats(peer("generator-0", tokens=1000), peer("learner-0", tokens=500)))
    clock.now += 2.0
    live.event(step(10, reward__mean=0.9, staleness__mean=1.5, staleness__p95=2, staleness__max=2))
    live.event(
        stats(
            peer("generator-0", tokens=9000),
            peer("learner-0", tokens=4500),
            peer("evaluator", accuracy=0.915, accuracy_version=10),
            waits=("groups: 12 of 16 ready",),
        )
    )
    assert live.line() == (
        "step 11/120 | reward 0.800 | accuracy 91.5 % at version 10 | staleness 1.25, p95 2, max 2"
        " | generator 4,000 tok/s | learner 2,000 tok/s | waits: groups: 12 of 16 ready | 3 min 38 s left"
    )


def test_rates_of_processes_of_one_role_add_up(view, clock):
    live = view()
    live.event(stats(peer("generator-0", tokens=0), peer("generator-1", tokens=0)))
    clock.now += 1.0
    live.event(stats(peer("generator-0", tokens=100), peer("generator-1", tokens=50)))
    assert "generator 150 tok/s" in live.line()


def test_table_shows_every_process_with_what_it_waits_for_and_the_audit(view):
    live = view("live", force_terminal=True, color_system=None)
    audit = {"rollouts": {"in": 10, "trained": 8, "dropped": {}, "live": 2}, "balanced": True}
    live.event(stats(peer("generator-0", busy_fraction=0.81), peer("learner-0", waiting__batch=1.24), audit=audit))
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(live.render())
    text = console.export_text()
    assert "generator-0" in text
    assert "81 %" in text
    assert "batch (1.2 s)" in text
    assert "audit balanced: 10 rollouts in = 8 trained + 0 dropped + 2 live" in text


def test_wait_that_the_buffer_names_goes_before_the_heartbeats(view):
    live = view()
    live.event(stats(peer("learner-0", waits_for="a batch", waiting__batch=1.0)))
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(live.render())
    assert "a batch" in console.export_text()


def test_plain_view_prints_at_most_every_few_seconds(view, clock):
    live = view()
    for _ in range(11):
        live.refresh(clock.now)
        clock.now += 1.0
    assert said(live).count("step 0/120") == 3  # at 0, 5 and 10 s


def test_quiet_view_prints_nothing_but_notes_on_standard_error(view, clock, capsys):
    live = view("quiet")
    live.refresh(clock.now)
    live.note("generator-0 was killed; starting it again")
    assert said(live) == ""
    assert "generator-0 was killed" in capsys.readouterr().err


def test_note_with_brackets_is_text_not_markup(view):
    live = view()
    live.note("died: [Errno 2] no such file [/bold]")
    assert "[Errno 2] no such file [/bold]" in said(live)


def test_redrawing_view_leaves_its_last_state_on_the_terminal(view):
    live = view("live", force_terminal=True, color_system=None)
    live.event(step(119, reward__mean=1.1))
    live.close()
    assert "step 120/120" in said(live)


def test_learner_that_went_back_to_its_checkpoint_does_not_spoil_the_time_left(view, clock):
    live = view()
    for number in (30, 31, 20, 21):
        live.event(step(number))
        clock.now += 2.0
    assert live.seconds_left() == pytest.approx(2.0 * 98)


def test_time_left_is_unknown_before_two_steps(view):
    live = view()
    live.event(step(0))
    assert live.seconds_left() is None


def test_rate_forgets_the_past_and_survives_a_restart_from_zero():
    rate = Rate()
    for second in range(30):
        rate.saw(100.0 * second if second < 20 else 1900.0 + 10 * (second - 19), float(second))
    assert rate.per_s == pytest.approx(10.0)
    rate.saw(0.0, 30.0)
    assert rate.per_s is None
    rate.saw(7.0, 31.0)
    assert rate.per_s == pytest.approx(7.0)


@pytest.mark.parametrize(
    ("setting", "terminal", "mode"),
    [("auto", True, "live"), ("auto", False, "plain"), ("live", False, "live"), ("quiet", True, "quiet")],
)
def test_auto_redraws_only_on_a_terminal(setting, terminal, mode):
    assert resolve_mode(setting, terminal) == mode
