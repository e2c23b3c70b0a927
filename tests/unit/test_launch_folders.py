"""The run's folder: fresh start, resume, and who may use it."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from r1async.config import Config, ConfigError, ipc_dir, load_config
from r1async.launch.folders import (
    FolderLock,
    Outcome,
    config_path,
    is_done,
    make_ipc_dir,
    newest_step,
    prepare,
    remove_ipc_dir,
    write_config,
    write_outcome,
)
from r1async.launch.start_model import with_start_model


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load(tmp_path)


def load(folder: Path, *overrides: str) -> Config:
    return load_config(None, ["data.task=chain-mod", "cold_start.enabled=true", f"runs_dir={folder}", *overrides])


def save(config: Config, *, checkpoint: int | None = None) -> None:
    """A journal, and a checkpoint of the learner."""
    (config.run_dir / "journal").mkdir(parents=True, exist_ok=True)
    (config.run_dir / "journal" / "events").write_bytes(b"events")
    if checkpoint is not None:
        (config.run_dir / "checkpoints" / f"step-{checkpoint:06d}").mkdir(parents=True)


def used(config: Config) -> None:
    """The folder as a former life of the same settings leaves it."""
    config.run_dir.mkdir(parents=True, exist_ok=True)
    write_config(with_start_model(config, Path("cold")))


def test_a_new_folder_starts_at_step_0(config):
    assert prepare(config).step == 0


def test_a_run_goes_on_where_its_journal_ends(config):
    used(config)
    save(config)
    start = prepare(config)
    assert (start.step, start.resumed, start.changed) == (0, True, ())  # killed before its first checkpoint
    save(config, checkpoint=20)
    (config.run_dir / "checkpoints" / "step-000040.partial").mkdir()
    assert newest_step(config.run_dir) == 20
    start = prepare(config)
    assert (start.step, start.resumed, start.changed) == (20, True, ())


def test_resume_true_insists_on_a_journal(tmp_path):
    with pytest.raises(ConfigError, match="holds no journal"):
        prepare(load(tmp_path, "resume=true"))


def test_resume_false_refuses_a_used_folder(tmp_path):
    config = load(tmp_path, "resume=false")
    used(config)
    with pytest.raises(ConfigError, match="holds a run already"):
        prepare(config)


@pytest.mark.parametrize("resume", ["auto", "true", "false"])
def test_roles_go_on_from_their_own_run_whatever_the_folder_was_to_be(resume, tmp_path):
    config = load(tmp_path, f"resume={resume}")
    config.run_dir.mkdir(parents=True)
    write_config(config)
    assert load_config(config_path(config.run_dir)) == load(tmp_path, "resume=auto")


def test_resume_refuses_another_seed_and_names_other_changes(tmp_path):
    used(load(tmp_path))
    save(load(tmp_path), checkpoint=20)
    with pytest.raises(ConfigError, match="seed: a resumed run keeps 0, got 1"):
        prepare(load(tmp_path, "seed=1"))
    assert prepare(load(tmp_path, "steps=300")).changed == ("steps was 100, is now 300",)


@pytest.mark.parametrize(
    ("change", "was"),
    [
        ("data.prompt_key=answer", "'prompt'"),
        ("data.answer_key=prompt", "'answer'"),
        ("data.template=none", "'chat'"),
        ("data.shuffle=false", "True"),
        ("reward.think_prefilled=true", "False"),
    ],
)
def test_resume_refuses_what_would_make_other_prompts(change, was, tmp_path):
    file = ("data.task=file", "data.path=rows.jsonl", "data.template=chat", "cold_start.enabled=false", "model.path=m")
    used(load(tmp_path, *file))
    save(load(tmp_path, *file), checkpoint=20)
    with pytest.raises(ConfigError, match=f"{change.partition('=')[0]}: a resumed run keeps {was}, got"):
        prepare(load(tmp_path, *file, change))


def test_a_former_life_without_journal_is_moved_aside_and_a_sweeps_points_stay(config):
    used(config)
    (config.run_dir / "metrics").mkdir()
    (config.run_dir / "seed=1").mkdir()
    assert prepare(config).step == 0
    assert sorted(path.name for path in config.run_dir.iterdir()) == ["attempts", "seed=1"]
    assert sorted(path.name for path in (config.run_dir / "attempts" / "1").iterdir()) == ["config.yaml", "metrics"]
    used(config)
    prepare(config)
    assert (config.run_dir / "attempts" / "1.2" / "config.yaml").is_file()


def test_second_launcher_in_a_folder_is_refused_and_the_first_is_named(config):
    first = FolderLock(config.run_dir)
    with pytest.raises(ConfigError, match=f"in use by another r1async \\(process {os.getpid()}\\)"):
        FolderLock(config.run_dir)
    first.close()
    FolderLock(config.run_dir).close()


def test_done_means_these_settings_to_their_end(tmp_path, config):
    assert not is_done(config)
    used(config)
    (config.run_dir / "summary.json").write_text("{}")
    write_outcome(config, Outcome("interrupted", 130))
    assert not is_done(config)
    write_outcome(config, Outcome("done", 0))
    assert is_done(config)
    assert is_done(load(tmp_path, "monitor.terminal=plain"))
    assert not is_done(load(tmp_path, "steps=300"))
    assert json.loads((config.run_dir / "outcome.json").read_text())["exit_code"] == 0


def test_sockets_lie_in_a_folder_that_nobody_else_may_enter(config):
    make_ipc_dir(config)
    folder = ipc_dir(config.run_dir)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    remove_ipc_dir(config)
    assert not folder.exists()
