"""Prompt sets of a recipe: several domains in one file, and the prompts of a cold start."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from r1async.config import ConfigError
from r1async.recipes.cold_start_data import cold_start_data
from r1async.recipes.prompts import cold_start_prompts, mixed_prompts
from r1async.swe.samples import make_samples

from tests.tiny_models import save_byte_model


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_domains_come_in_one_order_by_seed_and_rows_keep_their_columns(tmp_path):
    math = write(tmp_path / "math.jsonl", [{"prompt": f"{i}+1", "answer": i + 1, "level": i} for i in range(20)])
    talk = write(tmp_path / "talk.jsonl", [{"prompt": [{"role": "user", "content": f"hi {i}"}]} for i in range(10)])
    for seed in (0, 0, 1):
        (tmp_path / str(seed)).mkdir(exist_ok=True)
        mixed_prompts(tmp_path / str(seed), sources={"math": math, "talk": talk}, seed=seed)
    rows, others = (rows_of(tmp_path / seed / "prompts.jsonl") for seed in "01")
    assert rows != others
    assert sorted(map(str, rows)) == sorted(map(str, others))
    assert {"prompt": "3+1", "answer": 4, "level": 3, "domain": "math"} in rows
    assert {"prompt": [{"role": "user", "content": "hi 3"}], "answer": "", "domain": "talk"} in rows
    assert "".join(row["domain"][0] for row in rows) not in ("m" * 20 + "t" * 10, "t" * 10 + "m" * 20)
    assert json.loads((tmp_path / "0" / "card.json").read_text()) == {"rows": 30, "domains": {"math": 20, "talk": 10}}


def test_instances_are_asked_with_the_files_that_matter(tmp_path):
    make_samples(tmp_path / "swe")
    save_byte_model(tmp_path / "model")
    instances = tmp_path / "swe" / "instances.jsonl"
    gone = {**rows_of(instances)[0], "instance_id": "gone", "repo": "acme/none"}
    math = write(tmp_path / "math.jsonl", [{"prompt": "1+1", "answer": "2"}])
    mixed_prompts(
        tmp_path, sources={"math": math}, seed=0, instances=write(instances, [*rows_of(instances), gone]),
        repos=str(tmp_path / "swe" / "repos"), model=str(tmp_path / "model"), template="none", max_prompt_tokens=4096,
    )  # fmt: skip
    asked = {row["instance_id"]: row for row in rows_of(tmp_path / "prompts.jsonl") if row["domain"] == "swe"}
    assert len(asked) == 3
    for row in asked.values():
        assert row["source"] == "swe"
        assert "<<<<<<< SEARCH" in row["prompt"]
    assert json.loads((tmp_path / "card.json").read_text())["domains"] == {"math": 1, "swe": 3, "swe, not asked": 1}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"sources": {"swe": "x"}, "instances": "y", "model": "m"}, "are of the same domain"),
        ({"sources": {}, "instances": "y"}, "instances need a model"),
        ({"sources": {"math": "/no/such.jsonl"}}, "math: /no/such.jsonl does not exist"),
    ],
)
def test_mistakes_are_named(tmp_path, arguments, says):
    with pytest.raises(ConfigError) as error:
        mixed_prompts(tmp_path, seed=0, **arguments)
    assert says in str(error.value)


def test_a_row_without_a_prompt_is_named_by_line(tmp_path):
    math = write(tmp_path / "math.jsonl", [{"prompt": "1+1", "answer": "2"}, {"question": "2+2"}])
    with pytest.raises(ConfigError, match=r"math.jsonl:2: 'prompt' must be a non-empty string"):
        mixed_prompts(tmp_path, sources={"math": math}, seed=0)


def test_questions_of_a_cold_start_come_out_as_they_went_in(tmp_path):
    problems = [{"prompt": f"First line {i}.\nSecond line?", "answer": str(i)} for i in range(6)]
    shown = [{"prompt": f"Example {i}", "completion": f"<think>so {i}</think> <answer>{i}</answer>"} for i in range(3)]
    cold_start_prompts(
        tmp_path, problems=write(tmp_path / "problems.jsonl", problems),
        demonstrations=write(tmp_path / "shown_to.jsonl", shown), count=4, seed=0, shots=2, separator="<eos>",
        request="\n\nReflect.",
    )  # fmt: skip
    asked = rows_of(tmp_path / "shown.jsonl")
    assert len(asked) == 4
    assert all(row["prompt"].count("<eos>") == 2 and row["prompt"].count("## Question") == 3 for row in asked)
    assert asked[0]["prompt"].endswith("Second line?\n\n## Response\n")
    checked = rows_of(tmp_path / "checked.jsonl")
    assert [row["answer"] for row in checked] == [row["answer"] for row in asked]

    said = "<think>long and readable</think><answer>It is so. $\\boxed{3}$</answer>"
    sources = {}
    for name, rows in (("shown", asked[:2]), ("checked", checked[2:])):
        (tmp_path / name).mkdir()
        prompts = [[{"role": "user", "content": row["prompt"]}] for row in rows]
        pq.write_table(pa.table({"prompt": prompts, "completion": [said] * 2}), tmp_path / name / "train-0.parquet")
        sources[name] = str(tmp_path / name)
    cold_start_data(
        tmp_path, sources=sources, seed=0, before=["## Question\n"], after=["\n\n## Response", "\n\nReflect."]
    )
    made = rows_of(tmp_path / "data.jsonl")
    assert {row["prompt"] for row in made} <= {row["prompt"] for row in problems}
    assert len(made) == 4
    mark = "|special_token|"
    assert made[0]["completion"] == f"{mark}long and readable{mark}It is so. $\\boxed{{3}}$"
