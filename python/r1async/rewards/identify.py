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
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise ConfigError(
            "reward.identify_sentences: needs py3langid (pip install 'py3langid>=0.4'); false goes by script alone"
        ) from error
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(list(LANGUAGES[script]))
    return identifier
