"""The format reward: each tag once, in order, nothing around them, both parts non-blank."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from r1async.rewards.format import in_format, thought_of


@pytest.mark.parametrize(
    "text",
    [
        "<think>5,1</think><answer>5</answer>",
        "\n<think>\nlong\n</think>\n\n<answer>\n5\n</answer>\n",
        "<think>if a < b > c</think><answer>x < 3</answer>",
    ],
)
def test_r1_zero_layout(text: str):
    assert in_format(text, "r1_zero")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "<answer>5</answer>",
        "<think>1</think>",
        "<think>1</think>5",
        "<think>1<answer>5</answer>",
        "<think></think><answer>5</answer>",  # an empty thought
        "<think> \n </think><answer>5</answer>",
        "<think>1</think><answer> </answer>",
        "<think>1</think><answer>5</answer> and more",
        "so <think>1</think><answer>5</answer>",
        "<think>1</think> so <answer>5</answer>",
        "<think>1</think><answer>4</answer><answer>5</answer>",
        "<think>1</think><answer>4<answer>5</answer></answer>",
        "<think>1<think>2</think></think><answer>5</answer>",
        "<think>1</think><think>2</think><answer>5</answer>",
        "<think><answer>1</answer></think><answer>5</answer>",
        "<think>1</answer></think><answer>5</answer>",
        "</think>1<think><answer>5</answer>",
        "<answer>5</answer><think>1</think>",
        "<think>1</think><answer>5",
        "<Think>1</Think><answer>5</answer>",
    ],
)
def test_everything_else_is_out_of_r1_zero_layout(text: str):
    assert not in_format(text, "r1_zero")


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("<think>1</think>The answer is 5.", True),
        ("<think>1</think><answer>5</answer>", True),
        ("<think>1</think>", False),
        ("<think>1</think> \n", False),
        ("<think></think>5", False),
        ("<think>1</think>5</think>", False),
        ("5", False),
    ],
)
def test_think_layout_wants_a_thought_and_a_rest(text: str, good: bool):
    assert in_format(text, "think") is good


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("1</think><answer>5</answer>", True),
        ("<think>1</think><answer>5</answer>", False),  # the prompt has the opening tag already
        ("</think><answer>5</answer>", False),
        ("1<answer>5</answer>", False),
    ],
)
def test_prefilled_thought_begins_inside(text: str, good: bool):
    assert in_format(text, "r1_zero", think_prefilled=True) is good


MARK = "|special_token|"


@pytest.mark.parametrize(
    ("text", "prefilled", "good"),
    [
        (f"{MARK}first we add{MARK}it is 5", False, True),
        (f" {MARK}\nfirst we add\n{MARK}\nit is 5\n", False, True),
        (f"first we add{MARK}it is 5", True, True),
        (f"{MARK}first we add{MARK}it is 5", True, False),  # the prompt has the mark already
        (f"first we add{MARK}it is 5", False, False),
        (f"{MARK}first we add{MARK}", False, False),
        (f"{MARK}{MARK}it is 5", False, False),
        (f"{MARK} ... {MARK}it is 5", False, False),
        (f"{MARK}first{MARK}it is 4{MARK}it is 5", False, False),
        (f"so {MARK}first we add{MARK}it is 5", False, False),
        ("it is 5", False, False),
        ("", True, False),
    ],
)
def test_special_token_layout_has_a_reasoning_and_a_summary(text: str, prefilled: bool, good: bool):
    assert in_format(text, "special_token", think_prefilled=prefilled) is good


def test_special_token_may_be_another():
    assert in_format("##first##second", "special_token", special_token="##")


@pytest.mark.parametrize("thought", ["...", "\u3164", "\u115f\u2800", "\u200b", "\u2060 \u200b", "- _ -", "\n\n"])
def test_thought_that_says_nothing_is_empty(thought: str):
    assert not in_format(f"<think>{thought}</think><answer>5</answer>", "r1_zero")


@pytest.mark.parametrize("answer", ["\u200b", "\u3164", "\u2800", " \u2060", "\x00"])
def test_answer_that_cannot_be_seen_is_empty(answer: str):
    assert not in_format(f"<think>1</think><answer>{answer}</answer>", "r1_zero")


@pytest.mark.parametrize(
    ("text", "layout", "prefilled", "thought"),
    [
        ("<think>a b</think><answer>5</answer>", "r1_zero", False, "a b"),
        ("a b</think>5", "think", True, "a b"),
        ("a b, cut", "think", True, "a b, cut"),
        ("no tags at all", "r1_zero", False, "no tags at all"),
        ("<think>a<think>b</think>c</think>d", "think", False, "a b"),
        (f"{MARK}a b{MARK}5", "special_token", False, "a b"),
        (f"a b{MARK}5", "special_token", True, "a b"),
        ("", "think", False, ""),
    ],
)
def test_thought_ends_at_its_first_end(text: str, layout, prefilled: bool, thought: str):
    assert thought_of(text, layout, think_prefilled=prefilled) == thought


PIECES = st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "x", " ", "<"]), max_size=12)


@given(PIECES.map("".join))
def test_agrees_with_reading_the_tags_one_by_one(text: str):
    wanted = ["<think>", "</think>", "<answer>", "</answer>"]
    expected, rest = text.count("<") >= 4 and all(text.count(tag) == 1 for tag in wanted), text
    between = []
    for tag in wanted:
        before, found, rest = rest.partition(tag)
        between.append(before.strip())
        expected = expected and bool(found)
    head, thought, gap, answer = between
    expected = expected and bool(thought and answer) and not (head or gap or rest.strip())
    assert in_format(text, "r1_zero") is expected


@given(st.text(), st.sampled_from(["r1_zero", "think", "special_token"]), st.booleans())
def test_takes_anything(text: str, layout, prefilled: bool):
    in_format(text, layout, think_prefilled=prefilled)


@pytest.mark.parametrize("piece", ["<think>", "</think>", "<", "<answer></answer>"])
def test_thirty_thousand_tokens_cost_less_than_a_millisecond_each_thousand(piece: str):
    text = f"<think>{piece * 30_000}</think><answer>5</answer>"
    start = time.process_time()
    in_format(text, "r1_zero")
    assert time.process_time() - start < 0.03
