"""`r1async audit`, `inspect` and `replay` of folders that are not what they should be: one line, exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest
from r1async.cli import main
from r1async.config import has_journal


@pytest.mark.parametrize("number", [2**63, 10**30, -1, "x", "1.5"])
def test_group_numbers_that_no_run_has_are_refused(number, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["inspect", str(tmp_path), "group", str(number)])
    assert "must be a whole number from 0, below 2^63" in capsys.readouterr().err


@pytest.mark.parametrize("command", [("audit",), ("inspect", "group", "0"), ("replay",)])
@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no journal; give a run's folder"),
        ({"payload-000000": b""}, "events: it is missing"),
        ({"snapshot-000003": b"x"}, "events: it is missing"),
        ({"events": b""}, "events is not what its name says: it does not begin with a header"),
        ({"events": b"\x00" * 4096}, "events is not what its name says: it does not begin with a header"),
        ({"events": b"r1async?" * 64}, "events is damaged at byte 0"),
    ],
)
def test_what_is_no_journal_is_said_in_one_line(command, files, message, tmp_path, capsys):
    run = tmp_path / "run"
    (run / "journal").mkdir(parents=True)
    (run / "config.yaml").write_text("data:\n  task: chain-mod\nmodel:\n  path: m\n")
    for name, content in files.items():
        (run / "journal" / name).write_bytes(content)
    assert has_journal(run) == bool(files)
    name, *rest = command
    wanted = message
    if name == "replay" and files:
        wanted = "journal.keep=all" if "payload-000000" not in files else message
    assert main([name, str(run), *rest]) == 2
    said = capsys.readouterr().err
    assert wanted in said
    assert said.startswith("r1async: ")
    assert said.count("\n") == 1


def test_batches_that_cannot_be_written_are_an_error(tmp_path: Path, capsys):
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / "events").write_bytes(b"")
    (tmp_path / "config.yaml").write_text("data:\n  task: chain-mod\nmodel:\n  path: m\n")
    (tmp_path / "file").write_bytes(b"")
    assert main(["replay", str(tmp_path), "--out", str(tmp_path / "file" / "batches")]) == 2
    assert "Not a directory" in capsys.readouterr().err
