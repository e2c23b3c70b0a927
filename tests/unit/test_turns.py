"""Rollouts of several turns: what the engine is given, what the buffer gets, what the learner leaves out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from queue import Queue

import numpy as np
import pytest
import torch
from r1async.generator.engine import Progress, Request
from r1async.generator.turns import Observed, Turns
from r1async.learner.batch import micro_batch, sampled_tokens, token_staleness
from r1async.learner.loss import LossSettings, Totals, policy_loss
from r1async.types import OBSERVED, PolicyVersion, Sampling, Step, VersionRun

from tests.engine_runs import EOS, V0, make_engine
from tests.learner_batches import make_batch
from tests.tiny_models import tiny_model

WAIT_S = 30.0
STOPS = (EOS, *range(10, 34))
"""Tokens that end a turn of the real engine, many enough that its turns are short."""
TOOL = (7, 8, 9)
"""What every observation becomes."""


class Words:
    def decode(self, token_ids: Sequence[int]) -> str:
        return " ".join(map(str, token_ids))

    def ends_turn(self, token_id: int) -> bool:
        return token_id == EOS

    def encode(self, observation: str) -> Sequence[int]:
        return TOOL


class Script:
    """Answers so many turns, then it is done; fails where it is told to."""

    def __init__(self, turns: int, *, fails: bool = False) -> None:
        self._left, self._fails = turns, fails
        self.heard: list[str] = []
        self.closed = threading.Event()

    def step(self, text: str) -> Step:
        if self._fails:
            raise RuntimeError("the sandbox is gone")
        self.heard.append(text)
        self._left -= 1
        return Step("said", self._left == 0)

    def close(self) -> None:
        self.closed.set()


class Table:
    """Turns with one script for every rollout, and the inbox that they answer into."""

    def __init__(self, make: Callable[[], Script]) -> None:
        self.scripts: list[Script] = []
        self._make = make
        self.inbox: Queue[object] = Queue()
        self.turns = Turns(self._open, Words(), self.inbox.put, threads=2)

    def _open(self, prompt_ids: np.ndarray) -> Script:
        self.scripts.append(self._make())
        return self.scripts[-1]

    def answer(self) -> Observed:
        found = self.inbox.get(timeout=WAIT_S)
        assert isinstance(found, Observed)
        return found


def request(id_: int = 1, *, max_tokens: int = 40, resume: Sequence[int] = ()) -> Request:
    return Request(
        id=id_,
        rollout=id_,
        prompt_ids=np.array([3, 4, 5], np.int32),
        sampling=Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=max_tokens, greedy=False),
        resume_ids=np.array(resume, np.int32),
    )


def report(token_ids: Sequence[int], finish: str | None) -> Progress:
    assert finish in (None, "stop", "length")
    ids = np.array(token_ids, np.int32)
    return Progress(
        id=1,
        token_ids=ids,
        logprobs=np.full(len(ids), -1, np.float32),
        runs=(VersionRun(version=V0, count=len(ids)),),
        finish=finish,
    )


def test_a_real_engine_goes_on_after_each_observation() -> None:
    """With the tokens it would sample if another generator had begun the rollout."""
    model, table = tiny_model("qwen2", heads=4, kv_heads=2), Table(lambda: Script(3))
    engine, tokens, logprobs, finish = make_engine(model, stop_ids=STOPS), [], [], None
    engine.submit(table.turns.begin([request(max_tokens=60)]))
    while finish is None:
        busy = engine.busy
        reports = table.turns.take(engine.step()) if busy else [table.turns.answered(table.answer(), V0)]
        for each in reports:
            assert each is not None
            tokens += each.token_ids.tolist()
            logprobs += each.logprobs.tolist()
            finish = each.finish
        engine.submit(table.turns.ready(engine.free))
    assert finish == "stop"
    observed = [logprob == OBSERVED for logprob in logprobs]
    assert [token for token, tool in zip(tokens, observed, strict=True) if tool] == 3 * list(TOOL)
    assert all(logprob <= 0 for logprob, tool in zip(logprobs, observed, strict=True) if not tool)
    ends = [at for at, token in enumerate(tokens) if token in STOPS and not observed[at]]
    assert [tokens[at + 1 : at + 4] for at in ends] == 3 * [list(TOOL)]
    # The second turn is what a fresh engine samples from the same tokens.
    begun = ends[0] + 4
    fresh = make_engine(model, stop_ids=STOPS)
    fresh.submit([request(max_tokens=60, resume=tokens[:begun])])
    again: list[int] = []
    while fresh.busy:
        again += [int(token) for each in fresh.step() for token in each.token_ids]
    assert again == tokens[begun : ends[1] + 1]
    assert table.scripts[0].closed.wait(WAIT_S)
    table.turns.close()


def test_the_engine_s_slot_is_kept_while_the_environment_works() -> None:
    table = Table(lambda: Script(2))
    assert len(table.turns.begin([request()])) == 1
    assert table.turns.held == 0
    passed = table.turns.take([report([10, 11, EOS], "stop")])
    assert [each.finish for each in passed] == [None]
    assert table.turns.held == 1
    said = table.turns.answered(table.answer(), PolicyVersion(1, 7))
    assert said is not None
    assert said.token_ids.tolist() == list(TOOL)
    assert said.runs == (VersionRun(version=PolicyVersion(1, 7), count=3),)
    assert said.finish is None
    assert table.turns.held == 1
    assert table.turns.ready(0) == []
    (again,) = table.turns.ready(1)
    assert again.resume_ids.tolist() == [10, 11, EOS, *TOOL]
    assert table.turns.held == 0
    assert table.scripts[0].heard == [f"10 11 {EOS}"]
    table.turns.close()


@pytest.mark.parametrize(("max_tokens", "tool"), [(5, [7, 8]), (6, [7, 8, 9])])
def test_observations_count_towards_the_longest_completion(max_tokens: int, tool: list[int]) -> None:
    table = Table(lambda: Script(2))
    table.turns.begin([request(max_tokens=max_tokens)])
    table.turns.take([report([10, 11, EOS], "stop")])
    said = table.turns.answered(table.answer(), V0)
    assert said is not None
    assert (said.token_ids.tolist(), said.finish) == (tool, "length")
    assert table.scripts[0].closed.wait(WAIT_S)
    table.turns.close()


def test_a_failed_environment_is_told_and_a_lost_rollout_forgotten() -> None:
    table = Table(lambda: Script(1, fails=True))
    table.turns.begin([request()])
    table.turns.take([report([EOS], "stop")])
    assert table.answer().step is None
    table.turns.drop([1])
    assert table.turns.held == 0
    assert table.turns.answered(Observed(1, Step("late", False)), V0) is None
    assert table.scripts[0].closed.wait(WAIT_S)
    table.turns.close()


def test_a_rollout_that_another_generator_began_is_replayed() -> None:
    table = Table(lambda: Script(3))
    resume = [10, EOS, *TOOL, 12]
    assert table.turns.begin([request(resume=resume)]) == []
    assert table.turns.answered(table.answer(), V0) is None
    (again,) = table.turns.ready(1)
    assert again.resume_ids.tolist() == resume
    table.turns.take([report([13, EOS], "stop")])
    said = table.turns.answered(table.answer(), V0)
    assert said is not None
    assert said.finish is None
    assert table.scripts[0].heard == [f"10 {EOS}", f"12 13 {EOS}"]
    table.turns.close()


def test_one_that_ended_its_turn_is_answered_and_one_that_differs_fails() -> None:
    table = Table(lambda: Script(3))
    table.turns.begin([request(resume=[10, EOS])])
    said = table.turns.answered(table.answer(), V0)
    assert said is not None
    assert said.token_ids.tolist() == list(TOOL)
    table.turns.begin([request(2, resume=[10, EOS, 1, 2, 3, 12])])
    assert table.answer().step is None
    table.turns.close()


def test_what_a_tool_wrote_has_no_loss() -> None:
    """Hand-computed: of four tokens the second and third are the tool's; the others have ratio 1 and advantage 2, and
    the rollout's sum of -4 is divided by its full length of 4."""
    batch = make_batch(groups=1, group_size=1, prompt_len=2, lengths=[4])
    logprobs = np.array([0, 0, -1.0, OBSERVED, OBSERVED, -2.0], np.float32)
    batch = replace(batch, behavior_logprobs=logprobs, advantages=np.array([2.0], np.float32))
    part = micro_batch(batch, 0, 1, torch.device("cpu"))
    assert part.loss_mask_N.tolist() == [True, False, False, True]
    assert part.behavior_logprobs_N.tolist() == [-1.0, 0.0, 0.0, -2.0]
    assert sampled_tokens(batch).tolist() == [True, False, False, True]
    assert token_staleness(batch)[1].tolist() == [True, False, False, True]
    current = torch.tensor([-1.0, -50.0, -0.1, -2.0], requires_grad=True)
    settings = LossSettings(correction="behavior_clip", aggregation="completion", clip_low=0.2, clip_high=0.2)
    terms = policy_loss(
        settings, current, part.behavior_logprobs_N, part.advantages_n, part.lengths_n, part.loss_mask_N, TOTALS
    )
    terms.policy.backward()
    assert terms.policy.item() == pytest.approx(-1.0)
    assert current.grad is not None
    assert current.grad.tolist() == pytest.approx([-0.5, 0.0, 0.0, -0.5])


TOTALS = Totals(rollouts=1, loss_tokens=2)
