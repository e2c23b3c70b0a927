"""Fine-tuning data: what a row becomes, and what a bad row is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import Dataset
from r1async.config import ConfigError
from r1async.config_finetune import BaseModelConfig, PairDataConfig, SftConfig, SftDataConfig
from r1async.config_rewards import RewardModelConfig
from r1async.finetune.job import make_stores, open_stores, sft_job
from r1async.finetune.render import Renderer
from r1async.finetune.rows import Answered, Conversation, PlainText, pair_rows, sft_rows
from r1async.finetune.store import encode_rows, make_store, open_store
from r1async.models.loading import load_scorer
from r1async.rewards.classifier import Classifier
from r1async.tasks.templates import apply_template
from r1async.tasks.tokenizer import load_tokenizer

from tests.tiny_models import VOCABULARY, save_tiny, tiny_tokenizer

CHAT = (
    "{% for m in messages %}{{ '<bos>' if m['role'] == 'user' else '' }}{{ m['content'] }}"
    "{{ '<eos>' + ';' if m['role'] == 'assistant' else '=' }}{% endfor %}"
)
"""A question ends in =, an answer in <eos> and then a ; that nobody has to write."""
MARKED = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<eos>"
    "{% endgeneration %};{% else %}<bos>{{ m['content'] }}={% endif %}{% endfor %}"
)
FORGETFUL = (
    "{% for m in messages %}{{ m['content'] if loop.last or m['role'] == 'user' else '?' }}"
    "{{ '<eos>' if m['role'] == 'assistant' else '=' }}{% endfor %}"
)
"""Rewrites the answers of turns that are over, as templates do that cut thoughts out."""
TURNS = [
    {"role": "user", "content": "1+1"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "2+2"},
    {"role": "assistant", "content": "4"},
]


def renderer(folder: Path, template: str = "chat", chat: str = CHAT) -> Renderer:
    model = save_tiny(folder / "model")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = chat
    tokenizer.save_pretrained(model)
    assert template in ("none", "chat", "r1_zero")
    return Renderer(model, template)


def text(ids: list[int], learned: list[bool], marked: bool = True) -> str:
    return "".join(VOCABULARY[token] for token, mark in zip(ids, learned, strict=True) if mark == marked)


def save_scorer(model: Path) -> None:
    """The causal LM there becomes a reward model."""
    load_scorer(model, pad=0, seed=0).save_pretrained(model)


def write(path: Path, rows: list[object]) -> str:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(path)


@pytest.mark.parametrize("chat", [CHAT, MARKED])
def test_every_turn_of_the_assistant_is_learned_up_to_the_token_that_ends_it(tmp_path, chat):
    encoded = renderer(tmp_path, chat=chat).row(Conversation(TURNS, "a:1"), turns="all")
    assert text(encoded.token_ids, [True] * len(encoded.token_ids)) == "<bos>1+1=2<eos>;<bos>2+2=4<eos>;"
    assert text(*encoded) == "2<eos>4<eos>"


def test_of_the_last_turn_alone_the_prompt_is_the_one_that_is_asked(tmp_path):
    made = renderer(tmp_path)
    encoded = made.row(Conversation(TURNS, "a:1"), turns="last")
    assert text(*encoded) == "4<eos>"
    asked = apply_template("chat", TURNS[:-1], load_tokenizer(tmp_path / "model"), prefill=False)
    assert encoded.token_ids[: len(asked)] == asked


def test_template_that_rewrites_old_turns_is_refused_unless_the_last_is_wanted(tmp_path):
    made = renderer(tmp_path, chat=FORGETFUL)
    with pytest.raises(ConfigError, match=r"a:7: the chat template rewrites turns that are over.*data.turns=last"):
        made.row(Conversation(TURNS, "a:7"), turns="all")
    assert text(*made.row(Conversation(TURNS, "a:7"), turns="last")) == "4<eos>"


def test_prompt_and_completion_without_a_template(tmp_path):
    encoded = renderer(tmp_path, "none").row(Answered("1+1=", "<answer>2</answer>", "a:1"), turns="all")
    assert text(*encoded) == "<answer>2</answer><eos>"
    assert text(*encoded, marked=False) == "1+1="


def test_thought_that_the_template_has_begun_is_not_begun_twice(tmp_path):
    thinking = CHAT.replace("'='", "'=<think>'")
    encoded = renderer(tmp_path, chat=thinking).answered("1+1", "<think>1,2</think>2")
    assert text(*encoded, marked=False) == "<bos>1+1=<think>"
    assert text(*encoded) == "1,2</think>2<eos>"


@pytest.mark.parametrize("chat", [CHAT, FORGETFUL])
def test_a_reward_model_learns_from_the_tokens_that_it_will_score(tmp_path, chat):
    """Whatever the template does: the grader's own tokens."""
    made = renderer(tmp_path, chat=chat)
    save_scorer(tmp_path / "model")
    grader = Classifier(RewardModelConfig(path=str(tmp_path / "model"), template="chat"), "reward.helpful")
    for response in ("2", "<think>1,2</think>2"):
        assert made.scored("1+1", response) == grader.tokens("1+1", response)


def test_no_text_ends_in_the_pad_of_a_reward_model(tmp_path):
    made = renderer(tmp_path)
    assert made.make_pad() == 0
    made.tokenizer.pad_token = made.tokenizer.eos_token
    assert made.make_pad() != made.end
    assert made.tokenizer.pad_token_id != made.tokenizer.eos_token_id


def test_of_plain_text_all_but_the_first_token_is_learned(tmp_path):
    encoded = renderer(tmp_path, "none").row(PlainText("1+1=2", "a:1"), turns="all")
    assert text(*encoded) == "+1=2<eos>"


def test_chat_without_a_template_names_the_way_out(tmp_path):
    with pytest.raises(ConfigError, match=r"has no chat template; set data.template=r1_zero or none"):
        Renderer(save_tiny(tmp_path / "model"), "chat")


HOSTILE = [
    ("{", "not JSON"),
    ("[1]", "a line must be a JSON object, got list"),
    ({"question": "x"}, "the row has question; it must have data.messages_key=messages, or"),
    ({"prompt": "x", "completion": 3}, "'completion' must be a string or a list of one message, got 3"),
    ({"prompt": " ", "completion": "y"}, "'prompt' must be a non-empty string or a list of chat messages"),
    ({"prompt": "x", "completion": [{"role": "user", "content": "y"}]}, "must be of the assistant, got one of 'user'"),
    ({"messages": []}, "'messages' must be a list of chat messages, got []"),
    ({"messages": "x"}, "'messages' must be a list of chat messages, got 'x'"),
    ({"messages": [{"role": "user", "content": "x"}]}, "has no message of the assistant to learn from, only of: user"),
    ({"messages": [{"role": "user"}]}, "'messages'[0] must be a message with role and content"),
    ({"text": 3}, "'text' must be a string, got 3"),
]


@pytest.mark.parametrize(("row", "message"), HOSTILE)
def test_bad_row_is_named_by_file_and_line(tmp_path, row, message):
    path = write(tmp_path / "a.jsonl", [{"text": "1+1=2"}, row])
    with pytest.raises(ConfigError) as caught:
        sft_rows(SftDataConfig(), path, "data.path")
    assert str(caught.value).startswith(f"{path}:2: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("form", ["parquet", "saved"])
def test_arrow_data_gives_the_same_rows_as_jsonl(tmp_path, form):
    rows: list[object] = [{"messages": TURNS}, {"messages": TURNS[:2]}]
    dataset = Dataset.from_list([{"id": 3, "messages": TURNS}, {"id": 4, "messages": TURNS[:2]}])
    path = tmp_path / ("a.parquet" if form == "parquet" else "saved")
    if form == "parquet":
        dataset.to_parquet(path)
    else:
        dataset.save_to_disk(path)
    expected = sft_rows(SftDataConfig(), write(tmp_path / "a.jsonl", rows), "data.path")
    got = sft_rows(SftDataConfig(), str(path), "data.path")
    assert [got[i][0] for i in range(2)] == [expected[i][0] for i in range(2)]


def test_arrow_data_without_the_columns_names_those_it_has(tmp_path):
    Dataset.from_list([{"question": "x"}]).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match=r"it has the columns question; rows must have data\.messages_key"):
        sft_rows(SftDataConfig(), str(tmp_path / "a.parquet"), "data.path")


PAIRS_HOSTILE = [
    ({"prompt": "x", "chosen": "a"}, "it must have data.chosen_key=chosen"),
    ({"prompt": "x", "chosen": "a", "rejected": "a"}, "are the same: 'a'"),
    ({"chosen": "a", "rejected": "b"}, "what are they answers to?"),
    ({"chosen": TURNS, "rejected": TURNS[:2]}, "must be the same conversation up to their last message"),
]


@pytest.mark.parametrize(("row", "message"), PAIRS_HOSTILE)
def test_bad_pair_is_named_by_file_and_line(tmp_path, row, message):
    path = write(tmp_path / "a.jsonl", [row])
    with pytest.raises(ConfigError) as caught:
        pair_rows(PairDataConfig(), path, "data.path")
    assert str(caught.value).startswith(f"{path}:1: ")
    assert message in str(caught.value)


def test_pairs_of_strings_messages_and_conversations_are_the_same(tmp_path):
    worse = [*TURNS[:3], {"role": "assistant", "content": "5"}]
    path = write(
        tmp_path / "a.jsonl",
        [
            {"prompt": TURNS[:3], "chosen": "4", "rejected": "5"},
            {"prompt": TURNS[:3], "chosen": TURNS[3:], "rejected": worse[3:]},
            {"chosen": TURNS, "rejected": worse},
            {"prompt": TURNS[:3], "chosen": TURNS, "rejected": worse},
        ],
    )
    rows = pair_rows(PairDataConfig(), path, "data.path")
    assert {(str(rows[i].prompt), rows[i].chosen, rows[i].rejected) for i in range(4)} == {(str(TURNS[:3]), "4", "5")}


def counted(tmp_path: Path, too_long: str) -> dict[str, object]:
    data = SftDataConfig(template="none", max_tokens=8, too_long=too_long)  # pyright: ignore[reportArgumentType]
    rows = [("1+1=", "2"), ("1+1=", ""), ("1+1=", "2,2,2,2"), ("1+1+1+1+1=", "5")]
    path = write(tmp_path / "a.jsonl", [{"prompt": p, "completion": c} for p, c in rows])
    read = sft_rows(data, path, "data.path")
    folder = tmp_path / too_long
    make_store(folder, encode_rows(read, range(4), renderer(tmp_path, "none"), data), 1)
    account = open_store(folder).account
    return {"rows": account.rows, "kept": account.examples, "cut": account.truncated, **account.dropped}


def test_dropped_and_cut_rows_are_counted_by_reason(tmp_path):
    """Tokens: 4 + 2, 4 (nothing to learn), 4 + 8, and a prompt of 10."""
    assert counted(tmp_path, "drop") == {"rows": 4, "kept": 1, "cut": 0, "empty": 1, "too_long": 2}
    cut = counted(tmp_path, "truncate")
    assert cut == {"rows": 4, "kept": 2, "cut": 1, "empty": 1, "prompt_too_long": 1}
    with pytest.raises(ConfigError, match=r"a.jsonl:3: 12 tokens, data.max_tokens allows 8: raise it"):
        counted(tmp_path, "refuse")


@pytest.mark.parametrize(("eval_rows", "sizes"), [(0, (3, 0)), (1, (2, 1))])
def test_rows_are_trained_or_held_out_and_never_both(tmp_path, eval_rows, sizes):
    path = write(tmp_path / "a.jsonl", [{"prompt": f"{i}+1=", "completion": "2"} for i in range(3)])
    data = SftDataConfig(path=path, template="none", eval_rows=eval_rows)
    job = sft_job(SftConfig(data=data, model=BaseModelConfig(path=str(save_tiny(tmp_path / "model")))))
    make_stores(job, tmp_path / "stores")
    trained, held_out = open_stores(job, tmp_path / "stores")
    assert (len(trained), len(held_out)) == sizes
