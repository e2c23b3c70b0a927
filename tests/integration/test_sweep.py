"""A sweep's runs as processes: complete points are skipped, failed ones are told and do not stop the others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from r1async.launch.folders import Outcome, write_config, write_outcome
from r1async.launch.sweep import points_of

WAIT_S = 120.0


def test_complete_points_are_skipped_and_failed_ones_are_told(tmp_path: Path):
    model, config_file = tmp_path / "model", tmp_path / "config.yaml"
    model.mkdir()
    (model / "config.json").write_text("{}")
    config_file.write_text(
        f"name: s\nruns_dir: {tmp_path}\nmodel: {{path: {model}}}\ndata: {{task: chain-mod}}\nresume: true\n"
    )
    # resume=true without a journal: a run refuses it at once.
    arguments = ["staleness.max_staleness=0,1", "steps=3"]
    done, failing = points_of(config_file, arguments)
    done.config.run_dir.mkdir(parents=True)
    write_config(done.config)
    write_outcome(done.config, Outcome("done", 0))
    (done.config.run_dir / "summary.json").write_text(json.dumps({"after": {"accuracy": 0.875, "stderr": 0.01}}))

    command = [sys.executable, "-m", "r1async", "sweep", str(config_file), *arguments]
    sweep = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert sweep.returncode == 1, sweep.stderr
    assert "sweep: 2 runs, 1 of them complete already" in sweep.stdout
    assert "[2/2] max_staleness=1: exit code 2" in sweep.stdout
    assert "holds no journal" in sweep.stdout
    assert "[1/2]" not in sweep.stdout
    assert "0.875 ± 0.010" in sweep.stdout
    assert f"r1async: not complete: {failing.config.run_dir}" in sweep.stderr
    assert json.loads((tmp_path / "s" / "sweep.json").read_text())["rows"][0]["seeds"] == [0]
