"""Does every row that rejection sampling kept pass every filter, when looked at by other code?

    python -m tests.check_kept runs/sample

Reads what `r1async sample` left in a run's folder (data/, samples/, card.json, config.yaml) and the files named there.
Nothing of the package is used. Languages are told apart by script alone, and an answer is compared as a text or as a
number: what needs a judge or a program's tests is counted as not checked, but for the verdict that was filed.

exit codes: 0 every row passes, 1 one does not
"""

from __future__ import annotations

import json
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

Row = Mapping[str, Any]
OPERATORS = "+*/=<>^%×÷√∑∫"
SCRIPTS = {
    "en": ("LATIN",), "fr": ("LATIN",), "de": ("LATIN",), "es": ("LATIN",), "zh": ("CJK",),
    "ja": ("HIRAGANA", "KATAKANA", "CJK"),
    "ko": ("HANGUL",), "ru": ("CYRILLIC",), "ar": ("ARABIC",), "hi": ("DEVANAGARI",),
}  # fmt: skip
ALONE = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL")
"""Scripts that a character is a word of, for overlaps."""


class Check:
    """What was looked at, and what was wrong with it."""

    def __init__(self) -> None:
        self.looked: Counter[str] = Counter()
        self.wrong: dict[str, list[str]] = {}

    def holds(self, what: str, good: bool, where: str) -> None:
        self.looked[what] += 1
        if not good:
            self.wrong.setdefault(what, []).append(where)

    def report(self) -> str:
        lines = []
        for what, count in self.looked.items():
            bad = self.wrong.get(what, [])
            lines.append(f"{what}: {count:,} looked at, {len(bad):,} violations" + "".join(f"\n  {x}" for x in bad[:5]))
        return "\n".join(lines)


def check(run: Path) -> Check:
    """Every filter of the run's card, on every row of its data set."""
    card = json.loads((run / "card.json").read_text())
    config = yaml.safe_load((run / "config.yaml").read_text())
    rows = pq.read_table(run / "data").to_pylist()
    verdicts = {(row["ordinal"], row["member"]): row for row in pq.read_table(run / "samples").to_pylist()}
    asked = list(table(Path(config["data"]["path"])))
    found = Check()
    sampled = [row for row in rows if row["member"] >= 0]
    for row in sampled:
        where = f"prompt {row['ordinal']}, completion {row['member']}"
        verdict = verdicts[row["ordinal"], row["member"]]
        check_text(found, row, where, card["settings"]["keep"], config["reward"])
        check_verdict(found, row, verdict, where, card["settings"]["keep"], config["reward"])
        check_answer(found, row, asked[row["ordinal"]], where, config)
    check_counts(found, sampled, card)
    check_overlap(found, rows, card["settings"], config)
    check_card(found, rows, card)
    return found


def check_text(found: Check, row: Row, where: str, keep: Row, reward: Row) -> None:
    thought = thought_in(row["completion"], reward)
    if keep["max_paragraph_chars"]:
        longest = max(map(len, paragraphs(row["completion"])))
        found.holds("no long paragraph", longest <= keep["max_paragraph_chars"], f"{where}: {longest} characters")
    if not keep["code_in_thought"]:
        found.holds("no code in the thought", "```" not in thought and "~~~" not in thought, where)
    if keep["min_language"]:
        share = share_of(thought, reward["target_language"])
        good = share is None or share >= keep["min_language"] - 1e-9
        found.holds("one language", good, f"{where}: {share}, {thought:.60}")


def check_verdict(found: Check, row: Row, verdict: Row, where: str, keep: Row, reward: Row) -> None:
    opening = reward["special_token"] if reward["format"] == "special_token" else "<think>"
    whole = (opening if reward["think_prefilled"] else "") + verdict["text"]
    found.holds("what was sampled, word for word", row["completion"] == whole, where)
    if not keep["truncated"]:
        found.holds("ended by itself", verdict["finish"] == "stop", where)
    parts = json.loads(verdict["parts"])
    known = {part: least for part, least in keep["parts"].items() if part in parts}
    good = verdict["total"] is not None and (bool(known) or not keep["parts"])
    found.holds(
        "a verdict at full marks", good and all(parts[p] >= known[p] - 1e-6 for p in known), f"{where}: {parts}"
    )


def check_answer(found: Check, row: Row, question: Row, where: str, config: Row) -> None:
    """By the reference of its row, where the domain's reward compares answers."""
    data, reward = config["data"], config["reward"]
    asked = question[data["prompt_key"]]
    text = asked if isinstance(asked, str) else asked[-1]["content"]
    found.holds("the prompt of its row", row["prompt"][-1]["content"] == text, where)
    domain = (reward["domains"] or {}).get(question.get(reward["domain_key"]), {"weights": reward["weights"]})
    if "accuracy" not in domain["weights"]:
        found.looked["not checked here: the answer needs a judge or tests"] += 1
        return
    answer, reference = answer_in(row["completion"]), str(question[data["answer_key"]])
    same = answer is not None and (plain(answer) == plain(reference) or number(answer) == number(reference) is not None)
    found.holds("right answer", same, f"{where}: {answer!r} is not {reference!r}")


def check_counts(found: Check, sampled: Sequence[Row], card: Row) -> None:
    each = Counter(row["ordinal"] for row in sampled)
    most = card["settings"]["keep"]["per_prompt"]
    for ordinal, count in each.items():
        found.holds(f"at most {most} of a prompt", count <= most, f"prompt {ordinal}: {count}")
    seen: dict[tuple[str, str], str] = {}
    for row in sampled:
        where = f"prompt {row['ordinal']}, completion {row['member']}"
        mark = words_alone(row["prompt"][-1]["content"]), words_alone(row["completion"])
        found.holds("no duplicate", mark not in seen, f"{where} says what {seen.get(mark)} says")
        seen.setdefault(mark, where)


def check_overlap(found: Check, rows: Sequence[Row], settings: Row, config: Row) -> None:
    """No run of n words in common with a text of an evaluation set; a shorter text nowhere whole."""
    rule = settings["decontaminate"]
    n, short = rule["ngram"], rule["short"]
    runs: dict[int, set[tuple[str, ...]]] = {}
    whole: set[tuple[str, ...]] = set()
    for text in evaluation_texts(rule, config["data"]):
        words = tuple(words_of(text))
        if len(words) < short:
            whole.add(words)
            continue
        size = min(n, len(words))
        runs.setdefault(size, set()).update(words[i : i + size] for i in range(len(words) - size + 1))
    for row in rows:
        where = f"prompt {row['ordinal']}, completion {row['member']}"
        prompt, completion = tuple(words_of(row["prompt"][-1]["content"])), tuple(words_of(row["completion"]))
        shared = [
            words[i : i + size]
            for words in (prompt, completion)
            for size, known in runs.items()
            for i in range(len(words) - size + 1)
            if words[i : i + size] in known
        ]
        good = not shared and not (prompt and prompt in whole)
        found.holds("no overlap with an evaluation set", good, f"{where}: {shared[:1] or prompt}")


def check_card(found: Check, rows: Sequence[Row], card: Row) -> None:
    told = card["completions"]
    found.holds("the card's sums", card["rows"] == len(rows), f"{card['rows']} rows, and there are {len(rows)}")
    kept = sum(row["member"] >= 0 for row in rows)
    found.holds("the card's sums", told["kept"] == kept, f"{told['kept']} kept, and there are {kept}")
    for name, each in (("all", told), *told["by_domain"].items()):
        total = each["kept"] + sum(each["dropped"].values())
        found.holds("the card's sums", each["sampled"] == total, f"{name}: {each['sampled']} sampled, {total} told of")
    both = [sum(each[key] for each in told["by_domain"].values()) for key in ("sampled", "kept")]
    found.holds("the card's sums", both == [told["sampled"], told["kept"]], f"domains add up to {both}")


def evaluation_texts(rule: Row, data: Row) -> Iterator[str]:
    for path in rule["against"].values():
        for row in table(Path(path)):
            yield from (told(row[key]) for key in rule["keys"] if row.get(key) is not None)
    if data["eval_path"] and data["eval_path"] != data["path"]:
        yield from (told(row[data["prompt_key"]]) for row in table(Path(data["eval_path"])))


def told(value: object) -> str:
    if isinstance(value, list):
        return "\n".join(str(each["content"]) for each in value)
    return str(value)


def table(path: Path) -> Iterable[Row]:
    if path.suffix == ".parquet" or path.is_dir():
        return pq.read_table(path).to_pylist()
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def thought_in(text: str, reward: Row) -> str:
    """What is said before the answer."""
    if reward["format"] == "special_token":
        pieces = text.split(reward["special_token"])
        return pieces[1] if len(pieces) > 2 else text
    begin, end = text.find("<think>"), text.find("</think>")
    return text[(begin + len("<think>")) if begin >= 0 else 0 : end if end >= 0 else len(text)]


def paragraphs(text: str) -> Iterator[str]:
    lines: list[str] = []
    for line in [*text.split("\n"), ""]:
        if line.strip():
            lines.append(line)
        elif lines:
            yield "\n".join(lines).strip()
            lines = []
    yield ""


def answer_in(text: str) -> str | None:
    """The last answer in tags, else in the last box that is closed: `\\boxed{7}\\boxed{` says 7."""
    end = text.rfind("</answer>")
    if end >= 0 and (begin := text.rfind("<answer>", 0, end)) >= 0:
        text = text[begin + len("<answer>") : end]
        if "\\boxed{" not in text:
            return text
    end = len(text)
    while (begin := text.rfind("\\boxed{", 0, end)) >= 0:
        depth = 0
        for i in range(begin + len("\\boxed"), len(text)):
            depth += {"{": 1, "}": -1}.get(text[i], 0)
            if depth == 0:
                return text[begin + len("\\boxed{") : i]
        end = begin
    return None


def plain(text: str) -> str:
    return "".join(text.split()).strip("$.")


def number(text: str) -> Fraction | None:
    try:
        return Fraction(Decimal(plain(text)))
    except (InvalidOperation, ValueError, OverflowError):
        return None


def script(sign: str) -> str:
    return unicodedata.name(sign, "").split(" ")[0]


def share_of(text: str, language: str) -> float | None:
    """Share of words in the language's script; None without words. A letter by itself is a variable."""
    mine = other = 0
    word = ""
    for sign in [*text, " "]:
        kind = script(sign)
        if sign.isalpha() and kind not in ALONE:
            word += sign
            continue
        if len(word) > 1:
            mine, other = (mine + 1, other) if script(word[0]) in SCRIPTS[language] else (mine, other + 1)
        word = ""
        if sign.isalpha():
            mine, other = (mine + 1, other) if kind in SCRIPTS[language] else (mine, other + 1)
    return mine / (mine + other) if mine + other else None


def words_of(text: str) -> Iterator[str]:
    """Words, numbers, operators; a minus that stands at a number."""
    text = unicodedata.normalize("NFKC", text).replace("−", "-").casefold()
    word = ""
    for i, sign in enumerate([*text, " "]):
        kind = "letter" if sign.isalpha() and script(sign) not in ALONE else "digit" if sign.isdecimal() else ""
        if word and kind != ("digit" if word[0].isdecimal() else "letter"):
            yield word
            word = ""
        if kind:
            word += sign
        elif sign.isalpha() or sign in OPERATORS or (sign == "-" and _at_a_number(text, i)):
            yield sign


def _at_a_number(text: str, i: int) -> bool:
    """A digit behind it, spaces between or not, or right before it, one space between at most."""
    behind = text[i + 1 :].lstrip()
    before = text[:i][-2:]
    return behind[:1].isdecimal() or before[-1:].isdecimal() or (before[-1:].isspace() and before[:1].isdecimal())


def words_alone(text: str) -> str:
    return " ".join(words_of(text))


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1:
        print(__doc__)
        return 2
    found = check(Path(arguments[0]))
    print(found.report())
    return 1 if found.wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
