"""Versions as files: what a receiver takes, and what half written, damaged and old folders do to it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from r1async.inbox import Inbox
from r1async.types import PolicyVersion
from r1async.weights.publisher import Publisher
from r1async.weights.receiver import Receiver, WeightsMissing

from tests.integration.test_kill import Run
from tests.integration.test_weights import WAIT_S, ready
from tests.integration.test_weights_delta import assert_is, version, weights
from tests.integration.test_weights_relay import wait_for
from tests.tiny_models import save_tiny

CHUNK = 1024
WINDOW = 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "shared"


def publisher(folder: Path) -> Publisher:
    return Publisher(
        f"ipc://{folder.parent}/weights", run="run", dtype="bfloat16", chunk_bytes=CHUNK, deadline_s=WAIT_S,
        window=WINDOW, directory=folder,
    )  # fmt: skip


def receiver(folder: Path, inbox: Inbox, name: str = "generator-0", deadline_s: float = WAIT_S) -> Receiver:
    return Receiver("", inbox, run="run", name=name, deadline_s=deadline_s, directory=folder)


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "run").iterdir() if (path / "STABLE").exists())


def test_versions_and_acknowledgements_travel_as_files(folder: Path) -> None:
    inbox = Inbox()
    with receiver(folder, inbox) as there, publisher(folder) as learner:
        for number in range(7):
            digest = learner.publish(version(number), weights(number))
            got = ready(inbox)
            assert_is(got, number)
            assert got.hash == digest
            there.installed(got, pause_s=0.5)
            wait_for(lambda: (folder / "run" / "acks" / "generator-0").exists())
        assert (there.stats()["snapshots"], there.stats()["deltas"]) == (1, 6)
        assert len(kept(folder)) == WINDOW + 1
        learner.publish(version(7), weights(7))
        assert learner.acknowledged()["generator-0"][0].number >= 5
        assert learner.figures()["push/pause_s"] == 0.5


@pytest.mark.parametrize("newest", range(1, 10))
def test_a_joiner_takes_the_newest_from_the_last_whole_one_and_its_deltas(folder: Path, newest: int) -> None:
    inbox = Inbox()
    with publisher(folder) as learner:
        for number in range(newest + 1):
            learner.publish(version(number), weights(number))
        with receiver(folder, inbox):
            assert_is(ready(inbox), newest)


@pytest.mark.parametrize("newest", [2, 4, 6])
def test_who_skipped_versions_takes_one_merged_delta_while_there_is_one(folder: Path, newest: int) -> None:
    inbox = Inbox()
    with publisher(folder) as learner:
        learner.publish(version(0), weights(0))
        with receiver(folder, inbox) as there:
            first = ready(inbox)
            for number in range(1, newest + 1):
                learner.publish(version(number), weights(number))
            there.installed(first)
            assert_is(ready(inbox), newest)
            assert there.stats()["deltas"] == (1 if newest <= WINDOW else 0)


def test_a_folder_without_its_marker_is_not_there(folder: Path) -> None:
    inbox = Inbox()
    with publisher(folder) as learner:
        learner.publish(version(0), weights(0))
        learner.publish(version(1), weights(1))
        (folder / "run" / kept(folder)[-1] / "STABLE").unlink()  # as a publisher that was killed leaves it
        with receiver(folder, inbox) as there:
            got = ready(inbox)
            assert_is(got, 0)
            there.installed(got)
            learner.publish(version(2), weights(2))
            assert_is(ready(inbox), 2)


def test_a_damaged_file_is_never_taken_and_the_next_version_is(folder: Path) -> None:
    inbox = Inbox()
    with publisher(folder) as learner:
        learner.publish(version(0), weights(0))
        chunk = folder / "run" / kept(folder)[0] / "full.00000000"
        data = bytearray(chunk.read_bytes())
        data[100] ^= 1
        chunk.write_bytes(data)
        with receiver(folder, inbox, deadline_s=0.1) as there:
            wait_for(lambda: there.stats()["chunks_corrupted"] > 1)
            assert inbox.take() == []
            learner.publish(version(1), weights(1), retain=True)  # whole
            assert_is(ready(inbox), 1)


def test_a_restarted_learner_writes_over_what_its_dead_life_left_and_an_old_one_is_not_read(folder: Path) -> None:
    inbox = Inbox()
    with publisher(folder) as learner:
        learner.publish(version(5), weights(5))
    with receiver(folder, inbox) as there:
        there.installed(ready(inbox))
        with publisher(folder) as learner:
            learner.publish(PolicyVersion(2, 3), weights(3))
            got = ready(inbox)
            assert got.version == PolicyVersion(2, 3)
            there.installed(got)
            with Publisher(
                f"ipc://{folder.parent}/zombie", run="run", dtype="bfloat16", chunk_bytes=CHUNK, deadline_s=WAIT_S,
                window=WINDOW, directory=folder,
            ) as zombie:  # fmt: skip
                zombie.publish(version(9), weights(9))
            learner.publish(PolicyVersion(2, 4), weights(4))
            got = ready(inbox)
            assert got.version == PolicyVersion(2, 4)
            assert_is(got, 4)
            there.fetch(version(9))
            assert inbox.get("the pin", WAIT_S) == WeightsMissing(version(9), PolicyVersion(2, 4))
            assert there.stats()["versions_fenced"] == 1


def test_a_pinned_version_stays_until_it_is_released(folder: Path) -> None:
    inbox = Inbox()
    with publisher(folder) as learner:
        learner.publish(version(1), weights(1), retain=True)
        for number in range(2, 9):
            learner.publish(version(number), weights(number))
        with receiver(folder, inbox) as there:
            there.installed(ready(inbox))
            there.fetch(version(1))
            got = ready(inbox)
            assert got.pinned
            assert_is(got, 1)
            learner.release(version(1))
            learner.publish(version(9), weights(9))
            newest = ready(inbox)
            assert_is(newest, 9)
            there.fetch(version(1))
            assert inbox.get("the pin", WAIT_S) == WeightsMissing(version(1), version(9))
            assert torch.equal(got.tensors["weight"], weights(1)["weight"])


def test_a_run_that_is_removed_under_a_receiver_ends_nothing(folder: Path) -> None:
    inbox = Inbox()
    with publisher(folder) as learner:
        learner.publish(version(0), weights(0))
        with receiver(folder, inbox) as there:
            got = ready(inbox)
            shutil.rmtree(folder / "run")
            there.installed(got)
            os.makedirs(folder / "run" / "acks")
            learner.publish(version(1), weights(1), retain=True)
            assert_is(ready(inbox), 1)


def test_a_short_run_through_a_directory_trains_all_its_steps(run_root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    run = Run(run_root, save_tiny(tmp_path / "model"), "weights.medium=directory", f"weights.directory={folder}")
    try:
        code, printed = run.end()
        assert code == 0, printed
        run.assert_complete()
    finally:
        run.close()
    lines = [json.loads(line) for path in run_root.rglob("learner.jsonl") for line in path.read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "step"]
    assert steps[-1]["push/receivers"] >= 1
    assert 0 <= steps[-1]["push/density"] <= 1
    assert any(path.name.startswith("delta.") for path in folder.rglob("*"))
