"""`r1async simulate`: runs that can be worked out by hand, sweeps, splits, and the fit to a recorded run."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from r1async.cli import main
from r1async.config import ConfigError, load_config
from r1async.monitor.metrics import MetricsWriter
from r1async.simulate import fit
from r1async.simulate.model import faster, machines, simulated, split
from r1async.simulate.observe import Observed, observe
from r1async.simulate.run import Split, best, configs_of, point_of, splits_of

BY_HAND = """
steps: 20
data: {task: chain-mod}
cold_start: {enabled: true}
sampling: {max_tokens: 100}
group: {group_size: 1, baseline: none}
generator: {slots: 1}
learner: {groups_per_step: 1, checkpoint_every: 1}
staleness: {max_staleness: 0}
simulate:
  tokens_per_s: 1
  lengths: [10]
  prompt_tokens: 5
  verdicts_s: [2]
  step_base_s: 1.5
  step_token_s: 0.1
  transfer_s: 0
  install_s: 0
"""
"""10 s to sample, 2 to grade, 1.5 + 0.1 * 15 = 3 to train: one after the other at bound 0."""


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(BY_HAND)
    return path


def test_bound_0_does_one_thing_after_another(config_file):
    outcome = simulated(load_config(config_file))
    assert outcome["steps_per_s"] == pytest.approx(1 / 15)
    assert outcome["pools"]["generators"]["busy"] == pytest.approx(10 / 15)
    assert outcome["pools"]["learner"]["idle"] == pytest.approx(12 / 15)
    assert outcome["staleness"] == {
        "mean": 0.0,
        "p95": 0,
        "max": 0,
        "histogram": {"0": outcome["staleness"]["histogram"]["0"]},
    }
    assert outcome["waste"] == {}
    assert outcome["length_ratio"] == pytest.approx(1)


def test_the_seed_decides_and_nothing_else(config_file):
    config = load_config(config_file, ["simulate.lengths=[]", "simulate.length_median=10"])
    assert simulated(config) == simulated(config, seed=0)
    assert simulated(config) != simulated(config, seed=1)


def test_hours_end_a_run_whatever_its_steps(config_file):
    assert simulated(load_config(config_file, ["simulate.hours=1"]))["steps"] == 3600 / 15


def test_the_bottleneck_is_who_rests_least_and_more_of_it_helps_most(config_file):
    config = load_config(config_file, ["staleness.max_staleness=1", "steps=40"])
    point = point_of((), config, quick=False)
    assert point.bottleneck.pool == "generators"
    assert point.bottleneck.growth["generators"] == pytest.approx(0.25)  # 8 s instead of 10 for a rollout
    assert point.bottleneck.growth["scorers"] == pytest.approx(0)
    assert point_of((), config, quick=True).bottleneck.growth == {}


def test_a_pool_that_does_not_exist_cannot_be_faster(config_file):
    with pytest.raises(ValueError, match="pool must be generators, scorers, learner or weights, got 'gpu'"):
        faster(load_config(config_file), "gpu", 2.0)


def test_machines_are_split_where_neither_side_waits(config_file):
    # Two places: with one generator sampling bounds, with three the learner's tokens are shared by one machine only.
    config = load_config(config_file, ["staleness.max_staleness=3", "steps=60", "simulate.step_token_s=1.0"])
    splits = splits_of(config, 4)
    assert [(each.generators, each.learners) for each in splits] == [(1, 3), (2, 2), (3, 1)]
    # 15 tokens of 1 s by 3, 2, 1 machines and 1.5 s: 6.5, 9, 16.5 s a step; sampling: 10, 5, 3.3 s.
    speeds = [each.outcome["steps_per_s"] for each in splits]
    assert speeds == pytest.approx([1 / 10, 1 / 9, 1 / 16.5], rel=0.02)
    assert best(splits) is splits[1]


def test_equal_splits_are_won_by_fewer_generators():
    outcome = {"steps_per_s": 1.0}
    assert best([Split(1, 2, outcome), Split(2, 1, outcome)]).generators == 1


def test_more_learner_machines_share_the_tokens_of_a_step(config_file):
    config = load_config(config_file, ["learner.ranks=1"])
    assert split(config, 2, 4).simulate.step_token_s == pytest.approx(0.1 / 4)
    assert split(config, 2, 4).simulate.step_base_s == 1.5


def test_lengths_are_rounded_only_where_they_are_long(config_file):
    unit = {
        tokens: machines(load_config(config_file, [f"simulate.lengths=[{tokens}]", "sampling.max_tokens=8000"]), 0)[
            "tokens_per_unit"
        ]
        for tokens in (10, 640, 100_000)
    }
    assert unit == {10: 1, 640: 20, 100_000: 250}  # the last is cut at max_tokens


def test_a_sweep_prints_a_line_a_value_and_writes_files(config_file, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["simulate", str(config_file), "staleness.max_staleness=0,1", "steps=12", "--quick", "--out", str(out)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "staleness.max_staleness=1: generators" in printed
    figures = json.loads((out / "simulate.json").read_text())
    assert [point["values"] for point in figures["points"]] == [
        {"staleness.max_staleness": "0"},
        {"staleness.max_staleness": "1"},
    ]
    with (out / "simulate.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["steps/h"]) for row in rows] == pytest.approx([240.0, 360.0], rel=0.01)
    assert (out / "simulate.png").stat().st_size > 1000
    assert (out / "simulate.svg").stat().st_size > 1000


def test_splits_are_tabled_with_the_best_named(config_file, capsys):
    assert main(["simulate", str(config_file), "--machines", "3", "--quick"]) == 0
    printed = capsys.readouterr().out
    assert "splits of the machines" in printed
    assert "best" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["simulate.tokens_per_sec=3"], "simulate.tokens_per_sec: unknown key; did you mean simulate.tokens_per_s?"),
        (["simulate.length_shared=2"], "simulate.length_shared: must be 0 to 1, got 2.0"),
        (["simulate.lengths=[3,0]"], "simulate.lengths: must be above 0, got 0.0"),
        (["staleness.max_staleness=0,1", "--machines", "3"], "--machines: splits one configuration"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, message, config_file, capsys):
    assert main(["simulate", str(config_file), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_without_a_config_or_a_run_there_is_nothing_to_simulate(capsys):
    assert main(["simulate", "seed=1"]) == 2
    assert "give a CONFIG, or --from RUN" in capsys.readouterr().err


def test_what_was_observed_becomes_settings():
    observed = Observed(
        lengths=[5, 15],
        prompt_tokens=7.0,
        token_s=[(0.0, 0.01), (0.5, 0.015), (1.0, 0.02)],
        verdicts_s=[0.5],
        verdict_travels_s=[0.75],
        verdict_failure_rate=0.1,
        steps=[(100.0, 2.0), (200.0, 3.0), (300.0, 4.0)],
        checkpoints_s=[1.0, 3.0],
        transfers_s=[0.25],
        installs_s=[0.125],
    )
    values = dict(line.removeprefix("simulate.").split("=") for line in fit.overrides(observed))
    assert json.loads(values.pop("lengths")) == [5, 15]
    assert json.loads(values.pop("verdicts_s")) == [0.5]
    assert {name: float(value) for name, value in values.items()} == pytest.approx(
        {
            "prompt_tokens": 7,
            "tokens_per_s": 50,
            "tokens_per_s_alone": 100,
            "verdict_failure_rate": 0.1,
            "verdict_travel_s": 0.75,
            "step_base_s": 1,
            "step_token_s": 0.01,
            "checkpoint_s": 2,
            "transfer_s": 0.25,
            "install_s": 0.125,
        }
    )


def test_nothing_observed_changes_nothing():
    assert fit.overrides(Observed()) == []


def test_a_slope_is_not_read_out_of_noise():
    assert fit.line([(100, 1.0), (101, 5.0), (102, 3.0)]) == (3.0, 0.0)
    assert fit.line([(100, 3.0), (200, 2.0), (300, 1.0)]) == (2.0, 0.0)  # nothing gets faster by more tokens
    base, slope = fit.line([(100, 1.0), (200, 3.0), (300, 5.0)])  # a line through below 0
    assert base == pytest.approx(0)
    assert slope == pytest.approx(3 / 200)


def test_many_values_become_quantiles_of_the_same_distribution():
    few = fit.quantiles(range(100_000))
    assert len(few) == fit.QUANTILES
    assert sum(few) / len(few) == pytest.approx(50_000, rel=0.001)


def test_a_folder_that_is_no_run_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"--from: no run at .*nothing"):
        configs_of(None, [], tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"recorded 0 steps and 0 lines"):
        observe(tmp_path / "empty")


def _recorded(folder: Path) -> Path:
    """Ten steps 2 s apart: 0.5 s of waiting, 1.5 s of work. One generator of 4 slots, one scorer."""
    now = 1000.0
    folder.mkdir()
    (folder / "config.yaml").write_text(BY_HAND.replace("slots: 1", "slots: 4"))
    (folder / "audit.json").write_text(json.dumps({"prompts": {"trained": 10}, "prompt_tokens": {"trained": 130}}))
    with (
        MetricsWriter(folder / "metrics" / "learner.jsonl", 1000.0, lambda: now) as learner,
        MetricsWriter(folder / "metrics" / "buffer.jsonl", 1000.0, lambda: now) as buffer,
    ):
        for step in range(10):
            now = 1002.0 + 2 * step
            figures = {"length/mean": 20.0, "length/max": 40.0, "tokens": 160, "rollouts": 8}
            times = {"step_s": 1.2, "wait_s": 0.5, "publish_s": 0.1, "checkpoint_s": 0.5 if step == 8 else 0.0}
            learner.write("step", {"step": step, "epoch": 1, **figures, **times})
            generator = {"installs": 11.0, "busy_s:install": 0.22}
            peers = [
                {"name": "generator-0", "role": "generator", "stats": generator},
                {"name": "scorer-0", "role": "scorer", "stats": {"verdicts": 8.0 * step, "busy_s:score": 0.8 * step}},
            ]
            # 8 rollouts of 20 tokens a step, by 2 of 4 slots: 40 tokens a second of each.
            held = {"rollouts_generating": 2, "tokens": 160 * step}
            held |= {"rollouts_unscored": 1, "rollouts_scoring": 3, "abstentions": {"deadline": 5, "nan": 6}}
            buffer.write("stats", {"buffer": held, "peers": peers})
    return folder


def test_a_recorded_run_says_what_its_machines_are(tmp_path):
    found = observe(_recorded(tmp_path / "run"))
    assert found.prompt_tokens == 13
    assert found.token_s == [(0.5, 2 * 12 / (160 * 6))]
    assert found.verdicts_s == pytest.approx([0.1])
    assert found.verdict_travels_s == pytest.approx([0.6])  # 4 held, 4 a second: 1 s in all, 0.4 s of work
    assert found.verdict_failure_rate == pytest.approx(6 / 72)
    assert found.checkpoints_s == [0.5]
    assert {tokens for tokens, _ in found.steps} == {160 + 13 * 8}
    assert [seconds for _, seconds in found.steps] == pytest.approx([1.5] * 5 + [1.2] + [1.5])  # never below step_s
    assert found.installs_s == pytest.approx([0.02])
    assert found.transfers_s == []  # without time lines there is nothing to tell them by
    assert sum(found.lengths) / len(found.lengths) == pytest.approx(20, rel=0.01)
    assert 36 < max(found.lengths) <= 40


def test_the_way_of_weights_is_read_off_the_time_line(tmp_path):
    run_dir = _recorded(tmp_path / "run")
    lines = [json.loads(line) for line in (run_dir / "metrics" / "learner.jsonl").read_text().splitlines()]
    for number, line in enumerate(lines):
        line["time"] += 0.07 * number  # steps end everywhere in the bins
    (run_dir / "metrics" / "learner.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    installs = {int((line["time"] - line["checkpoint_s"] + 0.3) * 4) for line in lines}
    with MetricsWriter(run_dir / "metrics" / "generator-0.jsonl", 1000.0, lambda: 1000.0) as writer:
        for start in range(4000, 4120):
            busy = {"install": 0.01} if start in installs else {}
            writer.write("timeline", {"start": start / 4, "span_s": 0.25, "busy": busy, "wait": {}})
    assert observe(run_dir).transfers_s == pytest.approx([0.3], abs=0.05)


def test_a_run_is_simulated_with_its_own_settings_or_others(tmp_path, capsys):
    run_dir = _recorded(tmp_path / "run")
    (((values, config),)) = configs_of(None, ["steps=7"], run_dir)
    assert values == ()
    assert config.steps == 7
    assert config.generator.slots == 4
    assert config.simulate.step_base_s == pytest.approx((6 * 1.5 + 1.2) / 7)
    assert config.simulate.tokens_per_s == pytest.approx(40)
    ((_, changed),) = configs_of(None, ["simulate.step_base_s=9"], run_dir)
    assert changed.simulate.step_base_s == 9
    assert main(["simulate", "--from", str(run_dir), "staleness.max_staleness=0,1", "--quick"]) == 0
    assert "staleness.max_staleness=0: " in capsys.readouterr().out
