"""The throughput benchmark's arithmetic, on made-up runs whose rates are known."""

import io
import json
import shutil

import pytest
from monitor_run import make_run
from r1async.bench import BenchError
from r1async.bench import throughput as bench
from r1async.bench.throughput import Measurement, compare, measure, print_result, run_pairs
from rich.console import Console


def measurement(max_staleness: int, rate: float, **busy: float) -> Measurement:
    return Measurement(
        max_staleness=max_staleness,
        completions_per_s=rate,
        tokens_per_s=10 * rate,
        step_s=128 / rate,
        window_s=60.0,
        role_busy_fraction=busy,
        cpu_s={role: 60 * share for role, share in busy.items()},
        staleness_mean=None,
    )


def test_rates_are_those_of_the_steady_middle(tmp_path):
    run_dir = make_run(tmp_path / "run", steps=40)
    path = run_dir / "metrics" / "learner.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if line["kind"] == "step":
            line["tokens"] = 2000
            if line["step"] < bench.WARMUP_STEPS - 1:
                line["rollouts"] = 10_000  # would spoil the rate, were it counted
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = measure(run_dir, max_staleness=2)
    assert result.completions_per_s == pytest.approx(64.0)  # 128 every 2 s
    assert result.tokens_per_s == pytest.approx(1000.0)
    assert result.step_s == pytest.approx(2.0)
    assert result.window_s == pytest.approx(2.0 * (40 - bench.WARMUP_STEPS - bench.TAIL_STEPS))
    assert result.role_busy_fraction["learner"] == pytest.approx(0.8, abs=0.01)
    assert result.cpu_s["learner"] == pytest.approx(0.8 * result.window_s, rel=0.02)


def test_run_shorter_than_warm_up_and_tail_is_an_error(tmp_path):
    with pytest.raises(BenchError, match="has 5 steps"):
        measure(make_run(tmp_path / "run", steps=5), max_staleness=2)


def test_result_is_the_median_of_ratios_not_the_ratio_of_medians():
    pairs = [
        (measurement(2, 100.0, learner=0.9, generator=0.7), measurement(0, 50.0, learner=0.5, generator=0.4)),
        (measurement(2, 60.0, learner=0.8, generator=0.6), measurement(0, 50.0, learner=0.5, generator=0.4)),
        (measurement(2, 150.0, learner=0.7, generator=0.5), measurement(0, 100.0, learner=0.5, generator=0.4)),
    ]
    result = compare(pairs)
    assert result["async_over_sync"] == pytest.approx(1.5)  # of 2.0, 1.2, 1.5
    assert result["role_busy_fraction"] == {"learner": 0.8, "generator": 0.6}
    assert result["bottleneck"] == "learner"
    assert result["completions_per_s"] == {"async": 100.0, "sync": 50.0}
    assert result["cpu_s"]["async"] == pytest.approx({"learner": 48.0, "generator": 36.0})
    assert [pair["ratio"] for pair in result["pairs"]] == pytest.approx([2.0, 1.2, 1.5])


def test_pairs_alternate_and_differ_in_nothing_but_lag(tmp_path):
    made = make_run(tmp_path / "made", steps=40)
    commands = []

    def run(config, settings, run_dir):
        commands.append(settings)
        shutil.copytree(made, run_dir)

    pairs = run_pairs(tmp_path / "c.yaml", ["learner.lr=1e-4"], steps=40, pairs=2, lag=2, run=run)
    assert [(a.max_staleness, s.max_staleness) for a, s in pairs] == [(2, 0), (2, 0)]
    lags = [settings[-1] for settings in commands]
    assert lags == [f"staleness.max_staleness={lag}" for lag in (2, 0, 0, 2)]
    same = [{s for s in settings if not s.startswith(("name=", "staleness."))} for settings in commands]
    assert all(each == same[0] for each in same)
    assert {"learner.lr=1e-4", "steps=40", "generator.count=1"} <= same[0]


def test_failed_run_shows_the_end_of_its_output(tmp_path):
    with pytest.raises(BenchError, match=r"pair0 ended with exit code 2:(\n.*)*nowhere\.yaml"):
        bench.run_once(tmp_path / "nowhere.yaml", [], tmp_path / "pair0")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["throughput", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["throughput", __file__, "--steps", "5"], "--steps: must be at least 18, got 5"),
        (["throughput", __file__, "--pairs", "0"], "must be a whole number from 1"),
        (["throughput", __file__, "--unknown"], "unknown option --unknown"),
    ],
)
def test_mistakes_on_the_command_line_are_named(arguments, says, capsys):
    with pytest.raises(SystemExit) as error:
        bench.main(arguments)
    assert error.value.code == 2
    assert says in capsys.readouterr().err


def test_json_file_holds_the_result(tmp_path, monkeypatch, capsys):
    config = tmp_path / "c.yaml"
    config.write_text("")
    pair = (measurement(2, 90.0, learner=0.9), measurement(0, 60.0, learner=0.6))
    seen = {}

    def pairs(config, overrides, **more):
        seen.update(config=config, overrides=overrides, **more)
        return [pair]

    monkeypatch.setattr(bench, "run_pairs", pairs)
    assert bench.main(["throughput", str(config), "seed=1", "--json", str(tmp_path / "out.json"), "lr=2"]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["async_over_sync"] == pytest.approx(1.5)
    assert {"role_busy_fraction", "bottleneck"} <= set(result)
    assert seen["overrides"] == ["seed=1", "lr=2"]
    assert "1.50x" in capsys.readouterr().out


def test_screen_names_ratio_roles_and_bottleneck():
    console = Console(file=io.StringIO(), record=True, width=140)
    print_result(
        compare([(measurement(2, 90.0, learner=0.9, generator=0.5), measurement(0, 60.0, learner=0.6))]), console
    )
    text = console.export_text()
    assert "async over sync: 1.50x" in text
    assert "bottleneck: learner" in text
    assert "90.0 %" in text


@pytest.mark.parametrize(("load", "warned"), [(0.3, False), (6.0, True)])
def test_busy_machine_is_said_with_the_result(load, warned):
    console = Console(file=io.StringIO(), record=True, width=140)
    pair = (measurement(2, 90.0, learner=0.9), measurement(0, 60.0, learner=0.6))
    print_result({**compare([pair]), "load_before": load, "cpus": 2}, console)
    assert ("others were busy" in console.export_text()) == warned
