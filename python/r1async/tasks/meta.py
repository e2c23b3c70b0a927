"""What of a prompt travels to graders: a small JSON object, since a row's other columns have no fixed shape."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from r1async.types import Prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A prompt as graders see it: `types.Prompt` without its tokens and its place in the order."""

    text: str
    answer: str
    extra: Mapping[str, str] = field(default_factory=dict)


def encode_meta(prompt: Prompt | Question) -> bytes:
    """The `metas` entry of a prompt (docs/protocol.md)."""
    meta = {"text": prompt.text, "answer": prompt.answer, "extra": dict(prompt.extra)}
    return json.dumps(meta, ensure_ascii=False, separators=(",", ":")).encode()


def decode_meta(meta: bytes) -> Question:
    """Inverse of `encode_meta`.

    Raises:
        ValueError: not JSON, or not of that shape; the message says which key.
    """
    match json.loads(meta):
        case {"text": str(text), "answer": str(answer), "extra": dict(extra)}:
            return Question(text=text, answer=answer, extra=extra)
        case other:
            raise ValueError(f"a prompt's meta must have text, answer (strings) and extra (a map), got {other!r:.200}")
