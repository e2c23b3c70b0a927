"""What completions on disk and their verdicts came from: under other settings they may not be gone on with."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from r1async.config import Config, RewardConfig
from r1async.sample.parts import Parts
from r1async.sample.prompts import Mixed
from r1async.tasks.file import digest_of

_RULES = ("format", "special_token", "think_prefilled", "equivalence", "target_language", "identify_sentences")
"""Settings of the reward, besides its parts, that verdicts came from."""
_MODEL = ("path", "url", "model", "body", "worst", "max_chars", "max_tokens", "activation", "template")
_OF_PART = {
    "code": ("credit", "language", "time_limit_s", "time_factor", "memory_limit_mib", "deadline_s", "tolerance"),
    "swe": ("answer", "controls", "control_passing", "introspection", "max_patch_kib", "turns", "deadline_s"),
    "judge": ("template", "sees", "max_chars"),
    "helpfulness": _MODEL,
    "harmlessness": _MODEL,
}
"""The same of parts that have a table of settings; how often and how fast they are asked decides nothing."""


def open_parts(config: Config) -> Parts:
    """The folder of completions, if it is of these settings.

    Raises:
        ConfigError: it holds completions of others; the message names what differs.
    """
    model, sample, sampling = Path(config.model.path), config.sample, config.sampling
    reward, mixed = config.resolved_reward, Mixed(sample.mix).fingerprint()
    identity: dict[str, object] = {
        "model.path": config.model.path,
        "model": {path.name: _size_and_time(path) for path in sorted(model.glob("*.safetensors"))},
        "seed": config.seed, "data.task": config.data.task,
        # Not its name: a file that was written anew is other prompts, and one that was moved is not.
        "content of data.path": digest_of(Path(config.data.path)) if config.data.path else "",
        "data.template": config.data.template, "sample.samples": sample.samples,
        "sample.temperature": sample.temperature, "sample.top_p": sample.top_p,
        "sampling.max_tokens": sampling.max_tokens, "sampling.stop": list(sampling.stop),
        "reward.weights": dict(reward.weights),
        "reward.domains": {name: asdict(each) for name, each in reward.domains.items()},
        **{f"reward.{name}": getattr(reward, name) for name in _RULES}, **_of_parts(reward), "mixed": mixed,
        # Mixed-in rows are numbered after the task's prompts.
        "sample.prompts": sample.prompts if mixed else 0,
        "sample.thought_request": sample.thought_request if mixed else "",
    }  # fmt: skip
    # As it will be read again, so that tuples are no difference.
    return Parts(config.run_dir / "samples", json.loads(json.dumps(identity)))


def _of_parts(reward: RewardConfig) -> dict[str, object]:
    """Settings of the graders that any domain has."""
    found: dict[str, object] = {}
    for part, names in _OF_PART.items():
        if part in reward.parts:
            found |= {f"reward.{part}.{name}": getattr(getattr(reward, part), name) for name in names}
    if "judge" in reward.parts:
        found["reward.judge.endpoint.model"] = reward.judge.endpoint.model
    if "swe" in reward.parts:
        found["reward.swe.instances"] = digest_of(Path(reward.swe.instances))
    return found


def _size_and_time(path: Path) -> list[int]:
    """Weights that were trained anew have the same size."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]
