"""Language consistency: the share of words of the target language, what is no word, and that padding does not pay."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from r1async.rewards.language import MIN_LETTERS, consistency, stripped, target_of
from r1async.rewards.words import Script, repeated_words, repetition, words_of

SENTENCES = {
    "en": "First we add the two numbers, then we divide the sum by three.",
    "fr": "D'abord on additionne les deux nombres, puis on divise la somme par trois.",
    "de": "Zuerst addieren wir die beiden Zahlen, dann teilen wir die Summe durch drei.",
    "es": "Primero sumamos los dos números y después dividimos la suma entre tres.",
    "ru": "Сначала сложим два числа, затем разделим сумму на три.",
    "zh": "首先把两个数相加，然后把和除以三。",
    "ja": "まず二つの数を足して、それから和を三で割ります。",
    "ko": "먼저 두 수를 더한 다음 합을 셋으로 나눕니다.",
    "ar": "أولا نجمع العددين ثم نقسم المجموع على ثلاثة.",
    "hi": "पहले हम दो संख्याओं को जोड़ते हैं, फिर योग को तीन से भाग देते हैं।",
}
UKRAINIAN = "Спочатку додамо два числа, потім поділимо суму на три."
PERSIAN = "ابتدا دو عدد را جمع می‌کنیم و سپس حاصل را بر سه تقسیم می‌کنیم."
MARATHI = "आधी आपण दोन संख्या मिळवतो आणि मग बेरजेला तीनने भागतो."


def share(text: str, target: str) -> float | None:
    return consistency(text, target).share


@pytest.mark.parametrize("target", SENTENCES)
def test_thought_in_its_language_is_all_of_it(target: str):
    assert consistency(SENTENCES[target], target).score == 1.0


@pytest.mark.parametrize("target", SENTENCES)
def test_thought_in_another_script_is_none_of_it(target: str):
    latin = ("en", "fr", "de", "es")
    others = [other for other in SENTENCES if other != target and not {target, other} <= set(latin)]
    assert [share(SENTENCES[other], target) for other in others] == [0.0] * len(others)


@pytest.mark.parametrize(
    ("text", "target", "expected"),
    [
        ("so we have 因此", "en", 3 / 5),  # three words against two characters
        ("so we have 因此", "zh", 2 / 5),
        ("값은 five 입니다", "ko", 2 / 3),  # eojeol
        ("ответ равен five", "ru", 2 / 3),
        ("we use x and y", "en", 1.0),  # variables are no words
        ("let α be the angle", "en", 1.0),
        ("let hеllo be", "en", 3 / 4),  # the е is Cyrillic: hello falls apart into a letter, a word of its, and llo
        ("don't can’t l'eau", "en", 1.0),
        ("計算", "ja", 1.0),  # a heading
        ("计算这两个数的和", "ja", 0.0),  # a sentence of Han without kana is none
        ("数を足す", "zh", 0.0),  # Han in a sentence with kana is Japanese
        ("数を足す。然后相加", "zh", 4 / 8),
    ],
)
def test_share_is_of_words(text: str, target: str, expected: float):
    assert share(text, target) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  \n ",
        "3 + 4 = 7",
        "x = y + z",
        "$\\text{nur deutsche Worte}$",
        "\\[ \\text{auch hier} \\] \\( und \\) $$ da $$",
        "\\begin{align} viele Worte \\end{align}",
        "\\boxed{zehn} \\frac{eins}{zwei}",
        "```python\nfor word in words: print(word)\n```",
        "```\ncode that is not closed",
        "`code` https://example.com/some/words www.example.com",
        "∀x∈ℝ: x²≥0, µ = 5, 30º, eⁿ",
        "<think></think>",
    ],
)
def test_thought_without_words_is_neutral(text: str):
    assert consistency(text, "en").score is None


def test_what_is_no_language_is_left_out():
    text = "We know $\\text{это}$ from `этот код` and https://example.com/это that it costs $5."
    assert share(text, "en") == 1.0
    assert "costs $5" in stripped(text)


def test_mathematics_that_is_not_closed_hides_nothing():
    assert share("so $ это всё ещё слова", "en") == 1 / 5
    assert share("so \\( это всё ещё слова", "en") == 1 / 5


def test_padding_does_not_raise_the_share():
    honest = SENTENCES["zh"]
    assert share(honest, "en") == 0.0
    for padding in ("the " * 500, "so the answer is five. " * 100, "and so on and so forth, " * 100):
        padded = consistency(honest + padding, "en")
        # The first time it is said it is a word like any other.
        assert padded.share is not None
        assert padded.share < 0.4
        assert padded.score is not None
        assert padded.score < 0.05


def test_repetition_costs_where_more_than_half_is_repeated():
    words = "one two three four five six seven eight nine ten"  # ten words, so that rows of eight repeat
    assert consistency(words, "en").score == 1.0
    twice = consistency(f"{words} {words}", "en")
    assert (twice.repeated, twice.score) == (0.5, 1.0)
    assert consistency(" ".join([words] * 4), "en").score == pytest.approx(2 * (1 - 0.75))


@pytest.mark.parametrize(("code", "target"), [("en", "en"), ("EN", "en"), ("zh-CN", "zh"), ("pt_BR", ""), ("", "")])
def test_target_is_an_iso_code(code: str, target: str):
    if target:
        assert target_of(code) == target
    else:
        with pytest.raises(ValueError, match="must be one of en, fr, de"):
            target_of(code)


def test_repeated_words_are_those_in_a_row_that_came_before():
    key = words_of("a1 b c d x b c d e", signs=True).key[1:]  # 1 b c d x b c d e
    assert repeated_words(key, 3).tolist() == [False] * 5 + [True] * 3 + [False]
    assert repeated_words(key, 9).tolist() == [False] * 9
    assert repeated_words(key[:0], 3).tolist() == []


@pytest.mark.parametrize(
    ("text", "row", "expected"),
    [
        ("a b a b a b", 2, 3 / 5),  # ab ba ab ba ab
        ("a b c d", 2, 0.0),
        ("x = 1 x = 1", 3, 1 / 4),
        ("A a", 1, 1 / 2),
        ("因此因此", 2, 1 / 3),
        ("a", 2, 0.0),
        ("", 2, 0.0),
    ],
)
def test_repetition_is_the_share_of_rows_seen_before(text: str, row: int, expected: float):
    assert repetition(text, row) == pytest.approx(expected)


@given(st.lists(st.sampled_from("ab"), max_size=40), st.integers(1, 6))
def test_repetition_agrees_with_a_set(letters: list[str], row: int):
    rows = [tuple(letters[i : i + row]) for i in range(len(letters) - row + 1)]
    expected = 1 - len(set(rows)) / len(rows) if rows else 0.0
    assert repetition(" ".join(letters), row) == pytest.approx(expected)


@given(st.text(), st.sampled_from(sorted(SENTENCES)))
def test_takes_anything(text: str, target: str):
    found = consistency(text, target)
    assert found.score is None or 0.0 <= found.score <= 1.0
    assert 0.0 <= repetition(text, 3) < 1.0 or not text


@given(st.text(alphabet="ab \n$`\\[](){}<>:/w.", max_size=60))
def test_stripping_takes_anything(text: str):
    assert len(stripped(text)) <= 3 * len(text) + 3


@pytest.mark.parametrize(
    "piece",
    [
        "the next word ",
        "the ",
        "$x^2$ so ",
        "$",
        "\\(",
        "\\( x \\) ",
        "`",
        "<a",
        "\\frac{",
        "\\begin{",
        "因此",
        "https://",
        "```",
    ],
)
def test_linear_in_length(piece: str):
    consistency(piece, "en")

    def seconds(repeats: int) -> float:
        text = piece * repeats
        best = 1e9
        for _ in range(3):
            start = time.process_time()
            consistency(text, "en")
            repetition(text, 20)
            best = min(best, time.process_time() - start)
        return best

    # Eight times the text: about eight times the time if linear, sixty-four if quadratic.
    assert seconds(80_000) < 25 * seconds(10_000) + 0.02


class TestWithIdentifier:
    """Where scripts coincide each sentence is identified."""

    @pytest.fixture(autouse=True)
    def _needs_py3langid(self):
        pytest.importorskip("py3langid")

    @staticmethod
    def share(text: str, target: str) -> float | None:
        from r1async.rewards.identify import identify

        return consistency(text, target, identify).share

    @pytest.mark.parametrize("target", SENTENCES)
    def test_each_language_is_itself(self, target: str):
        assert self.share(SENTENCES[target], target) == 1.0

    @pytest.mark.parametrize("target", ["en", "fr", "de", "es"])
    def test_latin_languages_are_told_apart(self, target: str):
        others = [SENTENCES[other] for other in ("en", "fr", "de", "es") if other != target]
        assert [self.share(other, target) for other in others] == [0.0, 0.0, 0.0]

    @pytest.mark.parametrize(("text", "target"), [(UKRAINIAN, "ru"), (PERSIAN, "ar"), (MARATHI, "hi")])
    def test_neighbours_are_told_apart(self, text: str, target: str):
        assert self.share(text, target) == 0.0

    def test_a_mixed_thought_is_mixed(self):
        # Eleven English words of 24: the French sentence has 13, its l's and d's within.
        text = f"{SENTENCES['en']} {SENTENCES['fr']}"
        words = [int((words_of(SENTENCES[each]).length > 1).sum()) for each in ("en", "fr")]
        assert self.share(text, "en") == pytest.approx(words[0] / sum(words))
        assert self.share(text, "fr") == pytest.approx(words[1] / sum(words))

    def test_what_is_short_is_told_together_with_the_next(self):
        asked: list[str] = []

        def identify(text: str, script: Script) -> str:
            asked.append(text)
            return "en"

        consistency("Oh. Well. Hm. Now then, this is a sentence of some length. So.", "en", identify)
        assert len(asked) == 1
        assert sum(letter.isalpha() for letter in asked[0]) >= MIN_LETTERS

    def test_what_cannot_be_told_counts_for_the_target(self):
        assert consistency(SENTENCES["fr"], "en", lambda text, script: "").share == 1.0


def test_identifier_is_not_asked_where_the_script_tells():
    def identify(text: str, script: Script) -> str:
        raise AssertionError("not needed")

    for target in ("zh", "ja", "ko"):
        assert consistency(SENTENCES[target], target, identify).share == 1.0
