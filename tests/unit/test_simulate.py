"""`r1async simulate`: runs that can be worked out by hand, sweeps, splits, and the fit to a recorded run."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
from core_peers import Run, completion_of, crew
from r1async.cli import main
from r1async.config import ConfigError, load_config
from r1async.monitor.metrics import MetricsWriter
from r1async.simulate import fit
from r1async.simulate.model import faster, machines, simulated, split
from r1async.simulate.observe import Observed, events_of, observe
from r1async.simulate.recorded import Recorded
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
    assert "staleness of trained tokens: 0: 50.0%, 1: 50.0%" in printed  # Version v comes in the middle of a rollout.
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
    # 10 s to sample, 2 to grade, 1.5 + 1.5 / 2 to train; at bound 0 a second generator has nothing to do.
    assert "best split of 3 machines: 1 to sample, 2 to learn, 252.6 steps/h" in printed


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
        # 2 s until the first token; a token takes 0.01 s alone and 0.02 in a full generator.
        sampling=[(100.0, 2 + 1.0, 0.0), (200.0, 2 + 3.0, 0.5), (300.0, 2 + 6.0, 1.0), (50.0, 2 + 1.0, 1.0)],
        # 0.25 s on the way; two workers take 0.5 s each, so every second place waits as long again.
        grading=[(2.0, 0.75), (4.0, 1.25), (6.0, 1.75)],
        workers=2,
        verdict_failure_rate=0.1,
        steps=[(100.0, 2.0), (200.0, 3.0), (300.0, 4.0)],
        checkpoints_s=[1.0, 3.0],
        weights_s=[0.25, 0.5],
        installs_s=[0.125],
        cores=2,
        other_load=0.5,
    )
    values = dict(line.removeprefix("simulate.").split("=") for line in fit.overrides(observed))
    assert json.loads(values.pop("lengths")) == [5, 15]
    assert json.loads(values.pop("verdicts_s")) == pytest.approx([0.5])
    assert {name: float(value) for name, value in values.items()} == pytest.approx(
        {
            "prompt_tokens": 7,
            "start_s": 2,
            "tokens_per_s": 50,
            "tokens_per_s_alone": 100,
            "verdict_failure_rate": 0.1,
            "verdict_travel_s": 0.25,
            "step_base_s": 1,
            "step_group_s": 0,
            "step_token_s": 0.01,
            "checkpoint_s": 2,
            "transfer_s": 0.25,
            "install_s": 0.125,
            "cores": 2,
            "other_load": 0.5,
        }
    )


def test_nothing_observed_changes_nothing():
    assert fit.overrides(Observed()) == ["simulate.cores=0.0", "simulate.other_load=0.0"]


def test_a_slope_is_not_read_out_of_noise():
    assert fit.line([(100, 1.0), (101, 5.0), (102, 3.0)]) == pytest.approx((3.0, 0.0))
    assert fit.line([(100, 3.0), (200, 2.0), (300, 1.0)]) == pytest.approx((2.0, 0.0))  # more tokens slow nothing
    base, slope = fit.line([(100, 1.0), (200, 3.0), (300, 5.0)])  # a line through below 0
    assert base == 0
    assert slope == pytest.approx((100 + 600 + 1500) / (1 + 4 + 9) / 100**2)


def test_many_values_become_quantiles_of_the_same_distribution():
    few = fit.quantiles(range(100_000))
    assert len(few) == fit.QUANTILES
    assert sum(few) / len(few) == pytest.approx(50_000, rel=0.001)


def test_where_nobody_stood_in_line_all_is_the_graders_work():
    assert fit.grading_seconds([(1.0, 3.0), (2.0, 5.0), (4.0, 1.0)], workers=4) == ([1.0, 3.0, 5.0], 0.0)


def test_rollouts_of_all_lengths_that_took_the_same_time_still_have_a_speed():
    start_s, alone_s, full_s = fit.sampling_seconds([(10.0, 4.0, 1.0), (20.0, 4.0, 1.0), (30.0, 4.0, 1.0)])
    assert start_s == 0
    assert alone_s == full_s == pytest.approx(240 / 1400)  # least squares through 0


def test_a_folder_that_is_no_run_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"--from: no run at .*nothing"):
        configs_of(None, [], tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"holds no journal"):
        observe(tmp_path / "empty")


def test_a_run_of_a_few_steps_tells_nothing(tmp_path):
    with pytest.raises(ConfigError, match=r"recorded 8 steps; at least 11 are wanted"):
        observe(_recorded(tmp_path / "run", steps=8))


def _recorded(folder: Path, steps: int = 30) -> Path:
    """A run at bound 0 of 2 groups of 2 a step. A rollout takes 1 s and 0.5 s a token, its verdict none; the learner
    takes 3 s; half a second later the generator has the weights."""
    folder.mkdir()
    (folder / "config.yaml").write_text(BY_HAND.replace("slots: 1", "slots: 4"))
    run = Run(
        journal=folder / "journal",
        steps=steps,
        group_size=2,
        min_group_size=1,
        groups_per_step=2,
        max_staleness=0,
        pacing=0,
    )
    generator, scorer, learner = crew(run)
    for _ in range(steps):
        begin = run.now
        generator.receive()
        generator.held.sort(key=lambda held: len(completion_of(held["rollout"])[0]))
        while generator.held:
            run.tick(begin + 1 + 0.5 * len(completion_of(generator.held[0]["rollout"])[0]))
            generator.finish(1)
            scorer.score()
        learner.ask()
        run.tick(run.now + 3)
        learner.train()
        run.tick(run.now + 0.5)
        generator.version = (1, learner.step)
        generator.ready()
    return folder


def test_a_recorded_run_says_what_its_machines_are(tmp_path):
    found = observe(_recorded(tmp_path / "run"))
    assert sorted(set(found.lengths)) == [3, 4, 5, 6, 7]
    assert all(seconds == pytest.approx(1 + 0.5 * tokens) for tokens, seconds, _ in found.sampling)
    assert max(taken for *_, taken in found.sampling) == 1  # the shortest of four: all slots were taken
    assert [seconds for _, seconds in found.steps] == pytest.approx([3.0] * len(found.steps))
    assert found.weights_s == pytest.approx([0.5] * len(found.weights_s))
    assert {seconds for _, seconds in found.grading} == {0.0}
    assert (found.cores, found.other_load) == (0, 0.0)  # no time lines tell what they had of the processors
    start_s, alone_s, full_s = fit.sampling_seconds(found.sampling)
    assert (start_s, alone_s, full_s) == pytest.approx((1, 0.5, 0.5))


def test_time_at_work_without_a_core_is_that_of_other_programs(tmp_path):
    # Both roles had a core for half of the time that they were at work, one after the other: the rest went to others.
    run_dir = _recorded(tmp_path / "run")
    (run_dir / "config.yaml").write_text(BY_HAND.replace("slots: 1", "slots: 4, engine: torch"))
    recorded = Recorded(events_of(run_dir), 2)
    with MetricsWriter(run_dir / "metrics" / "learner.jsonl", 0.0, lambda: 0.0) as writer:
        for number, step in recorded.steps.items():
            writer.write("step", {"step": number, "time": step.stepped})
    for name in ("learner", "generator-0"):
        with MetricsWriter(run_dir / "metrics" / f"{name}.jsonl", 0.0, lambda: 0.0) as writer:
            for start in range(300):
                writer.write("timeline", {"start": start, "span_s": 1, "cpu_s": 0.2, "busy": {"x": 0.4}, "wait": {}})
    found = observe(run_dir)
    cores = os.cpu_count() or 0
    assert found.cores == cores
    assert found.other_load == pytest.approx(2 * cores - 1)  # cores / (1 + load) = 1/2
    assert [seconds for _, seconds in found.steps] == pytest.approx([1.5] * len(found.steps))


def test_a_generator_at_work_shows_new_weights_by_the_tokens_it_has_of_them():
    version = [{"version": {"epoch": 1, "number": number}, "count": count} for number, count in ((0, 6), (1, 4))]
    events = [
        (0.0, {"what": "admitted", "group": 0, "prompt_tokens": 3}),
        (0.0, {"what": "leased", "rollout": 0, "lease": 1, "holder": "5", "resumed": 0}),
        (1.0, {"what": "taken", "rollout": 9, "step": 0, "tokens": 1}),
        (5.0, {"what": "stepped", "step": 0}),
        (10.0, {"what": "tokens", "rollout": 0, "runs": version}),
        (10.0, {"what": "finished", "rollout": 0, "finish": "Stop", "tokens": 10}),
        (10.5, {"what": "leased", "rollout": 1, "lease": 2, "holder": "5", "resumed": 0}),
        (11.5, {"what": "tokens", "rollout": 1, "runs": version[1:]}),
        (11.5, {"what": "finished", "rollout": 1, "finish": "Stop", "tokens": 4}),
    ]
    recorded = Recorded([(0.0, {"what": "admitted", "group": 9, "prompt_tokens": 3}), *events], 1)
    assert recorded.weights_s((0.0, 20.0)) == pytest.approx([1.0])  # 4 tokens of 1 s: since 6 s; the step ended at 5


def test_a_rollout_that_was_lent_twice_is_left_out():
    lost = [(0.0, {"what": "leased", "rollout": 0, "lease": 1, "holder": "5", "resumed": 0})]
    lost += [(3.0, {"what": "lost", "rollout": 0, "lease": 1, "scoring": False})]
    again = [(4.0, {"what": "leased", "rollout": 0, "lease": 2, "holder": "6", "resumed": 3})]
    assert not Recorded(lost, 1).rollouts
    assert Recorded(lost + again, 1).rollouts[0].leased == 4.0


def test_a_run_is_simulated_with_its_own_settings_or_others(tmp_path, capsys):
    run_dir = _recorded(tmp_path / "run")
    (((values, config),)) = configs_of(None, ["steps=60", "group.group_size=2", "learner.groups_per_step=2"], run_dir)
    assert values == ()
    assert config.generator.slots == 4
    assert config.simulate.step_base_s == pytest.approx(3)
    assert config.simulate.tokens_per_s == pytest.approx(2)
    # 1 s to start, 0.5 s a token of the longest of four rollouts (6.43 on average), 3 s to train, 0.5 s for weights.
    assert simulated(config)["steps_per_s"] == pytest.approx(1 / (1 + 0.5 * 6.43 + 3 + 0.5), rel=0.03)
    ((_, changed),) = configs_of(None, ["simulate.step_base_s=9"], run_dir)
    assert changed.simulate.step_base_s == 9
    assert main(["simulate", "--from", str(run_dir), "staleness.max_staleness=0,1", "--quick"]) == 0
    assert "staleness.max_staleness=0: " in capsys.readouterr().out
