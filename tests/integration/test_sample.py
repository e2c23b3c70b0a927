"""`r1async sample`: real roles, killed at random points, end with the same completions and the same rows."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from tests.tiny_models import save_tiny

pytestmark = pytest.mark.timeout(900)
WAIT_S = 300.0
PROMPTS, SAMPLES = 160, 3
KILLS = 5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"), hidden=32, mlp=48)


def start(root: Path, model: Path) -> subprocess.Popen[str]:
    config = root / "config.yaml"
    config.write_text("{}\n")
    settings = {
        "name": "run", "runs_dir": root, "model.path": model, "data.task": "chain-mod", "data.template": "none",
        "data.max_prompt_tokens": 32, "sampling.max_tokens": 24, "generator.slots": 16, "reward.equivalence": "exact",
        "sample.prompts": PROMPTS, "sample.samples": SAMPLES, "sample.part_rows": 24, "sample.ahead": 96,
        "sample.keep.parts": "{accuracy: 0.0}", "sample.keep.truncated": "true", "sample.keep.per_prompt": 2,
        "group.lease_s": 5, "buffer.peer_deadline_s": 4, "monitor.terminal": "plain", "monitor.interval_s": 0.2,
        "monitor.tensorboard": "false",
    }  # fmt: skip
    words = [f"{key}={value}" for key, value in settings.items()]
    command = [sys.executable, "-m", "r1async", "sample", str(config), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def end(process: subprocess.Popen[str]) -> None:
    printed, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, printed


def completions(root: Path) -> dict[tuple[int, int], tuple[str, float]]:
    """Text and reward of each completion; each is there once."""
    rows = pq.read_table(root / "run" / "samples", columns=["ordinal", "member", "text", "total"]).to_pylist()
    found = {(row["ordinal"], row["member"]): (row["text"], row["total"]) for row in rows}
    assert len(found) == len(rows)
    return found


def files(root: Path) -> int:
    return len(list((root / "run" / "samples").glob("part-*.parquet")))


def wait_for_files(root: Path, count: int, process: subprocess.Popen[str]) -> bool:
    """Until so many files of completions are there; False if the process ended first."""
    deadline = time.monotonic() + WAIT_S
    while files(root) < count:
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline, f"{count} files were not there within {WAIT_S:.0f} s"
        time.sleep(0.005)
    return True


def test_killed_at_five_random_points_no_prompt_is_lost_or_sampled_twice(
    tmp_path_factory: pytest.TempPathFactory, model: Path
):
    """Three kills of one role each in a run that goes on, then two of the whole command, at random files of twenty."""
    calm, wild = tmp_path_factory.mktemp("calm"), tmp_path_factory.mktemp("wild")
    end(start(calm, model))
    expected = completions(calm)
    assert set(expected) == {(prompt, member) for prompt in range(PROMPTS) for member in range(SAMPLES)}

    rng = random.Random(3)
    victims = ["generate", "buffer", "sample"]
    points = sorted(rng.sample(range(1, 15), KILLS))
    process = start(wild, model)
    for kill, point in enumerate(points):
        assert wait_for_files(wild, point, process)
        if kill < len(victims):
            children = psutil.Process(process.pid).children()
            # One that was killed before may not be waited for yet, and has no command line.
            children = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
            role = next(child for child in children if victims[kill] in child.cmdline())
            role.send_signal(signal.SIGKILL)
        else:
            process.kill()
            process.communicate()
            process = start(wild, model)
    end(process)
    assert completions(wild) == expected
    cards = [json.loads((root / "run" / "card.json").read_text()) for root in (calm, wild)]
    assert cards[0]["sha256"] == cards[1]["sha256"]
    assert cards[0]["completions"] == cards[1]["completions"]
    audit = json.loads((wild / "run" / "audit.json").read_text())
    assert audit["balanced"], audit
    books = audit["evaluation_rollouts"]
    assert books["in"] == books["trained"] + sum(books["dropped"].values()) + books["live"]
    with contextlib.suppress(psutil.NoSuchProcess):
        assert not psutil.Process(process.pid).children(recursive=True)
