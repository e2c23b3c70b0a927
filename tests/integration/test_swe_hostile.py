"""Patches that must not be rewarded, and what must not happen on the way. Needs the sandbox."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import hostile_patches
import pytest
from r1async.config_swe import SweConfig
from r1async.swe.grade import SweGrader
from r1async.swe.instance import Instance, parse_instance
from r1async.swe.samples import make_samples

SECRET = "R1ASYNC_SWE_SECRET"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("swe")
    make_samples(folder)
    return folder


@pytest.fixture(scope="module")
def instances(workplace: Path) -> Mapping[str, Instance]:
    rows = [json.loads(line) for line in (workplace / "instances.jsonl").read_text().splitlines()]
    return {row["repo"]: parse_instance(row) for row in rows}


def _settings(workplace: Path, **more: object) -> SweConfig:
    settings = {"repos": str(workplace / "repos"), "cache": str(workplace / "cache"), "container": "none", **more}
    return SweConfig(**settings)


@pytest.fixture(scope="module")
def grader(workplace: Path, instances: Mapping[str, Instance]) -> Iterator[SweGrader]:
    made = SweGrader(_settings(workplace))
    # Here, so that the sandbox is there before the first test and not left behind by it.
    assert all(made.check(instance).ok for instance in instances.values())
    yield made
    made.close()


@pytest.mark.parametrize("name", hostile_patches.CHEATS)
def test_cheat_is_not_rewarded(name: str, grader: SweGrader, instances: Mapping[str, Instance]) -> None:
    case = hostile_patches.CHEATS[name]
    graded = grader.grade(instances[case.sample.repo], case.patch)
    assert graded.verdict.total == 0.0, graded
    assert not Path("/tmp/r1async-outside").exists()


@pytest.mark.parametrize("name", hostile_patches.HONEST)
def test_honest_patch_is_rewarded(name: str, grader: SweGrader, instances: Mapping[str, Instance]) -> None:
    case = hostile_patches.HONEST[name]
    graded = grader.grade(instances[case.sample.repo], case.patch)
    assert graded.verdict.total == 1.0, graded
    assert graded.controls > 0


@pytest.mark.parametrize(
    "name", ["tests that do not run", "put back afterwards", "a lying text", "expected values in the caller's frame"]
)
def test_controls_are_what_catches(name: str, workplace: Path, instances: Mapping[str, Instance]) -> None:
    case = hostile_patches.CHEATS[name]
    believing = SweGrader(_settings(workplace, controls=0, introspection="allow"))
    alone = SweGrader(_settings(workplace, introspection="allow"))
    try:
        assert believing.grade(instances[case.sample.repo], case.patch).verdict.total == 1.0
        graded = alone.grade(instances[case.sample.repo], case.patch)
        assert (graded.verdict.total, graded.verdict.status) == (0.0, "guard")
    finally:
        believing.close()
        alone.close()


def test_nothing_forbidden_happens(workplace: Path, instances: Mapping[str, Instance]) -> None:
    intervals = instances["acme/intervals"]
    mark = {**os.environ, SECRET: "1"}
    bystander = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=mark)
    os.environ[SECRET] = "1"
    # A limit for programs that never end; honest runs of this repository take a second.
    grader = SweGrader(_settings(workplace, memory_mib=512, files_mib=64, processes=48))
    limited = parse_limited(workplace, timeout_s=6)
    try:
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(socket.AF_UNIX) as abstract:
            port = listener.getsockname()[1]
            abstract.bind(f"\0r1async-{port}")
            abstract.listen()
            listener.settimeout(0.05)
            abstract.settimeout(0.05)
            assert grader.check(limited).ok
            scores = {
                name: grader.grade(limited, case.patch).verdict.total
                for name, case in hostile_patches.effects(port, SECRET, bystander.pid).items()
            }
            assert scores == dict.fromkeys(scores, 0.0)
            for waiting in (listener, abstract):
                with pytest.raises(TimeoutError):
                    waiting.accept()
        assert bystander.poll() is None
        assert not Path("/tmp/r1async-outside").exists()
        assert not Path("/work/r1async-outside").exists()
    finally:
        del os.environ[SECRET]
        bystander.kill()
        bystander.wait()
        grader.close()
    assert intervals.environment.timeout_s == 60


def parse_limited(workplace: Path, *, timeout_s: float) -> Instance:
    row = json.loads((workplace / "instances.jsonl").read_text().splitlines()[0])
    row["environment"]["timeout_s"] = timeout_s
    return parse_instance(row)
