"""The weight benchmark: it measures what really comes back, and its verdicts are arithmetic."""

import io
import json

import pytest
import torch
from r1async.bench.weights import main, measure, print_result, targets_of, versions
from rich.console import Console


@pytest.fixture(scope="module")
def figures():
    torch.manual_seed(0)
    masters = {"w": 0.02 * torch.randn(300, 400), "norm": torch.ones(400)}
    return measure(versions(masters, 1e-5, steps=3), repeats=1)


def test_ways_are_ordered_as_information_is(figures):
    share = {name: each["share"] for name, each in figures.items()}
    assert share["entropy bound"] < share["ours"] < share["XOR + zstd-1"] < share["ours, snapshot"] < share["raw"] == 1
    # An index of four bytes and a value of two, for values of two bytes.
    assert share["index + value"] == pytest.approx(3 * share["changed"])


def test_targets_divide_ours_by_theirs(figures):
    targets = {target.name: target for target in targets_of("1e-05", figures)}
    wanted = figures["ours"]["share"] / figures["XOR + zstd-1"]["share"]
    assert targets["lr 1e-05: delta over XOR + zstd-1"].value == pytest.approx(wanted)
    assert targets["lr 1e-05: snapshot over raw"].reached == (figures["ours, snapshot"]["share"] <= 0.7)


def test_the_command_prints_a_table_and_writes_json(tmp_path, capsys):
    arguments = ["--millions", "0.1", "--lr", "1e-6", "--steps", "2", "--repeats", "1", "--json", str(tmp_path / "j")]
    assert main(arguments) == 0
    result = json.loads((tmp_path / "j").read_text())
    assert set(result["rates"]) == {"1e-06"}
    assert result["targets"]
    console = Console(file=io.StringIO(), width=200)
    print_result(result, console)
    assert "XOR + zstd-1" in capsys.readouterr().out


def test_a_model_that_is_not_there_is_named(tmp_path, capsys):
    assert main(["--model", str(tmp_path / "none"), "--repeats", "1"]) == 1
    assert "none" in capsys.readouterr().err


def test_a_delta_needs_two_versions(capsys):
    with pytest.raises(SystemExit):
        main(["--steps", "1"])
    assert "--steps" in capsys.readouterr().err
