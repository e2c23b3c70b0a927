"""IFEval's 25 instructions: each with a response that follows it to the letter, and ones that nearly do."""

import time

import pytest
from r1async.rewards.identify import identify_any
from r1async.rewards.ifeval import RULES, followed, num_sentences, num_words, read_instructions

GERMAN = "Ein gutes Frühstück besteht aus Brot, Käse und einem Ei, dazu trinkt man Kaffee oder Tee."

CASES = [
    ("keywords:existence", {"keywords": ["storm", "lamp"]}, "A Storm broke the LAMP.", "A storm came."),
    (
        "keywords:frequency",
        {"keyword": "sea", "frequency": 3, "relation": "at least"},
        "Sea, sea, sea.",
        "Sea and sea.",
    ),
    ("keywords:frequency", {"keyword": "sea", "frequency": 2, "relation": "less than"}, "One sea.", "Sea and sea."),
    (
        "keywords:frequency",
        {"keyword": "a.c", "frequency": 1, "relation": "at least"},
        "See a.c here.",
        "See abc here.",
    ),
    ("keywords:forbidden_words", {"forbidden_words": ["gas", "yeast"]}, "Gasps of air.", "It is GAS!"),
    (
        "keywords:letter_frequency",
        {"letter": "q", "let_frequency": 2, "let_relation": "at least"},
        "Quiet Q.",
        "Quiet.",
    ),
    ("keywords:letter_frequency", {"letter": "e", "let_frequency": 1, "let_relation": "less than"}, "Odd.", "Even."),
    ("language:response_language", {"language": "de"}, GERMAN, "A good breakfast is bread with cheese and an egg."),
    ("language:response_language", {"language": "hi"}, "आज मौसम बहुत अच्छा है और हम बाहर जाएंगे।", GERMAN),
    ("length_constraints:number_sentences", {"num_sentences": 3, "relation": "less than"}, "One. Two.", "Yes. No? Go!"),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"}, "One. Two.", "One two."),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb", "a\n***\nb\n***\nc"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "***\na\n***\nb\n***", "a\n***\n\n***\nb"),
    ("length_constraints:number_words", {"num_words": 4, "relation": "less than"}, "It is three.", "It is four now."),
    ("length_constraints:number_words", {"num_words": 4, "relation": "at least"}, "It is four now.", "It is three."),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "kettles"},
        'Tea is old.\n\n"Kettles, too," he said.',
        "Tea is old.\nKettles too.",
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 1, "first_word": "tea"},
        "Tea, hot.\n\nMilk.",
        "Teapots are hot.\n\nMilk.",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "Dear [name] of [town]", "Dear [name]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\nP.S. Write!", "Bye.\nPS: Write!"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye.\nP.P.S Write!", "Bye.\nP.S. Write!"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* one\n* two", "* one\n* two\n- three"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 1}, "**bold**\n* one", "* one\n  * two"),
    ("detectable_format:constrained_response", {}, "My answer is maybe.", "my answer is maybe"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and **b c**", "*a* and ** **"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        "SECTION 1\na\nSECTION 2\nb",
        "Section 1\na\nSection 2\nb",
    ),
    ("detectable_format:json_format", {}, '```json\n{"name": "Bo"}\n```', 'Here: {"name": "Bo"}'),
    ("detectable_format:json_format", {}, "[1, 2]", "[1, 2"),
    ("detectable_format:title", {}, "<<Spoons>>\nA list.", "<< >>\nA list."),
    ("combination:two_responses", {}, "Fresh!\n******\nWarm!", "Fresh!\n******\nFresh!"),
    ("combination:two_responses", {}, "******\nFresh!\n******\nWarm!", "Fresh!\n******\n******\nWarm!"),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Name rivers."},
        "name rivers. The Rhine.",
        "Sure! Name rivers.",
    ),
    ("startend:end_checker", {"end_phrase": "That is all."}, 'Leaves fall. "That is all."', "That is all. Bye."),
    ("startend:quotation", {}, '"A key."', "'A key.'"),
    ("startend:quotation", {}, ' "A key." ', '"'),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        "FLEA MARKET today",
        "FLEA-MARKET today",
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "less than"},
        "The U.S. is large",
        "THE U.S. is large",
    ),
    (
        "change_case:english_capital",
        {},
        "THE THUNDER ROLLS OVER THE HILLS TONIGHT.",
        "The thunder ROLLS over the hills.",
    ),
    ("change_case:english_lowercase", {}, "the snow is falling on the quiet town.", "The snow is falling."),
    ("punctuation:no_comma", {}, "No stops; none.", "No stops, none."),
]


@pytest.mark.parametrize(("name", "arguments", "good", "bad"), CASES)
def test_instruction_is_followed_to_the_letter_or_not(name, arguments, good, bad):
    instruction = read_instructions([name], [arguments])
    assert followed(instruction, good, identify_any) == [True]
    assert followed(instruction, bad, identify_any) == [False]


def test_every_published_instruction_has_a_case():
    assert len(RULES) == 25
    assert {name for name, *_ in CASES} == set(RULES)


def test_prompt_is_right_only_if_all_its_instructions_are_followed():
    both = read_instructions(["punctuation:no_comma", "startend:quotation"], [{}, None])
    assert followed(both, '"No comma"', identify_any) == [True, True]
    assert followed(both, "No comma", identify_any) == [True, False]


def test_empty_response_follows_nothing():
    negative = read_instructions(["punctuation:no_comma", "keywords:forbidden_words"], [{}, {"forbidden_words": ["a"]}])
    assert followed(negative, " \n", identify_any) == [False, False]


@pytest.mark.parametrize(
    ("names", "arguments", "says"),
    [
        (["keywords:nonsense"], [{}], "not one of IFEval's"),
        (["punctuation:no_comma"], [], "lists of one length"),
        (["keywords:existence"], [{"keywords": "storm"}], "needs keywords, list"),
        (["keywords:existence"], [{}], "needs keywords, list, got None"),
        (["length_constraints:number_words"], [{"num_words": 9, "relation": "about"}], "less than or at least"),
        (["length_constraints:number_words"], [{"num_words": True, "relation": "at least"}], "needs num_words, int"),
    ],
)
def test_instruction_that_cannot_be_checked_is_refused_when_read(names, arguments, says):
    with pytest.raises(ValueError, match=says):
        read_instructions(names, arguments)


def test_numbers_of_a_parquet_column_may_be_floats_and_unused_arguments_null():
    (one,) = read_instructions(
        ["length_constraints:number_words"], [{"num_words": 3.0, "relation": "at least", "x": None}]
    )
    assert followed([one], "one two three", identify_any) == [True]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("One. Two! Three?", 3),
        ("Dr. Smith met Mr. Jones.", 1),
        ("It costs 3.50 euros, i.e. little.", 1),
        ("No stop at the end", 1),
        ("A heading\n\nAnd a line.", 2),
        ("Wait... what?", 2),
        ('He said "Go." Then he went.', 2),
        ("1. First\n2. Second", 1),
        ("今天下雨。我们在家。", 2),
        ("", 0),
        ("...", 0),
    ],
)
def test_sentences_end_at_stops_and_not_at_abbreviations(text, count):
    assert num_sentences(text) == count


def test_words_are_runs_of_letters_and_digits():
    assert num_words("It's 3 o'clock, half-past?") == 7


LOOPS = {
    "a. ": "length_constraints:number_sentences",
    "1. x ": "length_constraints:number_sentences",
    ". ": "length_constraints:number_sentences",
    "\n": "detectable_format:json_format",
    "<": "detectable_format:title",
    "<<>>": "detectable_format:title",
    "[": "detectable_content:number_placeholders",
}


@pytest.mark.parametrize(("loop", "name"), LOOPS.items())
def test_completion_that_loops_costs_in_proportion_to_its_length(loop, name):
    """Eight times the text: eight times the work, where it was 64 times. Of processor time, the least of three."""
    arguments = {"num_sentences": 3, "relation": "at least", "num_placeholders": 2}

    def seconds(length: int) -> float:
        text = ("```json" if loop == "\n" else "") + loop * (length // len(loop))
        taken = []
        for _ in range(3):
            start = time.process_time()
            RULES[name].check(text, arguments)
            taken.append(time.process_time() - start)
        return min(taken)

    assert seconds(128_000) < 20 * max(seconds(16_000), 0.001)
