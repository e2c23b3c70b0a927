"""What the settings of rewards by domain, judges, reward models and pools must satisfy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from r1async.config_endpoint import EndpointConfig
from r1async.config_rewards import BUILT_IN_POOLS, REWARD_PARTS
from r1async.ranges import COUNT, MAYBE, SECONDS, SHARE, Range
from r1async.reward_pools import lines_of, models_of, pool_names, pools_of, weights_of

if TYPE_CHECKING:
    from r1async.config import Config

TRIES = Range(1, 100)
ENDPOINT = {
    "concurrency": Range(1, 4096),
    "tries": TRIES,
    "request_s": SECONDS,
    "deadline_s": SECONDS,
    "max_tokens": MAYBE,
    "temperature": Range(-1, 10),
    "prompt_price": Range(0),
    "completion_price": Range(0),
}
"""Ranges of an endpoint's settings."""
MODEL = {
    "concurrency": Range(1, 4096),
    "tries": TRIES,
    "request_s": SECONDS,
    "deadline_s": SECONDS,
    "worst": Range(-1e6, 1e6),
    "max_chars": COUNT,
    "max_tokens": COUNT,
    "batch_tokens": Range(1, 2**31),
    "threads": Range(1, 1024),
}
RANGES: dict[str, Range] = {
    "reward.judge.max_chars": COUNT,
    **{f"reward.judge.endpoint.{name}": allowed for name, allowed in ENDPOINT.items()},
    **{f"reward.{part}.{name}": each for part in ("helpfulness", "harmlessness") for name, each in MODEL.items()},
    "scorer.alarm_rate": SHARE,
    "reward.swe.timeout_s": Range(0, 86400, above=True),
    "reward.swe.memory_mib": Range(16, 2**20),
    "reward.swe.files_mib": Range(16, 2**20),
    "reward.swe.processes": Range(1, 32768),
    "reward.swe.controls": Range(0, 1000),
    "reward.swe.control_passing": Range(0, 100_000),
    "reward.swe.gold_runs": Range(1, 1000),
    "reward.swe.max_patch_kib": Range(1, 2**20),
    "reward.swe.deadline_s": SECONDS,
    "rollout.environments": Range(1, 4096),
    "reward.swe.turns": Range(1, 10_000),
    "reward.swe.turn_s": SECONDS,
    "reward.swe.session_s": SECONDS,
    "reward.swe.observation_chars": Range(16, 2**24),
}
POOL = {
    "workers": Range(0, 1024),
    "queue": Range(0, 1_000_000),
    "deadline_s": Range(0, 30 * 86400),
    "retries": Range(-1, 100),
    "memory_mb": Range(-1, 1_000_000_000),
}


def pools_out_of_range(config: Config) -> list[str]:
    found = []
    for name, pool in config.scorer.pools.items():
        values = {
            "workers": pool.workers,
            "queue": pool.queue,
            "deadline_s": pool.deadline_s,
            "retries": pool.retries,
            "memory_mb": pool.memory_mb,
        }
        found += [
            f"scorer.pools.{name}.{key}: must be {POOL[key]}, got {value}"
            for key, value in values.items()
            if not POOL[key].holds(value)
        ]
    return found


def reward_problems_of_parts(config: Config) -> list[str]:
    """Parts that there are not, that lack what they need, or that no pool can grade."""
    found = []
    for domain, weights in weights_of(config.reward).items():
        key = f"reward.domains.{domain}.weights" if domain else "reward.weights"
        if not weights:
            found.append(f"{key}: must name at least one part, as in {{accuracy: 1.0}}")
        for part in weights:
            module, colon, function = part.partition(":")
            if part not in REWARD_PARTS and not (colon and module and function):
                found.append(f"{key}.{part}: must be {', '.join(REWARD_PARTS)}, or module:function of your own")
    return found or [*_asked_problems(config), *_pool_problems(config)]


def _asked_problems(config: Config) -> list[str]:
    reward, found = config.reward, []
    if "judge" in reward.parts:
        found += endpoint_problems(reward.judge.endpoint, "reward.judge.endpoint")
        found += template_problems(reward.judge.template) if reward.judge.template else []
    models = models_of({"": reward.parts}, reward)
    for part, model in models.items():
        key = f"reward.{part}"
        if bool(model.path) == bool(model.url):
            found.append(f"{key}: set path=DIR of a sequence classifier, or url=http://HOST:PORT/classify of a server")
        if model.url and not model.url.startswith(("http://", "https://")):
            found.append(f"{key}.url: must begin with http:// or https://, got {model.url!r}")
        if model.url and not model.model:
            found.append(f"{key}.model: must name the model as the server knows it; it is empty")
        if model.url and model.deadline_s < model.request_s:
            found.append(f"{key}.deadline_s: {model.deadline_s:g} is less than one request's {model.request_s:g} s")
        found += body_problems(model.body, key)
    if len({bool(model.url) for model in models.values()}) > 1:
        found.append("reward.helpfulness, reward.harmlessness: both by path or both by url; one pool grades them")
    return found


def _pool_problems(config: Config) -> list[str]:
    found, seen = [], {}
    for name, pool in config.scorer.pools.items():
        for part in pool.parts:
            if ":" not in part:
                found.append(f"scorer.pools.{name}.parts: may only have module:function parts, got {part!r}")
            elif part not in config.reward.parts:
                found.append(f"scorer.pools.{name}.parts: no domain's reward has the part {part!r}")
            if part in seen:
                found.append(f"scorer.pools.{name}.parts: {part!r} is in scorer.pools.{seen[part]} too")
            seen[part] = name
        if name not in BUILT_IN_POOLS and not pool.parts:
            known = ", ".join(BUILT_IN_POOLS)
            found.append(f"scorer.pools.{name}: must be {known}, or list the functions it grades under parts")
        if name in ("judge", "reward_model") and pool.parts:
            found.append(f"scorer.pools.{name}.parts: its workers ask others; functions need a pool of their own")
    lines = lines_of(pools_of(config.resolved_reward, config.scorer))
    for name in config.scorer.serve:
        if name not in lines:
            what = "no rollout waits for that pool" if name in pool_names(config.scorer) else "there is no such pool"
            found.append(f"scorer.serve: {name}: {what}; rollouts wait for {', '.join(lines)}")
    return found


def endpoint_problems(settings: EndpointConfig, key: str) -> list[str]:
    """Why an endpoint cannot work, as sentences that begin with the setting.

    Args:
        key: of `settings`: `reward.judge.endpoint`.
    """
    found = []
    if not settings.url.startswith(("http://", "https://")):
        found.append(f"{key}.url: must be http://HOST:PORT/v1 of an OpenAI-compatible server, got {settings.url!r}")
    if not settings.model:
        found.append(f"{key}.model: must name the model as the server knows it; it is empty")
    found += body_problems(settings.body, key)
    if settings.deadline_s < settings.request_s:
        found.append(f"{key}.deadline_s: {settings.deadline_s:g} is less than one request's {settings.request_s:g} s")
    return found


def body_problems(words: tuple[str, ...], key: str) -> list[str]:
    """Further fields of a request that cannot be."""
    found = []
    for word in words:
        name, equals, _ = word.partition("=")
        if not equals or not name or name in ("messages", "model", "stream"):
            found.append(f"{key}.body: must be name=value of another field than messages, model, stream, got {word!r}")
    return found


def template_problems(template: str) -> list[str]:
    """Why a judge's template cannot work."""
    if "{prediction}" not in template:
        return ["reward.judge.template: must have {prediction} in it, where what is judged goes"]
    return []
