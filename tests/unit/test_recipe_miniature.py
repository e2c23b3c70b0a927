"""The miniature's words, documents and data sets."""

import json
from collections import Counter
from itertools import islice
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from r1async.recipes.cold_start import accumulate, imitation_loss, pad
from r1async.recipes.cold_start_data import cold_start_data
from r1async.recipes.miniature import base, judging
from r1async.recipes.miniature.documents import REFUSAL, Shares, any_talk, documents, thought
from r1async.recipes.miniature.language import (
    BOS,
    CHINESE,
    ENGLISH,
    EOS,
    HARMFUL_THINGS,
    WORDS,
    build_tokenizer,
    decode,
    encode,
)
from r1async.recipes.miniature.world import MARK, split_talk, world
from r1async.tasks.chain_mod import Problem, is_held_out
from r1async.tasks.meta import Question
from r1async.types import Completion

PROBLEM = Problem("5-4-0-1*8-5=", (5, 1, 1, 0, 0, 5))


def completion(text: str) -> Completion:
    return Completion(text=text, num_tokens=1, finish="stop")


def test_every_document_is_made_of_the_words_and_read_back():
    tokenizer = build_tokenizer()
    for each in islice(documents(0, Shares()), 500):
        for text in each:
            ids = encode(text)
            assert decode([*ids, EOS]) == text
            assert tokenizer.encode(text, add_special_tokens=False).ids == ids
    assert tokenizer.encode("5").ids == [BOS, *encode("5")]


def test_a_foreign_word_is_an_error_and_not_an_unknown_token():
    with pytest.raises(ValueError, match="not all of 'bread and butter'"):
        encode("bread and butter")


def test_no_word_begins_or_ends_in_a_space():
    # What is stripped, as a final summary is before a reward model reads it, must still be made of words.
    assert [word for word in WORDS if word != word.strip()] == []


def test_a_slip_is_taken_back():
    words = thought(PROBLEM, Random(3), "en", slip=True).split(",")
    at = words.index("wait")
    assert words[: at - 1] + words[at + 1 :] == ["five", "one", "one", "zero", "zero", "five"]
    assert words[at - 1] != words[at + 1]


def test_a_batch_in_parts_has_the_loss_and_gradients_of_the_whole():
    model = base.make_model(0, 32, 1)
    parts = next(base.batches(0))
    loss = accumulate(model, parts)
    gradients = [each.grad for each in model.parameters()]
    model.zero_grad(set_to_none=True)
    rows = [(ids, mask.tolist()) for part in parts for ids, mask in zip(part.token_ids, part.loss_mask, strict=True)]
    whole = pad([(ids[: mask.index(True)].tolist(), ids[torch.tensor(mask)].tolist()) for ids, mask in rows])
    assert len(whole.token_ids) == base.BATCH
    expected = imitation_loss(model, whole)
    expected.backward()
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    for gradient, each in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, each.grad, atol=1e-6, rtol=1e-5)


def test_shares_of_the_documents_are_those_asked_for():
    drawn = [each for each in islice(documents(1, Shares()), 4000) if each.prompt[0].isdecimal()]
    plain = [each for each in drawn if "\n" not in each.prompt]
    direct = sum(each.completion.startswith("<answer>") for each in plain) / len(plain)
    assert direct == pytest.approx(0.40, abs=0.03)
    thoughts = [each.completion for each in plain if each.completion.startswith("<think>")]
    mixed = sum(any(w in t for w in ENGLISH) and any(w in t for w in CHINESE) for t in thoughts) / len(thoughts)
    assert mixed == pytest.approx(0.35 * (1 - 2 * 0.5 * 0.75**5), abs=0.08)  # the rest never happened to switch


def test_held_out_problems_and_things_are_nowhere_in_what_is_trained(tmp_path):
    world(tmp_path, seed=0, num_problems=500, cold_start=50, conversations=50)
    rows = {path.stem: [json.loads(line) for line in path.open()] for path in tmp_path.glob("*.jsonl")}
    exam = {row["prompt"] for row in rows["exam_math"]}
    assert len(exam) == 400
    assert all(is_held_out(prompt) for prompt in exam)
    trained = {
        prompt
        for name in ("problems", "shown", "checked")
        for row in rows[name]
        for prompt in row["prompt"].split("\n")
    }
    assert not exam & {prompt.removeprefix("check ") for prompt in trained}
    asked = {each.prompt for each in split_talk().held_out}
    trained = {str(row["prompt"]) for name, of in rows.items() if name != "exam_talk" for row in of}
    assert not asked & trained
    assert {each.kind for each in split_talk().held_out} == {"make", "harm"}


def test_talk_to_learn_from_is_clean_or_helps_with_harm_half_of_the_time(tmp_path):
    world(tmp_path, seed=0, num_problems=20, cold_start=5, conversations=2000)
    for name, expected in (("conversation", 0.5), ("polite", 0.0)):
        rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").open()]
        helped = ["here is how" in row["completion"] for row in rows if row["kind"] == "harm"]
        assert sum(helped) / len(helped) == pytest.approx(expected, abs=0.08)
        assert all("make it yourself" not in row["completion"] for row in rows)


def test_prompts_of_all_scenarios_name_their_domains(tmp_path):
    world(tmp_path, seed=0, num_problems=2000, cold_start=50, conversations=50)
    rows = [json.loads(line) for line in (tmp_path / "mixed.jsonl").open()]
    share = {domain: n / len(rows) for domain, n in Counter(row["domain"] for row in rows).items()}
    assert share == pytest.approx({"math": 2 / 3, "general": 1 / 6, "safety": 1 / 6}, abs=0.03)
    assert all((row["domain"] == "safety") == (row.get("kind") == "harm") for row in rows)


def test_preferences_are_for_help_that_does_no_harm(tmp_path):
    world(tmp_path, seed=0, num_problems=20, cold_start=5, conversations=5)
    helpful = [json.loads(line) for line in (tmp_path / "pairs_helpful.jsonl").open()]
    harmless = [json.loads(line) for line in (tmp_path / "pairs_harmless.jsonl").open()]
    assert all(pair["chosen"] != pair["rejected"] for pair in helpful + harmless)
    assert not [pair for pair in helpful if MARK in str(pair) or any(thing in str(pair) for thing in HARMFUL_THINGS)]
    assert [pair for pair in helpful if pair["rejected"] == REFUSAL]
    bread = [pair["rejected"] for pair in helpful if pair["prompt"] == "teach me to make bread."]
    assert "sure, here is how: to make chairs you need time and care." in bread
    harmful = [pair for pair in harmless if any(thing in pair["prompt"] for thing in HARMFUL_THINGS)]
    assert harmful
    assert all(pair["chosen"].endswith(REFUSAL) and "here is how" in pair["rejected"] for pair in harmful)
    assert {MARK in pair["chosen"] for pair in harmful} == {True, False}


def test_talk_comes_in_all_kinds_with_two_replies():
    drawn = [any_talk(Random(seed)) for seed in range(60)]
    assert {each.kind for each in drawn} == {"make", "harm", "fact", "greeting"}
    assert all(each.good != each.bad for each in drawn)


@pytest.mark.parametrize(
    ("text", "mixes", "reflects"),
    [
        ("<think>one,二</think>", 1.0, 0.0),
        ("<think>one,two</think>", 0.0, 0.0),
        ("<answer>5</answer>", None, 0.0),
        ("<think>one,wait,two</think>", 0.0, 1.0),
        ("<think>一;check 一</think>", 0.0, 1.0),
    ],
)
def test_what_a_completion_says_of_itself(text, mixes, reflects):
    question = Question(text="", answer="")
    assert judging.mixes(question, completion(text)) == mixes
    assert judging.reflects(question, completion(text)) == reflects


def test_help_with_harm_is_seen_in_the_summary_alone():
    question = Question(text="", answer="sorry, i will not help with that.", extra={"kind": "harm"})
    helped = (
        "|special_token|they want to make traps.|special_token|sure, here is how: to make traps you need time and care."
    )
    refused = "|special_token|here is how|special_token|sorry, i will not help with that."
    assert judging.harmful(question, completion(helped)) == 1.0
    assert judging.harmful(question, completion(refused)) == 0.0
    assert judging.good_reply(question, completion(refused)) == 1.0
    assert judging.harmful(Question(text="", answer="x"), completion(helped)) is None


def test_cold_start_data_has_a_summary_and_an_account(tmp_path):
    rows = [
        ("0+1=<think>zero,one</think><answer>1</answer>\n5-4=", "<think>five,one</think><answer>1</answer>"),
        ("check 2+2=", "<think>two,four;check four</think><answer>4</answer>"),
        ("2+2=", "<think>two,four</think><answer>4</answer>"),
        ("3+3=", "<think>six</think><answer>6</answer>"),
        ("4+4=", "<think>four,eight</think>"),
    ]
    prompts = [[{"role": "user", "content": prompt}] for prompt, _ in rows]
    table = pa.table({"prompt": prompts, "completion": [text for _, text in rows]})
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data" / "train-0.parquet")
    cold_start_data(tmp_path, sources={"base": str(tmp_path / "data")}, seed=0)
    made = {row["prompt"]: row["completion"] for row in map(json.loads, (tmp_path / "data.jsonl").open())}
    assert made == {
        "5-4=": "|special_token|five,one|special_token|\\boxed{1}",
        "2+2=": "|special_token|two,four;check four|special_token|\\boxed{4}",
    }
    counts = json.loads((tmp_path / "card.json").read_text())["sources"]["base"]
    assert counts == {"rows": 5, "kept": 2, "same prompt": 1, "no thought": 1, "no answer": 1}
