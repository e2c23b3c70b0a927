"""Full disks are told from other failures."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from r1async.disk import full_error, is_full
from r1async.files import write_atomic


def test_write_to_a_full_device_is_a_full_disk(tmp_path):
    with pytest.raises(OSError, match="No space left") as raised, Path("/dev/full").open("wb", buffering=0) as file:
        file.write(b"x")
    assert is_full(raised.value, tmp_path)


def test_cause_of_an_error_counts_and_other_errors_do_not(tmp_path):
    wrapped = RuntimeError("checkpoint failed")
    wrapped.__cause__ = OSError(errno.EDQUOT, "quota")
    assert is_full(wrapped, tmp_path)
    assert not is_full(OSError(errno.EACCES, "no"), tmp_path)
    assert not is_full(ValueError("no"), tmp_path)
    error = full_error(tmp_path)
    assert (error.errno, error.filename) == (errno.ENOSPC, str(tmp_path))


def test_file_that_cannot_be_written_leaves_nothing_behind(tmp_path, monkeypatch):
    def refuse(descriptor):
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr("os.fsync", refuse)
    (tmp_path / "state").write_bytes(b"former")
    with pytest.raises(OSError, match="no space left"):
        write_atomic(tmp_path / "state", b"newer")
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    assert (tmp_path / "state").read_bytes() == b"former"
