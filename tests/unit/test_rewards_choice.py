"""Multiple choice: the letter a completion settles on, and what names none or several."""

import pytest
from r1async.rewards.choice import chosen_letter

OPTIONS = ("14", "28", "42", "48")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("So it is 42.\nAnswer: C", "C"),
        ("**Answer: C**", "C"),
        ("Answer: **C**", "C"),
        ("The final answer is (C).", "C"),
        ("The correct answer is C) 42", "C"),
        ("Answer: C. 42", "C"),
        ("answer: C\nI am sure.", "C"),
        ("Answer: A\nNo, wait.\nAnswer: C", "C"),
        (r"\boxed{C}", "C"),
        (r"\boxed{\text{(C)}}", "C"),
        (r"\boxed{C) 42}", "C"),
        (r"\boxed{42}", "C"),  # its text, where one option has it
        ("<think>A?</think><answer>C</answer>", "C"),
        ("<answer>Answer: C</answer>", "C"),
        (r"Answer: $\boxed{C}$", "C"),
        ("So the sum is \\boxed{84}.\nHalf of it.\nAnswer: C", "C"),
        ("First \\boxed{14}, then three times that.\nAnswer: C", "C"),  # A's text, on the way
        ("Answer: A\nNo: \\boxed{C}", "C"),
        ("It is \\boxed{C}\nAnswer: A", "C"),
    ],
)
def test_letter_is_the_last_one_settled_on(text, letter):
    assert chosen_letter(text, OPTIONS) == letter


@pytest.mark.parametrize(
    "text",
    [
        "",
        "C",
        "It could be C.",
        "Answer:",
        "Answer: A or C",
        "Answer: A, C",
        "Answer: A/C",
        "Answer: AC",
        "Answer: ABCD",
        "Answer: not C",
        "Answer: E",
        "Answer: C) 28",  # another option's text
        "Answer: C but maybe A",
        "Answer: c",
        "Answer: C\nAnswer: A or C",
        r"\boxed{A}\boxed{}",
        r"\boxed{A, B, C, D}",
        r"\boxed{\text{A and C}}",
        r"\boxed{C} or \boxed{?}",
        "<answer>A C</answer>",
        "<answer>(A)(C)</answer>",
        "Answer: Ｃ",
        "Answer: С",  # Cyrillic
        "Answer: all of the above",
        "Answer: C C",
        "Answer: C\n\\boxed{84}",  # the line is not behind the box
        "\\boxed{84}\nAnswer: A or C",
        "<answer>84</answer>\nAnswer: C",
    ],
)
def test_no_letter_and_several_letters_are_no_answer(text):
    assert chosen_letter(text, OPTIONS) == ""


def test_text_that_two_options_share_names_none():
    assert chosen_letter(r"\boxed{42}", ("42", "42", "1", "2")) == ""
