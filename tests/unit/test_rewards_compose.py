"""Verdicts: weighted sums, abstentions, and functions of the user's own."""

import io
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from r1async.config import Config, ConfigError, RewardConfig, SamplingConfig
from r1async.rewards.compose import Grader, join
from r1async.rewards.worker import write_frame
from r1async.tasks.meta import Question
from r1async.types import Completion, FinishReason, Verdict

GOOD = "<think>1</think><answer>5</answer>"
QUESTION = Question(text="2+3=", answer="5", extra={"level": "3"})

FUNCTIONS = """
import numpy as np
from r1async.types import Verdict

def length(prompt, completion): return completion.num_tokens
def level(prompt, completion): return float(prompt.extra["level"])
def numpy_half(prompt, completion): return np.float32(0.5)
def yes(prompt, completion): return True
def nothing(prompt, completion): return None
def nan(prompt, completion): return float("nan")
def infinite(prompt, completion): return float("inf")
def word(prompt, completion): return "good"
def crash(prompt, completion): return 1 / 0
def detailed(prompt, completion): return Verdict(total=0.5, parts={"style": 0.25}, status="compile")
def numpy_detailed(prompt, completion): return Verdict(total=np.float32(0.5), parts={"style": np.float64(0.25)})
def nan_part(prompt, completion): return Verdict(total=1.0, parts={"style": np.float32("nan")})
def word_part(prompt, completion): return Verdict(total=1.0, parts={"style": "good"})
def unsure(prompt, completion): return Verdict.abstain("endpoint")
def huge(prompt, completion): return 1e308
number = 3
"""


@pytest.fixture(autouse=True)
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "own_rewards.py").write_text(FUNCTIONS)
    (tmp_path / "broken_rewards.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_rewards", None)


def verdict(weights: dict[str, float], text: str = GOOD, finish: FinishReason = "stop", question: Question = QUESTION):
    grader = Grader(RewardConfig(weights=weights, equivalence="exact"), before_slow=lambda: None)
    return grader.grade(question, Completion(text=text, num_tokens=17, finish=finish))


@pytest.mark.parametrize(
    ("text", "total", "parts"),
    [
        (GOOD, 1.2, {"accuracy": 1.0, "format": 1.0}),
        ("<answer>5</answer>", 1.0, {"accuracy": 1.0, "format": 0.0}),
        ("<think>1</think><answer>6</answer>", 0.2, {"accuracy": 0.0, "format": 1.0}),
        ("<answer>6</answer>", 0.0, {"accuracy": 0.0, "format": 0.0}),
        ("<think>1</think><answer>4</answer><answer>5</answer>", 1.0, {"accuracy": 1.0, "format": 0.0}),
        ("", 0.0, {"accuracy": 0.0, "format": 0.0}),
    ],
)
def test_parts_add_up_by_their_weights(text: str, total: float, parts: dict[str, float]):
    status = "ok" if parts["accuracy"] else "wrong"
    assert verdict({"accuracy": 1.0, "format": 0.2}, text) == Verdict(total=total, parts=parts, status=status)


def test_completion_that_was_cut_is_not_in_format():
    assert verdict({"accuracy": 1.0, "format": 0.2}, finish="length").parts == {"accuracy": 1.0, "format": 0.0}


def test_reference_that_is_empty_abstains():
    assert verdict({"accuracy": 1.0}, question=Question(text="?", answer=" ")) == Verdict.abstain("ungradable")


@pytest.mark.parametrize(("function", "value"), [("length", 17.0), ("level", 3.0), ("numpy_half", 0.5), ("yes", 1.0)])
def test_function_of_ones_own_is_a_part(function: str, value: float):
    name = f"own_rewards:{function}"
    assert verdict({"accuracy": 1.0, name: 0.5}) == Verdict(
        total=1.0 + 0.5 * value, parts={"accuracy": 1.0, name: value}, status="ok"
    )


@pytest.mark.parametrize(
    ("function", "status", "logged"),
    [
        ("nothing", "abstained", ""),
        ("unsure", "endpoint", ""),
        ("nan", "nan", "reward own_rewards:nan returned nan"),
        ("infinite", "nan", "reward own_rewards:infinite returned inf"),
        ("nan_part", "nan", "reward own_rewards:nan_part returned the part style=nan"),
        ("word_part", "error", "reward own_rewards:word_part raised ValueError: could not convert string to float"),
        ("crash", "error", "reward own_rewards:crash raised ZeroDivisionError: division by zero"),
        ("word", "error", "reward own_rewards:word returned str, wanted a number, a Verdict or None"),
    ],
)
def test_grader_that_does_not_know_abstains(function: str, status: str, logged: str, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.ERROR):
        result = verdict({"accuracy": 1.0, f"own_rewards:{function}": 1.0})
    assert (result.total, result.status, result.parts) == (None, status, {"accuracy": 1.0})
    assert logged in caplog.text
    assert bool(caplog.text) == bool(logged)


def test_part_without_weight_is_logged_and_cannot_spoil_the_rest():
    assert verdict({"accuracy": 1.0, "own_rewards:nan": 0.0, "own_rewards:level": 0.0}) == Verdict(
        total=1.0, parts={"accuracy": 1.0, "own_rewards:level": 3.0}, status="ok"
    )


def test_verdict_of_ones_own_keeps_its_parts_and_status():
    assert verdict({"own_rewards:detailed": 2.0}) == Verdict(
        total=1.0, parts={"own_rewards:detailed": 0.5, "own_rewards:detailed.style": 0.25}, status="compile"
    )


def test_verdict_of_numpy_scalars_can_be_written_to_the_pipe():
    result = verdict({"own_rewards:numpy_detailed": 2.0})
    assert result == Verdict(
        total=1.0, parts={"own_rewards:numpy_detailed": 0.5, "own_rewards:numpy_detailed.style": 0.25}
    )
    assert {type(value) for value in (result.total, *result.parts.values())} == {float}
    write_frame(io.BytesIO(), [0, result.total, dict(result.parts), result.status])


def test_answer_that_overwhelms_algebra_scores_zero_rather_than_abstaining():
    grader = Grader(RewardConfig(weights={"accuracy": 1.0}, equivalence="symbolic"), before_slow=lambda: None)
    hostile = Completion(text="<answer>10^{9999}!</answer>", num_tokens=9, finish="stop")
    assert grader.grade(QUESTION, hostile) == Verdict(total=0.0, parts={"accuracy": 0.0}, status="guard")


def test_sum_that_overflows_abstains():
    assert verdict({"own_rewards:huge": 1e10}) == Verdict.abstain("nan")


def test_function_that_always_fails_does_not_flood_the_log(caplog: pytest.LogCaptureFixture):
    grader = Grader(RewardConfig(weights={"own_rewards:crash": 1.0}), before_slow=lambda: None)
    for _ in range(250):
        grader.grade(QUESTION, Completion(text="", num_tokens=0, finish="stop"))
    assert len(caplog.records) == 3 + 2
    assert "250" not in caplog.text
    assert "(200 so far)" in caplog.text


def test_function_of_ones_own_is_announced_as_slow():
    announced = []
    grader = Grader(RewardConfig(weights={"format": 1.0, "own_rewards:yes": 1.0}), lambda: announced.append(1))
    grader.grade(QUESTION, Completion(text=GOOD, num_tokens=1, finish="stop"))
    assert announced == [1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "acuracy",
            r"reward\.weights\.acuracy: must be accuracy, format, code, swe, language, overlong",
        ),
        ("no_such_module:f", r"cannot import no_such_module: ModuleNotFoundError"),
        ("broken_rewards:f", r"cannot import broken_rewards: ModuleNotFoundError: No module named 'no_such_library'"),
        ("own_rewards:nope", r"own_rewards\.py has no 'nope'"),
        ("own_rewards:number", r"must be a function, got int"),
    ],
)
def test_part_that_does_not_exist_is_named(name: str, message: str):
    with pytest.raises(ConfigError, match=message):
        verdict({name: 1.0})


def settled(text: str, finish: FinishReason = "stop", num_tokens: int = 17, extra=None, answer: str = "5", **settings):
    reward = RewardConfig(**{"equivalence": "exact", "identify_sentences": False, **settings})
    question = Question(text="2+3=", answer=answer, extra=extra or {})
    completion = Completion(text=text, num_tokens=num_tokens, finish=finish)
    return Grader(reward, before_slow=lambda: None).grade(question, completion)


@pytest.mark.parametrize(
    ("num_tokens", "penalty"),
    [(0, 0.0), (60, 0.0), (61, -0.025), (70, -0.25), (80, -0.5), (100, -1.0), (101, -1.0)],
)
def test_overlong_is_daposs_equation_13(num_tokens: int, penalty: float):
    """L_max 100, L_cache 40: nothing up to 60 tokens, all of it from 100 on."""
    weights = {"accuracy": 1.0, "overlong": 0.5}
    verdict = settled(GOOD, num_tokens=num_tokens, weights=weights, overlong_max=100, overlong_cache=40)
    assert verdict.parts["overlong"] == pytest.approx(penalty)
    assert verdict.total == pytest.approx(1.0 + 0.5 * penalty)


def test_overlong_takes_its_maximum_from_sampling():
    config = Config(sampling=SamplingConfig(max_tokens=300))
    assert config.resolved_reward.overlong_max == 300
    assert Config(reward=RewardConfig(overlong_max=7)).resolved_reward.overlong_max == 7


def test_repetition_is_a_penalty_by_share():
    # Rows of two of "a b a b a b": ab ba ab ba ab, three of five were there before.
    verdict = settled("a b a b a b", weights={"repetition": 2.0}, repetition_row=2)
    assert verdict.parts == {"repetition": pytest.approx(-0.6)}
    assert verdict.total == pytest.approx(-1.2)


@pytest.mark.parametrize(
    ("truncated", "total", "status"),
    [("graded", 1.0, "ok"), ("mask", 1.0, "ok"), ("wrong", 0.0, "truncated"), ("abstain", 0.0, "truncated")],
)
def test_truncation_is_graded_or_wrong_by_setting(truncated: str, total: float, status: str):
    """Those that abstain do not come here while training; in an evaluation they are wrong."""
    verdict = settled(GOOD, finish="length", weights={"accuracy": 1.0}, truncated=truncated)
    assert (verdict.total, verdict.status) == (total, status)
    assert settled(GOOD, weights={"accuracy": 1.0}, truncated=truncated).total == 1.0


def test_language_is_a_part_with_its_share():
    text = "<think>so we add them 因此</think><answer>5</answer>"
    verdict = settled(text, weights={"accuracy": 1.0, "language": 0.5})
    assert verdict.parts["language"] == pytest.approx(4 / 6)
    assert verdict.parts["language.share"] == pytest.approx(4 / 6)
    assert verdict.total == pytest.approx(1 + 0.5 * 4 / 6)


def test_language_of_a_row_goes_before_the_settings():
    text = "<think>so we add them 因此</think>"
    found = settled(text, weights={"language": 1.0}, extra={"target_language": "zh"})
    assert found.total == pytest.approx(2 / 6)
    unknown = settled(text, weights={"language": 1.0}, extra={"target_language": "xx"})
    assert (unknown.total, unknown.status) == (None, "ungradable")


def test_thought_without_words_leaves_the_part_out_of_the_sum():
    wordless = settled(GOOD, weights={"accuracy": 1.0, "language": 0.5})
    assert wordless == Verdict(total=1.0, parts={"accuracy": 1.0})
    alone = settled(GOOD, weights={"language": 1.0})
    assert (alone.total, alone.status) == (None, "no_words")


def test_prefilled_tag_of_a_row_goes_before_the_settings():
    inside = "1</think><answer>5</answer>"
    for told, good in (("true", 1.0), ("<think>", 1.0), ("false", 0.0), ("", 0.0)):
        assert settled(inside, weights={"format": 1.0}, extra={"prefilled_open_tag": told}).total == good


def test_reference_may_be_boxed():
    assert settled("<answer>1/2</answer>", answer="\\boxed{\\frac{1}{2}}", weights={"accuracy": 1.0}).total == 1.0


def test_sixteen_power_towers_cost_no_more_algebra_than_sixteen_integers():
    """512 rollouts: what is slow is announced, and a tower never gets so far."""

    def slow_ones(hard: str) -> int:
        announced: list[int] = []
        grader = Grader(RewardConfig(weights={"accuracy": 1.0}, equivalence="symbolic"), lambda: announced.append(1))
        for i in range(512):
            answer = hard.replace("N", str(i)) if i % 32 == 0 else str(i)
            completion = Completion(text=f"\\boxed{{{answer}}}", num_tokens=9, finish="stop")
            grader.grade(Question(text="?", answer="7"), completion)
        return len(announced)

    assert slow_ones("9^{9^{9^{N}}}") == slow_ones("N") == 0


def test_part_without_weight_does_not_make_an_abstention_a_zero():
    alone = settled(GOOD, weights={"language": 1.0, "accuracy": 0.0})
    assert (alone.total, alone.status, alone.parts) == (None, "no_words", {"accuracy": 1.0})
    assert settled(GOOD, weights={"accuracy": 0.0}).total == 0.0
    rules = Verdict(total=None, status="no_words")
    for judge in (Verdict(total=0.0, parts={"judge": 1.0}), Verdict(total=None, status="infra_error")):
        joined = join({"rules": rules, "judge": judge}, weightless={"judge"})
        assert (joined.total, joined.status) == (None, "no_words")
    assert join({"rules": Verdict(total=0.0)}, weightless={"rules"}).total == 0.0
    assert join({"rules": rules, "judge": Verdict(total=1.0)}).total == 1.0


BENCHMARKS = {
    "math": ("\\boxed{5}", "5", {}),
    "choice": ("Answer: A", "A", {"options": '["5", "6"]'}),
    "ifeval": ("5", "", {"instructions": '{"names": ["punctuation:no_comma"], "arguments": [{}]}'}),
}


@pytest.mark.parametrize("part", BENCHMARKS)
def test_benchmarks_part_keeps_to_the_setting_for_truncation(part: str):
    text, answer, extra = BENCHMARKS[part]

    def total(finish: FinishReason, truncated: str) -> tuple[float | None, str]:
        found = settled(text, finish, extra=extra, answer=answer, weights={part: 1.0}, truncated=truncated)
        return found.total, found.status

    assert total("length", "graded") == total("stop", "wrong") == (1.0, "ok")
    assert total("length", "wrong") == total("length", "abstain") == (0.0, "truncated")


def test_instructions_are_checked_on_the_response_behind_a_prefilled_thought():
    _, answer, extra = BENCHMARKS["ifeval"]
    for text, prefilled, total in (("hm", False, 1.0), ("hm", True, 0.0), ("a, b</think>hm", True, 1.0)):
        found = settled(text, extra=extra, answer=answer, weights={"ifeval": 1.0}, think_prefilled=prefilled)
        assert found.total == total
