"""Which language a sentence is in, among those of one script: py3langid, which works offline on numpy alone.

Chosen for being maintained (trafilatura's author, 0.4 of 2026), small (4.6 MB with its model, no dependency but
numpy) and offline; it tells 139 languages, is given those of one script here, and takes 0.1 ms a sentence. lingua is
better on single words, which are not asked for here, and is a wheel of 96 MB; the fastText wrappers download models
or need a compiler. Loading takes a second and 100 MB, once in each worker process.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from r1async.config import ConfigError
from r1async.rewards.words import Script

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

LANGUAGES: dict[Script, tuple[str, ...]] = {
    Script.LATIN: ("en", "fr", "de", "es", "it", "pt", "nl", "pl", "sv", "cs", "ro", "tr", "vi", "id"),
    Script.CYRILLIC: ("ru", "uk", "be", "bg", "sr", "mk"),
    Script.ARABIC: ("ar", "fa", "ur"),
    Script.DEVANAGARI: ("hi", "mr", "ne"),
}
"""Candidates by script: the targets, and neighbours that would be taken for them."""
MIN_PROBABILITY = 0.5
"""A less certain label is none."""


def identify(text: str, script: Script) -> str:
    """Code of the language, or "" if it is not to be told.

    Raises:
        ConfigError: py3langid is not installed.
    """
    language, probability = _identifier(script).classify(text)
    return str(language) if probability >= MIN_PROBABILITY else ""


@cache
def _identifier(script: Script) -> LanguageIdentifier:
    return _load(LANGUAGES[script])


@cache
def _ifeval_identifier() -> LanguageIdentifier:
    return _load(IFEVAL_LANGUAGES)


def _load(languages: tuple[str, ...]) -> LanguageIdentifier:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise ConfigError(
            "reward.identify_sentences: needs py3langid (pip install 'py3langid>=0.4'); false goes by script alone"
        ) from error
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(list(languages))
    return identifier


IFEVAL_LANGUAGES = (
    "en", "es", "pt", "ar", "hi", "fr", "ru", "de", "ja", "it", "bn", "uk", "th", "ur", "ta", "te", "bg", "ko", "pl",
    "he", "fa", "vi", "ne", "sw", "kn", "mr", "gu", "pa", "ml", "fi",
)  # fmt: skip
"""Languages that IFEval asks for (arXiv 2311.07911)."""


def identify_any(text: str) -> str:
    """Code of the likeliest of IFEval's languages, however certain: one of them was asked for.

    Raises:
        ConfigError: py3langid is not installed.
    """
    return str(_ifeval_identifier().classify(text)[0])
