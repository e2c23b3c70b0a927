"""Ten of the seeded runs of benches/kill_runs.py, in which random processes are killed at random moments."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benches" / "kill_runs.py"
RUNS = 10


@pytest.mark.timeout(3600)
def test_whatever_is_killed_every_run_ends_with_a_balanced_account(tmp_path: Path):
    result = tmp_path / "result.json"
    command = [sys.executable, str(SCRIPT), "--runs", str(RUNS), "--undisturbed", "1", "--jobs", "2"]
    ended = subprocess.run([*command, "--json", str(result)], capture_output=True, text=True, timeout=3500)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    figures = json.loads(result.read_text())
    assert (figures["good"], figures["faults"]) == (RUNS, {})
    assert figures["resumes"]["tree"]["first_step_s"]["count"] > 0
    assert len([kind for kind, count in figures["killed"].items() if count]) >= 3  # not ten times the same
