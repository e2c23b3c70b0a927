"""A session of the shell tool on a repository, in the sandbox."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from r1async.config_swe import SweConfig
from r1async.rewards.sandbox import SandboxError
from r1async.swe.grade import SweGrader
from r1async.swe.instance import Instance, parse_instance
from r1async.swe.samples import make_samples
from r1async.swe.shell import last_command


@pytest.fixture
def instance(tmp_path: Path) -> Instance:
    path = make_samples(tmp_path)
    return parse_instance(json.loads(path.read_text().splitlines()[0]))


@pytest.fixture
def grader(tmp_path: Path, instance: Instance) -> Iterator[SweGrader]:
    settings = SweConfig(
        repos=str(tmp_path / "repos"),
        cache=str(tmp_path / "cache"),
        container="none",
        controls=1,
        turns=5,
        turn_s=10.0,
        observation_chars=200,
        files_mib=64,
    )
    made = SweGrader(settings)
    yield made
    made.close()


def do(command: str) -> str:
    return f"I try this.\n```bash\n{command}\n```\n"


def test_a_session_mends_the_bug_and_its_patch_is_rewarded(instance: Instance, grader: SweGrader) -> None:
    session = grader.session(instance)
    try:
        assert "def merge" in session.step(do("cat intervals/core.py | head -8")).observation
        assert (
            session.step(do("sed -i 's/low < merged/low <= merged/' intervals/core.py")).observation
            == "[exit code 0]\n"
        )
        assert session.step(do("echo new > NEW.md; exit 3")).observation == "[exit code 3]\n"
        last = session.step("That is all.")
    finally:
        session.close()
    assert last.done
    assert "+        if merged and low <= merged[-1][1]:" in last.observation
    assert "NEW.md" in last.observation
    graded = grader.grade_answer(instance, f"{do('cat x')}{last.observation}")
    assert graded.verdict.total == 1.0, graded


@pytest.mark.parametrize("then", ["git add -A", "git commit -qam mended", "git checkout -qb mine && git commit -qam x"])
def test_what_is_staged_or_committed_is_handed_in(then: str, instance: Instance, grader: SweGrader) -> None:
    built = replace(instance, environment=replace(instance.environment, setup=("echo 1 > built.txt",)))
    session = grader.session(built)
    try:
        fix = f"sed -i 's/low < merged/low <= merged/' intervals/core.py && {then}"
        assert session.step(do(fix)).observation.endswith("[exit code 0]\n")
        last = session.step("done")
    finally:
        session.close()
    assert "+        if merged and low <= merged[-1][1]:" in last.observation
    assert "built.txt" not in last.observation  # of the setup, not of the policy
    graded = grader.grade_answer(built, last.observation)
    assert graded.verdict.total == 1.0, graded


def test_a_session_on_an_image_is_refused(instance: Instance, tmp_path: Path) -> None:
    image = replace(instance, environment=replace(instance.environment, image="an/image:1"))
    grader = SweGrader(SweConfig(repos=str(tmp_path / "repos"), cache=str(tmp_path / "cache")))
    try:
        with pytest.raises(SandboxError, match=r"a session has no container; set reward\.swe\.container=none"):
            grader.session(image)
    finally:
        grader.close()


def test_a_session_has_limits_and_no_way_out(instance: Instance, grader: SweGrader) -> None:
    session = grader.session(instance)
    try:
        history = session.step(
            do("git rev-list --all --reflog | wc -l; git remote; git count-objects -v | grep packs")
        ).observation
        assert history.split("\n")[0] == "1"
        outside = session.step(do("cat /etc/shadow /root/.bashrc; echo x > /usr/x; env | wc -l; id -u")).observation
        assert "No such file" in outside
        assert "1000" in outside
        assert "characters left out" in session.step(do("seq 1000")).observation
        sleeping = session.step(do("touch here; (sleep 100 &) ; echo started")).observation
        assert "started" in sleeping
        last = session.step(do("ls; ps 2>&1 | grep -c sleep"))
    finally:
        session.close()
    assert last.done  # the fifth turn
    assert last.observation.startswith("README.md\nhere\nintervals\ntests\n")
    assert "last of 5 turns" in last.observation


def test_commands_are_read_from_the_last_shell_fence() -> None:
    assert last_command("```sh\na\n```\nno\n```bash\nb\nc\n```") == "b\nc\n"
    assert last_command("```python\nx\n```") is None
    assert last_command("```bash\nnever closed") is None
