"""Units behind numbers: which they are, which are the same, and which letters are variables and none."""

from __future__ import annotations

import re
from typing import NamedTuple

from r1async.rewards.reading import FUNCTIONS, MAX_PRODUCT


class Quantity(NamedTuple):
    """A text and the unit behind it."""

    value: str
    unit: str
    """In one spelling; empty if there is none."""


_DEGREES = re.compile(r"\s?(?:\^\s?\{?\s?\\circ\s?\}?|°)\s?([CF]?)$")
_UNIT = re.compile(
    r"(?:(?<=[\d)}!\]])|(?<=\\pi)|(?<=\\pi\s))\s?((?:[A-Za-z]{2,}|(?<=\s)[a-zA-Z](?=\s?/))(?:[\s./-]{1,3}[A-Za-z]+)*\.?(?:\s?\^\s?\{?-?\d\}?)?)$"
)
_SPELLINGS = {
    spelling: name
    for name, spellings in {
        "mm": "millimeter millimetre",
        "cm": "centimeter centimetre",
        "m": "meter metre",
        "km": "kilometer kilometre",
        "in": "inch inche",
        "ft": "foot feet",
        "mi": "mile",
        "s": "sec second",
        "min": "minute",
        "h": "hr hour",
        "g": "gram",
        "kg": "kilogram",
        "l": "liter litre",
        "degree": "deg",
        "radian": "rad",
        "dollar": "usd buck",
    }.items()
    for spelling in spellings.split()
}
_SCALES = frozenset(
    re.findall(
        r"\w+",
        "hundred thousand million billion trillion dozen half halve third fourth fifth quarter tenth "
        "hundredth thousandth squared cubed factorial plus minus time over mod base percent not "
        "kilo mega giga tera milli micro nano pair couple score gross lakh crore double triple twice thrice "
        "sixth seventh eighth ninth eleventh twelfth twentieth ten myriad quadrillion quintillion millionth billionth "
        "trillionth negative inverse reciprocal doubled tripled halved bn mn mil ppm gros "
        "zero one two three four five six seven eight nine eleven twelve thirteen fourteen fifteen sixteen seventeen "
        "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety ii iii iv vi vii viii ix",
    )
)
"""Words that change the number before them."""


_NO_UNITS = frozenset(
    re.findall(
        r"\w+",
        "at most least is are was be wrong incorrect false true not no ish about around maybe perhaps approximately "
        "roughly nearly almost more less fewer greater smaller than above below under except but without never nor "
        "unless if else when isn only same also",
    )
)
"""Words behind a number that say something about it."""


def quantity_of(text: str) -> Quantity:
    """A text without the unit at its end: words behind a number, or a degree sign."""
    if match := _DEGREES.search(text):
        return Quantity(text[: match.start()].strip(), f"degree {match[1].lower()}".strip())
    if match := _UNIT.search(text):
        words = re.split(r"([\s./^{}-]+)", match[1].lower().rstrip("."))
        spaced = text[match.start()].isspace()
        if not (_is_product(words[0], spaced=spaced) or any(word in FUNCTIONS - {"min", "sec"} for word in words)):
            return Quantity(text[: match.start()].strip(), _one_unit("".join(map(_one_spelling, words)).strip()))
    return Quantity(text, "")


_SHORT_UNITS = frozenset(
    re.findall(
        r"\w+",
        "mm cm dm km nm in ins ft yd yds mi mph kph kmh fps min mins sec secs ms ns hr hrs day days yr yrs kg "
        "mg lb lbs oz ton tons ml cl dl kl gal qt qts pt pts cc sq cu hz khz mhz ghz kw mw kv mv kj ev kn pa "
        "kpa mpa atm mol mols bar deg rad cal db kb gb tb mb bit bits bps usd eur gbp us men cup cups box "
        "eggs egg ways way inch foot feet one hundred dozen mod per old am pm two six ten bn mn mil ppm not "
        "is at are was be no ish but nor if",
    )
)


def _is_product(word: str, *, spaced: bool) -> bool:
    """Whether letters behind a number are variables, the ``xy`` of ``3xy``, and no unit: it must not be left out."""
    if word in _SHORT_UNITS or not word.isalpha():
        return False
    if len(word) == 1:
        return word not in "mglshjnvwk"  # x/y; m/s is a unit
    if len(word) > MAX_PRODUCT:
        return not spaced and sorted(set(word)) == list(word)  # abcd
    return not (spaced and len(word) == MAX_PRODUCT and word[1] in "aeiou")


_POWERS = re.compile(r"(square|sq|cubic|cu)\.? (\w+)")


def _one_unit(unit: str) -> str:
    """``ft^2`` of ``square ft``, ``mi/h`` of ``mi per h``."""
    unit = _POWERS.sub(lambda match: f"{match[2]}^{2 if match[1].startswith('sq') else 3}", unit)
    return _UNITS.get(unit, unit).replace(" per ", "/")


_UNITS = {"mph": "mi/h", "kph": "km/h", "kmh": "km/h", "degree celsiu": "degree c", "degree fahrenheit": "degree f"}


def _one_spelling(word: str) -> str:
    if not word or not word[0].isalpha():
        return re.sub(r"[\s{}]+", " " if not re.search(r"[/^]", word) else "", word)
    singular = word.removesuffix("s") if len(word) > 2 else word
    return _SPELLINGS.get(singular, singular)


_NUMBER_LETTER = re.compile(r"[-+\d.,/ ]*\d ?([a-zA-Z])")


def other_letter(ours: str, theirs: str) -> bool:
    """Whether two numbers have different letters behind them, ``5 m`` and ``5 h``: algebra drops both."""
    a, b = _NUMBER_LETTER.fullmatch(ours), _NUMBER_LETTER.fullmatch(theirs)
    return a is not None and b is not None and a[1] != b[1]


_LONE = re.compile(r"(?:[\d)}!\]]|\\pi)\s?([a-zA-Z])$")


def lone_unit(text: str, other: str) -> str:
    """The one letter behind a number, where the other side has a unit there: the ``s`` of ``5 s`` beside ``5 ms``."""
    match = _LONE.search(text) if other else None
    return _SPELLINGS.get(match[1], match[1]) if match else ""


def units_agree(ours: str, theirs: str) -> bool:
    """Whether two units are the same, or one is left out where it changes nothing: ``5`` and ``5 cm``."""
    if ours == theirs:
        return True
    words = re.split(r"[^a-z]+", ours or theirs)
    return not (ours and theirs) and not any(word in _SCALES or word in _NO_UNITS for word in words)
