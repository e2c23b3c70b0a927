"""The learner killed between any two of its words: the run trains each batch once, in the same order."""

from __future__ import annotations

import json
from pathlib import Path

import msgpack
import pytest
from r1async._core import JournalEvents, journal_audit

from tests.faulty_roles import DEATHS
from tests.integration.test_stalls import COMMON, FaultyRun
from tests.tiny_models import save_tiny

STEPS, GROUPS = 12, 4
pytestmark = pytest.mark.timeout(2400)


@pytest.mark.parametrize("death", [each.__name__ for each in DEATHS])
def test_a_batch_is_trained_once_wherever_the_learner_dies(
    death: str, run_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FLAG", str(tmp_path / "flag"))
    monkeypatch.setenv("FAULTS", json.dumps({"learner": death}))
    settings = {**COMMON, "steps": STEPS, "learner.checkpoint_every": 4, "learner.part_groups": 1}
    if death == "dies_within_batch":  # groups are ready one after another
        settings["reward.weights"] = "{tests.reward_functions:unhurried: 1.0}"
    run = FaultyRun(run_root, save_tiny(tmp_path / "model"), *(f"{key}={value}" for key, value in settings.items()))
    try:
        run.assert_done(STEPS)
    finally:
        run.close()
    assert (tmp_path / "flag").exists()
    journal = run.run_dir / "journal"
    account = journal_audit(journal)
    assert account["differences"] == []
    assert (account["prompts"]["trained"], account["trained_twice"]) == (STEPS * GROUPS, 0)
    events = [msgpack.unpackb(packed, strict_map_key=False) for _, packed in JournalEvents(journal)]
    trained = [event["step"] for event in events if event["what"] == "trained"]
    assert trained == list(range(STEPS))
    stepped = [event["step"] for event in events if event["what"] == "stepped"]
    assert set(stepped) == set(range(STEPS))
    if death == "dies_after_checkpoint":
        assert stepped == list(range(STEPS))  # the checkpoint held all that was stepped: nothing was done twice
