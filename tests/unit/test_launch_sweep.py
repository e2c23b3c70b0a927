"""Sweeps: which runs, and what their table says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from r1async.config import ConfigError
from r1async.launch.sweep import points_of, split_values
from r1async.launch.sweep_table import Result, figure, rows_of, to_markdown, write_tables


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(f"name: demo\nruns_dir: {tmp_path}\ndata: {{task: chain-mod}}\ncold_start: {{enabled: true}}\n")
    return path


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0,1,2", ["0", "1", "2"]),
        ("5", ["5"]),
        ("[0.9,0.99],[0.9,0.999]", ["[0.9,0.99]", "[0.9,0.999]"]),
        ("{accuracy: 1, format: 0},{accuracy: 1}", ["{accuracy: 1, format: 0}", "{accuracy: 1}"]),
        ("'a,b',c", ["'a,b'", "c"]),
    ],
)
def test_values_are_split_at_commas_outside_brackets_and_quotes(text, values):
    assert split_values(text) == values


def test_points_are_the_product_in_order_with_fixed_settings_in_each(config_file):
    points = points_of(config_file, ["staleness.max_staleness=0,2", "seed=0,1", "steps=9"])
    assert [point.config.name for point in points] == [
        "demo/max_staleness=0,seed=0",
        "demo/max_staleness=0,seed=1",
        "demo/max_staleness=2,seed=0",
        "demo/max_staleness=2,seed=1",
    ]
    assert {point.config.steps for point in points} == {9}
    assert [point.config.staleness.max_staleness for point in points] == [0, 0, 2, 2]


def test_keys_with_the_same_last_part_are_written_out(config_file):
    points = points_of(config_file, ["learner.lr=1e-3,1e-4", "cold_start.lr=1e-2,1e-3"])
    assert points[0].name == "learner.lr=1e-3,cold_start.lr=1e-2"


def test_an_impossible_point_is_refused_before_any_run(config_file):
    with pytest.raises(ConfigError, match=r"weights\.publish_every"):
        points_of(config_file, ["staleness.max_staleness=2,0", "weights.publish_every=2"])


def test_nothing_to_sweep_over_is_refused(config_file):
    with pytest.raises(ConfigError, match="at least one key with several values"):
        points_of(config_file, ["seed=1"])


def result(staleness: int, seed: int, accuracy: float) -> Result:
    summary = {
        "after": {"accuracy": accuracy, "stderr": 0.02},
        "before": None,
        "completions_trained": 1000,
        "wall_s": 50.0,
        "staleness": {"mean": float(staleness)},
    }
    return Result({"staleness.max_staleness": str(staleness), "seed": str(seed)}, seed, summary)


def test_figures_are_mean_and_standard_error_over_seeds():
    # deviations -0.1, 0, 0.1: sample deviation 0.1, over sqrt(3)
    three = figure([0.7, 0.8, 0.9])
    assert (three.mean, three.stderr, three.count) == (pytest.approx(0.8), pytest.approx(0.1 / 3**0.5), 3)


def test_a_single_run_has_its_evaluations_error():
    (row,) = rows_of([result(0, 0, 0.9)])
    assert str(row.figures["accuracy"]) == "0.900 ± 0.020"
    assert "before" not in row.figures


def test_table_has_a_row_per_value_and_a_mean_over_its_seeds():
    rows = rows_of([result(0, 0, 0.9), result(0, 1, 0.8), result(2, 0, 0.7)])
    assert [row.seeds for row in rows] == [(0, 1), (0,)]
    assert to_markdown(rows).splitlines() == [
        "| staleness.max_staleness | accuracy | staleness | completions/s | wall s | runs |",
        "| --- | --- | --- | --- | --- | --- |",
        "| 0 | 0.850 ± 0.050 | 0.000 ± 0.000 | 20.000 ± 0.000 | 50.000 ± 0.000 | 2 |",
        "| 2 | 0.700 ± 0.020 | 2.000 | 20.000 | 50.000 | 1 |",
    ]


def test_files_are_written_beside_the_runs(tmp_path):
    printed = write_tables(tmp_path, [result(0, 0, 0.9), result(0, 1, 0.8), result(2, 0, 0.7)])
    assert "0.850 ± 0.050" in printed
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "sweep.svg").read_text()
    assert len((tmp_path / "sweep.csv").read_text().splitlines()) == 4
    rows = json.loads((tmp_path / "sweep.json").read_text())["rows"]
    assert rows[0]["figures"]["accuracy"]["n"] == 2


def test_a_sweep_over_seeds_alone_is_one_row(tmp_path):
    results = [Result({"seed": str(seed)}, seed, result(0, seed, 0.8).summary) for seed in (0, 1)]
    assert [row.values for row in rows_of(results)] == [()]
    write_tables(tmp_path, results)
