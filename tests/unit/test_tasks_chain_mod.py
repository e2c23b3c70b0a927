"""chain-mod: problems, streams, hold-out, demonstrations and the tokenizer, against the task's specification."""

from itertools import islice
from random import Random

import pytest
from r1async.tasks import PromptError, chain_mod
from r1async.tasks.chain_mod import ChainModSource, Problem, demonstrations, is_held_out, problems
from r1async.tasks.tokenizer import Detokenizer, PromptTokenizer, load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PromptTokenizer:
    folder = tmp_path_factory.mktemp("model")
    chain_mod.hf_tokenizer().save_pretrained(folder)
    return load_tokenizer(folder)


def evaluate(text: str) -> list[int]:
    """Running values of a problem's text, left to right, worked out independently."""
    values = [int(text[0])]
    for operator, digit in zip(text[1:-1:2], text[2:-1:2], strict=True):
        values.append(eval(f"({values[-1]} {operator} {digit}) % 10"))
    return values


def test_first_evaluation_problem_is_the_one_of_the_specification():
    problem = next(problems(Random(chain_mod.EVAL_SEED), held_out=True))
    assert problem == Problem("5-4-0-1*8-5=", (5, 1, 1, 0, 0, 5))
    assert problem.answer == "5"
    assert problem.trace == "5,1,1,0,0,5"


def test_values_are_left_to_right_and_modulo_ten():
    for problem in islice(problems(Random(7), held_out=False), 300):
        assert len(problem.text) == 12
        assert list(problem.values) == evaluate(problem.text)


def test_a_tenth_of_all_problems_is_held_out():
    rng = Random(3)
    share = sum(is_held_out(chain_mod.draw(rng).text) for _ in range(5000)) / 5000
    assert share == pytest.approx(26 / 256, abs=0.013)  # three standard errors


def test_training_streams_never_show_a_held_out_problem(tokenizer: PromptTokenizer):
    source = ChainModSource(seed=0, tokenizer=tokenizer)
    assert not any(is_held_out(source.prompt(i).text) for i in range(300))
    assert not any(is_held_out(prompt) for prompt, _ in islice(demonstrations(0), 300))
    assert all(is_held_out(prompt.text) for prompt in source.held_out(100))


def test_prompt_is_the_same_whatever_was_asked_before(tokenizer: PromptTokenizer):
    forward, backward = ChainModSource(seed=4, tokenizer=tokenizer), ChainModSource(seed=4, tokenizer=tokenizer)
    ordinals = [0, 1, 1023, 1024, 5000, 2]
    first = {ordinal: forward.prompt(ordinal).text for ordinal in ordinals}
    assert {ordinal: backward.prompt(ordinal).text for ordinal in reversed(ordinals)} == first
    stream = list(islice(problems(Random(4 + chain_mod.TRAIN_SEED), held_out=False), 5001))
    assert first == {ordinal: stream[ordinal].text for ordinal in ordinals}


def test_seeds_train_on_different_problems_and_are_examined_on_the_same(tokenizer: PromptTokenizer):
    a, b = ChainModSource(seed=0, tokenizer=tokenizer), ChainModSource(seed=1, tokenizer=tokenizer)
    assert [a.prompt(i).text for i in range(20)] != [b.prompt(i).text for i in range(20)]
    assert [p.text for p in a.held_out(20)] == [p.text for p in b.held_out(20)]
    assert a.total is None


def test_negative_ordinal_is_refused(tokenizer: PromptTokenizer):
    with pytest.raises(IndexError, match="begin at 0"):
        ChainModSource(seed=0, tokenizer=tokenizer).prompt(-1)


def test_prompt_has_thirteen_tokens_with_its_beginning(tokenizer: PromptTokenizer):
    prompt = ChainModSource(seed=0, tokenizer=tokenizer).held_out(1)[0]
    #  <bos> 5 - 4 - 0 - 1 * 8 - 5 =
    assert prompt.token_ids.tolist() == [1, 12, 18, 11, 18, 7, 18, 8, 19, 15, 18, 12, 20]


def test_demonstrations_come_in_the_shares_of_the_recipe():
    texts = [completion for _, completion in islice(demonstrations(0), 4000)]
    direct = sum(text.startswith("<answer>") for text in texts) / 4000
    full = sum(text.startswith("<think>") and "</think><answer>" in text for text in texts) / 4000
    assert direct == pytest.approx(0.40, abs=0.025)
    assert full == pytest.approx(0.45, abs=0.025)
    assert 1 - direct - full == pytest.approx(0.15, abs=0.02)


def test_full_demonstration_reads_as_specified():
    assert ("7+6-9+7-3*1=", "<think>7,3,4,1,8,8</think><answer>8</answer>") in list(islice(demonstrations(0), 5))


def test_plain_encoding_is_the_tokenizers(tokenizer: PromptTokenizer):
    for prompt, completion in islice(demonstrations(1), 50):
        assert chain_mod.encode(completion) == tokenizer.encode(completion, add_special_tokens=False)
        assert [chain_mod.BOS, *chain_mod.encode(prompt)] == tokenizer.encode(prompt)


def test_a_tag_is_one_token_and_the_text_comes_back(tmp_path):
    chain_mod.hf_tokenizer().save_pretrained(tmp_path)
    text = "<think>5,1</think><answer>5</answer>"
    ids = chain_mod.encode(text)
    assert ids == [3, 12, 22, 8, 4, 5, 12, 6]
    stopped, cut, twice = Detokenizer(tmp_path).texts([[*ids, 2], ids, [2, 2]], [True, False, True])
    assert (stopped, cut) == (text, text)
    assert twice == "<eos>"  # only the last one ended it


def test_special_stop_token_is_left_out_at_the_end_and_text_or_a_tag_is_kept(tmp_path):
    tokenizer = chain_mod.hf_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>", "</answer>"]})
    tokenizer.save_pretrained(tmp_path)
    ids, (end,) = chain_mod.encode("<answer>5</answer>"), tokenizer.encode("<|im_end|>", add_special_tokens=False)
    detokenizer = Detokenizer(tmp_path, stop=["<|im_end|>", "</answer>", "="])
    equals = chain_mod.encode("=")
    stopped, cut, inside, tag, text = detokenizer.texts(
        [[*ids, end], [*ids, end], [end, *ids, 2], ids, [*ids, *equals]], [True, False, True, True, True]
    )
    assert (stopped, tag, text) == ("<answer>5</answer>", "<answer>5</answer>", "<answer>5</answer>=")
    assert (cut, inside) == ("<answer>5</answer><|im_end|>", "<|im_end|><answer>5</answer>")
    assert Detokenizer(tmp_path).texts([[*ids, end]], [True]) == ["<answer>5</answer><|im_end|>"]


def test_tokenizer_files_load_with_transformers(tmp_path):
    from transformers import AutoTokenizer

    chain_mod.hf_tokenizer().save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert len(loaded) == 34
    assert loaded("1+1=")["input_ids"] == [1, 8, 17, 8, 20]
    assert (loaded.pad_token_id, loaded.bos_token_id, loaded.eos_token_id) == (0, 1, 2)
    assert loaded.decode([3, 12, 4, 2], skip_special_tokens=True) == "<think>5</think>"


def test_a_share_of_the_problems_is_of_the_slow_source(tokenizer):
    source = ChainModSource(seed=0, tokenizer=tokenizer, slow_share=0.25)
    slow = [source.prompt(ordinal).source == "slow" for ordinal in range(2000)]
    assert 0.21 < sum(slow) / 2000 < 0.29  # four standard errors
    assert slow[:50] == [source.prompt(ordinal).extra == {"source": "slow"} for ordinal in range(50)]
    assert all(ChainModSource(seed=0, tokenizer=tokenizer).prompt(ordinal).source == "" for ordinal in range(50))


class Deaf:
    """A tokenizer that knows no digits."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        raise ValueError("no such character")

    def render_chat(self, messages: object) -> str:
        raise NotImplementedError


def test_tokenizer_of_another_task_is_named_in_the_error():
    with pytest.raises(PromptError, match=r"tokenizer cannot encode it \(no such character\)"):
        ChainModSource(seed=0, tokenizer=Deaf()).prompt(0)
