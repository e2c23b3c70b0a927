"""Rejection sampling's filters and selection: what is kept, why the rest is not, and that order means nothing."""

from __future__ import annotations

import json
import os
import random
import re
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from r1async.config import Config, ConfigError, RewardConfig, load_config
from r1async.config_finetune import SftDataConfig
from r1async.config_sample import KeepConfig, sample_problems, shares_of
from r1async.finetune.rows import Answered, sft_rows
from r1async.sample.card import make_card, markdown
from r1async.sample.filters import Graded, fingerprint, longest_paragraph, why_not
from r1async.sample.finish import finish
from r1async.sample.identity import open_parts
from r1async.sample.parts import Parts
from r1async.sample.prompts import open_asked, sampling_config
from r1async.sample.select import select

from tests.tiny_models import save_tiny

GOOD = "<think>1,2</think><answer>2</answer>"


def graded(ordinal: int = 0, member: int = 0, text: str = GOOD, **fields: object) -> Graded:
    told: dict = {"tokens": 9, "finish": "stop", "total": 1.0, "parts": {"accuracy": 1.0}, "status": "ok"} | fields
    return Graded(ordinal=ordinal, member=member, text=text, **told)


@pytest.mark.parametrize(
    ("completion", "keep", "reason"),
    [
        (graded(), {}, None),
        (graded(total=None, parts={}, status="lost"), {}, "abstained"),
        (graded(finish="length"), {}, "truncated"),
        (graded(finish="length"), {"truncated": True}, None),
        (graded(parts={"accuracy": 0.0}), {}, "below:accuracy"),
        (graded(parts={"format": 1.0}), {}, "not_graded"),
        (graded(parts={"judge": 0.4}), {"parts": {"accuracy": 1.0, "judge": 0.5}}, "below:judge"),
        (graded(parts={"judge": 0.6}), {"parts": {"accuracy": 1.0, "judge": 0.5}}, None),
        (graded(parts={"accuracy": 1.0, "language": 0.8}), {"min_language": 0.9}, "mixed_language"),
        (graded(parts={"accuracy": 1.0, "language": 0.9}), {"min_language": 0.9}, None),
        (graded(text="<think>" + "a" * 50 + "\n \nbb</think>2"), {"max_paragraph_chars": 56}, "long_paragraph"),
        (graded(text="<think>" + "a" * 50 + "\n \nbb</think>2"), {"max_paragraph_chars": 57}, None),
        (graded(text="<think>```python\n1\n```</think>2"), {}, "code_in_thought"),
        (graded(text="<think>```python\n1\n```</think>2"), {"code_in_thought": True}, None),
        (graded(text="<think>easy</think>```python\n1\n```"), {}, None),  # in the answer it may be
    ],
)
def test_the_first_reason_that_holds_is_given(completion, keep, reason):
    assert why_not(completion, KeepConfig(**keep), RewardConfig(format="think")) == reason


def test_longest_paragraph_is_between_empty_lines():
    assert longest_paragraph("abc\n\nde\nfg\n \nh") == 5


def test_fingerprint_is_blind_to_case_spacing_and_punctuation():
    assert fingerprint("What is 1+1?", "It's  2.") == fingerprint("what is 1 + 1", "it s 2")
    assert fingerprint("What is 1+1?", "2") != fingerprint("What is 1-1?", "2")
    assert fingerprint("a b", "c") != fingerprint("a", "b c")


def test_shares_add_up():
    config = load_config(
        None, ["model.path=m", "data.path=d", "sample.mix={a: {share: 1}, b: {share: 1}, c: {share: 1}}"]
    )
    assert shares_of(config.sample.mix, 100) == {"a": 33, "b": 34, "c": 33}
    assert sum(shares_of(config.sample.mix, 7).values()) == 7


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def settings(folder: Path, *more: str) -> Config:
    model = save_tiny(folder / "model", hidden=32, mlp=48)
    for weights in model.glob("*.safetensors"):
        os.utime(weights, ns=(1, 1))  # the same, however often they are made
    rows = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(4) for b in range(3)]
    rows = [row | {"of": "zero"} if row["prompt"].startswith("0") else row for row in rows]
    rows += [{"prompt": "0+0=", "answer": "0"}]  # a duplicate of the first row
    data = write(folder / "data.jsonl", rows)
    exam = write(folder / "exam.jsonl", [{"question": "3+2="}, {"question": "9+9+9+9+9+9="}])
    chat = write(
        folder / "chat.jsonl",
        [
            {"prompt": f"{i} {i}=" if i % 2 else f"{i}=", "completion": "9+9+9+9+9+9" if i == 3 else "x"}
            for i in range(12)
        ],
    )
    overrides = [
        f"model.path={model}", f"data.path={data}", "data.template=none", "data.max_prompt_tokens=16",
        f"runs_dir={folder}", "name=run", "sampling.max_tokens=16", "sample.samples=3",
        f"sample.decontaminate.against.exam={exam}",
        f"sample.mix.chat={{path: {chat}, thought: sampled, simple_words: 1}}",
        "sample.ratio=2.0", "sample.thought_request='?'", *more,
    ]  # fmt: skip
    return sampling_config(load_config(None, overrides))


def completions(config: Config) -> list[list[Graded]]:
    """By prompt: the second and third of three are right, and the third says what the second says."""
    asked = open_asked(config)
    made = []
    for number in range(asked.total):
        if isinstance(asked.prompt(number), str):
            continue
        texts = ["<think>0</think><answer>1</answer>", f"<think>{number}</think><answer>2</answer>"]
        texts.append(texts[1].replace("><", "> <"))
        made.append([
            graded(number, member, text, parts={"accuracy": float(member > 0)}, total=float(member > 0))
            for member, text in enumerate(texts)
        ])  # fmt: skip
    return made


def selected(config: Config, prompts: list[list[Graded]], cut: int, name: str) -> tuple[list[dict], dict]:
    """Rows of the data set and the card, from completions that came in this order, in files of `cut` prompts."""
    folder = config.run_dir / name
    parts = Parts(folder, {})
    for start in range(0, len(prompts), cut):
        parts.write([each for prompt in prompts[start : start + cut] for each in prompt])
    asked = open_asked(config)
    account = select(config, asked, parts, folder / "data")
    card = make_card(config, asked, account, folder / "data")
    return pq.read_table(folder / "data").to_pylist(), card


def test_kept_rows_pass_every_filter_again_and_everything_is_accounted_for(tmp_path):
    config = settings(tmp_path)
    rows, card = selected(config, completions(config), 5, "one")
    kept = [row for row in rows if row["source"] == "reasoning"]
    # 13 prompts, one of them in the exam; 36 completions: a third wrong, the third of each like the second. Of the
    # last row, which is the first again, the right one names another number and is no duplicate.
    assert card["prompts"] == {"all": 13, "sampled": 12, "left_out": {"contaminated:exam": 1}}
    assert card["completions"]["dropped"] == {"below:accuracy": 12, "duplicate": 12}
    assert card["completions"]["sampled"] == 36 == card["completions"]["kept"] + 24
    assert len(kept) == card["completions"]["kept"] == 12
    # Checked again by other code: no row of the exam, one a prompt, an answer in its tags, never twice.
    texts = [re.sub(r"\W", "", row["prompt"][0]["content"] + row["completion"]) for row in kept]
    assert len(set(texts)) == 12
    assert all(row["prompt"][0]["content"] != "3+2=" for row in kept)
    assert len({row["ordinal"] for row in kept}) == 12
    assert all(re.fullmatch(r"<think>\d+</think> ?<answer>2</answer>", row["completion"]) for row in kept)


def test_mixed_in_rows_keep_the_ratio_and_think_where_they_should(tmp_path):
    config = settings(tmp_path)
    rows, card = selected(config, completions(config), 5, "one")
    mixed = [row for row in rows if row["source"] == "chat"]
    assert len(mixed) == 6  # 12 / 2
    assert 0 < sum("<think>" in row["completion"] for row in mixed) < 6
    told = card["mixed_in"]["chat"]
    assert told == {
        "rows": 12, "contaminated:exam": 1, "taken": 6, "beyond_the_ratio": 5,
        "with_thought": sum("<think>" in row["completion"] for row in mixed),
        "without_thought": sum("<think>" not in row["completion"] for row in mixed),
    }  # fmt: skip
    for row in mixed:
        simple = len(row["prompt"][0]["content"].split()) <= 1
        assert ("<think>" in row["completion"]) != simple
        assert simple or re.fullmatch(r"<think>\d+</think><answer>x</answer>", row["completion"])
    assert "| exam | 2 | 2 |" in markdown(card)


def test_order_of_arrival_and_size_of_files_change_nothing(tmp_path):
    config = settings(tmp_path)
    prompts = completions(config)
    expected = selected(config, prompts, 100, "one")
    shuffled = random.Random(0).sample(prompts, len(prompts))
    got = selected(config, shuffled, 3, "two")
    assert got[0] == expected[0]
    assert got[1]["sha256"] == expected[1]["sha256"]


def test_other_filters_need_no_new_completions(tmp_path):
    config = settings(tmp_path)
    prompts = completions(config)
    strict = replace(config, sample=replace(config.sample, keep=KeepConfig(max_paragraph_chars=5)))
    rows, card = selected(strict, prompts, 100, "one")
    assert card["completions"]["dropped"] == {"below:accuracy": 12, "long_paragraph": 24}
    assert rows == []


def test_another_evaluation_set_needs_no_new_completions(tmp_path):
    config = settings(tmp_path)
    prompts = completions(config)
    more = write(tmp_path / "more.jsonl", [{"question": "1+2="}, {"question": "0+1="}])
    wider = replace(config.sample.decontaminate, against={**config.sample.decontaminate.against, "more": str(more)})
    rows, card = selected(replace(config, sample=replace(config.sample, decontaminate=wider)), prompts, 100, "one")
    assert card["prompts"] == {"all": 13, "sampled": 10, "left_out": {"contaminated:exam": 1, "contaminated:more": 2}}
    assert not {"1+2=", "0+1="} & {row["prompt"][0]["content"] for row in rows}


def test_fine_tuning_reads_the_data_set(tmp_path):
    config = settings(tmp_path)
    rows, _ = selected(config, completions(config), 100, "one")
    read = sft_rows(SftDataConfig(), str(config.run_dir / "one" / "data"), "data.path")
    assert [row.completion for row in map(read.__getitem__, range(len(read))) if isinstance(row, Answered)] == [
        row["completion"] for row in rows
    ]


def test_completions_of_other_settings_are_refused_by_name(tmp_path):
    Parts(tmp_path / "samples", {"seed": 0, "sample.samples": 4})
    with pytest.raises(ConfigError, match=r"completions of other settings: sample.samples was 4 and is 8. Set name"):
        Parts(tmp_path / "samples", {"seed": 0, "sample.samples": 8})


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("sample.prompts=5", "sample.prompts"),  # the rows after the task's have other numbers then
        ("reward.format=think", "reward.format"),
        ("reward.target_language=zh", "reward.target_language"),
        ("reward.equivalence=exact", "reward.equivalence"),
        ("reward.domains={x: {weights: {accuracy: 1.0}}}", "reward.domains"),
        ("sample.mix.chat.completion_key=prompt", "mixed"),
    ],
)
def test_completions_are_not_those_of_other_settings(tmp_path, override, named):
    config = settings(tmp_path)
    open_parts(config)
    open_parts(config)
    with pytest.raises(ConfigError, match=rf"other settings: {re.escape(named)} was "):
        open_parts(settings(tmp_path, override))


def test_verdicts_are_not_those_of_another_judge_or_of_other_instances(tmp_path):
    instances = write(tmp_path / "instances.jsonl", [{"instance_id": "a"}])
    domains = "reward.domains={open: {weights: {judge: 1.0}}, swe: {weights: {swe: 1.0}}}"
    asked = [domains, "reward.judge.endpoint.url=http://h/v1", f"reward.swe.instances={instances}"]
    open_parts(settings(tmp_path, *asked, "reward.judge.endpoint.model=one"))
    # How it is reached decides nothing.
    open_parts(settings(tmp_path, *asked, "reward.judge.endpoint.model=one", "reward.judge.endpoint.url=http://i/v1"))
    with pytest.raises(ConfigError, match=r"reward\.judge\.endpoint\.model was 'one' and is 'two'"):
        open_parts(settings(tmp_path, *asked, "reward.judge.endpoint.model=two"))
    with pytest.raises(ConfigError, match=r"reward\.judge\.sees was 'summary' and is 'answer'"):
        open_parts(settings(tmp_path, *asked, "reward.judge.endpoint.model=one", "reward.judge.sees=answer"))
    write(instances, [{"instance_id": "b"}])
    with pytest.raises(ConfigError, match=r"reward\.swe\.instances was "):
        open_parts(settings(tmp_path, *asked, "reward.judge.endpoint.model=one"))


def test_drops_are_counted_by_domain(tmp_path):
    config = settings(tmp_path, "sample.ratio=1.0", "reward.domain_key=of")
    told = selected(config, completions(config), 5, "one")[1]
    by_domain = told["completions"]["by_domain"]
    # Three rows say that they are of `zero`, ten nothing, and the exam has one of those.
    assert {name: each["sampled"] for name, each in by_domain.items()} == {"none": 27, "zero": 9}
    for each in by_domain.values():
        assert each["dropped"]["below:accuracy"] == each["dropped"]["duplicate"] == each["sampled"] // 3
        assert each["sampled"] == each["kept"] + sum(each["dropped"].values())
    assert sum(each["kept"] for each in by_domain.values()) == told["completions"]["kept"]
    assert "| kept | " in markdown(told).partition("By domain:")[2]


def test_completions_are_not_those_of_other_weights_or_another_order_of_sources(tmp_path):
    more = f"sample.mix.before={{path: {write(tmp_path / 'b.jsonl', [{'prompt': '1=', 'completion': 'x'}])}}}"
    config = settings(tmp_path, more)
    open_parts(config)
    mix = dict(reversed(config.sample.mix.items()))
    with pytest.raises(ConfigError, match="other settings: mixed was "):
        open_parts(replace(config, sample=replace(config.sample, mix=mix)))
    for weights in Path(config.model.path).glob("*.safetensors"):
        os.utime(weights, ns=(0, 0))
    with pytest.raises(ConfigError, match="other settings: model was "):
        open_parts(config)


def test_completions_are_those_of_the_file_and_not_of_its_name(tmp_path):
    rows = write(tmp_path / "rows.jsonl", [{"prompt": "1=", "answer": "1"}])
    config = settings(tmp_path, "data.task=file", f"data.path={rows}")
    open_parts(config)
    moved = rows.rename(tmp_path / "moved.jsonl")
    open_parts(replace(config, data=replace(config.data, path=str(moved))))
    write(rows, [{"prompt": "1=", "answer": "2"}])
    with pytest.raises(ConfigError, match=r"other settings: content of data\.path was "):
        open_parts(config)


def test_prompts_may_be_added_where_nothing_is_numbered_after_them(tmp_path):
    open_parts(settings(tmp_path, "sample.mix.chat.thought=none", "sample.prompts=4"))
    open_parts(settings(tmp_path, "sample.mix.chat.thought=none", "sample.prompts=6"))


def test_every_held_out_row_counts_not_only_those_that_are_asked(tmp_path):
    exam = write(tmp_path / "held.jsonl", [{"prompt": "9=", "answer": "9"}, {"prompt": "1+2=", "answer": "3"}])
    asked = open_asked(settings(tmp_path, f"data.eval_path={exam}", "eval.prompts=1"))
    assert asked.overlap.texts["held_out"] == 2
    assert asked.overlap.find("1 + 2 =", prompt=True) == "held_out"


def test_a_thought_out_of_an_evaluation_set_is_not_put_before_a_row(tmp_path):
    config = settings(tmp_path)
    prompts = [
        [replace(each, text=each.text.replace("<think>", "<think>9+9+9+9+9+9=")) for each in prompt]
        for prompt in completions(config)
    ]
    of_the_task = open_asked(config).main
    rows, card = selected(
        config,
        [p for p in completions(config) if p[0].ordinal < of_the_task]
        + [p for p in prompts if p[0].ordinal >= of_the_task],
        100,
        "one",
    )
    mixed = [row for row in rows if row["source"] == "chat"]
    assert mixed
    assert not any("<think>" in row["completion"] for row in mixed)
    assert card["mixed_in"]["chat"]["thought_missing"] > 0


def test_a_torn_file_is_not_there(tmp_path):
    parts = Parts(tmp_path, {})
    parts.write([graded(3), graded(3, 1)])
    (tmp_path / ".part-000001.parquet.tmp").write_bytes(b"half")
    again = Parts(tmp_path, {})
    assert again.done() == {3}
    assert [[each.member for each in prompt] for prompt in again.rows()] == [[0, 1]]


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("sample.keep.parts={judge: 0.5}", "sample.keep.parts.judge: reward.weights has no such part; a weight of 0"),
        ("sample.keep.min_language=0.9", "needs the part language in reward.weights"),
        ("sample.mix.x={}", "sample.mix.x.path: must be set"),
        ("sample.mix.x={path: a, share: 0}", "sample.mix.x.share: must be above 0"),
        ("sample.decontaminate.ngram=4", "sample.decontaminate.short: 6 must be at most"),
        ("data.task=chain-mod", "chain-mod has no end; set how many prompts"),
    ],
)
def test_what_cannot_be_sampled_is_named(override, problem):
    config = load_config(None, ["model.path=m", "data.path=d", override])
    assert any(problem in line for line in sample_problems(config))


def test_a_data_set_without_rows_is_a_failure_that_says_why(tmp_path, capsys):
    config = settings(tmp_path, "sample.mix={}")
    wrong = [[replace(each, parts={"accuracy": 0.0}) for each in prompt] for prompt in completions(config)]
    open_parts(config).write([each for prompt in wrong for each in prompt])
    assert finish(config) == 1
    assert "no completion was kept (below:accuracy 36)" in capsys.readouterr().err
