"""IFEval's verifiable instructions: is each of a prompt's instructions followed, to the letter?

A sample is right if all of them are, on the response as it stands (the paper's prompt-level strict accuracy). The
response is what comes after the thought; the rules are the published list of 25, in our own code.

Source: Zhou et al., "Instruction-following evaluation for large language models" (arXiv 2311.07911), table 1.
Deviations, where the published program uses libraries: sentences and words are split by the rules below instead of
NLTK's, languages are told by py3langid instead of langdetect, and keywords are literal text, never regular expressions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

Arguments = Mapping[str, object]
Rule = Callable[[str, Arguments], bool]
Identify = Callable[[str], str]
"""Language code of a text, "" where it cannot be told."""

RELATIONS = ("less than", "at least")
OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
"""Of `detectable_format:constrained_response`."""


class Instruction(NamedTuple):
    """One instruction of a prompt."""

    name: str
    """As published: `group:rule`."""
    arguments: Arguments


def read_instructions(names: object, arguments: object) -> list[Instruction]:
    """A prompt's instructions from the columns `instruction_id_list` and `kwargs` of the data set.

    Raises:
        ValueError: an unknown instruction, or arguments that it does not have or cannot use; the message names both.
    """
    if not isinstance(names, list) or not isinstance(arguments, list) or len(names) != len(arguments) or not names:
        raise ValueError("instruction_id_list and kwargs must be lists of one length, at least 1")
    found = []
    for name, given in zip(names, arguments, strict=True):
        if name not in RULES:
            raise ValueError(f"instruction {name!r} is not one of IFEval's: {', '.join(RULES)}")
        given = given or {}
        if not isinstance(given, dict):
            raise ValueError(f"kwargs of {name} must be an object, got {given!r:.100}")
        instruction = Instruction(str(name), {key: value for key, value in given.items() if value is not None})
        _check(instruction)
        found.append(instruction)
    return found


def followed(instructions: Sequence[Instruction], response: str, identify: Identify) -> list[bool]:
    """Which instructions a response follows; an empty response follows none."""
    if not response.strip():
        return [False] * len(instructions)
    return [_follows(each, response, identify) for each in instructions]


def _follows(instruction: Instruction, response: str, identify: Identify) -> bool:
    if instruction.name in LANGUAGE_RULES:
        return LANGUAGE_RULES[instruction.name](response, instruction.arguments, identify)
    return RULES[instruction.name].check(response, instruction.arguments)


def _check(instruction: Instruction) -> None:
    """The arguments are there and of their type, before a model is asked anything."""
    for key, kind in RULES[instruction.name].wants.items():
        value = instruction.arguments.get(key)
        fits = isinstance(value, kind) and not isinstance(value, bool)
        if kind is list:
            fits = isinstance(value, list) and all(isinstance(each, str) for each in value)
        if kind is int and isinstance(value, float) and value.is_integer():
            fits = True  # a parquet column with holes holds floats
        if not fits:
            raise ValueError(f"{instruction.name} needs {key}, {kind.__name__}, got {value!r:.100}")
        if key.endswith("relation") and value not in RELATIONS:
            raise ValueError(f"{instruction.name}: {key} must be {' or '.join(RELATIONS)}, got {value!r}")


def number(arguments: Arguments, key: str) -> int:
    value = arguments[key]
    assert isinstance(value, int | float), "arguments are checked when they are read"
    return int(value)


def text(arguments: Arguments, key: str) -> str:
    value = arguments[key]
    assert isinstance(value, str), "arguments are checked when they are read"
    return value.strip()


def texts(arguments: Arguments, key: str) -> list[str]:
    value = arguments[key]
    assert isinstance(value, list), "arguments are checked when they are read"
    return [str(each) for each in value]


def compared(count: int, arguments: Arguments, threshold: str, relation: str) -> bool:
    """Both relations of the list: `less than` is below the threshold, `at least` from it on."""
    limit = number(arguments, threshold)
    return count < limit if arguments[relation] == "less than" else count >= limit


_WORD = re.compile(r"\w+")
_TOKEN = re.compile(r"(?:[A-Z]\.){2,}|\w+(?:[-'’]\w+)*")
"""A word with its hyphens, or initials such as U.S."""
_ABBREVIATION = re.compile(
    r"\b(?:[A-Za-z]|Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|vs|etc|e\.g|i\.e|Inc|Ltd|Co|Fig|No|approx)\.$", re.IGNORECASE
)
_STOP = re.compile(r"[.!?…]+[\"'”’)\]*_]*(?=\s|$)|[。！？]+[」』”’）]*")


def num_words(response: str) -> int:
    return len(_WORD.findall(response))


def num_sentences(response: str) -> int:
    """Sentences end at a stop before white space, not at abbreviations, initials or numbers of a list."""
    count = 0
    for paragraph in re.split(r"\n\s*\n", response):
        count += _sentences_of(paragraph)
    return count


_NEXT = re.compile(r"\s*(\S)")
_LISTED = re.compile(r"(?:^|\n)\s*\d+\.$")
LOOK_BACK = 32
"""Characters before a stop in which an abbreviation or a number of a list stands."""


def _sentences_of(paragraph: str) -> int:
    # No slice of all that is left or passed at each stop: a completion that loops has thousands of them.
    count, begin, looked = 0, 0, 0
    for stop in _STOP.finditer(paragraph):
        after = _NEXT.match(paragraph, stop.end())
        if stop[0] == "." and after:
            before = paragraph[max(begin, stop.end() - LOOK_BACK) : stop.end()]
            if _ABBREVIATION.search(before) and not before.endswith(" I."):
                continue
            if after[1].islower() or _LISTED.search(before):
                continue
        if _WORD.search(paragraph, looked, stop.end()):
            count += 1
            begin = stop.end()
        looked = stop.end()
    return count + bool(_WORD.search(paragraph, looked))


def _keywords(response: str, arguments: Arguments) -> bool:
    lowered = response.casefold()
    return all(each.casefold() in lowered for each in texts(arguments, "keywords"))


def _keyword_frequency(response: str, arguments: Arguments) -> bool:
    keyword = text(arguments, "keyword").casefold()
    return bool(keyword) and compared(response.casefold().count(keyword), arguments, "frequency", "relation")


def _forbidden_words(response: str, arguments: Arguments) -> bool:
    return not any(
        re.search(rf"(?<!\w){re.escape(word)}(?!\w)", response, re.IGNORECASE)
        for word in texts(arguments, "forbidden_words")
    )


def _letter_frequency(response: str, arguments: Arguments) -> bool:
    letter = text(arguments, "letter").lower()
    return bool(letter) and compared(response.lower().count(letter), arguments, "let_frequency", "let_relation")


def _sentences(response: str, arguments: Arguments) -> bool:
    return compared(num_sentences(response), arguments, "num_sentences", "relation")


def _words(response: str, arguments: Arguments) -> bool:
    return compared(num_words(response), arguments, "num_words", "relation")


def _paragraphs(response: str, arguments: Arguments) -> bool:
    """Divided by ``***``; an empty one is allowed at either end and nowhere else."""
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", response)]
    if not all(parts[1:-1]):
        return False
    return sum(bool(part) for part in parts) == number(arguments, "num_paragraphs")


def _nth_paragraph(response: str, arguments: Arguments) -> bool:
    """Divided by empty lines; one of them begins with a certain word."""
    parts = response.split("\n\n")
    count, nth = sum(bool(part.strip()) for part in parts), number(arguments, "nth_paragraph")
    if count != number(arguments, "num_paragraphs") or not 1 <= nth <= count:
        return False
    words = parts[nth - 1].split(maxsplit=1)
    if not words:
        return False
    first = re.split(r"[.,?!'\"]", words[0].lstrip("'\""), maxsplit=1)[0]
    return first.casefold() == text(arguments, "first_word").casefold()


def _placeholders(response: str, arguments: Arguments) -> bool:
    return len(re.findall(r"\[[^\[\]\n]*\]", response)) >= number(arguments, "num_placeholders")


def _postscript(response: str, arguments: Arguments) -> bool:
    marker = text(arguments, "postscript_marker")
    known = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    pattern = known.get(marker, re.escape(marker.lower()))
    return re.search(pattern, response.lower()) is not None


def _bullets(response: str, arguments: Arguments) -> bool:
    bullets = re.findall(r"^[ \t]*(?:\*[^*\n]|-).*$", response, re.MULTILINE)
    return len(bullets) == number(arguments, "num_bullets")


def _constrained(response: str, arguments: Arguments) -> bool:
    return any(option in response for option in OPTIONS)


def _highlights(response: str, arguments: Arguments) -> bool:
    found = re.findall(r"\*\*([^\n*]+)\*\*|\*([^\n*]+)\*", response)
    return sum(bool((twice or once).strip()) for twice, once in found) >= number(arguments, "num_highlights")


def _sections(response: str, arguments: Arguments) -> bool:
    marks = re.findall(rf"{re.escape(text(arguments, 'section_spliter'))}\s?\d+", response)
    return len(marks) >= number(arguments, "num_sections")


def _json(response: str, arguments: Arguments) -> bool:
    inside = response.strip()
    if len(inside) >= 6 and inside.startswith("```") and inside.endswith("```"):
        inside = inside[3:-3]
        inside = inside[4:] if inside[:4].lower() == "json" else inside
    try:
        json.loads(inside)
    except (ValueError, RecursionError):
        return False
    return True


def _title(response: str, arguments: Arguments) -> bool:
    """In double angle brackets on one line, with more between them than white space and brackets."""
    for line in response.split("\n"):
        begin, end = line.find("<<"), line.rfind(">>")
        if 0 <= begin < end and line[begin + 2 : end].strip(" \t<>"):
            return True
    return False


def _two_responses(response: str, arguments: Arguments) -> bool:
    """Two different ones, divided by six asterisks."""
    parts = [part.strip() for part in response.split("******")]
    if not all(parts[1:-1]):
        return False
    given = [part for part in parts if part]
    return len(given) == 2 and given[0] != given[1]


def _repeat_prompt(response: str, arguments: Arguments) -> bool:
    return response.strip().lower().startswith(text(arguments, "prompt_to_repeat").lower())


def _end(response: str, arguments: Arguments) -> bool:
    return response.strip().strip('"').lower().endswith(text(arguments, "end_phrase").lower())


def _capital_words(response: str, arguments: Arguments) -> bool:
    capital = sum(word.isupper() for word in _TOKEN.findall(response))
    return compared(capital, arguments, "capital_frequency", "capital_relation")


def _no_comma(response: str, arguments: Arguments) -> bool:
    return "," not in response


def _quotation(response: str, arguments: Arguments) -> bool:
    whole = response.strip()
    return len(whole) > 1 and whole[0] == whole[-1] == '"'


def _never(response: str, arguments: Arguments) -> bool:
    raise AssertionError("rules about languages are in LANGUAGE_RULES")


def _is_in(response: str, language: str, identify: Identify) -> bool:
    """In lower case, which identifiers know better; a response without letters is in any language."""
    if not any(letter.isalpha() for letter in response):
        return True
    return identify(response.lower()) == language


def _language(response: str, arguments: Arguments, identify: Identify) -> bool:
    return _is_in(response, text(arguments, "language"), identify)


def _english_capital(response: str, arguments: Arguments, identify: Identify) -> bool:
    return response.isupper() and _is_in(response, "en", identify)


def _english_lowercase(response: str, arguments: Arguments, identify: Identify) -> bool:
    return response.islower() and _is_in(response, "en", identify)


LANGUAGE_RULES: dict[str, Callable[[str, Arguments, Identify], bool]] = {
    "language:response_language": _language,
    "change_case:english_capital": _english_capital,
    "change_case:english_lowercase": _english_lowercase,
}


class Spec(NamedTuple):
    check: Rule
    wants: Mapping[str, type]
    """Arguments and their types."""


RULES: dict[str, Spec] = {
    "keywords:existence": Spec(_keywords, {"keywords": list}),
    "keywords:frequency": Spec(_keyword_frequency, {"keyword": str, "frequency": int, "relation": str}),
    "keywords:forbidden_words": Spec(_forbidden_words, {"forbidden_words": list}),
    "keywords:letter_frequency": Spec(_letter_frequency, {"letter": str, "let_frequency": int, "let_relation": str}),
    "language:response_language": Spec(_never, {"language": str}),
    "length_constraints:number_sentences": Spec(_sentences, {"num_sentences": int, "relation": str}),
    "length_constraints:number_paragraphs": Spec(_paragraphs, {"num_paragraphs": int}),
    "length_constraints:number_words": Spec(_words, {"num_words": int, "relation": str}),
    "length_constraints:nth_paragraph_first_word": Spec(
        _nth_paragraph, {"num_paragraphs": int, "nth_paragraph": int, "first_word": str}
    ),
    "detectable_content:number_placeholders": Spec(_placeholders, {"num_placeholders": int}),
    "detectable_content:postscript": Spec(_postscript, {"postscript_marker": str}),
    "detectable_format:number_bullet_lists": Spec(_bullets, {"num_bullets": int}),
    "detectable_format:constrained_response": Spec(_constrained, {}),
    "detectable_format:number_highlighted_sections": Spec(_highlights, {"num_highlights": int}),
    "detectable_format:multiple_sections": Spec(_sections, {"section_spliter": str, "num_sections": int}),
    "detectable_format:json_format": Spec(_json, {}),
    "detectable_format:title": Spec(_title, {}),
    "combination:two_responses": Spec(_two_responses, {}),
    "combination:repeat_prompt": Spec(_repeat_prompt, {"prompt_to_repeat": str}),
    "startend:end_checker": Spec(_end, {"end_phrase": str}),
    "startend:quotation": Spec(_quotation, {}),
    "change_case:capital_word_frequency": Spec(_capital_words, {"capital_frequency": int, "capital_relation": str}),
    "change_case:english_capital": Spec(_never, {}),
    "change_case:english_lowercase": Spec(_never, {}),
    "punctuation:no_comma": Spec(_no_comma, {}),
}
"""The 25 instructions of the paper, by their published names."""
