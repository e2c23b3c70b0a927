"""File tasks: rows, errors that name file and line, order, hold-out and templates."""

import json
from pathlib import Path

import numpy as np
import pytest
from r1async.config import Config, ConfigError, DataConfig, EvalConfig, RewardConfig
from r1async.tasks import PromptError, PromptSource
from r1async.tasks.file import read_rows
from r1async.tasks.meta import Question, decode_meta, encode_meta
from r1async.tasks.source import open_source
from r1async.tasks.templates import R1_ZERO, render
from r1async.types import Prompt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

CHAT = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def save_tokenizer(folder: Path, chat_template: str | None = CHAT) -> Path:
    """Bytes as tokens, after a <bos>."""
    vocabulary = {"<bos>": 0, "<eos>": 1} | {
        c: i + 2 for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))
    }
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    saved = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>")
    saved.chat_template = chat_template
    saved.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("model"))


def write_jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def numbered(count: int) -> list[dict]:
    return [{"prompt": f"q{i}", "answer": i} for i in range(count)]


def source_of(path: Path, model: Path, *, prompts: int = 2, seed: int = 0, reward: RewardConfig | None = None, **data):
    settings = DataConfig(path=str(path), **{"template": "none", **data})
    config = Config(seed=seed, data=settings, eval=EvalConfig(prompts=prompts), reward=reward or RewardConfig())
    return open_source(config, model)


def texts(source: PromptSource, ordinals: range) -> list[str]:
    return [source.prompt(i).text for i in ordinals]


def test_last_rows_are_held_out_and_never_trained(tmp_path: Path, model: Path):
    source = source_of(write_jsonl(tmp_path / "a.jsonl", numbered(10)), model, prompts=3)
    assert [p.text for p in source.held_out(3)] == ["q7", "q8", "q9"]
    assert sorted(texts(source, range(7))) == [f"q{i}" for i in range(7)]
    assert not {"q7", "q8", "q9"} & set(texts(source, range(70)))


def test_each_epoch_has_every_row_once_in_an_order_of_its_own(tmp_path: Path, model: Path):
    source = source_of(write_jsonl(tmp_path / "a.jsonl", numbered(22)), model, epochs=2)
    assert source.total == 40
    first, second = texts(source, range(20)), texts(source, range(20, 40))
    assert sorted(first) == sorted(second)
    assert first != second
    with pytest.raises(IndexError, match=r"\[0, 40\), got 40"):
        source.prompt(40)


def test_order_depends_on_the_seed_and_on_nothing_else(tmp_path: Path, model: Path):
    path = write_jsonl(tmp_path / "a.jsonl", numbered(22))
    assert texts(source_of(path, model), range(20)) == texts(source_of(path, model), range(20))
    assert texts(source_of(path, model, seed=1), range(20)) != texts(source_of(path, model), range(20))


def test_without_shuffle_the_file_is_the_order(tmp_path: Path, model: Path):
    source = source_of(write_jsonl(tmp_path / "a.jsonl", numbered(6)), model, shuffle=False)
    assert texts(source, range(6)) == ["q0", "q1", "q2", "q3", "q0", "q1"]
    assert source.total is None


def test_eval_path_leaves_all_rows_for_training(tmp_path: Path, model: Path):
    path = write_jsonl(tmp_path / "a.jsonl", numbered(4))
    other = write_jsonl(tmp_path / "b.jsonl", [{"prompt": "held", "answer": "out"}])
    source = source_of(path, model, prompts=1, eval_path=str(other), epochs=1)
    assert source.total == 4
    assert [(p.text, p.answer) for p in source.held_out(1)] == [("held", "out")]
    with pytest.raises(PromptError, match=r"eval\.prompts=2, but only 1 rows"):
        source.held_out(2)


@pytest.mark.parametrize(
    ("answer", "text"), [("x", "x"), (5, "5"), (2.5, "2.5"), (5.0, "5.0"), (True, "True"), (1e-9, "1e-09")]
)
def test_any_scalar_is_an_answer(tmp_path: Path, answer: object, text: str):
    rows = read_rows(write_jsonl(tmp_path / "a.jsonl", [{"prompt": "q", "answer": answer}]), "prompt", "answer")
    assert rows[0].answer == text


def test_other_columns_reach_graders_as_strings(tmp_path: Path):
    row = {"prompt": "q", "answer": "a", "level": 3, "tags": ["x"], "source": "book", "nothing": None}
    rows = read_rows(write_jsonl(tmp_path / "a.jsonl", [row]), "prompt", "answer")
    assert rows[0].extra == {"level": "3", "tags": '["x"]', "source": "book"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "q"}', r"a\.jsonl:3: no 'answer'; the row has prompt \(data\.answer_key says"),
        ('{"answer": 1}', r"a\.jsonl:3: no 'prompt'; the row has answer \(data\.prompt_key says"),
        ('{"prompt": "q", "answer": null}', r"a\.jsonl:3: no 'answer'"),
        ('{"prompt": "q", "answer": [1]}', r"a\.jsonl:3: 'answer' must be a string or a number, got list"),
        ('{"prompt": " ", "answer": 1}', r"a\.jsonl:3: 'prompt' must be a non-empty string or a list"),
        ('{"prompt": [{"role": "user"}], "answer": 1}', r"a\.jsonl:3: 'prompt'\[0\] must be a message with role"),
        ('["q", 1]', r"a\.jsonl:3: a line must be a JSON object, got list"),
        ('{"prompt": ', r"a\.jsonl:3: not JSON"),
        ("\udcff", r"a\.jsonl:3: not JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "q", "answer": 1}\n\n' + line + "\n", errors="surrogateescape")
    with pytest.raises(ConfigError, match=message):
        read_rows(path, "prompt", "answer")


def test_rows_are_found_behind_blank_lines_and_long_characters(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "ü€", "answer": "é"}\n\n\n{"prompt": "b", "answer": 2}', encoding="utf-8")
    rows = read_rows(path, "prompt", "answer")
    assert [(rows[i].question, rows[i].answer) for i in range(len(rows))] == [("ü€", "é"), ("b", "2")]
    assert rows[1].where.endswith("a.jsonl:4")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.jsonl", None, r"data\.path: .*none\.jsonl does not exist"),
        ("empty.jsonl", "", r"data\.path: .*empty\.jsonl has no rows"),
        ("blank.jsonl", "\n \n", r"has no rows"),
        ("a.csv", "prompt,answer\n", r"a\.csv must be \.jsonl or \.parquet"),
        ("a.parquet", "this is no parquet", r"data\.path: cannot read .*a\.parquet"),
    ],
)
def test_a_useless_file_is_refused(tmp_path: Path, name: str, content: str | None, message: str):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_rows(tmp_path / name, "prompt", "answer")


def test_holding_out_every_row_is_refused(tmp_path: Path, model: Path):
    path = write_jsonl(tmp_path / "a.jsonl", numbered(3))
    with pytest.raises(ConfigError, match=r"has 3 rows and eval\.prompts=400 holds out all of them"):
        source_of(path, model, prompts=400)


@pytest.fixture
def arrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for `datasets`, its cache included."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def test_parquet_and_dataset_folders_read_like_jsonl(arrow: Path):
    from datasets import Dataset, DatasetDict

    dataset = Dataset.from_list([{"prompt": f"q{i}", "answer": i, "level": i} for i in range(3)])
    dataset.to_parquet(arrow / "a.parquet")
    (arrow / "many").mkdir()
    dataset.to_parquet(arrow / "many" / "0.parquet")
    dataset.to_parquet(arrow / "many" / "1.parquet")
    dataset.save_to_disk(arrow / "saved")
    DatasetDict({"train": dataset, "test": dataset.select([2])}).save_to_disk(arrow / "splits")
    for name, count in (("a.parquet", 3), ("many", 6), ("saved", 3), ("splits", 3)):
        rows = read_rows(arrow / name, "prompt", "answer")
        assert len(rows) == count
        assert (rows[1].question, rows[1].answer, rows[1].extra) == ("q1", "1", {"level": "1"})
    held_out = read_rows(arrow / "splits", "prompt", "answer", held_out=True)
    assert [held_out[i].question for i in range(len(held_out))] == ["q2"]


def test_folder_of_jsonl_files_is_read_in_order_of_their_names(tmp_path: Path):
    write_jsonl(tmp_path / "b.jsonl", [{"prompt": "second", "answer": 2}])
    write_jsonl(tmp_path / "a.jsonl", [{"prompt": "first", "answer": 1}])
    rows = read_rows(tmp_path, "prompt", "answer")
    assert [rows[0].question, rows[1].question] == ["first", "second"]


def test_a_parquet_row_without_an_answer_is_named(arrow: Path):
    from datasets import Dataset

    Dataset.from_list([{"prompt": "q", "answer": "a"}, {"prompt": "q", "answer": None}]).to_parquet(arrow / "a.parquet")
    with pytest.raises(ConfigError, match=r"a\.parquet:1: no 'answer'"):
        read_rows(arrow / "a.parquet", "prompt", "answer")
    with pytest.raises(ConfigError, match=r"no column 'solution'; it has prompt, answer"):
        read_rows(arrow / "a.parquet", "prompt", "solution")


def test_several_splits_without_train_must_be_named(arrow: Path):
    from datasets import Dataset, DatasetDict

    one = Dataset.from_list([{"prompt": "q", "answer": "a"}])
    DatasetDict({"easy": one, "hard": one}).save_to_disk(arrow / "splits")
    with pytest.raises(ConfigError, match="has the splits easy, hard; name the directory of one"):
        read_rows(arrow / "splits", "prompt", "answer")


MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]


def test_templates_ask_the_question_in_their_own_way(tmp_path: Path, model: Path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "1+1?", "answer": 2}] * 2)

    def asked(template: str, reward: RewardConfig | None = None) -> str:
        ids = source_of(path, model, prompts=1, template=template, reward=reward).prompt(0).token_ids
        return Tokenizer.from_file(str(model / "tokenizer.json")).decode(ids.tolist(), skip_special_tokens=False)

    assert asked(template="none") == "<bos>1+1?"
    assert asked(template="chat") == "[user]1+1?[assistant]"  # the template would have written <bos> itself
    assert asked(template="r1_zero") == "<bos>" + R1_ZERO.format(question="1+1?")
    prefilled = RewardConfig(think_prefilled=True)
    assert asked(template="r1_zero", reward=prefilled).endswith("User: 1+1?\nAssistant: <think>")


def test_r1_zero_template_has_the_papers_structure():
    text = R1_ZERO.format(question="Why {is} that?")
    tags = [text.index(tag) for tag in ("<think> the", "</think> <answer>", "</answer>.")]
    assert tags == sorted(tags)
    assert text.endswith("\nUser: Why {is} that?\nAssistant:")


def test_chat_messages_keep_their_roles(tmp_path: Path, model: Path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": MESSAGES, "answer": 2}] * 2)
    prompt = source_of(path, model, prompts=1, template="chat").prompt(0)
    assert len(prompt.token_ids) == len("[system]Be brief.[user]1+1?[assistant]")
    assert prompt.text == "1+1?"
    assert json.loads(prompt.extra["messages"]) == MESSAGES


def test_several_messages_do_not_fit_a_plain_template(tmp_path: Path, model: Path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": MESSAGES, "answer": 2}] * 2)
    with pytest.raises(PromptError, match=r"a\.jsonl:1: 2 chat messages do not fit data\.template=r1_zero"):
        source_of(path, model, prompts=1, template="r1_zero").prompt(0)


def test_model_without_chat_template_is_named(tmp_path: Path):
    path = write_jsonl(tmp_path / "a.jsonl", numbered(4))
    bare = save_tokenizer(tmp_path / "bare", chat_template=None)
    with pytest.raises(ConfigError, match=r"has no chat template: set data\.template=r1_zero"):
        source_of(path, bare, template="chat")


def test_folder_without_tokenizer_is_named(tmp_path: Path):
    path = write_jsonl(tmp_path / "a.jsonl", numbered(4))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"cannot load the tokenizer of .*empty"):
        source_of(path, tmp_path / "empty")


@pytest.mark.parametrize(("ends", "prefilled"), [("<think>\n", False), ("", True)])
def test_prefilled_thought_must_be_what_the_format_reward_expects(tmp_path: Path, ends: str, prefilled: bool):
    path = write_jsonl(tmp_path / "a.jsonl", numbered(4))
    model = save_tokenizer(tmp_path / "model", CHAT.replace("[assistant]", "[assistant]" + ends))
    reward = RewardConfig(think_prefilled=prefilled)
    with pytest.raises(ConfigError, match=f"reward.think_prefilled={prefilled}, but the prompt under"):
        source_of(path, model, template="chat", reward=reward)
    source_of(path, model, template="chat", reward=RewardConfig(think_prefilled=not prefilled))


def test_prompt_too_long_is_refused_by_line_and_others_go_on(tmp_path: Path, model: Path):
    rows = [{"prompt": "x" * 20, "answer": 1}, {"prompt": "short", "answer": 2}, {"prompt": "y" * 20, "answer": 3}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    source = source_of(path, model, prompts=1, max_prompt_tokens=12, shuffle=False)
    with pytest.raises(
        PromptError, match=r"a\.jsonl:1: the prompt has 21 tokens, data\.max_prompt_tokens allows 1 to 12"
    ):
        source.prompt(0)
    assert source.prompt(1).text == "short"
    with pytest.raises(PromptError, match=r"a\.jsonl:3: the prompt has 21 tokens"):
        source.held_out(1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (DataConfig(task="chain-mod"), "data.template=chat: task chain-mod has no words for it"),
        (DataConfig(task="chain-mod", template="none", epochs=2), "data.epochs=2: chain-mod draws new problems"),
        (DataConfig(task="file"), "data.path: task file needs"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(model: Path, data: DataConfig, message: str):
    with pytest.raises(ConfigError, match=message):
        open_source(Config(data=data), model)


def test_meta_carries_what_graders_need():
    prompt = Prompt(ordinal=3, text="ü", answer="1", token_ids=np.array([1], dtype=np.int32), extra={"level": "3"})
    assert decode_meta(encode_meta(prompt)) == Question(text="ü", answer="1", extra={"level": "3"})


@pytest.mark.parametrize("meta", [b"", b"{}", b'{"text": 1, "answer": "", "extra": {}}', b"\xff"])
def test_broken_meta_is_a_value_error(meta: bytes):
    with pytest.raises(ValueError):
        decode_meta(meta)


def test_single_message_fits_a_plain_template():
    class Unused:
        def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
            raise NotImplementedError

        def render_chat(self, messages: object) -> str:
            raise NotImplementedError

    assert render("none", [{"role": "user", "content": "hi"}], Unused(), prefill=False) == "hi"


def test_another_reading_of_the_same_file_has_another_fingerprint(tmp_path, model):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": f"q{i}", "answer": f"a{i}"} for i in range(6)])
    wholes = [
        source_of(path, model),
        source_of(path, model, prompt_key="answer", answer_key="prompt"),
        source_of(path, model, answer_key="prompt"),
        source_of(path, model, shuffle=False),
        source_of(path, model, prompts=1),
        source_of(path, model, reward=RewardConfig(weights={"accuracy": 1.0}, think_prefilled=True)),
    ]
    assert len({source.fingerprint for source in wholes}) == len(wholes)
    assert source_of(path, model).fingerprint == wholes[0].fingerprint
