"""The summary of a made-up run (monitor_run.py), against sums done by hand."""

import json
from dataclasses import replace

import pytest
from monitor_run import START, make_run
from r1async.monitor.rundata import Histogram, busy_fractions, cpu_seconds, load_run
from r1async.monitor.summary import (
    audit_line,
    duration,
    engine_figures,
    engine_line,
    percent,
    print_summary,
    summarize,
    waste_line,
    write_summary,
)
from rich.console import Console

FIELDS = {
    "name", "seed", "wall_s", "cold_start", "before", "after", "steps", "completions_trained", "policy_version",
    "staleness", "waste", "tokens", "role_busy_fraction", "audit", "engines",
    "incidents", "quarantined", "stall", "pools", "rewards",
}  # fmt: skip


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "made-up", steps=40)


def test_summary_file_has_every_field_and_says_what_is_returned(run_dir):
    summary = write_summary(run_dir)
    assert set(summary) == FIELDS
    assert json.loads((run_dir / "summary.json").read_text()) == summary


def test_figures_of_the_run(run_dir):
    summary = summarize(load_run(run_dir))
    assert summary["seed"] == 3
    assert summary["wall_s"] == pytest.approx(80.0, abs=0.01)  # 40 steps of 2 s
    assert summary["steps"] == 40
    assert summary["policy_version"] == 40
    assert summary["completions_trained"] == 40 * 128
    assert summary["cold_start"] == {"steps": 700, "accuracy": 0.86, "wall_s": 38.0}
    # 500, 1000, 500 tokens of staleness 0, 1, 2 in every step
    assert summary["staleness"] == {"mean": 1.0, "p95": 2, "max": 2}
    assert summary["tokens"] == {
        "generated": 80_700,
        "trained": 80_000,
        "observations": 0,
        "dropped_by_reason": {"stale": 500},
    }
    assert summary["audit"]["balanced"] is True


def test_waste_is_that_of_the_last_figures_in_shares_of_what_was_generated(run_dir):
    main = {"generated": 900, "own_length": 30, "siblings": 20, "queue": 0, "dropped": 7}
    slow = {"generated": 100, "own_length": 0, "siblings": 0, "queue": 10, "dropped": 0}
    figures = {
        "waste_by_source": {"main": main, "slow": slow},
        "prefix_coverage": 0.5,
        "length_quarters": [1.0, 1.0, 1.0, 0.9],
        "closed_early": 12,
        "late_members": 1300,
        "holds": 3,
        "held_s": 61.4,
        "pacing": 2.0,
        "places": 4,
    }
    run = replace(load_run(run_dir), buffer=[{"buffer": {"places": 1}}, {"buffer": figures}])
    waste = summarize(run)["waste"]
    assert waste["by_source"]["slow"]["queue"] == 10
    assert "places" not in waste
    assert waste_line(waste) == (
        "3.0 % own length, 2.0 % siblings, 1.0 % queue; prefix coverage 50.0 %; 1,300 late members; held 1 min 01 s"
    )


def test_before_is_version_0_and_after_is_the_newest(run_dir):
    summary = summarize(load_run(run_dir))
    before, after = summary["before"], summary["after"]
    assert (before["version"], after["version"]) == (0, 40)
    assert (before["accuracy"], before["greedy"], before["format"]) == (0.45, 0.82, 0.42)
    assert {"accuracy", "greedy", "format", "reward", "pass_at_k", "cons_at_k", "stderr"} <= set(after)
    assert after["hash"] == f"{40:016x}"


def test_busy_fraction_is_the_share_of_wall_time(run_dir):
    # Patterns of two seconds: decode 1.2 + prefill 0.2 + weights 0.1; train 1.5 + publish 0.1; grade 0.2; handle 0.1.
    assert summarize(load_run(run_dir))["role_busy_fraction"] == pytest.approx(
        {"generator": 0.75, "learner": 0.8, "scorer": 0.1, "buffer": 0.05, "evaluator": 0.0}, abs=1e-3
    )


def test_window_of_a_busy_fraction_takes_only_bins_inside_it(run_dir):
    bins = load_run(run_dir).bins
    # In the first second of each pattern the generator decodes without a pause.
    assert busy_fractions(bins, START, START + 1.0)["generator"] == pytest.approx(1.0, abs=1e-3)
    assert cpu_seconds(bins, START, START + 4.0)["learner"] == pytest.approx(3.2, abs=1e-2)


def test_several_processes_of_a_role_count_as_their_mean():
    bins = {
        "generator-0": [{"start": 0.0, "span_s": 2.0, "cpu_s": 1.0, "busy": {"decode": 2.0}, "wait": {}}],
        "generator-1": [{"start": 0.0, "span_s": 2.0, "cpu_s": 1.0, "busy": {"decode": 1.0}, "wait": {}}],
    }
    assert busy_fractions(bins) == {"generator": 0.75}
    assert cpu_seconds(bins) == {"generator": 2.0}


def test_step_done_again_after_a_restart_counts_once_with_its_last_figures(tmp_path):
    run_dir = make_run(tmp_path / "restarted", steps=4)
    with (run_dir / "metrics" / "learner.jsonl").open("a") as file:
        file.write(
            '{"kind":"step","time":1700000020.0,"step":3,"version":4,"epoch":2,"rollouts":64,"reward/mean":9.0}\n'
        )
    run = load_run(run_dir)
    assert [record["step"] for record in run.steps] == [0, 1, 2, 3]
    assert run.curve("reward/mean")[1][3] == 9.0


def test_metric_that_is_missing_or_null_leaves_its_step_out(run_dir):
    run = load_run(run_dir)
    assert run.curve("skipped") == ([], [])
    assert run.curve("never_written") == ([], [])


def test_run_that_wrote_nothing_has_a_summary_without_figures(tmp_path):
    (tmp_path / "empty").mkdir()
    summary = write_summary(tmp_path / "empty")
    assert set(summary) == FIELDS
    assert summary["before"] is None
    assert summary["staleness"] == {"mean": None, "p95": None, "max": None}
    print_summary(summary, Console(width=100, record=True))


def test_missing_folder_is_an_error_that_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_run(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("tokens", "share", "expected"),
    [
        ({0: 95, 1: 5}, 0.95, 0),
        ({0: 94, 1: 6}, 0.95, 1),
        ({2: 10}, 0.95, 2),
        ({0: 0, 3: 1}, 0.5, 3),
        ({}, 0.95, None),
    ],
)
def test_quantile_is_the_lowest_staleness_that_covers_the_share(tokens, share, expected):
    assert Histogram(tokens=tokens).quantile(share) == expected


def test_audit_line_adds_up_on_sight():
    audit = {"rollouts": {"in": 12, "trained": 8, "dropped": {"stale": 1, "deadline": 2}, "live": 1}, "balanced": True}
    assert audit_line(audit) == "balanced: 12 rollouts in = 8 trained + 3 dropped + 1 live"
    assert audit_line({**audit, "balanced": False}).startswith("NOT BALANCED")
    assert audit_line(None) == "no audit yet"


def test_numbers_as_people_say_them():
    assert (percent(0.9155, 0.0143), percent(None), percent(1)) == ("91.5 ± 1.4 %", "–", "100.0 %")
    assert [duration(s) for s in (None, 42.6, 125, 4200)] == ["–", "43 s", "2 min 05 s", "1 h 10 min"]


def test_screen_shows_before_and_after(run_dir):
    console = Console(width=100, record=True)
    print_summary(summarize(load_run(run_dir)), console)
    text = console.export_text()
    assert "45.0 ± 2.0 %" in text
    assert "40 steps, 5,120 completions" in text
    assert "balanced: 5,280 rollouts in = 5,120 trained + 32 dropped + 128 live" in text


def test_engines_have_their_pauses_and_their_worst_canary():
    install = {"kind": "install", "engine": "vLLM 0.32.0", "version": 1}
    canary = {"kind": "canary", "engine": "vLLM 0.32.0", "version": 1, "tokens": 64}
    lines = [
        install | {"pause_s": 0.1},
        canary | {"mismatch_mean": 1e-6, "mismatch_max": 5e-6},
        install | {"pause_s": 0.3},
        install | {"pause_s": 0.2},
        canary | {"mismatch_mean": 3e-6, "mismatch_max": 4e-6},
    ]
    figures = engine_figures({"generator-0": lines, "generator-1": []})
    assert figures["generator-0"] == {
        "engine": "vLLM 0.32.0",
        "installs": 3,
        "pause_s": {"median": 0.2, "max": 0.3},
        "canaries": 2,
        "mismatch_mean": 3e-6,
        "mismatch_max": 5e-6,
    }
    assert engine_line(figures["generator-0"]) == (
        "vLLM 0.32.0; 3 installs, paused 200.0 ms; mismatch 3e-06 nats in the worst of 2 canaries"
    )
    assert figures["generator-1"]["engine"] is None


def test_what_a_run_does_not_measure_has_no_row(run_dir):
    summary = summarize(load_run(run_dir))
    nothing = {"accuracy": None, "stderr": None, "greedy": None, "format": None, "pass_at_k": {}, "cons_at_k": None}
    for side in ("before", "after"):
        summary[side] |= nothing | {"reward": 0.25}
    console = Console(width=100, record=True)
    print_summary(summary, console)
    shown = console.export_text()
    assert "accuracy" not in shown
    assert "pass@" not in shown
    assert "0.250" in next(line for line in shown.splitlines() if "reward" in line)
