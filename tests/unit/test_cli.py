"""The command line: what it prints, and that a user's mistake is one message and exit code 2."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from r1async.cli import main
from r1async.config import load_config

DEMO = "data: {task: chain-mod}\ncold_start: {enabled: true}\n"


@pytest.fixture
def config_file(tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(DEMO + f"runs_dir: {tmp_path}/runs\n")
    return str(path)


def test_dry_run_prints_settings_that_load_back_and_what_they_imply(config_file, tmp_path, capsys):
    assert main(["run", config_file, "staleness.max_staleness=4", "--dry-run", "steps=9"]) == 0
    printed = capsys.readouterr().out
    assert "# worst-case staleness: 4 optimizer steps" in printed
    (tmp_path / "again.yaml").write_text(printed)
    assert load_config(tmp_path / "again.yaml") == load_config(config_file, ["staleness.max_staleness=4", "steps=9"])
    assert not (tmp_path / "runs").exists()


def test_a_relay_needs_an_address_and_no_model(config_file, capsys):
    assert main(["relay", config_file]) == 2
    assert "endpoints.relay: must be an address to serve" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "buffer", "generate", "score", "learn", "eval", "relay"])
def test_unknown_key_is_one_line_and_exit_code_2(command, config_file, capsys):
    assert main([command, config_file, "stepz=1"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "r1async: stepz: unknown key; did you mean steps?\n"
    assert captured.out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nowhere.yaml"], "config nowhere.yaml: no such file"),
        (["run", "CONFIG", "data.task=file", "data.path=no.jsonl"], "cold_start.enabled: only data.task=chain-mod"),
        (["run", "CONFIG", "cold_start.enabled=false", "model.path=no-model"], "model.path: no-model: no such folder"),
        (["run", "CONFIG", "resume=true"], "holds no journal"),
    ],
)
def test_mistake_is_told_without_a_traceback(arguments, message, config_file, capsys):
    assert main([config_file if each == "CONFIG" else each for each in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("r1async: ")
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize("arguments", [["run", "CONFIG", "--fast"], ["walk"], [], ["score", "CONFIG", "--index", "-1"]])
def test_wrong_command_line_ends_with_exit_code_2(arguments, config_file, capsys):
    with pytest.raises(SystemExit) as caught:
        main([config_file if each == "CONFIG" else each for each in arguments])
    assert caught.value.code == 2


@pytest.mark.parametrize("command", ["run", "sweep", "buffer", "generate", "score", "learn", "eval", "cold-start"])
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert "exit codes:" in capsys.readouterr().out


def test_help_and_dry_run_import_no_model_library(config_file):
    """They answer at once: importing torch alone takes seconds."""
    program = (
        "import sys; from r1async.cli import main; "
        f"main(['run', {config_file!r}, '--dry-run']); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'matplotlib')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
