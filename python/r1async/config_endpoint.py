"""Settings of a chat endpoint: the judge of a reward and the judge of an evaluation have one each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class EndpointConfig:
    url: str = ""
    """Where an OpenAI-compatible server listens, with its version: http://HOST:PORT/v1. /chat/completions is added."""
    model: str = ""
    """Name of the model, as the server knows it."""
    key_env: str = ""
    """Environment variable that holds the key (OPENAI_API_KEY). Empty: no key is sent."""
    concurrency: int = 16
    """Requests of one process in flight at most; more wait their turn."""
    tries: int = 5
    """Requests for one answer at most."""
    request_s: float = 60.0
    """Seconds that one request may take."""
    deadline_s: float = 180.0
    """Seconds that one answer may take, with all tries and the pauses between them, counted from its first request."""
    max_tokens: int = 1024
    """Tokens of an answer; 0 sends no limit (`body` may name another field, max_completion_tokens=2048)."""
    temperature: float = 0.0
    """Of the answer; -1 sends none, which some hosted models insist on."""
    body: tuple[str, ...] = ()
    """More fields of the request, name=value, the value read as JSON: seed=0,
    chat_template_kwargs={"enable_thinking": false}."""
    prompt_price: float = 0.0
    """What a million prompt tokens cost, in any currency."""
    completion_price: float = 0.0
    """What a million tokens of answers cost."""
