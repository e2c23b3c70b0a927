"""Real runs with a generator whose engine does not serve what it is given."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.integration.test_stalls import GROUPS, STEPS
from tests.integration.test_stalls import flag as flag
from tests.integration.test_stalls import model as model
from tests.integration.test_stalls import pytestmark as pytestmark
from tests.integration.test_stalls import started as started


def test_a_fenced_generator_gets_no_leases_and_the_run_goes_on_without_it(started):
    run = started(generator_1="swaps_tensors")
    run.assert_done()
    (fault,) = (each for each in run.named("engine_fenced") if each["role"] == "generator-1" and "log" in each["act"])
    assert "the embedded torch engine does not serve version 0@1: mean |difference|" in fault["text"]
    told = [life_of(run.run_dir, group) for group in range(STEPS * GROUPS)]
    assert all("generator-0" in life for life in told)
    assert not any("generator-1" in life for life in told)


def life_of(run_dir: Path, group: int) -> str:
    command = [sys.executable, "-m", "r1async", "inspect", str(run_dir), "group", str(group)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_without_a_generator_that_can_be_trusted_the_run_ends_and_says_why(started):
    run = started("generator.count=1", generator_0="swaps_tensors")
    code, printed = run.end()
    assert code == 1, printed
    assert "no generator is left: the embedded torch engine does not serve version 0@1" in printed
    assert "r1async doctor" in printed
    assert run.read("summary.json")["policy_version"] in (0, None)
