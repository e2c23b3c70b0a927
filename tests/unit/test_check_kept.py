"""The second look at what rejection sampling kept: it finds every planted violation, and nothing in a clean set."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.check_kept import answer_in, check, main, words_alone

EXAM = "how many apples are left after three of seven apples were eaten by the dog"
Planted = dict[str, str]


def made(tmp_path: Path, **planted: str | int) -> Path:
    """A run's folder with four good rows; the second's prompt, completion, verdict or number as planted."""
    prompts = [f"what is {n} and {n}" for n in ("one", "two", "three", "four")]
    completions = [f"<think>it is twice the number {n}</think><answer>{n}</answer>" for n in (2, 4, 6, 8)]
    ordinals, verdict, finish = [0, 1, 2, 3], '{"accuracy": 1.0}', "stop"
    prompts[1] = str(planted.get("prompt", prompts[1]))
    completions[1] = str(planted.get("completion", completions[1]))
    ordinals[1] = int(planted.get("ordinal", 1))
    rows = [{"prompt": p, "answer": a} for p, a in zip(prompts, "2468", strict=True)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "exam.jsonl").write_text("\n".join(map(json.dumps, [{"question": EXAM}, {"question": "why not"}])))
    keep = {"parts": {"accuracy": 1.0}, "truncated": False, "min_language": 1.0, "max_paragraph_chars": 60,
            "code_in_thought": False, "per_prompt": 1}  # fmt: skip
    rule = {"against": {"exam": str(tmp_path / "exam.jsonl")}, "keys": ["question"], "ngram": 10, "short": 6}
    card = {"rows": 4, "settings": {"keep": keep, "decontaminate": rule}, "completions": {
        "sampled": 5, "kept": 4, "dropped": {"below:accuracy": 1},
        "by_domain": {"none": {"sampled": 5, "kept": 4, "dropped": {"below:accuracy": 1}}},
    }}  # fmt: skip
    reward = {"weights": {"accuracy": 1.0}, "domains": {}, "domain_key": "domain", "format": "r1_zero",
              "special_token": "|", "think_prefilled": False, "target_language": "en"}  # fmt: skip
    data = {"path": str(tmp_path / "rows.jsonl"), "eval_path": "", "prompt_key": "prompt", "answer_key": "answer"}
    (tmp_path / "card.json").write_text(json.dumps(card))
    (tmp_path / "config.yaml").write_text(json.dumps({"data": data, "reward": reward}))
    (tmp_path / "data").mkdir()
    (tmp_path / "samples").mkdir()
    kept = [
        {"prompt": [{"role": "user", "content": p}], "completion": c, "source": "reasoning", "ordinal": o, "member": m}
        for p, c, o, m in zip(prompts, completions, ordinals, range(4), strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(kept), tmp_path / "data" / "train-0.parquet")
    filed = [
        {"ordinal": o, "member": m, "text": c, "finish": finish, "total": 1.0, "parts": verdict}
        for c, o, m in zip(completions, ordinals, range(4), strict=True)
    ]
    filed[1]["finish"] = planted.get("finish", finish)
    filed[1]["parts"] = planted.get("verdict", verdict)
    pq.write_table(pa.Table.from_pylist(filed), tmp_path / "samples" / "part-0.parquet")
    return tmp_path


def test_a_clean_data_set_passes(tmp_path, capsys):
    assert main([str(made(tmp_path))]) == 0
    told = capsys.readouterr().out
    for what in ("right answer", "one language", "no long paragraph", "no code in the thought", "no duplicate",
                 "at most 1 of a prompt", "no overlap with an evaluation set"):  # fmt: skip
        assert f"{what}: 4 looked at, 0 violations" in told


@pytest.mark.parametrize(
    ("planted", "what"),
    [
        ({"completion": "<think>it is twice the number 2</think><answer>5</answer>"}, "right answer"),
        ({"completion": "no answer at all in here"}, "right answer"),
        ({"completion": "<think>it is 两倍 of it</think><answer>4</answer>"}, "one language"),
        ({"completion": f"<think>{'very ' * 13}long</think>\n\n<answer>4</answer>"}, "no long paragraph"),
        ({"completion": "<think>so\n```\n2+2\n```\n</think><answer>4</answer>"}, "no code in the thought"),
        ({"ordinal": 0}, "at most 1 of a prompt"),
        (
            {
                "prompt": "What is one, and one?",
                "completion": "<think>it is twice the number 2</think><answer>2</answer>",
            },
            "no duplicate",
        ),
        (
            {"prompt": "Many apples are left, after three of seven apples were eaten!"},
            "no overlap with an evaluation set",
        ),
        ({"prompt": "Why not?"}, "no overlap with an evaluation set"),
        ({"finish": "length"}, "ended by itself"),
        ({"verdict": '{"accuracy": 0.0}'}, "a verdict at full marks"),
        ({"verdict": '{"format": 1.0}'}, "a verdict at full marks"),
    ],
)
def test_a_planted_violation_is_found(tmp_path, capsys, planted, what):
    folder = made(tmp_path, **planted)
    assert what in check(folder).wrong
    assert main([str(folder)]) == 1
    assert f"{what}: " in capsys.readouterr().out


def test_a_card_that_does_not_add_up_is_found(tmp_path):
    folder = made(tmp_path)
    card = json.loads((folder / "card.json").read_text())
    card["completions"]["dropped"]["below:accuracy"] = 2
    (folder / "card.json").write_text(json.dumps(card))
    assert check(folder).wrong["the card's sums"] == ["all: 5 sampled, 6 told of"]


def test_texts_are_compared_by_words_numbers_and_operators():
    assert words_alone("5-4 - 0, well-known: −3x²!") == "5 - 4 - 0 well known - 3 x 2"
    assert words_alone("_中文_ a1") == "中 文 a 1"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{7}\boxed{", "7"),
        (r"\boxed{7}, no, \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        ("<answer>7</answer>", "7"),
        (r"\boxed{7", None),
        ("7", None),
    ],
)
def test_the_answer_is_in_the_last_box_that_is_closed(text: str, answer: str | None):
    assert answer_in(text) == answer
